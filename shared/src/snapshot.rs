//! `Snapshot`: all compiled state of a node, indexed and valid by construction.
//!
//! It is immutable. A request pins one and never looks at another; an update makes the next one
//! with [`Snapshot::apply`], which shares everything that did not change. File and stream go
//! through the same function.

mod apply;
mod keys;
pub mod limits;
mod rows;
mod scope;

use std::fmt;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use http::HeaderValue;
use http::uri::Authority;

use crate::ids::{ApiKeyId, CredentialId, ProjectId, ProviderId, WorkspaceId};
use crate::proto;

pub use apply::{Change, Rejection};
pub use keys::{Addresses, ApiKey, KeyHash, KeyIndex, ModelRules};
pub use scope::{Extent, Scope, ScopeDelta};

/// Name of the scope that holds what all workspaces have in common.
pub const SHARED_SCOPE: &str = "shared";

/// The newest form of `proto/v1/snapshot.proto` that this program reads and writes.
pub const SCHEMA: u32 = 1;

/// Everything a node decides from.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Vendors and the catalogue.
    pub shared: Arc<Shared>,
    workspaces: HashMap<WorkspaceId, Arc<Workspace>>,
    keys: KeyIndex,
}

impl Snapshot {
    /// The key with this SHA-256, and its workspace. A disabled workspace or project is still
    /// found: admission says why it refuses.
    pub fn key(&self, hash: &KeyHash) -> Option<(&Arc<ApiKey>, &Arc<Workspace>)> {
        let key = self.keys.get(hash)?;
        Some((key, self.workspaces.get(&key.workspace)?))
    }

    /// A workspace by id.
    pub fn workspace(&self, id: &WorkspaceId) -> Option<&Arc<Workspace>> {
        self.workspaces.get(id)
    }

    /// All workspaces, in no order.
    pub fn workspaces(&self) -> impl Iterator<Item = &Arc<Workspace>> {
        self.workspaces.values()
    }

    /// Number of keys over all workspaces.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }
}

/// What all workspaces have in common.
#[derive(Debug, Default)]
pub struct Shared {
    /// Revision of the shared scope.
    pub revision: u64,
    /// By slug.
    pub vendors: HashMap<Box<str>, Arc<Vendor>>,
}

/// A company or program that serves models.
#[derive(Debug)]
pub struct Vendor {
    /// "openai".
    pub slug: Box<str>,
    /// For people.
    pub display_name: Box<str>,
    /// Wire format: "openai".
    pub dialect: Box<str>,
    /// Absent when every provider connection must bring its own (a local server, a private host).
    pub base_url: Option<BaseUrl>,
    /// Header that carries the credential, lower case.
    pub auth_header: http::HeaderName,
    /// Put before the credential.
    pub auth_prefix: Box<str>,
    /// Endpoint name ("chat_completions", "embeddings") to path under the base URL.
    pub endpoints: HashMap<Box<str>, Box<str>>,
    /// Named deviations.
    pub quirks: Vec<Box<str>>,
    /// Usable without any credential.
    pub credential_optional: bool,
    /// Its part of the catalogue, by the vendor's own model id.
    pub offerings: HashMap<Box<str>, Arc<Offering>>,
}

/// Where to connect, already taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BaseUrl {
    /// How to connect.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Authority,
    /// Without a trailing slash; may be empty.
    pub path: Box<str>,
    /// `authority` as the header of that name.
    pub host: HeaderValue,
    /// Scheme and authority in lower case: connections may be shared where this is the same.
    pub origin: Arc<str>,
}

/// How a connection is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// TLS.
    Https,
    /// Plain TCP.
    Http,
    /// The vendor built into every node; no network.
    Sandbox,
}

impl BaseUrl {
    /// Reads `https://host[:port][/path]`. Refuses user info, queries and fragments, and anything
    /// but `https`, `http` and the built-in `sandbox`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: http::Uri = text.parse().map_err(|_| "not a URL")?;
        let scheme = match uri.scheme_str() {
            Some("https") => Scheme::Https,
            Some("http") => Scheme::Http,
            Some("sandbox") => Scheme::Sandbox,
            Some(_) | None => return Err("must start with https:// or http://"),
        };
        let authority = uri.authority().ok_or("has no host")?.clone();
        if authority.as_str().contains('@') {
            return Err("must not hold a user name or password");
        }
        if authority.host().is_empty() {
            return Err("has no host");
        }
        // What stands after the host is nothing, or a port that a socket can have.
        if authority.as_str() != authority.host() && authority.port_u16().is_none_or(|port| port == 0) {
            return Err("has an invalid port");
        }
        if uri.query().is_some() || text.contains('#') {
            return Err("must not hold a query or fragment");
        }
        let path = uri.path().trim_end_matches('/').into();
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| "has an invalid host")?;
        let origin = format!("{}://{authority}", scheme.name()).to_ascii_lowercase().into();
        Ok(Self { scheme, authority, path, host, origin })
    }
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Sandbox => "sandbox",
        }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.name(), self.authority, self.path)
    }
}

/// A model as one vendor (or one provider connection) serves it.
#[derive(Debug)]
pub struct Offering {
    /// Name after the provider's slug.
    pub model: Box<str>,
    /// The id that the API wants.
    pub upstream_model: Box<str>,
    /// `<maker>/<model>`; empty when unknown.
    pub base_model: Box<str>,
    /// Added by the workspace.
    pub private: bool,
    /// Instead of the provider's.
    pub base_url: Option<BaseUrl>,
    /// What it can and costs.
    pub facts: proto::ModelFacts,
}

