//! Messages side by side: references followed, names unique. Admits only what a node will take.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use prost::Message;

use shared::proto;
use shared::snapshot::{BaseUrl, KeyHash, SHARED_SCOPE, limits};

use super::parse::{Kind, Parsed, ParsedKey, ParsedProvider, bad};
use super::{Catalogue, Documents, Warning};
use crate::check::Diagnostic;

/// Everything admitted so far.
pub(super) struct Linked<'a> {
    scope: &'a str,
    documents: &'a Documents,
    catalogue: &'a Catalogue,
    vendors: HashSet<String>,
    projects: HashSet<String>,
    default_project: Option<String>,
    /// Id to vendor and slug.
    providers: HashMap<String, (&'a proto::Vendor, String)>,
    slugs: HashSet<String>,
    /// (provider id, name).
    models: HashSet<(String, String)>,
    /// Name to id and targets.
    aliases: BTreeMap<String, (String, Vec<String>)>,
    keys: HashSet<KeyHash>,
}

impl<'a> Linked<'a> {
    pub(super) fn new(scope: &'a str, documents: &'a Documents, catalogue: &'a Catalogue) -> Self {
        Self {
            scope,
            documents,
            catalogue,
            vendors: HashSet::new(),
            projects: HashSet::new(),
            default_project: None,
            providers: HashMap::new(),
            slugs: HashSet::new(),
            models: HashSet::new(),
            aliases: BTreeMap::new(),
            keys: HashSet::new(),
        }
    }

    /// Whether the scope is a workspace's.
    pub(super) fn needs_workspace(&self) -> bool {
        self.scope != SHARED_SCOPE
    }

    /// Checks one object against what is admitted, and admits it. A refused one leaves no trace.
    pub(super) fn admit(&mut self, id: &str, parsed: &Parsed) -> Result<proto::Resource, Diagnostic> {
        let of_shared = matches!(parsed, Parsed::Vendor(_) | Parsed::CatalogOffering(_));
        if of_shared == self.needs_workspace() {
            return Err(Diagnostic {
                code: "unknown_kind",
                path: String::new(),
                message: "objects of this kind do not belong into this scope".into(),
            });
        }
        match parsed {
            Parsed::Vendor(message) => {
                let resource = resource(Kind::Vendor, id, message.encode_to_vec().into())?;
                self.vendors.insert(id.into());
                Ok(resource)
            }
            Parsed::CatalogOffering(message) => {
                if !self.vendors.contains(&message.vendor) {
                    return Err(self.missing(Kind::Vendor, &message.vendor, "vendor"));
                }
                resource(Kind::CatalogOffering, id, message.encode_to_vec().into())
            }
            Parsed::Workspace(message) => {
                if id != self.scope {
                    return Err(bad("id", "a scope holds the workspace of the same id only"));
                }
                resource(Kind::Workspace, id, message.encode_to_vec().into())
            }
            Parsed::Project(message) => {
                let resource = resource(Kind::Project, id, message.encode_to_vec().into())?;
                self.projects.insert(id.into());
                if message.key == "default" && self.default_project.is_none() {
                    self.default_project = Some(id.into());
                }
                Ok(resource)
            }
            Parsed::Provider(provider) => self.provider(id, provider),
            Parsed::Credential(message) => self.credential(id, message),
            Parsed::Model(message) => self.model(id, message),
            Parsed::Alias(message) => self.alias(id, message),
            Parsed::ApiKey(key) => self.api_key(id, key),
        }
    }

