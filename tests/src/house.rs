//! A whole house on loopback: the planes as processes, a scripted provider behind them, clients in
//! front. Together (program `pointsman`) or apart (`control-plane` and any number of `data-plane`s).
//!
//! Dropping it kills every process, removes its folder, and fails the test when a log holds a panic
//! or one of the house's secrets.

mod setup;

use std::ffi::OsStr;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::balancer::{Backend, Balancer};
use crate::binaries;
use crate::folder::Folder;
use crate::http::Http;
use crate::process::{Launch, Program};
use crate::provider::ScriptedProvider;
use crate::wait;

pub use setup::{CREDENTIAL, Connected};

/// A first start makes keys and a database, on a machine that may be busy with other tests.
const START: Duration = Duration::from_secs(60);
/// From SIGTERM to the end, drain included.
const STOP: Duration = Duration::from_secs(60);

/// What the house is made of.
#[derive(Debug, Clone)]
pub struct Builder {
    apart: bool,
    nodes: usize,
    threads: usize,
    control_args: Vec<String>,
    node_args: Vec<String>,
    env: Vec<(String, String)>,
    pinned: Option<(String, String)>,
    ignored: Option<String>,
    /// Name of a program, and the folder to take it from.
    folders: Vec<(String, PathBuf)>,
}

/// A running house.
pub struct House {
    /// The upstream of its provider connection `scripted`.
    pub provider: ScriptedProvider,
    /// REST under `/api/v1`, as an administrator.
    pub admin: Http,
    /// A key of workspace `default` that may do everything.
    pub api_key: String,
    /// The control plane, or the one program of a house that is together.
    pub control: Server,
    /// The data planes; of a house that is together none: `control` is its node.
    pub nodes: Vec<Server>,
    /// Where nodes join: `https://HOST:PORT`.
    pub grpc_url: Option<String>,
    /// Must not appear in any log.
    pub secrets: Vec<String>,
    builder: Builder,
    folder: Folder,
}

/// One program of the house, which may be stopped and started again on the same addresses.
pub struct Server {
    launch: Launch,
    program: Program,
    /// Data port, for programs that have one.
    pub data: Option<SocketAddr>,
    /// URL of the node's admin port (`/readyz`, `/metrics`); of a lone control plane its REST.
    pub admin_url: String,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// What it printed when it was first ready.
    pub first_line: Value,
}

impl Builder {
    /// Both planes in one process.
    pub fn together() -> Self {
        Self {
            apart: false,
            nodes: 0,
            threads: 2,
            control_args: Vec::new(),
            node_args: Vec::new(),
            env: Vec::new(),
            pinned: None,
            ignored: None,
            folders: Vec::new(),
        }
    }

    /// Takes this program from a folder, as built from another version.
    pub fn program_from(mut self, name: &str, folder: &Path) -> Self {
        self.folders.push((name.to_owned(), folder.to_owned()));
        self
    }

    fn program(&self, name: &str) -> Result<PathBuf> {
        match self.folders.iter().find(|(named, _)| named == name) {
            Some((_, folder)) => Ok(folder.join(name)),
            None => binaries::program(name),
        }
    }

    /// A control plane and so many nodes, joined over mTLS.
    pub fn apart(nodes: usize) -> Self {
        // Providers of tests live on loopback; the balancer of tests looks twenty times a second.
        let args = ["--egress-allow-private=true", "--drain-delay-ms=500"];
        Self { apart: true, nodes, ..Self::together() }.node_args(&args)
    }

    /// Threads of each data plane.
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Further arguments of the control plane, or of the one program.
    pub fn control_args(mut self, args: &[&str]) -> Self {
        self.control_args.extend(args.iter().map(|a| (*a).to_owned()));
        self
    }

    /// Further arguments of every node (or of the one program).
    pub fn node_args(mut self, args: &[&str]) -> Self {
        self.node_args.extend(args.iter().map(|a| (*a).to_owned()));
        self
    }

    /// Set in the environment of every program.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Nodes are deaf to this signal, such as "XFSZ".
    pub fn nodes_ignore(self, signal: &str) -> Self {
        Self { ignored: Some(signal.to_owned()), ..self }
    }

    /// Nodes on these cores, the control plane on those and behind the load, for measuring.
    pub fn pinned(self, nodes: &str, control: &str) -> Self {
        Self { pinned: Some((nodes.to_owned(), control.to_owned())), ..self }
    }

    /// Starts everything and waits until it is ready. The workspace `default` is still empty: see
    /// [`House::connect`].
    pub async fn start(self) -> Result<House> {
        let folder = Folder::new()?;
        let provider = ScriptedProvider::start()?;
        if self.apart { self.start_apart(folder, provider).await } else { self.start_together(folder, provider).await }
    }

