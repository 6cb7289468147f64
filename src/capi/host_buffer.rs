//! The memory of the host that sleep pins: had before, given back after.

use super::{export, write_out, write_struct};
use crate::observe;

/// What is pinned on the host for sleep, in the whole process.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_host_buffer_t {
    /// sizeof(hbm_host_buffer_t) as the program was compiled.
    pub struct_size: usize,
    /// Bytes pinned.
    pub pinned: u64,
    /// Those of them that hold something.
    pub used: u64,
}

/// Pins memory of the host until `bytes` are free for sleeps to come, which then need not do it: a first sleep
/// waits longer for pages than for copies. Brings device 0 into use where none is. HBM_OUT_OF_MEMORY, and what
/// could be had stays, where the host or the option `sleep_host_limit` has less.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_host_buffer_prepare(bytes: u64) -> i32 {
    export(|| observe::process().prepare_host(bytes))
}

/// Gives memory of the host that sleep pinned and that holds nothing back to the system, down to `keep` bytes
/// pinned; the bytes given back go to `*given_back`, which may be NULL. Unpinning waits for the devices' work.
///
/// # Safety
/// `given_back` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_host_buffer_trim(keep: u64, given_back: *mut u64) -> i32 {
    export(|| {
        let bytes = observe::process().trim_host(keep)?;
        match given_back.is_null() {
            true => Ok(()),
            // SAFETY: passed on to the caller.
            false => unsafe { write_out("hbm_host_buffer_trim", given_back, bytes) },
        }
    })
}

/// Writes what is pinned on the host for sleep.
///
/// # Safety
/// `out` must point to a struct whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_host_buffer(out: *mut hbm_host_buffer_t) -> i32 {
    export(|| {
        let used = observe::process().host_use();
        let used = hbm_host_buffer_t {
            struct_size: size_of::<hbm_host_buffer_t>(),
            pinned: used.pinned,
            used: used.used,
        };
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_host_buffer", out, &used) }
    })
}
