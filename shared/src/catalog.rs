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
mod tests {
    use super::*;
    use crate::snapshot::{Change, SHARED_SCOPE, Scope, ScopeDelta, Snapshot};

    const VENDOR: &str =
        "[[vendor]]\nslug = \"acme\"\ndisplay_name = \"Acme\"\nbase_url = \"https://api.acme.test/v1\"\n";
    const MODEL: &str =
        "version = 1\n[[model]]\nvendor = \"acme\"\nmodel = \"m\"\nbase_model = \"acme/m\"\ntype = \"chat\"\n";
    const PRICES: &str = "prices = [{ input = \"1\", output = \"2\" }]\n";

    #[test]
    fn the_builtin_files_parse_and_a_node_accepts_them() {
        let catalog = builtin().expect("the files are right");
        assert!(catalog.version > 0);
        for slug in [
            "openai",
            "azure",
            "mistral",
            "deepseek",
            "xai",
            "groq",
            "together",
            "fireworks",
            "openrouter",
            "ollama",
            "vllm",
            "sandbox",
        ] {
            assert!(catalog.vendors.iter().any(|v| v.vendor.slug == slug), "{slug}");
        }
        for model in ["echo", "tools", "embed"] {
            assert!(catalog.offerings.iter().any(|o| o.vendor == "sandbox" && o.model == model), "{model}");
        }
        let mut upserts = Vec::new();
        for row in &catalog.vendors {
            upserts.push(resource("vendor", row.vendor.slug.clone(), &row.vendor));
        }
        for offering in &catalog.offerings {
            upserts.push(resource("catalog_offering", format!("{}/{}", offering.vendor, offering.model), offering));
        }
        let delta = ScopeDelta { upserts, removals: Vec::new() };
        let previous = Scope::default();
        let mut next = Scope::default();
        next.apply(&delta, 1);
        let change = Change { scope: SHARED_SCOPE, next: &next, previous: &previous, delta: &delta };
        let snapshot = Snapshot::default().apply(&change).expect("every row is valid");
        assert_eq!(snapshot.shared.vendors.len(), catalog.vendors.len());
        let offered: usize = snapshot.shared.vendors.values().map(|v| v.offerings.len()).sum();
        assert_eq!(offered, catalog.offerings.len());
    }

    fn resource(kind: &str, id: String, message: &impl prost::Message) -> proto::Resource {
        proto::Resource { kind: kind.into(), id, body: message.encode_to_vec().into() }
    }

