//! The pool of one device: its arenas, and the way of a request that no cache can serve.

use super::arena::{Arena, Ground};
use super::backing::Backing;
use super::cache::{Cache, Held};
use super::counters::{Counters, add};
use super::fold::{Folded, SpareCounts};
use super::heap::{Heap, HeapKey, Seat};
use super::pace::Pace;
use super::retired::Retired;
use super::settle::Progress;
use super::tally::Tally;
use super::word::{LARGEST, units};
use crate::config::value::Location;
use crate::core::gate::Inside;
use crate::core::gauge::{Holding, Reading};
use crate::core::radix::{Entry, Radix, UNIT};
use crate::core::size::Align;
use crate::core::space::{Color, Fit, Given, Space};
use crate::core::sync::{lock, try_lock};
use crate::error::Result;
use crate::extent::DeviceState;
use crate::gpu::{Device, Stream};
use crate::source::Kind;
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Says whether to lean towards holding less memory rather than spending less time.
pub type Lean = Box<dyn Fn() -> bool + Send + Sync>;

/// Says where memory of a tag is to be made, by its number.
pub type Placing = Box<dyn Fn(u16) -> Result<Location> + Send + Sync>;

/// An error while a stream of any device in use captures.
pub type NoneCaptures = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// The pool of one device.
pub struct DevicePool {
    pub(super) state: Arc<DeviceState>,
    pub(super) backing: Backing,
    radix: Arc<Radix>,
    pub(super) arenas: Mutex<Vec<Arc<Arena>>>,
    pub(super) heaps: Mutex<Vec<Arc<Heap>>>,
    /// Held by who changes what backs addresses.
    pub(super) growth: Mutex<Pace>,
    epoch: AtomicU64,
    /// The counts of all threads on all heaps, and those of each tag and stream.
    pub(super) tally: Tally,
    pub(super) tag_tallies: Mutex<FxHashMap<u16, Arc<Tally>>>,
    pub(super) stream_tallies: Mutex<FxHashMap<Stream, Arc<Tally>>>,
    pub(super) location_tallies: Mutex<FxHashMap<Location, Arc<Tally>>>,
    /// What heaps counted, and counted with, that are no more.
    pub(super) folded: Mutex<Folded>,
    pub(super) spare_counts: Mutex<SpareCounts>,
    pub(super) retired: Mutex<Retired>,
    /// How far all work has come that retired heaps wait for.
    pub(super) all_work: Mutex<Progress>,
    is_tight: Lean,
    placing: Placing,
    pub(super) none_captures: NoneCaptures,
    /// What happened.
    pub counters: Counters,
}

impl DevicePool {
    pub(super) fn new(
        state: Arc<DeviceState>,
        backing: Backing,
        radix: Arc<Radix>,
        is_tight: Lean,
        placing: Placing,
        none_captures: NoneCaptures,
    ) -> DevicePool {
        DevicePool {
            state,
            backing,
            radix,
            arenas: Mutex::default(),
            heaps: Mutex::default(),
            growth: Mutex::default(),
            epoch: AtomicU64::new(1),
            tally: Tally::default(),
            tag_tallies: Mutex::default(),
            stream_tallies: Mutex::default(),
            location_tallies: Mutex::default(),
            folded: Mutex::default(),
            spare_counts: Mutex::default(),
            retired: Mutex::default(),
            all_work: Mutex::default(),
            is_tight,
            placing,
            none_captures,
            counters: Counters::default(),
        }
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.state.device
    }

    pub(super) fn radix(&self) -> &Radix {
        &self.radix
    }

