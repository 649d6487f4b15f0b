//! What lowering makes of good, faulty and damaged documents: faults as cases, and the properties that
//! what comes out always serves and that compiling by steps agrees with compiling all at once.

use proptest::prelude::*;
use serde_json::{Value, json};

use prost::Message;
use shared::ids::{AliasId, ApiKeyId, CredentialId, ModelId, ProjectId, ProviderId, WorkspaceId};
use shared::snapshot::{Change, SHARED_SCOPE, Scope, ScopeDelta, Snapshot};

use super::*;

fn ws() -> String {
    WorkspaceId::from_u128(1).to_string()
}

fn prj(n: u128) -> String {
    ProjectId::from_u128(n).to_string()
}

fn prv(n: u128) -> String {
    ProviderId::from_u128(n).to_string()
}

fn cred(n: u128) -> String {
    CredentialId::from_u128(n).to_string()
}

fn mdl(n: u128) -> String {
    ModelId::from_u128(n).to_string()
}

fn als(n: u128) -> String {
    AliasId::from_u128(n).to_string()
}

fn key(n: u128) -> String {
    ApiKeyId::from_u128(n).to_string()
}

fn hash(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

/// (kind, id, document, secret).
type Row = (&'static str, String, String, Secret);

fn row(kind: &'static str, id: impl Into<String>, doc: Value) -> Row {
    (kind, id.into(), doc.to_string(), Secret::Absent)
}

fn documents(rows: &[Row]) -> Documents {
    let mut documents = Documents::default();
    for (revision, (kind, id, doc, secret)) in (10_u64..).zip(rows) {
        documents.put(kind, id, revision, doc, secret);
    }
    documents
}

fn shared_rows() -> Vec<Row> {
    let vendor = |slug: &str, base_url: &str, optional: bool| {
        json!({"slug": slug, "display_name": slug, "dialect": "openai", "base_url": base_url, "auth_header": "authorization",
               "auth_prefix": "Bearer ", "endpoints": {"chat_completions": "/chat/completions"},
               "credential_optional": optional})
    };
    vec![
        row("vendor", "openai", vendor("openai", "https://api.openai.com/v1", false)),
        row("vendor", "azure", vendor("azure", "https://{resource}.openai.azure.com/openai/v1", false)),
        row("vendor", "vllm", vendor("vllm", "", true)),
        row("catalog_offering", "openai/gpt-4o", offering("openai", "gpt-4o")),
    ]
}

fn offering(vendor: &str, model: &str) -> Value {
    let mut price = proto::Price { input: 2_500_000_000, output: 10_000_000_000, ..Default::default() };
    price.id = shared::money::price_id(&price);
    let facts = proto::ModelFacts { r#type: "chat".into(), prices: vec![price], ..Default::default() };
    let message = proto::CatalogOffering {
        vendor: vendor.into(),
        model: model.into(),
        base_model: format!("{vendor}/{model}"),
        facts: Some(facts),
    };
    serde_json::to_value(crate::input::CatalogOffering::from(&message)).expect("plain data")
}

fn workspace_rows() -> Vec<Row> {
    let secret = Secret::Opened(b"sk-secret".to_vec());
    let credential = json!({"provider_id": prv(1), "name": "main", "secret_version": 1}).to_string();
    vec![
        row("workspace", ws(), json!({"key": "acme"})),
        row("project", prj(1), json!({"key": "default"})),
        row("provider", prv(1), json!({"vendor": "openai"})),
        row("provider", prv(2), json!({"vendor": "azure", "slug": "eu", "parameters": {"resource": "acme-eu"}})),
        row("provider", prv(3), json!({"vendor": "vllm", "slug": "local", "base_url": "http://10.0.0.1:8000/v1/"})),
        ("credential", cred(1), credential, secret),
        row(
            "model",
            mdl(1),
            json!({"provider_id": prv(3), "name": "tuned", "private": true, "type": "chat",
            "prices": [{"input": "0.1", "output": "0.2"}]}),
        ),
        row("model", mdl(2), json!({"provider_id": prv(1), "name": "gpt-4o", "disabled": true})),
        row("alias", als(1), json!({"name": "fast", "targets": ["openai/gpt-4o"]})),
        row("api_key", key(1), json!({"name": "one", "hash": hash(1), "addresses": ["10.0.0.0/8"]})),
        row("api_key", key(2), json!({"name": "two", "hash": hash(2), "project_id": prj(1), "models": ["openai/*"]})),
    ]
}

fn never(_: &str, _: &str) -> Vec<Version> {
    Vec::new()
}

fn scope_of(compiled: &Compiled, revision: u64) -> (Scope, ScopeDelta) {
    let delta = ScopeDelta { upserts: compiled.resources.clone(), removals: Vec::new() };
    let mut scope = Scope::default();
    scope.apply(&delta, revision);
    (scope, delta)
}

fn applied(snapshot: &Snapshot, name: &str, compiled: &Compiled) -> Result<Snapshot, shared::snapshot::Rejection> {
    let (next, delta) = scope_of(compiled, 1);
    snapshot.apply(&Change { scope: name, next: &next, previous: &Scope::default(), delta: &delta })
}

fn catalogue() -> (Catalogue, Snapshot) {
    let compiled = lower(SHARED_SCOPE, &documents(&shared_rows()), &never, &Catalogue::default());
    assert_eq!(compiled.quarantined, []);
    let snapshot = applied(&Snapshot::default(), SHARED_SCOPE, &compiled).expect("the shared scope is good");
    (Catalogue::of(&scope_of(&compiled, 1).0), snapshot)
}

fn body<M: Message + Default>(compiled: &Compiled, kind: &str, id: &str) -> M {
    let found = compiled.resources.iter().find(|r| r.kind == kind && r.id == id).expect("it is compiled");
    M::decode(found.body.clone()).expect("it was encoded here")
}

#[test]
fn good_documents_become_a_snapshot() {
    let (catalogue, snapshot) = catalogue();
    let compiled = lower(&ws(), &documents(&workspace_rows()), &never, &catalogue);
    assert_eq!(compiled.quarantined, []);
    assert_eq!(compiled.warnings, []);
    let snapshot = applied(&snapshot, &ws(), &compiled).expect("it serves");
    assert_eq!(snapshot.key_count(), 2);

    let azure: proto::Provider = body(&compiled, "provider", &prv(2));
    assert_eq!(azure.base_url, "https://acme-eu.openai.azure.com/openai/v1");
    let openai: proto::Provider = body(&compiled, "provider", &prv(1));
    assert_eq!((openai.slug.as_str(), openai.base_url.as_str()), ("openai", ""));
    let one: proto::ApiKey = body(&compiled, "api_key", &key(1));
    assert_eq!((one.project_id, one.scopes.len()), (prj(1), 2));
    let tuned: proto::Model = body(&compiled, "model", &mdl(1));
    let price = &tuned.facts.expect("it has facts").prices[0];
    assert_eq!((price.input, price.cache_read, price.output), (100_000_000, 100_000_000, 200_000_000));
    assert_eq!(price.id, shared::money::price_id(price));
    let again = lower(&ws(), &documents(&workspace_rows()), &never, &catalogue);
    assert_eq!(compiled, again, "the same input gives the same bytes");
}

#[test]
fn catalogue_rows_survive_the_way_through_documents() {
    let compiled = lower(SHARED_SCOPE, &documents(&shared_rows()), &never, &Catalogue::default());
    let rows: Vec<Row> = compiled
        .resources
        .iter()
        .map(|r| match r.kind.as_str() {
            "vendor" => {
                let doc = crate::input::Vendor::from(&proto::Vendor::decode(r.body.clone()).expect("a vendor"));
                row("vendor", r.id.clone(), serde_json::to_value(doc).expect("plain data"))
            }
            _ => {
                let message = proto::CatalogOffering::decode(r.body.clone()).expect("an offering");
                let doc = crate::input::CatalogOffering::from(&message);
                row("catalog_offering", r.id.clone(), serde_json::to_value(doc).expect("plain data"))
            }
        })
        .collect();
    let again = lower(SHARED_SCOPE, &documents(&rows), &never, &Catalogue::default());
    assert_eq!(again.quarantined, []);
    assert_eq!(again.resources, compiled.resources);
}

/// What replaces or joins the good rows, and what is quarantined for it: (kind, id, code, path).
struct Case {
    name: &'static str,
    rows: Vec<Row>,
    expected: Vec<(&'static str, String, &'static str, &'static str)>,
}

fn cases() -> Vec<Case> {
    let provider = |doc: Value| vec![row("provider", prv(3), doc)];
    let key_doc = |doc: Value| vec![row("api_key", key(3), doc)];
    let price = |price: Value| {
        vec![row(
            "model",
            mdl(3),
            json!({"provider_id": prv(3), "name": "p", "private": true, "type": "chat", "prices": [price]}),
        )]
    };
    let lost = vec![
        ("provider", prv(3), "unknown_reference", "vendor"),
        ("model", mdl(1), "quarantined_reference", "provider_id"),
    ];
    let local =
        |code, path| vec![("provider", prv(3), code, path), ("model", mdl(1), "quarantined_reference", "provider_id")];
    let one = |kind, id: String, code, path| vec![(kind, id, code, path)];
    let secret = |secret: Secret| {
        let doc = json!({"provider_id": prv(1), "name": "x", "secret_version": 2}).to_string();
        vec![("credential", cred(2), doc, secret)]
    };
    let nobody = prv(99);
    vec![
        Case {
            name: "not JSON",
            rows: vec![("alias", als(2), "{".into(), Secret::Absent)],
            expected: one("alias", als(2), "invalid_json", ""),
        },
        Case {
            name: "not a document",
            rows: vec![row("alias", als(2), json!({"nam": 1}))],
            expected: one("alias", als(2), "invalid_document", ""),
        },
        Case {
            name: "unknown kind",
            rows: vec![row("gadget", "g", json!({}))],
            expected: one("gadget", "g".into(), "unknown_kind", ""),
        },
        Case {
            name: "kind of the shared scope",
            rows: vec![shared_rows().remove(0)],
            expected: one("vendor", "openai".into(), "unknown_kind", ""),
        },
        Case { name: "unknown vendor", rows: provider(json!({"vendor": "nobody"})), expected: lost },
        Case {
            name: "no URL",
            rows: provider(json!({"vendor": "vllm", "slug": "local"})),
            expected: local("required", "base_url"),
        },
        Case {
            name: "bad URL",
            rows: provider(json!({"vendor": "vllm", "base_url": "ftp://x"})),
            expected: local("invalid_value", "base_url"),
        },
        Case {
            name: "URL with a password",
            rows: provider(json!({"vendor": "vllm", "base_url": "http://u:p@x"})),
            expected: local("invalid_value", "base_url"),
        },
        Case {
            name: "missing parameter",
            rows: provider(json!({"vendor": "azure", "slug": "b"})),
            expected: local("required", "parameters.resource"),
        },
        Case {
            name: "hostile parameter",
            rows: provider(json!({"vendor": "azure", "slug": "b", "parameters": {"resource": "evil.com/"}})),
            expected: local("invalid_value", "parameters.resource"),
        },
        Case {
            name: "slug taken",
            rows: provider(json!({"vendor": "vllm", "slug": "openai", "base_url": "http://x"})),
            expected: local("name_taken", "slug"),
        },
        Case {
            name: "slash in the slug",
            rows: provider(json!({"vendor": "vllm", "slug": "a/b", "base_url": "http://x"})),
            expected: local("invalid_value", "slug"),
        },
        Case {
            name: "endless timeout",
            rows: provider(json!({"vendor": "vllm", "base_url": "http://x", "timeouts": {"idle_ms": 86_400_001}})),
            expected: local("invalid_value", "timeouts.idle_ms"),
        },
        Case {
            name: "id of another kind",
            rows: vec![row("provider", key(9), json!({"vendor": "openai", "slug": "z"}))],
            expected: one("provider", key(9), "invalid_value", "id"),
        },
        Case {
            name: "secret lost",
            rows: secret(Secret::Absent),
            expected: one("credential", cred(2), "secret_missing", "secret"),
        },
        Case {
            name: "secret sealed by another key",
            rows: secret(Secret::Unreadable),
            expected: one("credential", cred(2), "secret_unreadable", "secret"),
        },
        Case {
            name: "secret with a line break",
            rows: secret(Secret::Opened(b"a\nb".to_vec())),
            expected: one("credential", cred(2), "invalid_value", "secret"),
        },
        Case {
            name: "no secret where one is needed",
            rows: vec![row("credential", cred(2), json!({"provider_id": prv(1), "name": "x"}))],
            expected: one("credential", cred(2), "required", "secret"),
        },
        Case {
            name: "dangling provider",
            rows: vec![row("credential", cred(2), json!({"provider_id": nobody, "name": "x"}))],
            expected: one("credential", cred(2), "unknown_reference", "provider_id"),
        },
        Case {
            name: "model not in the catalogue",
            rows: vec![row("model", mdl(3), json!({"provider_id": prv(1), "name": "gpt-9"}))],
            expected: one("model", mdl(3), "unknown_reference", "name"),
        },
        Case {
            name: "private model without a type",
            rows: vec![row("model", mdl(3), json!({"provider_id": prv(1), "name": "x", "private": true}))],
            expected: one("model", mdl(3), "required", "type"),
        },
        Case {
            name: "model name taken",
            rows: vec![row("model", mdl(3), json!({"provider_id": prv(1), "name": "gpt-4o"}))],
            expected: one("model", mdl(3), "name_taken", "name"),
        },
        Case {
            name: "negative price",
            rows: price(json!({"input": "-1", "output": "1"})),
            expected: one("model", mdl(3), "bad_price", "prices[0].input"),
        },
        Case {
            name: "price too fine",
            rows: price(json!({"input": "1", "output": "0.0000000001"})),
            expected: one("model", mdl(3), "bad_price", "prices[0].output"),
        },
        Case {
            name: "price no number",
            rows: price(json!({"input": "1", "output": "1", "reasoning": "1e3"})),
            expected: one("model", mdl(3), "bad_price", "prices[0].reasoning"),
        },
        Case {
            name: "alias of nothing",
            rows: vec![row("alias", als(2), json!({"name": "x", "targets": []}))],
            expected: one("alias", als(2), "invalid_value", "targets"),
        },
        Case {
            name: "alias of itself",
            rows: vec![row("alias", als(2), json!({"name": "x", "targets": ["x"]}))],
            expected: one("alias", als(2), "invalid_value", "targets[0]"),
        },
        Case {
            name: "alias with a slash",
            rows: vec![row("alias", als(2), json!({"name": "a/b", "targets": ["x"]}))],
            expected: one("alias", als(2), "invalid_value", "name"),
        },
        Case {
            name: "alias name taken",
            rows: vec![row("alias", als(2), json!({"name": "fast", "targets": ["x"]}))],
            expected: one("alias", als(2), "name_taken", "name"),
        },
        Case {
            name: "hash too short",
            rows: key_doc(json!({"name": "k", "hash": "ab"})),
            expected: one("api_key", key(3), "invalid_value", "hash"),
        },
        Case {
            name: "hash taken",
            rows: key_doc(json!({"name": "k", "hash": hash(1)})),
            expected: one("api_key", key(3), "name_taken", "hash"),
        },
        Case {
            name: "unknown scope of a key",
            rows: key_doc(json!({"name": "k", "hash": hash(3), "scopes": ["admin"]})),
            expected: one("api_key", key(3), "invalid_value", "scopes[0]"),
        },
        Case {
            name: "bad address",
            rows: key_doc(json!({"name": "k", "hash": hash(3), "addresses": ["10.0.0.0/40"]})),
            expected: one("api_key", key(3), "invalid_value", "addresses"),
        },
        Case {
            name: "dangling project",
            rows: key_doc(json!({"name": "k", "hash": hash(3), "project_id": prj(9)})),
            expected: one("api_key", key(3), "unknown_reference", "project_id"),
        },
        Case {
            name: "no default project",
            rows: vec![row("project", prj(1), json!({"key": "other"}))],
            expected: one("api_key", key(1), "unknown_reference", "project_id"),
        },
        Case {
            name: "another workspace's document",
            rows: vec![row("workspace", WorkspaceId::from_u128(2).to_string(), json!({"key": "b"}))],
            expected: one("workspace", WorkspaceId::from_u128(2).to_string(), "invalid_value", "id"),
        },
        Case {
            name: "too large",
            rows: vec![row("alias", als(2), json!({"name": "x", "targets": ["y".repeat(1_048_577)]}))],
            expected: one("alias", als(2), "too_large", ""),
        },
    ]
}

#[test]
fn each_fault_quarantines_its_object_and_no_other() {
    let (catalogue, snapshot) = catalogue();
    for case in cases() {
        let mut rows = workspace_rows();
        rows.retain(|r| !case.rows.iter().any(|c| c.0 == r.0 && c.1 == r.1));
        rows.extend(case.rows);
        let compiled = lower(&ws(), &documents(&rows), &never, &catalogue);
        let found: Vec<_> =
            compiled.quarantined.iter().map(|q| (q.kind.as_str(), q.id.clone(), q.code, q.path.as_str())).collect();
        assert_eq!(found, case.expected, "{}", case.name);
        assert_eq!(compiled.resources.len() + compiled.quarantined.len(), rows.len(), "{}", case.name);
        applied(&snapshot, &ws(), &compiled).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    }
}

#[test]
fn the_last_good_version_stays_in_force() {
    let (catalogue, snapshot) = catalogue();
    let mut rows = workspace_rows();
    rows[2].2 = "{ poisoned".into();
    let history = |kind: &str, id: &str| match (kind, id == prv(1)) {
        ("provider", true) => vec![
            Version { revision: 9, doc: json!({"vendor": "gone"}).to_string(), secret: Secret::Absent },
            Version {
                revision: 7,
                doc: json!({"vendor": "openai", "disabled": true}).to_string(),
                secret: Secret::Absent,
            },
            Version { revision: 5, doc: json!({"vendor": "openai"}).to_string(), secret: Secret::Absent },
        ],
        (_, _) => Vec::new(),
    };
    let compiled = lower(&ws(), &documents(&rows), &history, &catalogue);
    assert_eq!(compiled.quarantined.len(), 1, "what depends on it serves: {:?}", compiled.quarantined);
    assert_eq!(compiled.quarantined[0].serving_revision, Some(7), "the newest that compiles, not the newest");
    assert!(body::<proto::Provider>(&compiled, "provider", &prv(1)).disabled);
    applied(&snapshot, &ws(), &compiled).expect("it serves");
}

#[test]
fn an_old_version_takes_no_name_from_a_new_one() {
    let (catalogue, _) = catalogue();
    let mut rows = workspace_rows();
    rows.push(row("alias", als(0), json!({"name": 1})));
    let history = |_: &str, id: &str| match id == als(0) {
        true => vec![Version {
            revision: 3,
            doc: json!({"name": "fast", "targets": ["x"]}).to_string(),
            secret: Secret::Absent,
        }],
        false => Vec::new(),
    };
    let compiled = lower(&ws(), &documents(&rows), &history, &catalogue);
    let names: Vec<_> = compiled.quarantined.iter().map(|q| (q.id.clone(), q.serving_revision)).collect();
    assert_eq!(names, [(als(0), None)]);
    assert_eq!(body::<proto::Alias>(&compiled, "alias", &als(1)).targets, ["openai/gpt-4o"]);
}

#[test]
fn nothing_is_published_without_the_workspace_itself() {
    let (catalogue, _) = catalogue();
    let mut rows = workspace_rows();
    rows[0].2 = "null".into();
    let compiled = lower(&ws(), &documents(&rows), &never, &catalogue);
    assert_eq!(compiled.resources, []);
    assert_eq!(compiled.quarantined.len(), 1);
}

#[test]
fn a_bad_vendor_takes_its_models_along_and_no_others() {
    let mut rows = shared_rows();
    rows[1].2 = r#"{"slug": "azure"}"#.into();
    rows.push(row("catalog_offering", "azure/gpt-4o", offering("azure", "gpt-4o")));
    rows.push(row("catalog_offering", "openai/x", offering("openai", "y")));
    let mut renamed = offering("openai", "z");
    renamed["prices"][0]["input"] = "1".into();
    rows.push(row("catalog_offering", "openai/z", renamed));
    let compiled = lower(SHARED_SCOPE, &documents(&rows), &never, &Catalogue::default());
    let found: Vec<_> = compiled.quarantined.iter().map(|q| (q.id.as_str(), q.code)).collect();
    assert_eq!(
        found,
        [
            ("azure", "invalid_document"),
            ("azure/gpt-4o", "quarantined_reference"),
            ("openai/x", "invalid_value"),
            ("openai/z", "bad_price")
        ]
    );
    applied(&Snapshot::default(), SHARED_SCOPE, &compiled).expect("the rest serves");
}

#[test]
fn aliases_that_lead_nowhere_serve_with_a_warning() {
    let (catalogue, _) = catalogue();
    let mut rows = workspace_rows();
    rows.push(row("alias", als(2), json!({"name": "slow", "targets": ["gone/gpt", "fast", "gpt-4o", "eu/gpt-4o"]})));
    let compiled = lower(&ws(), &documents(&rows), &never, &catalogue);
    assert_eq!(compiled.quarantined, []);
    let warned: Vec<_> = compiled.warnings.iter().map(|w| w.id.clone()).collect();
    assert_eq!(warned, [als(2), als(2)], "{:?}", compiled.warnings);
}

/// A document with one member changed to something else, or cut.
fn damaged() -> impl Strategy<Value = (prop::sample::Index, u8, prop::sample::Index, Value)> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[a-z/@{}.:-]{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!(["", "*", "a/b"])),
        Just(json!({"x": 1})),
        (1_u128..4).prop_map(|n| Value::from(prv(n))),
        (1_u8..4).prop_map(|n| Value::from(hash(n))),
    ];
    (any::<prop::sample::Index>(), 0_u8..4, any::<prop::sample::Index>(), value)
}

fn damage(rows: &mut Vec<Row>, (which, how, member, value): (prop::sample::Index, u8, prop::sample::Index, Value)) {
    let (at, id) = (which.index(rows.len()), value.to_string());
    match how {
        0 => {
            // An earlier cut may have left nothing.
            let cut = member.index(rows[at].2.len().max(1));
            let cut = rows[at].2.floor_char_boundary(cut);
            rows[at].2.truncate(cut);
        }
        1 => _ = rows.remove(at),
        // Kind and id are a key of the table: two rows cannot have the same.
        2 if rows.iter().any(|row| row.0 == rows[at].0 && row.1 == id) => {}
        2 => rows[at].1 = id,
        _ => {
            let Ok(Value::Object(mut doc)) = serde_json::from_str::<Value>(&rows[at].2) else { return };
            if let Some(name) = doc.keys().nth(member.index(doc.len().max(1))).cloned() {
                doc.insert(name, value);
            }
            rows[at].2 = Value::Object(doc).to_string();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// S3 and S17: whatever is in the database, what is published serves; old versions or not.
    #[test]
    fn what_comes_out_always_serves(damages in prop::collection::vec(damaged(), 0..6), history in any::<bool>(),
                                    over_shared in any::<bool>()) {
        let (mut shared_rows, mut rows) = (shared_rows(), workspace_rows());
        let (good_shared, good) = (shared_rows.clone(), rows.clone());
        for one in damages {
            let rows = if over_shared { &mut shared_rows } else { &mut rows };
            if rows.len() > 1 {
                damage(rows, one);
            }
        }
        let earlier = |kind: &str, id: &str| {
            let of = good.iter().chain(&good_shared).filter(|r| history && r.0 == kind && r.1 == id);
            of.map(|r| Version { revision: 1, doc: r.2.clone(), secret: r.3.clone() }).collect::<Vec<_>>()
        };
        let shared = lower(SHARED_SCOPE, &documents(&shared_rows), &earlier, &Catalogue::default());
        let snapshot = applied(&Snapshot::default(), SHARED_SCOPE, &shared);
        prop_assert!(snapshot.is_ok(), "{:?}", snapshot.err());
        let catalogue = Catalogue::of(&scope_of(&shared, 1).0);
        let compiled = lower(&ws(), &documents(&rows), &earlier, &catalogue);
        if compiled.resources.is_empty() {
            return Ok(());
        }
        let served = applied(&snapshot.expect("checked above"), &ws(), &compiled);
        prop_assert!(served.is_ok(), "{:?}", served.err());
    }

    /// Reading one changed document gives what reading all of them gives.
    #[test]
    fn incremental_and_whole_agree(damages in prop::collection::vec(damaged(), 1..6)) {
        let (catalogue, _) = catalogue();
        let mut rows = workspace_rows();
        let mut kept = documents(&rows);
        for one in damages {
            let before = rows.clone();
            if rows.len() > 1 {
                damage(&mut rows, one);
            }
            for (index, old) in before.iter().enumerate() {
                if !rows.contains(old) {
                    kept.remove(old.0, &old.1);
                }
                _ = index;
            }
            for (revision, (kind, id, doc, secret)) in (10_u64..).zip(&rows) {
                if !before.iter().any(|old| old.0 == *kind && old.1 == *id && old.2 == *doc) {
                    kept.put(kind, id, revision, doc, secret);
                }
            }
        }
        let (mut a, b) = (lower(&ws(), &kept, &never, &catalogue), lower(&ws(), &documents(&rows), &never, &catalogue));
        for (mine, theirs) in a.quarantined.iter_mut().zip(&b.quarantined) {
            mine.revision = theirs.revision;
        }
        prop_assert_eq!(a, b);
    }
}
