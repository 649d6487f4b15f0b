//! Plays scripts on connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ring::digest;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::State;
use super::answer;
use super::book::{Delivery, Reported, Seen};
use super::script::{Content, End, Script};
use super::wire::{Connection, Gone, Request};
use crate::http::hex;

/// A stall lasts until the router gives up; this bound is for a router that never does.
const STALL: Duration = Duration::from_secs(600);

/// Whether the connection may serve another request.
enum Next {
    Keep,
    Close,
    Reset,
}

/// Accepts until told to stop; then every connection is closed.
pub(crate) async fn accept(listener: TcpListener, state: Arc<State>, mut stopped: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => return,
        };
        let Ok((stream, peer)) = accepted else { continue };
        // Without it the second write of an answer waits for an acknowledgement.
        drop(stream.set_nodelay(true));
        let (state, mut stopped) = (state.clone(), stopped.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = serve(Connection::new(stream), &state, peer) => {}
                _ = stopped.changed() => {}
            }
        });
    }
}

async fn serve(mut connection: Connection, state: &State, peer: SocketAddr) {
    loop {
        let request = match connection.request().await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                eprintln!("provider: bad request from {peer}: {error:#}");
                return;
            }
        };
        if request.path.starts_with("/_") {
            if control(&mut connection, state, &request).await.is_err() {
                return;
            }
            continue;
        }
        match play(&mut connection, state, &request).await {
            Next::Keep => {}
            Next::Close => return,
            Next::Reset => return connection.reset(),
        }
    }
}

/// One request, one script.
async fn play(connection: &mut Connection, state: &State, request: &Request) -> Next {
    let started = Instant::now();
    let model = text(&request.json["model"]);
    let credential = request.header("authorization").or_else(|| request.header("api-key")).unwrap_or_default();
    let credential = credential.trim_start_matches("Bearer ").to_owned();
    let script = state.choose(request, &model, &credential);
    let number = state.book(|book| {
        book.arrived(Seen {
            number: 0,
            at: started,
            method: request.method.clone(),
            path: request.path.clone(),
            headers: request.headers.clone(),
            body: request.body.clone(),
            body_hash: request.body_hash(),
            model: model.clone(),
            credential,
            tag: text(&request.json["user"]),
            status: 0,
            reported: None,
            answer_hash: String::new(),
            delivery: Delivery::Open,
        })
    });
    let mut player = Player {
        connection,
        state,
        script: &script,
        number,
        model: &model,
        hash: digest::Context::new(&digest::SHA256),
    };
    let outcome = player.answer(request).await;
    let answer_hash = hex(player.hash.finish().as_ref());
    let delivery = match outcome {
        Ok(_) => Delivery::Done,
        Err(Gone) => Delivery::Left(started.elapsed()),
    };
    state.book(|book| book.ended(number, delivery, script.status, answer_hash));
    outcome.unwrap_or(Next::Close)
}

struct Player<'a> {
    connection: &'a mut Connection,
    state: &'a State,
    script: &'a Script,
    number: u64,
    model: &'a str,
    hash: digest::Context,
}

