//! Logs: lines for people, or JSON for machines, on standard error; standard output belongs to a command's results.
//!
//! What is logged is decided by `HAPAX_LOG`, else `RUST_LOG`, else the setting, else `info`. All of them take
//! tracing's directives: `debug`, or `info,hapax::lock=trace`.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// The variables that decide what is logged, the stronger one first.
const FILTER_VARIABLES: [&str; 2] = ["HAPAX_LOG", "RUST_LOG"];

/// What is logged when nobody says otherwise.
const DEFAULT_FILTER: &str = "info";

/// Client libraries whose most detailed level prints frames as they are sent, logins and bodies among them. They are
/// cut off below debug, whatever the filter says.
const WIRE_LOGGERS: [&str; 12] = [
    "lapin",
    "amq_protocol",
    "amq_protocol_tcp",
    "async_rs",
    "redis",
    "sqlx",
    "sqlx_core",
    "sqlx_mysql",
    "sqlx_postgres",
    "rustls",
    "hyper",
    "mio",
];

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Lines for people; in colour on a terminal, unless `NO_COLOR` is set.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for Format {
    type Err = LoggingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LoggingError::Format(other.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// What the config or the command line says about logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// How they look.
    pub format: Format,
    /// What is logged, where no variable decides; `None` is `info`.
    pub filter: Option<String>,
}

/// Why logging could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoggingError {
    /// Unknown format.
    #[error("log format {0:?} is not known; use \"text\" or \"json\"")]
    Format(String),
    /// The filter does not parse.
    #[error(
        "{origin} holds {filter:?}, which is no log filter ({reason}); write for example \"info,hapax::lock=debug\""
    )]
    Filter {
        /// Where the filter came from.
        origin: String,
        /// The filter.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else in this process has set up logging before.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Sends this process's logs to standard error. To be called once, by the binary.
///
/// # Errors
/// When a filter does not parse, or logging is already set up.
pub fn init(settings: &LogSettings) -> Result<(), LoggingError> {
    let colour = wants_colour(std::io::stderr().is_terminal(), &|name| std::env::var(name).ok());
    let filter = filter(settings, &|name| std::env::var(name).ok())?;
    subscriber(settings.format, filter, colour, std::io::stderr).try_init().map_err(|_| LoggingError::AlreadySet)
}

/// The whole of it, for any writer.
fn subscriber<W>(format: Format, filter: EnvFilter, colour: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_timer(Milliseconds);
    let lines = match format {
        Format::Text => lines.with_ansi(colour).boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter_fn(carries_no_secret))).with(filter)
}

/// The filter in force: the first variable that is set, the setting, the default. None is passed over silently.
fn filter(settings: &LogSettings, variable: &dyn Fn(&str) -> Option<String>) -> Result<EnvFilter, LoggingError> {
    let from_variable = FILTER_VARIABLES
        .iter()
        .find_map(|name| variable(name).filter(|value| !value.is_empty()).map(|value| ((*name).to_owned(), value)));
    let from_setting = || settings.filter.clone().map(|value| ("the log level".to_owned(), value));
    let (origin, filter) =
        from_variable.or_else(from_setting).unwrap_or_else(|| (String::new(), DEFAULT_FILTER.to_owned()));
    EnvFilter::try_new(&filter).map_err(|error| LoggingError::Filter { origin, filter, reason: error.to_string() })
}

/// Colour on terminals that know it, for people who did not say no (<https://no-color.org>).
fn wants_colour(terminal: bool, variable: &dyn Fn(&str) -> Option<String>) -> bool {
    let refused = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    terminal && !refused && variable("TERM").as_deref() != Some("dumb")
}

/// False for what may show a login or a body; see [`WIRE_LOGGERS`]. lapin warns of returned messages with their bodies.
fn carries_no_secret(metadata: &Metadata<'_>) -> bool {
    let origin = metadata.target().split("::").next().unwrap_or_default();
    if origin == "lapin" && *metadata.level() > Level::ERROR {
        return false;
    }
    *metadata.level() != Level::TRACE || !WIRE_LOGGERS.contains(&origin)
}

