//! Calls made while a stream captures: which are let through, which are refused and spoil the
//! capture, by the mode of the capture and of the calling thread.

use super::abi::{Access, Place, PoolProperties, Properties, READ_WRITE};
use super::calls::Calls;
use super::cases;
use super::guards::{
    BLOCKING, CHUNK, Capture, Event, GLOBAL, LEGACY, NON_BLOCKING, Owned, Pool, RELAXED, Stream,
    THREAD_LOCAL, need,
};
use super::steps::Steps;
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = cases![
    "capture: global" => |steps| during(steps, &Setting { mode: GLOBAL, thread: GLOBAL, elsewhere: false, strict: true }),
    "capture: thread-local" => |steps| during(steps, &Setting { mode: THREAD_LOCAL, thread: GLOBAL, elsewhere: false, strict: true }),
    "capture: relaxed" => |steps| during(steps, &Setting { mode: RELAXED, thread: GLOBAL, elsewhere: false, strict: false }),
    "capture: global, thread relaxed" => |steps| during(steps, &Setting { mode: GLOBAL, thread: RELAXED, elsewhere: false, strict: false }),
    "capture: global, thread thread-local" => |steps| during(steps, &Setting { mode: GLOBAL, thread: THREAD_LOCAL, elsewhere: false, strict: true }),
    "capture: global, another thread" => |steps| during(steps, &Setting { mode: GLOBAL, thread: GLOBAL, elsewhere: true, strict: true }),
    "capture: thread-local, another thread" => |steps| during(steps, &Setting { mode: THREAD_LOCAL, thread: GLOBAL, elsewhere: true, strict: false }),
    "capture: mode of the thread" => exchange,
];

/// Who captures and who calls, and so whether calls that could disturb a capture are refused.
struct Setting {
    mode: i32,
    /// The calling thread's own mode.
    thread: i32,
    /// Called by another thread than the capture's.
    elsewhere: bool,
    strict: bool,
}

/// What becomes of a call.
#[derive(Clone, Copy)]
enum Fate {
    /// Let through everywhere, the capture goes on.
    Fine,
    /// Refused with 900 where the setting is strict, and then the capture is spoilt.
    Unsafe,
    /// Refused with this code everywhere, and the capture is spoilt.
    Spoils(i32),
    /// Refused with this code everywhere, and the capture goes on.
    Refused(i32),
}
use Fate::{Fine, Refused, Spoils, Unsafe};

/// What the calls work on, outside the capture.
struct Scene<'a> {
    calls: Calls<'a>,
    context: usize,
    capturing: &'a Stream<'a>,
    other: Stream<'a>,
    done: Event<'a>,
    never: Event<'a>,
    inside: Event<'a>,
    plain: Owned<'a>,
    managed: Owned<'a>,
    pooled: u64,
    pool: Pool<'a>,
    reservation: Owned<'a>,
    chunk: Owned<'a>,
    mapping: Owned<'a>,
}