    async fn start_together(self, folder: Folder, provider: ScriptedProvider) -> Result<House> {
        let admin = free_address()?;
        let data_dir = folder.join("data");
        let mut args = vec!["serve".to_owned()];
        args.extend(flags(&[
            ("data-dir", &data_dir.display().to_string()),
            ("listen", "127.0.0.1:0"),
            ("admin-listen", "127.0.0.1:0"),
            ("node-listen", &admin.to_string()),
            ("threads", &self.threads.to_string()),
            ("output", "json"),
        ]));
        args.extend(self.control_args.iter().cloned());
        args.extend(self.node_args.iter().cloned());
        let mut launch = Launch::new(&binaries::program("pointsman")?, args);
        launch.env.clone_from(&self.env);
        let mut control = Server::start(launch, data_dir)?;
        let line = control.first_line.clone();
        control.admin_url = format!("http://{admin}");
        control.fix_address("listen", field(&line, "data_url")?)?;
        control.fix_address("admin-listen", field(&line, "admin_url")?)?;
        control.data = Some(socket(field(&line, "data_url")?)?);
        let (token, key) = (field(&line, "admin_token")?.to_owned(), field(&line, "api_key")?.to_owned());
        let rest = Http::new(&format!("{}/api/v1", field(&line, "admin_url")?))
            .header("authorization", &format!("Bearer {token}"));
        Ok(House {
            provider,
            admin: rest,
            secrets: vec![token, key.clone()],
            api_key: key,
            control,
            nodes: Vec::new(),
            grpc_url: line["grpc_url"].as_str().map(str::to_owned),
            builder: self,
            folder,
        })
    }

    async fn start_apart(self, folder: Folder, provider: ScriptedProvider) -> Result<House> {
        let data_dir = folder.join("control");
        let mut args = flags(&[
            ("data-dir", &data_dir.display().to_string()),
            ("listen", "127.0.0.1:0"),
            ("grpc-listen", "127.0.0.1:0"),
            ("output", "json"),
        ]);
        args.extend(self.control_args.iter().cloned());
        let mut launch = Launch::new(&self.program("control-plane")?, args);
        launch.env.clone_from(&self.env);
        if let Some((_, control)) = &self.pinned {
            // Load that waits for the control plane would leave the nodes half idle.
            launch = launch.pinned(control).nice();
        }
        let mut control = Server::start(launch, data_dir)?;
        let line = control.first_line.clone();
        control.admin_url = field(&line, "admin_url")?.to_owned();
        control.fix_address("listen", field(&line, "admin_url")?)?;
        let grpc = field(&line, "grpc_url")?.to_owned();
        control.fix_address("grpc-listen", &grpc)?;
        let token = field(&line, "admin_token")?.to_owned();
        let rest =
            Http::new(&format!("{}/api/v1", control.admin_url)).header("authorization", &format!("Bearer {token}"));
        let mut house = House {
            provider,
            admin: rest,
            secrets: vec![token],
            api_key: String::new(),
            control,
            nodes: Vec::new(),
            grpc_url: Some(grpc),
            builder: self,
            folder,
        };
        house.ensure_workspace().await?;
        for _ in 0..house.builder.nodes {
            house.add_node().await?;
        }
        house.api_key = house.new_key("harness").await?;
        Ok(house)
    }
}

impl House {
    /// Starts one more control plane on the same database, which must not be a file; gives the server
    /// and a client of its REST.
    pub fn add_replica(&mut self) -> Result<(Server, Http)> {
        let data_dir = self.folder.join("replica");
        let mut launch = self.control.launch.clone();
        launch.name = "control-plane 2".to_owned();
        let any = OsStr::new("127.0.0.1:0");
        for (flag, value) in [("data-dir", data_dir.as_os_str()), ("listen", any), ("grpc-listen", any)] {
            set_flag(&mut launch, flag, value)?;
        }
        let mut replica = Server::start(launch, data_dir)?;
        replica.admin_url = field(&replica.first_line, "admin_url")?.to_owned();
        let token = self.secrets.first().context("the admin token")?;
        let rest =
            Http::new(&format!("{}/api/v1", replica.admin_url)).header("authorization", &format!("Bearer {token}"));
        Ok((replica, rest))
    }

    /// Joins and starts one more node.
    pub async fn add_node(&mut self) -> Result<usize> {
        let token = self.join_token().await?;
        let grpc = self.grpc_url.clone().context("the house has no gRPC port")?;
        self.add_node_at(&grpc, &token).await
    }

