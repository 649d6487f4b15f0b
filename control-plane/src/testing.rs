//! For tests of this crate: a control plane over a database of its own, called in process.
//!
//! Every test runs on SQLite, and on PostgreSQL when one answers at `POINTSMAN_TEST_POSTGRES_URL` or
//! at the usual local address; there each test has a schema of its own, dropped at its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode};
use runtime::shutdown;
use serde_json::Value;
use sqlx::Connection as _;
use tower_service::Service as _;

use crate::app::App;
use crate::config::{Config, Environment};
use crate::db::{Db, Engine};
use crate::resources::seed;
use crate::rest;
use crate::vault::{Secret, Vault};

const POSTGRES: &str = "postgres://postgres@127.0.0.1:5432/test";

/// 2026-01-01, and a second more at every step.
const START_MS: i64 = 1_767_225_600_000;

/// A control plane after its first start.
pub(crate) struct House {
    pub app: App,
    pub router: Router,
    pub admin_token: String,
    pub api_key: String,
    clock: Arc<AtomicI64>,
    _trigger: shutdown::Trigger,
    folder: PathBuf,
    schema: Option<(String, String)>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The value at a JSON pointer, as text.
    pub fn at(&self, pointer: &str) -> String {
        let json = self.json();
        match json.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => panic!("no {pointer} in {json}"),
        }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().expect("ASCII"))
    }
}

impl House {
    /// One per engine that is there.
    pub async fn each() -> Vec<Self> {
        Self::each_with(Environment::none()).await
    }

    /// The same with environment variables at the first start.
    pub async fn each_with(environment: Environment) -> Vec<Self> {
        let mut all = vec![Self::new(None, environment.clone()).await];
        let url = std::env::var("POINTSMAN_TEST_POSTGRES_URL").unwrap_or_else(|_| POSTGRES.to_owned());
        if sqlx::PgConnection::connect(&url).await.is_ok() {
            all.push(Self::new(Some(url), environment).await);
        }
        all
    }

    /// SQLite only: for what no engine can change.
    pub async fn sqlite() -> Self {
        Self::new(None, Environment::none()).await
    }

    async fn new(postgres: Option<String>, environment: Environment) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(format!("pointsman-{name}"));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        let schema = match postgres {
            None => None,
            Some(server) => {
                let mut connection = sqlx::PgConnection::connect(&server).await.expect("PostgreSQL answered before");
                let statement = format!("CREATE SCHEMA {name}");
                sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.expect("a schema");
                Some((server, name.clone()))
            }
        };
        let url = match &schema {
            None => Db::sqlite_url(&folder),
            Some((server, name)) => {
                let mark = if server.contains('?') { '&' } else { '?' };
                format!("{server}{mark}options=-c%20search_path%3D{name}")
            }
        };
        let db = Db::open(&url).await.expect("the database opens");
        let vault = Vault::new(&Secret::new([7; 32]), &[]).expect("32 bytes");
        let lineage = seed::lineage(&db).await.expect("a lineage");
        let (trigger, shutdown) = shutdown::channel();
        let clock = Arc::new(AtomicI64::new(START_MS));
        let reading = clock.clone();
        let config = Config { environment, ..Config::for_tests(&folder) };
        let app =
            App::new(db, vault, config, lineage, shutdown).with_clock(move || reading.fetch_add(1, Ordering::Relaxed));
        let catalog = shared::catalog::builtin().expect("the built-in catalogue is valid");
        seed::catalogue(&app, &catalog).await.expect("the catalogue is stored");
        let first = seed::first_start(&app, &catalog).await.expect("a first start").expect("the database was empty");
        let text = |secret: &Secret| secret.expose_str().expect("ASCII").to_owned();
        Self {
            router: rest::router(&app),
            admin_token: text(&first.admin_token),
            api_key: text(&first.api_key),
            app,
            clock,
            _trigger: trigger,
            folder,
            schema,
        }
    }

    /// Moves the clock.
    pub fn pass(&self, ms: i64) {
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }

    pub fn engine(&self) -> Engine {
        self.app.db.engine()
    }

    /// A call with the operator's token.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_with(method, path, &[("authorization", &format!("Bearer {}", self.admin_token))], body).await
    }

    /// A call with another token.
    pub async fn call_as(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_with(method, path, &[("authorization", &format!("Bearer {token}"))], body).await
    }

    /// A call with the operator's token and more headers.
    pub async fn call_more(&self, method: &str, path: &str, more: &[(&str, &str)], body: Option<Value>) -> Answer {
        let bearer = format!("Bearer {}", self.admin_token);
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(more);
        self.call_with(method, path, &headers, body).await
    }

    /// A call with exactly these headers (and a content type if there is a body).
    pub async fn call_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
        let body = body.map(|b| b.to_string());
        let json = ("content-type", "application/json");
        let headers: Vec<_> = headers.iter().copied().chain(body.is_some().then_some(json)).collect();
        self.call_raw(method, path, &headers, body.unwrap_or_default().into_bytes()).await
    }

    /// A call byte by byte.
    pub async fn call_raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).expect("a method")).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).expect("a request");
        let response = self.router.clone().call(request).await.unwrap_or_else(|e| match e {});
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 64 * 1024 * 1024).await.expect("a body");
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// Creates something and gives its id.
    pub async fn made(&self, path: &str, body: Value) -> String {
        let answer = self.call("POST", path, Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{path}: {}", answer.text);
        answer.at("/id")
    }

    /// Every cell of every table as one text.
    pub async fn dump(&self) -> String {
        let tables = [
            "meta",
            "scopes",
            "objects",
            "object_history",
            "secrets",
            "audit",
            "outbox",
            "idempotency",
            "admin_tokens",
        ];
        let mut all = String::new();
        for table in tables {
            let statement = match self.engine() {
                Engine::Sqlite => {
                    let columns: Vec<(String,)> = sqlx::query_as("SELECT name FROM pragma_table_info($1)")
                        .bind(table)
                        .fetch_all(self.app.db.pool())
                        .await
                        .expect("columns");
                    let columns: Vec<_> =
                        columns.iter().map(|(c,)| format!("COALESCE(CAST(\"{c}\" AS TEXT), '')")).collect();
                    format!("SELECT {} FROM {table}", columns.join(" || '|' || "))
                }
                Engine::Postgres => format!("SELECT CAST(row_to_json(t) AS TEXT) FROM {table} t"),
            };
            let rows: Vec<(String,)> =
                sqlx::query_as(sqlx::AssertSqlSafe(statement)).fetch_all(self.app.db.pool()).await.expect("rows");
            all.extend(rows.into_iter().map(|(row,)| format!("{table}: {row}\n")));
        }
        all
    }

    /// Removes everything.
    pub async fn close(self) {
        self.app.db.pool().close().await;
        std::fs::remove_dir_all(&self.folder).expect("the test's folder goes");
        if let Some((server, name)) = self.schema {
            let mut connection = sqlx::PgConnection::connect(&server).await.expect("PostgreSQL answered before");
            let statement = format!("DROP SCHEMA {name} CASCADE");
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.expect("the schema goes");
        }
    }
}
