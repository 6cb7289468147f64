//! What an allocator of the host's memory did.

use super::Stats;
use super::host::HostSize;
use crate::core::sync::lock;
use crate::error::{Result, Status};
use std::sync::Mutex;

/// The counts of one allocator.
#[derive(Default)]
pub struct HostCounts(Mutex<Stats>);

impl HostCounts {
    /// Counts what was made, or could not be.
    pub fn note_made(&self, requested: u64, made: Result<(u64, HostSize)>) -> Result<u64> {
        let mut stats = lock(&self.0);
        let (address, size) = made.inspect_err(|error| {
            stats.failed_allocations += 1;
            stats.out_of_memory += u64::from(error.status() == Status::OutOfMemory);
        })?;
        debug_assert_eq!(size.requested, requested);
        stats.allocations += 1;
        stats.segments += 1;
        stats.total_segments += 1;
        stats.requested += size.requested;
        stats.allocated += size.bytes;
        stats.reserved += size.bytes;
        stats.total_requested += size.requested;
        stats.total_allocated += size.bytes;
        stats.total_reserved += size.bytes;
        stats.peak_requested = stats.peak_requested.max(stats.requested);
        stats.peak_allocated = stats.peak_allocated.max(stats.allocated);
        stats.peak_reserved = stats.peak_reserved.max(stats.reserved);
        stats.peak_segments = stats.peak_segments.max(stats.segments);
        stats.peak_blocks = stats.peak_segments;
        Ok(address)
    }

    /// Counts what was freed.
    pub fn note_freed(&self, size: HostSize) {
        let mut stats = lock(&self.0);
        stats.deallocations += 1;
        // At exit nothing is freed, and nothing is known of it.
        stats.segments = stats.segments.saturating_sub(1);
        stats.requested = stats.requested.saturating_sub(size.requested);
        stats.allocated = stats.allocated.saturating_sub(size.bytes);
        stats.reserved = stats.reserved.saturating_sub(size.bytes);
    }

    /// The counts, with what is counted in the whole process.
    pub fn read(&self, warnings: u64) -> Stats {
        Stats {
            warnings,
            limit: u64::MAX,
            ..*lock(&self.0)
        }
    }
}
