//! One document -> one message, by itself. What depends on other objects is left to `link`.

use bytes::Bytes;
use prost::Message;
use serde::de::DeserializeOwned;

use shared::money;
use shared::proto;
use shared::snapshot::{Addresses, BaseUrl, KeyHash, limits};

use super::Secret;
use crate::check::Diagnostic;
use crate::input;

/// Kinds in the order in which they depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Vendor,
    CatalogOffering,
    Workspace,
    Project,
    Provider,
    Credential,
    Model,
    Alias,
    ApiKey,
}

impl Kind {
    pub(super) const ALL: [Self; 9] = [
        Self::Vendor,
        Self::CatalogOffering,
        Self::Workspace,
        Self::Project,
        Self::Provider,
        Self::Credential,
        Self::Model,
        Self::Alias,
        Self::ApiKey,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Vendor => "vendor",
            Self::CatalogOffering => "catalog_offering",
            Self::Workspace => "workspace",
            Self::Project => "project",
            Self::Provider => "provider",
            Self::Credential => "credential",
            Self::Model => "model",
            Self::Alias => "alias",
            Self::ApiKey => "api_key",
        }
    }

    pub(super) fn read(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A readable document, references not yet followed.
#[derive(Debug)]
pub(super) enum Parsed {
    Vendor(proto::Vendor),
    CatalogOffering(proto::CatalogOffering),
    Workspace(proto::Workspace),
    Project(proto::Project),
    Provider(ParsedProvider),
    Credential(proto::Credential),
    Model(proto::Model),
    Alias(proto::Alias),
    ApiKey(ParsedKey),
}

#[derive(Debug)]
pub(super) struct ParsedProvider {
    pub(super) message: proto::Provider,
    pub(super) parameters: std::collections::BTreeMap<String, String>,
}

#[derive(Debug)]
pub(super) struct ParsedKey {
    pub(super) hash: KeyHash,
    /// Empty project: the workspace's default one.
    pub(super) message: proto::ApiKey,
    /// Encoded, when nothing is left to fill in.
    pub(super) body: Option<Bytes>,
}

/// Reads one document.
pub(super) fn parse(kind: Kind, id: &str, doc: &str, secret: &Secret) -> Result<Parsed, Diagnostic> {
    if id.is_empty() || id.len() > limits::MAX_NAME_BYTES {
        return Err(bad("", "the object's id is empty or too long"));
    }
    match kind {
        Kind::Vendor => vendor(id, read(doc)?).map(Parsed::Vendor),
        Kind::CatalogOffering => catalog_offering(id, read(doc)?).map(Parsed::CatalogOffering),
        Kind::Workspace => workspace(id, read(doc)?).map(Parsed::Workspace),
        Kind::Project => project(id, read(doc)?).map(Parsed::Project),
        Kind::Provider => provider(id, read(doc)?).map(Parsed::Provider),
        Kind::Credential => credential(id, read(doc)?, secret).map(Parsed::Credential),
        Kind::Model => model(id, read(doc)?).map(Parsed::Model),
        Kind::Alias => alias(id, read(doc)?).map(Parsed::Alias),
        Kind::ApiKey => api_key(id, read(doc)?).map(Parsed::ApiKey),
    }
}

pub(super) fn bad(path: impl Into<String>, message: impl ToString) -> Diagnostic {
    Diagnostic { code: "invalid_value", path: path.into(), message: message.to_string() }
}

fn required(path: &str) -> Diagnostic {
    Diagnostic { code: "required", path: path.into(), message: "must not be empty".into() }
}

fn read<T: DeserializeOwned>(doc: &str) -> Result<T, Diagnostic> {
    serde_json::from_str(doc).map_err(|e| {
        let code = if e.is_data() { "invalid_document" } else { "invalid_json" };
        Diagnostic { code, path: String::new(), message: e.to_string() }
    })
}

fn filled(path: &str, text: String) -> Result<String, Diagnostic> {
    if text.is_empty() { Err(required(path)) } else { Ok(text) }
}

fn typed<T: std::str::FromStr<Err = shared::ids::BadId>>(id: &str) -> Result<(), Diagnostic> {
    id.parse::<T>().map(drop).map_err(|e| bad("id", e))
}

fn url(path: &str, text: Option<String>) -> Result<String, Diagnostic> {
    let Some(text) = text else { return Ok(String::new()) };
    BaseUrl::parse(&text).map(|url| url.to_string()).map_err(|e| bad(path, e))
}

fn vendor(id: &str, doc: input::Vendor) -> Result<proto::Vendor, Diagnostic> {
    if doc.slug != id {
        return Err(bad("slug", "must equal the object's id"));
    }
    if doc.base_url.contains(['{', '}']) {
        let filled = super::link::fill_with(&doc.base_url, |_| Ok("x".into()))?;
        BaseUrl::parse(&filled).map_err(|e| bad("base_url", e))?;
    } else if !doc.base_url.is_empty() {
        BaseUrl::parse(&doc.base_url).map_err(|e| bad("base_url", e))?;
    }
    let header = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if doc.auth_header.is_empty() || doc.auth_header.len() > 128 || !doc.auth_header.bytes().all(header) {
        return Err(bad("auth_header", "must be a header name in lower case"));
    }
    if !doc.auth_prefix.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(bad("auth_prefix", "must be printable ASCII"));
    }
    for (endpoint, path) in &doc.endpoints {
        if endpoint.is_empty() || !path.starts_with('/') {
            return Err(bad(format!("endpoints.{endpoint}"), "needs a name, and a path that starts with a slash"));
        }
    }
    filled("dialect", doc.dialect.clone())?;
    Ok(proto::Vendor::from(&doc))
}

