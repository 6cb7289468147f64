//! Streams and events for programs that have no headers of the driver's.

use super::{export, write_out};
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::gpu::{Device, OwnedEvent, OwnedStream, Stream};
use crate::{observe, process};
use rustc_hash::FxHashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// In the `flags` of hbm_stream_create: the legacy stream waits for the stream, and the stream for it.
pub const HBM_STREAM_BLOCKING: u32 = 1;

/// In the `flags` of hbm_event_create: the driver notes the time of its recording.
pub const HBM_EVENT_TIMING: u32 = 1;

/// What was made here and not destroyed, by its handle: a second destroy never reaches the driver.
type Made<T> = Mutex<Option<FxHashMap<usize, T>>>;

static STREAMS: Made<OwnedStream> = Mutex::new(None);
static EVENTS: Made<Arc<OwnedEvent>> = Mutex::new(None);

fn keep<T>(made: &Made<T>, handle: *mut c_void, value: T) {
    lock(made)
        .get_or_insert_default()
        .insert(handle as usize, value);
}

fn take<T>(made: &Made<T>, handle: *mut c_void, is_gone: fn(&T) -> bool) -> Option<T> {
    let taken = lock(made).as_mut()?.remove(&(handle as usize));
    taken.filter(|taken| !is_gone(taken))
}

fn not_made(operation: &'static str, what: &str, handle: *mut c_void) -> Error {
    let detail = format!(
        "{handle:p} is no {what} of hbm_{what}_create, or was destroyed, or its device reset"
    );
    Error::new(Status::NotOwned, operation).detail(detail)
}

fn event(operation: &'static str, handle: *mut c_void) -> Result<Arc<OwnedEvent>> {
    process::check_not_forked()?;
    let events = lock(&EVENTS);
    let found = events
        .as_ref()
        .and_then(|made| made.get(&(handle as usize)))
        .filter(|made| !made.is_gone());
    found
        .cloned()
        .ok_or_else(|| not_made(operation, "event", handle))
}

fn device(ordinal: i32) -> Result<Arc<Device>> {
    Ok(observe::process().device(ordinal)?.state().device.clone())
}

fn check_flags(operation: &'static str, flags: u32, known: u32) -> Result<()> {
    match flags & !known {
        0 => Ok(()),
        _ => Err(Error::invalid(
            operation,
            format!("unknown flags {flags:#x}"),
        )),
    }
}

fn current_device() -> Result<i32> {
    let current = observe::process().driver()?.current_context()?;
    Ok(current.map_or(0, |context| context.device().ordinal()))
}

/// Writes the device whose context is current on the calling thread, as cudaSetDevice makes it, to `*device`; 0
/// where none is. Opens the driver.
///
/// # Safety
/// `device` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_current_device(device: *mut i32) -> i32 {
    // SAFETY: passed on to the caller.
    export(|| unsafe { write_out("hbm_current_device", device, current_device()?) })
}

/// Writes the device that `stream` was made on to `*device`. The handles that every device has (0 and 1 for the
/// legacy stream, 2 for the thread's own) mean that of hbm_current_device. HBM_CAPTURING while it captures and the
/// driver is older than 12.5.
///
/// # Safety
/// `stream` must be live, `device` be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_stream_device(stream: *mut c_void, device: *mut i32) -> i32 {
    export(|| {
        let stream = Stream::from_raw(stream);
        let ordinal = match stream.is_implicit() {
            true => current_device()?,
            false => {
                let context = observe::process().driver()?.context_of(stream)?;
                context.device().ordinal()
            }
        };
        // SAFETY: passed on to the caller.
        unsafe { write_out("hbm_stream_device", device, ordinal) }
    })
}

/// Makes a stream on `device` and writes its handle, a CUstream or cudaStream_t, to `*stream`. `priority` as
/// cudaStreamCreateWithPriority takes it, the lower the more urgent, brought into the device's range; `flags` are
/// HBM_STREAM_ flags or 0: without any it runs beside the legacy stream. Any thread; which context is current
/// comes into it as little as everywhere.
///
/// # Safety
/// `stream` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_stream_create(
    device: i32,
    priority: i32,
    flags: u32,
    stream: *mut *mut c_void,
) -> i32 {
    export(|| {
        const OPERATION: &str = "hbm_stream_create";
        check_flags(OPERATION, flags, HBM_STREAM_BLOCKING)?;
        // SAFETY: passed on to the caller.
        unsafe { write_out(OPERATION, stream, std::ptr::null_mut()) }?;
        let is_blocking = flags & HBM_STREAM_BLOCKING != 0;
        let made = OwnedStream::with_priority(&self::device(device)?, is_blocking, priority)?;
        let handle = made.stream().raw();
        keep(&STREAMS, handle, made);
        // SAFETY: as above.
        unsafe { write_out(OPERATION, stream, handle) }
    })
}

