//! Pinned memory of the host.

use crate::answer::{SUCCESS, answer, refused};
use crate::memory::process;
use crate::runtime::{current_device, make_ready, runtime};
use hbmalloc::observe;
use hbmalloc::process::host::HostKind;
use hbmalloc::process::host_making::HostPlan;
use std::ffi::{c_int, c_uint, c_void};

/// Below that the runtime's own is as fast, and shares pages between blocks.
const LEAST: usize = 2 << 20;

/// `cudaHostAllocMapped`, which all pinned memory is where host and device have one address space: cudaHostGetFlags
/// answers so whatever was asked for.
const MAPPED: c_uint = 2;

fn allocate(out: *mut *mut c_void, bytes: usize, flags: c_uint) -> Option<c_int> {
    if bytes < LEAST || flags & !7 != 0 {
        return None;
    }
    if out.is_null() {
        return Some(refused());
    }
    let ready = make_ready();
    if ready != SUCCESS {
        return Some(ready);
    }
    let plan = HostPlan {
        is_pinned: true,
        flags: flags | MAPPED,
        ..HostPlan::default()
    };
    let device = match current_device() {
        Ok(device) => device,
        Err(code) => return Some(code),
    };
    Some(answer(|| {
        // Where none is in use yet, pinning would bring the first one of the machine into use.
        process().device(device)?;
        let address = observe::process().allocate_host(HostKind::Runtime, bytes as u64, &plan)?;
        // SAFETY: checked for null; the rest is the caller's promise.
        unsafe { out.write(address as *mut c_void) };
        Ok(())
    }))
}

/// As the runtime's; from 2 MiB on the library's memory, populated by several threads, zeros, and portable.
#[unsafe(no_mangle)]
pub extern "C" fn cudaHostAlloc(out: *mut *mut c_void, bytes: usize, flags: c_uint) -> c_int {
    allocate(out, bytes, flags).unwrap_or_else(
        || runtime!(cudaHostAlloc(out: *mut *mut c_void, bytes: usize, flags: c_uint)),
    )
}

/// As cudaHostAlloc without flags.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMallocHost(out: *mut *mut c_void, bytes: usize) -> c_int {
    allocate(out, bytes, 0)
        .unwrap_or_else(|| runtime!(cudaMallocHost(out: *mut *mut c_void, bytes: usize)))
}

/// As the runtime's; of the library's memory it waits for the devices' work.
#[unsafe(no_mangle)]
pub extern "C" fn cudaFreeHost(address: *mut c_void) -> c_int {
    let process = observe::process();
    if process
        .check_host_block(HostKind::Runtime, address as u64)
        .is_err()
    {
        return runtime!(cudaFreeHost(address: *mut c_void));
    }
    answer(|| (process.free_host(HostKind::Runtime, address as u64, None, None)).map(|_| ()))
}

/// As the runtime's. It would answer that memory of the library's was registered, and for all contexts.
#[unsafe(no_mangle)]
pub extern "C" fn cudaHostGetFlags(out: *mut c_uint, address: *mut c_void) -> c_int {
    match observe::process().host_flags(HostKind::Runtime, address as u64) {
        Some(flags) if !out.is_null() => {
            // SAFETY: checked for null; the rest is the caller's promise.
            unsafe { out.write(flags) };
            SUCCESS
        }
        _ => runtime!(cudaHostGetFlags(out: *mut c_uint, address: *mut c_void)),
    }
}
