//! Streams: whose they are, captures, which are told of as they begin, and that what is destroyed is not named to the
//! driver again.

use crate::answer::SUCCESS;
use crate::memory::process;
use crate::runtime::{current_device, runtime};
use hbmalloc::gpu::Stream;
use hbmalloc::observe;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// What NULL means to functions that a program calls by their second name: the thread's own stream.
const PER_THREAD: *mut c_void = 2 as *mut c_void;

pub fn own(stream: *mut c_void) -> *mut c_void {
    match stream.is_null() {
        true => PER_THREAD,
        false => stream,
    }
}

/// The device of a live stream, which need not be the thread's. Where there is one device nobody is asked.
pub fn device_of(stream: *mut c_void) -> Result<c_int, c_int> {
    let named = Stream::from_raw(stream);
    let Ok(driver) = process().driver() else {
        return current_device();
    };
    match driver.device_count() {
        1 => Ok(0),
        _ if named.is_implicit() => current_device(),
        _ => match driver.context_of(named) {
            Ok(context) => Ok(context.device().ordinal()),
            // Older drivers do not say while it captures.
            Err(_) => {
                let captured = open()
                    .get(&Meant::here(stream))
                    .map(|capture| capture.device);
                captured.map_or_else(current_device, Ok)
            }
        },
    }
}

/// A stream as one thread means it: the per-thread stream is another one on each.
#[derive(PartialEq, Eq, Hash)]
struct Meant {
    handle: usize,
    thread: Option<ThreadId>,
}

impl Meant {
    fn here(stream: *mut c_void) -> Meant {
        Meant {
            handle: stream as usize,
            thread: (stream == PER_THREAD).then(|| thread::current().id()),
        }
    }
}

/// A capture: its stream's device, and all devices that know of it with the number that each has for it. Streams of others
/// can join a capture, unseen.
struct Capture {
    device: c_int,
    known: Vec<(c_int, u64)>,
}

impl Capture {
    fn begin(stream: *mut c_void) -> Option<Capture> {
        let process = process();
        let device = device_of(stream).ok()?;
        let mut known = vec![(device, process.capture_begins(device).ok()?)];
        let others = process.ordinals_in_use().into_iter();
        for other in others.filter(|other| *other != device) {
            known.extend(process.capture_begins(other).map(|number| (other, number)));
        }
        Some(Capture { device, known })
    }

    fn shown(&self, stream: *mut c_void) {
        let (device, number) = self.known[0];
        let _ = process().capture_shown(device, number, Stream::from_raw(stream));
    }

    fn end(&self) {
        for (device, number) in &self.known {
            let _ = observe::process().capture_ended(*device, *number);
        }
    }
}

fn open() -> MutexGuard<'static, HashMap<Meant, Capture>> {
    static OPEN: LazyLock<Mutex<HashMap<Meant, Capture>>> = LazyLock::new(Mutex::default);
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn begin(stream: *mut c_void, real: impl FnOnce() -> c_int) -> c_int {
    let capture = Capture::begin(stream);
    let answered = real();
    match (capture, answered) {
        (None, _) => {}
        (Some(capture), SUCCESS) => {
            capture.shown(stream);
            open().insert(Meant::here(stream), capture);
        }
        (Some(capture), _) => capture.end(),
    }
    answered
}

fn end(stream: *mut c_void) {
    let ended = open().remove(&Meant::here(stream));
    if let Some(capture) = ended {
        capture.end();
    }
}

/// Whether a capture that began here is open yet: the stream says so, its capture spoiled or not.
fn still_captures(stream: *mut c_void) -> bool {
    if !open().contains_key(&Meant::here(stream)) {
        return false;
    }
    let mut status: c_int = 0;
    let out: *mut c_int = &mut status;
    // Who cannot say, of a broken context say, has no capture that work could disturb.
    let _ = runtime!(cudaStreamIsCapturing(stream: *mut c_void, out: *mut c_int));
    status != 0
}

macro_rules! begins {
    ($($name:ident, $stream:expr;)*) => { $(
        /// As the runtime's.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(stream: *mut c_void, mode: c_int) -> c_int {
            begin($stream(stream), || runtime!($name(stream: *mut c_void, mode: c_int)))
        }
    )* };
}

macro_rules! begins_to_graph {
    ($($name:ident, $stream:expr;)*) => { $(
        /// As the runtime's.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(
            stream: *mut c_void,
            graph: *mut c_void,
            behind: *const c_void,
            edges: *const c_void,
            count: usize,
            mode: c_int,
        ) -> c_int {
            begin($stream(stream), || {
                runtime!($name(
                    stream: *mut c_void, graph: *mut c_void, behind: *const c_void, edges: *const c_void, count: usize,
                    mode: c_int
                ))
            })
        }
    )* };
}

macro_rules! ends {
    ($($name:ident, $stream:expr;)*) => { $(
        /// As the runtime's.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(stream: *mut c_void, graph: *mut *mut c_void) -> c_int {
            let answered = runtime!($name(stream: *mut c_void, graph: *mut *mut c_void));
            // The end of a spoiled capture fails, and is one all the same.
            if answered == SUCCESS || !still_captures($stream(stream)) {
                end($stream(stream));
            }
            answered
        }
    )* };
}

/// Functions by whose first name NULL is the legacy stream.
fn as_named(stream: *mut c_void) -> *mut c_void {
    stream
}

begins! {
    cudaStreamBeginCapture, as_named;
    cudaStreamBeginCapture_ptsz, own;
}
begins_to_graph! {
    cudaStreamBeginCaptureToGraph, as_named;
    cudaStreamBeginCaptureToGraph_ptsz, own;
}
ends! {
    cudaStreamEndCapture, as_named;
    cudaStreamEndCapture_ptsz, own;
}

/// As the runtime's.
#[unsafe(no_mangle)]
pub extern "C" fn cudaStreamDestroy(stream: *mut c_void) -> c_int {
    let process = observe::process();
    // Where nobody has used a device yet, arenas alone may know the stream.
    let device = match process.driver_touched() {
        true => device_of(stream),
        false => Ok(0),
    };
    if let Ok(device) = device {
        let _ = process.forget_stream(device, Stream::from_raw(stream));
    }
    end(stream);
    runtime!(cudaStreamDestroy(stream: *mut c_void))
}
