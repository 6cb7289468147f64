//! Streams and events of two contexts: which context a stream is of, and what may meet.

use super::cases;
use super::gate::Gate;
use super::guards::{BLOCKING, Event, Graph, LEGACY, NON_BLOCKING, PER_THREAD, Stream, need};
use super::steps::Steps;
use crate::selftest::machine::{CAPTURE_GLOBAL, CAPTURE_RELAXED};
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = cases![
    "context of a stream" => context_of_a_stream,
    "context of a stream that captures" => while_it_captures,
    "streams and events of two devices" => two_devices,
];

fn context_of_a_stream(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (mut current, mut found) = (0, 0);
    steps.is("current", calls.current(&mut current), 0);
    for (name, flags) in [("blocking", BLOCKING), ("non-blocking", NON_BLOCKING)] {
        let stream = Stream::new(calls, flags)?;
        steps.is(name, calls.stream_context(&stream, &mut found), 0);
        steps.holds("the current one", found == current);
    }
    for (name, stream) in [("legacy", &LEGACY), ("per thread", &PER_THREAD)] {
        found = 0;
        steps.is(name, calls.stream_context(stream, &mut found), 0);
        steps.holds("the current one", found == current);
    }
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let answers = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut own, mut legacy) = (0, 0);
            let codes = [
                calls.stream_context(&stream, &mut own),
                calls.stream_context(&LEGACY, &mut legacy),
            ];
            (codes, own)
        });
        asking.join()
    });
    let (codes, own) = answers.map_err(|_| "a thread panicked".to_owned())?;
    steps.is("of a thread without a context", codes[0], 0);
    steps.holds("the stream's", own == current);
    steps.is("legacy of a thread without a context", codes[1], 201);
    Ok(())
}

/// Asked of every mode: the capture goes on.
fn while_it_captures(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let mut version = 0;
    need("cuDriverGetVersion", calls.version(&mut version))?;
    if version < 12050 {
        return Err(Stop::skip("drivers before 12.5 refuse"));
    }
    let (mut current, mut graph) = (0, 0);
    steps.is("current", calls.current(&mut current), 0);
    for mode in [CAPTURE_GLOBAL, CAPTURE_RELAXED] {
        let (stream, mut found) = (Stream::new(calls, NON_BLOCKING)?, 0);
        steps.is("begin", calls.begin_capture(&stream, mode), 0);
        steps.is("context", calls.stream_context(&stream, &mut found), 0);
        steps.holds("the current one", found == current);
        steps.is("end", calls.end_capture(&stream, &mut graph), 0);
        drop(Graph::own(calls, graph));
    }
    Ok(())
}

fn two_devices(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    if steps.context().driver.device_count() < 2 {
        return Err(Stop::skip("there is one device"));
    }
    let (mut here, mut there, mut popped, mut found) = (0, 0, 0, 0);
    steps.is("current", calls.current(&mut here), 0);
    need(
        "cuDevicePrimaryCtxRetain",
        calls.primary_retain(&mut there, 1),
    )?;
    {
        let (own, event) = (Stream::new(calls, NON_BLOCKING)?, Event::new(calls)?);
        need("cuCtxPushCurrent", calls.push(there))?;
        let made =
            Stream::new(calls, NON_BLOCKING).and_then(|stream| Ok((stream, Event::new(calls)?)));
        need("cuCtxPopCurrent", calls.pop(&mut popped))?;
        let (other, of_other) = made?;
        steps.is("context", calls.stream_context(&other, &mut found), 0);
        steps.holds("the other device's", found == there);
        steps.is(
            "record another context's event",
            calls.record(&event, &other),
            400,
        );
        steps.is("and the other way", calls.record(&of_other, &own), 400);
        steps.is(
            "behind another whole context",
            calls.record_context(there, &event),
            400,
        );
        let gate = Gate::close(calls, &other)?;
        steps.is("record", calls.record(&of_other, &other), 0);
        steps.is("query from here", calls.event_query(&of_other), 600);
        steps.is("wait across", calls.wait_event(&own, &of_other, 0), 0);
        steps.is("query what waits", calls.stream_query(&own), 600);
        gate.open();
        steps.is(
            "synchronize from here",
            calls.event_synchronize(&of_other),
            0,
        );
        steps.is("what waited", calls.stream_synchronize(&own), 0);
        steps.is("destroy from here", of_other.destroy(), 0);
        steps.is("destroy the stream", other.destroy(), 0);
    }
    steps.is("release", calls.primary_release(1), 0);
    Ok(())
}
