//! States and updates for tests: one shared scope, workspaces with everything in them.

use std::path::{Path, PathBuf};

use prost::Message;
use shared::ids::{AliasId, ApiKeyId, CredentialId, ModelId, ProjectId, ProviderId, WorkspaceId};
use shared::money::price_id;
use shared::proto;
use shared::snapshot::{SHARED_SCOPE, Scope, ScopeDelta, limits};

/// What no file, log or message may ever show.
pub(crate) const SECRET: &str = "sk-canary-9b1d7f";

pub(crate) fn resource(kind: &str, id: &str, message: &impl Message) -> proto::Resource {
    proto::Resource { kind: kind.into(), id: id.into(), body: message.encode_to_vec().into() }
}

fn price(input: i64) -> proto::Price {
    let mut price = proto::Price { input, output: input * 4, ..Default::default() };
    price.id = price_id(&price);
    price
}

fn facts() -> proto::ModelFacts {
    proto::ModelFacts {
        r#type: "chat".into(),
        context_tokens: 100_000,
        capabilities: vec!["tools".into(), "vision".into()],
        prices: vec![price(150_000_000), price(99_000_000)],
        ..Default::default()
    }
}

pub(crate) fn shared_scope(revision: u64) -> Scope {
    let mut upserts = Vec::new();
    for (slug, url, optional) in [("openai", "https://api.openai.com/v1", false), ("local", "", true)] {
        let vendor = proto::Vendor {
            slug: slug.into(),
            display_name: format!("{slug} at {revision}"),
            dialect: "openai".into(),
            base_url: url.into(),
            auth: Some(proto::Auth { header: "authorization".into(), prefix: "Bearer ".into() }),
            endpoints: vec![proto::EndpointPath {
                endpoint: "chat_completions".into(),
                path: "/chat/completions".into(),
            }],
            quirks: Vec::new(),
            credential_optional: optional,
        };
        upserts.push(resource("vendor", slug, &vendor));
        for model in ["gpt-4o", "gpt-4o-mini"] {
            let offering = proto::CatalogOffering {
                vendor: slug.into(),
                model: model.into(),
                base_model: format!("openai/{model}"),
                facts: Some(facts()),
            };
            upserts.push(resource("catalog_offering", &format!("{slug}/{model}"), &offering));
        }
    }
    scope(upserts, revision)
}

pub(crate) fn workspace_id(n: u128) -> WorkspaceId {
    WorkspaceId::from_u128(n << 64)
}

/// Key number `index` of workspace `n`.
pub(crate) fn key_hash(n: u128, index: u32) -> [u8; 32] {
    shared::digest::sha256(&[&n.to_be_bytes(), &index.to_be_bytes()])
}

pub(crate) fn key(n: u128, index: u32, tag: &str) -> proto::Resource {
    let id = ApiKeyId::from_u128((n << 64) + 1000 + u128::from(index)).to_string();
    let key = proto::ApiKey {
        id: id.clone(),
        project_id: ProjectId::from_u128((n << 64) + 1).to_string(),
        name: tag.into(),
        hash: key_hash(n, index).to_vec(),
        scopes: vec!["inference".into(), "models".into()],
        addresses: vec!["10.0.0.0/8".into()],
        models: index.is_multiple_of(3).then(|| proto::ModelList { models: vec!["openai/*".into()] }),
        ..Default::default()
    };
    resource("api_key", &id, &key)
}

/// Every named thing in it carries `tag`.
pub(crate) fn workspace_resources(n: u128, keys: u32, tag: &str) -> Vec<proto::Resource> {
    let id = workspace_id(n).to_string();
    let provider_id = |m: u128| ProviderId::from_u128((n << 64) + m).to_string();
    let project = ProjectId::from_u128((n << 64) + 1).to_string();
    let workspace =
        proto::Workspace { id: id.clone(), key: format!("w{n}"), display_name: tag.into(), ..Default::default() };
    let mut all = vec![
        resource("workspace", &id, &workspace),
        resource("project", &project, &proto::Project { id: project.clone(), key: tag.into(), disabled: false }),
    ];
    for (m, slug, url) in [(1, "openai", String::new()), (2, "local", format!("http://10.0.0.1:8000/{tag}"))] {
        let provider = proto::Provider {
            id: provider_id(m),
            slug: slug.into(),
            vendor: slug.into(),
            base_url: url,
            timeouts: Some(proto::Timeouts { connect_ms: 1000, ..Default::default() }),
            ..Default::default()
        };
        all.push(resource("provider", &provider.id, &provider));
        let credential = proto::Credential {
            id: CredentialId::from_u128((n << 64) + m).to_string(),
            provider_id: provider.id.clone(),
            name: tag.into(),
            secret: SECRET.into(),
            weight: 1,
            owner: "own".into(),
            ..Default::default()
        };
        all.push(resource("credential", &credential.id, &credential));
    }
    for (m, name, private) in [(1_u128, "gpt-4o-mini", false), (2, "own-model", true)] {
        let model = proto::Model {
            id: ModelId::from_u128((n << 64) + m).to_string(),
            provider_id: provider_id(m),
            name: name.into(),
            upstream_model: tag.into(),
            private,
            facts: Some(facts()),
            ..Default::default()
        };
        all.push(resource("model", &model.id, &model));
    }
    let alias = proto::Alias {
        id: AliasId::from_u128((n << 64) + 1).to_string(),
        name: "fast".into(),
        targets: vec![tag.into(), "openai/gpt-4o".into()],
        disabled: false,
    };
    all.push(resource("alias", &alias.id, &alias));
    all.extend((0..keys).map(|index| key(n, index, tag)));
    all
}

pub(crate) fn workspace_scope(n: u128, revision: u64, keys: u32, tag: &str) -> Scope {
    scope(workspace_resources(n, keys, tag), revision)
}

pub(crate) fn scope(upserts: Vec<proto::Resource>, revision: u64) -> Scope {
    let mut scope = Scope::default();
    scope.apply(&ScopeDelta { upserts, removals: Vec::new() }, revision);
    scope
}

/// The update that replaces whatever is held by `to`.
pub(crate) fn full(name: &str, to: &Scope) -> proto::Update {
    delta(name, &Scope::default(), to)
}

/// The update from one state to another.
pub(crate) fn delta(name: &str, from: &Scope, to: &Scope) -> proto::Update {
    let change = from.delta_to(to);
    proto::Update {
        nonce: to.revision(),
        scope: name.into(),
        from: from.revision(),
        to: to.revision(),
        checksum: limits::checksum(&change.upserts).to_vec(),
        upserts: change.upserts,
        removals: change.removals,
        state_hash: to.state_hash().as_bytes().to_vec(),
        last: true,
        committed_at_ms: 1,
        ..Default::default()
    }
}

/// A store with the shared scope and workspace 1, both at revision 1.
pub(crate) fn store(keys: u32) -> super::Store {
    let store = super::Store::in_memory(None).expect("threads exist");
    store.welcome([1; 16]);
    store.apply(&full(SHARED_SCOPE, &shared_scope(1))).expect("the shared scope is valid");
    let name = workspace_id(1).to_string();
    store.apply(&full(&name, &workspace_scope(1, 1, keys, "A"))).expect("the workspace is valid");
    store
}

/// A folder of its own for one test, gone at its end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let unique = u128::from_le_bytes(runtime::random::bytes());
        Self(std::env::temp_dir().join(format!("pointsman-{name}-{unique:032x}")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}
