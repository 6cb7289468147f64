//! Streams of contexts that the program made beside the devices' primary ones.

use super::across::{SPEC, Scene};
use crate::gpu::Stream;
use crate::selftest::check::ensure_eq;
use crate::selftest::machine::Machine;
use crate::selftest::{Outcome, Stop};
use crate::sys::cuda::Handle;

/// A stream of a context that the program made by itself: no event of a primary context can be recorded
/// there, and no order point of one covers it.
pub fn contexts_of_the_program() -> Outcome {
    let scene = Scene::open(SPEC)?;
    let (process, machine) = (&scene.house.process, &scene.house.machine);
    for device in [0, 1] {
        let context = Made::new(machine, device)?;
        for kind in scene.house.kinds()? {
            let stream = context.stream()?;
            let block = scene.block(kind)?;
            scene.hold(stream);
            process.record_stream(block, stream)?;
            let release = || scene.sim.spin_stop(stream);
            scene.free(kind, || scene.house.free(block), release)?;
            scene.waits(kind, block, release)?;
            let block = scene.block(kind)?;
            process.record_stream(block, stream)?;
            process.forget_stream(device, stream)?;
            context.destroy(stream)?;
            scene.house.free(block)?;
        }
        process.trim(0, 0)?;
    }
    ensure_eq!(process.warnings().total(), 0, "warnings");
    scene.finish()
}

/// A context beside the primary one.
struct Made<'a> {
    machine: &'a Machine,
    handle: Handle,
}

impl<'a> Made<'a> {
    fn new(machine: &'a Machine, device: i32) -> Result<Made<'a>, Stop> {
        type Create = unsafe extern "C" fn(*mut Handle, u32, i32) -> i32;
        let symbol = machine.driver.symbol(c"cuCtxCreate_v2");
        let symbol = symbol.ok_or_else(|| Stop::skip("no cuCtxCreate_v2"))?;
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: the symbol has this signature, and `handle` is a valid out-pointer.
        let answer = unsafe {
            std::mem::transmute::<*mut std::ffi::c_void, Create>(symbol)(&mut handle, 0, device)
        };
        ensure_eq!(answer, 0, "cuCtxCreate");
        let mut popped: Handle = std::ptr::null_mut();
        // SAFETY: creating it pushed it.
        machine.check(unsafe { machine.cuda.context_pop(&mut popped) })?;
        Ok(Made { machine, handle })
    }

    fn within(&self, act: impl FnOnce() -> Outcome) -> Outcome {
        let mut popped: Handle = std::ptr::null_mut();
        // SAFETY: the context is live.
        self.machine
            .check(unsafe { self.machine.cuda.context_push(self.handle) })?;
        let outcome = act();
        // SAFETY: it was pushed above.
        self.machine
            .check(unsafe { self.machine.cuda.context_pop(&mut popped) })?;
        outcome
    }

    fn stream(&self) -> Result<Stream, Stop> {
        let mut handle: Handle = std::ptr::null_mut();
        self.within(|| {
            // SAFETY: `handle` is a valid out-pointer.
            let made = unsafe { self.machine.cuda.stream_create(&mut handle, 1) };
            self.machine.check(made)
        })?;
        Ok(Stream::from_raw(handle))
    }

    fn destroy(&self, stream: Stream) -> Outcome {
        // SAFETY: the stream is live.
        self.machine
            .check(unsafe { self.machine.cuda.stream_destroy(stream.raw()) })
    }
}
