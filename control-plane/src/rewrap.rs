//! After a change of the key-encryption key: what the earlier ones sealed goes under the current one, so
//! that they can be taken away. Runs at every start, before anything is opened; with nothing to do it
//! costs one query. Secrets themselves are not opened.
//!
//! Stored answers to idempotency keys stay as they are: they are forgotten within a day.

use crate::app::App;
use crate::publish::authority;
use crate::vault::{Place, VaultError};

/// What a run found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewrapped {
    /// Now under the current key.
    pub moved: usize,
    /// Sealed under a key that is not here, or damaged: they stay as they are.
    pub closed: usize,
}

/// Puts every sealed secret under the current key. Replicas may run it at the same time.
///
/// # Errors
/// When the database fails; what was moved stays moved.
pub async fn run(app: &App) -> Result<Rewrapped, sqlx::Error> {
    let others = format!("{}%", app.vault.current());
    let mut found = Rewrapped::default();
    let rows: Vec<(String, i64, String, String)> =
        sqlx::query_as("SELECT id, version, scope, sealed FROM secrets WHERE sealed NOT LIKE $1 ORDER BY id, version")
            .bind(&others)
            .fetch_all(app.db.pool())
            .await?;
    for (id, version, scope, sealed) in rows {
        let Some(moved) = found.note(app, &Place { scope: &scope, id: &id, version }, &sealed) else { continue };
        sqlx::query("UPDATE secrets SET sealed = $1 WHERE id = $2 AND version = $3 AND sealed = $4")
            .bind(moved)
            .bind(&id)
            .bind(version)
            .bind(&sealed)
            .execute(app.db.pool())
            .await?;
    }
    let keys: Vec<(String, String)> =
        sqlx::query_as("SELECT name, sealed_key FROM authority WHERE sealed_key NOT LIKE $1")
            .bind(&others)
            .fetch_all(app.db.pool())
            .await?;
    for (name, sealed) in keys {
        let Some(moved) = found.note(app, &authority::PLACE, &sealed) else { continue };
        sqlx::query("UPDATE authority SET sealed_key = $1 WHERE name = $2 AND sealed_key = $3")
            .bind(moved)
            .bind(&name)
            .bind(&sealed)
            .execute(app.db.pool())
            .await?;
    }
    found.tell(app);
    Ok(found)
}

impl Rewrapped {
    /// The seal under the current key.
    fn note(&mut self, app: &App, place: &Place<'_>, sealed: &str) -> Option<String> {
        match app.vault.rewrap(place, sealed) {
            Ok(moved) => {
                self.moved += usize::from(moved.is_some());
                moved
            }
            Err(error @ (VaultError::UnknownKek | VaultError::NotAuthentic | VaultError::Malformed)) => {
                tracing::error!(scope = place.scope, id = place.id, version = place.version, %error, "a secret cannot be opened");
                self.closed += 1;
                None
            }
            // Of keys, not of what they sealed.
            Err(VaultError::BadKek | VaultError::KekFile(_)) => None,
        }
    }

    fn tell(self, app: &App) {
        let earlier: Vec<&str> = app.vault.earlier().collect();
        if self.moved > 0 {
            tracing::info!(secrets = self.moved, "sealed again under the current key-encryption key");
        }
        if self.closed > 0 {
            tracing::error!(
                secrets = self.closed,
                "sealed under no key-encryption key that is here: put the one they need behind the current one"
            );
        } else if !earlier.is_empty() {
            tracing::info!(
                ?earlier,
                "no secret needs the earlier key-encryption keys; stored answers may for one more day"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::House;
    use crate::vault::{Secret, Vault};

    const KEYS: &str = "/api/v1/workspaces/default/credentials";

    /// The same database under these keys.
    fn with_keys(app: &App, seeds: &[u8]) -> App {
        let keys: Vec<Secret> = seeds.iter().map(|seed| Secret::new([*seed; 32])).collect();
        let vault = Vault::new(&keys[0], &keys[1..]).expect("32 bytes");
        App::new(app.db.clone(), vault, (*app.config).clone(), app.lineage, app.shutdown.clone())
    }

    #[tokio::test]
    async fn a_new_key_takes_over() {
        for house in House::each().await {
            let body = json!({ "vendor": "openai", "slug": "one" });
            let provider = house.call("POST", "/api/v1/workspaces/default/providers", Some(body)).await.at("/id");
            for n in 0..3 {
                let body =
                    json!({ "provider_id": provider, "name": format!("n{n}"), "secret": format!("sk-{n}-1234567") });
                assert_eq!(house.call("POST", KEYS, Some(body)).await.status, 201);
            }
            let both = with_keys(&house.app, &[8, 7]);
            assert_eq!(run(&both).await.expect("the database works"), Rewrapped { moved: 3, closed: 0 });
            assert_eq!(run(&both).await.expect("the database works"), Rewrapped::default());
            let sealed: Vec<(String, i64, String, String)> =
                sqlx::query_as("SELECT id, version, scope, sealed FROM secrets ORDER BY id")
                    .fetch_all(house.app.db.pool())
                    .await
                    .expect("rows");
            let new = with_keys(&house.app, &[8]);
            for (n, (id, version, scope, sealed)) in sealed.iter().enumerate() {
                let place = Place { scope, id, version: *version };
                let opened = new.vault.open(&place, sealed).expect("under the new key");
                assert_eq!(opened.expose_str(), Some(format!("sk-{n}-1234567").as_str()));
            }
            let lost = with_keys(&house.app, &[9]);
            assert_eq!(run(&lost).await.expect("the database works"), Rewrapped { moved: 0, closed: 3 });
            house.close().await;
        }
    }
}
