//! Requests that arrive a byte at a time or not at all, and ones that never end. An honest client is
//! served meanwhile.

use std::time::{Duration, Instant};

use tests::house::House;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Target, good_chat};

/// Heads have 10 s, bodies 30 s between two pieces: both with time for a busy machine.
const HEAD: Duration = Duration::from_secs(20);
const BODY: Duration = Duration::from_secs(50);
/// Connections that only trickle.
const TRICKLING: usize = 100;

pub async fn run(house: &mut House, target: &Target) {
    let before = house.provider.count();
    let address = target.address;
    let head = target.head("POST", "/v1/chat/completions");
    let started = Instant::now();

    let mut trickling = Vec::new();
    for _ in 0..TRICKLING {
        let head = head.clone();
        trickling.push(tokio::spawn(async move {
            let stream = TcpStream::connect(address).await.expect("accepted");
            trickle(stream, head.as_bytes()).await
        }));
    }
    let stalled = tokio::spawn({
        let request = format!("{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{\"model\":");
        async move {
            let mut stream = TcpStream::connect(address).await.expect("accepted");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = Vec::new();
            let end = tokio::time::timeout(BODY, stream.read_to_end(&mut answer)).await;
            assert!(end.is_ok(), "a body that stalls is waited for without end");
            String::from_utf8_lossy(&answer).into_owned()
        }
    });
    let huge = tokio::spawn({
        let request = format!("{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
        async move { endless(address, request).await }
    });

    // An honest client beside them.
    let caller = house.caller();
    let mut slowest = Duration::ZERO;
    while started.elapsed() < Duration::from_secs(5) {
        let asked = Instant::now();
        let answer = caller.post("/v1/chat/completions", &good_chat()).await.expect("answers");
        assert_eq!(answer.status, 200, "{}", answer.text());
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "an honest request took {slowest:?}");
    let honest = house.provider.count() - before;

    for connection in trickling {
        let (closed, answer) = connection.await.expect("no panic");
        assert!(closed <= HEAD, "a head may trickle for {closed:?}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    let answer = stalled.await.expect("no panic");
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    let (sent, answer) = huge.await.expect("no panic");
    assert!(answer.starts_with("HTTP/1.1 413") || answer.is_empty(), "{answer}");
    assert!(sent < 64 << 20, "{sent} bytes were taken of a body without end");
    assert_eq!(house.provider.count() - before, honest, "a bad request was forwarded");
}

/// Sends a byte every 100 ms until closed; the time that took, and what came back.
async fn trickle(stream: TcpStream, bytes: &[u8]) -> (Duration, String) {
    let started = Instant::now();
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        for byte in bytes.iter().cycle().filter(|b| **b != b'\r' && **b != b'\n') {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = sending => {}
        _ = tokio::time::timeout(HEAD * 2, read.read_to_end(&mut answer)) => {}
    }
    (started.elapsed(), String::from_utf8_lossy(&answer).into_owned())
}

/// Sends chunks without end until closed; how many bytes, and what came back.
async fn endless(address: std::net::SocketAddr, head: String) -> (usize, String) {
    let stream = TcpStream::connect(address).await.expect("accepted");
    let (mut read, mut write) = stream.into_split();
    write.write_all(head.as_bytes()).await.expect("sent");
    let piece = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
    let sending = async {
        let mut sent = 0;
        while write.write_all(piece.as_bytes()).await.is_ok() && sent < 1 << 30 {
            sent += piece.len();
        }
        sent
    };
    let reading = async {
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = read.read(&mut piece).await {
            answer.extend_from_slice(&piece[..length]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(BODY, async { tokio::join!(sending, reading) }).await.expect("the body is ended")
}
