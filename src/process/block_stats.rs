//! Counts of the blocks of one tag, and of one stream, over all kinds. The pool keeps its own; blocks
//! of the other kinds cost a driver call each, beside which a lock is nothing.

use super::stats::Counters;
use super::{DeviceEntry, Process, lifetime};
use crate::core::gauge::{Gauge, Reading};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::Result;
use crate::gpu::Stream;
use crate::pool::stats::Sums;
use crate::source::{Block, Kind};
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};

/// Statistics of the blocks of one tag or of one stream on a device. Bytes, and counts since the
/// start. Peaks are those since the start or since they were last reset, the sum of the pool's and
/// that of the other kinds together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Bytes asked for by blocks now given out.
    pub requested: u64,
    /// Bytes of blocks now given out.
    pub allocated: u64,
    /// Bytes held from the device for memory of the tag; 0 of a stream, since streams share it.
    pub reserved: u64,
    /// The most `requested` has been.
    pub peak_requested: u64,
    /// The most `allocated` has been.
    pub peak_allocated: u64,
    /// The most `reserved` has been.
    pub peak_reserved: u64,
    /// Blocks given out.
    pub allocations: u64,
    /// Blocks taken back.
    pub deallocations: u64,
    /// The most blocks given out at a time.
    pub peak_blocks: u64,
    /// Bytes asked for by all blocks ever given out.
    pub total_requested: u64,
    /// Bytes of all blocks ever given out.
    pub total_allocated: u64,
}

/// What the kinds beside the pool have given out for a tag.
#[derive(Default)]
struct OfTag {
    counters: Counters,
    /// The part of it whose memory is in no extent.
    unmapped: Gauge,
}

/// What the kinds beside the pool have given out, by tag and by stream.
#[derive(Default)]
pub(super) struct ByOwner {
    tags: Mutex<FxHashMap<TagId, Arc<OfTag>>>,
    streams: Mutex<FxHashMap<Stream, Arc<Counters>>>,
}

impl ByOwner {
    /// A block of `kind` was given out, or taken back.
    pub(super) fn count(&self, kind: Kind, tag: TagId, stream: Stream, block: &Block, gave: bool) {
        let of_tag = lock(&self.tags).entry(tag).or_default().clone();
        let of_stream = lock(&self.streams).entry(stream).or_default().clone();
        for counters in [&of_tag.counters, &of_stream] {
            match gave {
                true => counters.gave(block),
                false => counters.took(block),
            }
        }
        match (kind, gave) {
            (Kind::Vmm, _) => {}
            (_, true) => of_tag.unmapped.add(block.bytes),
            (_, false) => of_tag.unmapped.sub(block.bytes),
        }
    }

    pub(super) fn reset_peaks(&self) {
        for of_tag in lock(&self.tags).values() {
            of_tag.counters.reset_peaks();
            of_tag.unmapped.reset_peak();
        }
        for counters in lock(&self.streams).values() {
            counters.reset_peaks();
        }
    }
}

impl BlockStats {
    fn add_counters(&mut self, counters: &Counters) {
        let (requested, allocated, blocks) = counters.read();
        self.requested += requested.now.min(allocated.now);
        self.allocated += allocated.now;
        self.peak_requested += requested.peak.min(allocated.peak);
        self.peak_allocated += allocated.peak;
        self.allocations += blocks.added;
        self.deallocations += blocks.added.saturating_sub(blocks.now);
        self.peak_blocks += blocks.peak;
        self.total_requested += requested.added.min(allocated.added);
        self.total_allocated += allocated.added;
    }

    fn add_sums(&mut self, sums: &Sums) {
        self.requested += sums.requested;
        self.allocated += sums.allocated;
        self.peak_requested += sums.peak_requested;
        self.peak_allocated += sums.peak_allocated;
        self.allocations += sums.taken;
        self.deallocations += sums.given;
        self.peak_blocks += sums.peak_blocks;
        self.total_requested += sums.total_requested;
        self.total_allocated += sums.total_allocated;
    }

    fn add_held(&mut self, held: Reading) {
        self.reserved += held.now;
        self.peak_reserved += held.peak;
    }
}

impl Process {
    /// Statistics of the blocks of a tag on a device. Of a device that is not in use, and of a tag
    /// that nothing has had, there is nothing to count.
    pub fn tag_stats(&self, ordinal: i32, tag: TagId) -> Result<BlockStats> {
        lifetime::check_not_forked()?;
        let device = self.device_in_use(ordinal)?;
        Ok(device.map_or(BlockStats::default(), |device| device.tag_stats(tag)))
    }

    /// Statistics of the blocks allocated on a stream of a device: all streams that have had the
    /// handle, and those of all threads where it means another on each.
    pub fn stream_stats(&self, ordinal: i32, stream: Stream) -> Result<BlockStats> {
        lifetime::check_not_forked()?;
        let mut stats = BlockStats::default();
        let Some(device) = self.device_in_use(ordinal)? else {
            return Ok(stats);
        };
        if let Some(counters) = lock(&device.by_owner().streams).get(&stream).cloned() {
            stats.add_counters(&counters);
        }
        if let Some(pool) = device.pool_in_use() {
            stats.add_sums(&pool.of_stream(stream));
        }
        Ok(stats)
    }

    /// The streams that blocks of a device have been allocated on, in no order.
    pub fn streams(&self, ordinal: i32) -> Result<Vec<Stream>> {
        lifetime::check_not_forked()?;
        let Some(device) = self.device_in_use(ordinal)? else {
            return Ok(Vec::new());
        };
        let mut streams: Vec<Stream> = lock(&device.by_owner().streams).keys().copied().collect();
        streams.extend(device.pool_in_use().iter().flat_map(|pool| pool.streams()));
        streams.sort_unstable();
        streams.dedup();
        Ok(streams)
    }
}

impl DeviceEntry {
    fn tag_stats(&self, tag: TagId) -> BlockStats {
        let mut stats = BlockStats::default();
        stats.add_held(self.state().extents.of_tag(tag));
        if let Some(of_tag) = lock(&self.by_owner().tags).get(&tag).cloned() {
            stats.add_counters(&of_tag.counters);
            stats.add_held(of_tag.unmapped.read());
        }
        if let Some(pool) = self.pool_in_use() {
            stats.add_sums(&pool.of_tag(tag.number()));
            stats.add_held(pool.segments_of_tag(tag.number()));
        }
        // Other threads move these while they are read one by one; what is told keeps their order.
        stats.reserved = stats.reserved.max(stats.allocated);
        stats.peak_reserved = stats.peak_reserved.max(stats.peak_allocated);
        stats
    }

    /// The tags whose blocks take most, at most `count`, and how many bytes.
    pub(super) fn top_tags(&self, count: usize) -> Vec<(TagId, u64)> {
        let mut tags: Vec<TagId> = lock(&self.by_owner().tags).keys().copied().collect();
        let pool = self.pool_in_use();
        let pooled = pool.iter().flat_map(|pool| pool.tags());
        tags.extend(pooled.map(TagId::from_number));
        tags.sort_unstable();
        tags.dedup();
        let mut held: Vec<(TagId, u64)> = (tags.into_iter())
            .map(|tag| (tag, self.tag_stats(tag).allocated))
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        held.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        held.truncate(count);
        held
    }
}
