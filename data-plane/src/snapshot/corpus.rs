//! S3: thousands of broken updates, made from good ones by a seed. None may end the process, none
//! that is invalid may serve, and what served before serves throughout.
//!
//! 3,000 mutants by default; `POINTSMAN_MUTANTS=100000` for the long run, `POINTSMAN_SEED` for
//! another corpus.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;
use runtime::random::splitmix64;
use shared::proto::{self, NackCode};
use shared::snapshot::{BaseUrl, SHARED_SCOPE, Scope, ScopeDelta, limits};

use super::fixture::{self, delta, full, key_hash, shared_scope, workspace_id, workspace_scope};

struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        let (state, out) = splitmix64(self.0);
        self.0 = state;
        out
    }

    /// Below `most`; 0 when that is 0.
    fn below(&mut self, most: usize) -> usize {
        (self.roll() % most.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let (a, b) = (self.below(length + 1), self.below(length + 1));
        a.min(b)..a.max(b)
    }
}

/// Damage that knows nothing of the form.
fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    match dice.below(6) {
        0 => {
            for _ in 0..=dice.below(8) {
                let at = dice.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
        }
        1 => bytes.truncate(dice.below(bytes.len() + 1)),
        2 => {
            let section = bytes[dice.range(bytes.len())].to_vec();
            let at = dice.below(bytes.len() + 1);
            bytes.splice(at..at, section);
        }
        3 => drop(bytes.drain(dice.range(bytes.len()))),
        4 => {
            let range = dice.range(bytes.len());
            bytes[range].iter_mut().for_each(|byte| *byte = dice.roll() as u8);
        }
        _ => {
            let at = dice.below(bytes.len() + 1);
            let filler = vec![dice.roll() as u8; dice.below(10 * bytes.len() + 10).min(1 << 16)];
            bytes.splice(at..at, filler);
        }
    }
}

/// One field of an encoded message: tag, wire type, whole range, range of the value.
struct Field {
    tag: u64,
    wire: u64,
    whole: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
}

fn fields(bytes: &[u8]) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let start = bytes.len() - rest.len();
        let tag = prost::encoding::decode_varint(&mut rest).ok()?;
        let mut from = bytes.len() - rest.len();
        let length = match tag & 7 {
            0 => {
                prost::encoding::decode_varint(&mut rest).ok()?;
                bytes.len() - rest.len() - from
            }
            2 => {
                let length = usize::try_from(prost::encoding::decode_varint(&mut rest).ok()?).ok()?;
                from = bytes.len() - rest.len();
                rest = rest.get(length..)?;
                length
            }
            _ => return None,
        };
        found.push(Field { tag: tag >> 3, wire: tag & 7, whole: start..from + length, value: from..from + length });
    }
    Some(found)
}

fn encoded(tag: u64, wire: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(tag << 3 | wire, &mut out);
    if wire == 2 {
        prost::encoding::encode_varint(value.len() as u64, &mut out);
    }
    out.extend_from_slice(value);
    out
}

/// One field somewhere inside a message becomes blank, doubled, huge, negative, or another's.
fn edit(bytes: &[u8], others: &[String], dice: &mut Dice) -> Vec<u8> {
    let Some(fields) = fields(bytes).filter(|fields| !fields.is_empty()) else {
        let mut bytes = bytes.to_vec();
        damage(&mut bytes, dice);
        return bytes;
    };
    let field = &fields[dice.below(fields.len())];
    let value = &bytes[field.value.clone()];
    let varint = |number: u64| {
        let mut out = Vec::new();
        prost::encoding::encode_varint(number, &mut out);
        encoded(field.tag, 0, &out)
    };
    let new = match (field.wire, dice.below(9)) {
        (_, 0) => Vec::new(),
        (_, 1) => [&bytes[field.whole.clone()], &bytes[field.whole.clone()]].concat(),
        (0, 2) => varint(u64::MAX),
        (0, 3) => varint(i64::MIN as u64),
        (0, 4) => varint(i64::MAX as u64),
        (0, _) => varint(dice.roll() >> dice.below(64)),
        (_, 2) => encoded(field.tag, 2, &[]),
        (_, 3) => encoded(field.tag, 2, others[dice.below(others.len())].as_bytes()),
        (_, 4) => encoded(field.tag, 2, &value.repeat(10)),
        (_, 5) => {
            let mut value = value.to_vec();
            damage(&mut value, dice);
            encoded(field.tag, 2, &value)
        }
        (_, 6) => {
            let other = &fields[dice.below(fields.len())];
            encoded(field.tag, 2, &bytes[other.value.clone()])
        }
        _ => encoded(field.tag, 2, &edit(value, others, dice)),
    };
    [&bytes[..field.whole.start], &new, &bytes[field.whole.end..]].concat()
}

