//! Is a document valid by itself and beside the others? Every fault names the field; all faults are
//! found, not only the first.
//!
//! It decides nothing about who may write, and it looks nothing up: what exists is asked of
//! [`References`].

mod text;
mod url;

use std::collections::BTreeSet;

use shared::ids::{ProjectId, ProviderId};
use shared::snapshot::Addresses;

use crate::input::{Alias, ApiKey, BadPrice, Credential, Model, Price, Project, Provider, Timeouts, Vendor, Workspace};
use text::{model_name, slug};

pub use text::free_text;
pub use url::{fill_in, placeholders};

/// What is wrong with a document, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable: `required`, `invalid_value`, `unknown_reference`, `immutable`, …
    pub code: &'static str,
    /// Path of the field: `prices[0].input`; empty = the whole document.
    pub path: String,
    /// For a person: what is wrong and what to write instead.
    pub message: String,
}

/// What exists beside the document: in its workspace, and in the catalogue.
pub trait References {
    /// A vendor of the catalogue.
    fn vendor(&self, slug: &str) -> Option<&Vendor>;
    /// Whether the catalogue has the model at the vendor.
    fn offers(&self, vendor: &str, model: &str) -> bool;
    /// Whether the project exists.
    fn has_project(&self, id: &ProjectId) -> bool;
    /// A provider of the workspace.
    fn provider(&self, id: &ProviderId) -> Option<&Provider>;
    /// A provider of the workspace by its slug.
    fn provider_named(&self, slug: &str) -> Option<ProviderId>;
    /// Whether the workspace has a row of its own for the model at the provider.
    fn has_model(&self, provider: &ProviderId, name: &str) -> bool;
}

/// A document that can be checked.
pub trait Check {
    /// Every fault of the document, given what exists beside it. None = valid.
    fn check(&self, references: &dyn References) -> Vec<Diagnostic>;

    /// Every field that must not differ from `old`, the document as it was, and does.
    fn check_change(&self, old: &Self) -> Vec<Diagnostic>;
}

/// Provider slugs that mean something else in front of a slash (see the names callers may write).
const RESERVED_SLUGS: [&str; 3] = ["router", "policy", "orcarouter"];

/// Alias names that mean something else.
const RESERVED_NAMES: [&str; 1] = ["auto"];

const CAPABILITIES: [&str; 6] = ["tools", "vision", "audio_input", "pdf_input", "json_schema", "reasoning"];
const MODEL_TYPES: [&str; 2] = ["chat", "embedding"];
const SCOPES: [&str; 2] = ["inference", "models"];

/// Below a minute, what a node loses with a heartbeat or a restart would stop traffic.
const CONFIG_AGE_S: std::ops::RangeInclusive<u64> = 60..=31_536_000;
const MAX_TARGETS: usize = 16;
const MAX_LISTED_MODELS: usize = 5_000;
const MAX_ADDRESSES: usize = 256;
const MAX_PRICES: usize = 64;
const MAX_WEIGHT: u32 = 1_000_000;

/// Collects faults.
#[derive(Default)]
struct Faults(Vec<Diagnostic>);

impl Faults {
    fn add(&mut self, path: impl Into<String>, code: &'static str, message: impl Into<String>) {
        self.0.push(Diagnostic { code, path: path.into(), message: message.into() });
    }

    fn value(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.add(path, "invalid_value", message);
    }

    fn unknown(&mut self, path: impl Into<String>, what: impl std::fmt::Display) {
        self.add(path, "unknown_reference", format!("{what} does not exist"));
    }

    /// A rule that gives back what is wrong.
    fn rule(&mut self, path: &str, broken: Option<String>) {
        if let Some(message) = broken {
            self.value(path, message);
        }
    }

    fn one_of(&mut self, path: String, value: &str, allowed: &[&str]) {
        if !allowed.contains(&value) {
            self.value(path, format!("must be one of {}", allowed.join(", ")));
        }
    }

