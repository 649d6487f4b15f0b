//! Is a document valid by itself and beside the others? Every fault names the field.

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