/// A broken state whose hashes are right, so that it gets past them.
fn edited_state(good: &Scope, dice: &mut Dice) -> Scope {
    let mut rows: Vec<proto::Resource> = good.resources().collect();
    let mut others: Vec<String> = rows.iter().flat_map(|r| [r.id.clone(), r.kind.clone()]).collect();
    let odd =
        ["", "/", "https://", "http://x:99999", "\u{0}", "a\r\nb: c", "*", "sandbox://x", "https://u:p@h", "%", "{"];
    others.extend(odd.map(str::to_owned));
    for _ in 0..=dice.below(3) {
        let (at, other) = (dice.below(rows.len()), dice.below(rows.len()));
        if rows.is_empty() {
            break;
        }
        match dice.below(10) {
            0 => drop(rows.remove(at)),
            1 => rows[at].id = others[dice.below(others.len())].clone(),
            2 => rows[at].kind = rows[other].kind.clone(),
            3 => rows[at].body = rows[other].body.clone(),
            4 => {
                let twin = proto::Resource { id: others[dice.below(others.len())].clone(), ..rows[at].clone() };
                rows.push(twin);
            }
            _ => rows[at].body = edit(&rows[at].body, &others, dice).into(),
        }
    }
    fixture::scope(rows, good.revision() + 1)
}

