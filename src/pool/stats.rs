//! What the pool of a device has given out and holds, summed when asked for.

use super::arena::Arena;
use super::cache::Counts;
use super::device::DevicePool;
use super::fold::Folded;
use super::heap::{Heap, HeapKey};
use super::tally::{Level, Tally};
use crate::config::value::Location;
use crate::core::sync::lock;
use crate::gpu::Stream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

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

/// What the blocks of a heap are counted with.
pub(super) struct Tallies {
    /// The blocks of its tag.
    pub tag: Arc<Tally>,
    /// The blocks of its stream.
    pub stream: Arc<Tally>,
    /// The blocks where its memory is.
    pub location: Arc<Tally>,
}

/// Whose blocks are summed up.
#[derive(Clone, Copy)]
enum Of {
    All,
    Tag(u16),
    Stream(Stream),
    Location(Location),
}

impl Of {
    fn has(self, heap: &Heap) -> bool {
        match self {
            Of::All => true,
            Of::Tag(tag) => heap.key.tag == tag,
            Of::Stream(stream) => heap.key.stream == stream,
            Of::Location(location) => heap.location() == location,
        }
    }

    /// What heaps counted that are no more.
    fn base(self, folded: &Folded) -> Sums {
        let found = match self {
            Of::All => Some(&folded.all),
            Of::Tag(tag) => folded.tags.get(&tag),
            Of::Stream(stream) => folded.streams.get(&stream),
            Of::Location(location) => folded.locations.get(&location),
        };
        found.copied().unwrap_or_default()
    }
}

impl Tallies {
    fn all(&self) -> [&Tally; 3] {
        [&self.tag, &self.stream, &self.location]
    }
}

impl Sums {
    /// Blocks given out now.
    pub fn live(&self) -> u64 {
        self.taken.saturating_sub(self.given)
    }

    /// What live blocks come to.
    fn level(&self) -> Level {
        Level {
            requested: self.requested,
            allocated: self.allocated,
            blocks: self.live(),
        }
    }

    fn with_peak(mut self, tally: &Tally) -> Sums {
        let peak = tally.peak(self.level());
        self.peak_requested = peak.requested;
        self.peak_allocated = peak.allocated;
        self.peak_blocks = peak.blocks;
        self
    }

    pub(super) fn add(&mut self, counts: &Counts) {
        self.requested = self.requested.wrapping_add(counts.requested.load(Relaxed));
        self.allocated = self.allocated.wrapping_add(counts.allocated.load(Relaxed));
        self.total_requested += counts.total_requested.load(Relaxed);
        self.total_allocated += counts.total.load(Relaxed);
        self.taken += counts.taken.load(Relaxed);
        self.given += counts.given.load(Relaxed);
    }