/// UTC to the millisecond: what a person compares between hosts.
struct Milliseconds;

impl FormatTime for Milliseconds {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, directives: &str, colour: bool, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let filter = EnvFilter::try_new(directives).unwrap();
        tracing::subscriber::with_default(subscriber(format, filter, colour, move || writer.clone()), log);
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    fn in_a_span() {
        let span = tracing::info_span!("attempt", consumer = "reduce-stock", message_id = "m1");
        let _entered = span.enter();
        tracing::info!(attempt = 2, "failed");
        tracing::debug!("unheard");
    }

    #[test]
    fn text_lines_show_time_level_span_and_fields_without_colour_codes() {
        let text = logged(Format::Text, "info", false, in_a_span);
        assert!(text.contains("Z  INFO attempt{consumer=\"reduce-stock\" message_id=\"m1\"}"), "{text}");
        assert!(
            text.ends_with("failed attempt=2\n") && !text.contains('\u{1b}') && !text.contains("unheard"),
            "{text}"
        );
        assert!(logged(Format::Text, "info", true, in_a_span).contains('\u{1b}'));
    }

    #[test]
    fn json_lines_hold_event_and_span_fields() {
        let text = logged(Format::Json, "info", false, in_a_span);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "failed");
        assert_eq!(line["attempt"], 2);
        assert_eq!(line["span"]["message_id"], "m1");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn what_client_libraries_send_is_never_logged() {
        let text = logged(Format::Text, "trace", false, || {
            tracing::trace!(target: "lapin::channels", "StartOk response=\\0shop\\0s3cret");
            tracing::trace!(target: "hapax::lock", "ours");
            tracing::warn!(target: "lapin::returned_messages", "returned body=s3cret");
            tracing::error!(target: "lapin::channels", "channel closed");
            tracing::debug!(target: "sqlx::query", "slow statement");
        });
        assert!(!text.contains("s3cret"), "{text}");
        assert!(text.contains("ours") && text.contains("channel closed") && text.contains("slow statement"), "{text}");
    }

    #[test]
    fn variables_win_over_the_setting_and_a_wrong_filter_is_an_error() {
        let settings = LogSettings { filter: Some("warn".into()), ..LogSettings::default() };
        let with = |set: &'static [(&'static str, &'static str)], settings: &LogSettings| {
            let variable = move |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned());
            filter(settings, &variable).map(|filter| filter.to_string())
        };
        assert_eq!(with(&[], &LogSettings::default()).unwrap(), "info");
        assert_eq!(with(&[], &settings).unwrap(), "warn");
        assert_eq!(with(&[("RUST_LOG", "debug")], &settings).unwrap(), "debug");
        assert_eq!(with(&[("RUST_LOG", "debug"), ("HAPAX_LOG", "error")], &settings).unwrap(), "error");
        assert_eq!(with(&[("HAPAX_LOG", "")], &settings).unwrap(), "warn");
        let error = with(&[("HAPAX_LOG", "hapax=loud")], &settings).unwrap_err().to_string();
        assert!(error.starts_with("HAPAX_LOG holds \"hapax=loud\""), "{error}");
    }

    #[test]
    fn colour_is_for_terminals_of_people_who_want_it() {
        let with = |terminal, set: &'static str| {
            wants_colour(terminal, &move |name| {
                set.split_once('=').filter(|(k, _)| *k == name).map(|(_, v)| v.to_owned())
            })
        };
        assert!(with(true, "NO_COLOR=") && with(true, "TERM=xterm"));
        assert!(!with(true, "NO_COLOR=1") && !with(true, "TERM=dumb") && !with(false, "TERM=xterm"));
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!(Format::Text.to_string().parse(), Ok(Format::Text));
        assert!("yaml".parse::<Format>().unwrap_err().to_string().contains("\"yaml\" is not known"));
    }
}
