//! Memory that the caller takes away and brings back by himself, at addresses that stay.

use super::{export, write_list, write_out, write_struct};
use crate::error::{Error, Result};
use crate::extent::cell::Behind;
use crate::gpu::Stream;
use crate::observe;
use crate::process::{CellInfo, CellStats, tags};
use libc::ssize_t;
use std::ffi::{c_ulonglong, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

/// A cell: an address that stays, with one piece of the device's memory behind it or none. Fill in
/// `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_cell_t {
    /// sizeof(hbm_cell_t) as the program was compiled.
    pub struct_size: usize,
    /// Its number: no other cell of the process has had it, though addresses come again.
    pub serial: u64,
    /// Its first address.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// The address of 8 bytes that hold the driver's handle of its memory, 0 while it has none; with
    /// HIP as many times 8 bytes as it has chunks. They are readable until hbm_cell_free. 0 for
    /// addresses that the caller reserved.
    pub handle_address: u64,
    /// The device.
    pub device: i32,
    /// 1 while memory is mapped there and none of it sleeps, else 0.
    pub is_mapped: i32,
    /// 1 where the caller reserved the addresses, else 0.
    pub is_callers: i32,
    /// 1 while the library has taken its memory or a part of it, by sleep, and brings it back by wake; 0
    /// while it has memory, and where the caller took that by himself.
    pub is_asleep: i32,
    /// With HIP the length in bytes of the chunks behind it, of which the last may be shorter
    /// (HBMALLOC_ROCM_CHUNK_SIZE). 0 with CUDA, where it is always one chunk.
    pub chunk_bytes: u64,
}

/// What was done with cells in the process. Fill in `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_cell_stats_t {
    /// sizeof(hbm_cell_stats_t) as the program was compiled.
    pub struct_size: usize,
    /// Cells there are.
    pub cells: u64,
    /// Bytes that callers have mapped in them. hbm_stats counts these as blocks of the vmm kind.
    pub mapped: u64,
    /// The most that has been.
    pub peak_mapped: u64,
    /// Calls of hbm_cell_reserve that succeeded, since the start.
    pub reserves: u64,
    /// Calls of hbm_cell_free that succeeded.
    pub frees: u64,
    /// Times that memory was created and mapped.
    pub creates: u64,
    /// Times that memory was unmapped and released, beside by a free.
    pub unmaps: u64,
    /// Calls of any of these that failed.
    pub failures: u64,
}

impl From<CellStats> for hbm_cell_stats_t {
    fn from(stats: CellStats) -> hbm_cell_stats_t {
        hbm_cell_stats_t {
            struct_size: size_of::<hbm_cell_stats_t>(),
            cells: stats.cells,
            mapped: stats.mapped,
            peak_mapped: stats.peak_mapped,
            reserves: stats.reserves,
            frees: stats.frees,
            creates: stats.creates,
            unmaps: stats.unmaps,
            failures: stats.failures,
        }
    }
}

/// Makes the primary context of `device` current on the calling thread for good, where the thread has
/// no context; leaves it its own where it has one. The library itself needs neither.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_ensure_context(device: c_ulonglong) -> i32 {
    export(|| observe::process().ensure_context(ordinal("hbm_ensure_context", device)?))
}

/// Puts new memory behind `size` bytes of addresses at `d_mem`: those of a cell, or a part of what the
/// caller reserved himself with cuMemAddressReserve. Writes the driver's handle of it to `*handle`,
/// which stays the library's to release. The device and its active peers may read and write it.
/// `size` and `d_mem` must be multiples of the granularity, which the error names where they are not.
/// HBM_INVALID_ARGUMENT where something is mapped there already. On failure everything is as before.
/// Memory of a cell begins with no particular contents. With HIP there may be several chunks behind it;
/// `*handle` is the first one's.
///
/// # Safety
/// `handle` must be valid for a write of 8 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_create_and_map(
    device: c_ulonglong,
    size: ssize_t,
    d_mem: u64,
    handle: *mut u64,
) -> i32 {
    const OPERATION: &str = "hbm_create_and_map";
    export(|| {
        let (device, size) = (ordinal(OPERATION, device)?, bytes(OPERATION, size)?);
        check_handle(OPERATION, handle)?;
        let cell = observe::process().cell_map(device, size, d_mem, tags::current())?;
        // SAFETY: passed on to the caller.
        unsafe { show(&cell, handle, cell.handles.first()) };
        Ok(())
    })
}