    #[test]
    fn what_a_row_leaves_out_is_filled_in() {
        let prices = "prices = [{ input = \"1.5\", output = \"2\" }, { above_input_tokens = 10, input = \"3\", cache_read = \"0.000000001\", output = \"4\", reasoning = \"5\" }]\ndeprecated = \"2024-03-01\"\n";
        let catalog = parse(VENDOR, &format!("{MODEL}{prices}")).expect("right");
        let vendor = &catalog.vendors[0].vendor;
        assert_eq!(vendor.auth, Some(proto::Auth { header: "authorization".into(), prefix: "Bearer ".into() }));
        assert_eq!(vendor.endpoints.len(), 2);
        let facts = catalog.offerings[0].facts.as_ref().expect("always set");
        assert_eq!(facts.deprecated_at_ms, 1_709_251_200_000);
        let [first, second] = facts.prices.as_slice() else { panic!("two rows") };
        assert_eq!(
            (first.cache_read, first.cache_write_1h, first.audio_input),
            (1_500_000_000, 1_500_000_000, 1_500_000_000)
        );
        assert_eq!((first.reasoning, first.audio_output), (2_000_000_000, 2_000_000_000));
        assert_eq!((second.above_input_tokens, second.cache_read, second.reasoning), (10, 1, 5_000_000_000));
        assert_eq!(first.id, money::price_id(first));
        assert_ne!(first.id, second.id);
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let vendor = |more: &str| format!("{VENDOR}{more}\n");
        let priced = |prices: &str| format!("{MODEL}prices = [{prices}]\n");
        let model = |more: &str| format!("{MODEL}{PRICES}{more}\n");
        let fine = format!("{MODEL}{PRICES}");
        let v = |more: &str| (vendor(more), fine.clone());
        let m = |text: String| (VENDOR.to_owned(), text);
        let cases = [
            (v("colour = 1"), "vendors.toml: acme", "unknown field `colour`"),
            (v("dialect = \"klingon\""), "vendors.toml: acme: dialect", "not spoken"),
            (v("header = \"X-Key\""), "vendors.toml: acme: header", "lower case"),
            (v("endpoints = { images = \"/x\" }"), "vendors.toml: acme: endpoints.images", "one of"),
            (v("endpoints = { embeddings = \"x\" }"), "vendors.toml: acme: endpoints.embeddings", "slash"),
            (v("endpoints = {}"), "vendors.toml: acme: endpoints", "at least one"),
            (v("endpoints = { embeddings = \"/e\" }"), "models.toml: acme/m: type", "does not serve"),
            (v("quirks = [\"No Way\"]"), "vendors.toml: acme: quirks", "no name"),
            (v("env_vars = [\"a b\"]"), "vendors.toml: acme: env_vars", "variable"),
            ((VENDOR.repeat(2), fine.clone()), "vendors.toml: acme: slug", "same"),
            ((VENDOR.replace("acme\"", "Acme\""), fine.clone()), "vendors.toml: Acme: slug", "lower-case"),
            ((VENDOR.replace("https://", "ftp://"), fine.clone()), "vendors.toml: acme: base_url", "https://"),
            ((VENDOR.replace("/v1", "/"), fine.clone()), "vendors.toml: acme: base_url", "slash"),
            (("[[vendor]]\n".into(), fine.clone()), "vendors.toml: vendor[0]", "missing field"),
            (("vendor = 1".into(), fine.clone()), "vendors.toml", "invalid type"),
            (("[[".into(), fine.clone()), "vendors.toml", "TOML parse error"),
            (m(fine.replace("\"acme\"", "\"nobody\"")), "models.toml: nobody/m: vendor", "not in vendors.toml"),
            (m(format!("{fine}{}", fine.replace("version = 1\n", ""))), "models.toml: acme/m: model", "twice"),
            (m(fine.replace("version = 1\n", "")), "models.toml", "missing field `version`"),
            (m(fine.replace("\"chat\"", "\"song\"")), "models.toml: acme/m: type", "neither"),
            (m(fine.replace("acme/m", "m")), "models.toml: acme/m: base_model", "form"),
            (m(model("capabilities = [\"flight\"]")), "models.toml: acme/m: capabilities", "flight"),
            (m(model("context_tokens = 0")), "models.toml: acme/m: context_tokens", "left out"),
            (m(model("context_tokens = -1")), "models.toml: acme/m", "invalid value"),
            (m(model("deprecated = \"soon\"")), "models.toml: acme/m: deprecated", "2026-12-31"),
            (m(model("deprecated = \"2026-02-29\"")), "models.toml: acme/m: deprecated", "2026-12-31"),
            (m(MODEL.into()), "models.toml: acme/m", "missing field `prices`"),
            (m(priced("")), "models.toml: acme/m: prices", "without conditions"),
            (m(priced("{ input = \"1\" }")), "models.toml: acme/m: prices[0].output", "given"),
            (m(priced("{ input = \"1,5\", output = \"1\" }")), "models.toml: acme/m: prices[0].input", "decimal"),
            (m(priced("{ input = 1.5, output = \"1\" }")), "models.toml: acme/m: prices[0]", "invalid type"),
            (m(priced("{ input = \"1\", output = \"-1\" }")), "models.toml: acme/m: prices[0].output", "negative"),
            (
                m(priced("{ input = \"0.0000000001\", output = \"1\" }")),
                "models.toml: acme/m: prices[0].input",
                "nine decimals",
            ),
            (
                m(priced("{ input = \"1\", output = \"1\", tip = \"1\" }")),
                "models.toml: acme/m: prices[0]",
                "unknown field `tip`",
            ),
            (
                m(priced("{ input = \"1\", output = \"1\", effective_from = \"x\" }")),
                "models.toml: acme/m: prices[0].effective_from",
                "day",
            ),
            (
                m(priced("{ input = \"1\", output = \"1\" }, { input = \"2\", output = \"1\" }")),
                "models.toml: acme/m: prices[1]",
                "same conditions",
            ),
        ];
        for ((vendors, models), path, message) in cases {
            let error = parse(&vendors, &models).expect_err(path);
            assert_eq!(error.path, path, "{error}");
            assert!(error.message.contains(message), "{error}");
        }
    }
}
