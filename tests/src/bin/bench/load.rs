//! The load: requests as bytes, closed loop and open loop, over raw HTTP/1.1. In the open loop a
//! request has an intended time, and its latency counts from there, so that a stall is not hidden by
//! the requests that it kept from being sent.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::stat::Stat;
use crate::upstream::{content_length, find};

/// Longest wait for the first answer of a starting process.
const START: Duration = Duration::from_secs(30);
/// The last part of a wait is spun: a timer is late by up to a millisecond.
const SPIN: Duration = Duration::from_micros(1_500);

/// Something that is measured.
pub struct Target {
    /// Its column.
    pub name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process; none for what shares ours.
    pub process: Option<Stat>,
    /// Bytes before any load.
    pub idle_rss: Option<u64>,
    /// Most bytes after load.
    pub loaded_rss: Option<u64>,
}

impl Target {
    /// Not yet measured.
    pub fn new(name: &'static str, address: SocketAddr, process: Option<Stat>) -> Self {
        Self { name, address, process, idle_rss: None, loaded_rss: None }
    }
}

/// A request as it is sent; cheap to clone.
#[derive(Clone)]
pub struct Request {
    /// Its row.
    pub name: &'static str,
    bytes: Rc<[u8]>,
    streamed: bool,
}

impl Request {
    /// A chat whose body has about this size.
    pub fn chat(name: &'static str, size: usize, streamed: bool, key: &str) -> Self {
        let flag = if streamed { "\"stream\":true," } else { "" };
        let start = format!(r#"{{{flag}"model":"bench/model","messages":[{{"role":"user","content":""#);
        let text = "The quick brown fox. ".repeat(size / 21);
        let body = format!("{start}{text}\"}}]}}");
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Self { name, bytes: [head, body].concat().into_bytes().into(), streamed }
    }
}

/// Latencies of one run, and of streams the time to the first event.
#[derive(Default)]
pub struct Latencies(Vec<Duration>);

/// Two points of a distribution.
#[derive(Debug, Clone, Copy)]
pub struct Percentiles {
    /// Half are faster.
    pub p50: Duration,
    /// All but one of a hundred are faster.
    pub p99: Duration,
}

impl Latencies {
    /// Fails when there are none.
    pub fn percentiles(mut self) -> Result<Percentiles> {
        self.0.sort();
        let at =
            |percent: usize| self.0.get((self.0.len() * percent / 100).min(self.0.len().saturating_sub(1))).copied();
        Ok(Percentiles { p50: at(50).context("no latencies")?, p99: at(99).context("no latencies")? })
    }
}

/// `connections` that each ask again as soon as they are answered, for `time`: answers in all.
pub async fn closed_loop(to: SocketAddr, request: &Request, connections: usize, time: Duration) -> Result<u64> {
    let end = Instant::now() + time;
    let mut callers = JoinSet::new();
    for _ in 0..connections {
        let request = request.clone();
        callers.spawn_local(async move {
            let mut connection = Connection::open(to).await?;
            let mut answers = 0_u64;
            while Instant::now() < end {
                connection.ask(&request).await?;
                answers += 1;
            }
            anyhow::Ok(answers)
        });
    }
    let mut answers = 0;
    while let Some(one) = callers.join_next().await {
        answers += one??;
    }
    Ok(answers)
}

/// `rate` requests per second for `time`, whatever comes back when.
pub async fn open_loop(to: SocketAddr, request: &Request, rate: u32, time: Duration) -> Result<Latencies> {
    let interval = Duration::from_secs(1) / rate;
    let idle: Rc<RefCell<Vec<Connection>>> = Rc::default();
    let first = Instant::now() + Duration::from_millis(50);
    let count = u32::try_from(time.as_nanos() / interval.as_nanos())?;
    // The first tenth opens connections and warms caches; it is not counted.
    let warm = count / 10;
    let mut running = JoinSet::new();
    for number in 0..count {
        let intended = first + interval * number;
        wait_until(intended).await;
        let (idle, request) = (idle.clone(), request.clone());
        running.spawn_local(async move {
            let kept = idle.borrow_mut().pop();
            let mut connection = match kept {
                Some(connection) => connection,
                None => Connection::open(to).await?,
            };
            let until = connection.ask(&request).await?;
            idle.borrow_mut().push(connection);
            anyhow::Ok((number >= warm).then(|| until - intended))
        });
    }
    let mut latencies = Latencies::default();
    while let Some(one) = running.join_next().await {
        latencies.0.extend(one??);
    }
    Ok(latencies)
}

/// Asks until the first answer of a process that is starting.
pub async fn first_answer(to: SocketAddr, request: &Request) -> Result<()> {
    let begun = Instant::now();
    loop {
        if let Ok(mut connection) = Connection::open(to).await
            && connection.ask(request).await.is_ok()
        {
            return Ok(());
        }
        if begun.elapsed() > START {
            bail!("no answer within {START:?}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn wait_until(intended: Instant) {
    if let Some(coarse) = intended.checked_sub(SPIN) {
        tokio::time::sleep_until(coarse.into()).await;
    }
    while Instant::now() < intended {
        tokio::task::yield_now().await;
    }
}

struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    async fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: Vec::with_capacity(32 << 10) })
    }

    /// One exchange. Gives when the answer was whole; of a stream, when its first event came.
    async fn ask(&mut self, request: &Request) -> Result<Instant> {
        self.unread.clear();
        self.stream.write_all(&request.bytes).await?;
        let head = loop {
            self.more().await?;
            if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                break at + 4;
            }
        };
        if !self.unread.starts_with(b"HTTP/1.1 200 ") {
            bail!("{}", String::from_utf8_lossy(&self.unread));
        }
        if let Some(length) = content_length(&self.unread[..head]) {
            while self.unread.len() < head + length {
                self.more().await?;
            }
            return Ok(Instant::now());
        }
        let mut first = None;
        loop {
            if first.is_none() && find(&self.unread[head..], b"data:").is_some() {
                first = Some(Instant::now());
            }
            if self.unread.ends_with(b"0\r\n\r\n") {
                let whole = Instant::now();
                return Ok(if request.streamed { first.unwrap_or(whole) } else { whole });
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.unread).await? == 0 {
            bail!("the connection ended inside an answer");
        }
        Ok(())
    }
}
