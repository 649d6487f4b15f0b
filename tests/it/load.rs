//! Callers that ask without pause until told to stop, and remember what came of each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::http::Http;
use tokio::task::JoinHandle;

/// How callers ask.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Callers that want whole answers, on connections they keep.
    pub plain: usize,
    /// The same, with a new connection for every request.
    pub fresh: usize,
    /// Callers that want streams.
    pub streams: usize,
    /// Rest between two requests of one caller.
    pub rest: Duration,
}

/// What callers got.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Tags of requests whose whole answer arrived.
    pub completed: Vec<String>,
    /// Tags of requests that failed, and how.
    pub failed: Vec<(String, String)>,
}

/// Running callers.
pub struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Outcomes>>,
}

impl Load {
    /// Starts callers of `model` at `base` with this key.
    pub fn start(base: &str, key: &str, model: &str, shape: Shape) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicU64::new(0));
        let mut callers = Vec::new();
        for number in 0..shape.plain + shape.fresh + shape.streams {
            let keep = number < shape.plain || number >= shape.plain + shape.fresh;
            let http = if keep { Http::new(base) } else { Http::without_reuse(base) };
            let http = http.header("authorization", &format!("Bearer {key}"));
            let stream = number >= shape.plain + shape.fresh;
            let (stop, asked, model) = (stop.clone(), asked.clone(), model.to_owned());
            callers.push(tokio::spawn(async move {
                let mut outcomes = Outcomes::default();
                let mut count = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let tag = format!("c{number}-{count}");
                    count += 1;
                    asked.fetch_add(1, Ordering::Relaxed);
                    match ask(&http, &model, &tag, stream).await {
                        Ok(()) => outcomes.completed.push(tag),
                        Err(how) => {
                            outcomes.failed.push((tag, how));
                            // A dead server answers at once: no busy loop against it.
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    tokio::time::sleep(shape.rest).await;
                }
                outcomes
            }));
        }
        Self { stop, asked, callers }
    }

    /// Requests begun so far.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Lets every caller finish what it has begun.
    pub async fn stop(self) -> Outcomes {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcomes::default();
        for caller in self.callers {
            let one = tokio::time::timeout(Duration::from_secs(60), caller).await;
            let one = one.expect("callers end").expect("callers do not panic");
            all.completed.extend(one.completed);
            all.failed.extend(one.failed);
        }
        all
    }
}

impl Outcomes {
    /// Fails when a request did.
    #[track_caller]
    pub fn none_failed(&self, at_least: usize) {
        let shown: Vec<_> = self.failed.iter().take(10).collect();
        assert!(
            self.failed.is_empty(),
            "{} of {} failed: {shown:#?}",
            self.failed.len(),
            self.failed.len() + self.completed.len()
        );
        assert!(self.completed.len() >= at_least, "only {} requests", self.completed.len());
    }
}

/// A chat request that the provider can tell from all others.
pub fn chat(model: &str, tag: &str) -> Value {
    json!({"model": model, "user": tag, "messages": [{"role": "user", "content": format!("this is {tag}")}]})
}

async fn ask(http: &Http, model: &str, tag: &str, stream: bool) -> Result<(), String> {
    let mut body = chat(model, tag);
    if !stream {
        let answer = http.post("/v1/chat/completions", &body).await.map_err(|e| format!("{e:#}"))?;
        return match answer.status {
            200 if answer.json()["choices"][0]["message"].is_object() => Ok(()),
            status => Err(format!("{status}: {}", answer.text())),
        };
    }
    body["stream"] = json!(true);
    let mut answer = http.open("/v1/chat/completions", &body).await.map_err(|e| format!("{e:#}"))?;
    let events = answer.events().await.map_err(|e| format!("{e:#}"))?;
    match (answer.status, events.last().map(String::as_str)) {
        (200, Some("data: [DONE]\n\n")) => Ok(()),
        (status, last) => Err(format!("{status}: stream of {} events, last {last:?}", events.len())),
    }
}
