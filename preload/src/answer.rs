//! What the runtime's functions answer.

use hbmalloc::error::{Error, Status, last};
use std::ffi::c_int;
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
    let code = match (error.status(), error.code()) {
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
    };
    last::remember(error);
    code
}

/// Runs the body of an export.
pub fn answer(body: impl FnOnce() -> Result<(), Error>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(error)) => code(error),
        Err(_) => 999,
    }
}
