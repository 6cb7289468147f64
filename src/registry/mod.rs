//! Which block lives at an address, and everything its free must know. What this record says is
//! trusted over what a caller of free passes: released versions of torch passed stale sizes and
//! streams.

use crate::core::ownership::Ownership;
use crate::core::tags::TagId;
use crate::gpu::{Device, Stream, Uses};
use crate::source::{Block, LastUse, Source};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A graph's private pool, as torch numbers it, on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphPool {
    /// The device's ordinal.
    pub device: i32,
    /// The two halves of torch's pool id.
    pub id: (u64, u64),
}

/// A graph pool from its first capture to its last release. What is left of it then has nothing to do
/// with later captures that the same id is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation {
    /// The pool.
    pub pool: GraphPool,
    /// Counted over all pools of the process.
    pub number: u64,
}

/// How a block is tied to graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraphUse {
    /// It is not.
    None,
    /// A replay of this pool's graphs may write to it until the pool is released.
    Pool(Generation),
    /// Allocated during a capture nobody will tell us the end of.
    Unknown,
}

/// An allocator object; blocks of one cannot be taken back through another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllocatorId(u64);

impl AllocatorId {
    /// An id that no allocator of the process has had.
    #[allow(clippy::new_without_default)]
    pub fn new() -> AllocatorId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        AllocatorId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The id as a number above 0.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// What is known of a block given out.
pub struct Record {
    /// The block.
    pub block: Block,
    /// Who gave it.
    pub source: Arc<dyn Source>,
    /// The device's ordinal.
    pub device: i32,
    /// Which allocator object gave it out, where one did.
    pub allocator: Option<AllocatorId>,
    /// The work of its own device that may use it.
    pub last_use: LastUse,
    /// What was named besides.
    pub others: Uses,
    /// Whether a graph may use it.
    pub graph: GraphUse,
    /// Its tag.
    pub tag: TagId,
    /// The stream it was allocated on, which statistics know even once that is gone.
    pub counted_for: Stream,
}

impl Record {
    /// Whether `stream` is the block's own, which is another one on each thread where it is the
    /// per-thread one.
    pub fn is_own_stream(&self, stream: Stream) -> bool {
        stream == self.block.stream && !stream.is_per_thread() && self.last_use.is_by_stream()
    }

    /// Notes that work uses the block, which is of `device`.
    pub fn note_uses(&mut self, mut uses: Uses, device: &Device) {
        match self.last_use.is_by_stream() {
            true => uses.leave_out(self.block.stream, device),
            // All work of the device does already.
            false => uses.leave_out_device(device),
        }
        self.others.join(uses);
    }

    /// Forgets the handle of a stream: whatever it did is then covered by waiting for everything.
    pub fn forget_use(&mut self, stream: Stream) {
        if self.block.stream == stream {
            self.last_use = LastUse::Anywhere;
            self.block.stream = Stream::LEGACY;
        }
        self.others.forget(stream);
    }

    /// Whether its own stream alone used it, as far as we were told.
    pub fn is_single_stream(&self) -> bool {
        self.last_use.is_by_stream() && self.others.is_empty()
    }
}

/// Every block given out, by address.
pub type Registry = Ownership<Record>;
