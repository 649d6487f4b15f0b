//! What the program says once it serves: for people what to do next, for scripts one line of JSON.

use std::io::{self, Write};
use std::net::SocketAddr;

use control_plane::Running;
use serde_json::json;

/// Writes it to standard output. Secrets are shown at the first start only: they are stored hashed.
///
/// # Errors
/// When standard output is closed.
pub fn print(form: &str, control: &Running, data: SocketAddr, node: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match form {
        "json" => writeln!(out, "{}", json(control, data, node))?,
        _ => text(&mut out, control, data, node)?,
    }
    out.flush()
}

fn json(control: &Running, data: SocketAddr, node: SocketAddr) -> serde_json::Value {
    let mut line = json!({
        "data_url": format!("http://{data}"),
        "admin_url": format!("http://{}", control.admin_addr),
        "node_url": format!("http://{node}"),
    });
    if let (Some(first), Some(line)) = (&control.first_start, line.as_object_mut()) {
        line.insert("admin_token".into(), json!(first.admin_token.expose_str()));
        line.insert("api_key".into(), json!(first.api_key.expose_str()));
    }
    if let (Some(grpc), Some(line)) = (control.grpc_addr, line.as_object_mut()) {
        line.insert("grpc_url".into(), json!(format!("https://{grpc}")));
    }
    line
}

fn text(out: &mut impl Write, control: &Running, data: SocketAddr, node: SocketAddr) -> io::Result<()> {
    writeln!(out, "Pointsman {} serves.", env!("CARGO_PKG_VERSION"))?;
    writeln!(out)?;
    writeln!(out, "  requests         http://{data}/v1")?;
    writeln!(out, "  management       http://{}/api/v1", control.admin_addr)?;
    writeln!(out, "  reference        http://{}/api/v1/docs", control.admin_addr)?;
    writeln!(out, "  health, metrics  http://{node}/readyz  http://{node}/metrics")?;
    if let Some(grpc) = control.grpc_addr {
        writeln!(out, "  further nodes    https://{grpc}")?;
    }
    let Some(first) = &control.first_start else { return Ok(()) };
    let (admin_token, api_key) = (first.admin_token.expose_str(), first.api_key.expose_str());
    let (Some(admin_token), Some(api_key)) = (admin_token, api_key) else { return Ok(()) };
    writeln!(out)?;
    writeln!(out, "This is the first start. Both secrets are shown this once; only their hashes are kept.")?;
    writeln!(out)?;
    writeln!(out, "  admin token      {admin_token}")?;
    writeln!(out, "  API key          {api_key}")?;
    writeln!(out)?;
    for (provider, variable) in &first.connected {
        writeln!(out, "  connected provider {provider} with the key found in {variable}")?;
    }
    if !first.connected.is_empty() {
        writeln!(out)?;
    }
    writeln!(out, "Try it (the sandbox echoes; it is no model):")?;
    writeln!(out)?;
    writeln!(out, "  curl http://{data}/v1/chat/completions \\")?;
    writeln!(out, "    -H 'Authorization: Bearer {api_key}' -H 'Content-Type: application/json' \\")?;
    writeln!(
        out,
        "    -d '{{\"model\":\"sandbox/echo\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'"
    )?;
    writeln!(out)
}
