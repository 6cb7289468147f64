//! Statistics by tag and by stream.

use super::{export, text_argument, write_list, write_name, write_struct};
use crate::core::tags::TagId;
use crate::error::{Error, Result};
use crate::gpu::Stream;
use crate::observe;
use crate::process::{BlockStats, check_not_forked, tags};
use std::ffi::{c_char, c_void};

/// Statistics of the blocks of one tag or of one stream, of all kinds together. Fill in `struct_size`
/// before the call. Sizes in bytes; peaks are since the start or the last `hbm_stats_reset_peaks`: exact
/// while one thread uses them, else to within 1 MiB a thread, and over all kinds the sum of the pool's
/// and of the others'.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_block_stats_t {
    /// sizeof(hbm_block_stats_t) as the program was compiled.
    pub struct_size: usize,
    /// Bytes asked for by blocks now given out.
    pub requested: u64,
    /// Bytes of blocks now given out.
    pub allocated: u64,
    /// Bytes held from the device for memory of the tag, which shares no chunk with others; 0 of a
    /// stream, since streams share what is held. What the driver's stream-ordered pool caches, and
    /// chunks on their way back to the device, are no tag's.
    pub reserved: u64,
    /// The most `requested` has been.
    pub peak_requested: u64,
    /// The most `allocated` has been.
    pub peak_allocated: u64,
    /// The most `reserved` has been.
    pub peak_reserved: u64,
    /// Blocks given out since the start.
    pub allocations: u64,
    /// Blocks taken back since the start.
    pub deallocations: u64,
    /// The most blocks given out at a time.
    pub peak_blocks: u64,
    /// Bytes asked for by all blocks ever given out.
    pub total_requested: u64,
    /// Bytes of all blocks ever given out.
    pub total_allocated: u64,
}

impl From<BlockStats> for hbm_block_stats_t {
    fn from(stats: BlockStats) -> hbm_block_stats_t {
        hbm_block_stats_t {
            struct_size: size_of::<hbm_block_stats_t>(),
            requested: stats.requested,
            allocated: stats.allocated,
            reserved: stats.reserved,
            peak_requested: stats.peak_requested,
            peak_allocated: stats.peak_allocated,
            peak_reserved: stats.peak_reserved,
            allocations: stats.allocations,
            deallocations: stats.deallocations,
            peak_blocks: stats.peak_blocks,
            total_requested: stats.total_requested,
            total_allocated: stats.total_allocated,
        }
    }
}

/// Statistics of the blocks of a tag on a device; NULL is what has no tag. A name that nothing has had
/// has only zeros. Any thread; makes no driver call.
///
/// # Safety
/// `name` must be NULL or a C string, `out` point to an hbm_block_stats_t whose `struct_size` is
/// filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_tag_stats(
    device: i32,
    name: *const c_char,
    out: *mut hbm_block_stats_t,
) -> i32 {
    const OPERATION: &str = "hbm_tag_stats";
    export(|| {
        check_not_forked()?;
        let tag = match name.is_null() {
            true => Some(TagId::NONE),
            // SAFETY: passed on to the caller.
            false => tags::table().find(unsafe { text_argument(OPERATION, "name", name)? })?,
        };
        let stats = match tag {
            Some(tag) => observe::process().tag_stats(device, tag)?,
            None => BlockStats::default(),
        };
        // SAFETY: passed on to the caller.
        unsafe { write_struct(OPERATION, out, &hbm_block_stats_t::from(stats)) }
    })
}

/// How many names of tags there are in the process. Any thread; makes no driver call.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_tag_count() -> usize {
    match check_not_forked() {
        Ok(()) => tags::table().len(),
        Err(_) => 0,
    }
}

/// Writes the name of the tag of an index below hbm_tag_count(), in the order of their first use, to
/// `buffer`, as hbm_tag_current does. A tag keeps its index.
///
/// # Safety
/// `buffer` must be valid for a write of `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_tag_name(index: usize, buffer: *mut c_char, capacity: usize) -> i32 {
    const OPERATION: &str = "hbm_tag_name";
    export(|| {
        check_not_forked()?;
        let tag = tag_at(OPERATION, index)?;
        // SAFETY: passed on to the caller.
        unsafe { write_name(OPERATION, tag, buffer, capacity) }
    })
}

fn tag_at(operation: &'static str, index: usize) -> Result<TagId> {
    let count = tags::table().len();
    match u16::try_from(index) {
        Ok(before) if index < count => Ok(TagId::from_number(before + 1)),
        _ => Err(Error::invalid(
            operation,
            format!("there are {count} tags, none of index {index}"),
        )),
    }
}

/// Statistics of the blocks that were allocated on a stream of a device; NULL is the legacy stream.
/// They are those of the handle: of every stream that has had it, and for the stream that each thread
/// has by itself (handle 2), of all threads. The handle need not name a live stream. Any thread; makes
/// no driver call.
///
/// # Safety
/// `out` must point to an hbm_block_stats_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_stream_stats(
    device: i32,
    stream: *mut c_void,
    out: *mut hbm_block_stats_t,
) -> i32 {
    export(|| {
        let stats = observe::process().stream_stats(device, Stream::from_raw(stream))?;
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_stream_stats", out, &hbm_block_stats_t::from(stats)) }
    })
}

/// Writes the handles of the streams that blocks of a device have been allocated on to `streams`, as
/// far as `capacity` reaches, and how many there are to `*count`. Those of streams that are gone are
/// among them; beyond 4096 these are counted together under the handle -1. Any thread; makes no driver
/// call.
///
/// # Safety
/// `streams` must be valid for a write of `capacity` pointers or NULL with capacity 0, `count` for one
/// of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_stream_list(
    device: i32,
    streams: *mut *mut c_void,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    const OPERATION: &str = "hbm_stream_list";
    export(|| {
        let known = observe::process().streams(device)?;
        let handles: Vec<_> = known.iter().map(|stream| stream.raw()).collect();
        // SAFETY: passed on to the caller.
        unsafe { write_list(OPERATION, &handles, streams, capacity, count) }
    })
}
