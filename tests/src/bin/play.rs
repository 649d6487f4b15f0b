//! `cargo xtask run`: a house with the scripted provider connected, until Ctrl-C.

use anyhow::Result;
use tests::house::Builder;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut house = Builder::together().start().await?;
    house.connect(&["chat"]).await?;
    let line = &house.control.first_line;
    println!("data   {}", house.data_url());
    println!("admin  {}", line["admin_url"].as_str().unwrap_or_default());
    println!("node   {}", house.control.admin_url);
    println!("admin token  {}", line["admin_token"].as_str().unwrap_or_default());
    println!("upstream     {} (models scripted/chat, scripted/embed)\n", house.provider.url());
    println!("curl {}/v1/chat/completions -H 'Authorization: Bearer {}' \\", house.data_url(), house.api_key);
    println!("  -H 'Content-Type: application/json' \\");
    println!(r#"  -d '{{"model":"scripted/chat","messages":[{{"role":"user","content":"hello"}}]}}'"#);
    println!("\nThe field \"x_script\" of a request tells the provider what to do: tests/src/provider/script.rs.");
    tokio::signal::ctrl_c().await?;
    Ok(())
}
