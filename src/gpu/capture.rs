//! Stream capture: whether one is open, and driver calls that must not disturb it.

use super::device::{Device, undo};
use super::stream::Stream;
use crate::core::sync::lock;
use crate::error::{DriverCode, Error, Result, Warning};
use crate::sys::cuda::Cuda;
use rustc_hash::FxHashSet;
use std::ffi::c_int;
use std::marker::PhantomData;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Asking the legacy stream while another blocking stream captures answers this code.
const IMPLICIT_CAPTURE: DriverCode = DriverCode(906);

/// What a driver that checks handles answers for a stream that is gone.
const INVALID_HANDLE: DriverCode = DriverCode(400);

const MODE_RELAXED: c_int = 2;

/// The captures known to be open on a device.
#[derive(Default)]
pub struct Captures {
    /// Streams met while they captured. Only these are ever asked again: the driver crashes on the
    /// handle of a destroyed stream, and a stream is not destroyed while it captures.
    streams: Mutex<FxHashSet<Stream>>,
    /// Captures that hooks told us of, which no stream may show yet.
    told: AtomicUsize,
}

impl Captures {
    /// A capture begins.
    pub fn begin(&self) {
        self.told.fetch_add(1, Ordering::SeqCst);
    }

    /// A capture told of ends.
    pub fn end(&self) {
        let _ = self
            .told
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
                open.checked_sub(1)
            });
    }

    /// Never asks about `stream` again: it is about to be destroyed.
    pub fn forget(&self, stream: Stream) {
        lock(&self.streams).remove(&stream);
    }
}

impl Device {
    /// Whether `stream`, which must be live, is part of a capture, valid or already broken. The
    /// legacy stream counts as one while any stream that orders with it captures. Needs the
    /// device's context current.
    pub fn is_capturing(&self, stream: Stream) -> Result<bool> {
        let capturing = self.asks_capturing(stream)?;
        if capturing {
            lock(&self.captures().streams).insert(stream);
        }
        Ok(capturing)
    }

    /// Whether a capture is open on this device, as far as hooks told or streams met show.
    pub fn capture_open(&self) -> bool {
        let captures = self.captures();
        if captures.told.load(Ordering::SeqCst) > 0 {
            return true;
        }
        let mut streams = lock(&captures.streams);
        if streams.is_empty() {
            return false;
        }
        let unknown = |error: Error| {
            self.warnings().warn(Warning::GiveBack, || {
                format!("whether a capture is open is unknown, so freed memory waits: {error}")
            });
            true
        };
        let _guard = match self.enter() {
            Ok(guard) => guard,
            Err(error) => return unknown(error),
        };
        streams.retain(|stream| match self.asks_capturing(*stream) {
            Err(error) if error.code() == Some(INVALID_HANDLE) => false,
            answer => answer.unwrap_or_else(unknown),
        });
        !streams.is_empty()
    }

    fn asks_capturing(&self, stream: Stream) -> Result<bool> {
        let mut status: c_int = 0;
        // SAFETY: `status` is a valid out-pointer; the caller vouches for the handle.
        match unsafe { self.cuda().stream_is_capturing(stream.raw(), &mut status) } {
            Ok(()) => Ok(status != 0),
            Err(refusal) if refusal.code == Some(IMPLICIT_CAPTURE) => Ok(true),
            Err(refusal) => Err(self.cuda().error(refusal)),
        }
    }
}

/// While it lives, calls of this thread that a capture would forbid (creating, mapping, querying)
/// are allowed and do not break it.
pub struct RelaxedCapture<'a> {
    cuda: &'a Cuda,
    previous: Option<c_int>,
    _of_this_thread: PhantomData<*const ()>,
}

impl<'a> RelaxedCapture<'a> {
    /// Relaxes the calling thread.
    pub fn enter(cuda: &'a Cuda) -> RelaxedCapture<'a> {
        let mut mode = MODE_RELAXED;
        // SAFETY: `mode` is a valid in- and out-pointer.
        let exchanged = unsafe { cuda.exchange_capture_mode(&mut mode) }.is_ok();
        RelaxedCapture {
            cuda,
            previous: exchanged.then_some(mode),
            _of_this_thread: PhantomData,
        }
    }
}

impl Drop for RelaxedCapture<'_> {
    fn drop(&mut self) {
        if let Some(mut mode) = self.previous {
            // SAFETY: `mode` is a valid in- and out-pointer.
            undo(|| unsafe { self.cuda.exchange_capture_mode(&mut mode) });
        }
    }
}