    fn at_most(&mut self, path: &str, count: usize, most: usize) {
        if count > most {
            self.value(path, format!("holds {count} entries; at most {most} are allowed"));
        }
    }

    fn no_repeats<'a>(&mut self, path: &str, values: impl IntoIterator<Item = &'a String>) {
        let mut seen = BTreeSet::new();
        for (at, value) in values.into_iter().enumerate() {
            if !seen.insert(value) {
                self.value(format!("{path}[{at}]"), "is listed twice");
            }
        }
    }

    fn same<T: PartialEq>(&mut self, path: &str, old: &T, new: &T) {
        if old != new {
            self.add(path, "immutable", "cannot be changed; make a new object and remove this one");
        }
    }
}

impl Check for Workspace {
    fn check(&self, _: &dyn References) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.rule("key", slug(&self.key));
        if self.key == shared::snapshot::SHARED_SCOPE {
            faults.value("key", "is reserved");
        }
        faults.rule("display_name", free_text(&self.display_name, 0));
        if self.max_config_age_s.is_some_and(|age| !CONFIG_AGE_S.contains(&age)) {
            let (least, most) = (CONFIG_AGE_S.start(), CONFIG_AGE_S.end());
            faults.value("max_config_age_s", format!("must be {least} to {most} seconds, or absent"));
        }
        faults.0
    }

    fn check_change(&self, old: &Self) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.same("key", &old.key, &self.key);
        faults.0
    }
}

impl Check for Project {
    fn check(&self, _: &dyn References) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.rule("key", slug(&self.key));
        faults.rule("display_name", free_text(&self.display_name, 0));
        faults.0
    }

    fn check_change(&self, old: &Self) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.same("key", &old.key, &self.key);
        faults.0
    }
}

impl Check for Provider {
    fn check(&self, references: &dyn References) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.rule("slug", slug(&self.slug));
        if RESERVED_SLUGS.contains(&self.slug.as_str()) {
            faults.value("slug", "is reserved");
        }
        match references.vendor(&self.vendor) {
            Some(vendor) => self.check_address(vendor, &mut faults),
            None => faults.unknown("vendor", format!("vendor {:?}", self.vendor)),
        }
        self.timeouts.check(&mut faults);
        if let Some(models) = &self.models {
            faults.at_most("models", models.len(), MAX_LISTED_MODELS);
            for (at, model) in models.iter().enumerate() {
                faults.rule(&format!("models[{at}]"), model_name(model));
            }
            faults.no_repeats("models", models);
        }
        faults.0
    }

    fn check_change(&self, old: &Self) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.same("slug", &old.slug, &self.slug);
        faults.same("vendor", &old.vendor, &self.vendor);
        faults.0
    }
}

impl Provider {
    /// One address must come out: its own, or the vendor's with every placeholder filled in.
    fn check_address(&self, vendor: &Vendor, faults: &mut Faults) {
        let wanted = placeholders(&vendor.base_url);
        for (name, value) in &self.parameters {
            let path = format!("parameters.{name}");
            if !wanted.contains(&name.as_str()) {
                faults.value(path, format!("vendor {} has no parameter of this name", vendor.slug));
            } else {
                faults.rule(&path, url::parameter(value));
            }
        }
        match &self.base_url {
            Some(own) => faults.rule("base_url", url::base_url(own, &vendor.slug)),
            None if vendor.base_url.is_empty() => {
                faults.add("base_url", "required", format!("vendor {} has no address of its own", vendor.slug));
            }
            None => {
                for name in wanted.iter().filter(|name| !self.parameters.contains_key(**name)) {
                    let message = format!("the address of {} is {}", vendor.slug, vendor.base_url);
                    faults.add(format!("parameters.{name}"), "required", message);
                }
                let filled = fill_in(&vendor.base_url, &self.parameters);
                // A missing parameter was reported above, under its own name.
                if let Some(filled) = filled
                    && let Some(message) = url::base_url(&filled, &vendor.slug)
                {
                    faults.value("parameters", message);
                }
            }
        }
    }
}

