//! Streams: their handles and ids, whether their work is done, and which waits for which.

use super::calls::Calls;
use super::cases;
use super::gate::Gate;
use super::guards::{
    BLOCKING, CHUNK, Event, LEGACY, NON_BLOCKING, Owned, PER_THREAD, Pinned, Stream,
};
use super::steps::Steps;
use super::transfers::read_back;
use crate::gpu;
use crate::selftest::{Case, Outcome};

pub const CASES: &[Case] = cases![
    "stream: query and synchronize" => query,
    "stream: ids" => ids,
    "stream: order of work" => order,
    "stream: destroyed with work" => destroyed,
    "legacy stream waits for blocking streams" => legacy_waits,
    "blocking streams wait for the legacy stream" => blocking_wait,
    "context synchronize" => context_synchronize,
    "stream: waits for a number of the host's" => number_wait,
];

fn number_wait(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let (first, second) = (Event::new(calls)?, Event::new(calls)?);
    let gate = gpu::Gate::create(steps.context().driver.device(0)?)?;
    let held = gpu::Stream::from_raw(stream.raw());
    gate.hold(held, 2)?;
    steps.is("record", calls.record(&first, &stream), 0);
    gate.hold(held, 4)?;
    steps.is("record behind", calls.record(&second, &stream), 0);
    gate.reach(1);
    steps.is("not reached", calls.event_query(&first), 600);
    gate.reach(3);
    steps.is("reached", calls.event_synchronize(&first), 0);
    steps.is("the next is not", calls.event_query(&second), 600);
    steps.is("legacy goes on", calls.stream_query(&LEGACY), 0);
    drop(gate);
    steps.is("without the gate", calls.event_query(&second), 0);
    steps.is("stream", calls.stream_query(&stream), 0);
    Ok(())
}

fn query(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let mut handle = 0;
    steps.is("unknown flags", calls.stream_create(&mut handle, 2), 1);
    let stream = Stream::new(calls, NON_BLOCKING)?;
    steps.is("idle", calls.stream_query(&stream), 0);
    let gate = Gate::close(calls, &stream)?;
    steps.is("busy", calls.stream_query(&stream), 600);
    steps.holds("the gate is closed", !gate.is_passed());
    gate.open_soon();
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    steps.holds("it waited", gate.is_passed());
    steps.is("done", calls.stream_query(&stream), 0);
    steps.is("legacy", calls.stream_query(&LEGACY), 0);
    steps.is("per thread", calls.stream_query(&PER_THREAD), 0);
    steps.is("destroy", stream.destroy(), 0);
    Ok(())
}

fn id(calls: Calls, stream: &Stream) -> u64 {
    let mut id = 0;
    match calls.stream_id(stream, &mut id) {
        0 => id,
        _ => u64::MAX,
    }
}

fn ids(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let mut seen = Vec::new();
    let mut handles = Vec::new();
    for _ in 0..4 {
        let stream = Stream::new(calls, NON_BLOCKING)?;
        handles.push(stream.raw());
        seen.push(id(calls, &stream));
    }
    handles.sort_unstable();
    handles.dedup();
    steps.saw("a handle is used again", handles.len() < 4);
    seen.sort_unstable();
    seen.dedup();
    steps.is("ids of four streams", seen.len(), 4);
    steps.holds(
        "legacy has one name",
        id(calls, &LEGACY) == id(calls, &Stream::special(1)),
    );
    steps.holds(
        "per thread has another",
        id(calls, &LEGACY) != id(calls, &PER_THREAD),
    );
    let here = id(calls, &PER_THREAD);
    let context = super::steps::Current::enter(calls)?.handle();
    let there = std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            calls.set_current(context);
            let there = id(calls, &PER_THREAD);
            calls.set_current(0);
            there
        });
        other.join().unwrap_or(u64::MAX)
    });
    steps.holds(
        "each thread has its own",
        here != there && there != u64::MAX,
    );
    Ok(())
}

fn order(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (one, two) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, NON_BLOCKING)?,
    );
    let event = Event::new(calls)?;
    let plain = Owned::plain(calls, CHUNK)?;
    let (at, mut pinned) = (plain.number(), Pinned::new(calls, 4096)?);
    let gate = Gate::close(calls, &one)?;
    steps.is("fill on one", calls.fill(at, 1, CHUNK, &one), 0);
    steps.is("record", calls.record(&event, &one), 0);
    steps.is("wait", calls.wait_event(&two, &event, 0), 0);
    steps.is("fill on the other", calls.fill(at, 2, CHUNK, &two), 0);
    steps.is("the other waits", calls.stream_query(&two), 600);
    steps.is("unknown flags", calls.wait_event(&two, &event, 2), 1);
    gate.open();
    steps.is(
        "read",
        read_back(calls, &mut pinned, at, &two),
        "0x2 everywhere",
    );
    steps.is("one is done", calls.stream_query(&one), 0);
    Ok(())
}

