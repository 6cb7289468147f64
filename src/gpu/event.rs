//! Events that the program records itself. Those that fences are made of are [`super::fence`]'s.

use super::device::{Device, undo};
use super::stream::Stream;
use crate::error::Result;
use crate::sys::cuda::Handle;
use std::ffi::c_uint;
use std::sync::Arc;

const TIMING: c_uint = 0;
const NO_TIMING: c_uint = 2;

/// An event made here and destroyed when this is dropped. What waits for it goes on waiting.
pub struct OwnedEvent {
    device: Arc<Device>,
    handle: Handle,
    /// Which of the device's contexts it was made in.
    context: u64,
}

// SAFETY: an event may be recorded, waited for and destroyed from any thread.
unsafe impl Send for OwnedEvent {}
// SAFETY: the driver synchronises its own use of an event.
unsafe impl Sync for OwnedEvent {}

impl OwnedEvent {
    /// Makes an event on `device`, with the time of its recording or without, which costs less.
    pub fn create(device: &Arc<Device>, has_timing: bool) -> Result<OwnedEvent> {
        let context = device.contexts_left();
        let _guard = device.enter()?;
        let flags = if has_timing { TIMING } else { NO_TIMING };
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid out-pointer.
        device.check(unsafe { device.cuda().event_create(&mut handle, flags) })?;
        Ok(OwnedEvent {
            device: device.clone(),
            handle,
            context,
        })
    }

    /// The handle to pass to the driver, good until this is dropped or the device reset.
    pub fn raw(&self) -> Handle {
        self.handle
    }

    /// Whether it went with a context that was reset, and its handle may be another's.
    pub fn is_gone(&self) -> bool {
        self.context != self.device.contexts_left()
    }

    /// Records it behind what `stream`, a live one of its device, has been given so far.
    pub fn record(&self, stream: Stream) -> Result<()> {
        let _guard = self.device.enter()?;
        let cuda = self.device.cuda();
        // SAFETY: the event is live; the caller vouches for the stream's handle.
        self.device
            .check(unsafe { cuda.event_record(self.handle, stream.raw()) })
    }

    /// Makes what `stream`, a live one of `device`, is given from here on wait for the last recording.
    pub fn holds_back(&self, device: &Device, stream: Stream) -> Result<()> {
        let _guard = device.enter()?;
        let cuda = device.cuda();
        // SAFETY: the event is live; the caller vouches for the stream's handle.
        device.check(unsafe { cuda.stream_wait_event(stream.raw(), self.handle, 0) })
    }

    /// Waits for the last recording; not at all where there was none.
    pub fn synchronize(&self) -> Result<()> {
        let _guard = self.device.enter()?;
        let cuda = self.device.cuda();
        // SAFETY: the event is live.
        self.device
            .check(unsafe { cuda.event_synchronize(self.handle) })
    }
}

impl Drop for OwnedEvent {
    fn drop(&mut self) {
        if self.is_gone() {
            return;
        }
        let Ok(_guard) = self.device.enter().or_else(|_| self.device.enter()) else {
            return;
        };
        // SAFETY: the event was made in `create` and this is its only owner.
        undo(|| unsafe { self.device.cuda().event_destroy(self.handle) });
    }
}
