//! What concerns a device as a whole: its cached memory, its streams.

use super::{export, write_out};
use crate::error::Result;
use crate::gpu::Stream;
use crate::observe;
use std::ffi::c_void;

/// Gives cached memory of a device back, as hbm_allocator_trim.
///
/// # Safety
/// `released` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_trim(device: i32, keep: u64, released: *mut u64) -> i32 {
    // SAFETY: passed on to the caller.
    export(|| unsafe { trim("hbm_trim", device, keep, released) })
}

pub(super) unsafe fn trim(
    operation: &'static str,
    device: i32,
    keep: u64,
    released: *mut u64,
) -> Result<()> {
    let given_back = observe::process().trim(device, keep)?;
    // SAFETY: passed on to the caller.
    unsafe { write_released(operation, released, given_back) }
}

pub(super) unsafe fn write_released(
    operation: &'static str,
    released: *mut u64,
    bytes: u64,
) -> Result<()> {
    if released.is_null() {
        return Ok(());
    }
    // SAFETY: passed on to the caller.
    unsafe { write_out(operation, released, bytes) }
}

/// Call this before destroying a stream that was named to the library, so that the library never
/// names it to the driver again (the driver crashes on the handle of a destroyed stream). Blocks of
/// any device that used the stream stay valid; their memory is later given back behind all work of the
/// stream's device. `device` is the stream's. Waits for frees on other threads that are about to name
/// the stream, and for the stream itself only where it is of a context that the program made.
/// What the pool has for the stream serves the next one, so a program may make, forget and destroy any
/// number of streams.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_stream_forget(device: i32, stream: *mut c_void) -> i32 {
    export(|| observe::process().forget_stream(device, Stream::from_raw(stream)))
}