fn catalog_offering(id: &str, doc: input::CatalogOffering) -> Result<proto::CatalogOffering, Diagnostic> {
    if id.strip_prefix(&*doc.vendor).and_then(|rest| rest.strip_prefix('/')) != Some(&*doc.model) {
        return Err(bad("model", "the object's id must be <vendor>/<model>"));
    }
    let message = doc.to_proto().map_err(bad_price)?;
    for (path, text) in [("vendor", &doc.vendor), ("model", &doc.model), ("type", &doc.model_type)] {
        filled(path, text.clone())?;
    }
    let prices = message.facts.iter().flat_map(|facts| &facts.prices);
    for (index, price) in prices.enumerate() {
        // Usage is rated by this id: a wrong one would rate by another row.
        if price.id != money::price_id(price) || price.effective_from_ms < 0 {
            return Err(Diagnostic {
                code: "bad_price",
                path: format!("prices[{index}].id"),
                message: "is not the id of this row".into(),
            });
        }
    }
    Ok(message)
}

fn workspace(id: &str, doc: input::Workspace) -> Result<proto::Workspace, Diagnostic> {
    typed::<shared::ids::WorkspaceId>(id)?;
    Ok(proto::Workspace {
        id: id.into(),
        key: filled("key", doc.key)?,
        display_name: doc.display_name,
        disabled: doc.disabled,
        max_config_age_ms: doc.max_config_age_s.unwrap_or_default().saturating_mul(1000),
    })
}

fn project(id: &str, doc: input::Project) -> Result<proto::Project, Diagnostic> {
    typed::<shared::ids::ProjectId>(id)?;
    Ok(proto::Project { id: id.into(), key: filled("key", doc.key)?, disabled: doc.disabled })
}

fn provider(id: &str, doc: input::Provider) -> Result<ParsedProvider, Diagnostic> {
    typed::<shared::ids::ProviderId>(id)?;
    let vendor = filled("vendor", doc.vendor)?;
    let slug = if doc.slug.is_empty() { vendor.clone() } else { doc.slug };
    if slug.contains('/') {
        return Err(bad("slug", "must not hold a slash"));
    }
    let message = proto::Provider {
        id: id.into(),
        slug,
        vendor,
        base_url: url("base_url", doc.base_url)?,
        disabled: doc.disabled,
        timeouts: Some(timeouts(&doc.timeouts)?),
        models: doc.models.map(|models| proto::ModelList { models }),
    };
    Ok(ParsedProvider { message, parameters: doc.parameters })
}

fn timeouts(doc: &input::Timeouts) -> Result<proto::Timeouts, Diagnostic> {
    let limited = |name: &str, value: Option<u64>| match value {
        Some(ms) if ms == 0 || ms > limits::MAX_TIMEOUT_MS => {
            Err(bad(format!("timeouts.{name}"), format!("must be between 1 and {}", limits::MAX_TIMEOUT_MS)))
        }
        Some(ms) => Ok(ms),
        None => Ok(0),
    };
    Ok(proto::Timeouts {
        connect_ms: limited("connect_ms", doc.connect_ms)?,
        first_token_ms: limited("first_token_ms", doc.first_token_ms)?,
        idle_ms: limited("idle_ms", doc.idle_ms)?,
        total_ms: limited("total_ms", doc.total_ms)?,
    })
}

fn credential(id: &str, doc: input::Credential, secret: &Secret) -> Result<proto::Credential, Diagnostic> {
    typed::<shared::ids::CredentialId>(id)?;
    let secret = match secret {
        Secret::Absent if doc.secret_version != 0 => {
            return Err(Diagnostic {
                code: "secret_missing",
                path: "secret".into(),
                message: format!("version {} of the secret is not in the store", doc.secret_version),
            });
        }
        Secret::Absent => Vec::new(),
        Secret::Opened(bytes) if bytes.iter().all(|b| (b'!'..=b'~').contains(b)) => bytes.clone(),
        Secret::Opened(_) => return Err(bad("secret", "must be printable ASCII without spaces")),
        Secret::Unreadable => {
            return Err(Diagnostic {
                code: "secret_unreadable",
                path: "secret".into(),
                message: "the stored secret cannot be opened; set it again".into(),
            });
        }
    };
    Ok(proto::Credential {
        id: id.into(),
        provider_id: doc.provider_id.to_string(),
        name: doc.name,
        secret,
        weight: doc.weight,
        disabled: doc.disabled,
        owner: "own".into(),
        environment: doc.environment.unwrap_or_default(),
    })
}

