//! Databases for one test each, removed at its end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use shared::ids::{ApiKeyId, ProjectId, WorkspaceId};

use crate::db::Db;

/// A database, and what has to be removed after the test.
pub struct Database {
    pub db: Db,
    name: String,
    folder: Option<PathBuf>,
    server: Option<sqlx::AnyPool>,
}

impl Database {
    pub async fn drop(self) {
        self.db.pool().close().await;
        if let Some(folder) = self.folder {
            std::fs::remove_dir_all(folder).expect("remove the test's folder");
        }
        if let Some(server) = self.server {
            let text = format!("DROP DATABASE {}", self.name);
            sqlx::query(sqlx::AssertSqlSafe(text)).execute(&server).await.expect("drop the test's database");
        }
    }
}

fn name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("pointsman_ledger_{}_{number}_{:x}", std::process::id(), runtime::random::seed())
}

/// A file.
pub async fn sqlite() -> Database {
    let name = name();
    let folder = std::env::temp_dir().join(&name);
    std::fs::create_dir_all(&folder).expect("temp dir");
    let url = Db::sqlite_url(&folder);
    let db = Db::open(&url).await.expect("open SQLite");
    Database { db, name, folder: Some(folder), server: None }
}

/// A database on the server, unless none listens.
pub async fn postgres() -> Option<Database> {
    sqlx::any::install_default_drivers();
    let required = std::env::var("POINTSMAN_TEST_REQUIRE_ALL").is_ok_and(|v| v == "1");
    let server_url = std::env::var("POINTSMAN_TEST_POSTGRES_URL")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned());
    let server = match sqlx::any::AnyPoolOptions::new().max_connections(1).connect(&server_url).await {
        Ok(server) => server,
        Err(error) => {
            assert!(!required, "PostgreSQL is required: {error}");
            println!("skipped: PostgreSQL: {error}");
            return None;
        }
    };
    let name = name();
    let text = format!("CREATE DATABASE {name}");
    sqlx::query(sqlx::AssertSqlSafe(text)).execute(&server).await.expect("make a database");
    let (base, _) = server_url.rsplit_once('/').expect("the URL names a database");
    let url = format!("{base}/{name}");
    let db = Db::open(&url).await.expect("open PostgreSQL");
    Some(Database { db, name, folder: None, server: Some(server) })
}

/// Both, as far as there.
pub async fn all() -> Vec<Database> {
    let mut all = vec![sqlite().await];
    all.extend(postgres().await);
    all
}

/// A workspace with one project and one key.
#[derive(Debug, Clone, Copy)]
pub struct House {
    pub workspace: WorkspaceId,
    pub project: ProjectId,
    pub key: ApiKeyId,
}

impl House {
    pub fn number(n: u128) -> Self {
        Self { workspace: WorkspaceId::from_u128(n), project: ProjectId::from_u128(n), key: ApiKeyId::from_u128(n) }
    }

    pub async fn build(self, db: &Db) -> Self {
        let scope = self.workspace.to_string();
        sqlx::query("INSERT INTO scopes (scope, workspace_key, revision, updated_at_ms) VALUES ($1, $2, 1, 0)")
            .bind(&scope)
            .bind(format!("house-{}", self.workspace))
            .execute(db.pool())
            .await
            .expect("insert a workspace");
        for (kind, id) in [("project", self.project.to_string()), ("api_key", self.key.to_string())] {
            sqlx::query(
                "INSERT INTO objects (scope, kind, id, parent, name, doc, revision, created_at_ms, updated_at_ms) \
                 VALUES ($1, $2, $3, '', $3, '{}', 1, 0, 0)",
            )
            .bind(&scope)
            .bind(kind)
            .bind(id)
            .execute(db.pool())
            .await
            .expect("insert an object");
        }
        self
    }
}
