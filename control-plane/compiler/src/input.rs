//! The documents: what REST accepts and the database keeps, one type per kind.
//!
//! A field that is absent means "default"; unknown fields are refused. Ids, timestamps and revisions
//! are not part of a document: they stand beside it.

mod catalog;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use shared::ids::{ProjectId, ProviderId};
use shared::money::{BadAmount, Nanos};
use shared::proto;

pub use catalog::{CatalogOffering, CatalogPrice, Vendor};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// Slug, unique, immutable: 1 to 50 of `a-z 0-9 -`, starting with a letter.
    #[schema(example = "acme")]
    pub key: String,
    /// For people; at most 200 characters.
    #[serde(default)]
    pub display_name: String,
    /// No request is admitted while true.
    #[serde(default)]
    pub disabled: bool,
    /// Seconds, at least 60: nodes that have not heard from the control plane for longer refuse this
    /// workspace's keys, so that what was revoked meanwhile stops too. Default: no limit, traffic
    /// outlives the control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(null))]
    pub max_config_age_s: Option<u64>,
}

/// A group of keys, rules and policies inside a workspace. Every workspace has `default`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// Slug, unique in the workspace, immutable.
    #[schema(example = "chatbot")]
    pub key: String,
    /// For people.
    #[serde(default)]
    pub display_name: String,
    /// No request is admitted while true.
    #[serde(default)]
    pub disabled: bool,
}

/// A vendor as connected in a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// First segment of its models' names, unique in the workspace, immutable. Default: the vendor.
    #[serde(default)]
    #[schema(example = "openai")]
    pub slug: String,
    /// A vendor of the catalogue.
    #[schema(example = "openai")]
    pub vendor: String,
    /// Instead of the vendor's; needed when the vendor has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "https://eu.api.openai.com/v1")]
    pub base_url: Option<String>,
    /// What fills the vendor's URL placeholders, by name.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub parameters: std::collections::BTreeMap<String, String>,
    /// Not used for any request while true.
    #[serde(default)]
    pub disabled: bool,
    /// Deadlines of calls to it.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Absent: every catalogue model of the vendor. Present: these only (none, when empty).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
}

/// Deadlines in milliseconds; absent = the node's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// TCP and TLS, 1 to 60000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<u64>,
    /// From the request's last byte to the first of the answer, 1 to 3600000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
    /// Between chunks of a stream, 1 to 3600000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// The whole request, attempts and waits included, 1 to 86400000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<u64>,
}

/// One key at a provider. The secret is sealed apart and never part of the document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The provider it opens; immutable.
    #[schema(value_type = String, example = "prv_0192f0c1d2e34f56a7b8c9d0e1f2a3b4")]
    pub provider_id: ProviderId,
    /// For people, unique at its provider.
    pub name: String,
    /// Share of new requests among the provider's live credentials; 0 = only after the others.
    #[serde(default = "one")]
    pub weight: u32,
    /// Not used for any request while true.
    #[serde(default)]
    pub disabled: bool,
    /// Free tag such as `production`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Version of the sealed secret; set by the control plane. 0 = no secret.
    #[serde(default)]
    #[schema(read_only)]
    pub secret_version: i64,
    /// Last four characters of the secret, for people to tell keys apart; set by the control plane.
    #[serde(default)]
    #[schema(read_only)]
    pub secret_hint: String,
}

fn one() -> u32 {
    1
}

/// A model the workspace added itself (`private`), or its change to a catalogue entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The provider that serves it; immutable.
    #[schema(value_type = String, example = "prv_0192f0c1d2e34f56a7b8c9d0e1f2a3b4")]
    pub provider_id: ProviderId,
    /// Name after the provider's slug, unique at its provider, immutable.
    #[schema(example = "support-tuned-v3")]
    pub name: String,
    /// The id that the API wants; absent = `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_model: Option<String>,
    /// false: changes a catalogue entry.
    #[serde(default)]
    pub private: bool,
    /// Switched off.
    #[serde(default)]
    pub disabled: bool,
    /// Instead of the provider's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// `chat` or `embedding`; needed for a private model.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub model_type: Option<String>,
    /// Tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u64>,
    /// Tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    /// `tools`, `vision`, `audio_input`, `pdf_input`, `json_schema`, `reasoning`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// None listed: the catalogue's, or unpriced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prices: Vec<Price>,
}

