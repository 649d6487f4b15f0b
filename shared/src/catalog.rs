//! Typed view of `catalog/`: the vendors and models that every installation starts with. What is
//! wrong in those files is said with the row and field; nothing is guessed or skipped.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;

use crate::money::{self, Nanos};
use crate::proto;
use crate::snapshot::BaseUrl;

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
    /// `models.toml: openai/gpt-4o: prices[0].input`.
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

/// Names that an `endpoints` entry may have.
const ENDPOINTS: [&str; 2] = ["chat_completions", "embeddings"];
/// Types of models, each with the endpoint that serves it.
const TYPES: [(&str, &str); 2] = [("chat", "chat_completions"), ("embedding", "embeddings")];
/// Words that `capabilities` may hold.
const CAPABILITIES: [&str; 7] =
    ["tools", "vision", "audio_input", "audio_output", "pdf_input", "json_schema", "reasoning"];

/// Reads and checks both files: every offering names a vendor that has the endpoint for it, prices
/// are exact decimals in US dollars per million tokens, ids are unique, no key is unknown.
pub fn parse(vendors_toml: &str, models_toml: &str) -> Result<Catalog, CatalogError> {
    let vendor_file: VendorFile = read("vendors.toml", vendors_toml)?;
    let model_file: ModelFile = read("models.toml", models_toml)?;
    let mut vendors: Vec<VendorRow> = Vec::with_capacity(vendor_file.vendor.len());
    for (index, row) in vendor_file.vendor.into_iter().enumerate() {
        let at = At::row("vendors.toml", &row, "vendor", index, &["slug"]);
        let row = vendor(at.decode(row)?, &at)?;
        if vendors.iter().any(|other| other.vendor.slug == row.vendor.slug) {
            return Err(at.wrong("slug", "another vendor has the same"));
        }
        if let Some(name) = row.env_vars.iter().find(|name| vendors.iter().any(|other| other.env_vars.contains(name))) {
            return Err(at.wrong("env_vars", format!("{name} belongs to another vendor")));
        }
        vendors.push(row);
    }
    let mut ids = HashSet::new();
    let mut offerings = Vec::with_capacity(model_file.model.len());
    for (index, row) in model_file.model.into_iter().enumerate() {
        let at = At::row("models.toml", &row, "model", index, &["vendor", "model"]);
        let offering = offering(at.decode(row)?, &vendors, &at)?;
        if !ids.insert((offering.vendor.clone(), offering.model.clone())) {
            return Err(at.wrong("model", "stands in the file twice"));
        }
        offerings.push(offering);
    }
    Ok(Catalog { version: model_file.version, vendors, offerings })
}

