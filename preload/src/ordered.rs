//! Memory in a stream's order.

use crate::answer::{SUCCESS, answer, refused};
use crate::memory::{allocate, free, is_ours};
use crate::pools::{has_other, is_usual};
use crate::runtime::{make_ready, runtime};
use crate::streams::{device_of, own};
use hbmalloc::gpu::Stream;
use hbmalloc::source::LastUse;
use std::ffi::{c_int, c_void};

/// Whether the stream captures, so that the allocation is to be a node of its graph, which the runtime alone makes.
fn captures(stream: *mut c_void) -> bool {
    let mut status: c_int = 0;
    let out: *mut c_int = &mut status;
    runtime!(cudaStreamIsCapturing(stream: *mut c_void, out: *mut c_int)) != SUCCESS || status != 0
}

/// The device that memory for a stream is to be had on, from the library.
fn served_on(stream: *mut c_void, is_right: impl Fn(c_int) -> bool) -> Option<c_int> {
    if captures(stream) || make_ready() != SUCCESS {
        return None;
    }
    device_of(stream).ok().filter(|device| is_right(*device))
}

fn allocate_ordered(
    out: *mut *mut c_void,
    bytes: usize,
    stream: *mut c_void,
    is_right: impl Fn(c_int) -> bool,
) -> Option<c_int> {
    if out.is_null() {
        return None;
    }
    let device = served_on(stream, is_right)?;
    let mut address = std::ptr::null_mut();
    let answered = answer(|| {
        if bytes > 0 {
            address = allocate(
                None,
                device,
                bytes,
                Stream::from_raw(stream),
                LastUse::Streams,
            )?;
        }
        Ok(())
    });
    if answered == SUCCESS {
        // SAFETY: checked for null; the rest is the caller's promise.
        unsafe { out.write(address) };
    }
    Some(answered)
}

fn of_usual_pool(device: c_int) -> bool {
    !has_other(device)
}

fn free_ordered(address: *mut c_void, stream: *mut c_void) -> c_int {
    free(address, Some(Stream::from_raw(stream)))
}

/// As the runtime's; a stream that captures is left to it.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMallocAsync(
    out: *mut *mut c_void,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    allocate_ordered(out, bytes, stream, of_usual_pool).unwrap_or_else(
        || runtime!(cudaMallocAsync(out: *mut *mut c_void, bytes: usize, stream: *mut c_void)),
    )
}

/// As cudaMallocAsync, where NULL is the thread's own stream.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMallocAsync_ptsz(
    out: *mut *mut c_void,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    allocate_ordered(out, bytes, own(stream), of_usual_pool).unwrap_or_else(
        || runtime!(cudaMallocAsync_ptsz(out: *mut *mut c_void, bytes: usize, stream: *mut c_void)),
    )
}

/// As the runtime's, of whatever memory; of the library's it waits for nothing.
#[unsafe(no_mangle)]
pub extern "C" fn cudaFreeAsync(address: *mut c_void, stream: *mut c_void) -> c_int {
    if address.is_null() || !is_ours(address) {
        return runtime!(cudaFreeAsync(address: *mut c_void, stream: *mut c_void));
    }
    free_ordered(address, stream)
}

/// As cudaFreeAsync, where NULL is the thread's own stream.
#[unsafe(no_mangle)]
pub extern "C" fn cudaFreeAsync_ptsz(address: *mut c_void, stream: *mut c_void) -> c_int {
    if address.is_null() || !is_ours(address) {
        return runtime!(cudaFreeAsync_ptsz(address: *mut c_void, stream: *mut c_void));
    }
    free_ordered(address, own(stream))
}

fn allocate_from(
    out: *mut *mut c_void,
    bytes: usize,
    pool: *mut c_void,
    stream: *mut c_void,
) -> Option<c_int> {
    if pool.is_null() {
        return Some(refused());
    }
    allocate_ordered(out, bytes, stream, |device| is_usual(pool, device))
}

/// As the runtime's: from the device's default pool as cudaMallocAsync, from others by the runtime.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMallocFromPoolAsync(
    out: *mut *mut c_void,
    bytes: usize,
    pool: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    allocate_from(out, bytes, pool, stream).unwrap_or_else(|| {
        runtime!(cudaMallocFromPoolAsync(
            out: *mut *mut c_void, bytes: usize, pool: *mut c_void, stream: *mut c_void
        ))
    })
}

/// As cudaMallocFromPoolAsync, where NULL is the thread's own stream.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMallocFromPoolAsync_ptsz(
    out: *mut *mut c_void,
    bytes: usize,
    pool: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    allocate_from(out, bytes, pool, own(stream)).unwrap_or_else(|| {
        runtime!(cudaMallocFromPoolAsync_ptsz(
            out: *mut *mut c_void, bytes: usize, pool: *mut c_void, stream: *mut c_void
        ))
    })
}