/// Takes the memory from behind `d_mem` that hbm_create_and_map put there, with the same device and
/// size, waiting first for all work given to the device so far: HBM_CAPTURING while a capture is open
/// there. The addresses stay, a cell's with the library and others with the caller, and `*handle`
/// becomes 0. HBM_INVALID_ARGUMENT where nothing is mapped, HBM_NOT_OWNED where the library did not do
/// it. After another failure it can be called again.
///
/// # Safety
/// `handle` must be valid for a write of 8 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_unmap_and_release(
    device: c_ulonglong,
    size: ssize_t,
    d_mem: u64,
    handle: *mut u64,
) -> i32 {
    const OPERATION: &str = "hbm_unmap_and_release";
    export(|| {
        let (device, size) = (ordinal(OPERATION, device)?, bytes(OPERATION, size)?);
        check_handle(OPERATION, handle)?;
        if let Some(cell) = observe::process().cell_unmap(device, size, d_mem)? {
            // SAFETY: passed on to the caller.
            unsafe { show(&cell, handle, 0) };
        }
        Ok(())
    })
}

/// Reserves addresses for a cell of at least `size` bytes, rounded up to the granularity, with the
/// calling thread's tag and no memory yet: that comes by hbm_create_and_map with what is written to
/// `*cell`. `stream` is where it will be used first.
///
/// # Safety
/// `cell` must point to an hbm_cell_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_cell_reserve(
    device: i32,
    size: ssize_t,
    stream: *mut c_void,
    cell: *mut hbm_cell_t,
) -> i32 {
    const OPERATION: &str = "hbm_cell_reserve";
    export(|| {
        let size = bytes(OPERATION, size)?;
        if cell.is_null() {
            return Err(Error::invalid(OPERATION, "the out-pointer is NULL"));
        }
        let process = observe::process();
        let stream = Stream::from_raw(stream);
        let made = process.cell_reserve(device, size, stream, tags::current())?;
        // SAFETY: passed on to the caller.
        let written = unsafe { write_struct(OPERATION, cell, &described(&made, Behind::NOTHING)) };
        if written.is_err() {
            process.cell_free(made.address)?;
        }
        written
    })
}

/// Gives a cell's memory, where it has any, and its addresses back, once all work given to the device
/// so far has finished. Waits for that unless a capture is open there; then it is done later. What is
/// no cell of hbm_cell_reserve is reported and left alone.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_cell_free(address: u64) -> i32 {
    export(|| observe::process().cell_free(address))
}

/// Takes the memory from behind all of `count` cells that have any, behind one wait for the work of
/// each device; the bytes to `*released`, which may be NULL. Cells without memory, and those that sleep, are
/// passed over. A failure of one ends nothing for the others; the first is returned.
///
/// # Safety
/// `addresses` must be valid for reads of `count` numbers, `released` NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_cells_discard(
    addresses: *const u64,
    count: usize,
    released: *mut u64,
) -> i32 {
    const OPERATION: &str = "hbm_cells_discard";
    export(|| {
        // SAFETY: passed on to the caller.
        let addresses = unsafe { list(OPERATION, addresses, count)? };
        let bytes = observe::process().cells_discard(addresses)?;
        match released.is_null() {
            true => Ok(()),
            // SAFETY: passed on to the caller.
            false => unsafe { write_out(OPERATION, released, bytes) },
        }
    })
}

