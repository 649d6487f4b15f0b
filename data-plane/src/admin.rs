//! The node's own port: health checks, metrics, what it serves from. For operators and
//! orchestrators; nothing of it is on the callers' port, and nothing here changes anything.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use runtime::clock;
use runtime::shutdown::Shutdown;
use runtime::task;
use serde_json::{Value, json};

use crate::drain::Phase;
use crate::node::Node;
use crate::usage::journal::Spool;
use crate::worker::Health;

/// What the port tells about.
#[derive(Clone)]
pub struct Admin {
    node: Arc<Node>,
    workers: Vec<Health>,
    spools: Vec<Arc<Spool>>,
}

impl Admin {
    /// About these.
    pub fn new(node: Arc<Node>, workers: Vec<Health>, spools: Vec<Arc<Spool>>) -> Self {
        Self { node, workers, spools }
    }

    /// Adds what is read when somebody scrapes.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(State(self.clone())));
    }

    /// Answers until asked to stop.
    pub async fn serve(self, listener: std::net::TcpListener, registry: Registry, shutdown: Shutdown) {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the admin listener cannot be used");
                return;
            }
        };
        let registry = Arc::new(registry);
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = shutdown.asked() => return,
            };
            let (admin, registry) = (self.clone(), registry.clone());
            task::spawn("admin connection", async move {
                let service = service_fn(|request| {
                    let response = admin.answer(&request, &registry);
                    async move { Ok::<_, Infallible>(response) }
                });
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new());
                // A scraper that leaves early is its own business.
                _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET here\n");
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.not_ready() {
                None => text(StatusCode::OK, "ready\n"),
                Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
            },
            "/metrics" => metrics(registry),
            "/snapshot" => whole_json(&self.snapshot()),
            "/breakers" => whole_json(&self.breakers()),
            _ => text(StatusCode::NOT_FOUND, "paths: /livez /readyz /metrics /snapshot /breakers\n"),
        }
    }

    /// Ready = has state and does not stop. Losing the control plane changes nothing.
    fn not_ready(&self) -> Option<&'static str> {
        if self.node.drain.phase() > Phase::Open {
            return Some("draining\n");
        }
        (!self.node.store.is_ready()).then_some("no_snapshot\n")
    }

    /// What serves, without keys and secrets.
    fn snapshot(&self) -> Value {
        let store = &self.node.store;
        let (lineage, held) = store.held();
        let snapshot = store.load();
        let scopes: Vec<Value> = held
            .iter()
            .map(|held| json!({"scope": held.scope, "revision": held.revision, "state_hash": hex(&held.state_hash)}))
            .collect();
        let workspaces: Vec<Value> = snapshot
            .workspaces()
            .map(|workspace| {
                let providers: Vec<Value> = workspace
                    .providers
                    .values()
                    .map(|p| {
                        json!({
                            "slug": &*p.slug, "vendor": &*p.vendor.slug, "base_url": p.base_url.to_string(),
                            "disabled": p.disabled, "credentials": p.credentials.len(),
                        })
                    })
                    .collect();
                json!({
                    "id": workspace.id, "key": &*workspace.key, "revision": workspace.revision,
                    "disabled": workspace.disabled, "projects": workspace.projects.len(), "providers": providers,
                    "aliases": workspace.aliases.keys().map(|name| &**name).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "lineage": hex(&lineage), "ready": store.is_ready(), "scopes": scopes,
            "vendors": snapshot.shared.vendors.len(), "keys": snapshot.key_count(), "workspaces": workspaces,
        })
    }

    /// Every circuit of every worker that does not simply take requests.
    fn breakers(&self) -> Value {
        let now = clock::monotonic_ms();
        let rows: Vec<Value> = self
            .workers
            .iter()
            .enumerate()
            .flat_map(|(worker, health)| {
                let fleet = health.lock();
                let troubled = fleet.troubled(now);
                troubled
                    .map(|(circuit, standing)| {
                        json!({"worker": worker, "provider": circuit.provider(), "standing": format!("{standing:?}")})
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        Value::Array(rows)
    }
}

/// Numbers that are read at the scrape.
struct State(Admin);

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let admin = &self.0;
        let status = admin.node.store.status();
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let now = clock::monotonic_ms();
        let open: usize = admin.workers.iter().map(|health| health.lock().troubled(now).count()).sum();
        let journal = admin.spools.first().map_or(0, |spool| spool.total().used());
        let unacked: u64 = admin.spools.iter().map(|spool| spool.unacked()).sum();
        let gauges = [
            (
                "requests_in_flight",
                "Requests between their head and their last byte",
                count(admin.node.drain.in_flight()),
            ),
            ("ready", "1 when the node takes requests", i64::from(admin.not_ready().is_none())),
            ("control_plane_connected", "1 while the snapshot stream is up", i64::from(status.connected.load(relaxed))),
            ("snapshot_bytes", "Bytes of compiled state held", count(status.held_bytes.load(relaxed))),
            (
                "snapshot_degraded",
                "1 when the node started from an older state",
                i64::from(status.degraded.load(relaxed)),
            ),
            ("journal_bytes", "Usage records on disk", count(journal)),
            ("journal_unacked_records", "Usage records not yet in the ledger", count(unacked)),
            (
                "breakers_open",
                "Circuits that do not simply take requests, over all threads",
                i64::try_from(open).unwrap_or(i64::MAX),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let last_contact = Duration::from_millis(u64::try_from(status.last_contact_ms.load(relaxed)).unwrap_or(0));
        let last_apply = Duration::from_micros(status.last_apply_us.load(relaxed));
        let times = [
            (
                "control_plane_last_contact_timestamp_seconds",
                "Time of the last message, seconds since 1970",
                last_contact,
            ),
            ("snapshot_last_apply_seconds", "Duration of the last update", last_apply),
        ];
        for (name, help, value) in times {
            let gauge = ConstGauge::new(value.as_secs_f64());
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("snapshot_updates_applied", "Updates applied", status.applied.load(relaxed)),
            ("snapshot_updates_rejected", "Updates rejected", status.rejected.load(relaxed)),
            ("connections_refused", "Connections closed unread", admin.node.counters.connections_refused()),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let refusals = admin.node.counters.refusals();
        let mut family = encoder.encode_descriptor(
            "refusals",
            "Requests refused before a plan, by code",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (code, value) in refusals {
            ConstCounter::new(value).encode(family.encode_family(&[("code", code)])?)?;
        }
        Ok(())
    }
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut out = String::new();
    match prometheus_client::encoding::text::encode(&mut out, registry) {
        Ok(()) => {
            let mut response = text(StatusCode::OK, out);
            let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n"),
    }
}

fn whole_json(value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, format!("{value:#}\n"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
