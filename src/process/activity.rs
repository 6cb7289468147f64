//! What was done to have memory at hand: by the pool of a device, and by the driver for the process.

use super::{Process, lifetime};
use crate::config::table::Opt;
use crate::error::Result;
use crate::gpu::driver::Timing;
use crate::pool::counters::Counters;
use crate::source::Kind;
use std::sync::atomic::Ordering::Relaxed;

/// What the pool of a device did. Counts since the start; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Requests served out of what the thread kept or what was free for the stream, by no driver call.
    pub hits: u64,
    /// Requests served out of what other streams or threads were seen to be done with, at its address.
    pub collected: u64,
    /// Requests for which memory was moved or made.
    pub misses: u64,
    /// Times that memory freed in the order of one stream was seen done with and became everybody's.
    pub owner_changes: u64,
    /// Chunks mapped at another address, ...
    pub stitches: u64,
    /// ... and their bytes.
    pub stitched_bytes: u64,
    /// Chunks made, or blocks of the source under the pool.
    pub creates: u64,
    /// Chunks given back.
    pub releases: u64,
    /// Chunks held.
    pub chunks: u64,
    /// The most there were.
    pub peak_chunks: u64,
    /// Requests tried again after cached memory had been given back.
    pub retries: u64,
    /// Times that all work of the device was waited for.
    pub waits: u64,
    /// Bytes held and in no block.
    pub cached: u64,
    /// The part of them that threads keep for requests of the same size, or that waits for work to
    /// end; a trim collects it.
    pub kept: u64,
    /// The part of the rest in chunks of which nothing is in use, which could go back to the device.
    pub releasable: u64,
    /// The largest free piece of the rest.
    pub largest_free: u64,
    /// How many free pieces lie beside blocks in the same chunk.
    pub stuck_pieces: u64,
}

/// Calls of the driver by this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// Calls, without the questions that cost the driver next to nothing.
    pub calls: u64,
    /// Calls made while they were timed.
    pub timed_calls: u64,
    /// What those took their callers, over all threads.
    pub nanoseconds: u64,
}

impl Process {
    /// What the pool of a device did; nothing where it is not in use. Looks through the free memory
    /// of the pool, so keep it out of inner loops.
    pub fn pool_stats(&self, ordinal: i32) -> Result<PoolStats> {
        lifetime::check_not_forked()?;
        let mut stats = PoolStats::default();
        let device = self.device_in_use(ordinal)?;
        let Some((device, pool)) = device.and_then(|device| Some((device, device.pool_in_use()?)))
        else {
            return Ok(stats);
        };
        stats.add(&pool.counters);
        let (sums, pieces) = (pool.total(), device.pieces(Kind::Pool));
        stats.hits = sums.taken.saturating_sub(stats.collected + stats.misses);
        stats.creates = pieces.added;
        stats.releases = pieces.added.saturating_sub(pieces.now);
        stats.chunks = pieces.now;
        stats.peak_chunks = pieces.peak;
        stats.cached = (device.held(Kind::Pool).now).saturating_sub(sums.allocated);
        stats.kept = pool.in_use().saturating_sub(sums.allocated);
        stats.releasable = pool.releasable();
        stats.largest_free = pool.largest_free();
        stats.stuck_pieces = pool.stuck_pieces();
        Ok(stats)
    }

    /// Calls of the driver so far; none while it was not opened. Time is counted while the option
    /// `driver_timing` is `on`.
    pub fn driver_stats(&self) -> Result<DriverStats> {
        lifetime::check_not_forked()?;
        let Some(opened) = self.opened.get() else {
            return Ok(DriverStats::default());
        };
        let (timed_calls, time) = opened.driver.driver_time();
        Ok(DriverStats {
            calls: opened.driver.calls(),
            timed_calls,
            nanoseconds: time.as_nanos() as u64,
        })
    }

    /// Acts on the option `driver_timing`.
    pub fn apply_driver_timing(&self) {
        if let Some(opened) = self.opened.get() {
            opened.driver.time_calls(self.driver_timing());
        }
    }

    pub(super) fn driver_timing(&self) -> Timing {
        match self.settings.text(Opt::DriverTiming).as_str() {
            "on" => Timing::Counted,
            _ => Timing::Off,
        }
    }
}

impl PoolStats {
    fn add(&mut self, counters: &Counters) {
        let searches = counters.searches.load(Relaxed);
        let (growths, failures) = (&counters.growths, &counters.failures);
        self.misses = (growths.load(Relaxed)).saturating_sub(failures.load(Relaxed));
        self.collected = searches.saturating_sub(self.misses);
        self.owner_changes = counters.owner_changes.load(Relaxed);
        self.stitches = counters.stitches.load(Relaxed);
        self.stitched_bytes = counters.stitched_bytes.load(Relaxed);
        self.retries = counters.retries.load(Relaxed);
        self.waits = counters.waits.load(Relaxed);
    }
}