/// A tenant's part of the snapshot, without its keys.
#[derive(Debug)]
pub struct Workspace {
    /// Its id; the scope's name.
    pub id: WorkspaceId,
    /// Slug.
    pub key: Box<str>,
    /// For people.
    pub display_name: Box<str>,
    /// No request is admitted.
    pub disabled: bool,
    /// Longest time without word of the control plane for which its keys are served, milliseconds;
    /// 0 = no limit.
    pub max_config_age_ms: u64,
    /// Revision of its scope.
    pub revision: u64,
    /// Its projects.
    pub projects: HashMap<ProjectId, Project>,
    /// Its provider connections by slug.
    pub providers: HashMap<Box<str>, Arc<Provider>>,
    /// Its aliases by name.
    pub aliases: HashMap<Box<str>, Alias>,
}

/// A group of keys.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Slug.
    pub key: Box<str>,
    /// No request is admitted.
    pub disabled: bool,
}

/// A vendor as connected in a workspace, linked to it.
#[derive(Debug)]
pub struct Provider {
    /// Its id.
    pub id: ProviderId,
    /// First segment of its models' names.
    pub slug: Box<str>,
    /// Who it is.
    pub vendor: Arc<Vendor>,
    /// Where it is: its own, else the vendor's.
    pub base_url: BaseUrl,
    /// Not used for any request.
    pub disabled: bool,
    /// 0 = the node's default.
    pub timeouts: proto::Timeouts,
    /// Keys at the vendor, in order of id.
    pub credentials: Vec<Arc<Credential>>,
    /// `None`: the vendor's whole catalogue. `Some`: these only.
    catalogue: Option<HashSet<Box<str>>>,
    /// Rows of the workspace about its models, as received: they are merged into the catalogue again
    /// whenever that changes.
    rows: Arc<[proto::Model]>,
    /// What `rows` make of the catalogue; `None` = switched off.
    own: HashMap<Box<str>, Option<Arc<Offering>>>,
}

impl Provider {
    /// The offering of this name, if the workspace has it enabled.
    pub fn offering(&self, model: &str) -> Option<&Arc<Offering>> {
        if let Some(own) = self.own.get(model) {
            return own.as_ref();
        }
        let found = self.vendor.offerings.get(model)?;
        self.lists(model).then_some(found)
    }

    /// All enabled offerings, in no order.
    pub fn offerings(&self) -> impl Iterator<Item = &Arc<Offering>> {
        let catalogue =
            self.vendor.offerings.values().filter(|o| !self.own.contains_key(&o.model) && self.lists(&o.model));
        self.own.values().flatten().chain(catalogue)
    }

    fn lists(&self, model: &str) -> bool {
        self.catalogue.as_ref().is_none_or(|names| names.contains(model))
    }
}

/// One key at a provider.
pub struct Credential {
    /// Its id.
    pub id: CredentialId,
    /// For people.
    pub name: Box<str>,
    /// The whole header value, prefix included, marked sensitive. `None`: nothing is sent.
    pub header: Option<http::HeaderValue>,
    /// Length of the prefix in it.
    prefix: usize,
    /// Share of new requests; 0 = only after the others.
    pub weight: u32,
    /// Not used for any request.
    pub disabled: bool,
    /// "own" or "operator".
    pub owner: Box<str>,
    /// Free tag; may be empty.
    pub environment: Box<str>,
}

impl Credential {
    /// What it holds, without the header's prefix; to keep it out of messages.
    pub fn secret(&self) -> Option<&[u8]> {
        self.header.as_ref()?.as_bytes().get(self.prefix..).filter(|secret| !secret.is_empty())
    }
}

/// Says which credential, never what it holds.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, {})", self.id, self.name)
    }
}

/// Another name for one model, or for several in order of fallback.
#[derive(Debug, Clone)]
pub struct Alias {
    /// As callers write it.
    pub name: Box<str>,
    /// Names in any form but another alias; never empty.
    pub targets: Vec<Box<str>>,
}

/// A key's place in the tenancy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Tenant.
    pub workspace: WorkspaceId,
    /// Group inside it.
    pub project: ProjectId,
    /// The key itself.
    pub key: ApiKeyId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        let cases = [
            ("https://api.openai.com/v1", Ok("https://api.openai.com/v1")),
            ("https://api.openai.com/v1/", Ok("https://api.openai.com/v1")),
            ("http://127.0.0.1:8000", Ok("http://127.0.0.1:8000")),
            ("http://[::1]:8000/x", Ok("http://[::1]:8000/x")),
            ("sandbox://local", Ok("sandbox://local")),
            ("ftp://x", Err("must start with https:// or http://")),
            ("https://user:secret@x/", Err("must not hold a user name or password")),
            ("https://x/?key=1", Err("must not hold a query or fragment")),
            ("https://x/#a", Err("must not hold a query or fragment")),
            ("https://x:99999/", Err("has an invalid port")),
            ("https://x:/", Err("has an invalid port")),
            ("https://x:0/", Err("has an invalid port")),
            ("/v1", Err("must start with https:// or http://")),
            ("", Err("not a URL")),
            ("https://a b/", Err("not a URL")),
        ];
        for (text, expected) in cases {
            let read = BaseUrl::parse(text).map(|url| url.to_string());
            assert_eq!(read.as_deref().map_err(|e| *e), expected, "{text}");
        }
    }
}
