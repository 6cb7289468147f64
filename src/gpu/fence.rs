//! The moment after which work already given to the device has finished: behind some streams, or
//! behind everything (an order point).

use super::device::{Device, undo};
use super::stream::Stream;
use crate::error::{DriverCode, Error, Result, Status};
use crate::sys::cuda::Handle;
use std::ffi::c_uint;
use std::sync::Arc;

const DISABLE_TIMING: c_uint = 2;

/// An event that has been recorded.
pub struct Event {
    device: Arc<Device>,
    handle: Handle,
}

// SAFETY: an event may be queried and destroyed from any thread.
unsafe impl Send for Event {}
// SAFETY: the driver synchronises its own use of an event.
unsafe impl Sync for Event {}

impl Event {
    fn create(device: &Arc<Device>) -> Result<Event> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid out-pointer.
        device.check(unsafe { device.cuda().event_create(&mut handle, DISABLE_TIMING) })?;
        Ok(Event {
            device: device.clone(),
            handle,
        })
    }

    /// An event behind what `stream` has been given so far. Needs the device's context current.
    pub fn behind(device: &Arc<Device>, stream: Stream) -> Result<Event> {
        let event = Event::create(device)?;
        // SAFETY: the event is live; the caller vouches for the stream's handle.
        device.check(unsafe { device.cuda().event_record(event.handle, stream.raw()) })?;
        Ok(event)
    }

    /// Makes later work of `stream` wait for this event, without waiting itself.
    pub fn holds_back(&self, stream: Stream) -> Result<()> {
        let device = &self.device;
        // SAFETY: the event is live; the caller vouches for the stream's handle.
        device.check(unsafe {
            device
                .cuda()
                .stream_wait_event(stream.raw(), self.handle, 0)
        })
    }

    fn is_done(&self) -> Result<bool> {
        // SAFETY: the event is live.
        match unsafe { self.device.cuda().event_query(self.handle) } {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.code == Some(DriverCode::NOT_READY) => Ok(false),
            Err(refusal) => Err(self.device.cuda().error(refusal)),
        }
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the event is live.
        self.device
            .check(unsafe { self.device.cuda().event_synchronize(self.handle) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is live and this is its only owner.
        undo(|| unsafe { self.device.cuda().event_destroy(self.handle) });
    }
}

/// A set of events, done when all of them are.
#[derive(Clone)]
pub struct Fence(Vec<Arc<Event>>);

impl Fence {
    /// Behind nothing: already done.
    pub const DONE: Fence = Fence(Vec::new());

    /// Behind what the streams have been given so far. Never waits.
    pub fn behind_streams(device: &Arc<Device>, streams: &[Stream]) -> Result<Fence> {
        if streams.is_empty() {
            return Ok(Fence::DONE);
        }
        let _guard = device.enter()?;
        let events: Result<Vec<_>> = streams
            .iter()
            .map(|stream| Event::behind(device, *stream).map(Arc::new))
            .collect();
        events.map(Fence)
    }

    /// An order point: behind all work of the device's context. Refused while a capture is open on
    /// the device, which the driver would break. Waits only where the driver has no event for it
    /// (before 12.5).
    pub fn order_point(device: &Arc<Device>) -> Result<Fence> {
        if device.capture_open() {
            return Err(
                Error::new(Status::Capturing, "order point").advice("End the stream capture first")
            );
        }
        let _guard = device.enter()?;
        let event = Event::create(device)?;
        // SAFETY: the context is retained and the event live.
        match unsafe {
            device
                .cuda()
                .context_record_event(device.context(), event.handle)
        } {
            Ok(()) => Ok(Fence(vec![Arc::new(event)])),
            Err(refusal) if refusal.code.is_none() => {
                // SAFETY: takes no pointers.
                device.check(unsafe { device.cuda().context_synchronize() })?;
                Ok(Fence::DONE)
            }
            Err(refusal) => Err(device.cuda().error(refusal)),
        }
    }

    /// The events of the fence.
    pub fn events(&self) -> &[Arc<Event>] {
        &self.0
    }

    /// Whether all of it has happened. Needs the device's context current and no capture open.
    pub fn is_done(&self) -> Result<bool> {
        for event in &self.0 {
            if !event.is_done()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until all of it has happened.
    pub fn wait(&self) -> Result<()> {
        self.0.iter().try_for_each(|event| event.wait())
    }
}