impl Player<'_> {
    async fn answer(&mut self, request: &Request) -> Result<Next, Gone> {
        self.connection.pause(Duration::from_millis(self.script.first_byte_ms)).await?;
        let ok = (200..300).contains(&self.script.status);
        match &self.script.content {
            Content::Raw(bytes) => {
                self.connection.write(bytes).await?;
                self.hash.update(bytes);
                Ok(Next::Close)
            }
            Content::Html => self.plain("text/html", "<!doctype html><title>Bad gateway</title>", None).await,
            Content::Empty => self.plain("application/json", "", None).await,
            Content::Body(body) => self.plain("application/json", body, None).await,
            Content::Error { code } => {
                self.plain("application/json", &answer::error(self.script.status, code), None).await
            }
            Content::Events(bytes) => self.raw_events(bytes).await,
            Content::Answer if !ok => {
                self.plain("application/json", &answer::error(self.script.status, "scripted"), None).await
            }
            Content::Answer => self.good(request).await,
        }
    }

    async fn good(&mut self, request: &Request) -> Result<Next, Gone> {
        let path = request.path.split('?').next().unwrap_or_default();
        if path.ends_with("/models") {
            return self.plain("application/json", &answer::models(), None).await;
        }
        if path.ends_with("/embeddings") {
            let (body, reported) = answer::embeddings(&request.json, self.script);
            return self.plain("application/json", &body, reported).await;
        }
        if !path.ends_with("/chat/completions") {
            let body = answer::error(404, "unknown_path");
            return self.respond(404, "application/json", body.as_bytes(), None).await;
        }
        if request.json["stream"] == json!(true) {
            let stream = answer::chat_stream(&request.json, self.script, self.number);
            return self.events(&stream).await;
        }
        let (body, reported) = answer::chat(&request.json, self.script, self.number);
        self.plain("application/json", &body, reported).await
    }

    async fn plain(&mut self, kind: &str, body: &str, reported: Option<Reported>) -> Result<Next, Gone> {
        self.respond(self.script.status, kind, body.as_bytes(), reported).await
    }

    async fn respond(
        &mut self,
        status: u16,
        kind: &str,
        body: &[u8],
        reported: Option<Reported>,
    ) -> Result<Next, Gone> {
        let mut head = self.head(status, kind);
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let whole = [head.as_bytes(), body].concat();
        let gap = Duration::from_millis(self.script.gap_ms);
        let next = match &self.script.end {
            End::Cut(after) => {
                self.connection.write(&whole[..(head.len() + after).min(whole.len())]).await?;
                return Ok(Next::Reset);
            }
            End::Stall(after) => {
                self.connection.write(&whole[..(head.len() + after).min(whole.len())]).await?;
                self.connection.pause(STALL).await?;
                return Ok(Next::Close);
            }
            End::Drip => {
                for byte in &whole {
                    self.connection.write(std::slice::from_ref(byte)).await?;
                    self.connection.pause(gap).await?;
                }
                Next::Keep
            }
            End::Whole | End::CutInCharacter | End::ErrorEvent(_) | End::NoDone => {
                self.connection.write(&whole).await?;
                Next::Keep
            }
        };
        self.hash.update(body);
        self.report(reported);
        Ok(next)
    }

    async fn events(&mut self, stream: &answer::Stream) -> Result<Next, Gone> {
        let head = format!("{}transfer-encoding: chunked\r\n\r\n", self.head(self.script.status, "text/event-stream"));
        self.connection.write(head.as_bytes()).await?;
        let gap = Duration::from_millis(self.script.gap_ms);
        for (index, event) in stream.events.iter().enumerate() {
            if index > 0 {
                self.connection.pause(gap).await?;
            }
            match &self.script.end {
                End::Cut(after) if *after == index => return Ok(Next::Reset),
                End::Stall(after) if *after == index => {
                    self.connection.pause(STALL).await?;
                    return Ok(Next::Close);
                }
                End::ErrorEvent(after) if *after == index => {
                    let error = answer::error(500, "scripted_mid_stream");
                    self.event(&format!("data: {error}\n\n")).await?;
                    self.connection.write(b"0\r\n\r\n").await?;
                    return Ok(Next::Keep);
                }
                End::CutInCharacter if index == 2 => {
                    self.bytes(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\xf0\x9f").await?;
                    return Ok(Next::Reset);
                }
                End::Whole
                | End::Cut(_)
                | End::CutInCharacter
                | End::Stall(_)
                | End::ErrorEvent(_)
                | End::NoDone
                | End::Drip => {}
            }
            self.event(&format!("data: {event}\n\n")).await?;
            if let Some((at, reported)) = stream.reported
                && at == index
            {
                self.report(Some(reported));
            }
        }
        if self.script.end != End::NoDone {
            self.event("data: [DONE]\n\n").await?;
        }
        self.connection.write(b"0\r\n\r\n").await?;
        Ok(Next::Keep)
    }

    async fn raw_events(&mut self, bytes: &[u8]) -> Result<Next, Gone> {
        let head = format!("{}transfer-encoding: chunked\r\n\r\n", self.head(self.script.status, "text/event-stream"));
        self.connection.write(head.as_bytes()).await?;
        self.bytes(bytes).await?;
        self.connection.write(b"0\r\n\r\n").await?;
        Ok(Next::Keep)
    }

    async fn event(&mut self, text: &str) -> Result<(), Gone> {
        if self.script.end == End::Drip {
            for byte in text.as_bytes() {
                self.bytes(std::slice::from_ref(byte)).await?;
                self.connection.pause(Duration::from_millis(self.script.gap_ms)).await?;
            }
            return Ok(());
        }
        self.bytes(text.as_bytes()).await
    }

    /// One chunk of a chunked body.
    async fn bytes(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.hash.update(bytes);
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.connection.write(&chunk).await
    }

    fn head(&self, status: u16, kind: &str) -> String {
        let mut head = format!("HTTP/1.1 {status} Scripted\r\ncontent-type: {kind}\r\n");
        for (name, value) in &self.script.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head
    }

    fn report(&self, reported: Option<Reported>) {
        if let Some(reported) = reported {
            self.state.book(|book| book.reported(self.number, self.model, reported));
        }
    }
}

