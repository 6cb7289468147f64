//! Who memory is for: one heap serves the blocks of one stream, tag and graph. A freed block of a heap
//! may serve the heap again at once, since whatever still uses it comes before, in the stream's order; where
//! everybody's work may use it, once that is done.

use super::arena::{Arena, LARGE_UNITS};
use super::cache::{Cache, Counts, Emptied, Held};
use super::device::DevicePool;
use super::ending::Ending;
use super::exchange::Exchange;
use super::order::Order;
use super::pending::Pending;
use super::retired::Place;
use super::settle::Progress;
use super::stats::Tallies;
use crate::config::value::Location;
use crate::core::radix::UNIT;
use crate::core::space::Color;
use crate::core::sync::lock;
use crate::gpu::Stream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The graphs whose replays may write to memory, in whatever order these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphId {
    /// Those that share a private pool, by the number of its generation: replayed in the order of
    /// their captures.
    Pool(u64),
    /// That of a capture, by the driver's number, whose end nobody tells.
    Untold(u64),
    /// Any: of segments, which whoever divides them up keeps as long as a graph needs them. What is
    /// freed here is used by no graph, but nothing that work may still use may come here, since a
    /// replay is in no stream's order.
    Segments,
}

/// What tells heaps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeapKey {
    /// The device's ordinal.
    pub device: i32,
    /// The stream in whose order blocks serve again.
    pub stream: Stream,
    /// In whose order, where it is not simply the stream's.
    pub order: Order,
    /// The number of the tag of what lives in the blocks; 0 is none.
    pub tag: u16,
    /// The allocator object that gives them out; 0 is none.
    pub allocator: u64,
    /// The graph whose replays may write to them.
    pub graph: Option<GraphId>,
}

/// What a heap has while it serves somebody, and leaves to the next.
#[derive(Clone)]
pub(super) struct Seat {
    /// The heap's number in the words of blocks.
    pub id: u16,
    /// Where its small blocks are.
    pub small: Arc<Arena>,
    /// Where its large ones are, in memory that it may share.
    pub large: Arc<Arena>,
    /// Its colour there.
    pub large_color: Color,
}

impl Seat {
    /// A seat in two arenas, the first of which nobody else has.
    pub fn new(id: u16, small: Arc<Arena>, large: Arc<Arena>) -> Seat {
        small.add_color(id);
        let large_color = large.add_color(id);
        Seat {
            id,
            small,
            large,
            large_color,
        }
    }
}

/// A heap.
pub struct Heap {
    /// Its number in the words of blocks.
    pub id: u16,
    /// Whom it serves.
    pub key: HeapKey,
    /// The device's pool.
    pub pool: Arc<DevicePool>,
    pub(super) seat: Seat,
    /// The threads' caches of it.
    caches: Mutex<Vec<Arc<Cache>>>,
    /// Counts whose thread is gone, for the next one.
    idle_counts: Mutex<Vec<Arc<Counts>>>,
    /// All counts of this heap.
    counts: Mutex<Vec<Arc<Counts>>>,
    /// Counts of calls made where a thread has no cache any more.
    late: Mutex<Arc<Counts>>,
    pub(super) tallies: Tallies,
    pub(super) exchange: Exchange,
    pub(super) pending: Mutex<Pending>,
    pub(super) progress: Mutex<Progress>,
    /// Its stream may be gone: it is named no more, and gets no new blocks.
    pub(super) ending: Ending,
    /// Whether somebody will look whether it is done with.
    pub(super) is_queued: AtomicBool,
}

/// The colour of a heap in an arena of its own.
const OWN: Color = Color(1);