impl<'a> Scene<'a> {
    fn set(calls: Calls<'a>, capturing: &'a Stream<'a>) -> Result<Scene<'a>, Stop> {
        let other = Stream::new(calls, NON_BLOCKING)?;
        let (reservation, chunk) = (
            Owned::reservation(calls, 4 * CHUNK)?,
            Owned::chunk(calls, CHUNK)?,
        );
        let mapping = Owned::mapping(calls, reservation.number(), &chunk)?;
        let (done, mut context, mut pooled) = (Event::new(calls)?, 0, 0);
        let pool = Pool::new(calls, &PoolProperties::at(Place::device(0)))?;
        need("cuCtxGetCurrent", calls.current(&mut context))?;
        need(
            "cuMemAllocFromPoolAsync",
            calls.alloc_from_pool(&mut pooled, 4096, &pool, &other),
        )?;
        need("cuEventRecord", calls.record(&done, &other))?;
        need("cuStreamSynchronize", calls.stream_synchronize(&other))?;
        Ok(Scene {
            calls,
            context,
            capturing,
            other,
            done,
            never: Event::new(calls)?,
            inside: Event::new(calls)?,
            plain: Owned::plain(calls, CHUNK)?,
            managed: Owned::managed(calls, CHUNK)?,
            pooled,
            pool,
            mapping,
            reservation,
            chunk,
        })
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if self.pooled != 0 {
            self.calls.free_async(self.pooled, &self.other);
        }
        self.calls.stream_synchronize(&self.other);
    }
}

type Call = fn(&mut Scene) -> i32;

const DEVICE: Place = Place::device(0);

const CALLS: &[(&str, Fate, Call)] = &[
    ("alloc", Unsafe, |s| {
        undone(|out| s.calls.alloc(out, CHUNK), |at| s.calls.free(at))
    }),
    ("alloc managed", Unsafe, |s| {
        undone(
            |out| s.calls.alloc_managed(out, CHUNK, 1),
            |at| s.calls.free(at),
        )
    }),
    ("free", Unsafe, |s| s.plain.attempt()),
    ("free managed", Unsafe, |s| s.managed.attempt()),
    ("reserve", Fine, |s| {
        undone(
            |out| s.calls.reserve(out, CHUNK, 0, 0, 0),
            |at| s.calls.free_address(at, CHUNK),
        )
    }),
    ("create", Fine, |s| {
        undone(
            |out| s.calls.create(out, CHUNK, &Properties::at(DEVICE), 0),
            |chunk| s.calls.release(chunk),
        )
    }),
    ("map", Fine, map),
    ("set access", Fine, |s| {
        s.calls.set_access(
            s.mapping.number(),
            CHUNK,
            &[Access {
                place: DEVICE,
                flags: READ_WRITE,
            }],
        )
    }),
    ("unmap", Fine, |s| s.mapping.attempt()),
    ("event query", Unsafe, |s| s.calls.event_query(&s.done)),
    ("event query, never recorded", Unsafe, |s| {
        s.calls.event_query(&s.never)
    }),
    ("event synchronize", Unsafe, |s| {
        s.calls.event_synchronize(&s.done)
    }),
    ("event query, captured", Spoils(907), |s| {
        s.calls.event_query(&s.inside)
    }),
    ("event synchronize, captured", Spoils(907), |s| {
        s.calls.event_synchronize(&s.inside)
    }),
    ("record on another stream", Fine, |s| {
        s.calls.record(&s.done, &s.other)
    }),
    ("wait on another stream", Fine, |s| {
        s.calls.wait_event(&s.other, &s.done, 0)
    }),
    ("wait for an event from outside", Spoils(905), |s| {
        s.calls.wait_event(s.capturing, &s.done, 0)
    }),
    ("wait for one never recorded", Fine, |s| {
        s.calls.wait_event(s.capturing, &s.never, 0)
    }),
    ("query another stream", Unsafe, |s| {
        s.calls.stream_query(&s.other)
    }),
    ("synchronize another stream", Unsafe, |s| {
        s.calls.stream_synchronize(&s.other)
    }),
    ("query the capturing stream", Spoils(900), |s| {
        s.calls.stream_query(s.capturing)
    }),
    ("synchronize the capturing stream", Spoils(900), |s| {
        s.calls.stream_synchronize(s.capturing)
    }),
    ("context synchronize", Spoils(900), |s| {
        s.calls.synchronize()
    }),
    ("record behind the context", Spoils(900), |s| {
        s.calls.record_context(s.context, &s.never)
    }),
    ("memory info", Fine, |s| s.calls.memory_info(&mut 0, &mut 0)),
    ("advise", Unsafe, |s| {
        s.calls.advise(s.managed.number(), CHUNK, 3, DEVICE)
    }),
    ("prefetch on the capturing stream", Spoils(900), |s| {
        s.calls
            .prefetch(s.managed.number(), CHUNK, DEVICE, 0, s.capturing)
    }),
    ("prefetch on another stream", Fine, |s| {
        s.calls
            .prefetch(s.managed.number(), CHUNK, DEVICE, 0, &s.other)
    }),
    ("alloc async on another stream", Unsafe, |s| {
        undone(
            |out| s.calls.alloc_async(out, 4096, &s.other),
            |at| s.calls.free_async(at, &s.other),
        )
    }),
    ("free async on another stream", Unsafe, free_pooled),
    ("free async of memory from outside", Refused(1), |s| {
        s.calls.free_async(s.pooled, s.capturing)
    }),
    ("trim", Unsafe, |s| s.calls.pool_trim(&s.pool, 0)),
    ("pool attribute", Unsafe, |s| {
        s.calls.pool_get(&s.pool, 5, &mut 0)
    }),
    ("pool set attribute", Unsafe, |s| {
        s.calls.pool_set(&s.pool, 4, &mut 0)
    }),
    ("pool access", Unsafe, |s| {
        s.calls.pool_access(&mut 0, &s.pool, DEVICE)
    }),
    ("default pool", Fine, |s| s.calls.default_pool(&mut 0, 0)),
    ("pointer attribute", Fine, |s| {
        s.calls.pointer_attribute(&mut 0, 2, s.plain.number())
    }),
    ("fill on the capturing stream", Fine, |s| {
        s.calls.fill(s.plain.number(), 1, 64, s.capturing)
    }),
    ("fill on another stream", Fine, |s| {
        s.calls.fill(s.plain.number(), 1, 64, &s.other)
    }),
    ("begin again", Refused(401), |s| {
        s.calls.begin_capture(s.capturing, GLOBAL)
    }),
    ("range attribute", Fine, |s| {
        s.calls
            .range_attribute(&mut [0], 4, 1, s.managed.number(), CHUNK)
    }),
    ("host function", Fine, |s| {
        host_function(s.calls, s.capturing)
    }),
];

/// Made on a blocking stream, whose capture the legacy stream would have to wait for.
const LEGACY_CALLS: &[(&str, Fate, Call)] = &[
    ("query the legacy stream", Spoils(906), |s| {
        s.calls.stream_query(&LEGACY)
    }),
    ("synchronize the legacy stream", Spoils(906), |s| {
        s.calls.stream_synchronize(&LEGACY)
    }),
    ("record on the legacy stream", Spoils(906), |s| {
        s.calls.record(&s.done, &LEGACY)
    }),
    ("fill on the legacy stream", Spoils(906), |s| {
        s.calls.fill(s.plain.number(), 1, 64, &LEGACY)
    }),
    ("is the legacy stream capturing", Refused(906), |s| {
        s.calls.is_capturing(&LEGACY, &mut 0)
    }),
    ("is another stream capturing", Fine, |s| {
        s.calls.is_capturing(&s.other, &mut 0)
    }),
];

/// Makes something and takes it back at once; the code of the making.
fn undone(make: impl FnOnce(&mut u64) -> i32, undo: impl FnOnce(u64) -> i32) -> i32 {
    let mut out = 0;
    let answer = make(&mut out);
    if answer == 0 {
        undo(out);
    }
    answer
}

fn host_function(calls: Calls, stream: &Stream) -> i32 {
    extern "C" fn nothing(_: *mut std::ffi::c_void) {}
    // SAFETY: the function ignores its argument.
    unsafe { calls.host_function(stream, nothing, std::ptr::null_mut()) }
}

fn map(scene: &mut Scene) -> i32 {
    let (calls, at) = (scene.calls, scene.reservation.number() + CHUNK);
    let answer = calls.map(at, CHUNK, 0, scene.chunk.number(), 0);
    if answer == 0 {
        calls.unmap(at, CHUNK);
    }
    answer
}

fn free_pooled(scene: &mut Scene) -> i32 {
    let answer = scene.calls.free_async(scene.pooled, &scene.other);
    if answer == 0 {
        scene.pooled = 0;
    }
    answer
}

fn during(steps: &mut Steps, setting: &Setting) -> Outcome {
    let calls = steps.calls();
    let own = Stream::new(calls, NON_BLOCKING)?;
    let blocking = Stream::new(calls, BLOCKING)?;
    let can = |name: &str, steps: &Steps| match name {
        "record behind the context" => calls.cuda().has_context_record_event(),
        "advise" | "prefetch on another stream" => steps.is_concurrent(),
        _ => true,
    };
    for (list, stream) in [(CALLS, &own), (LEGACY_CALLS, &blocking)] {
        for (name, fate, call) in list {
            if can(name, steps) {
                let seen = one(calls, stream, setting, *call)?;
                steps.is(name, seen, fate.expected(setting));
            }
        }
    }
    Ok(())
}

/// One call within a capture of its own: its code, the capture's status then, the code of the end.
fn one(calls: Calls, stream: &Stream, setting: &Setting, call: Call) -> Result<String, Stop> {
    let mut scene = Scene::set(calls, stream)?;
    let capture = Capture::begin(calls, stream, setting.mode)?;
    need("cuEventRecord", calls.record(&scene.inside, stream))?;
    let answer = if setting.elsewhere {
        let context = scene.context;
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| {
                calls.set_current(context);
                let answer = with_mode(calls, setting.thread, || call(&mut scene));
                calls.set_current(0);
                answer
            });
            caller.join().unwrap_or(-7)
        })
    } else {
        with_mode(calls, setting.thread, || call(&mut scene))
    };
    let mut status = -7;
    calls.is_capturing(stream, &mut status);
    let (end, _graph) = capture.end();
    Ok(format!("{answer}, status {status}, end {end}"))
}

fn with_mode<T>(calls: Calls, mode: i32, body: impl FnOnce() -> T) -> T {
    let mut exchanged = mode;
    calls.exchange_mode(&mut exchanged);
    let value = body();
    calls.exchange_mode(&mut exchanged);
    value
}

impl Fate {
    fn expected(self, setting: &Setting) -> String {
        match self {
            Unsafe if setting.strict => Spoils(900).expected(setting),
            Fine | Unsafe => "0, status 1, end 0".to_owned(),
            Spoils(code) => format!("{code}, status 2, end 901"),
            Refused(code) => format!("{code}, status 1, end 0"),
        }
    }
}

fn exchange(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let mut mode = RELAXED;
    steps.is("to relaxed", calls.exchange_mode(&mut mode), 0);
    steps.is("was", mode, GLOBAL);
    let mut there = THREAD_LOCAL;
    std::thread::scope(|scope| {
        scope.spawn(|| calls.exchange_mode(&mut there));
    });
    steps.is("another thread's was", there, GLOBAL);
    steps.is("back", calls.exchange_mode(&mut mode), 0);
    steps.is("had been", mode, RELAXED);
    let mut unknown = 7;
    steps.is("to 7", calls.exchange_mode(&mut unknown), 0);
    Ok(())
}
