//! Bootstrap settings: addresses, paths, the database. Everything else is configured over REST. A
//! setting is read from the command line, else the environment, else the file of `--config`, else its
//! default.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

/// How a control plane is set up.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Folder for the SQLite file and the key-encryption key.
    #[arg(long, env = "POINTSMAN_DATA_DIR", default_value = "./pointsman-control")]
    pub data_dir: PathBuf,

    /// `postgres://…`, or `sqlite:PATH`. Default: a SQLite file in the data folder.
    #[arg(long, env = "POINTSMAN_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,

    /// Address of the management interface (REST, metrics). Keep it away from callers.
    #[arg(long, env = "POINTSMAN_ADMIN_LISTEN", default_value = "127.0.0.1:7081")]
    pub listen: SocketAddr,

    /// Address that nodes connect to (gRPC with mutual TLS). Left out: no node from elsewhere can
    /// connect.
    #[arg(long, env = "POINTSMAN_GRPC_LISTEN")]
    pub grpc_listen: Option<SocketAddr>,

    /// Names and addresses that nodes may know this control plane by, for its certificate.
    #[arg(long = "grpc-name", env = "POINTSMAN_GRPC_NAMES", value_delimiter = ',')]
    pub grpc_names: Vec<String>,

    /// Key-encryption keys, 32 bytes in base64 each, the current one first, instead of the file `kek` in
    /// the data folder. From the environment only: arguments are visible to other users of the machine.
    #[arg(skip)]
    pub kek: Option<Kek>,

    /// Where the first start looks for provider keys; `Environment::none()` connects none.
    #[arg(skip)]
    pub environment: Environment,
}

impl Config {
    /// Any free port, everything in `data_dir`, nothing from the environment.
    #[cfg(test)]
    pub(crate) fn for_tests(data_dir: &std::path::Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            database_url: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            grpc_listen: None,
            grpc_names: Vec::new(),
            kek: None,
            environment: Environment::none(),
        }
    }

    /// Takes what must not stand on a command line (`POINTSMAN_KEK`) from the environment.
    pub fn with_environment(mut self) -> Self {
        self.environment = Environment::of_process();
        self.kek = self.environment.get("POINTSMAN_KEK").map(Kek);
        self
    }
}

/// Key-encryption keys as text. Does not show itself.
#[derive(Clone)]
pub struct Kek(pub String);

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek")
    }
}

/// Environment variables by name.
#[derive(Clone)]
pub struct Environment(Arc<Lookup>);

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Environment {
    /// Holds nothing.
    pub fn none() -> Self {
        Self(Arc::new(|_| None))
    }

    /// That of this process.
    pub fn of_process() -> Self {
        Self(Arc::new(|name| std::env::var(name).ok()))
    }

    /// Made up: for tests.
    pub fn new(lookup: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(lookup))
    }

    /// The value of a variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self::none()
    }
}

/// Variables may hold keys.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}