/// The catalogue this program was built with.
pub fn builtin() -> Result<Catalog, CatalogError> {
    parse(include_str!("../catalog/vendors.toml"), include_str!("../catalog/models.toml"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VendorFile {
    vendor: Vec<toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    version: u64,
    model: Vec<toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VendorToml {
    slug: String,
    display_name: String,
    dialect: Option<String>,
    base_url: String,
    header: Option<String>,
    prefix: Option<String>,
    endpoints: Option<toml::Table>,
    #[serde(default)]
    quirks: Vec<String>,
    #[serde(default)]
    credential_optional: bool,
    #[serde(default)]
    env_vars: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelToml {
    vendor: String,
    model: String,
    base_model: String,
    #[serde(rename = "type")]
    type_: String,
    context_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    #[serde(default)]
    capabilities: Vec<String>,
    deprecated: Option<String>,
    prices: Vec<toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceToml {
    effective_from: Option<String>,
    #[serde(default)]
    above_input_tokens: u64,
    #[serde(default)]
    service_tier: String,
    input: String,
    cache_read: Option<String>,
    cache_write_5m: Option<String>,
    cache_write_1h: Option<String>,
    output: Option<String>,
    reasoning: Option<String>,
    audio_input: Option<String>,
    audio_output: Option<String>,
}

/// A row of a file: makes errors.
struct At {
    path: String,
}

impl At {
    /// Named by the values of `keys`, or by its place when it has none.
    fn row(file: &str, row: &toml::Value, array: &str, index: usize, keys: &[&str]) -> Self {
        let names: Option<Vec<&str>> = keys.iter().map(|key| row.get(key)?.as_str()).collect();
        let name = names.map_or_else(|| format!("{array}[{index}]"), |names| names.join("/"));
        Self { path: format!("{file}: {name}") }
    }

    fn field(&self, field: impl fmt::Display) -> Self {
        Self { path: format!("{}: {field}", self.path) }
    }

    fn wrong(&self, field: &str, message: impl fmt::Display) -> CatalogError {
        CatalogError { path: self.field(field).path, message: message.to_string() }
    }

    fn decode<T: for<'de> Deserialize<'de>>(&self, value: toml::Value) -> Result<T, CatalogError> {
        T::deserialize(value)
            .map_err(|e| CatalogError { path: self.path.clone(), message: e.to_string().trim().into() })
    }
}

fn read<T: for<'de> Deserialize<'de>>(file: &str, text: &str) -> Result<T, CatalogError> {
    toml::from_str(text).map_err(|e| CatalogError { path: file.into(), message: e.to_string().trim().into() })
}

/// A lower-case name that can stand in a URL.
fn is_slug(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) && !text.starts_with('-') && !text.ends_with('-')
}

fn vendor(row: VendorToml, at: &At) -> Result<VendorRow, CatalogError> {
    if !is_slug(&row.slug) {
        return Err(at.wrong("slug", "must be lower-case letters, digits and inner hyphens"));
    }
    if row.display_name.trim().is_empty() {
        return Err(at.wrong("display_name", "must not be empty"));
    }
    let dialect = row.dialect.unwrap_or_else(|| "openai".into());
    if dialect != "openai" {
        return Err(at.wrong("dialect", format!("{dialect:?} is not spoken")));
    }
    if row.base_url.ends_with('/') {
        return Err(at.wrong("base_url", "must not end in a slash"));
    }
    if !row.base_url.is_empty() {
        // A placeholder stands for a part of a host name.
        BaseUrl::parse(&row.base_url.replace(['{', '}'], "")).map_err(|e| at.wrong("base_url", e))?;
    }
    let header = row.header.unwrap_or_else(|| "authorization".into());
    if header.parse::<http::HeaderName>().is_err() || header != header.to_ascii_lowercase() {
        return Err(at.wrong("header", "must be a header name in lower case"));
    }
    let endpoints = match row.endpoints {
        None => [("chat_completions", "/chat/completions"), ("embeddings", "/embeddings")]
            .map(|(endpoint, path)| proto::EndpointPath { endpoint: endpoint.into(), path: path.into() })
            .into(),
        Some(table) => endpoints(table, at)?,
    };
    if let Some(quirk) = row.quirks.iter().find(|q| !is_slug(&q.replace('_', "-"))) {
        return Err(at.wrong("quirks", format!("{quirk:?} is no name of a quirk")));
    }
    if let Some(name) = row.env_vars.iter().find(|name| !is_variable(name)) {
        return Err(at.wrong("env_vars", format!("{name:?} is no name of a variable")));
    }
    let vendor = proto::Vendor {
        slug: row.slug,
        display_name: row.display_name,
        dialect,
        base_url: row.base_url,
        auth: Some(proto::Auth { header, prefix: row.prefix.unwrap_or_else(|| "Bearer ".into()) }),
        endpoints,
        quirks: row.quirks,
        credential_optional: row.credential_optional,
    };
    Ok(VendorRow { vendor, env_vars: row.env_vars })
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn endpoints(table: toml::Table, at: &At) -> Result<Vec<proto::EndpointPath>, CatalogError> {
    let mut endpoints = Vec::with_capacity(table.len());
    for (endpoint, path) in table {
        let field = format!("endpoints.{endpoint}");
        if !ENDPOINTS.contains(&endpoint.as_str()) {
            return Err(at.wrong(&field, format!("must be one of {}", ENDPOINTS.join(", "))));
        }
        match path.as_str() {
            Some(path) if path.starts_with('/') && !path.ends_with('/') => {
                endpoints.push(proto::EndpointPath { endpoint, path: path.into() });
            }
            Some(_) | None => return Err(at.wrong(&field, "must be a path that begins with a slash")),
        }
    }
    if endpoints.is_empty() {
        return Err(at.wrong("endpoints", "must name at least one"));
    }
    Ok(endpoints)
}

fn offering(row: ModelToml, vendors: &[VendorRow], at: &At) -> Result<proto::CatalogOffering, CatalogError> {
    let known = vendors.iter().find(|v| v.vendor.slug == row.vendor);
    let vendor = known.ok_or_else(|| at.wrong("vendor", format!("{:?} is not in vendors.toml", row.vendor)))?;
    let is_name =
        |name: &str| !name.is_empty() && name.len() <= 256 && !name.contains(|c: char| c.is_control() || c == ' ');
    if !is_name(&row.model) {
        return Err(at.wrong("model", "must be 1 to 256 bytes without spaces"));
    }
    if !is_name(&row.base_model) || !row.base_model.contains('/') {
        return Err(at.wrong("base_model", "must have the form <maker>/<model>"));
    }
    let Some((_, endpoint)) = TYPES.iter().find(|(name, _)| *name == row.type_) else {
        return Err(at.wrong("type", format!("{:?} is neither \"chat\" nor \"embedding\"", row.type_)));
    };
    if !vendor.vendor.endpoints.iter().any(|e| e.endpoint == *endpoint) {
        return Err(at.wrong("type", format!("{} does not serve {endpoint}", row.vendor)));
    }
    if let Some(word) = row.capabilities.iter().find(|word| !CAPABILITIES.contains(&word.as_str())) {
        return Err(at.wrong("capabilities", format!("{word:?} is not one of {}", CAPABILITIES.join(", "))));
    }
    for (field, tokens) in [("context_tokens", row.context_tokens), ("max_output_tokens", row.max_output_tokens)] {
        if tokens == Some(0) {
            return Err(at.wrong(field, "must be left out when it is not known"));
        }
    }
    let deprecated = row.deprecated.map(|text| day(&text).ok_or_else(|| at.wrong("deprecated", NO_DAY))).transpose()?;
    let facts = proto::ModelFacts {
        prices: prices(row.prices, &row.type_, at)?,
        r#type: row.type_,
        context_tokens: row.context_tokens.unwrap_or(0),
        max_output_tokens: row.max_output_tokens.unwrap_or(0),
        capabilities: row.capabilities,
        deprecated_at_ms: deprecated.unwrap_or(0),
    };
    Ok(proto::CatalogOffering { vendor: row.vendor, model: row.model, base_model: row.base_model, facts: Some(facts) })
}

fn prices(rows: Vec<toml::Value>, type_: &str, at: &At) -> Result<Vec<proto::Price>, CatalogError> {
    let mut prices: Vec<proto::Price> = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        let at = at.field(format_args!("prices[{index}]"));
        let price = price(at.decode(row)?, type_, &at)?;
        let condition = |p: &proto::Price| (p.effective_from_ms, p.above_input_tokens, p.service_tier.clone());
        if prices.iter().any(|other| condition(other) == condition(&price)) {
            return Err(CatalogError { path: at.path, message: "another price has the same conditions".into() });
        }
        prices.push(price);
    }
    // Otherwise some requests would be unpriced by an oversight.
    if !prices.iter().any(|p| p.effective_from_ms == 0 && p.above_input_tokens == 0 && p.service_tier.is_empty()) {
        return Err(at.wrong("prices", "must hold one without conditions"));
    }
    Ok(prices)
}

fn price(row: PriceToml, type_: &str, at: &At) -> Result<proto::Price, CatalogError> {
    let amount = |field: &str, text: &str| match text.parse::<Nanos>() {
        Ok(Nanos(nanos)) if nanos >= 0 => Ok(nanos),
        Ok(_) => Err(CatalogError { path: format!("{}.{field}", at.path), message: "must not be negative".into() }),
        Err(e) => Err(CatalogError { path: format!("{}.{field}", at.path), message: e.to_string() }),
    };
    let or = |field: &str, text: &Option<String>, default: i64| match text {
        Some(text) => amount(field, text),
        None => Ok(default),
    };
    let input = amount("input", &row.input)?;
    let output = match (&row.output, type_) {
        (Some(text), _) => amount("output", text)?,
        (None, "embedding") => 0,
        (None, _) => return Err(CatalogError { path: format!("{}.output", at.path), message: "must be given".into() }),
    };
    let cache_write_5m = or("cache_write_5m", &row.cache_write_5m, input)?;
    let from = row.effective_from.map(|text| {
        day(&text).ok_or_else(|| CatalogError { path: format!("{}.effective_from", at.path), message: NO_DAY.into() })
    });
    let mut price = proto::Price {
        id: String::new(),
        effective_from_ms: from.transpose()?.unwrap_or(0),
        above_input_tokens: row.above_input_tokens,
        service_tier: row.service_tier,
        input,
        cache_read: or("cache_read", &row.cache_read, input)?,
        cache_write_5m,
        cache_write_1h: or("cache_write_1h", &row.cache_write_1h, cache_write_5m)?,
        output,
        reasoning: or("reasoning", &row.reasoning, output)?,
        audio_input: or("audio_input", &row.audio_input, input)?,
        audio_output: or("audio_output", &row.audio_output, output)?,
    };
    price.id = money::price_id(&price);
    Ok(price)
}

const NO_DAY: &str = "must be a day such as \"2026-12-31\"";

/// Milliseconds since 1970 at the beginning (UTC) of `2026-12-31`.
fn day(text: &str) -> Option<i64> {
    let mut parts = text.split('-').map(|part| part.parse::<i64>().ok().filter(|n| *n > 0));
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let form = text.len() == 10 && parts.next().is_none() && (1970..=9999).contains(&year);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month - 1).ok()?;
    if !form || day > *lengths.get(before)? {
        return None;
    }
    let past = year - 1;
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    let days = (year - 1970) * 365 + leaps(past) - leaps(1969) + lengths.iter().take(before).sum::<i64>() + day - 1;
    Some(days * 86_400_000)
}

#[cfg(test)]
mod tests;
