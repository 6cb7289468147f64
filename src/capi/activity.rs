//! What the pool and the driver did.

use super::{export, write_struct};
use crate::observe;
use crate::process::{DriverStats, PoolStats};

/// What the caching pool of a device did. Fill in `struct_size` before the call. Counts since the
/// start; `hits + collected + misses` is the pool's `allocations`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_pool_stats_t {
    /// sizeof(hbm_pool_stats_t) as the program was compiled.
    pub struct_size: usize,
    /// Requests served out of what the thread kept or what was free for the stream. They make no driver
    /// call, but to ask whether the stream captures: see hbm_captures_told.
    pub hits: u64,
    /// Requests served out of what other streams or threads were seen to be done with, where it lay.
    pub collected: u64,
    /// Requests for which memory was moved or made.
    pub misses: u64,
    /// Times that memory freed in the order of one stream was seen done with and became everybody's.
    pub owner_changes: u64,
    /// Chunks mapped at another address, so that a block's addresses are whole.
    pub stitches: u64,
    /// Their bytes.
    pub stitched_bytes: u64,
    /// Chunks made; over other sources than vmm, blocks of the source.
    pub creates: u64,
    /// Chunks given back to the driver.
    pub releases: u64,
    /// Chunks held.
    pub chunks: u64,
    /// The most there were, since the start or the last `hbm_stats_reset_peaks`.
    pub peak_chunks: u64,
    /// Requests tried again after cached memory had been given back.
    pub retries: u64,
    /// Times that all work of the device was waited for: by hbm_trim, and where memory was short.
    pub waits: u64,
    /// Bytes held and in no block.
    pub cached: u64,
    /// The part of `cached` that threads keep for requests of the same size, or that waits for work to
    /// end; hbm_trim collects it.
    pub kept: u64,
    /// The part of the rest in chunks of which nothing is in use, which can go back to the device once
    /// their work is done. `cached - kept - releasable` lies beside blocks in the same chunk, or belongs to graphs.
    pub releasable: u64,
    /// The largest free piece of what is not kept, whichever stream may have it.
    pub largest_free: u64,
    /// How many free pieces lie beside blocks in the same chunk.
    pub stuck_pieces: u64,
}

impl From<PoolStats> for hbm_pool_stats_t {
    fn from(stats: PoolStats) -> hbm_pool_stats_t {
        hbm_pool_stats_t {
            struct_size: size_of::<hbm_pool_stats_t>(),
            hits: stats.hits,
            collected: stats.collected,
            misses: stats.misses,
            owner_changes: stats.owner_changes,
            stitches: stats.stitches,
            stitched_bytes: stats.stitched_bytes,
            creates: stats.creates,
            releases: stats.releases,
            chunks: stats.chunks,
            peak_chunks: stats.peak_chunks,
            retries: stats.retries,
            waits: stats.waits,
            cached: stats.cached,
            kept: stats.kept,
            releasable: stats.releasable,
            largest_free: stats.largest_free,
            stuck_pieces: stats.stuck_pieces,
        }
    }
}

/// What the caching pool of a device did. Any thread; makes no driver call, but looks through the
/// pool's free memory, for which its threads may have to wait some microseconds: not for inner loops.
///
/// # Safety
/// `out` must point to an hbm_pool_stats_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_pool_stats(device: i32, out: *mut hbm_pool_stats_t) -> i32 {
    export(|| {
        let stats = observe::process().pool_stats(device)?;
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_pool_stats", out, &hbm_pool_stats_t::from(stats)) }
    })
}

/// Calls of the driver by the library, on all devices. Fill in `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_driver_stats_t {
    /// sizeof(hbm_driver_stats_t) as the program was compiled.
    pub struct_size: usize,
    /// Calls, without the questions that cost the driver next to nothing, such as which context is
    /// current.
    pub calls: u64,
    /// Those of them that were made while the option `driver_timing` was `on`.
    pub timed_calls: u64,
    /// The nanoseconds that these took their callers, over all threads.
    pub nanoseconds: u64,
}

impl From<DriverStats> for hbm_driver_stats_t {
    fn from(stats: DriverStats) -> hbm_driver_stats_t {
        hbm_driver_stats_t {
            struct_size: size_of::<hbm_driver_stats_t>(),
            calls: stats.calls,
            timed_calls: stats.timed_calls,
            nanoseconds: stats.nanoseconds,
        }
    }
}

/// Calls of the driver so far, and while the option `driver_timing` is `on` (hbm_option_set, at any
/// time), how long they took. Counting one costs a few nanoseconds, timing one two looks at the clock
/// more. Any thread; makes no driver call.
///
/// # Safety
/// `out` must point to an hbm_driver_stats_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_driver_stats(out: *mut hbm_driver_stats_t) -> i32 {
    export(|| {
        let stats = observe::process().driver_stats()?;
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_driver_stats", out, &hbm_driver_stats_t::from(stats)) }
    })
}
