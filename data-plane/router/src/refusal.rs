//! `Refusal`: we said no before any provider was called. One table gives every kind its code,
//! status and blame; rendering is ingress's business.

use std::fmt;

use crate::plan::Dropped;

/// A request that goes nowhere, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What it is about.
    pub kind: RefusalKind,
    /// For the caller; holds nothing secret.
    pub message: String,
    /// Field of the body that is to blame.
    pub param: Option<&'static str>,
    /// Names the caller may have meant and may use; at most [`MAX_LISTED`].
    pub did_you_mean: Vec<String>,
    /// What was considered and why it was left out.
    pub dropped: Vec<Dropped>,
    /// When it may be worth asking again, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

/// Most names listed in a refusal.
pub const MAX_LISTED: usize = 10;

impl Refusal {
    /// A refusal with nothing but a message.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            did_you_mean: Vec::new(),
            dropped: Vec::new(),
            retry_after_ms: None,
        }
    }

    /// No key, or one that no snapshot knows. The same words for all of these, so that an answer
    /// tells nothing about a key that was tried.
    pub fn invalid_api_key() -> Self {
        Self::new(RefusalKind::InvalidApiKey, "The API key is missing or not valid.")
    }

    /// Stable code of the error body.
    pub fn code(&self) -> &'static str {
        self.kind.code()
    }

    /// HTTP status.
    pub fn status(&self) -> u16 {
        self.kind.row().status
    }

    /// Whose fault it is, as error bodies say it.
    pub fn error_type(&self) -> &'static str {
        self.kind.row().error_type
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.message)
    }
}

impl std::error::Error for Refusal {}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $code:literal, $status:literal, $error_type:literal;)*) => {
        /// What a refusal is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum RefusalKind {
            $($(#[$doc])* $kind,)*
        }

        impl RefusalKind {
            /// All kinds, for documents and tests.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// Its row of the table: code, status, blame.
            pub fn row(self) -> Row {
                match self {
                    $(Self::$kind => Row { code: $code, status: $status, error_type: $error_type },)*
                }
            }

            /// Stable code of the error body.
            pub fn code(self) -> &'static str {
                self.row().code
            }
        }
    };
}

/// What a refusal looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Stable code.
    pub code: &'static str,
    /// HTTP status.
    pub status: u16,
    /// Whose fault.
    pub error_type: &'static str,
}

kinds! {
    /// No key, a malformed one, an unknown one.
    InvalidApiKey = "invalid_api_key", 401, "authentication_error";
    /// The key's time is over.
    KeyExpired = "key_expired", 401, "authentication_error";
    /// The key is switched off.
    KeyDisabled = "key_disabled", 401, "authentication_error";
    /// The key may not be used from this address.
    AddressNotAllowed = "address_not_allowed", 403, "permission_error";
    /// The workspace is switched off.
    WorkspaceDisabled = "workspace_disabled", 403, "permission_error";
    /// The key's project is switched off or gone.
    ProjectDisabled = "project_disabled", 403, "permission_error";
    /// The node has not heard from the control plane for longer than the workspace allows.
    ConfigTooOld = "config_too_old", 503, "overloaded_error";
    /// The key lacks the scope for this endpoint.
    ScopeMissing = "scope_missing", 403, "permission_error";
    /// `model` is not a name in any form.
    InvalidModelName = "invalid_model_name", 400, "invalid_request_error";
    /// The inline list is too long.
    TooManyModels = "too_many_models", 400, "invalid_request_error";
    /// No such model here, or more than one.
    ModelNotFound = "model_not_found", 404, "invalid_request_error";
    /// It exists; this key may not use it.
    ModelNotAllowed = "model_not_allowed", 403, "permission_error";
    /// No such router.
    RouterNotFound = "router_not_found", 404, "invalid_request_error";
    /// No such policy.
    PolicyNotFound = "policy_not_found", 404, "invalid_request_error";
    /// The prompt is longer than any of the named models can read.
    ContextLength = "context_length_exceeded", 400, "invalid_request_error";
    /// None of the named models can do what the request needs.
    NoCapableModel = "no_capable_model", 400, "invalid_request_error";
    /// Models that could do it are there; none can be reached now.
    NoHealthyProvider = "no_healthy_provider", 503, "overloaded_error";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_say_whose_fault_it_is() {
        let mut codes: Vec<&str> = RefusalKind::ALL.iter().map(|kind| kind.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), RefusalKind::ALL.len());
        for kind in RefusalKind::ALL {
            let expected = match kind.row().error_type {
                "authentication_error" => &[401][..],
                "permission_error" => &[403],
                "invalid_request_error" => &[400, 404],
                "overloaded_error" => &[503],
                other => panic!("{other} is no type of a refusal"),
            };
            assert!(expected.contains(&kind.row().status), "{kind:?}");
        }
    }
}
