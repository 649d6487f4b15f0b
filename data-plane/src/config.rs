//! Bootstrap settings of a node: addresses, paths, limits. Everything about routing comes with the
//! snapshot. A setting is read from the command line, else the environment, else the file of
//! `--config`, else its default.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// How a node is set up.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Folder for the identity, the last good snapshot and the usage journal. One per node.
    #[arg(long, env = "POINTSMAN_DATA_DIR", default_value = "./pointsman-node")]
    pub data_dir: PathBuf,

    /// Address that applications call.
    #[arg(long, env = "POINTSMAN_LISTEN", default_value = "127.0.0.1:7080")]
    pub listen: SocketAddr,

    /// Address of health checks, metrics and the snapshot dump. Keep it away from callers.
    #[arg(long, env = "POINTSMAN_ADMIN_LISTEN", default_value = "127.0.0.1:7082")]
    pub admin_listen: SocketAddr,

    /// Threads that serve requests; 0 = one per core.
    #[arg(long, env = "POINTSMAN_THREADS", default_value_t = 0)]
    pub threads: usize,

    /// Name that operators see; default: the host's.
    #[arg(long, env = "POINTSMAN_NODE_NAME")]
    pub name: Option<String>,

    /// Label `key=value`, several times: shown with the node.
    #[arg(long = "label", env = "POINTSMAN_LABELS", value_delimiter = ',')]
    pub labels: Vec<String>,

    /// Limits and deadlines.
    #[command(flatten)]
    pub tuning: Tuning,

    /// Whether an exporter for spans is set up; known once telemetry has started.
    #[arg(skip)]
    pub export_spans: bool,
}

/// Limits and deadlines of a node; the defaults serve.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits and deadlines of a node")]
pub struct Tuning {
    /// Whether providers may live at private and loopback addresses. Default: no; the all-in-one
    /// program: yes.
    #[arg(long, env = "POINTSMAN_EGRESS_ALLOW_PRIVATE", num_args = 0..=1, default_missing_value = "true")]
    pub egress_allow_private: Option<bool>,

    /// Address blocks (CIDR) that providers may live at whatever else is said.
    #[arg(long, env = "POINTSMAN_EGRESS_ALLOW", value_delimiter = ',')]
    pub egress_allow: Vec<String>,

    /// PEM file with certificate authorities to trust for providers, besides the public ones.
    #[arg(long, env = "POINTSMAN_UPSTREAM_CA_FILE")]
    pub upstream_ca_file: Option<PathBuf>,

    /// Largest request body in bytes.
    #[arg(long, env = "POINTSMAN_MAX_BODY_BYTES", default_value_t = 20 * 1024 * 1024)]
    pub max_body_bytes: usize,

    /// Largest answer of a provider that is no stream, in bytes.
    #[arg(long, env = "POINTSMAN_MAX_REPLY_BYTES", default_value_t = 64 * 1024 * 1024)]
    pub max_reply_bytes: usize,

    /// Connections of callers per thread.
    #[arg(long, env = "POINTSMAN_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,

    /// Requests at once in the whole node; more are refused with 503.
    #[arg(long, env = "POINTSMAN_MAX_REQUESTS_IN_FLIGHT", default_value_t = 20_000)]
    pub max_requests_in_flight: u64,

    /// Milliseconds a caller may take for a request's head.
    #[arg(long, env = "POINTSMAN_HEAD_TIMEOUT_MS", default_value_t = 10_000)]
    pub head_timeout_ms: u64,

    /// Milliseconds between two pieces of a request's body.
    #[arg(long, env = "POINTSMAN_BODY_IDLE_TIMEOUT_MS", default_value_t = 30_000)]
    pub body_idle_timeout_ms: u64,

    /// Milliseconds an idle connection is kept. Longer than the idle time of a balancer in front.
    #[arg(long, env = "POINTSMAN_KEEP_ALIVE_MS", default_value_t = 90_000)]
    pub keep_alive_ms: u64,

    /// Milliseconds a caller may not read before its connection is closed.
    #[arg(long, env = "POINTSMAN_WRITE_TIMEOUT_MS", default_value_t = 60_000)]
    pub write_timeout_ms: u64,

    /// Milliseconds to connect to a provider, where the provider sets nothing else.
    #[arg(long, env = "POINTSMAN_CONNECT_TIMEOUT_MS", default_value_t = 2_000)]
    pub connect_timeout_ms: u64,

    /// Milliseconds to a provider's first byte, where the provider sets nothing else.
    #[arg(long, env = "POINTSMAN_FIRST_TOKEN_TIMEOUT_MS", default_value_t = 120_000)]
    pub first_token_timeout_ms: u64,

    /// Milliseconds between chunks of a stream, where the provider sets nothing else.
    #[arg(long, env = "POINTSMAN_IDLE_TIMEOUT_MS", default_value_t = 60_000)]
    pub idle_timeout_ms: u64,

    /// Milliseconds for a whole request, attempts and waits included.
    #[arg(long, env = "POINTSMAN_TOTAL_TIMEOUT_MS", default_value_t = 600_000)]
    pub total_timeout_ms: u64,

    /// Milliseconds between "not ready" and the last accepted connection when stopping: the time
    /// that balancers need to notice. Default: 3000; the all-in-one program: 0.
    #[arg(long, env = "POINTSMAN_DRAIN_DELAY_MS")]
    pub drain_delay_ms: Option<u64>,

    /// Milliseconds that running requests get to end when stopping.
    #[arg(long, env = "POINTSMAN_DRAIN_TIMEOUT_MS", default_value_t = 30_000)]
    pub drain_timeout_ms: u64,

    /// Most bytes of usage records on disk; beyond that requests are refused with 503.
    #[arg(long, env = "POINTSMAN_JOURNAL_LIMIT_BYTES", default_value_t = 1 << 30)]
    pub journal_limit_bytes: u64,

    /// Milliseconds between syncs of the usage journal to disk; 0 = every record before its answer.
    #[arg(long, env = "POINTSMAN_JOURNAL_SYNC_MS", default_value_t = 50)]
    pub journal_sync_ms: u64,

    /// Send the X-Orca-* headers too.
    #[arg(long, env = "POINTSMAN_ORCA_HEADERS", default_value_t = true, action = clap::ArgAction::Set)]
    pub orca_headers: bool,

    /// Write one log line per request.
    #[arg(long, env = "POINTSMAN_ACCESS_LOG", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub access_log: bool,
}

impl Config {
    /// Threads that will serve.
    pub fn workers(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        }
    }

    /// A duration of one of the settings.
    pub(crate) fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }
}
