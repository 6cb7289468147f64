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
                let captured = open().get(&Meant::here(stream)).map(|(device, _)| *device);
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

/// A capture: its device and its number.
type Capture = (c_int, u64);

fn open() -> MutexGuard<'static, HashMap<Meant, Capture>> {
    static OPEN: LazyLock<Mutex<HashMap<Meant, Capture>>> = LazyLock::new(Mutex::default);
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn begin(stream: *mut c_void, real: impl FnOnce() -> c_int) -> c_int {
    let process = process();
    let capture = device_of(stream).ok().and_then(|device| {
        let number = process.capture_begins(device).ok()?;
        Some((device, number))
    });
    let answered = real();
    let Some((device, number)) = capture else {
        return answered;
    };
    match answered {
        SUCCESS => {
            open().insert(Meant::here(stream), (device, number));
            let _ = process.capture_shown(device, number, Stream::from_raw(stream));
        }
        _ => {
            let _ = process.capture_ended(device, number);
        }
    }
    answered
}

fn end(stream: *mut c_void) {
    let ended = open().remove(&Meant::here(stream));
    if let Some((device, number)) = ended {
        let _ = observe::process().capture_ended(device, number);
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
