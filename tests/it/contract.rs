//! The management interface against its own OpenAPI document, by schemathesis: whatever the document
//! allows is answered as the document says, and what it forbids is refused.

use std::process::Command;

use tests::folder::Folder;
use tests::house::Builder;
use tests::require;

/// Examples of each operation and phase.
const EXAMPLES: &str = "10";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_as_documented() {
    let python = require::or_skip("Python with schemathesis", require::python("schemathesis"));
    let Some(python) = python else { return };
    let house = Builder::together().start().await.expect("a house");
    let folder = Folder::new().expect("a folder");
    let token = house.control.first_line["admin_token"].as_str().expect("a first start").to_owned();
    let document = format!("{}/openapi.json", house.admin.base());
    let mut command = Command::new(python);
    command
        .args(["-m", "schemathesis.cli", "run", &document, "--max-examples", EXAMPLES, "--seed", "1"])
        .args(["--header", &format!("Authorization: Bearer {}", token)])
        .args(["--continue-on-failure", "--generation-database", "none"])
        // Names that exist and values that fit each other are more than a schema can say.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .env("NO_PROXY", "127.0.0.1")
        .current_dir(folder.path());
    let ended = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    let out = ended.expect("the runner starts");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{}\n{text}", out.status);
    assert!(text.contains("passed"), "{text}");
}
