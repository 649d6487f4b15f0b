//! A small HTTP client for REST and for callers of the data port: whole answers, or streams event
//! by event. Every wait has a limit. It never retries and never follows redirects.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ring::digest;
use serde_json::Value;

/// How long any one answer may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// One server, and headers sent with every request.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    headers: HeaderMap,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// First header of this name; "" when absent or not text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// SHA-256 of the body, hex.
    pub fn body_hash(&self) -> String {
        hex(digest::digest(&digest::SHA256, &self.body).as_ref())
    }

    /// The same, or an error with the body when the status is not 2xx.
    pub fn good(self) -> Result<Self> {
        if !(200..300).contains(&self.status) {
            bail!("status {}: {}", self.status, self.text());
        }
        Ok(self)
    }
}

/// An answer whose body is still arriving.
pub struct Streaming {
    /// HTTP status.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    body: Incoming,
    unread: BytesMut,
    hash: digest::Context,
}

impl Streaming {
    /// The next event with its blank line, or `None` at an orderly end. What is left without a
    /// blank line at the end is given as it is.
    pub async fn event(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(at) = self.unread.windows(2).position(|w| w == b"\n\n") {
                let event = self.unread.split_to(at + 2);
                return Ok(Some(String::from_utf8(event.to_vec()).context("an event is not UTF-8")?));
            }
            if !self.more().await? {
                let left = self.unread.split();
                return Ok((!left.is_empty()).then(|| String::from_utf8_lossy(&left).into_owned()));
            }
        }
    }

    /// All further events to the end.
    pub async fn events(&mut self) -> Result<Vec<String>> {
        let mut events = Vec::new();
        while let Some(event) = self.event().await? {
            events.push(event);
        }
        Ok(events)
    }

    /// SHA-256 of all bytes of the body so far, hex.
    pub fn body_hash(&self) -> String {
        hex(self.hash.clone().finish().as_ref())
    }

    async fn more(&mut self) -> Result<bool> {
        let frame = tokio::time::timeout(LIMIT, self.body.frame()).await.context("the stream paused too long")?;
        let Some(frame) = frame else { return Ok(false) };
        if let Some(data) = frame.context("the stream broke")?.data_ref() {
            self.hash.update(data);
            self.unread.extend_from_slice(data);
        }
        Ok(true)
    }
}

impl Http {
    /// A client of `base` ("http://host:port", perhaps with a path), keeping connections.
    pub fn new(base: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(connector());
        Self { client, base: base.trim_end_matches('/').to_owned(), headers: HeaderMap::new() }
    }

    /// The same, with a new connection for every request.
    pub fn without_reuse(base: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector());
        Self { client, ..Self::new(base) }
    }

    /// Sends this header with every request. Panics on a name or value that HTTP cannot carry.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().expect("a header value"));
        self
    }

    /// Where it asks.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, Bytes::new(), &[]).await
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(Method::POST, path, body.to_string().into(), &[]).await
    }

    /// PATCH of JSON.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(Method::PATCH, path, body.to_string().into(), &[]).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(Method::DELETE, path, Bytes::new(), &[]).await
    }

    /// Anything, with further headers; the whole answer.
    pub async fn send(&self, method: Method, path: &str, body: Bytes, headers: &[(&str, &str)]) -> Result<Answer> {
        let what = format!("{method} {path}");
        let exchange = async {
            let mut streaming = self.open_with(method, path, body, headers).await?;
            while streaming.more().await? {}
            let Streaming { status, headers, unread, .. } = streaming;
            anyhow::Ok(Answer { status, headers, body: unread.freeze() })
        };
        match tokio::time::timeout(LIMIT, exchange).await {
            Ok(answer) => answer.with_context(|| format!("{what} at {}", self.base)),
            Err(_) => bail!("{what} at {}: no answer within {LIMIT:?}", self.base),
        }
    }

    /// POST of JSON; the answer is read by the caller.
    pub async fn open(&self, path: &str, body: &Value) -> Result<Streaming> {
        self.open_with(Method::POST, path, body.to_string().into(), &[]).await
    }

    async fn open_with(&self, method: Method, path: &str, body: Bytes, headers: &[(&str, &str)]) -> Result<Streaming> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Full::new(body))?;
        for (name, value) in &self.headers {
            if !request.headers().contains_key(name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        let answer = tokio::time::timeout(LIMIT, self.client.request(request)).await.context("no answer in time")??;
        let (head, body) = answer.into_parts();
        Ok(Streaming {
            status: StatusCode::as_u16(&head.status),
            headers: head.headers,
            body,
            unread: BytesMut::new(),
            hash: digest::Context::new(&digest::SHA256),
        })
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(5)));
    connector
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