fn model(id: &str, doc: input::Model) -> Result<proto::Model, Diagnostic> {
    typed::<shared::ids::ModelId>(id)?;
    if doc.private && doc.model_type.as_ref().is_none_or(String::is_empty) {
        return Err(required("type"));
    }
    Ok(proto::Model {
        id: id.into(),
        provider_id: doc.provider_id.to_string(),
        name: filled("name", doc.name)?,
        upstream_model: doc.upstream_model.unwrap_or_default(),
        private: doc.private,
        disabled: doc.disabled,
        base_url: url("base_url", doc.base_url)?,
        facts: Some(proto::ModelFacts {
            r#type: doc.model_type.unwrap_or_default(),
            context_tokens: doc.context_tokens.unwrap_or_default(),
            max_output_tokens: doc.max_output_tokens.unwrap_or_default(),
            capabilities: doc.capabilities,
            prices: prices(&doc.prices)?,
            deprecated_at_ms: 0,
        }),
    })
}

fn prices(rows: &[input::Price]) -> Result<Vec<proto::Price>, Diagnostic> {
    rows.iter().enumerate().map(|(index, row)| price(row, &format!("prices[{index}]"))).collect()
}

fn price(row: &input::Price, at: &str) -> Result<proto::Price, Diagnostic> {
    let mut price = row.to_proto().map_err(|e| bad_price(e.within(at)))?;
    if price.effective_from_ms < 0 {
        return Err(bad(format!("{at}.effective_from_ms"), "must not be negative"));
    }
    price.id = money::price_id(&price);
    Ok(price)
}

fn bad_price(fault: input::BadPrice) -> Diagnostic {
    let message = match fault.why {
        Some(why) => why.to_string(),
        None => "must not be negative".into(),
    };
    Diagnostic { code: "bad_price", path: fault.path, message }
}

fn alias(id: &str, doc: input::Alias) -> Result<proto::Alias, Diagnostic> {
    typed::<shared::ids::AliasId>(id)?;
    let name = filled("name", doc.name)?;
    if name.contains(['/', '@']) {
        return Err(bad("name", "must not hold a slash or an @"));
    }
    if doc.targets.is_empty() || doc.targets.len() > 16 {
        return Err(bad("targets", "must name 1 to 16 models"));
    }
    for (index, target) in doc.targets.iter().enumerate() {
        let at = format!("targets[{index}]");
        if target.is_empty() {
            return Err(required(&at));
        }
        if *target == name {
            return Err(bad(at, "an alias cannot stand for itself"));
        }
    }
    Ok(proto::Alias { id: id.into(), name, targets: doc.targets, disabled: doc.disabled })
}

fn api_key(id: &str, doc: input::ApiKey) -> Result<ParsedKey, Diagnostic> {
    typed::<shared::ids::ApiKeyId>(id)?;
    let hash = key_hash(&doc.hash).ok_or_else(|| bad("hash", "must be 64 hex digits in lower case"))?;
    if let Some(index) = doc.scopes.iter().position(|s| s != "inference" && s != "models") {
        return Err(bad(format!("scopes[{index}]"), "must be \"inference\" or \"models\""));
    }
    if let Err(block) = Addresses::parse(doc.addresses.iter().map(String::as_str)) {
        return Err(bad("addresses", format!("{block:?} is no address block such as 10.0.0.0/8")));
    }
    let expires_at_ms = doc.expires_at_ms.unwrap_or_default();
    if expires_at_ms < 0 {
        return Err(bad("expires_at_ms", "must not be negative"));
    }
    let message = proto::ApiKey {
        id: id.into(),
        project_id: doc.project_id.map(|id| id.to_string()).unwrap_or_default(),
        name: doc.name,
        hash: hash.to_vec(),
        scopes: doc.scopes,
        models: doc.models.map(|models| proto::ModelList { models }),
        expires_at_ms,
        addresses: doc.addresses,
        disabled: doc.disabled,
    };
    let body = (!message.project_id.is_empty()).then(|| message.encode_to_vec().into());
    Ok(ParsedKey { hash, message, body })
}

fn key_hash(hex: &str) -> Option<KeyHash> {
    let plain = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !plain {
        return None;
    }
    let mut hash = KeyHash::default();
    for (byte, digits) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}
