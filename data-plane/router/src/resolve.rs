//! From what the caller wrote to offerings, in order. Knows which names exist; whether an offering
//! can take the request is `plan`'s question.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use shared::snapshot::{ApiKey, Offering, Provider, Workspace};

use crate::facts::{Facts, MAX_INLINE_MODELS};
use crate::name::{BadName, Name};
use crate::plan::{DropReason, Reason};
use crate::refusal::{MAX_LISTED, Refusal, RefusalKind};

/// One entry of the ordered list that a request names.
pub(crate) struct Wanted<'a> {
    /// The name that led here: an alias's target, or what the caller wrote.
    pub(crate) written: &'a str,
    /// The key may use the alias that led here, whatever it stands for.
    pub(crate) by_alias: bool,
    /// What it names.
    pub(crate) found: Result<Found<'a>, DropReason>,
}

/// An offering and who offers it.
#[derive(Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) provider: &'a Arc<Provider>,
    pub(crate) offering: &'a Arc<Offering>,
}

impl<'a> Found<'a> {
    /// `provider/model`.
    pub(crate) fn full_name(self) -> FullName<'a> {
        FullName(&self.provider.slug, &self.offering.model)
    }
}

/// `provider/model`, not yet put together.
#[derive(Clone, Copy)]
pub(crate) struct FullName<'a>(&'a str, &'a str);

impl fmt::Display for FullName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        [self.0, "/", self.1].into_iter().try_for_each(|part| f.write_str(part))
    }
}

/// The same one of the same snapshot.
impl PartialEq for Found<'_> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.provider, other.provider) && Arc::ptr_eq(self.offering, other.offering)
    }
}

/// What a request names: why, and in which order.
pub(crate) fn resolve<'a>(facts: &Facts<'a>) -> Result<(Reason, Vec<Wanted<'a>>), Refusal> {
    if facts.models.is_empty() {
        return one(facts, facts.model);
    }
    if facts.models.len() > MAX_INLINE_MODELS {
        let mut refusal = Refusal::new(
            RefusalKind::TooManyModels,
            format!("\"models\" names {} models; the most is {MAX_INLINE_MODELS}.", facts.models.len()),
        );
        refusal.param = Some("models");
        return Err(refusal);
    }
    let mut wanted = Vec::with_capacity(facts.models.len());
    for written in facts.models.iter().map(Cow::as_ref) {
        let (_, more) = one(facts, written)?;
        wanted.extend(more);
    }
    Ok((Reason::InlineModels, wanted))
}

/// Up to [`MAX_LISTED`] full names that `written` may have meant and that the key may use, in
/// alphabetical order.
pub(crate) fn similar(workspace: &Workspace, key: &ApiKey, written: &str) -> Vec<String> {
    let last = |name: &str| name.rsplit('/').next().map(str::to_ascii_lowercase);
    let wanted = last(written);
    let mut names: Vec<String> = enabled(workspace)
        .flat_map(|provider| provider.offerings().map(move |offering| Found { provider, offering }))
        .filter(|found| last(&found.offering.model) == wanted || *found.offering.base_model == *written)
        .filter(|found| allowed(workspace, key, found))
        .map(|found| found.full_name().to_string())
        .collect();
    names.sort_unstable();
    names.truncate(MAX_LISTED);
    names
}

/// Whether the key may use this offering by its own name.
pub(crate) fn allowed(workspace: &Workspace, key: &ApiKey, found: &Found<'_>) -> bool {
    let Some(rules) = &key.models else { return true };
    let name = found.full_name().to_string();
    rules.allow(&name) || (found.offering.private && rules.allow(&format!("{}@{name}", workspace.key)))
}

/// What an alias's target names.
pub(crate) fn target<'a>(workspace: &'a Workspace, target: &str) -> Option<Found<'a>> {
    Name::parse(target).ok().and_then(|name| find(workspace, name).ok())
}

fn one<'a>(facts: &Facts<'a>, written: &'a str) -> Result<(Reason, Vec<Wanted<'a>>), Refusal> {
    let workspace = facts.workspace;
    let name = parse(written)?;
    if let Name::Plain(plain) = name
        && let Some(alias) = workspace.aliases.get(plain)
    {
        let by_alias = facts.key.models.as_ref().is_none_or(|rules| rules.allow(&alias.name));
        // Targets were saved by an administrator: one that no longer reads is left out, not the
        // caller's mistake.
        let wanted = alias.targets.iter().map(|target| Wanted {
            written: target,
            by_alias,
            found: Name::parse(target).map_err(|_| DropReason::NotFound).and_then(|name| find(workspace, name)),
        });
        return Ok((Reason::Alias, wanted.collect()));
    }
    let wanted = Wanted { written, by_alias: false, found: find(workspace, name) };
    Ok((Reason::Model, vec![wanted]))
}

fn parse(written: &str) -> Result<Name<'_>, Refusal> {
    Name::parse(written).map_err(|bad: BadName| {
        let mut refusal = Refusal::new(RefusalKind::InvalidModelName, format!("The model name {bad}."));
        refusal.param = Some("model");
        refusal
    })
}

fn find<'a>(workspace: &'a Workspace, name: Name<'_>) -> Result<Found<'a>, DropReason> {
    match name {
        Name::Offering { provider, model } => offering(workspace, provider, model),
        Name::Private { workspace: key, provider, model } if *key == *workspace.key => {
            offering(workspace, provider, model).and_then(|found| match found.offering.private {
                true => Ok(found),
                false => Err(DropReason::NotFound),
            })
        }
        Name::Private { .. } => Err(DropReason::NotFound),
        Name::Plain(model) => only(workspace, model),
        Name::Router(_) => Err(DropReason::NoSuchRouter),
        Name::Policy(_) => Err(DropReason::NoSuchPolicy),
    }
}

fn offering<'a>(workspace: &'a Workspace, provider: &str, model: &str) -> Result<Found<'a>, DropReason> {
    let provider = workspace.providers.get(provider).ok_or(DropReason::NotFound)?;
    let offering = provider.offering(model).ok_or(DropReason::NotFound)?;
    Ok(Found { provider, offering })
}

/// The offering of this name, when exactly one enabled provider has it.
fn only<'a>(workspace: &'a Workspace, model: &str) -> Result<Found<'a>, DropReason> {
    let mut all =
        enabled(workspace).filter_map(|provider| provider.offering(model).map(|offering| Found { provider, offering }));
    match (all.next(), all.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(_)) => Err(DropReason::Ambiguous),
        (None, _) => Err(DropReason::NotFound),
    }
}

fn enabled(workspace: &Workspace) -> impl Iterator<Item = &Arc<Provider>> {
    workspace.providers.values().filter(|provider| !provider.disabled)
}
