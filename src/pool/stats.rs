//! What the pool of a device has given out and holds, summed when asked for.

use super::arena::Arena;
use super::cache::Counts;
use super::device::DevicePool;
use super::heap::Heap;
use crate::core::sync::lock;
use crate::gpu::Stream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Sums of counts. Bytes, and blocks since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Bytes asked for by live blocks.
    pub requested: u64,
    /// Bytes of live blocks.
    pub allocated: u64,
    /// Bytes asked for by all blocks ever.
    pub total_requested: u64,
    /// Bytes of all blocks ever.
    pub total_allocated: u64,
    /// Blocks given out.
    pub taken: u64,
    /// Blocks taken back.
    pub given: u64,
    /// The most bytes asked for at a time.
    pub peak_requested: u64,
    /// The most bytes allocated at a time.
    pub peak_allocated: u64,
    /// The most blocks at a time.
    pub peak_blocks: u64,
}

/// Raises a peak, where it must be raised at all: reading is cheaper than writing.
fn raise(peak: &AtomicU64, seen: u64) {
    // A sum over threads that move meanwhile can be less than nothing.
    if seen <= i64::MAX as u64 && seen > peak.load(Relaxed) {
        peak.fetch_max(seen, Relaxed);
    }
}

impl Sums {
    /// Blocks given out now.
    pub fn live(&self) -> u64 {
        self.taken.saturating_sub(self.given)
    }

    fn add(&mut self, counts: &Counts) {
        self.requested = self.requested.wrapping_add(counts.requested.load(Relaxed));
        self.allocated = self.allocated.wrapping_add(counts.allocated.load(Relaxed));
        self.total_requested += counts.total_requested.load(Relaxed);
        self.total_allocated += counts.total.load(Relaxed);
        self.taken += counts.taken.load(Relaxed);
        self.given += counts.given.load(Relaxed);
    }

    /// Threads move the counts while they are read one by one: what one has freed before another
    /// is seen to have taken must not look like less than nothing.
    fn settle(&mut self) {
        for value in [&mut self.requested, &mut self.allocated] {
            *value = (*value as i64).max(0) as u64;
        }
        self.requested = self.requested.min(self.allocated);
    }
}

impl Counts {
    fn reset_peaks(&self) {
        for (high, now) in [
            (&self.high_requested, &self.requested),
            (&self.high_allocated, &self.allocated),
        ] {
            high.store(now.load(Relaxed), Relaxed);
        }
        let blocks = self
            .taken
            .load(Relaxed)
            .wrapping_sub(self.given.load(Relaxed));
        self.high_blocks.store(blocks, Relaxed);
    }
}

impl DevicePool {
    fn sum(&self, wanted: impl Fn(&Heap) -> bool) -> Sums {
        let heaps: Vec<Arc<Heap>> = lock(&self.heaps).clone();
        let mut sums = Sums::default();
        for heap in heaps.iter().filter(|heap| wanted(heap)) {
            heap.each_count(|counts| sums.add(counts));
        }
        sums.settle();
        sums
    }

    /// Looks whether more is allocated over all threads than ever before.
    pub(super) fn look_at_peaks(&self) {
        // What one thread did alone it has counted exactly.
        if self.counts.len() <= 1 {
            return;
        }
        let (mut requested, mut allocated, mut blocks) = (0u64, 0u64, 0u64);
        for counts in self.counts.iter() {
            requested = requested.wrapping_add(counts.requested.load(Relaxed));
            allocated = allocated.wrapping_add(counts.allocated.load(Relaxed));
            blocks = blocks
                .wrapping_add(counts.taken.load(Relaxed))
                .wrapping_sub(counts.given.load(Relaxed));
        }
        let counters = &self.counters;
        raise(&counters.requested_peak, requested);
        raise(&counters.allocated_peak, allocated);
        raise(&counters.blocks_peak, blocks);
    }

