//! Snapshots from small JSON: every list becomes resources, and the resources go through
//! `Snapshot::apply`, so no test decides from a state that a node could not hold.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use shared::digest;
use shared::ids::{AliasId, ApiKeyId, CredentialId, ModelId, ProjectId, ProviderId, WorkspaceId};
use shared::proto;
use shared::snapshot::{ApiKey, Change, KeyHash, SHARED_SCOPE, Scope, ScopeDelta, Snapshot, Workspace};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HouseSpec {
    vendors: Vec<VendorSpec>,
    workspace: WorkspaceSpec,
    projects: Vec<ProjectSpec>,
    providers: Vec<ProviderSpec>,
    #[serde(default)]
    aliases: Vec<AliasSpec>,
    keys: Vec<KeySpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VendorSpec {
    slug: String,
    endpoints: Vec<String>,
    #[serde(default)]
    credential_optional: bool,
    #[serde(default)]
    models: Vec<ModelSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelSpec {
    name: String,
    #[serde(default)]
    base_model: String,
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    context_tokens: u64,
    #[serde(default)]
    max_output_tokens: u64,
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    deprecated_at_ms: i64,
    #[serde(default)]
    private: bool,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    upstream_model: String,
    #[serde(default)]
    base_url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkspaceSpec {
    key: String,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    max_config_age_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectSpec {
    key: String,
    #[serde(default)]
    disabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderSpec {
    slug: String,
    vendor: String,
    #[serde(default)]
    base_url: String,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    total_ms: u64,
    #[serde(default)]
    only: Option<Vec<String>>,
    #[serde(default)]
    credentials: Vec<CredentialSpec>,
    #[serde(default)]
    models: Vec<ModelSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialSpec {
    name: String,
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    environment: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AliasSpec {
    name: String,
    targets: Vec<String>,
    #[serde(default)]
    disabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeySpec {
    name: String,
    #[serde(default)]
    scopes: Option<Vec<String>>,
    #[serde(default)]
    models: Option<Vec<String>>,
    #[serde(default)]
    expires_at_ms: i64,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    project: Option<String>,
}

/// A snapshot with one workspace, and its keys by name.
pub(super) struct House {
    pub(super) snapshot: Snapshot,
    pub(super) workspace: Arc<Workspace>,
    keys: HashMap<String, Arc<ApiKey>>,
}

impl House {
    pub(super) fn key(&self, name: &str) -> &ApiKey {
        self.keys.get(name).unwrap_or_else(|| panic!("no key {name} in the house"))
    }

    pub(super) fn build(spec: &HouseSpec) -> Self {
        let snapshot = apply(&Snapshot::default(), SHARED_SCOPE, catalogue(spec), 7);
        let id = WorkspaceId::from_u128(1);
        let snapshot = apply(&snapshot, &id.to_string(), tenant(spec, id), 42);
        let key = |key: &KeySpec| {
            let (found, _) = snapshot.key(&hash(&key.name)).expect("just applied");
            (key.name.clone(), found.clone())
        };
        let keys = spec.keys.iter().map(key).collect();
        let workspace = snapshot.workspace(&id).expect("just applied").clone();
        Self { snapshot, workspace, keys }
    }

    pub(super) fn parse(json: serde_json::Value) -> Self {
        Self::build(&serde_json::from_value(json).expect("a house"))
    }

    /// The house that most tests live in.
    pub(super) fn standard() -> Self {
        Self::parse(standard_json())
    }
}

pub(super) fn standard_json() -> serde_json::Value {
    serde_json::from_str(include_str!("../../cases/house.json")).expect("house.json is JSON")
}

fn hash(name: &str) -> KeyHash {
    digest::sha256(&[name.as_bytes()])
}

fn apply(snapshot: &Snapshot, scope: &str, upserts: Vec<proto::Resource>, revision: u64) -> Snapshot {
    let delta = ScopeDelta { upserts, removals: Vec::new() };
    let previous = Scope::default();
    let mut next = Scope::default();
    next.apply(&delta, revision);
    snapshot.apply(&Change { scope, next: &next, previous: &previous, delta: &delta }).expect("a valid house")
}

fn resource(kind: &str, id: impl ToString, body: impl prost::Message) -> proto::Resource {
    proto::Resource { kind: kind.into(), id: id.to_string(), body: body.encode_to_vec().into() }
}

fn facts(model: &ModelSpec) -> proto::ModelFacts {
    proto::ModelFacts {
        r#type: model.r#type.clone().unwrap_or_else(|| "chat".into()),
        context_tokens: model.context_tokens,
        max_output_tokens: model.max_output_tokens,
        capabilities: model.capabilities.clone(),
        prices: Vec::new(),
        deprecated_at_ms: model.deprecated_at_ms,
    }
}

fn catalogue(spec: &HouseSpec) -> Vec<proto::Resource> {
    let mut resources = Vec::new();
    for vendor in &spec.vendors {
        let slug = vendor.slug.clone();
        let endpoints = vendor
            .endpoints
            .iter()
            .map(|endpoint| proto::EndpointPath { endpoint: endpoint.clone(), path: format!("/{endpoint}") });
        let message = proto::Vendor {
            slug: slug.clone(),
            display_name: slug.clone(),
            dialect: "openai".into(),
            base_url: if vendor.credential_optional { String::new() } else { format!("https://{slug}.example/v1") },
            auth: Some(proto::Auth { header: "authorization".into(), prefix: "Bearer ".into() }),
            endpoints: endpoints.collect(),
            quirks: Vec::new(),
            credential_optional: vendor.credential_optional,
        };
        resources.push(resource("vendor", &slug, message));
        for model in &vendor.models {
            let message = proto::CatalogOffering {
                vendor: slug.clone(),
                model: model.name.clone(),
                base_model: model.base_model.clone(),
                facts: Some(facts(model)),
            };
            resources.push(resource("catalog_offering", format!("{slug}/{}", model.name), message));
        }
    }
    resources
}

fn tenant(spec: &HouseSpec, id: WorkspaceId) -> Vec<proto::Resource> {
    let message = proto::Workspace {
        id: id.to_string(),
        key: spec.workspace.key.clone(),
        display_name: String::new(),
        disabled: spec.workspace.disabled,
        max_config_age_ms: spec.workspace.max_config_age_ms,
    };
    let mut resources = vec![resource("workspace", id, message)];
    let mut projects = HashMap::new();
    for (n, project) in (1..).zip(&spec.projects) {
        let id = ProjectId::from_u128(n);
        projects.insert(project.key.as_str(), id);
        let message = proto::Project { id: id.to_string(), key: project.key.clone(), disabled: project.disabled };
        resources.push(resource("project", id, message));
    }
    for (n, provider) in (1..).zip(&spec.providers) {
        connect(provider, n, &mut resources);
    }
    for (n, alias) in (1..).zip(&spec.aliases) {
        let id = AliasId::from_u128(n);
        let message = proto::Alias {
            id: id.to_string(),
            name: alias.name.clone(),
            targets: alias.targets.clone(),
            disabled: alias.disabled,
        };
        resources.push(resource("alias", id, message));
    }
    for (n, key) in (1..).zip(&spec.keys) {
        let id = ApiKeyId::from_u128(n);
        let project = key.project.as_deref().unwrap_or("default");
        let message = proto::ApiKey {
            id: id.to_string(),
            project_id: projects.get(project).expect("a project of the house").to_string(),
            name: key.name.clone(),
            hash: hash(&key.name).to_vec(),
            scopes: key.scopes.clone().unwrap_or_else(|| vec!["inference".into(), "models".into()]),
            models: key.models.clone().map(|models| proto::ModelList { models }),
            expires_at_ms: key.expires_at_ms,
            addresses: key.addresses.clone(),
            disabled: key.disabled,
        };
        resources.push(resource("api_key", id, message));
    }
    resources
}

fn connect(provider: &ProviderSpec, n: u128, resources: &mut Vec<proto::Resource>) {
    let id = ProviderId::from_u128(n);
    let message = proto::Provider {
        id: id.to_string(),
        slug: provider.slug.clone(),
        vendor: provider.vendor.clone(),
        base_url: provider.base_url.clone(),
        disabled: provider.disabled,
        timeouts: Some(proto::Timeouts { total_ms: provider.total_ms, ..Default::default() }),
        models: provider.only.clone().map(|models| proto::ModelList { models }),
    };
    resources.push(resource("provider", id, message));
    for (m, credential) in (1..).zip(&provider.credentials) {
        let credential_id = CredentialId::from_u128(n * 1_000 + m);
        let message = proto::Credential {
            id: credential_id.to_string(),
            provider_id: id.to_string(),
            name: credential.name.clone(),
            secret: format!("secret-of-{}", credential.name).into_bytes(),
            weight: credential.weight.unwrap_or(1),
            disabled: credential.disabled,
            owner: "own".into(),
            environment: credential.environment.clone(),
        };
        resources.push(resource("credential", credential_id, message));
    }
    for (m, model) in (1..).zip(&provider.models) {
        let model_id = ModelId::from_u128(n * 1_000 + m);
        let message = proto::Model {
            id: model_id.to_string(),
            provider_id: id.to_string(),
            name: model.name.clone(),
            upstream_model: model.upstream_model.clone(),
            private: model.private,
            disabled: model.disabled,
            base_url: model.base_url.clone(),
            facts: Some(facts(model)),
        };
        resources.push(resource("model", model_id, message));
    }
}
