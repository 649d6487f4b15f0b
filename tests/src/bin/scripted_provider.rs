//! The scripted provider as its own process: prints its URL as JSON, then serves until it is killed.

use std::net::SocketAddr;

use anyhow::Result;
use clap::Parser;
use tests::provider::ScriptedProvider;

/// A provider for tests: speaks OpenAI chat and embeddings, and does what the request's field
/// `x_script` says (see tests/src/provider/script.rs). `GET /_totals` shows what it reported.
#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 means any free port.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let provider = ScriptedProvider::listen(arguments.listen)?;
    println!("{}", serde_json::json!({"url": provider.url()}));
    loop {
        std::thread::park();
    }
}
