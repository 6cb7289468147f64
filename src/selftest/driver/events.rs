//! Events: what they stand for, and events behind a whole context.

use super::cases;
use super::gate::Gate;
use super::guards::{BLOCKING, CHUNK, Event, NON_BLOCKING, Owned, Stream};
use super::steps::Steps;
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = cases![
    "event: never recorded" => never_recorded,
    "event: pending and done" => pending,
    "event: recorded again" => again,
    "event behind a whole context" => whole_context,
];

fn never_recorded(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let event = Event::new(calls)?;
    steps.is("query", calls.event_query(&event), 0);
    steps.is("synchronize", calls.event_synchronize(&event), 0);
    steps.is("wait", calls.wait_event(&stream, &event, 0), 0);
    steps.is("the stream does not wait", calls.stream_query(&stream), 0);
    steps.is("unknown flags", calls.event_create(&mut 0, 8), 1);
    steps.is("destroy", event.destroy(), 0);
    Ok(())
}

fn pending(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let event = Event::new(calls)?;
    steps.is("record on an idle stream", calls.record(&event, &stream), 0);
    steps.is("synchronize with it", calls.event_synchronize(&event), 0);
    steps.is("query it", calls.event_query(&event), 0);
    let gate = Gate::close(calls, &stream)?;
    steps.is("the old recording is done", calls.event_query(&event), 0);
    steps.is("record on a busy stream", calls.record(&event, &stream), 0);
    steps.is("query while busy", calls.event_query(&event), 600);
    gate.open_soon();
    steps.is("synchronize", calls.event_synchronize(&event), 0);
    steps.holds("it waited", gate.is_passed());
    steps.is("query after", calls.event_query(&event), 0);
    Ok(())
}

/// A wait is for the recording at that time, not for one that comes later.
fn again(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (one, two) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, NON_BLOCKING)?,
    );
    let event = Event::new(calls)?;
    let plain = Owned::plain(calls, CHUNK)?;
    steps.is("record", calls.record(&event, &one), 0);
    steps.is("wait", calls.wait_event(&two, &event, 0), 0);
    let gate = Gate::close(calls, &one)?;
    steps.is("record again", calls.record(&event, &one), 0);
    steps.is("query", calls.event_query(&event), 600);
    steps.is(
        "fill on the other",
        calls.fill(plain.number(), 1, 64, &two),
        0,
    );
    steps.is("which does not wait", calls.stream_synchronize(&two), 0);
    steps.holds("the gate is closed", !gate.is_passed());
    gate.open();
    steps.is("synchronize", calls.event_synchronize(&event), 0);
    Ok(())
}

fn whole_context(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    if !calls.cuda().has_context_record_event() {
        return Err(Stop::skip("the driver has no cuCtxRecordEvent"));
    }
    let (one, two) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, BLOCKING)?,
    );
    let (event, other) = (Event::new(calls)?, Event::new(calls)?);
    let mut context = 0;
    steps.is("current", calls.current(&mut context), 0);
    steps.is("record when idle", calls.record_context(context, &event), 0);
    steps.is("synchronize with it", calls.event_synchronize(&event), 0);
    let first = Gate::close(calls, &one)?;
    let second = Gate::close(calls, &two)?;
    steps.is("record when busy", calls.record_context(context, &event), 0);
    steps.is("query", calls.event_query(&event), 600);
    first.open();
    steps.is("one stream is done", calls.stream_synchronize(&one), 0);
    steps.is("query with the other busy", calls.event_query(&event), 600);
    let late = Gate::close(calls, &one)?;
    second.open();
    steps.is("synchronize", calls.event_synchronize(&event), 0);
    steps.holds("not with what came later", !late.is_passed());
    steps.is("record on a stream", calls.record(&other, &two), 0);
    steps.is("its query", calls.event_synchronize(&other), 0);
    late.open();
    Ok(())
}
