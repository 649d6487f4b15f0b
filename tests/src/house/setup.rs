//! What tests do through REST: connect the scripted provider, make keys, wait for a change to serve.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::House;
use crate::wait;

/// The credential under which the house calls the scripted provider; must not be in any log.
pub const CREDENTIAL: &str = "sk-canary-5f0e7c21a9d84b36";

/// How long a change may take to serve.
const SERVES: Duration = Duration::from_secs(20);

/// The ids of a connected provider.
#[derive(Debug, Clone)]
pub struct Connected {
    /// Of the provider connection.
    pub provider: String,
    /// Of its credential.
    pub credential: String,
}

impl House {
    /// Connects the scripted provider as `scripted` with these chat models (and the embedding model
    /// `embed`), and waits until all of it serves.
    pub async fn connect(&mut self, models: &[&str]) -> Result<Connected> {
        let url = self.provider.url();
        let connected = self.connect_as("scripted", &url, CREDENTIAL, models).await?;
        self.serves("scripted/embed").await?;
        Ok(connected)
    }

    /// Connects any OpenAI-speaking upstream under `slug`.
    pub async fn connect_as(&mut self, slug: &str, base_url: &str, secret: &str, models: &[&str]) -> Result<Connected> {
        self.secrets.push(secret.to_owned());
        let provider = self
            .create("providers", json!({"vendor": "vllm", "slug": slug, "base_url": base_url}))
            .await
            .context("connecting the provider")?;
        let provider = id(&provider)?;
        let credential = self.add_credential(&provider, "main", secret).await?;
        for model in models {
            self.add_model(&provider, model, "chat").await?;
        }
        self.add_model(&provider, "embed", "embedding").await?;
        Ok(Connected { provider, credential })
    }

    /// One more credential of a provider; gives its id.
    pub async fn add_credential(&mut self, provider: &str, name: &str, secret: &str) -> Result<String> {
        self.secrets.push(secret.to_owned());
        let body = json!({"provider_id": provider, "name": name, "secret": secret});
        id(&self.create("credentials", body).await.context("adding a credential")?)
    }

    /// A private model at a provider, at 1 USD per million prompt tokens and 2 USD per million
    /// produced ones; gives its id.
    pub async fn add_model(&self, provider: &str, name: &str, kind: &str) -> Result<String> {
        let body = json!({
            "provider_id": provider, "name": name, "private": true, "type": kind,
            "context_tokens": 8_000_000, "max_output_tokens": 8_000_000,
            "capabilities": ["tools", "json_schema"],
            "prices": [{"input": "1", "output": "2"}],
        });
        id(&self.create("models", body).await.context("adding a model")?)
    }

    /// POST of a noun of workspace `default`; the created object.
    pub async fn create(&self, noun: &str, body: Value) -> Result<Value> {
        Ok(self.admin.post(&format!("/workspaces/default/{noun}"), &body).await?.good()?.json())
    }

    /// A new key of workspace `default` that may do everything.
    pub async fn new_key(&mut self, name: &str) -> Result<String> {
        let made = self.create("api-keys", json!({"name": name})).await.context("making a key")?;
        let key = made["key"].as_str().context("the answer has no key")?.to_owned();
        self.secrets.push(key.clone());
        Ok(key)
    }

    /// A token with which one node may join.
    pub async fn join_token(&mut self) -> Result<String> {
        let made = self.admin.post("/nodes/tokens", &json!({})).await?.good()?.json();
        let token = made["token"].as_str().context("the answer has no token")?.to_owned();
        self.secrets.push(token.clone());
        Ok(token)
    }

    /// Waits until every node lists this model for the house's key.
    pub async fn serves(&self, model: &str) -> Result<()> {
        let servers = if self.nodes.is_empty() { std::slice::from_ref(&self.control) } else { &self.nodes[..] };
        for server in servers {
            let http =
                crate::http::Http::new(&server.data_url()).header("authorization", &format!("Bearer {}", self.api_key));
            // The list names private models with their workspace; aliases stand alone.
            let path = match model.contains('/') {
                true => format!("/v1/models/default@{model}"),
                false => format!("/v1/models/{model}"),
            };
            wait::until(SERVES, &format!("{model} served"), || async {
                http.get(&path).await.ok().filter(|a| a.status == 200)
            })
            .await?;
        }
        Ok(())
    }

    /// The usage of workspace `default`, grouped by this key; all pages.
    pub async fn usage(&self, group_by: &str) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/workspaces/default/usage?group_by={group_by}&limit=10000{after}");
            let page = self.admin.get(&path).await?.good()?.json();
            rows.extend(page["data"].as_array().cloned().unwrap_or_default());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(rows),
            }
        }
    }

    /// Makes sure that workspace `default` is there.
    pub(super) async fn ensure_workspace(&self) -> Result<()> {
        if self.admin.get("/workspaces/default").await?.status == 404 {
            self.admin.post("/workspaces", &json!({"key": "default", "display_name": "Default"})).await?.good()?;
        }
        Ok(())
    }
}

fn id(object: &Value) -> Result<String> {
    Ok(object["id"].as_str().with_context(|| format!("no id in {object}"))?.to_owned())
}
