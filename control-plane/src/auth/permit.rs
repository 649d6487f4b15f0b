//! One table: which role may do what. Where it may is the token's reach, checked beside it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs the installation: everything, everywhere.
    Operator,
    /// Runs one workspace.
    WorkspaceAdmin,
    /// Looks at one workspace.
    WorkspaceViewer,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read the configuration of a workspace, and what all share.
    ReadWorkspace,
    /// Change the configuration of a workspace.
    ChangeWorkspace,
    /// Read what a workspace used.
    ReadUsage,
    /// Read who changed what.
    ReadAudit,
    /// Make and remove workspaces.
    ManageWorkspaces,
    /// Read, make and remove admin tokens within one's own reach.
    ManageAdminTokens,
    /// See nodes, their state, and when a change serves.
    ReadFleet,
    /// See when a change of a workspace serves.
    ReadChange,
    /// Let nodes join and leave, confirm guarded changes.
    ManageFleet,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 9] = [
        Action::ReadWorkspace,
        Action::ChangeWorkspace,
        Action::ReadUsage,
        Action::ReadAudit,
        Action::ManageWorkspaces,
        Action::ManageAdminTokens,
        Action::ReadFleet,
        Action::ReadChange,
        Action::ManageFleet,
    ];
}

impl Role {
    /// All of them, the strongest first.
    pub const ALL: [Role; 3] = [Role::Operator, Role::WorkspaceAdmin, Role::WorkspaceViewer];

    /// As REST and the database write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::WorkspaceAdmin => "workspace_admin",
            Self::WorkspaceViewer => "workspace_viewer",
        }
    }

    /// The role of this text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// Whether tokens of this role are for one workspace each.
    pub fn is_scoped(self) -> bool {
        match self {
            Self::Operator => false,
            Self::WorkspaceAdmin | Self::WorkspaceViewer => true,
        }
    }
}

/// The table.
pub fn permits(role: Role, action: Action) -> bool {
    use Action::*;
    match role {
        Role::Operator => true,
        Role::WorkspaceAdmin => match action {
            ReadWorkspace | ChangeWorkspace | ReadUsage | ReadAudit | ManageAdminTokens | ReadChange => true,
            ManageWorkspaces | ReadFleet | ManageFleet => false,
        },
        Role::WorkspaceViewer => match action {
            ReadWorkspace | ReadUsage | ReadChange => true,
            ChangeWorkspace | ReadAudit | ManageAdminTokens | ManageWorkspaces | ReadFleet | ManageFleet => false,
        },
    }
}

/// Whether a holder of `grantor` may hand out `granted`: nobody gives more than they have.
pub fn may_grant(grantor: Role, granted: Role) -> bool {
    permits(grantor, Action::ManageAdminTokens)
        && Action::ALL.into_iter().all(|action| !permits(granted, action) || permits(grantor, action))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_grants_more_than_they_have() {
        let granted: Vec<_> = Role::ALL
            .into_iter()
            .flat_map(|a| Role::ALL.into_iter().filter(move |b| may_grant(a, *b)).map(move |b| (a, b)))
            .collect();
        use Role::*;
        let expected = [
            (Operator, Operator),
            (Operator, WorkspaceAdmin),
            (Operator, WorkspaceViewer),
            (WorkspaceAdmin, WorkspaceAdmin),
            (WorkspaceAdmin, WorkspaceViewer),
        ];
        assert_eq!(granted, expected);
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
    }
}
