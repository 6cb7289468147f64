//! A Rust program that has set up `tracing` for itself keeps its subscriber, and our warnings go there.
#![allow(missing_docs)]

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

#[derive(Clone, Default)]
struct Collect(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, "{value:?}");
    }
}

impl<S: tracing::Subscriber> Layer<S> for Collect {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
}

#[test]
fn a_programs_own_subscriber_is_left_alone() {
    let mine = Collect::default();
    let subscriber = tracing_subscriber::registry().with(mine.clone());
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let process = hbmalloc::observe::process();
    let kind = hbmalloc::error::Warning::RejectedFree;
    process.warnings().warn(kind, || "the first".to_owned());
    process.warnings().warn(kind, || "the second".to_owned());

    let lines = mine.0.lock().unwrap();
    assert!(lines.iter().any(|line| line == "the first"), "{lines:?}");
    assert!(!lines.iter().any(|line| line == "the second"), "{lines:?}");
    assert_eq!(process.warnings().count(kind), 2);
}
