//! The program `control-plane`: settings, logs, and a wait for the end.

use std::io::Write as _;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use control_plane::{Config, Running};
use runtime::telemetry::{self, Format};

/// Holds the description of workspaces, compiles it, pushes it to nodes, and takes back usage.
///
/// Settings come from the command line, else the environment, else the TOML file of --config (keys are
/// the long options' names with underscores), else defaults.
#[derive(Debug, Parser)]
#[command(name = "control-plane", version, args_override_self = true)]
struct Cli {
    #[command(flatten)]
    config: Config,

    #[command(flatten)]
    output: OutputOptions,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct OutputOptions {
    /// TOML file with settings.
    #[arg(long, env = "POINTSMAN_CONFIG")]
    config: Option<std::path::PathBuf>,

    /// Form of the first line on standard output: `text`, or `json` for scripts.
    #[arg(long, env = "POINTSMAN_OUTPUT", default_value = "text", value_parser = ["text", "json"])]
    output: String,

    /// Form of log lines on standard error: `text` or `json`.
    #[arg(long, env = "POINTSMAN_LOG_FORMAT", default_value = "text")]
    log_format: Format,

    /// What to log, such as `info,control_plane=debug`.
    #[arg(long, env = "POINTSMAN_LOG", default_value = "info")]
    log: String,

    /// Where to send spans (OTLP over gRPC), such as http://127.0.0.1:4317. Left out: no spans.
    #[arg(long, env = "POINTSMAN_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,

    /// Share of traces that begin here and are recorded, 0 to 1.
    #[arg(long, env = "POINTSMAN_TRACE_RATIO", default_value_t = 1.0)]
    trace_ratio: f64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (the default).
    Serve,
    /// Print the OpenAPI document of the management interface.
    Openapi,
}

fn main() -> anyhow::Result<()> {
    let command = Cli::command();
    let arguments = runtime::settings::arguments(&command)?;
    let cli = Cli::from_arg_matches(&command.get_matches_from(arguments))?;
    match cli.command {
        Some(Command::Openapi) => {
            let document = control_plane::rest::document(&control_plane::rest::routes());
            let text = serde_json::to_string_pretty(&document)?;
            // A reader that has seen enough (`| head`) is no fault.
            match writeln!(std::io::stdout(), "{text}") {
                Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
                Ok(()) | Err(_) => Ok(()),
            }
        }
        Some(Command::Serve) | None => serve(cli.config.with_environment(), &cli.output),
    }
}

fn serve(config: Config, output: &OutputOptions) -> anyhow::Result<()> {
    let telemetry = telemetry::init(&telemetry::Options {
        filter: Some(output.log.clone()),
        format: output.log_format,
        otlp_endpoint: output.otlp_endpoint.clone(),
        sample_ratio: output.trace_ratio,
        ..telemetry::Options::new("control-plane", env!("CARGO_PKG_VERSION"))
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let running = control_plane::start(config).await?;
        announce(&running, &output.output)?;
        let (trigger, asked) = runtime::shutdown::channel();
        trigger.fire_on_signals()?;
        asked.asked().await;
        running.stop().await;
        anyhow::Ok(())
    })?;
    drop(runtime);
    telemetry.shutdown();
    Ok(())
}

/// The startup line: what it is, where, and at the first start the secrets, this once.
fn announce(running: &Running, form: &str) -> anyhow::Result<()> {
    let admin_url = format!("http://{}", running.admin_addr);
    let grpc = running.grpc_addr.map(|address| address.to_string());
    let secret = |secret: &control_plane::vault::Secret| secret.expose_str().map(str::to_owned);
    let first = running.first_start.as_ref();
    let admin_token = first.and_then(|f| secret(&f.admin_token));
    let api_key = first.and_then(|f| secret(&f.api_key));
    if form == "json" {
        let mut line =
            serde_json::json!({ "admin_url": admin_url, "grpc_url": grpc.map(|address| format!("https://{address}")) });
        if let (Some(token), Some(key)) = (admin_token, api_key) {
            line["admin_token"] = token.into();
            line["api_key"] = key.into();
        }
        println!("{line}");
        return Ok(());
    }
    let version = env!("CARGO_PKG_VERSION");
    let nodes = grpc.map_or("no listener for nodes".to_owned(), |address| format!("nodes at {address}"));
    println!(
        "control-plane {version}: management at {admin_url}, {nodes}, shared revision {}",
        running.shared_revision
    );
    if let (Some(token), Some(key)) = (admin_token, api_key) {
        println!("first start, shown once:\n  admin token {token}\n  API key     {key}");
        for (vendor, variable) in first.map(|f| f.connected.as_slice()).unwrap_or_default() {
            println!("  connected {vendor} with the key in {variable}");
        }
    }
    Ok(())
}
