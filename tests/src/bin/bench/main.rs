//! `cargo xtask bench`: what the data plane costs, beside two things that bound it: the upstream asked
//! directly, and a bare hyper pass-through. One run, interleaved rounds, the same bytes to all.
//!
//! The target has core 0 to itself; load and upstream share core 1, and what they leave of it is the
//! control plane's. Keys, metering and journal are on. Absolute figures belong to the machine, and on a
//! virtual one to where its cores are at the moment: what is compared is measured one after the other,
//! round by round.

mod load;
mod pass_through;
mod report;
mod stat;
mod upstream;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tests::house::{Builder, House};
use tests::process::{Launch, Program};

use load::{Request, Target};
use report::{Figures, Report};
use stat::Stat;

/// Set in the process that runs on the load's core.
const PINNED: &str = "POINTSMAN_BENCH_PINNED";
/// Connections of the closed loop.
const CONNECTIONS: usize = 64;
/// Requests per second of the open loop, plain and streams.
const RATE: u32 = 200;
const STREAM_RATE: u32 = 100;
/// Starts from the disk snapshot.
const STARTS: usize = 5;

/// Measures direct, a bare pass-through and the data plane on the same upstream.
#[derive(Parser)]
struct Arguments {
    /// One short round: whether it works and is roughly where it was, not figures to publish.
    #[arg(long)]
    quick: bool,
    /// Rounds; medians are printed.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Only rows whose name begins like this, such as "2 KB"; without latencies and starts.
    #[arg(long)]
    only: Option<String>,
    /// Load, upstream and target on one core: slower, and steady enough to compare two versions.
    #[arg(long)]
    one_core: bool,
    #[command(subcommand)]
    command: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// The pass-through alone, for this upstream.
    PassThrough {
        /// Where it forwards to.
        upstream: SocketAddr,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Part::PassThrough { upstream }) = arguments.command {
        return pass_through::run(upstream);
    }
    pin_to(if arguments.one_core { "0" } else { "1" })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(&arguments))
}

/// Starts this program again on this core, when there are two cores and `taskset`.
fn pin_to(core: &str) -> Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    if std::env::var_os(PINNED).is_some() || cores < 2 {
        return Ok(());
    }
    if Command::new("taskset").arg("--version").output().is_err() {
        eprintln!("no taskset: nothing is pinned, figures are rough");
        return Ok(());
    }
    let me = std::env::current_exe()?;
    // Only returns when it fails.
    let failed =
        Command::new("taskset").args(["-c", core]).arg(me).args(std::env::args_os().skip(1)).env(PINNED, "1").exec();
    Err(failed).with_context(|| format!("starting on core {core}"))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let (rounds, time) = match arguments.quick {
        true => (1, Duration::from_secs(1)),
        false => (arguments.rounds, Duration::from_secs(arguments.seconds)),
    };
    let pinned = std::env::var_os(PINNED).is_some();
    eprintln!("building the programs where they are not up to date: up to some minutes");
    let upstream = upstream::start().await?;
    let mut house = builder(pinned).start().await?;
    house.connect_as("bench", &format!("http://{upstream}/v1"), "sk-bench", &["model"]).await?;
    house.serves("bench/model").await?;
    let mut pass = pass_through(pinned, upstream)?;
    let pass_line = pass.first_line(Duration::from_secs(10))?;
    let pass_address: SocketAddr = pass_line["address"].as_str().context("no address")?.parse()?;
    let node = house.node(0).data.context("no data port")?;

    let mut targets = vec![
        Target::new("direct", upstream, None),
        Target::new("pass-through", pass_address, Some(stat::worker(pass.pid())?)),
        Target::new("data plane", node, Some(stat::worker(house.node(0).program().pid())?)),
    ];
    let mut report = Report::default();
    for target in &mut targets {
        target.idle_rss = target.process.map(Stat::rss).transpose()?;
    }
    let key = house.api_key.clone();
    let requests = [
        Request::chat("2 KB", 2 << 10, false, &key),
        Request::chat("32 KB", 32 << 10, false, &key),
        Request::chat("200 KB", 200 << 10, false, &key),
        Request::chat("stream of 50", 2 << 10, true, &key),
    ];
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| name.starts_with(only.as_str()));
    for round in 0..rounds {
        for request in requests.iter().filter(|request| wanted(request.name)) {
            for target in &mut targets {
                let figures = closed_loop(target, request, time).await?;
                eprintln!("round {}: {:>12} {:>12}: {figures}", round + 1, request.name, target.name);
                report.add(target.name, &format!("{}, {CONNECTIONS} connections", request.name), figures);
            }
        }
        if arguments.only.is_some() {
            continue;
        }
        for (request, rate) in [(&requests[0], RATE), (&requests[3], STREAM_RATE)] {
            for target in &targets {
                let latencies = load::open_loop(target.address, request, rate, time).await?;
                let what = format!("{}, {rate}/s", request.name);
                let figures = Figures { latency: Some(latencies.percentiles()?), ..Figures::default() };
                eprintln!("round {}: {what:>12} {:>12}: {figures}", round + 1, target.name);
                report.add(target.name, &what, figures);
            }
        }
    }
    let starts = match arguments.only {
        Some(_) => Vec::new(),
        None => starts(&mut house, node, &requests[0]).await?,
    };
    report.print(&targets, &starts);
    Ok(())
}

fn builder(pinned: bool) -> Builder {
    let builder = Builder::apart(1).threads(1);
    if pinned { builder.pinned("0", "1") } else { builder }
}

fn pass_through(pinned: bool, upstream: SocketAddr) -> Result<Program> {
    let me = std::env::current_exe()?;
    let launch = Launch::new(&me, ["pass-through".to_owned(), upstream.to_string()]);
    Program::start(&if pinned { launch.pinned("0") } else { launch })
}

/// Throughput and CPU at saturation, after a short warm-up.
async fn closed_loop(target: &mut Target, request: &Request, time: Duration) -> Result<Figures> {
    load::closed_loop(target.address, request, CONNECTIONS, time / 4).await?;
    let before = target.process.map(Stat::cpu).transpose()?;
    let begun = Instant::now();
    let answers = load::closed_loop(target.address, request, CONNECTIONS, time).await?;
    let took = begun.elapsed();
    let after = target.process.map(Stat::cpu).transpose()?;
    if let Some(process) = target.process {
        target.loaded_rss = target.loaded_rss.max(Some(process.rss()?));
    }
    let count = answers as f64;
    let cpu = before.zip(after).map(|(b, a)| (a - b).as_secs_f64() * 1e3 / count);
    Ok(Figures { per_second: Some(count / took.as_secs_f64()), cpu_ms: cpu, ..Figures::default() })
}

/// From the start of the process to its first answer, without a control plane.
async fn starts(house: &mut House, node: SocketAddr, request: &Request) -> Result<Vec<Duration>> {
    house.control.kill()?;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        house.node(0).kill()?;
        let begun = Instant::now();
        house.node(0).start_again_unready()?;
        load::first_answer(node, request).await?;
        times.push(begun.elapsed());
    }
    times.sort();
    Ok(times)
}
