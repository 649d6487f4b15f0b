//! What a key may use, for `GET /v1/models`. Says nothing about health: a list should not change
//! with the weather.

use std::sync::Arc;

use shared::snapshot::{Alias, ApiKey, Offering, Provider, Workspace};

use crate::facts::Now;
use crate::resolve::{self, Found};

/// One line of the list.
#[derive(Debug, Clone)]
pub struct Listed<'a> {
    /// What a caller writes in `model`: "provider/model", "workspace@provider/model" for a private
    /// model, or an alias.
    pub name: String,
    /// What it stands for.
    pub target: Target<'a>,
}

/// What a listed name stands for.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// An offering.
    Offering {
        /// Who offers it.
        provider: &'a Arc<Provider>,
        /// What is offered.
        offering: &'a Arc<Offering>,
    },
    /// An alias that the key may use by name or that leads to something it may use.
    Alias(&'a Alias),
}

/// Every name the key may use now, in alphabetical order: what is switched off, no longer served, or
/// without an enabled credential is not in it.
pub fn list<'a>(workspace: &'a Workspace, key: &ApiKey, now: Now) -> Vec<Listed<'a>> {
    let mut listed: Vec<Listed<'a>> = Vec::new();
    for provider in workspace.providers.values() {
        for offering in provider.offerings() {
            let found = Found { provider, offering };
            if serves(&found, now) && resolve::allowed(workspace, key, &found) {
                let name = found.full_name().to_string();
                let name = if offering.private { format!("{}@{name}", workspace.key) } else { name };
                listed.push(Listed { name, target: Target::Offering { provider, offering } });
            }
        }
    }
    for alias in workspace.aliases.values() {
        let by_name = key.models.as_ref().is_none_or(|rules| rules.allow(&alias.name));
        let leads = alias
            .targets
            .iter()
            .filter_map(|target| resolve::target(workspace, target))
            .any(|found| serves(&found, now) && (by_name || resolve::allowed(workspace, key, &found)));
        if leads {
            listed.push(Listed { name: alias.name.to_string(), target: Target::Alias(alias) });
        }
    }
    listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    listed
}

fn serves(found: &Found<'_>, now: Now) -> bool {
    let (provider, ends_ms) = (found.provider, found.offering.facts.deprecated_at_ms);
    let credential = match provider.credentials.as_slice() {
        [] => provider.vendor.credential_optional,
        some => some.iter().any(|credential| !credential.disabled),
    };
    !provider.disabled && credential && (ends_ms == 0 || now.wall_ms < ends_ms)
}
