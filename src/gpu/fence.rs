//! The moment after which work already given to the device has finished: behind some streams, or
//! behind everything (an order point).

use super::device::{Device, undo};
use super::stream::Stream;
use crate::error::{DriverCode, Result};
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
    fn behind(device: &Arc<Device>, stream: Stream) -> Result<Event> {
        let event = Event::create(device)?;
        // SAFETY: the event is live; the caller vouches for the stream's handle.
        device.check(unsafe { device.cuda().event_record(event.handle, stream.raw()) })?;
        Ok(event)
    }

    fn holds_back(&self, stream: Stream) -> Result<()> {
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
pub struct Fence(Vec<(Reach, Arc<Event>)>);

/// Whose work an event stands behind. Of two events with one reach, the earlier is done first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// One stream's.
    Stream(Stream),
    /// That of all streams of the context.
    Everything,
}

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
            .map(|stream| {
                let event = Event::behind(device, *stream)?;
                Ok((Reach::Stream(*stream), Arc::new(event)))
            })
            .collect();
        events.map(Fence)
    }

    /// An order point: behind all work of the device's context, of destroyed streams too. Refused
    /// while a capture is known to be open on the device; one that is not known breaks. Waits only
    /// where the driver has no event for it (before 12.5).
    pub fn order_point(device: &Arc<Device>) -> Result<Fence> {
        device.outside_captures(|| {
            let _guard = device.enter()?;
            let event = Event::create(device)?;
            // SAFETY: the context is retained and the event live.
            match unsafe {
                device
                    .cuda()
                    .context_record_event(device.context(), event.handle)
            } {
                Ok(()) => Ok(Fence(vec![(Reach::Everything, Arc::new(event))])),
                Err(refusal) if refusal.code.is_none() => {
                    device.wait_for_context()?;
                    Ok(Fence::DONE)
                }
                Err(refusal) => Err(device.cuda().error(refusal)),
            }
        })
    }

    /// Whether there is nothing to wait for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes later work of `stream` wait for all of it, without waiting itself.
    pub fn holds_back(&self, stream: Stream) -> Result<()> {
        self.0
            .iter()
            .try_for_each(|(_, event)| event.holds_back(stream))
    }

    /// Whether all of it has happened. Needs the device's context current and no capture open.
    pub fn is_done(&self) -> Result<bool> {
        self.is_done_beside(&mut Vec::new())
    }

    /// [`Fence::is_done`], asking nothing whose reach is `busy` already, and adding what is busy.
    /// For fences in the order of their making.
    pub fn is_done_beside(&self, busy: &mut Vec<Reach>) -> Result<bool> {
        for (reach, event) in &self.0 {
            if busy.contains(reach) {
                return Ok(false);
            }
            if !event.is_done()? {
                busy.push(*reach);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until all of it has happened.
    pub fn wait(&self) -> Result<()> {
        self.0.iter().try_for_each(|(_, event)| event.wait())
    }
}
