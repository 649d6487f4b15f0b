//! The next snapshot from this one and a change of one scope. The only way in: what comes out is
//! valid, or the change is rejected with the resource and field that is wrong.

use std::fmt;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use prost::Message;

use super::keys::{Addresses, ApiKey, KeyHash, ModelRules};
use super::{
    Alias, BaseUrl, Credential, Offering, Project, Provider, SHARED_SCOPE, Scope, ScopeDelta, Shared, Snapshot, Vendor,
    Workspace, limits,
};
use crate::ids::WorkspaceId;
use crate::money;
use crate::proto::{self, NackCode};

/// A change of one scope, about to be applied.
pub struct Change<'a> {
    /// Workspace id, or [`SHARED_SCOPE`].
    pub scope: &'a str,
    /// The scope as it will be: already holds the change.
    pub next: &'a Scope,
    /// The scope as it is; empty when the node holds nothing of it.
    pub previous: &'a Scope,
    /// What leads from `previous` to `next`.
    pub delta: &'a ScopeDelta,
}

/// Why a change cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// For the control plane.
    pub code: NackCode,
    /// "provider/prv_…/base_url".
    pub path: String,
    /// For a person; never a secret.
    pub detail: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.code.as_str_name(), self.path, self.detail)
    }
}

impl std::error::Error for Rejection {}

impl Snapshot {
    /// The next snapshot. `self` stays as it is, whatever the outcome.
    pub fn apply(&self, change: &Change<'_>) -> Result<Self, Rejection> {
        if change.scope == SHARED_SCOPE {
            return self.with_shared(change.next);
        }
        let id = workspace_id(change.scope)?;
        let mut next = self.clone();
        next.apply_keys(id, change)?;
        let structural = |kind: &str| kind != "api_key";
        let touched = change.delta.upserts.iter().any(|r| structural(&r.kind))
            || change.delta.removals.iter().any(|r| structural(&r.kind));
        let workspace = match self.workspaces.get(&id) {
            Some(old) if !touched => old.with_revision(change.next.revision()),
            Some(_) | None => workspace(id, change.next, &self.shared)?,
        };
        next.workspaces.insert(id, Arc::new(workspace));
        Ok(next)
    }

    /// The next snapshot without this scope.
    pub fn without(&self, scope: &str) -> Result<Self, Rejection> {
        let id = workspace_id(scope)?;
        let mut next = self.clone();
        next.workspaces.remove(&id);
        next.keys.remove_workspace(&id);
        Ok(next)
    }

    /// Workspaces hold links into the shared part, so each is linked again; they need their own
    /// resources for it, which [`Workspace::relink`] keeps.
    fn with_shared(&self, scope: &Scope) -> Result<Self, Rejection> {
        let shared = Arc::new(shared(scope)?);
        let mut next = self.clone();
        for workspace in next.workspaces.values_mut() {
            *workspace = Arc::new(workspace.relink(&shared));
        }
        next.shared = shared;
        Ok(next)
    }

    fn apply_keys(&mut self, workspace: WorkspaceId, change: &Change<'_>) -> Result<(), Rejection> {
        let gone = change.delta.removals.iter().map(|r| (r.kind.as_str(), r.id.as_str()));
        let replaced = change.delta.upserts.iter().map(|r| (r.kind.as_str(), r.id.as_str()));
        for (kind, id) in gone.chain(replaced).filter(|(kind, _)| *kind == "api_key") {
            if let Some(old) = change.previous.get(kind, id).and_then(|body| proto::ApiKey::decode(body.clone()).ok())
                && let Ok(hash) = KeyHash::try_from(old.hash.as_slice())
            {
                self.keys.remove(&hash);
            }
        }
        if change.delta.removals.iter().any(|r| r.kind == "project") {
            for (id, key) in each::<proto::ApiKey>(change.next, "api_key")? {
                if change.next.get("project", &key.project_id).is_none() {
                    return Err(At { kind: "api_key", id: &id }.dangling("project_id", &key.project_id));
                }
            }
        }
        for resource in change.delta.upserts.iter().filter(|r| r.kind == "api_key") {
            // Only what is in force afterwards: a delta may remove what it upserts.
            if change.next.get(&resource.kind, &resource.id).is_none() {
                continue;
            }
            let at = At { kind: &resource.kind, id: &resource.id };
            let message = proto::ApiKey::decode(resource.body.clone()).map_err(|e| at.bad("", e))?;
            let (hash, key) = api_key(workspace, &message, change.next, &at)?;
            if self.keys.insert(hash, Arc::new(key)).is_some() {
                return Err(at.bad("hash", "another key has the same hash"));
            }
        }
        Ok(())
    }
}

