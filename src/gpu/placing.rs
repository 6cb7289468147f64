//! On which device a stream is. Callers pass a handle and no device, and streams of every device may
//! use any memory.

use super::device::Device;
use super::driver::Driver;
use super::stream::Stream;
use super::uses::{Context, PlacedStream, Uses};
use crate::error::{Error, Result, Status, Warning};
use crate::sys::cuda::{Cuda, Handle, Refusal};
use std::ffi::{c_int, c_uint};
use std::sync::Arc;

/// The device that a live context is on, by the driver's number.
fn device_of(cuda: &Cuda, context: Handle) -> std::result::Result<c_int, Refusal> {
    let (mut device, mut popped): (c_int, Handle) = (0, std::ptr::null_mut());
    // SAFETY: a live context, and valid out-pointers; what is popped was pushed here.
    unsafe {
        cuda.context_push(context)?;
        let asked = cuda.context_device(&mut device);
        cuda.context_pop(&mut popped)?;
        asked?;
    }
    Ok(device)
}

impl Device {
    /// An error where `stream`, which must be live and not capture, is another device's: memory that is
    /// used in its order would be given on by events of this one. What cannot be told is let pass.
    pub fn check_stream(&self, stream: Stream) -> Result<()> {
        if stream.is_implicit() {
            return Ok(());
        }
        let (cuda, mut context): (_, Handle) = (self.cuda(), std::ptr::null_mut());
        // SAFETY: `context` is a valid out-pointer; the caller vouches for the stream's handle.
        let asked = unsafe { cuda.stream_context(stream.raw(), &mut context) };
        let found = asked.and_then(|()| match context == self.context() {
            true => Ok(self.handle()),
            false => device_of(cuda, context),
        });
        match found {
            Err(refusal) if refusal.code.is_some() => {
                let error = cuda.error(refusal);
                self.warnings().warn(Warning::GiveBack, || {
                    format!("on which device a stream is could not be told: {error}")
                });
                Ok(())
            }
            Ok(device) if device != self.handle() => {
                let why = format!("the stream is not of device {}", self.ordinal());
                Err(Error::invalid("allocate", why).advice(
                    "Allocate on a stream of the memory's device and record the other one for the block",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// From this version on the driver may be asked for the context of a stream that captures.
const ANSWERS_IN_CAPTURE: i32 = 12050;

impl Driver {
    /// The context that a live stream was made in. `stream` is not one that every context has.
    pub fn context_of(&self, stream: Stream) -> Result<Context> {
        let check = |outcome: std::result::Result<(), Refusal>| {
            outcome.map_err(|refusal| self.cuda().error(refusal))
        };
        if self.version() < ANSWERS_IN_CAPTURE {
            let mut status: c_int = 0;
            // SAFETY: `status` is a valid out-pointer; the caller vouches for the handle.
            check(unsafe { self.cuda().stream_is_capturing(stream.raw(), &mut status) })?;
            if status != 0 {
                return Err(Error::new(Status::Capturing, "cuStreamGetCtx")
                    .advice("End the stream capture first"));
            }
        }
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid out-pointer; the caller vouches for the stream's.
        check(unsafe { self.cuda().stream_context(stream.raw(), &mut handle) })?;
        self.context(handle)
    }

    /// The context that is current on the calling thread, if there is one.
    pub fn current_context(&self) -> Result<Option<Context>> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid out-pointer.
        unsafe { self.cuda().context_current(&mut handle) }
            .map_err(|refusal| self.cuda().error(refusal))?;
        match handle.is_null() {
            true => Ok(None),
            false => self.context(handle).map(Some),
        }
    }

    /// What may stand for the work of a live stream whose device is not known: all work of the devices
    /// that are in use, by whomever. No order point is taken there while the stream captures.
    pub fn uses_of_any(&self, stream: Stream) -> Uses {
        let mut uses = Uses::default();
        for device in self.active_devices() {
            if let Ok(_guard) = device.enter() {
                // Asking shows the device that it does.
                let _ = device.is_capturing(stream);
            }
            uses.add_device(&device);
        }
        uses
    }

    /// All work of the devices that are in use, by whomever.
    pub fn uses_of_all(&self) -> Uses {
        let mut uses = Uses::default();
        self.active_devices()
            .iter()
            .for_each(|device| uses.add_device(device));
        uses
    }

    /// All work of the devices that are in use here, and of the one whose context is current.
    pub fn uses_around(&self) -> Uses {
        let mut uses = Uses::default();
        self.open_devices()
            .for_each(|device| uses.add_device(device));
        match self.current_context() {
            Ok(Some(context)) => uses.add_device(context.device()),
            Ok(None) => {}
            Err(error) => self.warnings.warn(Warning::Probe, || {
                format!("work of the device in use is not waited for, if it is another than memory was allocated on: {error}")
            }),
        }
        uses
    }

    /// An error while a stream of one of the devices that are in use, by whomever, captures.
    pub fn none_captures(&self) -> Result<()> {
        self.active_devices()
            .iter()
            .try_for_each(|device| device.outside_captures(|| Ok(())))
    }

    /// What the streams of this handle were given on the devices that are in use, by whomever.
    pub fn uses_of_every(&self, stream: Stream) -> Uses {
        let mut uses = Uses::default();
        for device in self.active_devices() {
            uses.add(PlacedStream::on(&device, stream));
        }
        uses
    }

    /// The devices with an active primary context.
    fn active_devices(&self) -> Vec<Arc<Device>> {
        (0..self.device_count() as i32)
            .filter(|ordinal| self.is_open(*ordinal) || self.is_active(*ordinal))
            .filter_map(|ordinal| self.device(ordinal).ok().cloned())
            .collect()
    }

    fn is_active(&self, ordinal: i32) -> bool {
        let (mut device, mut active): (c_int, c_int) = (0, 0);
        let mut flags: c_uint = 0;
        // SAFETY: every pointer is a valid out-pointer.
        let asked = unsafe {
            self.cuda().device_get(&mut device, ordinal).and_then(|()| {
                self.cuda()
                    .primary_context_state(device, &mut flags, &mut active)
            })
        };
        // What cannot be told may be.
        asked.is_err() || active != 0
    }

    fn context(&self, handle: Handle) -> Result<Context> {
        let known = self
            .open_devices()
            .find(|device| device.context() == handle);
        if let Some(device) = known {
            return Ok(Context::primary(device));
        }
        let device = self.device(self.ordinal_of(handle)?)?;
        Ok(Context::of(device, handle))
    }

    /// The ordinal of the device that a live context is on.
    fn ordinal_of(&self, context: Handle) -> Result<i32> {
        let cuda = self.cuda();
        let device = device_of(cuda, context).map_err(|refusal| cuda.error(refusal))?;
        let is_it = |ordinal: &i32| {
            let mut handle: c_int = 0;
            // SAFETY: `handle` is a valid out-pointer.
            unsafe { cuda.device_get(&mut handle, *ordinal) }.is_ok() && handle == device
        };
        let mut all = 0..self.device_count() as i32;
        all.find(is_it).ok_or_else(|| {
            Error::new(Status::Internal, "cuCtxGetDevice").detail(format!(
                "device handle {device} is none that the driver shows"
            ))
        })
    }
}
