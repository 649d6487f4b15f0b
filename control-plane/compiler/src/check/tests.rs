//! Cases as data: a document in JSON, and the `path: code` of every fault it must have.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

/// A small world: vendors `acme` (fixed address), `template`, `local` (no address, no credential
/// needed), `sandbox`; one provider per vendor; one project; a private model `tuned`.
struct World {
    vendors: BTreeMap<String, Vendor>,
    providers: BTreeMap<ProviderId, Provider>,
}

fn provider_id(number: u128) -> ProviderId {
    ProviderId::from_u128(number)
}

fn world() -> World {
    let vendor = |slug: &str, base_url: &str, credential_optional| {
        let vendor = Vendor {
            slug: slug.into(),
            display_name: slug.into(),
            dialect: "openai".into(),
            base_url: base_url.into(),
            auth_header: "authorization".into(),
            auth_prefix: "Bearer ".into(),
            endpoints: BTreeMap::new(),
            quirks: Vec::new(),
            credential_optional,
        };
        (slug.to_owned(), vendor)
    };
    let vendors = BTreeMap::from([
        vendor("acme", "https://api.acme.test/v1", false),
        vendor("template", "https://{resource}.acme.test/{part}", false),
        vendor("local", "", true),
        vendor("sandbox", "sandbox://builtin", true),
    ]);
    let providers = vendors.keys().zip(1..).map(|(slug, number)| {
        let doc = json!({ "slug": slug, "vendor": slug });
        (provider_id(number), serde_json::from_value(doc).expect("a provider"))
    });
    World { providers: providers.collect(), vendors }
}

impl References for World {
    fn vendor(&self, slug: &str) -> Option<&Vendor> {
        self.vendors.get(slug)
    }
    fn offers(&self, vendor: &str, model: &str) -> bool {
        vendor == "acme" && model == "known"
    }
    fn has_project(&self, id: &ProjectId) -> bool {
        *id == ProjectId::from_u128(1)
    }
    fn provider(&self, id: &ProviderId) -> Option<&Provider> {
        self.providers.get(id)
    }
    fn provider_named(&self, slug: &str) -> Option<ProviderId> {
        self.providers.iter().find(|(_, p)| p.slug == slug).map(|(id, _)| *id)
    }
    fn has_model(&self, provider: &ProviderId, name: &str) -> bool {
        *provider == provider_id(1) && name == "tuned"
    }
}

fn faults<T: Check + serde::de::DeserializeOwned>(doc: Value) -> Vec<String> {
    let doc: T = serde_json::from_value(doc.clone()).unwrap_or_else(|e| panic!("{doc}: {e}"));
    doc.check(&world()).into_iter().map(|d| format!("{}: {}", d.path, d.code)).collect()
}

fn check<T: Check + serde::de::DeserializeOwned>(cases: &[(Value, &[&str])]) {
    for (doc, expected) in cases {
        assert_eq!(faults::<T>(doc.clone()), *expected, "{doc}");
    }
}

#[test]
fn workspaces_and_projects() {
    check::<Workspace>(&[
        (json!({ "key": "acme" }), &[]),
        (json!({ "key": "a-1", "display_name": "Ácme <b>&" }), &[]),
        (json!({ "key": "1a" }), &["key: invalid_value"]),
        (json!({ "key": "" }), &["key: invalid_value"]),
        (json!({ "key": "A" }), &["key: invalid_value"]),
        (json!({ "key": "shared" }), &["key: invalid_value"]),
        (json!({ "key": "a".repeat(51) }), &["key: invalid_value"]),
        (json!({ "key": "x y", "display_name": "a\u{202e}b" }), &["key: invalid_value", "display_name: invalid_value"]),
        (json!({ "key": "a", "display_name": "z".repeat(201) }), &["display_name: invalid_value"]),
        (json!({ "key": "a", "display_name": "a\u{200b}" }), &["display_name: invalid_value"]),
    ]);
    check::<Project>(&[(json!({ "key": "p" }), &[]), (json!({ "key": "p\n" }), &["key: invalid_value"])]);
}

#[test]
fn providers() {
    let acme = |mut fields: Value| {
        fields["slug"] = json!("x");
        fields["vendor"] = json!("acme");
        fields
    };
    let url = |url: &str| acme(json!({ "base_url": url }));
    let bad: &[&str] = &["base_url: invalid_value"];
    check::<Provider>(&[
        (acme(json!({})), &[]),
        (json!({ "slug": "x", "vendor": "nobody" }), &["vendor: unknown_reference"]),
        (json!({ "slug": "router", "vendor": "acme" }), &["slug: invalid_value"]),
        (url("https://eu.acme.test:8443/v1"), &[]),
        (url("http://127.0.0.1:11434/v1"), &[]),
        (url("http://[::1]:8000"), &[]),
        (url("sandbox://builtin"), bad),
        (json!({ "slug": "s", "vendor": "sandbox" }), &[]),
        (url("ftp://x"), bad),
        (url("https://user:password@x"), bad),
        (url("https://x?q=1"), bad),
        (url("https://x#f"), bad),
        (url("https://{x}.test"), bad),
        (url("http://2130706433/"), bad),
        (url("http://0x7f.1/"), bad),
        (url("http://0177.0.0.1/"), bad),
        (url("https://exämple.test"), bad),
        (url(""), bad),
        (url(&format!("https://x/{}", "a".repeat(2000))), bad),
        (json!({ "slug": "x", "vendor": "local" }), &["base_url: required"]),
        (json!({ "slug": "x", "vendor": "template" }), &["parameters.resource: required", "parameters.part: required"]),
        (json!({ "slug": "x", "vendor": "template", "parameters": { "resource": "r", "part": "v1" } }), &[]),
        (
            json!({ "slug": "x", "vendor": "template", "parameters": { "resource": "evil.test/", "part": "v1", "z": "1" } }),
            &["parameters.resource: invalid_value", "parameters.z: invalid_value"],
        ),
        (acme(json!({ "timeouts": { "connect_ms": 0 } })), &["timeouts.connect_ms: invalid_value"]),
        (acme(json!({ "timeouts": { "total_ms": 86_400_001 } })), &["timeouts.total_ms: invalid_value"]),
        (acme(json!({ "models": ["a", "a", ""] })), &["models[2]: invalid_value", "models[1]: invalid_value"]),
    ]);
}

