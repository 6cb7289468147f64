//! The memory functions of the CUDA runtime over hbmalloc's pools, for LD_PRELOAD under unmodified programs. What the
//! library does not serve goes to the program's own runtime, whatever version that is; nothing here links to one.
//!
//! The C interface is exported too, so that all of the process finds one state.

mod answer;
mod contexts;
mod host;
mod ipc;
mod memory;
mod ordered;
mod pools;
mod report;
mod runtime;
mod streams;

use std::ffi::{CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::sync::LazyLock;

/// Before a program has threads the system registers it for barriers on them at once; among many threads it takes 10 ms, of
/// the first cudaMalloc.
#[used]
#[unsafe(link_section = ".init_array")]
static REGISTER_FOR_BARRIERS: extern "C" fn() = {
    extern "C" fn register() {
        hbmalloc::sys::linux::has_barrier_on_all_threads();
    }
    register
};

/// The file of this library, for who looks for the one that serves the process. Not in the header: nobody links to it.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_preload_path() -> *const c_char {
    static PATH: LazyLock<CString> = LazyLock::new(|| {
        let own = hbm_preload_path as *const () as usize;
        let path = hbmalloc::sys::library::file_of(own).unwrap_or_default();
        CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
    });
    PATH.as_ptr()
}

// Names without a prefix would take the place of functions that other libraries of a program call the same. The most
// hidden of all mentions of a symbol is what a linker goes by.
macro_rules! hide {
    ($($name:literal)*) => { $( std::arch::global_asm!(concat!(".hidden ", $name)); )* };
}
hide! {
    "async_malloc" "async_free" "async_segment_malloc" "async_segment_free"
    "device_malloc" "device_free" "device_segment_malloc" "device_segment_free"
    "managed_malloc" "managed_free" "managed_segment_malloc" "managed_segment_free"
    "pinned_malloc" "pinned_free" "pinned_segment_malloc" "pinned_segment_free"
    "pool_malloc" "pool_free" "pool_segment_malloc" "pool_segment_free"
    "vmm_malloc" "vmm_free" "vmm_segment_malloc" "vmm_segment_free"
}