    /// Adds what is done with.
    pub(super) fn join(&mut self, other: &Sums) {
        self.total_requested += other.total_requested;
        self.total_allocated += other.total_allocated;
        self.taken += other.taken;
        self.given += other.given;
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
    /// Begins again from nothing, for another heap. Nobody writes to it meanwhile.
    pub(super) fn clear(&self) {
        for counter in self.all() {
            counter.store(0, Relaxed);
        }
    }

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
    fn sum(&self, of: Of) -> Sums {
        let folded = lock(&self.folded);
        self.sum_from(of.base(&folded), |heap| of.has(heap))
    }

    fn sum_from(&self, mut sums: Sums, wanted: impl Fn(&Heap) -> bool) -> Sums {
        let heaps: Vec<Arc<Heap>> = lock(&self.heaps).clone();
        for heap in heaps.iter().filter(|heap| wanted(heap)) {
            heap.each_count(|counts| sums.add(counts));
        }
        sums.settle();
        sums
    }

    /// Looks whether more is allocated over all threads than ever before, and under the heap's tag
    /// and stream.
    pub(super) fn look_at_peaks(&self, heap: &Heap) {
        // Who counts alone has counted exactly, for the parts too.
        if self.tally.len() <= 1 {
            return;
        }
        let level = self.tally.look();
        for part in heap.tallies.all() {
            match level {
                Some(level) if part.len() == self.tally.len() => part.raise(level),
                _ => drop(part.look()),
            }
        }
    }

    /// What a heap's blocks are counted with.
    pub(super) fn tallies_of(&self, key: &HeapKey, location: Location) -> Tallies {
        Tallies {
            location: (lock(&self.location_tallies).entry(location))
                .or_default()
                .clone(),
            tag: lock(&self.tag_tallies).entry(key.tag).or_default().clone(),
            stream: (lock(&self.stream_tallies).entry(key.stream))
                .or_insert_with(|| Arc::new(Tally::changing()))
                .clone(),
        }
    }

    /// Forgets the peaks: what is allocated now is the most from here on.
    pub fn reset_peaks(&self) {
        self.tally.reset(self.sum(Of::All).level());
        let (tags, streams) = (
            lock(&self.tag_tallies).clone(),
            lock(&self.stream_tallies).clone(),
        );
        for (tag, tally) in tags {
            tally.reset(self.sum(Of::Tag(tag)).level());
        }
        for (stream, tally) in streams {
            tally.reset(self.sum(Of::Stream(stream)).level());
        }
        let locations = lock(&self.location_tallies).clone();
        for (location, tally) in locations {
            tally.reset(self.sum(Of::Location(location)).level());
        }
        for heap in self.heap_list() {
            heap.each_count(Counts::reset_peaks);
        }
        self.backing.reset_peaks();
    }

    /// The sums over the heaps of a tag; 0 is no tag. Peaks as [`DevicePool::total`]'s.
    pub fn of_tag(&self, tag: u16) -> Sums {
        let tally = lock(&self.tag_tallies).get(&tag).cloned();
        let sums = self.sum(Of::Tag(tag));
        tally.map_or(sums, |tally| sums.with_peak(&tally))
    }

    /// The sums over the heaps of a stream's handle, whichever streams have had it. Peaks as
    /// [`DevicePool::total`]'s.
    pub fn of_stream(&self, stream: Stream) -> Sums {
        let tally = lock(&self.stream_tallies).get(&stream).cloned();
        let sums = self.sum(Of::Stream(stream));
        tally.map_or(sums, |tally| sums.with_peak(&tally))
    }

    /// The sums over the heaps whose memory is at a place. Peaks as [`DevicePool::total`]'s.
    pub fn at(&self, location: Location) -> Sums {
        let tally = lock(&self.location_tallies).get(&location).cloned();
        let sums = self.sum(Of::Location(location));
        tally.map_or(sums, |tally| sums.with_peak(&tally))
    }

    /// Bytes of chunks in memory of the host that are in no block.
    pub fn cached_on_host(&self) -> u64 {
        let places: Vec<Location> = lock(&self.location_tallies).keys().copied().collect();
        (places.iter())
            .find(|place| **place != Location::Device)
            .map_or(0, |place| {
                let held = self.state.extents.pooled_at(*place);
                held.saturating_sub(self.at(*place).allocated)
            })
    }

    /// The tags that blocks have had.
    pub fn tags(&self) -> Vec<u16> {
        lock(&self.tag_tallies).keys().copied().collect()
    }

    /// The handles of streams that blocks have been for.
    pub fn streams(&self) -> Vec<Stream> {
        lock(&self.stream_tallies).keys().copied().collect()
    }

    /// Blocks that an allocator object has given out now.
    pub fn live_of(&self, allocator: u64) -> u64 {
        // Of heaps that are no more nothing is live.
        let _folded = lock(&self.folded);
        self.sum_from(Sums::default(), |heap| heap.key.allocator == allocator)
            .live()
    }

    /// The sums over all heaps. Peaks are exact while one thread uses one heap, and to within 1 MiB
    /// a thread and heap otherwise.
    pub fn total(&self) -> Sums {
        self.sum(Of::All).with_peak(&self.tally)
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

    /// Freed blocks that wait for work of any stream but their own, and their bytes; a moment's reading.
    pub fn pending(&self) -> (u64, u64) {
        let heaps: Vec<Arc<Heap>> = lock(&self.heaps).clone();
        heaps.iter().fold((0, 0), |(blocks, bytes), heap| {
            let (in_threads, their_bytes) = heap.waiting_in_threads();
            let pending = lock(&heap.pending);
            let (blocks, bytes) = (blocks + in_threads, bytes + their_bytes);
            (blocks + pending.len() as u64, bytes + pending.bytes())
        })
    }

    /// Finds whatever contradicts itself in the arenas. A moment's reading where threads go on.
    pub fn audit(&self) -> Result<(), String> {
        let arenas = lock(&self.arenas).clone();
        arenas
            .iter()
            .try_for_each(|arena| lock(&arena.space).audit())
    }
}
