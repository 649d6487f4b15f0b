//! `cargo xtask explain`: the router's own account of one decision, from files, by the functions that
//! compile, read and decide in the programs. Nothing runs and nothing is asked.
//!
//! The snapshot is a JSON object: kind to objects as REST shows them (`workspace`, `project`,
//! `provider`, `credential`, `model`, `alias`, `api_key`), over the built-in catalogue. The request is
//! the body of a chat completion, or of an embedding when it has `input`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use compiler::lower::{Catalogue, Documents, Secret, lower};
use prost::Message;
use providers::{Dialect, Endpoint};
use router::{Facts, Fleet, Now};
use serde_json::Value;
use shared::proto;
use shared::snapshot::{ApiKey, Change, SHARED_SCOPE, Scope, ScopeDelta, Snapshot};

/// What REST adds beside a document.
const BESIDE: [&str; 7] = ["id", "revision", "created_at", "updated_at", "change_id", "status", "key"];
/// A node's default for a whole request.
const TOTAL_MS: u64 = 600_000;

/// Prints the explanation as JSON.
pub fn run(snapshot: &Path, request: &Path) -> Result<()> {
    let objects = read(snapshot)?;
    let objects: BTreeMap<String, Vec<Value>> =
        serde_json::from_slice(&objects).context("the snapshot is not an object of lists")?;
    let workspace = objects.get("workspace").and_then(|w| w.first()).context("no workspace in the snapshot")?;
    let id = workspace["id"].as_str().context("the workspace has no id")?.to_owned();

    let shared = shared_scope()?;
    let snapshot = apply(&Snapshot::default(), SHARED_SCOPE, &shared)?;
    let mut documents = Documents::default();
    for (kind, objects) in &objects {
        for object in objects {
            put(&mut documents, kind, object)?;
        }
    }
    let compiled = lower(&id, &documents, &|_, _| Vec::new(), &Catalogue::of(&shared));
    for quarantined in &compiled.quarantined {
        let place = format!("{}/{}/{}", quarantined.kind, quarantined.id, quarantined.path);
        eprintln!("left out: {place}: {}", quarantined.message);
    }
    let snapshot = apply(&snapshot, &id, &scope(compiled.resources, 1))?;
    let id = id.parse().map_err(|e| anyhow::anyhow!("{e}"))?;
    let workspace = snapshot.workspace(&id).context("the workspace does not compile")?;

    let body = read(request)?;
    let value: Value = serde_json::from_slice(&body).context("the request is not JSON")?;
    let embeddings = value.get("input").is_some();
    let (wire, endpoint) = match embeddings {
        true => (Endpoint::Embeddings, router::Endpoint::Embeddings),
        false => (Endpoint::ChatCompletions, router::Endpoint::ChatCompletions),
    };
    let head = Dialect::OpenAi.read_request(wire, &body).map_err(|e| anyhow::anyhow!("{e}"))?;
    let facts = Facts {
        key: &ApiKey::unlimited(workspace),
        workspace,
        endpoint,
        model: head.model.as_deref().unwrap_or_default(),
        models: &head.models,
        stream: head.stream,
        tools: head.needs.tools,
        vision: head.needs.vision,
        audio_input: head.needs.audio_input,
        audio_output: head.needs.audio_output,
        pdf: head.needs.pdf_input,
        json_schema: head.needs.json_schema,
        prompt_text_bytes: head.prompt_tokens_estimate.saturating_mul(4),
        max_tokens: head.max_output_tokens,
        environment: None,
        peer: IpAddr::from([127, 0, 0, 1]),
        config_age_ms: 0,
        total_ms: TOTAL_MS,
    };
    let decision = router::plan(&snapshot, &facts, &Fleet::default(), Now::default(), 0);
    println!("{}", serde_json::to_string_pretty(&router::explain::explain(&decision))?);
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// The document without what stands beside it. Hashes and secrets are never shown by REST; a plan
/// depends on their presence only.
fn put(documents: &mut Documents, kind: &str, object: &Value) -> Result<()> {
    let id = object["id"].as_str().with_context(|| format!("a {kind} has no id"))?;
    let mut document = object.clone();
    let fields = document.as_object_mut().with_context(|| format!("{kind} {id} is not an object"))?;
    fields.retain(|name, _| !BESIDE.contains(&name.as_str()) || (name == "key" && kind != "api_key"));
    if kind == "api_key" {
        let hash = shared::digest::sha256(&[id.as_bytes()]);
        fields.insert("hash".into(), hash.iter().map(|b| format!("{b:02x}")).collect::<String>().into());
    }
    let secret = if kind == "credential" { Secret::Opened(b"not shown".to_vec()) } else { Secret::Absent };
    documents.put(kind, id, 1, &document.to_string(), &secret);
    Ok(())
}

fn shared_scope() -> Result<Scope> {
    let catalog = shared::catalog::builtin().map_err(|e| anyhow::anyhow!("{e}"))?;
    let vendors = catalog.vendors.into_iter().map(|row| resource("vendor", &row.vendor.slug, &row.vendor));
    let offerings =
        catalog.offerings.iter().map(|o| resource("catalog_offering", &format!("{}/{}", o.vendor, o.model), o));
    Ok(scope(vendors.chain(offerings).collect(), catalog.version))
}

fn resource(kind: &str, id: &str, body: &impl Message) -> proto::Resource {
    proto::Resource { kind: kind.into(), id: id.into(), body: body.encode_to_vec().into() }
}

fn scope(upserts: Vec<proto::Resource>, revision: u64) -> Scope {
    let mut scope = Scope::default();
    scope.apply(&ScopeDelta { upserts, removals: Vec::new() }, revision);
    scope
}

fn apply(to: &Snapshot, name: &str, next: &Scope) -> Result<Snapshot> {
    let delta = ScopeDelta { upserts: next.resources().collect(), removals: Vec::new() };
    let change = Change { scope: name, next, previous: &Scope::default(), delta: &delta };
    match to.apply(&change) {
        Ok(snapshot) => Ok(snapshot),
        Err(rejection) => bail!("{rejection}"),
    }
}
