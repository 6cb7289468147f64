//! The memory functions of the CUDA runtime over hbmalloc's pools, for LD_PRELOAD under unmodified programs. What the
//! library does not serve goes to the program's own runtime, whatever version that is; nothing here links to one.
//!
//! The C interface is exported too, so that all of the process finds one state.

mod answer;
mod host;
mod memory;
mod ordered;
mod runtime;
mod streams;

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