impl Heap {
    pub(super) fn new(key: HeapKey, pool: Arc<DevicePool>, seat: Seat) -> Heap {
        let tallies = pool.tallies_of(&key, seat.large.ground.location);
        Heap {
            id: seat.id,
            key,
            pool,
            seat,
            caches: Mutex::default(),
            idle_counts: Mutex::default(),
            counts: Mutex::default(),
            late: Mutex::default(),
            tallies,
            exchange: Exchange::default(),
            pending: Mutex::default(),
            progress: Mutex::default(),
            ending: Ending::default(),
            is_queued: AtomicBool::new(false),
        }
    }

    /// The arena of blocks of `bytes`, and the heap's colour there.
    pub(super) fn arena(&self, bytes: u64) -> (&Arc<Arena>, Color) {
        match bytes < LARGE_UNITS * UNIT {
            true => (&self.seat.small, OWN),
            false => (&self.seat.large, self.seat.large_color),
        }
    }

    pub(super) fn arenas(&self) -> [(&Arc<Arena>, Color); 2] {
        let seat = &self.seat;
        [(&seat.small, OWN), (&seat.large, seat.large_color)]
    }

    /// Where its memory is.
    pub(super) fn location(&self) -> Location {
        self.seat.large.ground.location
    }

    /// Whether its stream may be gone.
    pub fn is_retired(&self) -> bool {
        self.ending.is_retired()
    }

    /// Whether `stream`, as the calling thread means it, is the heap's.
    pub(super) fn is_own_stream(&self, stream: Stream) -> bool {
        let order = self.key.order;
        stream == self.key.stream && (order.is_stream() || order == Order::of_this_thread())
    }

    /// Whether the driver may be asked about its stream from any thread.
    pub(super) fn is_nameable(&self) -> bool {
        !self.is_retired() && !self.key.stream.is_per_thread()
    }

    /// The stream is about to go, or the graph is gone: no thread keeps blocks of it any more.
    pub(super) fn retire(self: &Arc<Heap>) {
        let take_back = || {
            // Who was about to name the stream has done so from here on.
            drop(lock(&self.progress));
            self.flush(true);
        };
        if self.ending.retire(take_back) {
            self.queue(Place::Last);
        }
    }

    /// Whether every block of a retired heap is back and no thread at work on it. Then it stays so, but
    /// for guests.
    pub(super) fn is_done_with(&self) -> bool {
        let is_busy = || lock(&self.caches).iter().any(|cache| cache.is_busy());
        self.ending.is_over(is_busy, || self.has_blocks()) && lock(&self.pending).len() == 0
    }

    /// Whether blocks were given out that are not counted as given back. Of a retired heap, no is
    /// an answer that stays.
    pub(super) fn has_blocks(&self) -> bool {
        let mut blocks = 0u64;
        // What was given back was taken before, so the other order could make up for a live block.
        self.each_count(|counts| {
            blocks = blocks.wrapping_sub(counts.given.load(Ordering::Acquire));
        });
        self.each_count(|counts| {
            blocks = blocks.wrapping_add(counts.taken.load(Ordering::Acquire));
        });
        blocks != 0
    }

    /// Takes what it counted with away, for when it is no more.
    pub(super) fn take_counts(&self) -> Vec<Arc<Counts>> {
        lock(&self.idle_counts).clear();
        std::mem::take(&mut *lock(&self.counts))
    }

    /// A cache of the calling thread.
    pub(super) fn add_cache(self: &Arc<Heap>) -> Arc<Cache> {
        let idle = lock(&self.idle_counts).pop();
        let counts = idle.unwrap_or_else(|| self.add_counts(self.pool.spare_counts(self)));
        let cache = Arc::new(Cache::new(self.clone(), counts));
        let mut caches = lock(&self.caches);
        if self.is_retired() {
            cache.take_from(true, &mut Emptied::default());
        }
        caches.push(cache.clone());
        cache
    }