    /// Aliases that lead nowhere now. They may again when the provider comes back, so they serve.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let slugs: HashSet<&str> = self.slugs.iter().map(String::as_str).collect();
        let problem = |target: &str| match target.split_once('/') {
            _ if self.aliases.contains_key(target) => {
                Some(format!("{target:?} is an alias; an alias cannot lead to another"))
            }
            Some((slug, _))
                if !slugs.contains(slug) && !target.contains('@') && slug != "router" && slug != "policy" =>
            {
                Some(format!("{target:?} names the provider {slug:?}, which is not in force here"))
            }
            Some(_) | None => None,
        };
        let mut warnings: Vec<Warning> = self
            .aliases
            .values()
            .flat_map(|(id, targets)| targets.iter().filter_map(|t| problem(t)).map(|m| (id.clone(), m)))
            .map(|(id, message)| Warning { kind: Kind::Alias.name().into(), id, message })
            .collect();
        warnings.sort_by(|a, b| (&a.id, &a.message).cmp(&(&b.id, &b.message)));
        warnings
    }

    fn missing(&self, kind: Kind, id: &str, path: &str) -> Diagnostic {
        let (code, what) = match self.documents.holds(kind, id) {
            true => ("quarantined_reference", "is quarantined and has no good version"),
            false => ("unknown_reference", "does not exist"),
        };
        Diagnostic { code, path: path.into(), message: format!("{} {id} {what}", kind.name()) }
    }

    fn provider(&mut self, id: &str, provider: &ParsedProvider) -> Result<proto::Resource, Diagnostic> {
        let mut message = provider.message.clone();
        let catalogue = self.catalogue;
        let vendor = catalogue.vendor(&message.vendor).ok_or_else(|| Diagnostic {
            code: "unknown_reference",
            path: "vendor".into(),
            message: format!("the catalogue has no vendor {:?}", message.vendor),
        })?;
        if message.base_url.is_empty() {
            message.base_url = match vendor.base_url.as_str() {
                "" => {
                    let message = format!("must be set: {} has no URL of its own", vendor.slug);
                    return Err(Diagnostic { code: "required", path: "base_url".into(), message });
                }
                template if template.contains('{') => fill_template(template, &provider.parameters)?,
                // Left to the node: it follows the vendor when that moves.
                _ => String::new(),
            };
        }
        if self.slugs.contains(&message.slug) {
            return Err(taken("slug", &message.slug));
        }
        let resource = resource(Kind::Provider, id, message.encode_to_vec().into())?;
        self.slugs.insert(message.slug.clone());
        self.providers.insert(id.into(), (vendor, message.slug));
        Ok(resource)
    }

    fn credential(&self, id: &str, message: &proto::Credential) -> Result<proto::Resource, Diagnostic> {
        let Some((vendor, _)) = self.providers.get(&message.provider_id) else {
            return Err(self.missing(Kind::Provider, &message.provider_id, "provider_id"));
        };
        if message.secret.is_empty() && !vendor.credential_optional {
            return Err(Diagnostic {
                code: "required",
                path: "secret".into(),
                message: format!("{} needs a secret", vendor.slug),
            });
        }
        resource(Kind::Credential, id, message.encode_to_vec().into())
    }

    fn model(&mut self, id: &str, message: &proto::Model) -> Result<proto::Resource, Diagnostic> {
        let Some((vendor, _)) = self.providers.get(&message.provider_id) else {
            return Err(self.missing(Kind::Provider, &message.provider_id, "provider_id"));
        };
        if !message.private && !self.catalogue.holds(&vendor.slug, &message.name) {
            return Err(Diagnostic {
                code: "unknown_reference",
                path: "name".into(),
                message: format!("the catalogue has no model {:?} of {}", message.name, vendor.slug),
            });
        }
        let name = (message.provider_id.clone(), message.name.clone());
        if self.models.contains(&name) {
            return Err(taken("name", &message.name));
        }
        let resource = resource(Kind::Model, id, message.encode_to_vec().into())?;
        self.models.insert(name);
        Ok(resource)
    }

    fn alias(&mut self, id: &str, message: &proto::Alias) -> Result<proto::Resource, Diagnostic> {
        if self.aliases.contains_key(&message.name) {
            return Err(taken("name", &message.name));
        }
        let resource = resource(Kind::Alias, id, message.encode_to_vec().into())?;
        if !message.disabled {
            self.aliases.insert(message.name.clone(), (id.into(), message.targets.clone()));
        }
        Ok(resource)
    }

    fn api_key(&mut self, id: &str, key: &ParsedKey) -> Result<proto::Resource, Diagnostic> {
        if self.keys.contains(&key.hash) {
            return Err(taken("hash", "the same hash"));
        }
        let body = match &key.body {
            Some(body) if self.projects.contains(&key.message.project_id) => body.clone(),
            Some(_) => return Err(self.missing(Kind::Project, &key.message.project_id, "project_id")),
            None => {
                let project_id = self.default_project.clone().ok_or_else(|| Diagnostic {
                    code: "unknown_reference",
                    path: "project_id".into(),
                    message: "the workspace has no project \"default\"".into(),
                })?;
                proto::ApiKey { project_id, ..key.message.clone() }.encode_to_vec().into()
            }
        };
        let resource = resource(Kind::ApiKey, id, body)?;
        self.keys.insert(key.hash);
        Ok(resource)
    }
}

/// A vendor's URL with its `{name}` placeholders filled in.
///
/// # Errors
/// When a parameter is missing or holds anything but letters, digits, dots and hyphens, or when the
/// result is no base URL.
pub fn fill_template(template: &str, parameters: &BTreeMap<String, String>) -> Result<String, Diagnostic> {
    let filled = fill_with(template, |name| {
        let at = format!("parameters.{name}");
        let value = parameters.get(name).ok_or_else(|| Diagnostic {
            code: "required",
            path: at.clone(),
            message: format!("the vendor's URL {template} needs it"),
        })?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
        if value.is_empty() || value.len() > 128 || !value.bytes().all(plain) {
            return Err(bad(at, "must be 1 to 128 letters, digits, dots, hyphens or underscores"));
        }
        Ok(value.clone())
    })?;
    BaseUrl::parse(&filled).map(|url| url.to_string()).map_err(|e| bad("parameters", e))
}

/// Replaces every `{name}` of `template` by what `value` gives for it.
pub(super) fn fill_with(
    template: &str,
    value: impl Fn(&str) -> Result<String, Diagnostic>,
) -> Result<String, Diagnostic> {
    let unbalanced = || bad("base_url", "braces must stand around names: {name}");
    let (mut filled, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, tail) = after.split_once('}').ok_or_else(unbalanced)?;
        if name.is_empty() || name.contains('{') || before.contains('}') {
            return Err(unbalanced());
        }
        filled.push_str(before);
        filled.push_str(&value(name)?);
        rest = tail;
    }
    if rest.contains('}') {
        return Err(unbalanced());
    }
    filled.push_str(rest);
    Ok(filled)
}

fn taken(path: &str, name: &str) -> Diagnostic {
    Diagnostic { code: "name_taken", path: path.into(), message: format!("another object has {name:?} already") }
}

fn resource(kind: Kind, id: &str, body: Bytes) -> Result<proto::Resource, Diagnostic> {
    if body.len() as u64 > limits::MAX_RESOURCE_BYTES {
        return Err(Diagnostic {
            code: "too_large",
            path: String::new(),
            message: format!("compiles to {} bytes; at most {}", body.len(), limits::MAX_RESOURCE_BYTES),
        });
    }
    Ok(proto::Resource { kind: kind.name().into(), id: id.into(), body })
}
