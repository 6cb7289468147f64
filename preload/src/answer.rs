//! What the runtime's functions answer, and that programs find it in `cudaGetLastError` too.

use crate::runtime::runtime;
use hbmalloc::error::{Error, Status, last};
use hbmalloc::gpu::driver::Driver;
use hbmalloc::observe;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `cudaSuccess`.
pub const SUCCESS: c_int = 0;
/// `cudaErrorInvalidValue`.
pub const INVALID: c_int = 1;
/// `cudaErrorMemoryAllocation`.
pub const OUT_OF_MEMORY: c_int = 2;
/// `cudaErrorInitializationError`: no runtime is there to ask.
pub const NO_RUNTIME: c_int = 3;

/// The runtime's code for a failure, whose text `hbm_last_error` has.
pub fn code(error: Error) -> c_int {
    let code = code_of(&error);
    last::remember(error);
    remembered(code)
}

/// `code` for a failure that the runtime has a number of its own for, which `cudaGetLastError` then does not give.
pub fn told_as(code: c_int, error: Error) -> c_int {
    last::remember(error);
    code
}

/// The answer to arguments that cannot be.
pub fn refused() -> c_int {
    remembered(INVALID)
}

/// A code that `cudaGetLastError` gives too. The runtime alone sets that, so it is asked for what it cannot do either:
/// of other codes there is no request that certainly ends in them.
fn remembered(code: c_int) -> c_int {
    let mut none: *mut c_void = std::ptr::null_mut();
    let (out, bytes): (*mut *mut c_void, usize) = match code {
        OUT_OF_MEMORY => (&mut none, usize::MAX / 2),
        INVALID => (std::ptr::null_mut(), 1),
        _ => return code,
    };
    let process = observe::process();
    let driver = process.driver_touched().then(|| process.driver().ok());
    let _relaxed = driver.flatten().map(Driver::relaxed_capture);
    let _ = runtime!(cudaMalloc(out: *mut *mut c_void, bytes: usize));
    code
}

fn code_of(error: &Error) -> c_int {
    match (error.status(), error.code()) {
        (Status::OutOfMemory, _) => OUT_OF_MEMORY,
        (Status::InvalidArgument | Status::NotOwned, _) => INVALID,
        (Status::NoDriver, _) => 35,
        (Status::Forked, _) => NO_RUNTIME,
        (Status::Shutdown, _) => 4,
        (Status::Capturing, _) => 900,
        (Status::Unsupported, _) => 801,
        // The runtime has the driver's numbers since 10.1.
        (Status::Driver, Some(code)) => code.0,
        _ => 999,
    }
}

/// Runs the body of an export.
pub fn answer(body: impl FnOnce() -> Result<(), Error>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(error)) => code(error),
        Err(_) => 999,
    }
}
