//! What heaps have counted that are no more. It stays in the sums, and their counters serve other heaps,
//! so that statistics take no more for the thousandth stream than for the first.

use super::cache::Counts;
use super::device::DevicePool;
use super::heap::Heap;
use super::stats::Sums;
use super::tally::{Level, Tally};
use crate::config::value::Location;
use crate::core::sync::lock;
use crate::gpu::Stream;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// So many streams have statistics of their own. Beyond, those that no heap is for any more are counted
/// together.
const STREAMS: usize = 4096;

/// What heaps counted that are no more, whichever way it is asked for.
#[derive(Default)]
pub(super) struct Folded {
    pub all: Sums,
    pub tags: FxHashMap<u16, Sums>,
    pub streams: FxHashMap<Stream, Sums>,
    pub locations: FxHashMap<Location, Sums>,
}

/// Counters that nobody writes to, by the tag and place that they are counted for.
pub(super) type SpareCounts = FxHashMap<(u16, Location), Vec<Arc<Counts>>>;

impl DevicePool {
    /// Counters for one more thread on a heap.
    pub(super) fn spare_counts(&self, heap: &Heap) -> Arc<Counts> {
        let kind = (heap.key.tag, heap.location());
        if let Some(counts) = lock(&self.spare_counts).get_mut(&kind).and_then(Vec::pop) {
            return counts;
        }
        let counts = Arc::<Counts>::default();
        // The whole first: a part that has as many is the whole.
        for tally in [&self.tally, &heap.tallies.tag, &heap.tallies.location] {
            tally.add(counts.clone());
        }
        counts
    }

    /// A heap is no more, all of whose blocks are back.
    pub(super) fn fold(&self, heap: &Arc<Heap>) {
        // Held to the end, as by who sums up: nothing is missed, nothing counted twice.
        let mut folded = lock(&self.folded);
        lock(&self.heaps).retain(|other| !Arc::ptr_eq(other, heap));
        let counts = heap.take_counts();
        let mut sums = Sums::default();
        counts.iter().for_each(|counts| sums.add(counts));
        let Folded {
            all,
            tags,
            streams,
            locations,
        } = &mut *folded;
        for part in [
            all,
            tags.entry(heap.key.tag).or_default(),
            streams.entry(heap.key.stream).or_default(),
            locations.entry(heap.location()).or_default(),
        ] {
            part.join(&sums);
        }
        let tallies = &heap.tallies;
        tallies.stream.remove(&counts);
        Tally::clearing([&self.tally, &tallies.tag, &tallies.location], || {
            counts.iter().for_each(|counts| counts.clear());
        });
        let kind = (heap.key.tag, heap.location());
        (lock(&self.spare_counts).entry(kind).or_default()).extend(counts);
        self.group_streams(&mut folded.streams);
    }

    /// Puts the statistics of streams together that no heap is for, where there are very many.
    fn group_streams(&self, folded: &mut FxHashMap<Stream, Sums>) {
        let mut tallies = lock(&self.stream_tallies);
        if tallies.len() <= STREAMS {
            return;
        }
        let group = tallies.remove(&Stream::GONE);
        let group = group.unwrap_or_else(|| Arc::new(Tally::changing()));
        let mut sums = folded.remove(&Stream::GONE).unwrap_or_default();
        tallies.retain(|stream, tally| {
            let is_gone = tally.len() == 0 && Arc::strong_count(tally) == 1;
            if is_gone {
                group.raise(tally.peak(Level::default()));
                sums.join(&folded.remove(stream).unwrap_or_default());
            }
            !is_gone
        });
        tallies.insert(Stream::GONE, group);
        folded.insert(Stream::GONE, sums);
    }
}