impl Workspace {
    fn with_revision(&self, revision: u64) -> Self {
        Self {
            id: self.id,
            key: self.key.clone(),
            display_name: self.display_name.clone(),
            disabled: self.disabled,
            max_config_age_ms: self.max_config_age_ms,
            revision,
            projects: self.projects.clone(),
            providers: self.providers.clone(),
            aliases: self.aliases.clone(),
        }
    }

    /// The same workspace over another catalogue. A provider whose vendor is gone from it keeps the
    /// old one: a catalogue update must not take traffic down.
    fn relink(&self, shared: &Shared) -> Self {
        let mut next = self.with_revision(self.revision);
        for provider in next.providers.values_mut() {
            let Some(vendor) = shared.vendors.get(&provider.vendor.slug) else { continue };
            let moved = provider.vendor.base_url.as_ref() == Some(&provider.base_url);
            let base_url = match &vendor.base_url {
                Some(url) if moved => url.clone(),
                Some(_) | None => provider.base_url.clone(),
            };
            // Rows were valid over the old catalogue; one that no longer is stays as it was.
            let own = own_models(&provider.rows, vendor).unwrap_or_else(|_| provider.own.clone());
            *provider = Arc::new(Provider {
                id: provider.id,
                slug: provider.slug.clone(),
                vendor: vendor.clone(),
                base_url,
                disabled: provider.disabled,
                timeouts: provider.timeouts,
                credentials: provider.credentials.clone(),
                catalogue: provider.catalogue.clone(),
                rows: provider.rows.clone(),
                own,
            });
        }
        next
    }
}

/// Where in a scope a message stands: makes rejections.
struct At<'a> {
    kind: &'a str,
    id: &'a str,
}

impl At<'_> {
    fn reject(&self, code: NackCode, field: &str, detail: impl fmt::Display) -> Rejection {
        let path = match field {
            "" => format!("{}/{}", self.kind, self.id),
            field => format!("{}/{}/{field}", self.kind, self.id),
        };
        Rejection { code, path, detail: detail.to_string() }
    }

    fn bad(&self, field: &str, detail: impl fmt::Display) -> Rejection {
        self.reject(NackCode::BadResource, field, detail)
    }

    fn dangling(&self, field: &str, what: &str) -> Rejection {
        self.reject(NackCode::DanglingRef, field, format!("{what} does not exist"))
    }

    fn not_empty(&self, field: &str, value: &str) -> Result<Box<str>, Rejection> {
        if value.is_empty() {
            return Err(self.bad(field, "must not be empty"));
        }
        Ok(value.into())
    }

    /// The id inside a message is the one its resource goes by: otherwise two resources could claim
    /// the same thing.
    fn is_named(&self, inner: &str) -> Result<(), Rejection> {
        if inner != self.id {
            return Err(self.bad("id", "must equal the resource's id"));
        }
        Ok(())
    }

    fn id<T: std::str::FromStr<Err = crate::ids::BadId>>(&self, field: &str, text: &str) -> Result<T, Rejection> {
        text.parse().map_err(|e| self.bad(field, e))
    }
}

fn workspace_id(scope: &str) -> Result<WorkspaceId, Rejection> {
    let at = At { kind: "scope", id: scope };
    at.id("", scope)
}

/// Decodes every resource of one kind.
fn each<M: Message + Default>(scope: &Scope, kind: &str) -> Result<Vec<(String, M)>, Rejection> {
    scope
        .of_kind(kind)
        .map(|(id, body)| {
            let message = M::decode(body.clone()).map_err(|e| At { kind, id }.bad("", e))?;
            Ok((id.to_owned(), message))
        })
        .collect()
}