fn destroyed(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (stream, other) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, NON_BLOCKING)?,
    );
    let event = Event::new(calls)?;
    let plain = Owned::plain(calls, CHUNK)?;
    let mut pinned = Pinned::new(calls, 4096)?;
    steps.is("clear", calls.fill(plain.number(), 0, CHUNK, &stream), 0);
    let gate = Gate::close(calls, &stream)?;
    steps.is("fill", calls.fill(plain.number(), 8, CHUNK, &stream), 0);
    steps.is("record", calls.record(&event, &stream), 0);
    steps.is("wait", calls.wait_event(&other, &event, 0), 0);
    steps.is("destroy", stream.destroy(), 0);
    steps.holds("without waiting", !gate.is_passed());
    steps.is("its event is pending", calls.event_query(&event), 600);
    steps.is("destroy the event", event.destroy(), 0);
    steps.is("the other waits still", calls.stream_query(&other), 600);
    gate.open();
    steps.is(
        "read",
        read_back(calls, &mut pinned, plain.number(), &other),
        "0x8 everywhere",
    );
    Ok(())
}

fn legacy_waits(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (blocking, free) = (
        Stream::new(calls, BLOCKING)?,
        Stream::new(calls, NON_BLOCKING)?,
    );
    let plain = Owned::plain(calls, CHUNK)?;
    let gate = Gate::close(calls, &free)?;
    steps.is(
        "legacy beside a busy non-blocking stream",
        calls.stream_query(&LEGACY),
        0,
    );
    steps.is("fill there", calls.fill(plain.number(), 1, 64, &LEGACY), 0);
    steps.is("synchronize there", calls.stream_synchronize(&LEGACY), 0);
    steps.holds("without waiting for it", !gate.is_passed());
    gate.open();
    steps.is("synchronize", calls.stream_synchronize(&free), 0);
    let gate = Gate::close(calls, &blocking)?;
    steps.is(
        "legacy beside a busy blocking stream",
        calls.stream_query(&LEGACY),
        600,
    );
    steps.is(
        "fill behind it",
        calls.fill(plain.number(), 1, 64, &LEGACY),
        0,
    );
    steps.is("waits", calls.stream_query(&LEGACY), 600);
    steps.is(
        "a non-blocking stream does not",
        calls.fill(plain.number() + 4096, 1, 64, &free),
        0,
    );
    steps.is("it synchronizes", calls.stream_synchronize(&free), 0);
    steps.holds("while the gate is closed", !gate.is_passed());
    gate.open_soon();
    steps.is("legacy synchronizes", calls.stream_synchronize(&LEGACY), 0);
    steps.holds("when the gate is open", gate.is_passed());
    Ok(())
}

fn blocking_wait(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (blocking, free) = (
        Stream::new(calls, BLOCKING)?,
        Stream::new(calls, NON_BLOCKING)?,
    );
    let plain = Owned::plain(calls, CHUNK)?;
    let gate = Gate::close(calls, &LEGACY)?;
    steps.is("legacy is busy", calls.stream_query(&LEGACY), 600);
    steps.is(
        "fill on a blocking stream",
        calls.fill(plain.number(), 1, 64, &blocking),
        0,
    );
    steps.is("it waits", calls.stream_query(&blocking), 600);
    steps.is(
        "fill on the thread's stream",
        calls.fill(plain.number(), 1, 64, &PER_THREAD),
        0,
    );
    steps.is("it waits too", calls.stream_query(&PER_THREAD), 600);
    steps.is(
        "fill on a non-blocking stream",
        calls.fill(plain.number() + 4096, 1, 64, &free),
        0,
    );
    steps.is("it does not wait", calls.stream_synchronize(&free), 0);
    steps.holds("the gate is closed", !gate.is_passed());
    gate.open_soon();
    steps.is(
        "the blocking stream synchronizes",
        calls.stream_synchronize(&blocking),
        0,
    );
    steps.holds("when the gate is open", gate.is_passed());
    steps.is(
        "the thread's stream",
        calls.stream_synchronize(&PER_THREAD),
        0,
    );
    Ok(())
}

fn context_synchronize(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (one, two) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, BLOCKING)?,
    );
    let (first, second) = (Gate::close(calls, &one)?, Gate::close(calls, &two)?);
    first.open_soon();
    second.open_soon();
    steps.is("synchronize", calls.synchronize(), 0);
    steps.holds("waited for both", first.is_passed() && second.is_passed());
    Ok(())
}
