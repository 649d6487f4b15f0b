//! `data-plane`: one node. Wiring, top to bottom.

use anyhow::{Context, Result};
use clap::{Args as _, Command, CommandFactory, FromArgMatches, Parser};
use data_plane::config::Config;
use data_plane::{Control, start};
use runtime::telemetry;

/// A Pointsman data-plane node: routes requests of applications to providers.
///
/// It gets its configuration from the control plane and keeps serving from its last good state when
/// that is away. The first start needs a join token; later ones do not.
#[derive(Debug, Parser)]
#[command(name = "data-plane", version, args_override_self = true)]
struct Arguments {
    /// TOML file with these settings; keys are the options' names with underscores.
    #[arg(long, env = "POINTSMAN_CONFIG")]
    config: Option<std::path::PathBuf>,

    /// Control plane, `https://HOST:PORT`.
    #[arg(long, env = "POINTSMAN_CONTROL_PLANE")]
    control_plane: String,

    /// Single-use token from `POST /api/v1/nodes/tokens`; needed at the first start only.
    #[arg(long, env = "POINTSMAN_JOIN_TOKEN", hide_env_values = true)]
    join_token: Option<String>,

    /// Form of log lines: text or json.
    #[arg(long, env = "POINTSMAN_LOG_FORMAT", default_value = "text")]
    log_format: telemetry::Format,

    /// Log filter, such as `info,data_plane=debug`.
    #[arg(long, env = "POINTSMAN_LOG")]
    log: Option<String>,

    /// OTLP over gRPC, such as `http://127.0.0.1:4317`; absent = no spans.
    #[arg(long, env = "POINTSMAN_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,

    /// Share of traces that begin here and are recorded, 0 to 1.
    #[arg(long, env = "POINTSMAN_TRACE_RATIO", default_value_t = 1.0)]
    trace_ratio: f64,

    /// What the first line on standard output is: text, or json for scripts.
    #[arg(long, env = "POINTSMAN_OUTPUT", default_value = "text", value_parser = ["text", "json"])]
    output: String,

    #[command(flatten)]
    node: Config,
}

fn main() -> Result<()> {
    let command: Command = Arguments::augment_args(Arguments::command());
    let given = runtime::settings::arguments(&command)?;
    let mut arguments = Arguments::from_arg_matches(&Arguments::command().get_matches_from(given))?;
    let mut options = telemetry::Options::new("data-plane", env!("CARGO_PKG_VERSION"));
    options.filter = arguments.log.take();
    options.format = arguments.log_format;
    options.otlp_endpoint = arguments.otlp_endpoint.take();
    options.sample_ratio = arguments.trace_ratio;
    options.instance = arguments.node.name.clone();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(run(arguments, &options))
}

async fn run(mut arguments: Arguments, options: &telemetry::Options) -> Result<()> {
    let telemetry = telemetry::init(options)?;
    arguments.node.export_spans = telemetry.traces();
    let (trigger, shutdown) = runtime::shutdown::channel();
    trigger.fire_on_signals()?;
    let authority = arguments
        .control_plane
        .strip_prefix("https://")
        .map(|rest| rest.trim_end_matches('/').to_owned())
        .context("--control-plane must be https://HOST:PORT")?;
    let control = Control::Remote { authority, token: arguments.join_token };
    let running = start(arguments.node, control, shutdown.clone()).await?;
    let (data, admin, id) = (running.data_addr, running.admin_addr, running.node_id.clone());
    let held = running.revisions();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = id, %data, %admin, held, "data plane serves");
    match arguments.output.as_str() {
        "json" => println!(
            "{}",
            serde_json::json!({"data_url": format!("http://{data}"), "admin_url": format!("http://{admin}"), "node_id": id})
        ),
        _ => println!(
            "data-plane {} node {id}: requests on http://{data}, health and metrics on http://{admin}, {held}",
            env!("CARGO_PKG_VERSION")
        ),
    }
    shutdown.asked().await;
    runtime::task::spawn_blocking("stop", move || running.join()).await?;
    telemetry.shutdown();
    Ok(())
}
