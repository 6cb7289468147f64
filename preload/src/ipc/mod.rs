//! Memory between processes. The runtime's own way does not know memory that the library maps, so the library sends
//! descriptors of its chunks over a socket, and the 64 bytes that programs pass on say where that is.

mod exporter;
mod exports;
mod handle;
mod opener;
mod place;

pub use exports::{Freeing, freeing, is_in_use};

use crate::answer::{SUCCESS, answer, code, refused, told_as};
use crate::runtime::{current_device, make_ready, runtime};
use handle::{BYTES, Handle};
use hbmalloc::error::{Error, Status};
use hbmalloc::observe;
use hbmalloc::source::Kind;
use std::ffi::{c_int, c_uint, c_void};

/// `cudaErrorDeviceUninitialized`: what a process hears that opens its own memory.
const OWN_MEMORY: c_int = 201;
/// `cudaErrorInvalidResourceHandle`: there is no such memory any more.
const NO_SUCH_MEMORY: c_int = 400;

/// A device is about to be reset: nothing of it is exported or open any more.
pub fn forget_device(device: c_int) {
    exports::forget_device(device);
    opener::forget_device(device);
}

/// `cudaIpcMemHandle_t`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct MemHandle {
    pub reserved: [u8; BYTES],
}

/// Blocks of a pool over memory that the driver exports as a whole: its handle would be of all of it, and where in
/// that the block lies would be lost.
fn is_part(process: &hbmalloc::process::Process) -> bool {
    matches!(process.default_kind(), Ok(Kind::Pool))
}

/// As the runtime's, of whatever memory. What the library gave out stays where it is from here on; other processes of
/// the same user, under the library too, can open it.
#[unsafe(no_mangle)]
pub extern "C" fn cudaIpcGetMemHandle(out: *mut MemHandle, address: *mut c_void) -> c_int {
    if out.is_null() || address.is_null() {
        return refused();
    }
    let process = observe::process();
    let is_ours = process.block_of(address as u64).is_some();
    match exporter::export(address as u64) {
        Ok(reserved) => {
            // SAFETY: checked for null; the rest is the caller's promise.
            unsafe { out.write(MemHandle { reserved }) };
            SUCCESS
        }
        Err(error) if is_ours && (error.status() != Status::Unsupported || is_part(process)) => {
            code(error)
        }
        Err(_) => runtime!(cudaIpcGetMemHandle(out: *mut MemHandle, address: *mut c_void)),
    }
}

/// As the runtime's, of whatever handle.
#[unsafe(no_mangle)]
pub extern "C" fn cudaIpcOpenMemHandle(
    out: *mut *mut c_void,
    handle: MemHandle,
    flags: c_uint,
) -> c_int {
    /// `cudaIpcMemLazyEnablePeerAccess`; the library's memory is reached by all devices in use anyway.
    const LAZY: c_uint = 1;
    let Some(ours) = Handle::from_bytes(&handle.reserved) else {
        return runtime!(cudaIpcOpenMemHandle(out: *mut *mut c_void, handle: MemHandle, flags: c_uint));
    };
    if out.is_null() || flags & !LAZY != 0 {
        return refused();
    }
    if exporter::is_own(ours) {
        let error = Error::invalid("open memory of another process", "it is this process's own");
        return told_as(OWN_MEMORY, error.advice("Use the address that it has here"));
    }
    let device = match (make_ready(), current_device()) {
        (SUCCESS, Ok(device)) => device,
        (SUCCESS, Err(code)) | (code, _) => return code,
    };
    match opener::open(ours, device) {
        Ok(address) => {
            // SAFETY: checked for null; the rest is the caller's promise.
            unsafe { out.write(address as *mut c_void) };
            SUCCESS
        }
        Err(error) => match error.status() {
            Status::NotOwned | Status::Io => told_as(NO_SUCH_MEMORY, error),
            _ => code(error),
        },
    }
}

/// As the runtime's. Waits for the work that may use the memory.
#[unsafe(no_mangle)]
pub extern "C" fn cudaIpcCloseMemHandle(address: *mut c_void) -> c_int {
    match opener::close(address as u64) {
        Some(outcome) => answer(|| outcome),
        None => runtime!(cudaIpcCloseMemHandle(address: *mut c_void)),
    }
}