    /// One more thread counts. From the second on, peaks are those seen by looking.
    pub(super) fn add_writer(&self, counts: Arc<Counts>) {
        if self.counts.len() == 1 {
            let alone = self.lone_peaks();
            raise(&self.counters.requested_peak, alone.requested);
            raise(&self.counters.allocated_peak, alone.allocated);
            raise(&self.counters.blocks_peak, alone.taken);
        }
        if self.counts.push(counts).is_err() {
            tracing::warn!("more than 16384 threads and heaps: their peaks are not counted");
        }
    }

    /// The peaks that the only thread has counted.
    fn lone_peaks(&self) -> Sums {
        let counts = self.counts.iter().next();
        counts.map_or(Sums::default(), |counts| Sums {
            requested: counts.high_requested.load(Relaxed),
            allocated: counts.high_allocated.load(Relaxed),
            taken: counts.high_blocks.load(Relaxed),
            ..Sums::default()
        })
    }

    /// Forgets the peaks: what is allocated now is the most from here on.
    pub fn reset_peaks(&self) {
        let now = self.sum(|_| true);
        self.counters.allocated_peak.store(now.allocated, Relaxed);
        self.counters.requested_peak.store(now.requested, Relaxed);
        self.counters.blocks_peak.store(now.live(), Relaxed);
        for heap in lock(&self.heaps).clone() {
            heap.each_count(Counts::reset_peaks);
        }
    }

    /// The sums over the heaps of a tag and a stream, or of all where none is named.
    pub fn sums(&self, tag: Option<u16>, stream: Option<Stream>) -> Sums {
        self.sum(|heap| {
            tag.is_none_or(|tag| heap.key.tag == tag)
                && stream.is_none_or(|stream| heap.key.stream == stream)
        })
    }

    /// Blocks that an allocator object has given out now.
    pub fn live_of(&self, allocator: u64) -> u64 {
        self.sum(|heap| heap.key.allocator == allocator).live()
    }

    /// The sums over all heaps. Peaks are exact while one thread uses one heap, and to within 1 MiB
    /// a thread and heap otherwise.
    pub fn total(&self) -> Sums {
        let mut sums = self.sum(|_| true);
        let seen = match self.counts.len() {
            0 | 1 => self.lone_peaks(),
            _ => Sums::default(),
        };
        let counters = &self.counters;
        let allocated = counters.allocated_peak.load(Relaxed);
        let requested = counters.requested_peak.load(Relaxed);
        sums.peak_allocated = allocated.max(seen.allocated).max(sums.allocated);
        sums.peak_requested = requested.max(seen.requested).max(sums.requested);
        sums.peak_requested = sums.peak_requested.min(sums.peak_allocated);
        let blocks = counters.blocks_peak.load(Relaxed);
        sums.peak_blocks = blocks.max(seen.taken).max(sums.live());
        sums
    }

    /// The largest free piece there is, in bytes, whoever may have it.
    pub fn largest_free(&self) -> u64 {
        let arenas = lock(&self.arenas).clone();
        let largest = |arena: &Arc<Arena>| {
            let colors = lock(&arena.space).colors();
            colors
                .iter()
                .map(|(_, largest)| *largest)
                .max()
                .unwrap_or(0)
        };
        arenas.iter().map(largest).max().unwrap_or(0)
    }

    /// The tags with most bytes in live blocks, at most `count`, and those bytes; 0 is no tag.
    pub fn top_tags(&self, count: usize) -> Vec<(u16, u64)> {
        let mut tags: Vec<u16> = lock(&self.heaps).iter().map(|heap| heap.key.tag).collect();
        tags.sort_unstable();
        tags.dedup();
        let mut held: Vec<(u16, u64)> = (tags.iter())
            .map(|tag| (*tag, self.sums(Some(*tag), None).allocated))
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        held.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        held.truncate(count);
        held
    }

    /// Blocks that wait for work of other streams, and their bytes.
    pub fn pending(&self) -> (u64, u64) {
        let heaps: Vec<Arc<Heap>> = lock(&self.heaps).clone();
        heaps.iter().fold((0, 0), |(blocks, bytes), heap| {
            let pending = lock(&heap.pending);
            (blocks + pending.len() as u64, bytes + pending.bytes())
        })
    }
}