fn shared(scope: &Scope) -> Result<Shared, Rejection> {
    let mut vendors = HashMap::default();
    for (id, message) in each::<proto::Vendor>(scope, "vendor")? {
        let at = At { kind: "vendor", id: &id };
        at.is_named(&message.slug)?;
        vendors.insert(message.slug.as_str().into(), vendor(&message, &at)?);
    }
    for (id, message) in each::<proto::CatalogOffering>(scope, "catalog_offering")? {
        let at = At { kind: "catalog_offering", id: &id };
        let facts = message.facts.ok_or_else(|| at.bad("facts", "must be set"))?;
        check_facts(&facts, &at)?;
        let vendor: &mut Vendor =
            vendors.get_mut(message.vendor.as_str()).ok_or_else(|| at.dangling("vendor", &message.vendor))?;
        let model = at.not_empty("model", &message.model)?;
        at.is_named(&format!("{}/{}", message.vendor, message.model))?;
        let offering = Offering {
            upstream_model: model.clone(),
            model: model.clone(),
            base_model: message.base_model.into(),
            private: false,
            base_url: None,
            facts,
        };
        vendor.offerings.insert(model, Arc::new(offering));
    }
    let vendors = vendors.into_iter().map(|(slug, vendor)| (slug, Arc::new(vendor))).collect();
    Ok(Shared { revision: scope.revision(), vendors })
}

fn vendor(message: &proto::Vendor, at: &At<'_>) -> Result<Vendor, Rejection> {
    let auth = message.auth.as_ref().ok_or_else(|| at.bad("auth", "must be set"))?;
    // A placeholder is filled in by the provider connection, which then has its own URL.
    let base_url = match message.base_url.as_str() {
        "" => None,
        template if template.contains('{') => None,
        url => Some(BaseUrl::parse(url).map_err(|e| at.bad("base_url", e))?),
    };
    let mut endpoints = HashMap::default();
    for endpoint in &message.endpoints {
        let path: Option<http::uri::PathAndQuery> = endpoint.path.parse().ok();
        if !endpoint.path.starts_with('/') || endpoint.path.contains('#') || path.is_none_or(|p| p.query().is_some()) {
            return Err(at.bad("endpoints", "a path must start with a slash and hold no query or fragment"));
        }
        let name = at.not_empty("endpoints", &endpoint.endpoint)?;
        if endpoints.insert(name, endpoint.path.as_str().into()).is_some() {
            return Err(at.bad("endpoints", "two paths for one endpoint"));
        }
    }
    Ok(Vendor {
        slug: at.not_empty("slug", &message.slug)?,
        display_name: message.display_name.as_str().into(),
        dialect: at.not_empty("dialect", &message.dialect)?,
        base_url,
        auth_header: auth.header.parse().map_err(|_| at.bad("auth/header", "not a header name"))?,
        auth_prefix: auth.prefix.as_str().into(),
        endpoints,
        quirks: message.quirks.iter().map(|q| q.as_str().into()).collect(),
        credential_optional: message.credential_optional,
        offerings: HashMap::default(),
    })
}

fn workspace(id: WorkspaceId, scope: &Scope, shared: &Shared) -> Result<Workspace, Rejection> {
    let text = id.to_string();
    let own = each::<proto::Workspace>(scope, "workspace")?;
    let at = At { kind: "workspace", id: &text };
    let [(_, message)] = own.as_slice() else {
        return Err(at.bad("", format!("a scope holds exactly one workspace, this one holds {}", own.len())));
    };
    if message.id != text {
        return Err(at.bad("id", "differs from the scope"));
    }
    let mut projects = HashMap::default();
    for (id, message) in each::<proto::Project>(scope, "project")? {
        let at = At { kind: "project", id: &id };
        at.is_named(&message.id)?;
        let project =
            Project { id: at.id("id", &id)?, key: at.not_empty("key", &message.key)?, disabled: message.disabled };
        projects.insert(project.id, project);
    }
    let mut aliases = HashMap::default();
    for (id, message) in each::<proto::Alias>(scope, "alias")? {
        let at = At { kind: "alias", id: &id };
        at.is_named(&message.id)?;
        if message.targets.is_empty() || message.targets.iter().any(String::is_empty) {
            return Err(at.bad("targets", "must name at least one model, none of them empty"));
        }
        if message.disabled {
            continue;
        }
        let name = at.not_empty("name", &message.name)?;
        let targets = message.targets.iter().map(|t| t.as_str().into()).collect();
        if aliases.insert(name.clone(), Alias { name, targets }).is_some() {
            return Err(at.bad("name", "another alias has the same name"));
        }
    }
    Ok(Workspace {
        id,
        key: at.not_empty("key", &message.key)?,
        display_name: message.display_name.as_str().into(),
        disabled: message.disabled,
        max_config_age_ms: message.max_config_age_ms,
        revision: scope.revision(),
        projects,
        providers: providers(scope, shared)?,
        aliases,
    })
}

