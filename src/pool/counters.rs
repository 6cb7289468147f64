//! What the pool did besides handing out and taking back.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start, of one device.
#[derive(Default)]
pub struct Counters {
    /// Bytes of places whose memory was moved to another address.
    pub stitched_bytes: AtomicU64,
    /// Places moved.
    pub stitches: AtomicU64,
    /// Chunks made.
    pub creates: AtomicU64,
    /// Chunks given back so that others could be made.
    pub releases: AtomicU64,
    /// Times that free memory of one stream became everybody's.
    pub owner_changes: AtomicU64,
    /// Requests that needed more than free memory.
    pub growths: AtomicU64,
    /// The peak of allocated bytes over all threads.
    pub allocated_peak: AtomicU64,
    /// The peak of live blocks over all threads.
    pub blocks_peak: AtomicU64,
    /// The peak of requested bytes over all threads.
    pub requested_peak: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
