//! Bytes as they are, for requests that no HTTP client would send.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::Answer;

/// More than this of an answer is not read.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// What came back for some bytes.
#[derive(Debug)]
pub enum Outcome {
    /// An HTTP answer; interim ones (1xx) are skipped.
    Answered(Answer),
    /// The connection was closed or reset without one.
    Closed,
    /// Neither, within the limit.
    Silent,
}

/// Sends `bytes` on a new connection and reads one answer. The sending side stays open.
pub async fn exchange(to: SocketAddr, bytes: &[u8], limit: Duration) -> Result<Outcome> {
    let stream = TcpStream::connect(to).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    // The answer may come, and the connection close, before everything is sent.
    let sending = async {
        drop(write.write_all(bytes).await);
        std::future::pending::<()>().await;
    };
    let reading = answer(&mut read);
    tokio::select! {
        () = sending => Ok(Outcome::Silent),
        outcome = tokio::time::timeout(limit, reading) => Ok(outcome.unwrap_or(Outcome::Silent)),
    }
}

async fn answer(read: &mut (impl AsyncReadExt + Unpin)) -> Outcome {
    let mut bytes = BytesMut::new();
    loop {
        if let Some(answer) = parse(&bytes, false) {
            return Outcome::Answered(answer);
        }
        match read.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return parse(&bytes, true).map_or(Outcome::Closed, Outcome::Answered),
            Ok(_) if bytes.len() > MAX_ANSWER => return Outcome::Closed,
            Ok(_) => {}
        }
    }
}

/// A whole answer at the front of `bytes`; at the end of the connection also one without a length.
fn parse(bytes: &[u8], ended: bool) -> Option<Answer> {
    let mut found = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut found);
    let Ok(httparse::Status::Complete(length)) = head.parse(bytes) else { return None };
    let status = head.code?;
    let rest = &bytes[length..];
    if (100..200).contains(&status) {
        return parse(rest, ended);
    }
    let mut headers = HeaderMap::new();
    for header in head.headers.iter() {
        let name = http::HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        headers.append(name, http::HeaderValue::from_bytes(header.value).ok()?);
    }
    let expected = headers.get("content-length").and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let body = match expected {
        Some(expected) if rest.len() >= expected => rest[..expected].to_vec(),
        Some(_) if !ended => return None,
        None if headers.contains_key("transfer-encoding") && (rest.ends_with(b"0\r\n\r\n") || ended) => unchunk(rest),
        None if !ended => return None,
        Some(_) | None => rest.to_vec(),
    };
    Some(Answer { status, headers, body: Bytes::from(body) })
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((head, size))) = httparse::parse_chunk_size(rest) {
        let size = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len().saturating_sub(head));
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[head..head + size]);
        rest = rest.get(head + size + 2..).unwrap_or_default();
    }
    body
}
