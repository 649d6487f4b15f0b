//! A provider that does what a script says: the upstream of every whole-house test.
//!
//! It speaks OpenAI chat and embeddings over HTTP/1.1 written by hand, so that it can also break
//! the protocol. It records every request, and keeps its own exact count of the tokens it reported,
//! to be compared with the ledger. It refuses nothing: a request it does not understand is answered
//! with 404 and recorded.
//!
//! Which script: the next one queued for the model, else the one of the credential, else of the
//! model, else the request's own field `x_script` (routers pass unknown fields through), else a
//! plain good answer.

mod answer;
mod book;
mod script;
mod serve;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use book::{Book, Delivery, Reported, Seen, Totals};
pub use script::{Content, End, Report, Script};

/// A running scripted provider, on its own thread. Dropping it closes all its connections.
pub struct ScriptedProvider {
    address: SocketAddr,
    state: Arc<State>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What connections and tests share.
pub(crate) struct State {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    queued: HashMap<String, VecDeque<Script>>,
    by_credential: HashMap<String, Script>,
    by_model: HashMap<String, Script>,
    repeated: HashMap<String, u32>,
    book: Book,
}

impl ScriptedProvider {
    /// Listens on a free port of the loopback address.
    pub fn start() -> Result<Self> {
        Self::listen("127.0.0.1:0".parse()?)
    }

    /// Listens on this address.
    pub fn listen(address: SocketAddr) -> Result<Self> {
        let listener = std::net::TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = Arc::new(State { inner: Mutex::new(Inner::default()) });
        let (stop, stopped) = watch::channel(false);
        let served = state.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("provider".into()).spawn(move || {
            runtime.block_on(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => serve::accept(listener, served, stopped).await,
                    Err(error) => eprintln!("provider: {error}"),
                }
            });
        })?;
        Ok(Self { address, state, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Base URL as an OpenAI client wants it.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Plays `script` for every request of this model.
    pub fn on_model(&self, model: &str, script: Script) {
        self.state.lock().by_model.insert(model.to_owned(), script);
    }

    /// Plays `script` for every request with this credential (without "Bearer ").
    pub fn on_credential(&self, credential: &str, script: Script) {
        self.state.lock().by_credential.insert(credential.to_owned(), script);
    }

    /// Plays `script` once, for the next request of this model that finds none queued before it.
    pub fn once(&self, model: &str, script: Script) {
        self.state.lock().queued.entry(model.to_owned()).or_default().push_back(script);
    }

    /// Forgets all scripts.
    pub fn clear_scripts(&self) {
        let mut inner = self.state.lock();
        inner.queued.clear();
        inner.by_credential.clear();
        inner.by_model.clear();
    }

    /// Every request so far, in order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().book.seen()
    }

    /// The same once no answer is being written any more, at most two seconds later: the router may
    /// have passed on the last byte before the provider has noted that it wrote it.
    pub async fn settled(&self) -> Vec<Seen> {
        let quiet = crate::wait::until(std::time::Duration::from_secs(2), "answers noted", async || {
            let seen = self.seen();
            seen.iter().all(|s| s.delivery != Delivery::Open).then_some(seen)
        });
        quiet.await.unwrap_or_else(|_| self.seen())
    }

    /// Number of requests so far.
    pub fn count(&self) -> u64 {
        self.state.lock().book.count()
    }

    /// Requests of one model so far.
    pub fn seen_of(&self, model: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|s| s.model == model).collect()
    }

    /// What it reported, by model.
    pub fn totals(&self) -> HashMap<String, Totals> {
        self.state.lock().book.totals()
    }

    /// Bodies of requests are kept from now on, or not (for load).
    pub fn keep_bodies(&self, keep: bool) {
        self.state.lock().book.keep_bodies = keep;
    }
}

impl Drop for ScriptedProvider {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The script for a request, by the order of the module's description.
    pub(crate) fn choose(&self, request: &wire::Request, model: &str, credential: &str) -> Script {
        let mut inner = self.lock();
        if let Some(script) = inner.queued.get_mut(model).and_then(VecDeque::pop_front) {
            return script;
        }
        let chosen = inner
            .by_credential
            .get(credential)
            .or_else(|| inner.by_model.get(model))
            .cloned()
            .or_else(|| serde_json::from_value(request.json.get("x_script")?.clone()).ok())
            .unwrap_or_default();
        if chosen.first > 0 {
            let played = inner.repeated.entry(request.body_hash()).or_default();
            *played += 1;
            if *played > chosen.first {
                return Script::default();
            }
        }
        chosen
    }

    pub(crate) fn book<T>(&self, write: impl FnOnce(&mut Book) -> T) -> T {
        write(&mut self.lock().book)
    }
}