/// Puts new memory behind all of `count` cells that have none; the bytes to `*mapped`, which may be NULL.
/// All or nothing: on failure, as when memory has run out, every cell is as before, and it can be tried
/// again. With HIP, which may give out memory that holds what it held before, it is filled with zeros.
///
/// # Safety
/// `addresses` must be valid for reads of `count` numbers, `mapped` NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_cells_map(
    addresses: *const u64,
    count: usize,
    mapped: *mut u64,
) -> i32 {
    const OPERATION: &str = "hbm_cells_map";
    export(|| {
        // SAFETY: passed on to the caller.
        let addresses = unsafe { list(OPERATION, addresses, count)? };
        let bytes = observe::process().cells_map(addresses)?;
        match mapped.is_null() {
            true => Ok(()),
            // SAFETY: passed on to the caller.
            false => unsafe { write_out(OPERATION, mapped, bytes) },
        }
    })
}

/// Describes the cell that begins at `address`. HBM_NOT_OWNED where there is none. hbm_tag_of tells its
/// tag.
///
/// # Safety
/// `cell` must point to an hbm_cell_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_cell_describe(address: u64, cell: *mut hbm_cell_t) -> i32 {
    export(|| {
        let process = observe::process();
        let found = process.cell(address)?;
        let behind = process.behind_cell(&found)?;
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_cell_describe", cell, &described(&found, behind)) }
    })
}

/// Writes where cells begin that have memory or had it, as many as `capacity`, in the order of their
/// addresses, and to `*count` how many there are.
///
/// # Safety
/// `addresses` must be valid for a write of `capacity` numbers, `count` for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_cell_list(
    addresses: *mut u64,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    const OPERATION: &str = "hbm_cell_list";
    export(|| {
        let found = observe::process().cell_addresses()?;
        // SAFETY: passed on to the caller.
        unsafe { write_list(OPERATION, &found, addresses, capacity, count) }
    })
}

/// What was done with cells in the process. Any thread; makes no driver call.
///
/// # Safety
/// `out` must point to an hbm_cell_stats_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_cell_stats(out: *mut hbm_cell_stats_t) -> i32 {
    export(|| {
        let stats = observe::process().cell_stats()?;
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_cell_stats", out, &stats.into()) }
    })
}

/// Writes a handle where the caller wants it, beside where the library shows it by itself.
///
/// # Safety
/// `handle` must be valid for a write of 8 bytes.
unsafe fn show(cell: &CellInfo, handle: *mut u64, value: u64) {
    if handle as u64 != cell.handles.address() {
        // SAFETY: passed on to the caller.
        unsafe { AtomicU64::from_ptr(handle) }.store(value, Ordering::Release);
    }
}

/// # Safety
/// `addresses` must be NULL or valid for reads of `count` numbers that outlive the result.
unsafe fn list<'a>(
    operation: &'static str,
    addresses: *const u64,
    count: usize,
) -> Result<&'a [u64]> {
    match (addresses.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Error::invalid(operation, "the list is NULL")),
        // SAFETY: passed on to the caller.
        _ => Ok(unsafe { std::slice::from_raw_parts(addresses, count) }),
    }
}

fn described(cell: &CellInfo, behind: Behind) -> hbm_cell_t {
    hbm_cell_t {
        struct_size: size_of::<hbm_cell_t>(),
        serial: cell.serial,
        address: cell.address,
        bytes: cell.bytes,
        handle_address: match cell.is_lent {
            true => 0,
            false => cell.handles.address(),
        },
        device: cell.device,
        is_mapped: behind.is_mapped.into(),
        is_callers: cell.is_lent.into(),
        is_asleep: behind.is_asleep.into(),
        chunk_bytes: match cell.is_chunked {
            true => cell.handles.chunk_bytes(),
            false => 0,
        },
    }
}

fn ordinal(operation: &'static str, device: c_ulonglong) -> Result<i32> {
    i32::try_from(device)
        .map_err(|_| Error::invalid(operation, format!("there is no device {device}")))
}

fn bytes(operation: &'static str, size: ssize_t) -> Result<u64> {
    u64::try_from(size)
        .ok()
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| Error::invalid(operation, format!("a size of {size} bytes")))
}

fn check_handle(operation: &'static str, handle: *mut u64) -> Result<()> {
    match handle.is_null() || !handle.is_aligned() {
        true => Err(Error::invalid(
            operation,
            "the pointer to the handle is NULL or no multiple of 8",
        )),
        false => Ok(()),
    }
}
