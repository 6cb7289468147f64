//! The moment after which work already given to the device has finished: behind some streams, or
//! behind everything (an order point).

use super::device::{Device, undo};
use super::stream::Stream;
use crate::core::sync::lock;
use crate::error::{DriverCode, Result};
use crate::sys::cuda::{Handle, Refusal};
use std::ffi::c_uint;
use std::sync::{Arc, Mutex};

const DISABLE_TIMING: c_uint = 2;

/// As many events a device are kept to be recorded again.
const MOST_IDLE: usize = 256;

struct Raw(Handle);

// SAFETY: an event may be queried, recorded and destroyed from any thread.
unsafe impl Send for Raw {}

/// Events of a device that nobody waits for any more. Recording one of them again costs half of what
/// a new one does.
#[derive(Default)]
pub(super) struct IdleEvents(Mutex<Vec<Raw>>);

impl IdleEvents {
    fn take(&self) -> Option<Handle> {
        lock(&self.0).pop().map(|event| event.0)
    }

    /// Whether there was room for it.
    fn keep(&self, event: Handle) -> bool {
        let mut idle = lock(&self.0);
        let room = idle.len() < MOST_IDLE;
        if room {
            idle.push(Raw(event));
        }
        room
    }
}

impl Device {
    /// Destroys the events that are kept to be recorded again.
    pub fn drop_idle_events(&self) {
        for event in std::mem::take(&mut *lock(&self.idle_events().0)) {
            // SAFETY: the event is live, and the list was its only owner.
            undo(|| unsafe { self.cuda().event_destroy(event.0) });
        }
    }
}

impl IdleEvents {
    /// They are gone with their context.
    pub(super) fn forget(&self) {
        lock(&self.0).clear();
    }
}

/// An event that has been recorded.
pub struct Event {
    device: Arc<Device>,
    handle: Handle,
    /// Whether it may be recorded again. Not where recording it failed: it may be of a context that
    /// is gone.
    is_kept: bool,
    /// Which of the device's contexts it is of, where that is a primary one.
    context: Option<u64>,
}

// SAFETY: an event may be queried and destroyed from any thread.
unsafe impl Send for Event {}
// SAFETY: the driver synchronises its own use of an event.
unsafe impl Sync for Event {}

impl Event {
    fn create(device: &Arc<Device>) -> Result<Event> {
        let of = |handle| Event {
            device: device.clone(),
            handle,
            is_kept: true,
            context: Some(device.contexts_left()),
        };
        if let Some(idle) = device.idle_events().take() {
            return Ok(of(idle));
        }
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid out-pointer.
        device.check(unsafe { device.cuda().event_create(&mut handle, DISABLE_TIMING) })?;
        Ok(of(handle))
    }

    /// What recording it came to. Of idle events none is trusted after a failure.
    fn recorded(
        &mut self,
        outcome: std::result::Result<(), Refusal>,
    ) -> std::result::Result<(), Refusal> {
        if outcome
            .as_ref()
            .is_err_and(|refusal| refusal.code.is_some())
        {
            self.is_kept = false;
            self.device.drop_idle_events();
        }
        outcome
    }

    /// An event of the current context, which is another than the device's own.
    fn create_foreign(device: &Arc<Device>) -> Result<Event> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid out-pointer.
        device.check(unsafe { device.cuda().event_create(&mut handle, DISABLE_TIMING) })?;
        Ok(Event {
            device: device.clone(),
            handle,
            is_kept: false,
            context: None,
        })
    }

    /// Records it behind what `stream` has been given so far. Needs the stream's context current.
    fn behind(mut self, stream: Stream) -> Result<Event> {
        let device = self.device.clone();
        // SAFETY: the event is live; the caller vouches for the stream's handle.
        let outcome = unsafe { device.cuda().event_record(self.handle, stream.raw()) };
        device.check(self.recorded(outcome))?;
        Ok(self)
    }

    /// Whether it went with its context, and its handle may be another's. Its work has ended then.
    fn is_gone(&self) -> bool {
        (self.context).is_some_and(|context| context != self.device.contexts_left())
    }

    fn holds_back(&self, stream: Stream) -> Result<()> {
        let device = &self.device;
        if self.is_gone() {
            return Ok(());
        }
        // SAFETY: the event is live; the caller vouches for the stream's handle.
        device.check(unsafe {
            device
                .cuda()
                .stream_wait_event(stream.raw(), self.handle, 0)
        })
    }

    fn is_done(&self) -> Result<bool> {
        if self.is_gone() {
            return Ok(true);
        }
        // SAFETY: the event is live.
        match unsafe { self.device.cuda().event_query(self.handle) } {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.code == Some(DriverCode::NOT_READY) => Ok(false),
            Err(refusal) => Err(self.device.cuda().error(refusal)),
        }
    }

    fn wait(&self) -> Result<()> {
        if self.is_gone() {
            return Ok(());
        }
        // SAFETY: the event is live.
        self.device
            .check(unsafe { self.device.cuda().event_synchronize(self.handle) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.is_gone() {
            return;
        }
        if self.is_kept && self.device.idle_events().keep(self.handle) {
            return;
        }
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
    /// One stream's of the device of this ordinal.
    Stream(i32, Stream),
    /// That of all streams of the device's context.
    Everything(i32),
}

impl Fence {
    /// Behind nothing: already done.
    pub const DONE: Fence = Fence(Vec::new());

    /// Behind what the streams of the device's context have been given so far. Never waits.
    pub fn behind_streams(device: &Arc<Device>, streams: &[Stream]) -> Result<Fence> {
        if streams.is_empty() {
            return Ok(Fence::DONE);
        }
        let _guard = device.enter()?;
        let events: Result<Vec<_>> = streams
            .iter()
            .map(|stream| {
                let event = Event::create(device)?.behind(*stream)?;
                let reach = Reach::Stream(device.ordinal(), *stream);
                Ok((reach, Arc::new(event)))
            })
            .collect();
        events.map(Fence)
    }

    /// Behind what a stream of the current context has been given so far, which is another context of
    /// the device than its own. Never waits.
    pub(super) fn behind_foreign(device: &Arc<Device>, stream: Stream) -> Result<Fence> {
        let event = Event::create_foreign(device)?.behind(stream)?;
        let reach = Reach::Stream(device.ordinal(), stream);
        Ok(Fence(vec![(reach, Arc::new(event))]))
    }

    /// Behind what both are behind.
    pub fn join(&mut self, other: Fence) {
        self.0.extend(other.0);
    }

    /// An order point: behind all work of the device's context, of destroyed streams too. Refused
    /// while a capture is known to be open on the device; one that is not known breaks. Waits only
    /// where the driver has no event for it (before 12.5).
    pub fn order_point(device: &Arc<Device>) -> Result<Fence> {
        device.outside_captures(|| {
            let _guard = device.enter()?;
            let mut event = Event::create(device)?;
            // SAFETY: the context is retained and the event live.
            let outcome = unsafe {
                device
                    .cuda()
                    .context_record_event(device.context(), event.handle)
            };
            match event.recorded(outcome) {
                Ok(()) => {
                    let reach = Reach::Everything(device.ordinal());
                    Ok(Fence(vec![(reach, Arc::new(event))]))
                }
                Err(refusal) if refusal.code.is_none() => {
                    device.wait_for_context()?;
                    Ok(Fence::DONE)
                }
                Err(refusal) => Err(device.cuda().error(refusal)),
            }
        })
    }

    /// The device of each event.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.0.iter().map(|(_, event)| &event.device)
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
