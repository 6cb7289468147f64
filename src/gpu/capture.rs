//! Stream capture: whether one is open, and driver calls that must not disturb it.

use super::device::Device;
use super::stream::Stream;
use crate::error::{DriverCode, Result};
use crate::sys::cuda::Cuda;
use std::ffi::c_int;
use std::marker::PhantomData;

/// Asking the legacy stream while another blocking stream captures answers this code.
const IMPLICIT_CAPTURE: DriverCode = DriverCode(906);

const MODE_RELAXED: c_int = 2;

impl Device {
    /// Whether `stream` is part of a capture, valid or already broken.
    pub fn is_capturing(&self, stream: Stream) -> Result<bool> {
        let mut status: c_int = 0;
        // SAFETY: `status` is a valid out-pointer; the caller vouches for the handle.
        match unsafe { self.cuda().stream_is_capturing(stream.raw(), &mut status) } {
            Ok(()) => Ok(status != 0),
            Err(refusal) if refusal.code == Some(IMPLICIT_CAPTURE) => Ok(true),
            Err(refusal) => Err(self.cuda().error(refusal)),
        }
    }

    /// Whether a capture is open on this device, as far as hooks told or the streams seen show.
    pub fn capture_open(&self) -> bool {
        self.streams().told_captures() > 0
            || self
                .streams()
                .seen()
                .into_iter()
                // A stream destroyed since cannot be asked, and does not capture either.
                .any(|stream| self.is_capturing(stream).unwrap_or(false))
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
            let _ = unsafe { self.cuda.exchange_capture_mode(&mut mode) };
        }
    }
}
