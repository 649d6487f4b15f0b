//! Typed view of `catalog/`: the vendors and models that every installation starts with.

use std::fmt;

use crate::proto;

/// The catalogue as the control plane publishes it in the shared scope.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalog {
    /// Grows with every release of the files; a newer one replaces an older one in the database.
    pub version: u64,
    /// Rows of `vendors.toml`.
    pub vendors: Vec<VendorRow>,
    /// Rows of `models.toml`, prices with ids.
    pub offerings: Vec<proto::CatalogOffering>,
}

/// A vendor, and what only the control plane needs of it.
#[derive(Debug, Clone, PartialEq)]
pub struct VendorRow {
    /// What nodes see.
    pub vendor: proto::Vendor,
    /// Environment variables that may hold a key at first start, in order of preference.
    pub env_vars: Vec<String>,
}

/// What is wrong with a catalogue file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogError {
    /// "models.toml: openai/gpt-4o: prices[0].input".
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl std::error::Error for CatalogError {}

/// Reads and checks both files: every offering names a vendor, prices are exact decimals in US
/// dollars per million tokens, ids are unique.
pub fn parse(_vendors_toml: &str, _models_toml: &str) -> Result<Catalog, CatalogError> {
    Err(CatalogError { path: String::new(), message: "placeholder".into() })
}

/// The catalogue this program was built with.
pub fn builtin() -> Result<Catalog, CatalogError> {
    parse(include_str!("../catalog/vendors.toml"), include_str!("../catalog/models.toml"))
}
