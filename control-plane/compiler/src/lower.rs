//! Documents of a scope -> resources of a snapshot. The object is the unit of blame: one that does
//! not compile is quarantined, its last good version stays in force, and nothing waits behind it.
//!
//! It does not read a database or a clock and does not open secrets: the caller brings documents,
//! opened secrets and, on request, earlier versions. What comes out always passes
//! [`shared::snapshot::Snapshot::apply`].

mod catalogue;
mod link;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use shared::proto;

use crate::check::Diagnostic;
use link::Linked;
use parse::{Kind, Parsed};

pub use catalogue::Catalogue;
pub use link::fill_template;

/// A credential's secret as the vault gave it.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Secret {
    /// The object has none.
    #[default]
    Absent,
    /// Its bytes.
    Opened(Vec<u8>),
    /// It exists and cannot be opened: another key, a damaged row.
    Unreadable,
}

/// Says whether there is one, never what it is.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "Absent",
            Self::Opened(_) => "Opened",
            Self::Unreadable => "Unreadable",
        })
    }
}

/// An earlier state of an object.
#[derive(Debug, Clone)]
pub struct Version {
    /// Revision of the scope that made it.
    pub revision: u64,
    /// JSON.
    pub doc: String,
    /// The secret that belonged to it.
    pub secret: Secret,
}

/// Gives the earlier versions of (kind, id), newest first; empty when there are none, or when they
/// are not at hand yet (see [`Compiled::quarantined`]).
pub type Earlier<'a> = dyn Fn(&str, &str) -> Vec<Version> + 'a;

/// All living documents of one scope, each read once: changing one of ten thousand keys reads one.
#[derive(Debug, Default)]
pub struct Documents {
    known: BTreeMap<(Kind, Box<str>), Document>,
    /// Of kinds that this program does not know: (kind, id) to revision.
    unknown: BTreeMap<(Box<str>, Box<str>), u64>,
}

#[derive(Debug)]
struct Document {
    revision: u64,
    parsed: Result<Parsed, Diagnostic>,
}

impl Documents {
    /// Adds or replaces an object. A document that cannot be read is kept as such.
    pub fn put(&mut self, kind: &str, id: &str, revision: u64, doc: &str, secret: &Secret) {
        match Kind::read(kind) {
            Some(kind) => {
                let document = Document { revision, parsed: parse::parse(kind, id, doc, secret) };
                self.known.insert((kind, id.into()), document);
            }
            None => _ = self.unknown.insert((kind.into(), id.into()), revision),
        }
    }

    /// Removes an object; nothing happens when it is not there.
    pub fn remove(&mut self, kind: &str, id: &str) {
        match Kind::read(kind) {
            Some(kind) => _ = self.known.remove(&(kind, id.into())),
            None => _ = self.unknown.remove(&(kind.into(), id.into())),
        }
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.known.len() + self.unknown.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&str, &Document)> {
        self.known
            .range((kind, Box::default())..)
            .take_while(move |((k, _), _)| *k == kind)
            .map(|((_, id), d)| (&**id, d))
    }

    fn holds(&self, kind: Kind, id: &str) -> bool {
        self.known.contains_key(&(kind, id.into()))
    }
}

/// An object whose newest version does not compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// "provider".
    pub kind: String,
    /// Its id.
    pub id: String,
    /// The version that does not compile.
    pub revision: u64,
    /// Stable: `invalid_json`, `unknown_reference`, `quarantined_reference`, `invalid_value`, …
    pub code: &'static str,
    /// Field: `prices[0].input`; empty = the whole document.
    pub path: String,
    /// For a person; never a secret.
    pub message: String,
    /// The earlier version in force instead; `None`: the object does not serve at all.
    pub serving_revision: Option<u64>,
}

/// Something that serves, but probably not as intended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// "alias".
    pub kind: String,
    /// Its id.
    pub id: String,
    /// For a person.
    pub message: String,
}

/// What a scope's documents come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compiled {
    /// In a fixed order, dependencies first. Empty when the workspace object itself does not compile
    /// and has no good version: then nothing may be published.
    pub resources: Vec<proto::Resource>,
    /// In order of kind and id. Those without `serving_revision` may find a good version when the
    /// caller loads their history and compiles again.
    pub quarantined: Vec<Quarantined>,
    /// In order of kind and id.
    pub warnings: Vec<Warning>,
}

/// Compiles one scope: a workspace id, or [`shared::snapshot::SHARED_SCOPE`]. Pure: the same
/// documents, versions and catalogue give the same bytes.
pub fn lower(scope: &str, documents: &Documents, earlier: &Earlier<'_>, catalogue: &Catalogue) -> Compiled {
    let mut linked = Linked::new(scope, documents, catalogue);
    let mut out = Compiled::default();
    for kind in Kind::ALL {
        let mut failed = Vec::new();
        let mut resources = BTreeMap::new();
        for (id, document) in documents.of_kind(kind) {
            let lowered = document.parsed.as_ref().map_err(Diagnostic::clone).and_then(|p| linked.admit(id, p));
            match lowered {
                Ok(resource) => _ = resources.insert(id, resource),
                Err(diagnostic) => failed.push((id, document.revision, diagnostic)),
            }
        }
        // Only now: an old version must not take a name from a new one.
        for (id, revision, diagnostic) in failed {
            let good = earlier(kind.name(), id).into_iter().filter(|v| v.revision < revision).find_map(|version| {
                let parsed = parse::parse(kind, id, &version.doc, &version.secret).ok()?;
                Some((version.revision, linked.admit(id, &parsed).ok()?))
            });
            let serving_revision = good.as_ref().map(|(revision, _)| *revision);
            if let Some((_, resource)) = good {
                resources.insert(id, resource);
            }
            out.quarantined.push(quarantined(kind.name(), id, revision, diagnostic, serving_revision));
        }
        out.resources.extend(resources.into_values());
        if kind == Kind::Workspace && out.resources.is_empty() && linked.needs_workspace() {
            return out;
        }
    }
    for ((kind, id), revision) in &documents.unknown {
        let message = format!("this program does not know the kind {kind:?}");
        let diagnostic = Diagnostic { code: "unknown_kind", path: String::new(), message };
        out.quarantined.push(quarantined(kind, id, *revision, diagnostic, None));
    }
    out.warnings = linked.warnings();
    out
}

fn quarantined(
    kind: &str,
    id: &str,
    revision: u64,
    diagnostic: Diagnostic,
    serving_revision: Option<u64>,
) -> Quarantined {
    let Diagnostic { code, path, message } = diagnostic;
    Quarantined { kind: kind.into(), id: id.into(), revision, code, path, message, serving_revision }
}
