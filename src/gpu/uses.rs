//! Which work uses memory, on whatever devices it was given to. An event can only be recorded on a
//! stream of its own context, so a stream is known together with the context it was made in.

use super::device::{Device, undo};
use super::fence::Fence;
use super::stream::Stream;
use crate::error::Result;
use crate::sys::cuda::Handle;
use std::fmt;
use std::sync::Arc;

/// A context: a device's primary one, or one that the program made there.
#[derive(Clone)]
pub struct Context {
    device: Arc<Device>,
    made: Option<Made>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Made(Handle);

// SAFETY: a context handle may be used from any thread.
unsafe impl Send for Made {}
// SAFETY: the driver synchronises its own use of a context.
unsafe impl Sync for Made {}

impl Context {
    /// The primary context of `device`.
    pub fn primary(device: &Arc<Device>) -> Context {
        Context {
            device: device.clone(),
            made: None,
        }
    }

    /// The context of a handle, which is on `device` and live.
    pub(super) fn of(device: &Arc<Device>, handle: Handle) -> Context {
        let made = (handle != device.context()).then_some(Made(handle));
        Context {
            device: device.clone(),
            made,
        }
    }

    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Whether it is the device's primary one.
    pub fn is_primary(&self) -> bool {
        self.made.is_none()
    }

    /// Does something with it current.
    fn within<R>(&self, act: impl FnOnce() -> Result<R>) -> Result<R> {
        let _guard = self.device.enter()?;
        let Some(Made(handle)) = self.made else {
            return act();
        };
        let cuda = self.device.cuda();
        // SAFETY: the program keeps its context while it names streams of it.
        self.device.check(unsafe { cuda.context_push(handle) })?;
        let outcome = act();
        undo(|| {
            let mut popped: Handle = std::ptr::null_mut();
            // SAFETY: `popped` is a valid out-pointer, and what is popped was pushed above.
            unsafe { cuda.context_pop(&mut popped) }
        });
        outcome
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Context) -> bool {
        (self.device.ordinal(), self.made) == (other.device.ordinal(), other.made)
    }
}

/// A stream and the context it was made in.
#[derive(Clone, PartialEq)]
pub struct PlacedStream {
    /// Its handle.
    pub stream: Stream,
    /// Where its work runs.
    pub context: Context,
}

impl PlacedStream {
    /// A stream of the primary context of `device`.
    pub fn on(device: &Arc<Device>, stream: Stream) -> PlacedStream {
        PlacedStream {
            stream,
            context: Context::primary(device),
        }
    }

    /// A fence behind what it has been given so far. It must be live and not capture.
    fn fence(&self) -> Result<Fence> {
        let device = &self.context.device;
        self.context.within(|| {
            device.none_captures(&[self.stream])?;
            match self.context.is_primary() {
                true => Fence::behind_streams(device, &[self.stream]),
                false => Fence::behind_foreign(device, self.stream),
            }
        })
    }

    /// Waits for what it has been given so far. It must be live and not capture.
    pub fn synchronize(&self) -> Result<()> {
        self.context
            .within(|| self.stream.synchronize(&self.context.device))
    }
}

/// Which work uses memory: what some streams have been given, and all that some devices have.
#[derive(Clone, Default)]
pub struct Uses {
    /// Of none of the devices below, where they are of a primary context.
    streams: Vec<PlacedStream>,
    devices: Vec<Arc<Device>>,
}

impl fmt::Debug for Uses {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stream = |placed: &PlacedStream| (placed.context.device.ordinal(), placed.stream);
        let device = |device: &Arc<Device>| device.ordinal();
        out.debug_struct("Uses")
            .field("streams", &Vec::from_iter(self.streams.iter().map(stream)))
            .field("devices", &Vec::from_iter(self.devices.iter().map(device)))
            .finish()
    }
}

impl Uses {
    /// All work of `device`.
    pub fn everything(device: &Arc<Device>) -> Uses {
        Uses {
            streams: Vec::new(),
            devices: vec![device.clone()],
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.devices.is_empty()
    }

    /// Whether it is known by streams alone.
    pub fn is_by_stream(&self) -> bool {
        self.devices.is_empty()
    }

    /// Whether all work of a device is among it.
    pub fn is_everything_of(&self, device: &Device) -> bool {
        self.devices
            .iter()
            .any(|known| known.ordinal() == device.ordinal())
    }

    /// The devices whose work it is.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        let mut all = self.devices.clone();
        for PlacedStream { context, .. } in &self.streams {
            if !all
                .iter()
                .any(|known| known.ordinal() == context.device.ordinal())
            {
                all.push(context.device.clone());
            }
        }
        all
    }

