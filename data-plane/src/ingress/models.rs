//! `GET /v1/models`: what the calling key may use, in OpenAI's form.

use bytes::Bytes;
use http::StatusCode;
use router::Now;
use router::listing::{self, Listed, Target};
use serde_json::{Value, json};
use shared::snapshot::{ApiKey, Workspace};

use super::render::Problem;

/// The list.
pub fn list(workspace: &Workspace, key: &ApiKey, now: Now) -> Bytes {
    let data: Vec<Value> = listing::list(workspace, key, now).iter().map(row).collect();
    Bytes::from(json!({"object": "list", "data": data}).to_string())
}

/// One line of it; `None` when the key may use nothing of that name.
pub fn get(workspace: &Workspace, key: &ApiKey, name: &str, now: Now) -> Option<Bytes> {
    let listed = listing::list(workspace, key, now);
    // A private model answers to its name without the workspace too, as it does in a request.
    let own = |listed: &Listed<'_>| {
        listed.name.strip_prefix(&*workspace.key).and_then(|rest| rest.strip_prefix('@')) == Some(name)
    };
    let found = listed.iter().find(|listed| listed.name == name || own(listed))?;
    Some(Bytes::from(row(found).to_string()))
}

/// The answer when there is none.
pub fn missing(name: &str) -> Problem {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(256).collect();
    let message = format!("The model {shown:?} does not exist, or this API key may not use it.");
    let mut problem = Problem::new(StatusCode::NOT_FOUND, "model_not_found", message);
    problem.param = Some("model".into());
    problem
}

/// OpenAI's four fields, and what helps to choose.
fn row(listed: &Listed<'_>) -> Value {
    match &listed.target {
        Target::Offering { provider, offering } => {
            let facts = &offering.facts;
            json!({
                "id": listed.name, "object": "model", "created": 0, "owned_by": &*provider.slug,
                "type": facts.r#type, "context_length": known(facts.context_tokens),
                "max_output_tokens": known(facts.max_output_tokens), "capabilities": facts.capabilities,
            })
        }
        Target::Alias(alias) => {
            json!({
                "id": listed.name, "object": "model", "created": 0, "owned_by": "alias",
                "targets": alias.targets.iter().map(|t| &**t).collect::<Vec<_>>(),
            })
        }
    }
}

fn known(number: u64) -> Value {
    if number == 0 { Value::Null } else { number.into() }
}
