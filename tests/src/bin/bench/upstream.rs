//! The upstream: pre-built answers over raw HTTP/1.1, as cheap as an upstream can be. It shares the
//! load's thread, so that neither waits for the other's turn.
#![expect(clippy::disallowed_methods, reason = "measured against: as bare as it can be")]

use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Events of a stream, each in its own write.
pub const EVENTS: usize = 50;
/// Bytes of a plain answer's body, about.
const ANSWER: usize = 1024;

struct Prepared {
    plain: Vec<u8>,
    head: Vec<u8>,
    event: Vec<u8>,
    last: Vec<u8>,
    usage: Vec<u8>,
    done: Vec<u8>,
}

/// Starts it on the current `LocalSet`.
pub async fn start() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let prepared = Rc::new(prepare());
    tokio::task::spawn_local(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            drop(stream.set_nodelay(true));
            let prepared = prepared.clone();
            // A connection that breaks is the other side's to notice.
            tokio::task::spawn_local(async move { drop(serve(stream, &prepared).await) });
        }
    });
    Ok(address)
}

fn prepare() -> Prepared {
    let usage = r#""usage":{"prompt_tokens":500,"completion_tokens":200,"total_tokens":700}"#;
    let text = "a".repeat(ANSWER - 330);
    let body = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1750000000,"model":"model","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],{usage}}}"#
    );
    let chunk = |delta: &str, rest: &str| {
        let data = format!(
            r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1750000000,"model":"model","choices":[{delta}]{rest}}}"#
        );
        framed(&format!("{data}\n\n"))
    };
    Prepared {
        plain: format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
        head: b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
        event: chunk(r#"{"index":0,"delta":{"content":" word"},"finish_reason":null}"#, ""),
        last: chunk(r#"{"index":0,"delta":{},"finish_reason":"stop"}"#, ""),
        usage: chunk("", &format!(",{usage}")),
        done: [framed("data: [DONE]\n\n"), b"0\r\n\r\n".to_vec()].concat(),
    }
}

fn framed(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

async fn serve(mut stream: TcpStream, prepared: &Prepared) -> std::io::Result<()> {
    let mut unread = Vec::with_capacity(256 << 10);
    loop {
        let Some((head, length)) = request(&mut stream, &mut unread).await? else { return Ok(()) };
        let body = &unread[head..head + length];
        let streamed = has(&body[..body.len().min(300)], b"\"stream\":true");
        let usage = streamed && has(body, b"include_usage");
        unread.drain(..head + length);
        if !streamed {
            stream.write_all(&prepared.plain).await?;
            continue;
        }
        stream.write_all(&prepared.head).await?;
        for _ in 0..EVENTS - 1 {
            stream.write_all(&prepared.event).await?;
        }
        stream.write_all(&prepared.last).await?;
        if usage {
            stream.write_all(&prepared.usage).await?;
        }
        stream.write_all(&prepared.done).await?;
    }
}

/// Reads one request into `unread`: lengths of its head and body.
async fn request(stream: &mut TcpStream, unread: &mut Vec<u8>) -> std::io::Result<Option<(usize, usize)>> {
    let mut searched = 0;
    loop {
        if let Some(at) = find(&unread[searched..], b"\r\n\r\n") {
            let head = searched + at + 4;
            let length = content_length(&unread[..head]).unwrap_or(0);
            while unread.len() < head + length {
                if stream.read_buf(unread).await? == 0 {
                    return Ok(None);
                }
            }
            return Ok(Some((head, length)));
        }
        searched = unread.len().saturating_sub(3);
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
}

/// Value of `content-length` in a head, whatever its capitals.
pub fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let line =
        head.split(|b| *b == b'\n').find(|l| l.len() > NAME.len() && l[..NAME.len()].eq_ignore_ascii_case(NAME))?;
    std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()
}

/// Where `wanted` begins.
pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|w| w == wanted)
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    find(bytes, wanted).is_some()
}
