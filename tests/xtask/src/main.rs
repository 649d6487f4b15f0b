//! `cargo xtask`: the commands of a developer of this repository. Nothing to install.

mod generate;

fn main() -> anyhow::Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    generate::run(&root, false)
}