    /// The time as frees are stamped with it.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// A new time begins; the one that ends. Who gets a later one sees what was done before.
    pub(super) fn next_epoch(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::AcqRel)
    }

    /// Where memory of a tag is to be made now. May ask the driver; takes no lock of the pool.
    pub(super) fn ground_of(&self, tag: u16) -> Result<Ground> {
        let location = (self.placing)(tag)?;
        Ok(Ground {
            location,
            granularity: self.backing.granularity(&self.state, location)?,
        })
    }

    /// An error where memory cannot be used in the order of `stream`, since it is another device's.
    pub(super) fn check_stream(&self, stream: Stream) -> Result<()> {
        let device = self.device();
        let _guard = device.enter()?;
        match device.is_capturing(stream)? {
            true => Ok(()),
            false => device.check_stream(stream),
        }
    }

    /// A seat for a heap of `key`, of memory made on `ground`.
    pub(super) fn new_seat(&self, id: u16, key: &HeapKey, ground: Ground) -> Seat {
        let mut arenas = lock(&self.arenas);
        let is_its = |arena: &&Arc<Arena>| {
            (arena.tag, arena.graph()) == (key.tag, key.graph)
                && arena.ground.location == ground.location
        };
        let mut large_ones = arenas.iter().filter(|arena| arena.is_large);
        let shared = large_ones
            .find(is_its)
            .filter(|arena| key.graph.is_none() || !arena.is_open())
            .cloned();
        let large = shared.unwrap_or_else(|| {
            // Where memory cannot move, what is left of a segment must be as small as can be.
            let fit = match self.backing.is_movable(ground.location) {
                true => Fit::Lowest,
                false => Fit::Best,
            };
            let arena = Arc::new(Arena::new(key, true, ground, fit));
            arenas.push(arena.clone());
            arena
        });
        let small = Arc::new(Arena::new(key, false, ground, Fit::Best));
        arenas.push(small.clone());
        Seat::new(id, small, large)
    }

    /// A heap for `key`, which has none yet.
    pub(super) fn add_heap(self: &Arc<DevicePool>, seat: Seat, key: HeapKey) -> Arc<Heap> {
        let heap = Arc::new(Heap::new(key, self.clone(), seat));
        lock(&self.heaps).push(heap.clone());
        heap
    }

    pub(super) fn is_tight(&self) -> bool {
        (self.is_tight)()
    }

    /// Bytes held, at one place where one is named.
    pub(super) fn reserved_at(&self, location: Option<Location>) -> u64 {
        let arenas = self.arenas_at(location);
        arenas.iter().map(|arena| lock(&arena.space).backed()).sum()
    }

    /// Bytes of live blocks, of those that threads keep and of those that wait for work to end.
    pub fn in_use(&self) -> u64 {
        let arenas = lock(&self.arenas).clone();
        arenas.iter().map(|arena| lock(&arena.space).used()).sum()
    }

    /// How many free pieces lie beside blocks in the same chunk.
    pub fn stuck_pieces(&self) -> u64 {
        let arenas = lock(&self.arenas).clone();
        let stuck = |arena: &Arc<Arena>| lock(&arena.space).stuck_pieces() as u64;
        arenas.iter().map(stuck).sum()
    }

    /// The source under the pool and what it gave, where memory does not come as chunks.
    pub fn segments(&self) -> Option<(Kind, &Holding)> {
        self.backing.held_in_segments()
    }

    /// What the source under the pool gave for memory of a tag, where it does not come as chunks.
    pub fn segments_of_tag(&self, tag: u16) -> Reading {
        self.backing.held_for_tag(tag)
    }

    /// Bytes of chunks of which nothing is in use. They can go back to the device, those at once
    /// whose work is done.
    pub fn releasable(&self) -> u64 {
        let arenas = lock(&self.arenas).clone();
        let open = arenas.iter().filter(|arena| arena.is_open());
        open.flat_map(|arena| self.movable_places(arena))
            .map(|place| place.bytes)
            .sum()
    }

    pub(super) fn heap_list(&self) -> Vec<Arc<Heap>> {
        lock(&self.heaps).clone()
    }

    /// The heaps whose memory is at a place, where one is named. A source knows by itself where its is.
    pub(super) fn heaps_at(&self, location: Option<Location>) -> Vec<Arc<Heap>> {
        let location = location.filter(|_| self.backing.is_placed());
        let mut heaps = self.heap_list();
        heaps.retain(|heap| location.is_none_or(|at| at == heap.location()));
        heaps
    }

    /// [`DevicePool::heaps_at`] of arenas.
    pub(super) fn arenas_at(&self, location: Option<Location>) -> Vec<Arc<Arena>> {
        let location = location.filter(|_| self.backing.is_placed());
        let mut arenas = lock(&self.arenas).clone();
        arenas.retain(|arena| location.is_none_or(|at| at == arena.ground.location));
        arenas
    }

    /// Memory for a block of `heap` that the thread's cache has not got.
    pub(super) fn allocate(
        self: &Arc<DevicePool>,
        heap: &Arc<Heap>,
        cache: Option<&Cache>,
        requested: u64,
        align: Align,
    ) -> Result<u64> {
        let wanted = Wanted {
            heap,
            cache,
            bytes: units(requested) * UNIT,
            align: align.max(UNIT_ALIGN),
        };
        if let Some(given) = self.take_free(&wanted) {
            return Ok(given.address);
        }
        // What this thread has freed comes first, by no order point of its own.
        heap.queue_behind_everything(cache.map(Cache::take_waiting).unwrap_or_default());
        let mut settled = self.or_later(heap.settle_pending_for(cache, heap.effort()));
        if settled == 0 {
            settled = self.or_later(heap.catch_up(cache));
        }
        while settled > 0 {
            let kept = wanted.take_kept();
            let free = || self.take_free(&wanted).map(|given| given.address);
            if let Some(address) = kept.or_else(free) {
                add(&self.counters.searches, 1);
                return Ok(address);
            }
            settled = self.or_later(heap.catch_up(cache));
        }
        let outcome = self.grow(&wanted);
        match &outcome {
            Ok(_) => add(&self.counters.searches, 1),
            // Nothing fails before it has come to growing.
            Err(_) => add(&self.counters.failures, 1),
        }
        outcome.map(|given| given.address)
    }

    /// A block of `units` out of memory that is free for the cache's heap, for a thread that has gone in:
    /// its address and entry. None too where another thread is at work in the arena, for whom whoever
    /// shuts the gate would have to wait.
    pub(super) fn take_free_inside(
        &self,
        cache: &Cache,
        inside: &Inside,
        units: u64,
    ) -> Option<(u64, &Entry)> {
        let bytes = units.checked_mul(UNIT).filter(|bytes| *bytes <= LARGEST)?;
        let (arena, color) = cache.heap().arena(bytes);
        let mut space = try_lock(&arena.space)?;
        if arena.is_large {
            // Kept back, it would only break free memory up.
            if let Some(block) = cache.take_large_inside(inside) {
                self.take_back(&mut space, block, color);
            }
        }
        let given = space.allocate(bytes, UNIT_ALIGN, color)?;
        cache.gave_out(given.address, units);
        let entry = self.radix.set_node(given.address, units, given.piece);
        Some((given.address, entry))
    }

    /// A block out of memory that is free for the heap, what its own thread keeps included.
    pub(super) fn take_free(&self, wanted: &Wanted) -> Option<Given> {
        let (arena, color) = wanted.heap.arena(wanted.bytes);
        // A large block that is kept back would only break free memory up.
        let kept = match arena.is_large {
            true => wanted.cache.and_then(Cache::take_large),
            false => None,
        };
        let mut space = lock(&arena.space);
        if let Some(block) = kept {
            self.take_back(&mut space, block, color);
        }
        if let Some(given) = space.allocate(wanted.bytes, wanted.align, color) {
            return Some(self.note(space, given));
        }
        let cache = wanted.cache.filter(|_| !arena.is_large)?;
        let mut held = Vec::new();
        cache.take_small(&mut held);
        wanted.heap.exchange.take_all(&mut held);
        if held.is_empty() {
            return None;
        }
        for block in held {
            self.take_back(&mut space, block, color);
        }
        let given = space.allocate(wanted.bytes, wanted.align, color)?;
        Some(self.note(space, given))
    }

    /// A block that was kept becomes free memory; it may have been in use until now.
    fn take_back(&self, space: &mut Space, block: Held, color: Color) {
        let entry = self.radix.entry(block.address, block.units);
        space.free(entry.node(), color, self.epoch());
    }

    /// Remembers a block's piece for its free.
    pub(super) fn note(&self, space: MutexGuard<'_, Space>, given: Given) -> Given {
        let units = space.bytes_of(given.piece) / UNIT;
        self.radix.set_node(given.address, units, given.piece);
        drop(space);
        given
    }
}

const UNIT_ALIGN: Align = Align::new(UNIT).expect("a power of two");

/// What is asked of a pool.
pub(super) struct Wanted<'a> {
    /// For whom.
    pub heap: &'a Arc<Heap>,
    /// What the calling thread keeps of the heap.
    pub cache: Option<&'a Cache>,
    /// A multiple of the unit.
    pub bytes: u64,
    /// At least the unit.
    pub align: Align,
}

impl Wanted<'_> {
    /// A block of just the length that the thread keeps.
    fn take_kept(&self) -> Option<u64> {
        let cache = self.cache.filter(|_| self.align == UNIT_ALIGN)?;
        let inside = cache.enter()?;
        cache.take_inside(&inside, self.bytes / UNIT)
    }

    /// What the calling thread and the exchange keep of the heap becomes free memory, so that it holds
    /// no chunk back.
    pub(super) fn give_up_kept(&self) {
        let mut held = Vec::new();
        if let Some(cache) = self.cache {
            cache.take_small(&mut held);
        }
        self.heap.exchange.take_all(&mut held);
        self.heap.return_blocks(&held);
    }
}