fn providers(scope: &Scope, shared: &Shared) -> Result<HashMap<Box<str>, Arc<Provider>>, Rejection> {
    let mut by_id = HashMap::default();
    let mut slugs = HashSet::default();
    for (id, message) in each::<proto::Provider>(scope, "provider")? {
        let at = At { kind: "provider", id: &id };
        at.is_named(&message.id)?;
        let vendor =
            shared.vendors.get(message.vendor.as_str()).ok_or_else(|| at.dangling("vendor", &message.vendor))?;
        let base_url = match message.base_url.as_str() {
            "" => vendor
                .base_url
                .clone()
                .ok_or_else(|| at.bad("base_url", format!("must be set: {} has none of its own", vendor.slug)))?,
            url => BaseUrl::parse(url).map_err(|e| at.bad("base_url", e))?,
        };
        let slug = at.not_empty("slug", &message.slug)?;
        if slug.contains('/') {
            return Err(at.bad("slug", "must not hold a slash"));
        }
        if !slugs.insert(slug.clone()) {
            return Err(at.bad("slug", "another provider has the same slug"));
        }
        let provider = Provider {
            id: at.id("id", &id)?,
            slug,
            vendor: vendor.clone(),
            base_url,
            disabled: message.disabled,
            timeouts: timeouts(message.timeouts, &at)?,
            credentials: Vec::new(),
            catalogue: message.models.map(|list| list.models.into_iter().map(Into::into).collect()),
            rows: Arc::default(),
            own: HashMap::default(),
        };
        by_id.insert(id, provider);
    }
    for (id, message) in each::<proto::Credential>(scope, "credential")? {
        let at = At { kind: "credential", id: &id };
        at.is_named(&message.id)?;
        let provider =
            by_id.get_mut(&message.provider_id).ok_or_else(|| at.dangling("provider_id", &message.provider_id))?;
        let credential = credential(&message, &provider.vendor, &at)?;
        provider.credentials.push(Arc::new(credential));
    }
    let mut rows: HashMap<String, Vec<proto::Model>> = HashMap::default();
    for (id, message) in each::<proto::Model>(scope, "model")? {
        let at = At { kind: "model", id: &id };
        at.is_named(&message.id)?;
        if !by_id.contains_key(&message.provider_id) {
            return Err(at.dangling("provider_id", &message.provider_id));
        }
        rows.entry(message.provider_id.clone()).or_default().push(message);
    }
    for (id, rows) in rows {
        let Some(provider) = by_id.get_mut(&id) else { continue };
        provider.own = own_models(&rows, &provider.vendor)?;
        provider.rows = rows.into();
    }
    Ok(by_id.into_values().map(|p| (p.slug.clone(), Arc::new(p))).collect())
}

fn timeouts(given: Option<proto::Timeouts>, at: &At<'_>) -> Result<proto::Timeouts, Rejection> {
    let timeouts = given.unwrap_or_default();
    let all = [timeouts.connect_ms, timeouts.first_token_ms, timeouts.idle_ms, timeouts.total_ms];
    if all.iter().any(|ms| *ms > limits::MAX_TIMEOUT_MS) {
        return Err(at.bad("timeouts", format!("longer than {} ms", limits::MAX_TIMEOUT_MS)));
    }
    Ok(timeouts)
}

