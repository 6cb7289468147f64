//! The log: what `tracing` reports under our targets, to standard error, a file, or a callback.
//!
//! The formatter is ours because tracing-subscriber's own keeps its buffer in thread-local storage,
//! which is gone when exit handlers free the last tensors. A program with a subscriber of its own
//! keeps it: then only the callback is not served.

use crate::config::table::Opt;
use crate::core::sync::lock;
use crate::error::{Error, Result, Warning};
use crate::process::{self, Process};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::sync::{Mutex, Once, RwLock};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt};

/// Receives each line of the log: level (1 error to 5 trace), target, message.
pub type Callback = Box<dyn Fn(i32, &str, &str) + Send + Sync>;

static SINK: Sink = Sink {
    filter: RwLock::new(None),
    output: Mutex::new(Output::Stderr),
    callback: RwLock::new(None),
};

struct Sink {
    filter: RwLock<Option<Targets>>,
    output: Mutex<Output>,
    callback: RwLock<Option<Callback>>,
}

enum Output {
    Stderr,
    File(File),
}

/// Starts the log as the options say, once.
pub fn start(process: &Process) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Forward);
        let _ = tracing::subscriber::set_global_default(subscriber);
        reconfigure(process);
    });
}

/// Takes over what the options say now.
pub fn reconfigure(process: &Process) {
    let targets = parse(&process.settings().text(Opt::Log));
    *SINK.filter.write().unwrap_or_else(|lock| lock.into_inner()) = Some(targets);
    tracing::callsite::rebuild_interest_cache();
    let path = process.settings().text(Opt::LogFile);
    let output = if path.is_empty() {
        Output::Stderr
    } else {
        match File::options().create(true).append(true).open(&path) {
            Ok(file) => Output::File(file),
            Err(error) => {
                process
                    .warnings()
                    .warn(Warning::LogFile, || format!("log file {path}: {error}"));
                Output::Stderr
            }
        }
    };
    *lock(&SINK.output) = output;
}

/// Sends every line to `callback` instead of standard error or the file; `None` ends that.
pub fn set_callback(callback: Option<Callback>) -> Result<()> {
    match SINK.callback.write() {
        Ok(mut slot) => {
            *slot = callback;
            Ok(())
        }
        Err(_) => Err(Error::new(
            crate::error::Status::Internal,
            "log_set_callback",
        )),
    }
}

/// `warn,extent=debug`: a level for everything of ours, and for parts of it.
fn parse(spec: &str) -> Targets {
    let level = |text: &str| match text.trim().to_ascii_lowercase().as_str() {
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => LevelFilter::OFF,
    };
    spec.split(',')
        .fold(Targets::new(), |targets, part| match part.split_once('=') {
            Some((target, text)) => {
                targets.with_target(format!("hbmalloc::{}", target.trim()), level(text))
            }
            None => targets.with_target("hbmalloc", level(part)),
        })
}

struct Forward;

impl<S: Subscriber> Layer<S> for Forward {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        // After a fork another thread of the parent may hold the sink's locks for good.
        if process::has_forked() {
            return false;
        }
        match SINK.filter.read() {
            Ok(filter) => filter
                .as_ref()
                .is_some_and(|targets| targets.would_enable(metadata.target(), metadata.level())),
            Err(_) => false,
        }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let metadata = event.metadata();
        let target = metadata
            .target()
            .strip_prefix("hbmalloc::")
            .unwrap_or("hbmalloc");
        if let Ok(callback) = SINK.callback.read() {
            if let Some(callback) = &*callback {
                callback(level_number(*metadata.level()), target, &message.0);
                return;
            }
        }
        let line = format!("hbmalloc {} {target}: {}\n", metadata.level(), message.0);
        let _ = match &mut *lock(&SINK.output) {
            Output::Stderr => std::io::stderr().write_all(line.as_bytes()),
            Output::File(file) => file.write_all(line.as_bytes()),
        };
    }
}

fn level_number(level: Level) -> i32 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}
