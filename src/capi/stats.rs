//! Statistics of a device: bytes and counts of one kind of source, or of all.

use super::{export, write_struct};
use crate::error::Error;
use crate::observe;
use crate::process::Stats;
use crate::source::Kind;

/// Statistics. Fill in `struct_size` before the call. Sizes in bytes; peaks are since the start or the
/// last `hbm_stats_reset_peaks`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_stats_t {
    /// sizeof(hbm_stats_t) as the program was compiled.
    pub struct_size: usize,
    /// Bytes asked for by blocks now given out.
    pub requested: u64,
    /// Bytes of blocks now given out.
    pub allocated: u64,
    /// Bytes held from the device, and from the host for what is placed there: not those of memory that sleeps.
    pub reserved: u64,
    /// The most `requested` has been; over all kinds, the sum of their peaks.
    pub peak_requested: u64,
    /// The most `allocated` has been; over all kinds, the sum of their peaks.
    pub peak_allocated: u64,
    /// The most `reserved` has been; over all kinds, the sum of their peaks.
    pub peak_reserved: u64,
    /// Blocks given out since the start.
    pub allocations: u64,
    /// Blocks taken back since the start.
    pub deallocations: u64,
    /// Requests that failed since the start.
    pub failed_allocations: u64,
    /// Frees of addresses that were no block, in the whole process.
    pub rejected_frees: u64,
    /// Freed blocks of the device that wait for work to end.
    pub pending_frees: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// Warnings of every kind, in the whole process.
    pub warnings: u64,
    /// Bytes asked for by all blocks ever given out.
    pub total_requested: u64,
    /// Bytes of all blocks ever given out.
    pub total_allocated: u64,
    /// Bytes ever taken from the device; of the stream-ordered pool, as far as it was seen to grow.
    pub total_reserved: u64,
    /// The most blocks given out at a time; over all kinds, the sum of their peaks.
    pub peak_blocks: u64,
    /// Requests that failed for want of memory.
    pub out_of_memory: u64,
    /// The most bytes that may be held of the device; UINT64_MAX where there is no limit.
    pub limit: u64,
    /// Pieces of memory held from the driver: chunks, or whole blocks. None of the stream-ordered
    /// kind, whose driver does not tell.
    pub segments: u64,
    /// The most there were at a time; over all kinds, the sum of their peaks.
    pub peak_segments: u64,
    /// All that were ever had from the driver; those given back are `total_segments - segments`.
    pub total_segments: u64,
    /// Requests that were tried again after cached memory had been given back.
    pub retries: u64,
    /// The part of what all kinds hold of the device that counts to `limit`: memory of the host does
    /// not. Of the stream-ordered pool, what it was last seen to hold; statistics of all kinds look.
    pub limit_used: u64,
}

impl From<Stats> for hbm_stats_t {
    fn from(stats: Stats) -> hbm_stats_t {
        hbm_stats_t {
            struct_size: size_of::<hbm_stats_t>(),
            requested: stats.requested,
            allocated: stats.allocated,
            reserved: stats.reserved,
            peak_requested: stats.peak_requested,
            peak_allocated: stats.peak_allocated,
            peak_reserved: stats.peak_reserved,
            allocations: stats.allocations,
            deallocations: stats.deallocations,
            failed_allocations: stats.failed_allocations,
            rejected_frees: stats.rejected_frees,
            pending_frees: stats.pending_frees,
            pending_bytes: stats.pending_bytes,
            warnings: stats.warnings,
            total_requested: stats.total_requested,
            total_allocated: stats.total_allocated,
            total_reserved: stats.total_reserved,
            peak_blocks: stats.peak_blocks,
            out_of_memory: stats.out_of_memory,
            limit: stats.limit,
            segments: stats.segments,
            peak_segments: stats.peak_segments,
            total_segments: stats.total_segments,
            retries: stats.retries,
            limit_used: stats.limit_used,
        }
    }
}

/// Statistics of one kind (an hbm_kind) on a device, or of all kinds (-1). Any thread; makes no driver
/// call but to ask the stream-ordered pool for its size. Counts are read one after the other beside
/// running threads: each is true, their sum at one moment only while those rest.
///
/// # Safety
/// `out` must point to an hbm_stats_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_stats(device: i32, kind: i32, out: *mut hbm_stats_t) -> i32 {
    export(|| {
        let kind = match kind {
            -1 => None,
            number => Some(
                Kind::from_number(number)
                    .ok_or_else(|| Error::invalid("hbm_stats", format!("kind {number} is none")))?,
            ),
        };
        let stats = observe::process().stats(device, kind)?;
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_stats", out, &hbm_stats_t::from(stats)) }
    })
}

/// Starts every peak of a device's statistics, those by tag and by stream among them, again from what
/// there is now. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_stats_reset_peaks(device: i32) -> i32 {
    export(|| observe::process().reset_peaks(device))
}
