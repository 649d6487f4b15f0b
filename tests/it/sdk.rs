//! The official `openai` packages for Python and Node, unmodified, against a house.

use std::process::Command;

use tests::binaries::repository;
use tests::house::Builder;
use tests::require;

/// Runs a suite against a house; its own runner says what failed.
async fn run(mut command: Command) {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat", "limited", "recovering", "broken"]).await.expect("connected");
    command
        .env("OPENAI_BASE_URL", format!("{}/v1", house.data_url()))
        .env("OPENAI_API_KEY", &house.api_key)
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .env("NO_PROXY", "127.0.0.1");
    let ended = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    let out = ended.expect("the runner starts");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    println!("{text}");
    assert!(out.status.success(), "{}\n{text}", out.status);
    assert!(house.provider.count() > 10, "the suite asked {} times", house.provider.count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python() {
    let Some(python) = require::or_skip("Python with openai", require::python("openai")) else { return };
    let mut command = Command::new(python);
    command
        .args(["-m", "unittest", "discover", "-v", "-p", "test_*.py"])
        .current_dir(repository().join("tests/sdk/python"));
    run(command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node() {
    let Some(dir) = require::or_skip("Node with openai", require::node()) else { return };
    let suite = repository().join("tests/sdk/node/openai.test.mjs");
    let mut command = Command::new("node");
    // The suite finds the package by this folder, wherever the package was installed.
    command.args(["--test", "--test-reporter=spec"]).arg(suite).env("POINTSMAN_TEST_NODE_DIR", &dir);
    run(command).await;
}
