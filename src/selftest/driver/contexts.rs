//! Contexts: the calling thread's stack, primary contexts, what works without one, and a forked
//! child, where nothing does.

use super::abi::{Place, Properties};
use super::calls::Calls;
use super::cases;
use super::guards::{CHUNK, Event, LEGACY, NON_BLOCKING, Owned, Pinned, Stream};
use super::steps::{Current, Steps};
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = cases![
    "stack of contexts" => stack,
    "primary context" => primary,
    "primary context of another device" => other_primary,
    "without a context" => without,
    "forked child" => forked,
];

fn stack(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (mut first, mut now, mut popped, mut device) = (0, 0, 0, -7);
    steps.is("current", calls.current(&mut first), 0);
    steps.is("device", calls.current_device(&mut device), 0);
    steps.is("device is", device, 0);
    steps.is("push", calls.push(first), 0);
    steps.is("pop", calls.pop(&mut popped), 0);
    steps.holds("popped what was pushed", popped == first);
    steps.is("push none", calls.push(0), 1);
    steps.is("push again", calls.push(first), 0);
    steps.is("set none", calls.set_current(0), 0);
    steps.is("current after", calls.current(&mut now), 0);
    steps.holds("setting none pops one", now == first);
    on_bare_thread(calls, |calls| {
        let mut answers = vec![("current of a new thread", calls.current(&mut now))];
        answers.push(("is none", i32::from(now != 0)));
        answers.push(("pop of an empty stack", calls.pop(&mut popped)));
        answers.push(("set none on an empty stack", calls.set_current(0)));
        answers.push(("set", calls.set_current(first)));
        answers.push(("synchronize", calls.synchronize()));
        answers.push(("pop what was set", calls.pop(&mut popped)));
        answers.push(("popped it", i32::from(popped != first)));
        answers.push(("pop once more", calls.pop(&mut popped)));
        answers
    })
    .into_iter()
    .for_each(|(step, answer)| {
        let refused = matches!(step, "pop of an empty stack" | "pop once more");
        steps.is(step, answer, if refused { 201 } else { 0 });
    });
    Ok(())
}

/// What `body` answers in a thread that never had a context.
fn on_bare_thread<T: Send>(calls: Calls, body: impl FnOnce(Calls) -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| body(calls))
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn primary(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (mut one, mut two, mut flags, mut active) = (0, 0, 99, 99);
    steps.is("retain", calls.primary_retain(&mut one, 0), 0);
    steps.is("retain again", calls.primary_retain(&mut two, 0), 0);
    steps.holds("the same", one == two && one != 0);
    steps.is("state", calls.primary_state(&mut flags, &mut active, 0), 0);
    steps.is("flags", flags, 0);
    steps.is("active", active, 1);
    steps.is("release", calls.primary_release(0), 0);
    steps.is("release again", calls.primary_release(0), 0);
    steps.is(
        "state after",
        calls.primary_state(&mut flags, &mut active, 0),
        0,
    );
    steps.is("still active", active, 1);
    steps.is(
        "state of device 999",
        calls.primary_state(&mut flags, &mut active, 999),
        101,
    );
    Ok(())
}

fn other_primary(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (mut flags, mut active, mut handle, mut now) = (0, 99, 0, 0);
    let state = |flags: &mut u32, active: &mut i32| calls.primary_state(flags, active, 1);
    if steps.context().driver.device_count() < 2
        || state(&mut flags, &mut active) != 0
        || active != 0
    {
        return Err(Stop::skip(
            "no second device with its primary context unused",
        ));
    }
    steps.is("release of none", calls.primary_release(1), 201);
    steps.is("retain", calls.primary_retain(&mut handle, 1), 0);
    steps.is("state", state(&mut flags, &mut active), 0);
    steps.is("active", active, 1);
    steps.is("current", calls.current(&mut now), 0);
    steps.holds("retaining makes nothing current", now != handle);
    let mut device = -7;
    steps.is("push", calls.push(handle), 0);
    steps.is("device", calls.current_device(&mut device), 0);
    steps.is("device is", device, 1);
    steps.is("pop", calls.pop(&mut now), 0);
    steps.is("release", calls.primary_release(1), 0);
    steps.is("state after", state(&mut flags, &mut active), 0);
    steps.is("inactive", active, 0);
    Ok(())
}

fn without(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let event = Event::new(calls)?;
    let (plain, managed) = (Owned::plain(calls, CHUNK)?, Owned::managed(calls, CHUNK)?);
    let pinned = Pinned::new(calls, CHUNK)?;
    let (reservation, chunk) = (
        Owned::reservation(calls, CHUNK)?,
        Owned::chunk(calls, CHUNK)?,
    );
    let mapping = Owned::mapping(calls, reservation.number(), &chunk)?;
    let (plain_at, managed_at) = (plain.number(), managed.number());
    let answers = on_bare_thread(calls, |calls| {
        let mut answers = need_a_context(calls, plain_at, managed_at);
        answers.extend(need_none(
            calls, &stream, &event, plain_at, managed_at, &pinned,
        ));
        answers.push(("unmap", mapping.end(), 0));
        answers.push(("release", chunk.end(), 0));
        answers.push(("address free", reservation.end(), 0));
        answers.push(("free", plain.end(), 0));
        answers.push(("free managed", managed.end(), 0));
        answers.push(("event destroy", event.destroy(), 0));
        answers.push(("stream destroy", stream.destroy(), 0));
        answers
    });
    for (step, answer, expected) in answers {
        if step != "prefetch" || steps.is_concurrent() {
            steps.is(step, answer, expected);
        }
    }
    Ok(())
}

