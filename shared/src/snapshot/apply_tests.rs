//! What a workspace's rows make of the catalogue, and what a change reaches.

use prost::Message;

use super::*;
use crate::ids::{ApiKeyId, ModelId, ProjectId, ProviderId, WorkspaceId};
use crate::proto;

const PROVIDER: ProviderId = ProviderId::from_u128(1);
const PROJECT: ProjectId = ProjectId::from_u128(1);

fn row(kind: &str, id: &str, message: &impl Message) -> proto::Resource {
    proto::Resource { kind: kind.into(), id: id.into(), body: message.encode_to_vec().into() }
}

fn workspace_id(n: u128) -> WorkspaceId {
    WorkspaceId::from_u128(n)
}

fn facts(context_tokens: u64) -> proto::ModelFacts {
    proto::ModelFacts { r#type: "chat".into(), context_tokens, ..Default::default() }
}

/// A catalogue of one vendor "v" with these models and context lengths.
fn catalogue(models: &[(&str, u64)]) -> Vec<proto::Resource> {
    let vendor = proto::Vendor {
        slug: "v".into(),
        dialect: "openai".into(),
        base_url: "https://v.example/v1".into(),
        auth: Some(proto::Auth { header: "Authorization".into(), prefix: "Bearer ".into() }),
        ..Default::default()
    };
    let offering = |(model, context): &(&str, u64)| {
        let offering = proto::CatalogOffering {
            vendor: "v".into(),
            model: (*model).into(),
            base_model: format!("maker/{model}"),
            facts: Some(facts(*context)),
        };
        row("catalog_offering", &format!("v/{model}"), &offering)
    };
    models.iter().map(offering).chain([row("vendor", "v", &vendor)]).collect()
}

fn workspace(n: u128, provider: proto::Provider, rest: Vec<proto::Resource>) -> Vec<proto::Resource> {
    let id = workspace_id(n).to_string();
    let project = proto::Project { id: PROJECT.to_string(), key: "default".into(), disabled: false };
    let provider = proto::Provider { id: PROVIDER.to_string(), slug: "p".into(), vendor: "v".into(), ..provider };
    let own = proto::Workspace { id: id.clone(), key: format!("w{n}"), ..Default::default() };
    let base =
        [row("workspace", &id, &own), row("project", &project.id, &project), row("provider", &provider.id, &provider)];
    base.into_iter().chain(rest).collect()
}

fn model(n: u128, name: &str, change: impl FnOnce(&mut proto::Model)) -> proto::Resource {
    let id = ModelId::from_u128(n).to_string();
    let mut model =
        proto::Model { id: id.clone(), provider_id: PROVIDER.to_string(), name: name.into(), ..Default::default() };
    change(&mut model);
    row("model", &id, &model)
}

fn key(n: u8) -> proto::Resource {
    let id = ApiKeyId::from_u128(n.into()).to_string();
    let key =
        proto::ApiKey { id: id.clone(), project_id: PROJECT.to_string(), hash: vec![n; 32], ..Default::default() };
    row("api_key", &id, &key)
}

/// A node: its snapshot and the scopes it was made of.
#[derive(Default)]
struct Node {
    snapshot: Snapshot,
    scopes: HashMap<String, Scope>,
}

impl Node {
    fn set(&mut self, name: &str, upserts: Vec<proto::Resource>) -> Result<(), Rejection> {
        let previous = self.scopes.get(name).cloned().unwrap_or_default();
        let mut next = Scope::default();
        next.apply(&ScopeDelta { upserts, removals: Vec::new() }, previous.revision() + 1);
        let delta = previous.delta_to(&next);
        let change = Change { scope: name, next: &next, previous: &previous, delta: &delta };
        self.snapshot = self.snapshot.apply(&change)?;
        self.scopes.insert(name.into(), next);
        Ok(())
    }

    fn with(catalog: &[(&str, u64)], provider: proto::Provider, rest: Vec<proto::Resource>) -> Self {
        let mut node = Self::default();
        node.set(SHARED_SCOPE, catalogue(catalog)).expect("the catalogue is valid");
        node.set(&workspace_id(1).to_string(), workspace(1, provider, rest)).expect("the workspace is valid");
        node
    }

    /// Model, what the vendor calls it, and context length of each offering, sorted.
    fn offered(&self) -> Vec<(String, String, u64)> {
        let provider = &self.snapshot.workspace(&workspace_id(1)).expect("it was set").providers["p"];
        let mut all: Vec<_> = provider
            .offerings()
            .map(|o| (o.model.to_string(), o.upstream_model.to_string(), o.facts.context_tokens))
            .collect();
        for (model, _, _) in &all {
            assert!(provider.offering(model).is_some(), "{model} is listed and found");
        }
        all.sort();
        all
    }
}

#[test]
fn rows_change_add_and_hide_what_the_catalogue_has() {
    let whole = proto::Provider::default;
    let only = |models: &[&str]| proto::Provider {
        models: Some(proto::ModelList { models: models.iter().map(|m| (*m).into()).collect() }),
        ..Default::default()
    };
    let catalog = [("a", 1), ("b", 2)];
    type Case = (&'static str, proto::Provider, Vec<proto::Resource>, Vec<(&'static str, &'static str, u64)>);
    let cases: Vec<Case> = vec![
        ("the whole catalogue", whole(), vec![], vec![("a", "a", 1), ("b", "b", 2)]),
        ("some of it", only(&["b", "unknown"]), vec![], vec![("b", "b", 2)]),
        ("none of it", only(&[]), vec![], vec![]),
        ("hidden", whole(), vec![model(1, "a", |m| m.disabled = true)], vec![("b", "b", 2)]),
        (
            "changed, the rest kept",
            whole(),
            vec![model(1, "a", |m| m.upstream_model = "a-2025".into())],
            vec![("a", "a-2025", 1), ("b", "b", 2)],
        ),
        (
            "private, beside an empty list",
            only(&[]),
            vec![model(1, "own", |m| (m.private, m.facts) = (true, Some(facts(9))))],
            vec![("own", "own", 9)],
        ),
        (
            "private, in place of one of the same name",
            whole(),
            vec![model(1, "a", |m| (m.private, m.facts) = (true, Some(facts(9))))],
            vec![("a", "a", 9), ("b", "b", 2)],
        ),
    ];
    for (what, provider, rows, expected) in cases {
        let node = Node::with(&catalog, provider, rows);
        let expected: Vec<_> = expected.into_iter().map(|(m, u, c)| (m.to_owned(), u.to_owned(), c)).collect();
        assert_eq!(node.offered(), expected, "{what}");
    }
}

#[test]
fn a_new_catalogue_reaches_every_workspace_rows_included() {
    let rows = vec![model(1, "a", |m| m.upstream_model = "a-2025".into())];
    let mut node = Node::with(&[("a", 1)], proto::Provider::default(), rows);
    node.set(SHARED_SCOPE, catalogue(&[("a", 5), ("c", 6)])).expect("valid");
    let expected = [("a".to_owned(), "a-2025".to_owned(), 5), ("c".to_owned(), "c".to_owned(), 6)];
    assert_eq!(node.offered(), expected);
    let revision = node.snapshot.workspace(&workspace_id(1)).map(|w| w.revision);
    assert_eq!((revision, node.snapshot.shared.revision), (Some(1), 2));
}

#[test]
fn keys_come_change_hands_and_go_and_other_workspaces_keep_theirs() {
    let name = workspace_id(1).to_string();
    let mut node = Node::with(&[], proto::Provider::default(), vec![key(1), key(2)]);
    let other = workspace_id(2).to_string();
    node.set(&other, workspace(2, proto::Provider::default(), vec![key(9)])).expect("valid");
    let id_of = |node: &Node, hash: u8| node.snapshot.key(&[hash; 32]).map(|(key, _)| key.id);
    let id = |n: u8| Some(ApiKeyId::from_u128(n.into()));
    // Two keys exchange their hashes in one change.
    let swapped = |n: u8, hash: u8| {
        let mut key = proto::ApiKey::decode(key(n).body).expect("encoded above");
        key.hash = vec![hash; 32];
        row("api_key", &key.id, &key)
    };
    node.set(&name, workspace(1, proto::Provider::default(), vec![swapped(1, 2), swapped(2, 1)])).expect("valid");
    assert_eq!((id_of(&node, 1), id_of(&node, 2), id_of(&node, 9)), (id(2), id(1), id(9)));
    node.set(&name, workspace(1, proto::Provider::default(), vec![swapped(1, 2)])).expect("valid");
    assert_eq!((id_of(&node, 1), id_of(&node, 2), node.snapshot.key_count()), (None, id(1), 2));
    let stolen = node.set(&name, workspace(1, proto::Provider::default(), vec![key(1), key(9)]));
    assert!(stolen.is_err_and(|r| r.path.ends_with("/hash")), "a hash belongs to one workspace");
    assert_eq!(id_of(&node, 9), id(9));
    let without = node.snapshot.without(&name).expect("it is a workspace");
    assert_eq!((without.key_count(), without.key(&[9; 32]).is_some()), (1, true));
}

#[test]
fn a_credential_becomes_a_header_that_shows_nothing() {
    let credential = proto::Credential {
        id: crate::ids::CredentialId::from_u128(1).to_string(),
        provider_id: PROVIDER.to_string(),
        name: "main".into(),
        secret: b"sk-secret".to_vec(),
        ..Default::default()
    };
    let rows = vec![row("credential", &credential.id, &credential)];
    let node = Node::with(&[], proto::Provider::default(), rows);
    let linked = node.snapshot.workspace(&workspace_id(1)).expect("it was set");
    let held = &linked.providers["p"].credentials[0];
    assert_eq!(held.header.as_ref().map(|h| h.as_bytes()), Some(&b"Bearer sk-secret"[..]));
    assert!(!format!("{linked:?}{:?}", held.header).contains("secret"));
    let broken = proto::Credential { secret: b"a\r\nx: y".to_vec(), ..credential };
    let mut node = Node::default();
    node.set(SHARED_SCOPE, catalogue(&[])).expect("valid");
    let rows = vec![row("credential", &broken.id, &broken)];
    let rejected = node.set(&workspace_id(1).to_string(), workspace(1, proto::Provider::default(), rows));
    let rejection = rejected.expect_err("a header cannot carry it");
    assert!(rejection.path.ends_with("/secret") && !rejection.detail.contains("x: y"), "{rejection}");
}
