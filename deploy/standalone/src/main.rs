//! `pointsman`: both planes in one process. Wiring, top to bottom.

mod greeting;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use control_plane::{Config as ControlConfig, Environment};
use data_plane::Control;
use data_plane::config::{Config as NodeConfig, Tuning};
use runtime::rpc::Dialer;
use runtime::telemetry;
use shared::ids::NodeId;

/// Pointsman: a self-hosted router for language models.
///
/// Applications keep their OpenAI client and change its base URL. This program holds everything: the
/// control plane with its management interface, and one data-plane node. Without a command it serves.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, args_override_self = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (the default).
    Serve(Serve),
    /// Print the OpenAPI document of the management interface.
    Openapi,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Serve {
    /// TOML file with these settings; keys are the options' names with underscores.
    #[arg(long, env = "POINTSMAN_CONFIG")]
    config: Option<PathBuf>,

    /// Folder for everything that is kept: database, keys, snapshot, usage journal.
    #[arg(long, env = "POINTSMAN_DATA_DIR", default_value = "./pointsman-data")]
    data_dir: PathBuf,

    /// Database instead of the SQLite file in the data folder: `postgres://…` or `sqlite:PATH`.
    #[arg(long, env = "POINTSMAN_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,

    /// Address that applications call.
    #[arg(long, env = "POINTSMAN_LISTEN", default_value = "127.0.0.1:7080")]
    listen: SocketAddr,

    /// Address of the management interface (REST).
    #[arg(long, env = "POINTSMAN_ADMIN_LISTEN", default_value = "127.0.0.1:7081")]
    admin_listen: SocketAddr,

    /// Address of the node's health checks and metrics. Left out: 127.0.0.1:7082, or any free port
    /// there when that one is taken or `--listen` wants any.
    #[arg(long, env = "POINTSMAN_NODE_LISTEN")]
    node_listen: Option<SocketAddr>,

    /// Address for further nodes (gRPC with mutual TLS). Left out: there are none.
    #[arg(long, env = "POINTSMAN_GRPC_LISTEN")]
    grpc_listen: Option<SocketAddr>,

    /// Names and addresses that further nodes may know this program by, for its certificate.
    #[arg(long = "grpc-name", env = "POINTSMAN_GRPC_NAMES", value_delimiter = ',')]
    grpc_names: Vec<String>,

    /// Threads that serve requests; 0 = one per core.
    #[arg(long, env = "POINTSMAN_THREADS", default_value_t = 0)]
    threads: usize,

    /// What standard output begins with: text, or one line of JSON for scripts.
    #[arg(long, env = "POINTSMAN_OUTPUT", default_value = "text", value_parser = ["text", "json"])]
    output: String,

    /// Form of log lines: text or json.
    #[arg(long, env = "POINTSMAN_LOG_FORMAT", default_value = "text")]
    log_format: telemetry::Format,

    /// Log filter, such as `info,data_plane=debug`.
    #[arg(long, env = "POINTSMAN_LOG", default_value = "warn,access=info")]
    log: String,

    /// OTLP over gRPC, such as `http://127.0.0.1:4317`; absent = no spans.
    #[arg(long, env = "POINTSMAN_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,

    /// Share of traces that begin here and are recorded, 0 to 1.
    #[arg(long, env = "POINTSMAN_TRACE_RATIO", default_value_t = 1.0)]
    trace_ratio: f64,

    #[command(flatten)]
    tuning: Tuning,
}

/// The node of this process, as the ledger knows it: the same after every restart.
const OWN_NODE: NodeId = NodeId::from_u128(1);

/// How long the first snapshot may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let command = Arguments::command();
    let given = runtime::settings::arguments(&command)?;
    let arguments = Arguments::from_arg_matches(&command.get_matches_from(given))?;
    let serve = match arguments.command {
        Some(Command::Openapi) => {
            println!("{:#}", control_plane::rest::document(&control_plane::rest::routes()));
            return Ok(());
        }
        Some(Command::Serve(serve)) => serve,
        None => arguments.serve,
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?.block_on(run(serve))
}

async fn run(serve: Serve) -> Result<()> {
    let mut options = telemetry::Options::new("pointsman", env!("CARGO_PKG_VERSION"));
    options.filter = Some(serve.log.clone());
    options.format = serve.log_format;
    options.otlp_endpoint.clone_from(&serve.otlp_endpoint);
    options.sample_ratio = serve.trace_ratio;
    let telemetry = telemetry::init(&options)?;
    let (trigger, shutdown) = runtime::shutdown::channel();
    trigger.fire_on_signals()?;

    std::fs::create_dir_all(&serve.data_dir)
        .with_context(|| format!("creating the data folder {} (--data-dir)", serve.data_dir.display()))?;
    let mut control = control_plane::start(control_config(&serve)).await?;
    let (dialer, ends) = Dialer::in_process();
    control.serve_in_process(ends, OWN_NODE);
    let node = NodeConfig {
        data_dir: serve.data_dir.join("node"),
        listen: serve.listen,
        admin_listen: serve.node_listen.unwrap_or_else(|| node_address(serve.listen)),
        threads: serve.threads,
        name: None,
        labels: Vec::new(),
        tuning: Tuning {
            // One person's own machine: a local model server is the usual second provider, and
            // nobody balances load in front.
            egress_allow_private: serve.tuning.egress_allow_private.or(Some(true)),
            drain_delay_ms: serve.tuning.drain_delay_ms.or(Some(0)),
            ..serve.tuning.clone()
        },
        export_spans: telemetry.traces(),
    };
    let here = Control::Local { dialer, node_id: OWN_NODE };
    let (stop_node, node_shutdown) = runtime::shutdown::channel();
    let node = data_plane::start(node, here, node_shutdown).await?;
    if !node.ready(PATIENCE).await {
        bail!("the node got no configuration within {} s; the log says why", PATIENCE.as_secs());
    }
    greeting::print(&serve.output, &control, node.data_addr, node.admin_addr)?;

    shutdown.asked().await;
    // The node first: what it drains still goes to the ledger.
    stop_node.fire();
    runtime::task::spawn_blocking("stop", move || node.join()).await?;
    control.stop().await;
    runtime::task::spawn_blocking("telemetry", move || telemetry.shutdown()).await?;
    Ok(())
}

/// Where the node's own port is when nobody says: several of these programs run side by side with no
/// more than the two addresses that people use.
fn node_address(listen: SocketAddr) -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], 7082));
    let free = listen.port() != 0 && std::net::TcpListener::bind(usual).is_ok();
    if free { usual } else { SocketAddr::from(([127, 0, 0, 1], 0)) }
}

fn control_config(serve: &Serve) -> ControlConfig {
    let config = ControlConfig {
        data_dir: serve.data_dir.clone(),
        database_url: serve.database_url.clone(),
        listen: serve.admin_listen,
        grpc_listen: serve.grpc_listen,
        grpc_names: serve.grpc_names.clone(),
        kek: None,
        environment: Environment::none(),
    };
    config.with_environment()
}