#[test]
fn credentials() {
    let doc = |provider: u128, fields: Value| {
        let mut doc = json!({ "provider_id": provider_id(provider), "name": "main", "secret_version": 1 });
        doc.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        doc
    };
    check::<Credential>(&[
        (doc(1, json!({})), &[]),
        (doc(99, json!({})), &["provider_id: unknown_reference"]),
        (doc(1, json!({ "secret_version": 0 })), &["secret: required"]),
        (doc(2, json!({ "secret_version": 0 })), &[]),
        (
            doc(1, json!({ "name": " ", "weight": 4_000_000_000_u32 })),
            &["name: invalid_value", "weight: invalid_value"],
        ),
        (doc(1, json!({ "environment": "" })), &["environment: invalid_value"]),
    ]);
}

#[test]
fn models_and_prices() {
    let doc = |fields: Value| {
        let mut doc = json!({ "provider_id": provider_id(1), "name": "mine", "private": true, "type": "chat" });
        doc.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        doc
    };
    let price = |input: &str| doc(json!({ "prices": [{ "input": input, "output": "1" }] }));
    check::<Model>(&[
        (doc(json!({})), &[]),
        (doc(json!({ "type": null })), &["type: required"]),
        (doc(json!({ "type": "video" })), &["type: invalid_value"]),
        (doc(json!({ "private": false })), &["name: unknown_reference"]),
        (doc(json!({ "private": false, "name": "known", "disabled": true })), &[]),
        (doc(json!({ "name": "a b" })), &["name: invalid_value"]),
        (doc(json!({ "capabilities": ["tools", "flying"] })), &["capabilities[1]: invalid_value"]),
        (doc(json!({ "context_tokens": 0 })), &["context_tokens: invalid_value"]),
        (doc(json!({ "base_url": "sandbox://builtin" })), &["base_url: invalid_value"]),
        (price("0.000000001"), &[]),
        (price("-1"), &["prices[0].input: invalid_value"]),
        (price("1e30"), &["prices[0].input: invalid_value"]),
        (price("0.0000000001"), &["prices[0].input: invalid_value"]),
        (price("99999999999999999999"), &["prices[0].input: invalid_value"]),
        (price(""), &["prices[0].input: invalid_value"]),
        (
            doc(json!({ "prices": [{ "input": "1", "output": "1" }, { "input": "2", "output": "1" }] })),
            &["prices[1]: invalid_value"],
        ),
    ]);
}

#[test]
fn aliases() {
    let doc = |name: &str, targets: Value| json!({ "name": name, "targets": targets });
    check::<Alias>(&[
        (doc("fast", json!(["acme/known", "acme/tuned"])), &[]),
        (doc("fast", json!([])), &["targets: required"]),
        (doc("a/b", json!(["acme/known"])), &["name: invalid_value"]),
        (doc("a@b", json!(["acme/known"])), &["name: invalid_value"]),
        (doc("auto", json!(["acme/known"])), &["name: invalid_value"]),
        (
            doc("x", json!(["known", "/x", "acme/"])),
            &["targets[0]: invalid_value", "targets[1]: invalid_value", "targets[2]: invalid_value"],
        ),
        (
            doc("x", json!(["nobody/known", "acme/none"])),
            &["targets[0]: unknown_reference", "targets[1]: unknown_reference"],
        ),
        (doc("x", json!(["acme/known", "acme/known"])), &["targets[1]: invalid_value"]),
    ]);
}

#[test]
fn api_keys() {
    let doc = |fields: Value| {
        let mut doc = json!({ "name": "k", "project_id": ProjectId::from_u128(1) });
        doc.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        doc
    };
    check::<ApiKey>(&[
        (doc(json!({})), &[]),
        (doc(json!({ "project_id": ProjectId::from_u128(2) })), &["project_id: unknown_reference"]),
        (doc(json!({ "scopes": [] })), &["scopes: required"]),
        (doc(json!({ "scopes": ["admin"] })), &["scopes[0]: invalid_value"]),
        (doc(json!({ "models": ["*", "openai/*", "a*b"] })), &["models[2]: invalid_value"]),
        (doc(json!({ "addresses": ["10.0.0.0/8", "10.0.0.0/33", "::1"] })), &["addresses[1]: invalid_value"]),
        (doc(json!({ "expires_at_ms": 0 })), &["expires_at_ms: invalid_value"]),
    ]);
}

#[test]
fn what_cannot_be_changed() {
    let old: Provider = serde_json::from_value(json!({ "slug": "a", "vendor": "acme" })).expect("a provider");
    let new = Provider { slug: "b".into(), vendor: "local".into(), disabled: true, ..old.clone() };
    let paths: Vec<_> = new.check_change(&old).into_iter().map(|d| (d.path, d.code)).collect();
    assert_eq!(paths, [("slug".to_owned(), "immutable"), ("vendor".to_owned(), "immutable")]);
}
