//! Every way a REST call is refused: one table of stable codes, one problem body (RFC 9457).
//!
//! Handlers return an [`ApiError`]; `rest` renders it once, with the request's id. What is said to the
//! caller (`detail`, `errors`) and what only the log may know (`cause`) are different fields.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use compiler::check::Diagnostic;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $status:ident, $title:literal;)*) => {
        /// Stable codes; each has one HTTP status. Callers match on the code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// All codes, in the order of their statuses.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The text callers match on.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $code,)* }
            }

            /// Its HTTP status.
            pub fn status(self) -> StatusCode {
                match self { $(Code::$variant => StatusCode::$status,)* }
            }

            /// The same for every occurrence.
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON.
    InvalidJson = "invalid_json", BAD_REQUEST, "The body is not valid JSON";
    /// A query parameter is unknown, repeated or has no valid value.
    InvalidQuery = "invalid_query", BAD_REQUEST, "A query parameter is not valid";
    /// The cursor was not made by this API, or for another query.
    InvalidCursor = "invalid_cursor", BAD_REQUEST, "The cursor is not valid";
    /// A header cannot be understood.
    InvalidHeader = "invalid_header", BAD_REQUEST, "A header is not valid";
    /// No token, or not one of ours, or no longer.
    Unauthenticated = "unauthenticated", UNAUTHORIZED, "A valid admin token is needed";
    /// The token is valid and does not allow this.
    Forbidden = "forbidden", FORBIDDEN, "The token does not allow this";
    /// Missing, or in a workspace that the token does not reach: the answer is the same.
    NotFound = "not_found", NOT_FOUND, "There is no such thing";
    /// The path exists with other methods.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "The method is not allowed here";
    /// The Accept header excludes what this path answers with.
    NotAcceptable = "not_acceptable", NOT_ACCEPTABLE, "No acceptable form of the answer";
    /// The body did not arrive in time.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "The request took too long to arrive";
    /// A name that must be unique is taken.
    AlreadyExists = "already_exists", CONFLICT, "The name is taken";
    /// Others refer to it.
    InUse = "in_use", CONFLICT, "It is in use";
    /// It must not be changed or removed: the default project, the last operator token.
    Protected = "protected", CONFLICT, "It cannot be removed";
    /// The workspace would outgrow what its nodes take.
    LimitExceeded = "limit_exceeded", CONFLICT, "The workspace would become too large";
    /// The same Idempotency-Key is being worked on.
    IdempotencyInProgress = "idempotency_in_progress", CONFLICT, "The first request with this key is not done";
    /// Another writer was faster; the same request may be sent again.
    WriteConflict = "write_conflict", CONFLICT, "Another change came between";
    /// If-Match names another revision than the current one.
    RevisionMismatch = "revision_mismatch", PRECONDITION_FAILED, "The revision is not the current one";
    /// More than 1 MiB.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// The body is of another media type than JSON.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The media type is not supported";
    /// The document breaks a rule; `errors` names each field.
    InvalidDocument = "invalid_document", UNPROCESSABLE_ENTITY, "The document is not valid";
    /// The Idempotency-Key was used with another request.
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "The key belongs to another request";
    /// A fault of ours.
    Internal = "internal", INTERNAL_SERVER_ERROR, "Something went wrong on our side";
    /// The database cannot be reached or is too busy.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Not available for the moment";
}

/// A refused call.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// What kind of refusal.
    pub code: Code,
    /// For the caller: what is wrong here and what to do.
    pub detail: Cow<'static, str>,
    /// Wrong fields, if fields are wrong.
    pub faults: Vec<Fault>,
    /// For the log only.
    pub cause: Option<Arc<str>>,
}

/// One wrong field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Fault {
    /// Where: `prices[0].input`; empty = the whole document.
    #[schema(example = "prices[0].input")]
    pub path: String,
    /// Stable: `required`, `invalid_value`, `unknown_field`, `unknown_reference`, `immutable`,
    /// `read_only`.
    #[schema(example = "invalid_value")]
    pub code: Cow<'static, str>,
    /// For a person.
    pub message: String,
}

/// Body of every refusal, `application/problem+json` (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: `code` says what it is.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Stable code to match on.
    #[schema(example = "invalid_document")]
    pub code: &'static str,
    /// The same for every occurrence of the code.
    pub title: &'static str,
    /// The HTTP status again.
    #[schema(example = 422)]
    pub status: u16,
    /// What is wrong here.
    pub detail: String,
    /// Wrong fields, if fields are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// The answer's `x-request-id`.
    pub request_id: String,
}

impl ApiError {
    /// A refusal with what to tell the caller.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), faults: Vec::new(), cause: None }
    }

    /// Adds a wrong field.
    pub fn at(mut self, path: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        self.faults.push(Fault { path: path.into(), code: code.into(), message: message.into() });
        self
    }

    /// One answer for what is missing and for what the token may not know of.
    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "nothing with this name or id exists here")
    }

    /// A fault of ours; `cause` goes to the log and never to the caller.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self { cause: Some(cause.to_string().into()), ..Self::new(Code::Internal, "the request id leads to the log") }
    }

    /// A document with these faults.
    pub fn invalid(diagnostics: Vec<Diagnostic>) -> Self {
        let faults = diagnostics.into_iter().map(|d| Fault { path: d.path, code: d.code.into(), message: d.message });
        Self { faults: faults.collect(), ..Self::new(Code::InvalidDocument, "the fields in errors must be corrected") }
    }

    /// The body, for the request of this id.
    pub fn problem(&self, request_id: &str) -> Problem {
        Problem {
            kind: "about:blank",
            code: self.code.as_str(),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            detail: self.detail.clone().into_owned(),
            errors: self.faults.clone(),
            request_id: request_id.to_owned(),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)?;
        for fault in &self.faults {
            write!(f, "; {}: {}", fault.path, fault.message)?;
        }
        match &self.cause {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {}

impl From<sqlx::Error> for ApiError {
    fn from(e: sqlx::Error) -> Self {
        let (code, detail) = match &e {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) => {
                (Code::Unavailable, "the database cannot be reached; try again")
            }
            sqlx::Error::Database(d) if is_write_conflict(d.code().as_deref()) => {
                (Code::WriteConflict, "another change came between; send the request again")
            }
            _ => (Code::Internal, "the request id leads to the log"),
        };
        Self { cause: Some(e.to_string().into()), ..Self::new(code, detail) }
    }
}

/// PostgreSQL: serialisation failure, deadlock. SQLite: busy.
fn is_write_conflict(code: Option<&str>) -> bool {
    matches!(code, Some("40001" | "40P01" | "5" | "261" | "517"))
}

impl IntoResponse for ApiError {
    /// Status and extension only: `rest` writes the body, because only there the request id is known.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_problems_hide_causes() {
        let mut seen = std::collections::BTreeSet::new();
        assert!(Code::ALL.iter().all(|code| seen.insert(code.as_str())));
        let body = serde_json::to_string(&ApiError::internal("canary").problem("req_1")).expect("plain data");
        assert!(!body.contains("canary") && body.contains("\"request_id\":\"req_1\""));
    }
}