impl Timeouts {
    fn check(&self, faults: &mut Faults) {
        let limits = [
            ("timeouts.connect_ms", self.connect_ms, 60_000),
            ("timeouts.first_token_ms", self.first_token_ms, 3_600_000),
            ("timeouts.idle_ms", self.idle_ms, 3_600_000),
            ("timeouts.total_ms", self.total_ms, 86_400_000),
        ];
        for (path, value, most) in limits {
            if value.is_some_and(|ms| ms == 0 || ms > most) {
                faults.value(path, format!("must be from 1 to {most}"));
            }
        }
    }
}

impl Check for Credential {
    fn check(&self, references: &dyn References) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.rule("name", free_text(&self.name, 1));
        if self.weight > MAX_WEIGHT {
            faults.value("weight", format!("must be at most {MAX_WEIGHT}"));
        }
        if let Some(environment) = &self.environment {
            faults.rule("environment", free_text(environment, 1));
        }
        let Some(provider) = references.provider(&self.provider_id) else {
            faults.unknown("provider_id", self.provider_id);
            return faults.0;
        };
        let optional = references.vendor(&provider.vendor).is_some_and(|vendor| vendor.credential_optional);
        if self.secret_version == 0 && !optional {
            faults.add("secret", "required", format!("vendor {} needs a secret", provider.vendor));
        }
        faults.0
    }

    fn check_change(&self, old: &Self) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.same("provider_id", &old.provider_id, &self.provider_id);
        faults.0
    }
}

impl Check for Model {
    fn check(&self, references: &dyn References) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.rule("name", model_name(&self.name));
        if let Some(upstream) = &self.upstream_model {
            faults.rule("upstream_model", model_name(upstream));
        }
        match &self.model_type {
            Some(kind) => faults.one_of("type".into(), kind, &MODEL_TYPES),
            None if self.private => faults.add("type", "required", "a private model must say what it is"),
            None => {}
        }
        for (path, tokens) in [("context_tokens", self.context_tokens), ("max_output_tokens", self.max_output_tokens)] {
            if tokens.is_some_and(|tokens| tokens == 0 || tokens > 1_000_000_000) {
                faults.value(path, "must be from 1 to 1000000000");
            }
        }
        for (at, capability) in self.capabilities.iter().enumerate() {
            faults.one_of(format!("capabilities[{at}]"), capability, &CAPABILITIES);
        }
        faults.no_repeats("capabilities", &self.capabilities);
        check_prices(&self.prices, &mut faults);
        let Some(provider) = references.provider(&self.provider_id) else {
            faults.unknown("provider_id", self.provider_id);
            return faults.0;
        };
        if let Some(url) = &self.base_url {
            faults.rule("base_url", url::base_url(url, &provider.vendor));
        }
        if !self.private && !references.offers(&provider.vendor, &self.name) {
            let message =
                format!("the catalogue has no {}/{}; set private for a model of your own", provider.vendor, self.name);
            faults.add("name", "unknown_reference", message);
        }
        faults.0
    }

    fn check_change(&self, old: &Self) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.same("provider_id", &old.provider_id, &self.provider_id);
        faults.same("name", &old.name, &self.name);
        faults.0
    }
}

