//! Devices as a program sees them: which reach each other's memory, and that one begins anew.

use crate::answer::{SUCCESS, code};
use crate::ipc;
use crate::memory::process;
use crate::pools::look_again;
use crate::runtime::{current_device, forget_ready, runtime};
use std::ffi::{c_int, c_uint};

/// As the runtime's; the library's memory is reached by all devices in use that can, so both are from here on.
#[unsafe(no_mangle)]
pub extern "C" fn cudaDeviceEnablePeerAccess(peer: c_int, flags: c_uint) -> c_int {
    let answered = runtime!(cudaDeviceEnablePeerAccess(peer: c_int, flags: c_uint));
    if let (SUCCESS, Ok(device)) = (answered, current_device()) {
        for ordinal in [device, peer] {
            if let Err(error) = process().device(ordinal) {
                return code(error);
            }
        }
    }
    answered
}

/// As the runtime's, of the library's memory too: what of it was on the device is given back, unless a stream captures.
#[unsafe(no_mangle)]
pub extern "C" fn cudaDeviceReset() -> c_int {
    let device = match current_device() {
        Ok(device) => device,
        Err(code) => return code,
    };
    let mut answered = SUCCESS;
    let outcome = process().reset_device(
        device,
        || ipc::forget_device(device),
        || answered = runtime!(cudaDeviceReset()),
    );
    forget_ready();
    look_again();
    match outcome {
        Ok(()) => answered,
        Err(error) => code(error),
    }
}
