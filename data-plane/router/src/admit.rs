//! May this key ask at all? Pure checks of the key, its project and its workspace; which models it
//! may name is the plan's question. Rates and budgets will be asked here too.

use std::net::IpAddr;

use shared::snapshot::{ApiKey, Workspace};

use crate::facts::Now;
use crate::refusal::{Refusal, RefusalKind};

/// What a key must be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Send requests to models: scope "inference".
    Inference,
    /// List models: scope "models".
    ListModels,
}

/// Whether the key may be used for this, from there, now, when the control plane was last heard
/// `config_age_ms` ago. Cheap enough to ask before the body is read; [`crate::plan()`] asks again.
pub fn admit(
    key: &ApiKey,
    workspace: &Workspace,
    permission: Permission,
    peer: IpAddr,
    config_age_ms: u64,
    now: Now,
) -> Result<(), Refusal> {
    let refuse = |kind, message: &str| Err(Refusal::new(kind, message));
    if key.disabled {
        return refuse(RefusalKind::KeyDisabled, "The API key is disabled.");
    }
    if key.expires_at_ms != 0 && key.expires_at_ms <= now.wall_ms {
        return refuse(RefusalKind::KeyExpired, "The API key has expired.");
    }
    if key.addresses.as_ref().is_some_and(|allowed| !allowed.contain(peer)) {
        return refuse(RefusalKind::AddressNotAllowed, "The API key may not be used from this address.");
    }
    if workspace.disabled {
        return refuse(RefusalKind::WorkspaceDisabled, "The workspace is disabled.");
    }
    if workspace.max_config_age_ms != 0 && config_age_ms > workspace.max_config_age_ms {
        let message = "This node has been without its control plane for longer than the workspace allows.";
        return refuse(RefusalKind::ConfigTooOld, message);
    }
    // A project that is gone takes its keys along; one that still refers to it gets nothing.
    if workspace.projects.get(&key.project).is_none_or(|project| project.disabled) {
        return refuse(RefusalKind::ProjectDisabled, "The API key's project is disabled.");
    }
    let (granted, scope) = match permission {
        Permission::Inference => (key.inference, "inference"),
        Permission::ListModels => (key.list_models, "models"),
    };
    if !granted {
        return refuse(RefusalKind::ScopeMissing, &format!("The API key lacks the scope \"{scope}\"."));
    }
    Ok(())
}