fn check_prices(prices: &[Price], faults: &mut Faults) {
    faults.at_most("prices", prices.len(), MAX_PRICES);
    let mut conditions = BTreeSet::new();
    for (at, price) in prices.iter().enumerate() {
        if let Err(BadPrice { path, why }) = price.to_proto() {
            let message = why.map_or_else(|| "must not be below zero".to_owned(), |why| format!("is {why}"));
            faults.value(format!("prices[{at}].{path}"), message);
        }
        if price.effective_from_ms.is_some_and(|ms| ms < 0) {
            faults.value(format!("prices[{at}].effective_from_ms"), "must not be below zero");
        }
        if let Some(tier) = &price.service_tier {
            faults.rule(&format!("prices[{at}].service_tier"), free_text(tier, 1));
        }
        if !conditions.insert((price.effective_from_ms, price.above_input_tokens, &price.service_tier)) {
            faults.value(format!("prices[{at}]"), "another row applies from the same time under the same conditions");
        }
    }
}

impl Check for Alias {
    fn check(&self, references: &dyn References) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.rule("name", text::alias_name(&self.name));
        if RESERVED_NAMES.contains(&self.name.as_str()) {
            faults.value("name", "is reserved");
        }
        if self.targets.is_empty() {
            faults.add("targets", "required", "must name at least one model");
        }
        faults.at_most("targets", self.targets.len(), MAX_TARGETS);
        faults.no_repeats("targets", &self.targets);
        for (at, target) in self.targets.iter().enumerate().take(MAX_TARGETS) {
            check_target(&format!("targets[{at}]"), target, references, &mut faults);
        }
        faults.0
    }

    fn check_change(&self, old: &Self) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.same("name", &old.name, &self.name);
        faults.0
    }
}

fn check_target(path: &str, target: &str, references: &dyn References, faults: &mut Faults) {
    let Some((slug, model)) = target.split_once('/').filter(|(slug, model)| !slug.is_empty() && !model.is_empty())
    else {
        return faults.value(path, "must have the form provider/model");
    };
    let found = references.provider_named(slug).and_then(|id| Some((id, references.provider(&id)?)));
    let Some((id, provider)) = found else {
        return faults.unknown(path, format!("provider {slug:?}"));
    };
    if !references.has_model(&id, model) && !references.offers(&provider.vendor, model) {
        faults.unknown(path, format!("model {model:?} at provider {slug:?}"));
    }
}

impl Check for ApiKey {
    fn check(&self, references: &dyn References) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.rule("name", free_text(&self.name, 1));
        match &self.project_id {
            Some(id) if references.has_project(id) => {}
            Some(id) => faults.unknown("project_id", id),
            None => faults.add("project_id", "required", "the workspace has no default project"),
        }
        if self.scopes.is_empty() {
            faults.add("scopes", "required", "a key without a scope is of no use; disable it instead");
        }
        for (at, scope) in self.scopes.iter().enumerate() {
            faults.one_of(format!("scopes[{at}]"), scope, &SCOPES);
        }
        faults.no_repeats("scopes", &self.scopes);
        if let Some(models) = &self.models {
            faults.at_most("models", models.len(), MAX_LISTED_MODELS);
            for (at, model) in models.iter().enumerate() {
                let bare = model.strip_suffix('*').unwrap_or(model);
                let path = format!("models[{at}]");
                if bare.contains('*') {
                    faults.value(path, "a star may stand only at the end");
                } else if model != "*" {
                    faults.rule(&path, model_name(bare));
                }
            }
            faults.no_repeats("models", models);
        }
        if self.expires_at_ms.is_some_and(|ms| ms <= 0) {
            faults.value("expires_at_ms", "must be above zero; leave it out for a key that does not expire");
        }
        faults.at_most("addresses", self.addresses.len(), MAX_ADDRESSES);
        for (at, block) in self.addresses.iter().enumerate() {
            if Addresses::parse([block.as_str()]).is_err() {
                faults
                    .value(format!("addresses[{at}]"), "must be an address block such as 10.0.0.0/8 or 2001:db8::/32");
            }
        }
        faults.0
    }

    fn check_change(&self, old: &Self) -> Vec<Diagnostic> {
        let mut faults = Faults::default();
        faults.same("project_id", &old.project_id, &self.project_id);
        faults.0
    }
}

#[cfg(test)]
mod tests;
