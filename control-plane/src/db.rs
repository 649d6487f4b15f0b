//! The database: SQLite or PostgreSQL behind one pool type, and its migrations.
//!
//! Statements are written once, in the dialect both speak (`$1`, `ON CONFLICT`, `RETURNING`), over
//! columns of two types only, TEXT and BIGINT, so that `sqlx::Any` carries every row. Sums are cast:
//! `CAST(SUM(x) AS BIGINT)`. Statements are literals, come from `QueryBuilder`, or (bulk inserts of the
//! ledger) are made of literals alone; values are bound. Where one text cannot do, [`Engine`] decides: those
//! inserts, one row lock, and what replicas on PostgreSQL tell one another.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Any, AnyPool, Executor, SqlSafeStr, SqlStr, Transaction};

/// Which engine is behind the pool, where one text cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A file; one writer at a time.
    Sqlite,
    /// A server shared by replicas.
    Postgres,
}

/// A connected, migrated database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: AnyPool,
    engine: Engine,
}

/// A transaction that will write.
pub type Tx = Transaction<'static, Any>;

impl Db {
    /// Connects to `sqlite:PATH` (created when missing) or `postgres://…` and brings the schema up
    /// to date.
    pub async fn open(url: &str) -> Result<Self, sqlx::Error> {
        sqlx::any::install_default_drivers();
        let engine = if url.starts_with("sqlite:") { Engine::Sqlite } else { Engine::Postgres };
        let url = match engine {
            Engine::Sqlite if !url.contains('?') => Cow::Owned(format!("{url}?mode=rwc")),
            Engine::Sqlite | Engine::Postgres => Cow::Borrowed(url),
        };
        let options: AnyConnectOptions = url.parse()?;
        let pool = AnyPoolOptions::new()
            .max_connections(match engine {
                Engine::Sqlite => 8,
                Engine::Postgres => 16,
            })
            .acquire_timeout(Duration::from_secs(10))
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    for statement in session_settings(engine) {
                        connection.execute(*statement).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await?;
        migrator(engine).run(&pool).await?;
        Ok(Self { pool, engine })
    }

    /// `sqlite:` URL of the usual file in a data directory.
    pub fn sqlite_url(data_dir: &Path) -> String {
        format!("sqlite:{}", data_dir.join("control-plane.db").display())
    }

    /// For reads and single statements.
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Where it is, with its password: for connections beside the pool.
    pub fn url(&self) -> String {
        self.pool.connect_options().database_url.to_string()
    }

    /// Which engine this is.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Starts a transaction that will write. On SQLite it takes the write lock at once: a reader that
    /// turns writer halfway could not wait for it and would fail.
    pub async fn begin(&self) -> Result<Tx, sqlx::Error> {
        match self.engine {
            Engine::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await,
            Engine::Postgres => self.pool.begin().await,
        }
    }
}

/// Durability first: a committed change or usage batch survives power loss on both engines.
fn session_settings(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::Sqlite => &[
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "PRAGMA foreign_keys = ON",
            "PRAGMA busy_timeout = 10000",
        ],
        Engine::Postgres => &["SET synchronous_commit = on", "SET default_transaction_isolation = 'read committed'"],
    }
}

/// (version, name, both engines, SQLite, PostgreSQL). Expand, then contract: never edit a row that
/// was released.
const MIGRATIONS: &[(i64, &str, &str, &str, &str)] = &[
    (
        1,
        "configuration",
        include_str!("../migrations/0001_configuration.sql"),
        include_str!("../migrations/0001_configuration.sqlite.sql"),
        include_str!("../migrations/0001_configuration.postgres.sql"),
    ),
    (
        2,
        "ledger",
        include_str!("../migrations/0002_ledger.sql"),
        include_str!("../migrations/0002_ledger.sqlite.sql"),
        include_str!("../migrations/0002_ledger.postgres.sql"),
    ),
    (3, "fleet", include_str!("../migrations/0003_fleet.sql"), "", ""),
    (4, "replicas", include_str!("../migrations/0004_replicas.sql"), "", ""),
];

fn migrator(engine: Engine) -> Migrator {
    let migrations = MIGRATIONS.iter().map(|(version, name, both, sqlite, postgres)| {
        let own = match engine {
            Engine::Sqlite => sqlite,
            Engine::Postgres => postgres,
        };
        // Built from files of this crate only.
        let sql: SqlStr = sqlx::AssertSqlSafe(format!("{both}\n{own}")).into_sql_str();
        Migration::new(*version, Cow::Borrowed(*name), MigrationType::Simple, sql, false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // A newer replica may have migrated already; what it added is not in the way of this one.
    migrator.set_ignore_missing(true);
    migrator
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_file_is_migrated_and_opens_again() -> Result<(), sqlx::Error> {
        let dir = std::env::temp_dir().join(format!("pointsman-db-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temp dir");
        for _ in 0..2 {
            let db = Db::open(&Db::sqlite_url(&dir)).await?;
            let row: (i64,) = sqlx::query_as("SELECT COUNT(*) FROM objects").fetch_one(db.pool()).await?;
            assert_eq!(row.0, 0);
            let mut tx = db.begin().await?;
            sqlx::query("INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
                .bind("lineage")
                .bind("x")
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
        std::fs::remove_dir_all(&dir).expect("remove temp dir");
        Ok(())
    }
}