/// What a valid house is, said once more and differently: straight from the rows.
fn is_valid(shared: &Scope, workspace: &Scope) -> Result<(), String> {
    fn rows<M: Message + Default>(scope: &Scope, kind: &str) -> Result<Vec<(String, M)>, String> {
        let decode = |row: proto::Resource| match M::decode(row.body) {
            Ok(message) => Ok((row.id, message)),
            Err(e) => Err(format!("{}/{}: {e}", row.kind, row.id)),
        };
        scope.resources().filter(|r| r.kind == kind).map(decode).collect()
    }
    fn unique<T: std::hash::Hash + Eq>(mut all: impl Iterator<Item = T>) -> bool {
        let mut seen = HashSet::new();
        all.all(|one| seen.insert(one))
    }
    let check = |good: bool, what: &str| if good { Ok(()) } else { Err(what.to_owned()) };
    let url = |text: &str| text.is_empty() || BaseUrl::parse(text).is_ok();
    let priced = |facts: &proto::ModelFacts| {
        !facts.r#type.is_empty()
            && facts.prices.iter().all(|p| {
                let rates = [p.input, p.cache_read, p.cache_write_5m, p.cache_write_1h, p.output, p.reasoning];
                rates.iter().chain([&p.audio_input, &p.audio_output]).all(|rate| *rate >= 0)
                    && p.id == shared::money::price_id(p)
            })
    };
    let vendors = rows::<proto::Vendor>(shared, "vendor")?;
    check(vendors.iter().all(|(id, v)| *id == v.slug && !id.is_empty() && !v.dialect.is_empty()), "vendor")?;
    for (id, offering) in rows::<proto::CatalogOffering>(shared, "catalog_offering")? {
        check(id == format!("{}/{}", offering.vendor, offering.model), "offering id")?;
        check(vendors.iter().any(|(slug, _)| *slug == offering.vendor), "offering vendor")?;
        check(offering.facts.as_ref().is_some_and(priced), "offering facts")?;
    }
    let name = workspace_id(1).to_string();
    let own = rows::<proto::Workspace>(workspace, "workspace")?;
    check(own.len() == 1 && own[0].1.id == name && !own[0].1.key.is_empty(), "workspace")?;
    let projects = rows::<proto::Project>(workspace, "project")?;
    check(projects.iter().all(|(id, p)| *id == p.id && !p.key.is_empty()), "project")?;
    let providers = rows::<proto::Provider>(workspace, "provider")?;
    check(unique(providers.iter().map(|(_, p)| &p.slug)), "provider slugs")?;
    for (id, p) in &providers {
        check(*id == p.id && !p.slug.is_empty() && !p.slug.contains('/') && url(&p.base_url), "provider")?;
        check(vendors.iter().any(|(slug, _)| *slug == p.vendor), "provider vendor")?;
        let t = p.timeouts.unwrap_or_default();
        let longest = t.connect_ms.max(t.first_token_ms).max(t.idle_ms).max(t.total_ms);
        check(longest <= limits::MAX_TIMEOUT_MS, "timeouts")?;
    }
    let provided = |id: &str| providers.iter().any(|(held, _)| held == id);
    for (id, c) in rows::<proto::Credential>(workspace, "credential")? {
        check(id == c.id && provided(&c.provider_id), "credential")?;
        check(c.secret.iter().all(|b| (*b >= 32 && *b != 127) || *b == b'\t'), "credential secret")?;
    }
    let models = rows::<proto::Model>(workspace, "model")?;
    check(unique(models.iter().map(|(_, m)| (&m.provider_id, &m.name))), "model names")?;
    for (id, m) in &models {
        check(
            *id == m.id && provided(&m.provider_id) && !m.name.is_empty() && (m.disabled || url(&m.base_url)),
            "model",
        )?;
        check(m.disabled || !m.private || m.facts.as_ref().is_some_and(priced), "model facts")?;
    }
    let aliases = rows::<proto::Alias>(workspace, "alias")?;
    check(
        aliases.iter().all(|(id, a)| *id == a.id && !a.targets.is_empty() && !a.targets.contains(&String::new())),
        "alias",
    )?;
    check(unique(aliases.iter().filter(|(_, a)| !a.disabled).map(|(_, a)| &a.name)), "alias names")?;
    let keys = rows::<proto::ApiKey>(workspace, "api_key")?;
    check(unique(keys.iter().map(|(_, k)| &k.hash)), "key hashes")?;
    for (id, k) in &keys {
        check(*id == k.id && k.hash.len() == 32 && projects.iter().any(|(p, _)| *p == k.project_id), "key")?;
    }
    Ok(())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn no_mutant_ends_the_process_and_none_that_is_invalid_serves() {
    let store = fixture::store(12);
    let name = workspace_id(1).to_string();
    let mut dice = Dice(number("POINTSMAN_SEED", 1));
    let mut held = [shared_scope(1), workspace_scope(1, 1, 12, "A")];
    let (mut refused, mut accepted, mut unreadable) = (0, 0, 0);
    let (mut blamed, mut agreed) = (0, 0);
    for mutant in 0..number("POINTSMAN_MUTANTS", 3_000) {
        let which = usize::from(!mutant.is_multiple_of(4));
        let scope_name = [SHARED_SCOPE, &name][which];
        let good = held[which].clone();
        let mut verdict = Ok(());
        let update = if mutant % 3 == 0 {
            let next = match which {
                0 => shared_scope(good.revision() + 1),
                _ => workspace_scope(1, good.revision() + 1, 13, "A"),
            };
            let whole = if dice.below(2) == 0 { full(scope_name, &next) } else { delta(scope_name, &good, &next) };
            let mut bytes = whole.encode_to_vec();
            damage(&mut bytes, &mut dice);
            match proto::Update::decode(bytes.as_slice()) {
                Ok(update) => update,
                Err(_) => {
                    unreadable += 1;
                    continue;
                }
            }
        } else {
            let next = edited_state(&good, &mut dice);
            verdict = match which {
                0 => is_valid(&next, &workspace_alone()),
                _ => is_valid(&held[0], &next),
            };
            let update = if dice.below(2) == 0 { full(scope_name, &next) } else { delta(scope_name, &good, &next) };
            proto::Update { force: dice.below(2) == 0, ..update }
        };
        let before = store.load();
        match store.apply(&update) {
            Ok(applied) => {
                accepted += 1;
                if update.scope_removed {
                    // Of a scope that is not held this changes nothing.
                    assert!(applied.scope != SHARED_SCOPE, "mutant {mutant}");
                } else {
                    let at = usize::from(update.scope != SHARED_SCOPE);
                    assert_eq!(update.scope, [SHARED_SCOPE, &name][at], "mutant {mutant} made a scope up");
                    let mut next = if update.from == 0 { Scope::default() } else { held[at].clone() };
                    let change = ScopeDelta { upserts: update.upserts, removals: update.removals };
                    next.apply(&change, update.to);
                    assert_eq!(applied.state_hash, next.state_hash(), "mutant {mutant}");
                    held[at] = next;
                    // A vendor may leave the catalogue while workspaces use it; only then may the
                    // two not fit together, and the workspace keeps what it had.
                    let catalogue = if at == 0 { &shared_scope(1) } else { &held[0] };
                    let valid =
                        if at == 0 { is_valid(&held[0], &workspace_alone()) } else { is_valid(catalogue, &held[1]) };
                    assert_eq!(valid, Ok(()), "mutant {mutant} serves");
                }
                restore(&store, &mut held);
            }
            Err(rejection) => {
                refused += 1;
                let on_content = [NackCode::BadResource, NackCode::DanglingRef, NackCode::BadPrice];
                if on_content.contains(&rejection.code) && mutant % 3 != 0 {
                    blamed += 1;
                    agreed += u64::from(verdict.is_err());
                }
                assert!(Arc::ptr_eq(&before, &store.load()), "mutant {mutant}: {rejection}");
                assert_ne!(rejection.code, NackCode::Internal, "mutant {mutant} panicked: {rejection}");
            }
        }
        assert!(store.load().key(&key_hash(1, 5)).is_some(), "mutant {mutant}: a good key is served throughout");
    }
    println!("{refused} refused, {accepted} harmless, {unreadable} unreadable; {agreed} of {blamed} by both");
    // The second opinion knows less than the node, but it must know most of it, or it proves nothing.
    assert!(blamed > refused / 10 && agreed * 10 > blamed * 9, "{agreed} of {blamed}");
    assert!(refused > accepted / 4 && accepted > 0 && unreadable > 0, "the corpus has something of everything");
}

/// A workspace that uses nothing of the catalogue.
fn workspace_alone() -> Scope {
    let keep = |r: &proto::Resource| r.kind == "workspace" || r.kind == "project";
    fixture::scope(workspace_scope(1, 1, 0, "A").resources().filter(keep).collect(), 1)
}

/// Back to the good states, as new revisions with the old content.
fn restore(store: &super::Store, held: &mut [Scope; 2]) {
    let name = workspace_id(1).to_string();
    for (at, scope_name) in [SHARED_SCOPE, &name].into_iter().enumerate() {
        let revision = store.held_scope(scope_name).0 + 1;
        let good = match at {
            0 => shared_scope(1),
            _ => workspace_scope(1, 1, 12, "A"),
        };
        held[at] = fixture::scope(good.resources().collect(), revision);
        let update = proto::Update { force: true, ..full(scope_name, &held[at]) };
        store.apply(&update).expect("the good state is always taken back");
    }
}