fn credential(message: &proto::Credential, vendor: &Vendor, at: &At<'_>) -> Result<Credential, Rejection> {
    let header = match message.secret.as_slice() {
        [] => None,
        secret => {
            let mut value = vendor.auth_prefix.as_bytes().to_vec();
            value.extend_from_slice(secret);
            let mut value = http::HeaderValue::from_bytes(&value)
                .map_err(|_| at.bad("secret", "holds bytes that a header cannot carry"))?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    if header.is_none() && !vendor.credential_optional {
        return Err(at.bad("secret", "must not be empty"));
    }
    Ok(Credential {
        id: at.id("id", &message.id)?,
        name: message.name.as_str().into(),
        header,
        prefix: vendor.auth_prefix.len(),
        weight: message.weight,
        disabled: message.disabled,
        owner: message.owner.as_str().into(),
        environment: message.environment.as_str().into(),
    })
}

/// What a workspace's rows make of a vendor's catalogue.
fn own_models(rows: &[proto::Model], vendor: &Vendor) -> Result<HashMap<Box<str>, Option<Arc<Offering>>>, Rejection> {
    let mut own = HashMap::default();
    for row in rows {
        let at = At { kind: "model", id: &row.id };
        let name = at.not_empty("name", &row.name)?;
        let offering = match row.disabled {
            true => None,
            false => Some(Arc::new(own_offering(row, vendor, &at)?)),
        };
        if own.insert(name, offering).is_some() {
            return Err(at.bad("name", "another model of this provider has the same name"));
        }
    }
    Ok(own)
}

fn own_offering(message: &proto::Model, vendor: &Vendor, at: &At<'_>) -> Result<Offering, Rejection> {
    let given = message.facts.clone().unwrap_or_default();
    let catalogue = vendor.offerings.get(message.name.as_str());
    let facts = match catalogue {
        Some(known) if !message.private => merge(&known.facts, given),
        Some(_) | None => given,
    };
    check_facts(&facts, at)?;
    let base_url = match message.base_url.as_str() {
        "" => None,
        url => Some(BaseUrl::parse(url).map_err(|e| at.bad("base_url", e))?),
    };
    let upstream = if message.upstream_model.is_empty() { &message.name } else { &message.upstream_model };
    Ok(Offering {
        model: message.name.as_str().into(),
        upstream_model: upstream.as_str().into(),
        base_model: catalogue.map(|c| c.base_model.clone()).unwrap_or_default(),
        private: message.private,
        base_url,
        facts,
    })
}

/// A catalogue entry with what the workspace set instead.
fn merge(known: &proto::ModelFacts, given: proto::ModelFacts) -> proto::ModelFacts {
    let number = |given: u64, known: u64| if given == 0 { known } else { given };
    proto::ModelFacts {
        r#type: if given.r#type.is_empty() { known.r#type.clone() } else { given.r#type },
        context_tokens: number(given.context_tokens, known.context_tokens),
        max_output_tokens: number(given.max_output_tokens, known.max_output_tokens),
        capabilities: if given.capabilities.is_empty() { known.capabilities.clone() } else { given.capabilities },
        prices: if given.prices.is_empty() { known.prices.clone() } else { given.prices },
        deprecated_at_ms: if given.deprecated_at_ms == 0 { known.deprecated_at_ms } else { given.deprecated_at_ms },
    }
}

fn check_facts(facts: &proto::ModelFacts, at: &At<'_>) -> Result<(), Rejection> {
    at.not_empty("facts/type", &facts.r#type)?;
    for (index, price) in facts.prices.iter().enumerate() {
        let rates = [
            price.input,
            price.cache_read,
            price.cache_write_5m,
            price.cache_write_1h,
            price.output,
            price.reasoning,
            price.audio_input,
            price.audio_output,
        ];
        let reject = |detail: &str| at.reject(NackCode::BadPrice, &format!("facts/prices/{index}"), detail);
        if rates.iter().any(|rate| *rate < 0) {
            return Err(reject("a price is negative"));
        }
        if price.id != money::price_id(price) {
            return Err(reject("the id does not belong to this row"));
        }
    }
    Ok(())
}

fn api_key(
    workspace: WorkspaceId,
    message: &proto::ApiKey,
    scope: &Scope,
    at: &At<'_>,
) -> Result<(KeyHash, ApiKey), Rejection> {
    at.is_named(&message.id)?;
    let hash = KeyHash::try_from(message.hash.as_slice()).map_err(|_| at.bad("hash", "must be 32 bytes"))?;
    if scope.get("project", &message.project_id).is_none() {
        return Err(at.dangling("project_id", &message.project_id));
    }
    let addresses = match message.addresses.as_slice() {
        [] => None,
        blocks => {
            let blocks = blocks.iter().map(String::as_str);
            Some(
                Addresses::parse(blocks)
                    .map_err(|text| at.bad("addresses", format!("{text:?} is no address block")))?,
            )
        }
    };
    let key = ApiKey {
        id: at.id("id", &message.id)?,
        workspace,
        project: at.id("project_id", &message.project_id)?,
        name: message.name.as_str().into(),
        inference: message.scopes.iter().any(|s| s == "inference"),
        list_models: message.scopes.iter().any(|s| s == "models"),
        models: message.models.as_ref().map(|list| ModelRules::new(list.models.iter().map(String::as_str))),
        expires_at_ms: message.expires_at_ms,
        addresses,
        disabled: message.disabled,
    };
    Ok((hash, key))
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
