//! What the pool did besides handing out and taking back.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start, of one device. None is written where memory is at hand.
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
    /// Requests served after a look at what other streams or threads are done with.
    pub searches: AtomicU64,
    /// Requests that needed more than free memory, ...
    pub growths: AtomicU64,
    /// ... and those that failed.
    pub failures: AtomicU64,
    /// Requests that were tried again after cached memory had been given back.
    pub retries: AtomicU64,
    /// Times that all work of the device was waited for.
    pub waits: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