/// `GET /_totals` and `POST /_model/NAME` (a script as JSON), for the provider as its own process.
async fn control(connection: &mut Connection, state: &State, request: &Request) -> Result<(), Gone> {
    let body = if let Some(model) = request.path.strip_prefix("/_model/") {
        match serde_json::from_value::<Script>(request.json.clone()) {
            Ok(script) => {
                state.lock().by_model.insert(model.to_owned(), script);
                json!({"ok": true})
            }
            Err(error) => json!({"error": error.to_string()}),
        }
    } else {
        json!(state.book(|book| book.totals()))
    };
    let body = Bytes::from(body.to_string());
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write(&[head.as_bytes(), &body].concat()).await
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Http;
    use crate::provider::ScriptedProvider;

    async fn ask(provider: &ScriptedProvider, body: Value) -> (u16, Bytes) {
        let http = Http::new(&provider.url()).header("authorization", "Bearer sk-1");
        let answer = http.post("/chat/completions", &body).await.expect("the provider answers");
        (answer.status, answer.body)
    }

    #[tokio::test]
    async fn counts_what_it_reports_and_hashes_what_it_sends() {
        let provider = ScriptedProvider::start().expect("a free port");
        let told = super::super::Report::Exactly { prompt: 11, cached: 4, completion: 7, reasoning: 2 };
        provider.on_model("m", Script::ok().reporting(told));
        let body = json!({"model": "m", "user": "t1", "messages": [{"role": "user", "content": "hello"}]});
        let (status, answer) = ask(&provider, body).await;
        assert_eq!(status, 200);
        let seen = provider.seen_of("m");
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].tag, "t1");
        assert_eq!(seen[0].credential, "sk-1");
        assert_eq!(seen[0].answer_hash, hex(digest::digest(&digest::SHA256, &answer).as_ref()));
        let totals = provider.totals()["m"];
        assert_eq!((totals.requests, totals.answers, totals.tokens.prompt, totals.tokens.completion), (1, 1, 11, 7));
    }

    #[tokio::test]
    async fn scripts_in_the_body_run_out() {
        let provider = ScriptedProvider::start().expect("a free port");
        let body = json!({"model": "m", "messages": [], "x_script": {"status": 429, "first": 2}});
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(ask(&provider, body.clone()).await.0);
        }
        assert_eq!(statuses, [429, 429, 200]);
    }

    #[tokio::test]
    async fn streams_as_many_events_as_the_script_says() {
        let provider = ScriptedProvider::start().expect("a free port");
        let body = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": "x"}], "x_script": {"chunks": 50, "text": "short"}});
        let (status, answer) = ask(&provider, body).await;
        let events = String::from_utf8_lossy(&answer).matches("data: ").count();
        // Role, 50 pieces, finish, usage, [DONE].
        assert_eq!((status, events), (200, 54));
        assert_eq!(provider.totals()["m"].answers, 1);
    }
}