    /// The devices all of whose work it is.
    pub fn whole_devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// What a stream has been given uses the memory too.
    pub fn add(&mut self, placed: PlacedStream) {
        let device = &placed.context.device;
        if placed.stream.is_per_thread() {
            self.add_device(device);
        } else if !self.covers(&placed) && !self.streams.contains(&placed) {
            self.streams.push(placed);
        }
    }

    /// All that a device has been given uses the memory.
    pub fn add_device(&mut self, device: &Arc<Device>) {
        if !self.is_everything_of(device) {
            self.devices.push(device.clone());
        }
        let streams = std::mem::take(&mut self.streams);
        self.streams = streams
            .into_iter()
            .filter(|placed| !self.covers(placed))
            .collect();
    }

    fn covers(&self, placed: &PlacedStream) -> bool {
        placed.context.is_primary() && self.is_everything_of(&placed.context.device)
    }

    /// All of both.
    pub fn join(&mut self, other: Uses) {
        other
            .devices
            .iter()
            .for_each(|device| self.add_device(device));
        other
            .streams
            .into_iter()
            .for_each(|stream| self.add(stream));
    }

    /// Leaves out what comes before the end of the memory by itself: a stream's own work.
    pub fn leave_out(&mut self, stream: Stream, device: &Device) {
        self.streams.retain(|placed| {
            placed.stream != stream || placed.context.device.ordinal() != device.ordinal()
        });
    }

    /// Leaves out what a device was given.
    pub fn leave_out_device(&mut self, device: &Device) {
        let ordinal = device.ordinal();
        self.devices.retain(|known| known.ordinal() != ordinal);
        self.streams.retain(|placed| {
            !placed.context.is_primary() || placed.context.device.ordinal() != ordinal
        });
    }

    /// `stream` is about to be destroyed and must not be named any more: all work of its device is
    /// meant from here on. What a stream of another context than the primary one was given must be
    /// done.
    pub fn forget(&mut self, stream: Stream) {
        let is_it = |placed: &PlacedStream| placed.stream == stream;
        let gone: Vec<PlacedStream> = self
            .streams
            .iter()
            .filter(|one| is_it(one))
            .cloned()
            .collect();
        self.streams.retain(|placed| !is_it(placed));
        for placed in gone.iter().filter(|placed| placed.context.is_primary()) {
            self.add_device(&placed.context.device);
        }
    }

    /// Whether one of the streams, which must be live, captures.
    pub fn is_captured(&self) -> Result<bool> {
        for PlacedStream { stream, context } in &self.streams {
            if context.within(|| context.device.is_capturing(*stream))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All work of the devices, so that no stream need be named that may be gone by then.
    pub fn widen(&mut self) {
        for device in self.devices() {
            self.add_device(&device);
        }
    }

    /// A fence behind all of it. Refused while a capture is open on one of the devices. Never waits,
    /// but where the driver has no event for a whole device (before 12.5).
    pub fn fence(&self) -> Result<Fence> {
        let mut fence = Fence::DONE;
        for device in self.devices() {
            fence.join(device.outside_captures(|| self.fence_on(&device))?);
        }
        Ok(fence)
    }

    /// The part of [`Uses::fence`] that is behind streams, not whole devices.
    pub fn fence_by_stream(&self) -> Result<Fence> {
        let streams = Uses {
            streams: self.streams.clone(),
            devices: Vec::new(),
        };
        streams.fence()
    }

    fn fence_on(&self, device: &Arc<Device>) -> Result<Fence> {
        let mut fence = match self.is_everything_of(device) {
            true => Fence::order_point(device)?,
            false => Fence::DONE,
        };
        let is_there = |placed: &&PlacedStream| placed.context.device.ordinal() == device.ordinal();
        for placed in self.streams.iter().filter(is_there) {
            fence.join(placed.fence()?);
        }
        Ok(fence)
    }
}