/// A price row. Amounts are decimal texts in US dollars per million tokens, exact to nine decimals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Milliseconds since 1970; absent = always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_from_ms: Option<i64>,
    /// Applies to prompts above this many tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above_input_tokens: Option<u64>,
    /// Applies to this service tier as the provider reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<String>,
    /// Prompt tokens.
    #[schema(example = "0.15")]
    pub input: String,
    /// Produced tokens.
    #[schema(example = "0.60")]
    pub output: String,
    /// Prompt tokens from the provider's cache; absent = `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read: Option<String>,
    /// Prompt tokens written to the cache for five minutes; absent = `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_5m: Option<String>,
    /// Prompt tokens written to the cache for an hour; absent = `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_1h: Option<String>,
    /// Reasoning tokens; absent = `output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Audio tokens of the prompt; absent = `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio_input: Option<String>,
    /// Audio tokens produced; absent = `output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio_output: Option<String>,
}

/// An amount that cannot be used as a price, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPrice {
    /// `input`, or `prices[0].input`.
    pub path: String,
    /// `None`: below zero.
    pub why: Option<BadAmount>,
}

impl BadPrice {
    /// The same inside `outer`.
    pub fn within(self, outer: &str) -> Self {
        Self { path: format!("{outer}.{}", self.path), ..self }
    }
}

impl Price {
    /// What nodes read: absent classes filled in, `id` left empty (it names the finished row).
    ///
    /// # Errors
    /// The first amount that is no exact decimal, too large, or below zero.
    pub fn to_proto(&self) -> Result<proto::Price, BadPrice> {
        let read = |path: &str, text: &str| match text.parse::<Nanos>() {
            Ok(Nanos(amount)) if amount >= 0 => Ok(amount),
            Ok(Nanos(_)) => Err(BadPrice { path: path.into(), why: None }),
            Err(why) => Err(BadPrice { path: path.into(), why: Some(why) }),
        };
        let or = |path: &str, text: &Option<String>, default: i64| match text {
            Some(text) => read(path, text),
            None => Ok(default),
        };
        let (input, output) = (read("input", &self.input)?, read("output", &self.output)?);
        Ok(proto::Price {
            id: String::new(),
            effective_from_ms: self.effective_from_ms.unwrap_or_default(),
            above_input_tokens: self.above_input_tokens.unwrap_or_default(),
            service_tier: self.service_tier.clone().unwrap_or_default(),
            input,
            cache_read: or("cache_read", &self.cache_read, input)?,
            cache_write_5m: or("cache_write_5m", &self.cache_write_5m, input)?,
            cache_write_1h: or("cache_write_1h", &self.cache_write_1h, input)?,
            output,
            reasoning: or("reasoning", &self.reasoning, output)?,
            audio_input: or("audio_input", &self.audio_input, input)?,
            audio_output: or("audio_output", &self.audio_output, output)?,
        })
    }
}

/// Another name for one model, or for several in order of fallback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    /// As callers write it, unique in the workspace, immutable; no slash, no `@`.
    #[schema(example = "fast")]
    pub name: String,
    /// `provider/model` names, 1 to 16, tried in this order.
    #[schema(example = json!(["openai/gpt-4o-mini", "groq/llama-3.3-70b-versatile"]))]
    pub targets: Vec<String>,
    /// Unknown to callers while true.
    #[serde(default)]
    pub disabled: bool,
}

/// A caller's key. The key itself is shown once, when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The project it belongs to; immutable. Absent = `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub project_id: Option<ProjectId>,
    /// For people; at most 200 characters.
    pub name: String,
    /// `inference` (send requests) and `models` (list them); absent = both.
    #[serde(default = "all_scopes")]
    pub scopes: Vec<String>,
    /// Absent: every model. Present: these only; `openai/*` stands for all that start so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Milliseconds since 1970; absent = never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<i64>,
    /// Addresses it may be used from, CIDR; none listed = anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Refused while true.
    #[serde(default)]
    pub disabled: bool,
    /// Hex SHA-256 of the key; set by the control plane.
    #[serde(default)]
    #[schema(read_only)]
    pub hash: String,
    /// First and last characters, for people to tell keys apart; set by the control plane.
    #[serde(default)]
    #[schema(read_only)]
    pub hint: String,
}

fn all_scopes() -> Vec<String> {
    vec!["inference".into(), "models".into()]
}
