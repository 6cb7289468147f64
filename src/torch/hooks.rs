//! The hooks of torch's pluggable allocator. `hbmalloc.torch` sets all of them and then calls
//! `hbm_torch_set_hooked`.

use super::{guarded, hook, raise};
use crate::config::value::Size;
use crate::error::Error;
use crate::gpu::Stream;
use crate::observe;
use crate::process::Whose;
use crate::registry::GraphPool;
use std::ffi::{c_int, c_void};

/// Says that every hook is set (1), or that none is (0): then a freed block waits behind all work
/// of the device.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_torch_set_hooked(hooked: c_int) {
    // So that forked children know.
    raise::is_torch_here();
    observe::process().set_hooked(hooked != 0);
}

/// torch's init hook: called with the number of devices. Nothing to do: devices come into use with
/// their first allocation.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_torch_init(device_count: c_int) {
    let _ = device_count;
}

/// torch's reset hook, from `torch.cuda.empty_cache()`: gives back what is cached, on every device
/// in use.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_torch_reset() {
    hook(|| observe::process().trim_all().map(|_| ()));
}

/// torch's memory fraction hook: limits what is held of `device`'s memory to a share of it, as
/// hbm_set_limit_fraction does; 0 lets nothing more be had.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_torch_memory_fraction(fraction: f64, device: c_int) {
    hook(|| {
        let process = observe::process();
        process.device(device)?;
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::invalid(
                "memory fraction",
                format!("{fraction} is not between 0 and 1"),
            ));
        }
        process.set_limit(device, Size::Percent(fraction * 100.0))
    });
}

/// torch's base allocation hook: the beginning of the block that `address` lies in, its size to
/// `*size`; `address` itself where it lies in none.
///
/// # Safety
/// `size` must be NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_torch_base_alloc(
    address: *mut c_void,
    size: *mut usize,
) -> *mut c_void {
    let found = guarded(|| Ok(observe::process().block_of(address as u64)));
    let Ok(Some((begin, bytes))) = found else {
        return address;
    };
    if !size.is_null() {
        // SAFETY: passed on to the caller.
        unsafe { size.write(bytes as usize) };
    }
    begin as *mut c_void
}

/// torch's record_stream hook: work already given to `stream` of any device uses the block at
/// `address`. torch names the default stream of every device by the same handle, with the block's
/// device current: unless the block was allocated on one, those of all devices in use are meant.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_torch_record_stream(address: *mut c_void, stream: *mut c_void) {
    if !address.is_null() {
        hook(|| {
            let stream = Stream::from_raw(stream);
            observe::process().record_stream_of(address as u64, stream, Whose::Any)
        });
    }
}

/// torch's begin_allocate_to_pool hook: a capture into a graph pool is about to begin. torch's
/// filter of streams is not needed: the driver says which streams capture.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_torch_begin_allocate_to_pool(
    device: c_int,
    id_high: u64,
    id_low: u64,
    filter: *mut c_void,
) {
    let _ = filter;
    let id = (id_high, id_low);
    hook(|| observe::process().graph_begin(GraphPool { device, id }));
}

/// torch's end_allocate_to_pool hook: the capture is over.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_torch_end_allocate_to_pool(device: c_int, id_high: u64, id_low: u64) {
    let id = (id_high, id_low);
    hook(|| observe::process().graph_end(GraphPool { device, id }));
}

/// torch's release_pool hook: one graph of the pool is gone.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_torch_release_pool(device: c_int, id_high: u64, id_low: u64) {
    let id = (id_high, id_low);
    hook(|| observe::process().graph_release(GraphPool { device, id }));
}
