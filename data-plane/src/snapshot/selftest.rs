//! The last check before a snapshot serves: use it as a request would. `Lookups` is built in; the
//! pipeline adds a test that routes requests.

use shared::proto::NackCode;
use shared::snapshot::{Rejection, SHARED_SCOPE, Snapshot, Workspace};

/// Workspaces tried when the shared scope changes; all would take too long at ten thousand.
const SAMPLE: usize = 64;

/// Tries a snapshot before it serves. Runs on the configuration thread; may panic, which refuses the
/// update like an error does.
pub trait SelfTest: Send + Sync {
    /// Checks `next`, which differs from what serves now in `scope` only.
    ///
    /// # Errors
    /// Why it must not serve. Never a secret.
    fn check(&self, next: &Snapshot, scope: &str) -> Result<(), Rejection>;
}

/// Resolves every name a request could use. It needs nothing but the snapshot.
#[derive(Debug, Default, Clone, Copy)]
pub struct Lookups;

impl SelfTest for Lookups {
    fn check(&self, next: &Snapshot, scope: &str) -> Result<(), Rejection> {
        if scope == SHARED_SCOPE {
            for (slug, vendor) in &next.shared.vendors {
                if **slug != *vendor.slug {
                    return Err(failed(scope, format!("vendor {slug} is found as {}", vendor.slug)));
                }
            }
            return next.workspaces().take(SAMPLE).try_for_each(|workspace| resolve(workspace));
        }
        let id = scope.parse().map_err(|e| failed(scope, format!("{e}")))?;
        let workspace = next.workspace(&id).ok_or_else(|| failed(scope, "is not found".into()))?;
        resolve(workspace)
    }
}

fn resolve(workspace: &Workspace) -> Result<(), Rejection> {
    let scope = workspace.id.to_string();
    for (slug, provider) in &workspace.providers {
        if **slug != *provider.slug {
            return Err(failed(&scope, format!("provider {slug} is found as {}", provider.slug)));
        }
        for offering in provider.offerings() {
            let found = provider.offering(&offering.model);
            if !found.is_some_and(|found| std::sync::Arc::ptr_eq(found, offering)) {
                return Err(failed(&scope, format!("{slug}/{} is listed but does not resolve", offering.model)));
            }
        }
    }
    for (name, alias) in &workspace.aliases {
        if **name != *alias.name || alias.targets.is_empty() {
            return Err(failed(&scope, format!("alias {name} leads nowhere")));
        }
    }
    Ok(())
}

fn failed(scope: &str, detail: String) -> Rejection {
    Rejection { code: NackCode::SelfTest, path: format!("scope/{scope}"), detail }
}
