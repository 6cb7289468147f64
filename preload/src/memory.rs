//! Memory of no stream's: a free orders against all work of the device, so blocks are reused behind order points.

use crate::answer::{SUCCESS, answer, refused};
use crate::ipc::{self, Freeing};
use crate::report;
use crate::runtime::{current_device, make_ready, runtime};
use hbmalloc::error::Result;
use hbmalloc::gpu::Stream;
use hbmalloc::observe;
use hbmalloc::process::{Demand, Process, tags};
use hbmalloc::source::{Kind, LastUse};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Once;

/// Of rows that the runtime pads: what its own functions use on all devices so far.
const PITCH: usize = 512;

/// The state of the process. Its captures are told of by the functions that begin them.
pub fn process() -> &'static Process {
    static ONCE: Once = Once::new();
    let process = observe::process();
    ONCE.call_once(|| {
        process.set_captures_told(true);
        report::begin();
    });
    process
}

pub fn allocate(
    kind: Option<Kind>,
    device: c_int,
    bytes: usize,
    stream: Stream,
    last_use: LastUse,
) -> Result<*mut c_void> {
    let process = process();
    let kind = match kind {
        Some(kind) => kind,
        None => process.default_kind()?,
    };
    let (place, order) = ((device, bytes as u64), (stream, last_use));
    let address = process.allocate(Demand::of_block(kind, place, order, tags::current()))?;
    Ok(address as *mut c_void)
}

/// Memory that no work uses any more and the thread has at hand.
fn at_hand(device: c_int, bytes: u64) -> Option<u64> {
    let process = process();
    match process.default_kind() {
        Ok(Kind::Pool) => process.reuse_everywhere(device, bytes, tags::current()),
        _ => None,
    }
}

/// Memory of the device that the thread uses.
fn allocate_here(kind: Option<Kind>, bytes: usize, out: *mut *mut c_void) -> c_int {
    if out.is_null() {
        return refused();
    }
    let device = match (make_ready(), current_device()) {
        (SUCCESS, Ok(device)) => device,
        (SUCCESS, Err(code)) | (code, _) => return code,
    };
    let mut address = std::ptr::null_mut();
    let answered = answer(|| {
        if bytes > 0 {
            let wanted = bytes as u64;
            let made = match kind {
                None => (process().allocate_in_region(device, wanted))
                    .or_else(|| at_hand(device, wanted).map(Ok)),
                Some(_) => None,
            };
            address = match made {
                Some(made) => made? as *mut c_void,
                None => allocate(kind, device, bytes, Stream::LEGACY, LastUse::Everywhere)?,
            };
        }
        Ok(())
    });
    if answered == SUCCESS {
        // SAFETY: checked for null; the rest is the caller's promise.
        unsafe { out.write(address) };
    }
    answered
}

/// Whether a block of the library's begins there.
pub fn is_ours(address: *mut c_void) -> bool {
    observe::process().has_block(address as u64)
}

/// As the runtime's: `bytes` of the device that the thread uses, aligned to 512. In a region of torch_memory_saver's,
/// memory that can be paused.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMalloc(out: *mut *mut c_void, bytes: usize) -> c_int {
    allocate_here(None, bytes, out)
}

/// As the runtime's, but that it waits for nothing: the memory is reused once all work given to its device is done.
#[unsafe(no_mangle)]
pub extern "C" fn cudaFree(address: *mut c_void) -> c_int {
    let mut is_free = false;
    if !ipc::is_in_use() {
        let _ = answer(|| {
            is_free = observe::process().free_at_once(address as u64);
            Ok(())
        });
    }
    if is_free {
        return SUCCESS;
    }
    if address.is_null() || !is_ours(address) {
        return runtime!(cudaFree(address: *mut c_void));
    }
    free(address, None)
}

/// Gives a block back, unless other processes have it open.
pub fn free(address: *mut c_void, used_on: Option<Stream>) -> c_int {
    match ipc::freeing(address as u64, used_on) {
        Freeing::Now => answer(|| observe::process().deallocate(address as u64, None, used_on)),
        Freeing::Later => SUCCESS,
        Freeing::Again => refused(),
    }
}

/// As the runtime's.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMallocManaged(out: *mut *mut c_void, bytes: usize, flags: c_uint) -> c_int {
    // Memory that is attached to streams is the runtime's.
    const GLOBAL: c_uint = 1;
    match flags {
        GLOBAL => allocate_here(Some(Kind::Managed), bytes, out),
        _ => runtime!(cudaMallocManaged(out: *mut *mut c_void, bytes: usize, flags: c_uint)),
    }
}

/// `rows` rows of `width` bytes, each beginning at a multiple of [`PITCH`]. On success `pitch` is the bytes from one to the
/// next.
fn allocate_rows(out: *mut *mut c_void, pitch: &mut usize, width: usize, rows: usize) -> c_int {
    let row = width.checked_next_multiple_of(PITCH);
    let bytes = row.and_then(|row| row.checked_mul(rows));
    let (Some(row), Some(bytes)) = (row, bytes) else {
        return refused();
    };
    *pitch = row;
    allocate_here(None, bytes, out)
}

/// As the runtime's: rows of `width` bytes, each beginning at a multiple of 512.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMallocPitch(
    out: *mut *mut c_void,
    pitch: *mut usize,
    width: usize,
    height: usize,
) -> c_int {
    if pitch.is_null() {
        return refused();
    }
    let mut row = 0;
    let answered = allocate_rows(out, &mut row, width, height);
    if answered == SUCCESS {
        // SAFETY: checked for null; the rest is the caller's promise.
        unsafe { pitch.write(row) };
    }
    answered
}

/// `cudaExtent`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Extent {
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

/// `cudaPitchedPtr`.
#[repr(C)]
#[allow(missing_docs)]
pub struct PitchedPointer {
    pub address: *mut c_void,
    pub pitch: usize,
    pub row: usize,
    pub rows: usize,
}

/// As the runtime's, with rows as of cudaMallocPitch.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMalloc3D(out: *mut PitchedPointer, extent: Extent) -> c_int {
    if out.is_null() {
        return refused();
    }
    let Some(rows) = extent.height.checked_mul(extent.depth) else {
        return refused();
    };
    let (mut address, mut pitch) = (std::ptr::null_mut(), 0);
    let answered = allocate_rows(&mut address, &mut pitch, extent.width, rows);
    if answered == SUCCESS {
        // SAFETY: checked for null; the rest is the caller's promise.
        unsafe {
            out.write(PitchedPointer {
                address,
                pitch,
                row: extent.width,
                rows: extent.height,
            });
        }
    }
    answered
}

/// As the runtime's, under the device's limit if it has one: what others and the pool's cache leave of that.
#[unsafe(no_mangle)]
pub extern "C" fn cudaMemGetInfo(free: *mut usize, total: *mut usize) -> c_int {
    let answered = runtime!(cudaMemGetInfo(free: *mut usize, total: *mut usize));
    let (SUCCESS, Ok(device)) = (answered, current_device()) else {
        return answered;
    };
    if free.is_null() || total.is_null() {
        return answered;
    }
    answer(|| {
        let process = observe::process();
        let room = process.room(device)?;
        let limit = process.limit(device)?.unwrap_or(u64::MAX);
        // SAFETY: checked for null, and just written by the runtime.
        unsafe {
            total.write((*total).min(limit as usize));
            free.write((*total).min(room as usize));
        }
        Ok(())
    })
}