    /// What threads have of it. None comes or goes while the result lives.
    pub(super) fn caches(&self) -> MutexGuard<'_, Vec<Arc<Cache>>> {
        lock(&self.caches)
    }

    /// The thread of a cache is gone, or has no room for it.
    pub(super) fn drop_cache(&self, cache: &Arc<Cache>) {
        let mut emptied = Emptied::default();
        // Kept to the end: who retires the heap is to find its blocks in the cache or in the arena.
        let mut caches = lock(&self.caches);
        cache.take_from(true, &mut emptied);
        self.take_in(emptied);
        let before = caches.len();
        caches.retain(|other| !Arc::ptr_eq(other, cache));
        if caches.len() < before {
            lock(&self.idle_counts).push(cache.counts.clone());
        }
    }

    /// Bytes that threads keep of this heap; a moment's reading.
    pub(super) fn kept_bytes(&self) -> u64 {
        lock(&self.caches)
            .iter()
            .map(|cache| cache.held_bytes())
            .sum()
    }

    /// Blocks that threads have freed and any work may use, and their bytes.
    pub(super) fn waiting_in_threads(&self) -> (u64, u64) {
        let caches = lock(&self.caches);
        (caches.iter().map(|cache| cache.waiting()))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Takes what threads keep of this heap back into its arenas, or to what waits; the bytes that came back.
    pub(super) fn flush(&self, is_final: bool) -> u64 {
        let mut emptied = Emptied::default();
        for cache in lock(&self.caches).iter() {
            if is_final || cache.held_bytes() > 0 {
                cache.take_from(is_final, &mut emptied);
            }
        }
        self.exchange.take_all(&mut emptied.free);
        let free = emptied.free.iter();
        let bytes = free.map(|held| held.units * UNIT).sum();
        self.take_in(emptied);
        bytes
    }

    /// What was taken from threads becomes free memory, or waits with the heap's other blocks.
    pub(super) fn take_in(&self, emptied: Emptied) {
        self.return_blocks(&emptied.free);
        self.queue_behind_everything(emptied.waiting);
    }

    /// Takes what waits for threads back into its arenas.
    pub(super) fn flush_exchange(&self) {
        let mut held = Vec::new();
        self.exchange.take_all(&mut held);
        self.return_blocks(&held);
    }

    fn add_counts(&self, counts: Arc<Counts>) -> Arc<Counts> {
        lock(&self.counts).push(counts.clone());
        self.tallies.stream.add(counts.clone());
        counts
    }

    /// Counts for a call of a thread that has no cache; no other call may use them meanwhile.
    pub(super) fn late_counts(&self) -> MutexGuard<'_, Arc<Counts>> {
        let mut late = lock(&self.late);
        if Arc::strong_count(&late) == 1 {
            *late = self.add_counts(self.pool.spare_counts(self));
        }
        late
    }

    /// Lets `see` read all counts of this heap.
    pub(super) fn each_count(&self, mut see: impl FnMut(&Counts)) {
        lock(&self.counts).iter().for_each(|counts| see(counts));
    }

    /// How many threads have a cache of it.
    pub(super) fn threads(&self) -> usize {
        lock(&self.caches).len()
    }

    /// Blocks that nobody holds any more become free memory of the heap.
    pub(super) fn return_blocks(&self, held: &[Held]) {
        for is_small in [true, false] {
            let mut blocks = held
                .iter()
                .filter(|held| (held.units < LARGE_UNITS) == is_small)
                .peekable();
            let Some(first) = blocks.peek() else {
                continue;
            };
            let (arena, color) = self.arena(first.units * UNIT);
            let epoch = self.pool.epoch();
            let mut space = lock(&arena.space);
            for block in blocks {
                let piece = self.pool.radix().entry(block.address, block.units).node();
                space.free(piece, color, epoch);
            }
        }
    }

    /// One freed block becomes free memory of the heap.
    pub(super) fn return_block(&self, held: Held) {
        let (arena, color) = self.arena(held.units * UNIT);
        let entry = self.pool.radix().entry(held.address, held.units);
        let epoch = self.pool.epoch();
        let mut space = lock(&arena.space);
        space.free(entry.node(), color, epoch);
    }
}
