//! A scripted upstream over TCP: answers per model, in order, and remembers what it was sent.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runtime::task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// It ends with the test's runtime.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    scripts: HashMap<String, VecDeque<String>>,
    requests: Vec<String>,
    closed: usize,
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        task::spawn("upstream", async move {
            while let Ok((stream, _)) = listener.accept().await {
                task::spawn("upstream connection", serve(stream, shared.clone()));
            }
        });
        Self { address, state }
    }

    /// `"<status> <body>"`, `"stream-cut <events>"` (then the connection breaks) or `"hang"`.
    pub fn script(&self, model: &str, answers: &[&str]) {
        let answers = answers.iter().map(|a| (*a).to_owned()).collect();
        self.state.lock().expect("no panic").scripts.insert(model.to_owned(), answers);
    }

    pub fn requests(&self) -> usize {
        self.state.lock().expect("no panic").requests.len()
    }

    pub fn last_request(&self) -> String {
        self.state.lock().expect("no panic").requests.last().cloned().unwrap_or_default()
    }

    pub async fn wait_for_requests(&self, count: usize) {
        self.wait(|state| state.requests.len() >= count).await;
    }

    /// Waits until callers have closed this many connections before they were answered.
    pub async fn wait_for_closed(&self, count: usize) {
        self.wait(|state| state.closed >= count).await;
    }

    async fn wait(&self, done: impl Fn(&State) -> bool) {
        for _ in 0..2_000 {
            if done(&self.state.lock().expect("no panic")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it did not happen within ten seconds");
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    while let Some(request) = read_request(&mut stream).await {
        let answer = {
            let mut state = state.lock().expect("no panic");
            let script = state.scripts.iter_mut().find(|(model, _)| request.contains(&format!("\"{model}\"")));
            let answer = script.and_then(|(_, answers)| answers.pop_front()).unwrap_or_else(|| "500 {}".into());
            state.requests.push(request);
            answer
        };
        match answer.split_once(' ') {
            Some(("stream-cut", events)) => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                let chunk = format!("{head}{:x}\r\n{events}\r\n", events.len());
                stream.write_all(chunk.as_bytes()).await.expect("the node reads");
                return;
            }
            Some((status, body)) => {
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + body).as_bytes()).await.expect("the node reads");
            }
            None => {
                let mut byte = [0];
                _ = stream.read(&mut byte).await;
                state.lock().expect("no panic").closed += 1;
                return;
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&buffer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|n| n.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => buffer.extend_from_slice(&chunk[..read]),
        }
    }
}
