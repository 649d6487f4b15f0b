//! What no correct client sends, as bytes: each row has the right status and code, nothing of it is
//! forwarded, nothing is metered, and the house serves on.

mod auth;
mod chat;
mod http1;
mod json;
mod slow;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tests::house::{Builder, House};
use tests::raw::{self, Outcome};

/// How long an answer to a bad request may take, when it is not the slowness that is bad.
const SOON: Duration = Duration::from_secs(10);

/// One bad request.
pub struct Row {
    pub name: String,
    pub bytes: Vec<u8>,
    pub want: Want,
}

/// What must come of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Want {
    /// One of these statuses; with codes, a JSON error with one of them; with a param, naming it.
    Refused { statuses: Vec<u16>, codes: Vec<&'static str>, param: Option<String> },
    /// An error of the protocol itself: a 4xx or 501 in our form, or just the end.
    Dropped,
    /// It looks odd and is right: answered with this status.
    Served(u16),
}

impl Row {
    pub fn refused(name: impl Into<String>, bytes: impl Into<Vec<u8>>, status: u16, code: &'static str) -> Self {
        let want = Want::Refused { statuses: vec![status], codes: vec![code], param: None };
        Self { name: name.into(), bytes: bytes.into(), want }
    }

    pub fn dropped(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into(), want: Want::Dropped }
    }

    pub fn served(name: impl Into<String>, bytes: impl Into<Vec<u8>>, status: u16) -> Self {
        Self { name: name.into(), bytes: bytes.into(), want: Want::Served(status) }
    }
}

/// Where rows are sent, and as whom.
pub struct Target {
    pub address: SocketAddr,
    pub key: String,
}

impl Target {
    /// A request head with the right key, not yet ended.
    pub fn head(&self, method: &str, path: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nHost: house\r\nAuthorization: Bearer {}\r\n", self.key)
    }

    /// A whole POST of this body with the right key.
    pub fn post(&self, path: &str, body: &[u8]) -> Vec<u8> {
        let head = self.head("POST", path);
        let head = format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    /// The same for chat.
    pub fn chat(&self, body: &[u8]) -> Vec<u8> {
        self.post("/v1/chat/completions", body)
    }
}

/// A good chat request, to be spoiled.
pub fn good_chat() -> Value {
    json!({"model": "scripted/chat", "messages": [{"role": "user", "content": "hello"}]})
}

async fn house() -> (House, Target) {
    let mut house = Builder::together().start().await.expect("a house");
    house.connect(&["chat"]).await.expect("connected");
    let target = Target { address: house.control.data.expect("a data port"), key: house.api_key.clone() };
    (house, target)
}

/// Sends every row; collects all failures, so that one run shows them all.
async fn check(house: &mut House, target: &Target, rows: Vec<Row>) {
    let total = rows.len();
    let mut wrong = Vec::new();
    for row in rows {
        let before = house.provider.count();
        let outcome = raw::exchange(target.address, &row.bytes, SOON).await.expect("the data port accepts");
        if let Some(problem) = judge(&row.want, &outcome) {
            wrong.push(format!("{}: {problem}", row.name));
        }
        let forwarded = house.provider.count() - before;
        if forwarded > 0 && !matches!(row.want, Want::Served(_)) {
            wrong.push(format!("{}: forwarded {forwarded} times", row.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {total} rows:\n  {}\n", wrong.len(), wrong.join("\n  "));
    assert!(house.node(0).program().running(), "the program ended");
    let answer = house.caller().post("/v1/chat/completions", &good_chat()).await.expect("still answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// What is wrong with an outcome, if anything.
fn judge(want: &Want, outcome: &Outcome) -> Option<String> {
    match (want, outcome) {
        (_, Outcome::Silent) => Some(format!("no answer, wanted {want:?}")),
        (Want::Dropped, Outcome::Closed) => None,
        (Want::Dropped, Outcome::Answered(a)) => {
            let status = (400..500).contains(&a.status) || a.status == 501 || a.status == 505;
            let form = a.json()["error"]["code"].is_string() && !a.header("x-request-id").is_empty();
            (!status || !form).then(|| format!("status {}: {:?}", a.status, a.text()))
        }
        (Want::Served(_) | Want::Refused { .. }, Outcome::Closed) => Some("closed without an answer".into()),
        (Want::Served(status), Outcome::Answered(a)) => {
            (a.status != *status).then(|| format!("status {} instead of {status}: {}", a.status, a.text()))
        }
        (Want::Refused { statuses, codes, param }, Outcome::Answered(a)) => {
            if !statuses.contains(&a.status) {
                return Some(format!("status {} instead of {statuses:?}: {}", a.status, a.text()));
            }
            if codes.is_empty() {
                return None;
            }
            let error = &a.json()["error"];
            let code = error["code"].as_str().unwrap_or_default();
            if !codes.contains(&code) {
                return Some(format!("code {code:?} instead of {codes:?}: {}", a.text()));
            }
            if error["message"].as_str().unwrap_or_default().is_empty() || error["type"].as_str().is_none() {
                return Some(format!("no message or type: {}", a.text()));
            }
            if a.header("x-request-id").is_empty() {
                return Some("no x-request-id".into());
            }
            let named = error["param"].as_str().unwrap_or_default();
            let right = param.as_ref().is_none_or(|p| named.starts_with(p.as_str()));
            (!right).then(|| format!("param {named:?} instead of {param:?}"))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1() {
    let (mut house, target) = house().await;
    let rows = http1::rows(&target);
    check(&mut house, &target, rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_and_chat() {
    let (mut house, target) = house().await;
    let mut rows = json::rows(&target);
    rows.extend(chat::rows(&target));
    check(&mut house, &target, rows).await;
    // What was refused is not metered; the odd but right rows and the last, good request are.
    crate::usage_exact::ledger_requests(&house, house.provider.count()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys() {
    let (mut house, target) = house().await;
    let rows = auth::rows(&target);
    check(&mut house, &target, rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_huge() {
    let (mut house, target) = house().await;
    slow::run(&mut house, &target).await;
}

#[tokio::test]
async fn there_are_two_hundred_rows() {
    let target = Target { address: "127.0.0.1:1".parse().expect("an address"), key: "k".into() };
    let mut rows = http1::rows(&target);
    rows.extend(json::rows(&target));
    rows.extend(chat::rows(&target));
    rows.extend(auth::rows(&target));
    let mut names: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
    let total = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), total, "two rows of one name");
    assert!(total >= 200, "{total} rows");
}