    /// The same over another address of the control plane (a fault proxy), with a given token.
    pub async fn add_node_at(&mut self, grpc_url: &str, token: &str) -> Result<usize> {
        let data_dir = self.folder.join(format!("node{}", self.nodes.len()));
        let mut args = flags(&[
            ("data-dir", &data_dir.display().to_string()),
            ("control-plane", grpc_url),
            ("join-token", token),
            ("listen", "127.0.0.1:0"),
            ("admin-listen", "127.0.0.1:0"),
            ("threads", &self.builder.threads.to_string()),
            ("output", "json"),
        ]);
        args.extend(self.builder.node_args.iter().cloned());
        let mut launch = Launch::new(&self.builder.program("data-plane")?, args);
        launch.name = format!("data-plane {}", self.nodes.len());
        launch.env.clone_from(&self.builder.env);
        if let Some((nodes, _)) = &self.builder.pinned {
            launch = launch.pinned(nodes);
        }
        if let Some(signal) = &self.builder.ignored {
            launch = launch.ignoring(signal);
        }
        let mut node = Server::start(launch, data_dir)?;
        let line = node.first_line.clone();
        node.admin_url = field(&line, "admin_url")?.to_owned();
        node.data = Some(socket(field(&line, "data_url")?)?);
        node.fix_address("listen", field(&line, "data_url")?)?;
        node.fix_address("admin-listen", field(&line, "admin_url")?)?;
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    /// A balancer before all nodes, once all of them are ready.
    pub async fn balancer(&self) -> Result<Balancer> {
        let backend = |node: &Server| {
            let data = node.data.context("no data port")?;
            Ok(Backend { data, admin_url: node.admin_url.clone() })
        };
        let balancer = Balancer::start(self.nodes.iter().map(backend).collect::<Result<_>>()?).await?;
        balancer.all_ready(START).await?;
        Ok(balancer)
    }

    /// The server of node `index`.
    pub fn node(&mut self, index: usize) -> &mut Server {
        if self.nodes.is_empty() { &mut self.control } else { &mut self.nodes[index] }
    }

    /// URL of the data port of the first node.
    pub fn data_url(&self) -> String {
        let server = self.nodes.first().unwrap_or(&self.control);
        server.data_url()
    }

    /// A client of the first node with the house's key.
    pub fn caller(&self) -> Http {
        self.caller_with(&self.api_key)
    }

    /// The same with another key.
    pub fn caller_with(&self, key: &str) -> Http {
        Http::new(&self.data_url()).header("authorization", &format!("Bearer {key}"))
    }

    /// All servers.
    pub fn servers(&mut self) -> impl Iterator<Item = &mut Server> {
        std::iter::once(&mut self.control).chain(self.nodes.iter_mut())
    }

    /// A path in the house's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn check_logs(&self) -> Result<()> {
        std::iter::once(&self.control).chain(&self.nodes).try_for_each(|s| s.program.check_log(&self.secrets))
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Err(error) = self.check_logs() {
            panic!("{error:#}");
        }
    }
}

impl Server {
    fn start(launch: Launch, data_dir: PathBuf) -> Result<Self> {
        let mut program = Program::start(&launch)?;
        let first_line = program.first_line(START)?;
        Ok(Self { launch, program, data: None, admin_url: String::new(), data_dir, first_line })
    }

    /// URL of the data port.
    pub fn data_url(&self) -> String {
        self.data.map(|a| format!("http://{a}")).unwrap_or_default()
    }

    /// Its process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.program.kill()
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.program.signal("TERM")?;
        self.program.ended(STOP).await
    }

    /// Starts it again on the same addresses, and waits until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.program.kill()?;
        self.program = Program::start(&self.launch)?;
        self.program.first_line(START)?;
        Ok(())
    }

    /// Starts this version of its program instead, on the same addresses and data.
    pub fn upgrade(&mut self) -> Result<()> {
        let name = Path::new(&self.launch.command[0]).file_name().context("a program")?.to_string_lossy().into_owned();
        self.launch.command[0] = binaries::program(&name)?.into();
        self.start_again()
    }

    /// As [`Server::start_again`], without waiting.
    pub fn start_again_unready(&mut self) -> Result<()> {
        self.program.kill()?;
        self.program = Program::start(&self.launch)?;
        Ok(())
    }

    /// Waits until `/readyz` of the admin port says 200.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        let http = Http::without_reuse(&self.admin_url);
        wait::until(limit, "ready", || async { http.get("/readyz").await.ok().filter(|a| a.status == 200) }).await?;
        Ok(())
    }

    /// Prometheus text of the admin port.
    pub async fn metrics(&self) -> Result<String> {
        Ok(Http::without_reuse(&self.admin_url).get("/metrics").await?.good()?.text())
    }

    /// Replaces `--flag ADDRESS` by the address of `url`, so that the next start has the same.
    fn fix_address(&mut self, flag: &str, url: &str) -> Result<()> {
        set_flag(&mut self.launch, flag, OsStr::new(&socket(url)?.to_string()))
    }
}

/// Gives another value to a flag that was given.
fn set_flag(launch: &mut Launch, flag: &str, value: &OsStr) -> Result<()> {
    let flag = format!("--{flag}");
    let at = launch.command.iter().position(|a| *a == *flag).context("a flag that was not given")?;
    launch.command[at + 1] = value.to_owned();
    Ok(())
}

/// A port that was free a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]).collect()
}

fn field<'a>(line: &'a Value, name: &str) -> Result<&'a str> {
    line[name].as_str().with_context(|| format!("the first line has no {name}"))
}

/// The address in `scheme://address/...`.
fn socket(url: &str) -> Result<SocketAddr> {
    let rest = url.split("://").nth(1).unwrap_or(url);
    let authority = rest.split('/').next().unwrap_or(rest);
    authority.parse().with_context(|| format!("no address in {url}"))
}
