//! Logs to standard error, and traces over OTLP when an endpoint is given. Metrics are not here: each
//! plane serves its own registry.

use std::fmt;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How long a stopping process waits for its last spans to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is neither \"text\" nor \"json\"")),
        }
    }
}

/// What to log and where to send spans.
#[derive(Debug, Clone)]
pub struct Options {
    /// `service.name` of spans: "data-plane".
    pub program: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Which node or replica, for spans; `None` leaves it out.
    pub instance: Option<String>,
    /// Directives such as `info,data_plane=debug`; `None` means `info`.
    pub filter: Option<String>,
    /// Form of log lines.
    pub format: Format,
    /// OTLP over gRPC without TLS, "http://127.0.0.1:4317"; `None` means no spans are made at all.
    pub otlp_endpoint: Option<String>,
    /// Share of traces started here that are recorded, 0 to 1. A caller's decision is followed.
    pub sample_ratio: f64,
}

impl Options {
    /// Logs of `info` as text, no spans.
    pub fn new(program: &'static str, version: &'static str) -> Self {
        Self {
            program,
            version,
            instance: None,
            filter: None,
            format: Format::Text,
            otlp_endpoint: None,
            sample_ratio: 1.0,
        }
    }
}

/// Why telemetry cannot start.
#[derive(Debug)]
pub enum TelemetryError {
    /// The filter is not understood.
    Filter(String),
    /// The exporter cannot be built.
    Exporter(String),
    /// Another subscriber is installed already.
    Installed,
}

impl fmt::Display for TelemetryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(e) => write!(f, "log filter: {e}"),
            Self::Exporter(e) => write!(f, "trace exporter: {e}"),
            Self::Installed => f.write_str("telemetry runs already in this process"),
        }
    }
}

impl std::error::Error for TelemetryError {}

/// Keeps the exporter alive. Call [`Telemetry::shutdown`] last, so that the last spans leave.
#[must_use = "dropping it stops the export of spans"]
pub struct Telemetry {
    export: Option<Export>,
}

/// The exporter has a runtime of its own: it must work while the process's others are stopping, and
/// spans must never wait for, or on, a thread that serves requests.
struct Export {
    provider: SdkTracerProvider,
    runtime: tokio::runtime::Runtime,
}

/// Installs the process's subscriber and, with an endpoint, the exporter.
///
/// # Errors
/// When the filter or the endpoint is not understood, or when called twice.
pub fn init(options: &Options) -> Result<Telemetry, TelemetryError> {
    let directives = options.filter.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(directives).map_err(|e| TelemetryError::Filter(e.to_string()))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match options.format {
        Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    let export = options.otlp_endpoint.as_deref().map(|endpoint| export(options, endpoint)).transpose()?;
    let spans = export.as_ref().map(|e| tracing_opentelemetry::layer().with_tracer(e.provider.tracer(options.program)));
    tracing_subscriber::registry()
        .with(filter)
        .with(spans)
        .with(lines)
        .try_init()
        .map_err(|_| TelemetryError::Installed)?;
    if let Some(export) = &export {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        // For spans that are made after the fact, with times of their own.
        opentelemetry::global::set_tracer_provider(export.provider.clone());
    }
    Ok(Telemetry { export })
}

impl Telemetry {
    /// Whether spans are exported; when not, nobody should spend time on making them.
    pub fn traces(&self) -> bool {
        self.export.is_some()
    }

    /// Sends what is left, for at most five seconds. Blocks; call it outside of async code.
    pub fn shutdown(self) {
        let Some(export) = self.export else { return };
        if let Err(e) = export.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(error = %e, "the last spans could not be sent");
        }
        export.runtime.shutdown_background();
    }
}

fn export(options: &Options, endpoint: &str) -> Result<Export, TelemetryError> {
    let failed = |e: &dyn fmt::Display| TelemetryError::Exporter(e.to_string());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("telemetry")
        .enable_all()
        .build()
        .map_err(|e| failed(&e))?;
    let exporter = {
        // The channel inside spawns its worker on the runtime that is entered now.
        let _entered = runtime.enter();
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(|e| failed(&e))?
    };
    let mut attributes = vec![KeyValue::new("service.version", options.version)];
    if let Some(instance) = &options.instance {
        attributes.push(KeyValue::new("service.instance.id", instance.clone()));
    }
    let resource = Resource::builder().with_service_name(options.program).with_attributes(attributes).build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(options.sample_ratio))))
        .with_resource(resource)
        .build();
    Ok(Export { provider, runtime })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, because a process has one subscriber.
    #[test]
    fn starts_once_and_stops_with_nobody_listening() {
        let bad = Options { filter: Some("no=such=filter".into()), ..Options::new("test", "0") };
        assert!(matches!(init(&bad), Err(TelemetryError::Filter(_))));
        let bad = Options { otlp_endpoint: Some("not a URL".into()), ..Options::new("test", "0") };
        assert!(matches!(init(&bad), Err(TelemetryError::Exporter(_))));
        let options = Options { otlp_endpoint: Some("http://127.0.0.1:9".into()), ..Options::new("test", "0") };
        let telemetry = init(&options).expect("the exporter connects when it has something to send");
        assert!(telemetry.traces());
        assert!(matches!(init(&options), Err(TelemetryError::Installed)));
        tracing::info_span!("nobody hears this").in_scope(|| ());
        telemetry.shutdown();
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("xml".parse::<Format>().is_err());
    }
}
