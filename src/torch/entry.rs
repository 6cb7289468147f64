//! The entry points, with torch's signatures. `X_malloc` and `X_free` serve
//! `torch.cuda.memory.CUDAPluggableAllocator`; the segment forms serve `torch.cuda.MemPool`, vLLM
//! and CuPy, whose own retry needs a NULL.

use super::{allocate_block, allocate_segment, deallocate, guarded, raise};
use crate::core::tags::TagId;
use crate::error::last;
use crate::source::Kind;
use std::ffi::{c_int, c_void};

pub(super) fn segment_or_null(outcome: crate::error::Result<*mut c_void>) -> *mut c_void {
    outcome.unwrap_or_else(|error| {
        last::remember(error);
        std::ptr::null_mut()
    })
}

/// An entry point that allocates: size in bytes, device, stream.
pub type Malloc = extern "C-unwind" fn(usize, c_int, *mut c_void) -> *mut c_void;

/// An entry point that frees: address, and what its allocation was given.
pub type Free = extern "C" fn(*mut c_void, usize, c_int, *mut c_void);

macro_rules! entry_points {
    ($($source:literal, $kind:expr, $malloc:ident, $free:ident, $segment_malloc:ident, $segment_free:ident;)*) => { $(
        #[doc = concat!("Allocates `size` bytes for a tensor from ", $source, ", first used on `stream` of `device`.")]
        /// NULL for size 0. On failure, where torch is in the process, raises
        /// `torch.OutOfMemoryError` or `RuntimeError`; elsewhere returns NULL and sets the
        /// thread's last error. Any thread.
        #[unsafe(no_mangle)]
        pub extern "C-unwind" fn $malloc(size: usize, device: c_int, stream: *mut c_void) -> *mut c_void {
            match guarded(|| allocate_block($kind, size, device, stream)) {
                Ok(address) => address,
                Err(error) => raise::raise_or_null(error),
            }
        }

        #[doc = concat!("Takes back what `", stringify!($malloc), "` gave. The other arguments are not trusted.")]
        /// A double or foreign free is reported and ignored. Any thread.
        #[unsafe(no_mangle)]
        pub extern "C" fn $free(address: *mut c_void, _size: usize, _device: c_int, _stream: *mut c_void) {
            deallocate(address);
        }

        #[doc = concat!("Allocates a segment of `size` bytes from ", $source, " that the caller divides up.")]
        /// NULL on failure, with the thread's last error set; never raises. Any thread.
        #[unsafe(no_mangle)]
        pub extern "C" fn $segment_malloc(size: usize, device: c_int, stream: *mut c_void) -> *mut c_void {
            segment_or_null(guarded(|| allocate_segment($kind, size, device, stream, TagId::NONE)))
        }

        #[doc = concat!("Takes back what `", stringify!($segment_malloc), "` gave, once all work given to the device is done.")]
        #[unsafe(no_mangle)]
        pub extern "C" fn $segment_free(address: *mut c_void, _size: usize, _device: c_int, _stream: *mut c_void) {
            deallocate(address);
        }
    )*

        /// The entry points for tensors of a kind of source, or of the one that the option `backend`
        /// names, for measuring what torch would call.
        pub fn entry_points_of(kind: Option<Kind>) -> Option<(Malloc, Free)> {
            $( if kind == $kind {
                return Some(($malloc, $free));
            } )*
            None
        }
    };
}

entry_points! {
    "what the option `backend` names (segments, where that is the pool, from what it is over)", None, hbm_malloc, hbm_free, hbm_segment_malloc, hbm_segment_free;
    "synchronous device memory", Some(Kind::Device), device_malloc, device_free, device_segment_malloc, device_segment_free;
    "managed memory", Some(Kind::Managed), managed_malloc, managed_free, managed_segment_malloc, managed_segment_free;
    "the stream-ordered pool", Some(Kind::Async), async_malloc, async_free, async_segment_malloc, async_segment_free;
    "the caching pool", Some(Kind::Pool), pool_malloc, pool_free, pool_segment_malloc, pool_segment_free;
    "virtual memory", Some(Kind::Vmm), vmm_malloc, vmm_free, vmm_segment_malloc, vmm_segment_free;
    "pinned memory of the host", Some(Kind::Pinned), pinned_malloc, pinned_free, pinned_segment_malloc, pinned_segment_free;
}