/// Destroys a stream of hbm_stream_create, which hbm_stream_forget need not be called for. Its work ends all the
/// same, and blocks that used it stay valid. HBM_NOT_OWNED for what is none, was destroyed, or went with its
/// device's reset. NULL is fine. Does nothing in a forked child and at the end of the process.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_stream_destroy(stream: *mut c_void) -> i32 {
    export(|| {
        if stream.is_null() || process::has_forked() || process::is_exiting() {
            return Ok(());
        }
        let made = take(&STREAMS, stream, OwnedStream::is_gone)
            .ok_or_else(|| not_made("hbm_stream_destroy", "stream", stream))?;
        observe::process().forget_stream(made.device().ordinal(), made.stream())
    })
}

/// Waits until `stream`, a live one of `device`, has done all that it was given so far. HBM_CAPTURING or HBM_DRIVER
/// while it captures. Errors of that work are HBM_DRIVER.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_stream_synchronize(device: i32, stream: *mut c_void) -> i32 {
    export(|| synchronize(device, Stream::from_raw(stream)))
}

pub(super) fn synchronize(device: i32, stream: Stream) -> Result<()> {
    let device = self::device(device)?;
    let _guard = device.enter()?;
    stream.synchronize(&device)
}

/// Makes what `stream`, a live one of `device`, is given from here on wait for the last recording of `event`, of
/// whatever device; for nothing where there was none. Does not wait itself.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_stream_wait_event(
    device: i32,
    stream: *mut c_void,
    event: *mut c_void,
) -> i32 {
    export(|| {
        let event = self::event("hbm_stream_wait_event", event)?;
        event.holds_back(&*self::device(device)?, Stream::from_raw(stream))
    })
}

/// Makes an event on `device` and writes its handle, a CUevent or cudaEvent_t, to `*event`. `flags` are
/// HBM_EVENT_ flags or 0. Any thread.
///
/// # Safety
/// `event` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_event_create(device: i32, flags: u32, event: *mut *mut c_void) -> i32 {
    export(|| {
        const OPERATION: &str = "hbm_event_create";
        check_flags(OPERATION, flags, HBM_EVENT_TIMING)?;
        // SAFETY: passed on to the caller.
        unsafe { write_out(OPERATION, event, std::ptr::null_mut()) }?;
        let has_timing = flags & HBM_EVENT_TIMING != 0;
        let made = OwnedEvent::create(&self::device(device)?, has_timing)?;
        let handle = made.raw();
        keep(&EVENTS, handle, Arc::new(made));
        // SAFETY: as above.
        unsafe { write_out(OPERATION, event, handle) }
    })
}

/// Destroys an event of hbm_event_create; what waits for it goes on waiting. HBM_NOT_OWNED for what is none, was
/// destroyed, or went with its device's reset. NULL is fine. Does nothing in a forked child and at the end of the process.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_event_destroy(event: *mut c_void) -> i32 {
    export(|| {
        if event.is_null() || process::has_forked() || process::is_exiting() {
            return Ok(());
        }
        let made = take(&EVENTS, event, |made| made.is_gone())
            .ok_or_else(|| not_made("hbm_event_destroy", "event", event))?;
        drop(made);
        Ok(())
    })
}

/// Records an event of hbm_event_create behind what `stream`, a live one of the event's device, has been given so
/// far. HBM_DRIVER for a stream of another device.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_event_record(event: *mut c_void, stream: *mut c_void) -> i32 {
    export(|| self::event("hbm_event_record", event)?.record(Stream::from_raw(stream)))
}

/// Waits for the last recording of an event of hbm_event_create; returns at once where there was none.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_event_synchronize(event: *mut c_void) -> i32 {
    export(|| self::event("hbm_event_synchronize", event)?.synchronize())
}
