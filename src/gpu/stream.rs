//! A stream's handle, as the driver and torch pass it, and what can be asked of it.

use super::device::{Device, undo};
use crate::error::Result;
use crate::sys::cuda::{Handle, Refusal};
use std::ffi::c_uint;
use std::sync::Arc;

/// A stream handle. 0 and 1 both mean the legacy stream, 2 the calling thread's own default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream(usize);

impl Stream {
    /// The legacy stream.
    pub const LEGACY: Stream = Stream(0);
    /// No stream: what statistics of streams that are long gone stand under.
    pub const GONE: Stream = Stream(usize::MAX);

    /// The stream of a driver handle; both names of the legacy stream become one.
    pub fn from_raw(handle: Handle) -> Stream {
        Stream(match handle as usize {
            1 => 0,
            other => other,
        })
    }

    /// The handle to pass to the driver.
    pub fn raw(self) -> Handle {
        self.0 as Handle
    }

    /// Whether the handle means another stream on every thread, so that naming it later, or on
    /// another thread, names another stream.
    pub fn is_per_thread(self) -> bool {
        self.0 == 2
    }

    /// Whether every context has a stream of this handle.
    pub fn is_implicit(self) -> bool {
        self == Stream::LEGACY || self.is_per_thread()
    }

    /// Waits until the stream's work is done.
    pub fn synchronize(self, device: &Device) -> Result<()> {
        // SAFETY: the caller vouches for the handle.
        device.check(unsafe { device.cuda().stream_synchronize(self.raw()) })
    }
}

const BLOCKING: c_uint = 0;
const NON_BLOCKING: c_uint = 1;

/// A stream made here and destroyed when this is dropped. Its work ends all the same.
///
/// Blocks that it used and that are not deallocated yet must not name it afterwards: see
/// [`Process::forget_stream`](crate::process::Process::forget_stream).
pub struct OwnedStream {
    device: Arc<Device>,
    stream: Stream,
    /// Which of the device's contexts it was made in.
    context: u64,
}

impl OwnedStream {
    /// Makes a stream on `device` that goes its way beside the legacy stream, as torch's do.
    pub fn create(device: &Arc<Device>) -> Result<OwnedStream> {
        OwnedStream::with_flags(device, NON_BLOCKING)
    }

    /// Makes a stream on `device` that the legacy stream waits for and holds up.
    pub fn create_blocking(device: &Arc<Device>) -> Result<OwnedStream> {
        OwnedStream::with_flags(device, BLOCKING)
    }

    /// Makes a stream of a priority, the lower the more urgent; the driver brings it into its range.
    pub fn with_priority(
        device: &Arc<Device>,
        is_blocking: bool,
        priority: i32,
    ) -> Result<OwnedStream> {
        let flags = if is_blocking { BLOCKING } else { NON_BLOCKING };
        if priority == 0 {
            return OwnedStream::with_flags(device, flags);
        }
        OwnedStream::made_by(device, |handle| {
            // SAFETY: `handle` is a valid out-pointer.
            unsafe {
                let cuda = device.cuda();
                cuda.stream_create_with_priority(handle, flags, priority)
            }
        })
    }

    fn with_flags(device: &Arc<Device>, flags: c_uint) -> Result<OwnedStream> {
        OwnedStream::made_by(device, |handle| {
            // SAFETY: `handle` is a valid out-pointer.
            unsafe { device.cuda().stream_create(handle, flags) }
        })
    }

    fn made_by(
        device: &Arc<Device>,
        make: impl FnOnce(&mut Handle) -> std::result::Result<(), Refusal>,
    ) -> Result<OwnedStream> {
        let context = device.contexts_left();
        let _guard = device.enter()?;
        let mut handle: Handle = std::ptr::null_mut();
        device.check(make(&mut handle))?;
        Ok(OwnedStream {
            device: device.clone(),
            stream: Stream::from_raw(handle),
            context,
        })
    }

    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Its handle, good until this is dropped or the device reset.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Whether it went with a context that was reset, and its handle may be another's.
    pub fn is_gone(&self) -> bool {
        self.context != self.device.contexts_left()
    }
}

impl Drop for OwnedStream {
    fn drop(&mut self) {
        if self.is_gone() {
            return;
        }
        let Ok(_guard) = self.device.enter().or_else(|_| self.device.enter()) else {
            return;
        };
        // SAFETY: the stream was made in `create` and this is its only owner.
        undo(|| unsafe { self.device.cuda().stream_destroy(self.stream.raw()) });
    }
}
