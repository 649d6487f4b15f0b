//! HTTP/1.1 by hand: reads whole requests, writes whatever bytes a script wants, and notices when
//! the other side leaves while nothing is written.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use ring::digest;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::hex;

/// Largest request taken; more is a mistake of the test.
const MAX_REQUEST: usize = 64 * 1024 * 1024;

/// One request, read to its end.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// The body as JSON; `Null` when it is none.
    pub json: Value,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn body_hash(&self) -> String {
        hex(digest::digest(&digest::SHA256, &self.body).as_ref())
    }
}

/// The other side closed or reset the connection.
#[derive(Debug)]
pub struct Gone;

/// One connection from the router.
pub struct Connection {
    stream: TcpStream,
    unread: BytesMut,
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, unread: BytesMut::with_capacity(16 * 1024) }
    }

    /// The next request, or `None` when the other side closed between two.
    pub async fn request(&mut self) -> Result<Option<Request>> {
        let (head, mut request, framing) = loop {
            if let Some(found) = parse_head(&self.unread)? {
                break found;
            }
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                return Ok(None);
            }
        };
        self.unread.advance(head);
        request.body = match framing {
            Framing::Length(length) => self.fixed(length).await?,
            Framing::Chunked => self.chunked().await?,
        };
        request.json = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
        Ok(Some(request))
    }

    /// Writes, noticing when the other side is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.stream.write_all(bytes).await.map_err(|_| Gone)
    }

    /// Waits; ends early when the other side leaves.
    pub async fn pause(&mut self, time: Duration) -> Result<(), Gone> {
        if time.is_zero() {
            return Ok(());
        }
        let end = tokio::time::Instant::now() + time;
        loop {
            match tokio::time::timeout_at(end, self.stream.read_buf(&mut self.unread)).await {
                Err(_) => return Ok(()),
                Ok(Ok(0) | Err(_)) => return Err(Gone),
                // A pipelined request: kept for later. A test that sends megabytes of them is wrong.
                Ok(Ok(_)) if self.unread.len() < MAX_REQUEST => {}
                Ok(Ok(_)) => return Err(Gone),
            }
        }
    }

    /// Closes so that the other side sees a reset, not an orderly end.
    pub fn reset(self) {
        // Linger zero turns the close into RST; an old kernel without it closes in order.
        drop(socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)));
    }

    async fn fixed(&mut self, length: usize) -> Result<Bytes> {
        self.fill(length).await?;
        Ok(self.unread.split_to(length).freeze())
    }

    async fn chunked(&mut self) -> Result<Bytes> {
        let mut body = BytesMut::new();
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).with_context(|| format!("chunk size {line:?}"))?;
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Ok(body.freeze());
            }
            if body.len() + size > MAX_REQUEST {
                bail!("request too large");
            }
            self.fill(size + 2).await?;
            body.extend_from_slice(&self.unread[..size]);
            self.unread.advance(size + 2);
        }
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(at) = self.unread.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..at]).into_owned();
                self.unread.advance(at + 2);
                return Ok(line);
            }
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                bail!("connection ended inside a request");
            }
        }
    }

    async fn fill(&mut self, length: usize) -> Result<()> {
        if length > MAX_REQUEST {
            bail!("request too large");
        }
        self.unread.reserve(length.saturating_sub(self.unread.len()));
        while self.unread.len() < length {
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                bail!("connection ended inside a request");
            }
        }
        Ok(())
    }
}

enum Framing {
    Length(usize),
    Chunked,
}

/// Length of the head, the request without its body, and where the body ends.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Request, Framing)>> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = parsed.parse(bytes)? else { return Ok(None) };
    let mut request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: parsed.path.unwrap_or_default().to_owned(),
        headers: Vec::with_capacity(parsed.headers.len()),
        body: Bytes::new(),
        json: Value::Null,
    };
    for header in parsed.headers.iter() {
        let value = String::from_utf8_lossy(header.value).into_owned();
        request.headers.push((header.name.to_ascii_lowercase(), value));
    }
    let chunked = request.header("transfer-encoding").is_some_and(|v| v.contains("chunked"));
    let framing = match request.header("content-length") {
        _ if chunked => Framing::Chunked,
        Some(length) => Framing::Length(length.parse().with_context(|| format!("content-length {length:?}"))?),
        None => Framing::Length(0),
    };
    Ok(Some((head, request, framing)))
}