type Answers = Vec<(&'static str, i32, i32)>;

fn need_a_context(calls: Calls, plain: u64, managed: u64) -> Answers {
    let (mut out, mut size, mut handle, mut word) = (0, 0, 0, 0);
    let codes = [
        ("current device", calls.current_device(&mut word)),
        ("synchronize", calls.synchronize()),
        ("alloc", calls.alloc(&mut out, CHUNK)),
        ("memory info", calls.memory_info(&mut size, &mut handle)),
        ("alloc managed", calls.alloc_managed(&mut out, CHUNK, 1)),
        ("host alloc", calls.host_alloc(&mut handle, CHUNK, 0)),
        (
            "alloc async on the legacy stream",
            calls.alloc_async(&mut out, CHUNK, &LEGACY),
        ),
        ("event create", calls.event_create(&mut handle, 2)),
        ("stream create", calls.stream_create(&mut handle, 1)),
        ("query the legacy stream", calls.stream_query(&LEGACY)),
        (
            "is the legacy stream capturing",
            calls.is_capturing(&LEGACY, &mut word),
        ),
        (
            "id of the legacy stream",
            calls.stream_id(&LEGACY, &mut out),
        ),
        ("advise", calls.advise(managed, CHUNK, 3, Place::device(0))),
        (
            "range attribute",
            calls.range_attribute(&mut [0], 4, 1, managed, CHUNK),
        ),
        ("address range", calls.range(&mut out, &mut size, plain)),
    ];
    codes
        .into_iter()
        .map(|(step, code)| (step, code, 201))
        .collect()
}

fn need_none(
    calls: Calls,
    stream: &Stream,
    event: &Event,
    plain: u64,
    managed: u64,
    pinned: &Pinned,
) -> Answers {
    let (mut out, mut handle, mut word) = (0, 0, 0);
    let mut codes = vec![
        ("alloc async", calls.alloc_async(&mut out, CHUNK, stream)),
        ("free async", calls.free_async(out, stream)),
        ("record", calls.record(event, stream)),
        ("query event", calls.event_synchronize(event)),
        ("wait for event", calls.wait_event(stream, event, 0)),
        ("fill", calls.fill(plain, 1, 16, stream)),
        ("copy out", calls.copy_out(pinned, plain, 16, stream)),
        (
            "prefetch",
            calls.prefetch(managed, CHUNK, Place::device(0), 0, stream),
        ),
        ("synchronize stream", calls.stream_synchronize(stream)),
        ("query stream", calls.stream_query(stream)),
        ("is it capturing", calls.is_capturing(stream, &mut word)),
        ("id", calls.stream_id(stream, &mut out)),
        ("exchange mode", calls.exchange_mode(&mut word)),
        (
            "pointer attribute",
            calls.pointer_attribute(&mut out, 2, plain),
        ),
        ("default pool", calls.default_pool(&mut handle, 0)),
    ];
    codes.push(("reserve", calls.reserve(&mut out, CHUNK, 0, 0, 0)));
    codes.push(("free address", calls.free_address(out, CHUNK)));
    codes.push((
        "create",
        calls.create(&mut out, CHUNK, &Properties::at(Place::device(0)), 0),
    ));
    codes.push(("release what was created", calls.release(out)));
    codes
        .into_iter()
        .map(|(step, code)| (step, code, 0))
        .collect()
}

const CHILD_STEPS: [(&str, i32); 8] = [
    ("init", 3),
    ("alloc", 3),
    ("current", 3),
    ("version", 0),
    ("create", 3),
    ("query the legacy stream", 3),
    ("device count", 3),
    ("free of nothing", 3),
];

fn forked(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let mut ends = [0; 2];
    // SAFETY: the array has two places.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(Stop::skip("no pipe"));
    }
    // SAFETY: the child only calls the driver, writes and ends, without allocating.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let codes = answers_of_child(calls);
        // SAFETY: the bytes are those of an array of plain integers; `_exit` runs no handlers.
        unsafe {
            libc::write(ends[1], codes.as_ptr().cast(), size_of_val(&codes));
            libc::_exit(0);
        }
    }
    let mut codes = [-7i32; CHILD_STEPS.len()];
    // SAFETY: the descriptors are ours, and the buffer is as long as is said.
    unsafe {
        libc::close(ends[1]);
        if child > 0 {
            libc::read(ends[0], codes.as_mut_ptr().cast(), size_of_val(&codes));
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        libc::close(ends[0]);
    }
    if child < 0 {
        return Err(Stop::skip("no fork"));
    }
    for ((step, expected), code) in CHILD_STEPS.into_iter().zip(codes) {
        steps.is(step, code, expected);
    }
    steps.is("the parent goes on", calls.synchronize(), 0);
    drop(Current::enter(calls)?);
    Ok(())
}

fn answers_of_child(calls: Calls) -> [i32; CHILD_STEPS.len()] {
    let (mut out, mut handle, mut word) = (0, 0, 0);
    [
        calls.init(0),
        calls.alloc(&mut out, CHUNK),
        calls.current(&mut handle),
        calls.version(&mut word),
        calls.create(&mut out, CHUNK, &Properties::at(Place::device(0)), 0),
        calls.stream_query(&LEGACY),
        calls.device_count(&mut word),
        calls.free(0),
    ]
}
