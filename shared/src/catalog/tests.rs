//! The built-in files, and every way in which such a file can be wrong.

use super::*;
use crate::snapshot::{Change, SHARED_SCOPE, Scope, ScopeDelta, Snapshot};

const VENDOR: &str = "[[vendor]]\nslug = \"acme\"\ndisplay_name = \"Acme\"\nbase_url = \"https://api.acme.test/v1\"\n";
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
        let found = catalog.offerings.iter().find(|o| o.vendor == "sandbox" && o.model == model);
        let price = found.and_then(|o| o.facts.as_ref()?.prices.first());
        assert!(price.is_some_and(|p| p.input > 0), "{model}: a first request must show up in the ledger");
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
