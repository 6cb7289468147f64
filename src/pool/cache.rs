//! What one thread keeps of one heap: freed blocks that the same thread can have again without a lock
//! or an atomic operation, and the counts of what it took and gave back. Only its thread goes in;
//! whoever needs the memory shuts the gate and empties it.

use super::arena::LARGE_UNITS;
use super::exchange::Batch;
use super::heap::Heap;
use super::waiting::{Block, Waiting};
use super::word::Word;
use crate::core::gate::{Gate, Inside, Shut};
use crate::core::radix::UNIT;
use crate::core::sync::{
    Arc, AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use crate::sys::linux;

/// Blocks of up to so many units have a bin for each size.
pub const BINNED_UNITS: u64 = 64;
/// Places of a bin.
pub const BIN_SLOTS: usize = 32;
/// A full bin keeps so many blocks when it makes room.
pub const BIN_KEPT: usize = BIN_SLOTS / 4;
/// A bin keeps at most so many bytes.
const BIN_BYTES: u64 = 128 << 10;
/// Larger blocks wait in one short list for a request of just their size. Of those that share an arena
/// only the one given out last does: another one is not where the next block would best go.
const PARKED: usize = 8;

/// Freed blocks of one size, last in first out.
struct Bin {
    count: AtomicU32,
    slots: [AtomicU64; BIN_SLOTS],
}

/// How many blocks of a size a bin takes.
pub fn bin_room(units: u64) -> u32 {
    (BIN_BYTES / (units * UNIT)).clamp(4, BIN_SLOTS as u64) as u32
}

/// A freed block that the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its first address.
    pub address: u64,
    /// Its length in units.
    pub units: u64,
}

/// What was taken out of caches.
#[derive(Default)]
pub struct Emptied {
    /// What the heap may have again at once.
    pub free: Vec<Held>,
    /// What any work may still use.
    pub waiting: Vec<Block>,
}

/// A place for a freed block.
#[derive(Default)]
struct Parked {
    address: AtomicU64,
    /// 0 where there is none.
    units: AtomicU64,
}

impl Parked {
    /// Puts another block, or none (of no units), in the place of the one that is there.
    fn swap(&self, address: u64, units: u64) -> Option<Held> {
        let held = self.held();
        self.address.store(address, Relaxed);
        self.units.store(units, Relaxed);
        held
    }

    fn held(&self) -> Option<Held> {
        match self.units.load(Relaxed) {
            0 => None,
            units => Some(Held {
                address: self.address.load(Relaxed),
                units,
            }),
        }
    }
}

/// What became of a freed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The cache has it.
    Yes,
    /// The cache has it, and this one had to make way.
    InsteadOf(Held),
    /// There is no place for it, or the thread is shut out.
    No,
}

/// The cache of a thread for a heap.
pub struct Cache {
    heap: Arc<Heap>,
    gate: Gate,
    /// Whether its thread is at work on the heap outside the gate.
    busy: AtomicBool,
    bins: Box<[Bin]>,
    parked: [Parked; PARKED],
    /// Whose turn it is to make way.
    parked_turn: AtomicU32,
    parked_large: Parked,
    /// The address of the large block given out last.
    last_large: AtomicU64,
    /// Of a heap whose blocks any work may still use.
    waiting: Option<Waiting>,
    /// Counts of this thread on this heap.
    pub counts: Arc<Counts>,
}

/// Counts with one writer. What was freed here may have been allocated elsewhere, so the sizes are to be
/// summed over all caches, wrapping.
#[derive(Default)]
pub struct Counts {
    /// Bytes asked for by blocks taken, less those given back.
    pub requested: AtomicU64,
    /// Bytes of blocks taken, less those given back.
    pub allocated: AtomicU64,
    /// The most `requested` has been.
    pub high_requested: AtomicU64,
    /// The most `allocated` has been.
    pub high_allocated: AtomicU64,
    /// Bytes of all blocks ever taken.
    pub total: AtomicU64,
    /// Bytes asked for by all blocks ever taken.
    pub total_requested: AtomicU64,
    /// Blocks taken.
    pub taken: AtomicU64,
    /// Blocks given back. Who sees one counted sees what its thread did before, such as beginning
    /// work on the heap.
    pub given: AtomicU64,
    /// The most blocks taken and not given back.
    pub high_blocks: AtomicU64,
    /// Beyond this many allocated bytes the peak over all caches is looked at again.
    mark: AtomicU64,
}

/// How far a thread's allocated bytes may go before the peak over all of them is looked at.
const PEAK_STEP: u64 = 1 << 20;

fn bump(counter: &AtomicU64, by: u64) -> u64 {
    let sum = counter.load(Relaxed).wrapping_add(by);
    counter.store(sum, Relaxed);
    sum
}

impl Counts {
    /// Every counter.
    pub fn all(&self) -> [&AtomicU64; 10] {
        [
            &self.requested,
            &self.allocated,
            &self.high_requested,
            &self.high_allocated,
            &self.total,
            &self.total_requested,
            &self.taken,
            &self.given,
            &self.high_blocks,
            &self.mark,
        ]
    }

    /// A block was taken; says whether the peak over all caches should be looked at.
    #[inline]
    pub fn took(&self, requested: u64, bytes: u64) -> bool {
        let asked = bump(&self.requested, requested);
        let allocated = bump(&self.allocated, bytes);
        let blocks = bump(&self.taken, 1).wrapping_sub(self.given.load(Relaxed));
        if (blocks as i64) > self.high_blocks.load(Relaxed) as i64 {
            self.high_blocks.store(blocks, Relaxed);
        }
        bump(&self.total, bytes);
        bump(&self.total_requested, requested);
        if (asked as i64) > self.high_requested.load(Relaxed) as i64 {
            self.high_requested.store(asked, Relaxed);
        }
        if (allocated as i64) > self.high_allocated.load(Relaxed) as i64 {
            self.high_allocated.store(allocated, Relaxed);
        }
        if (allocated as i64) > self.mark.load(Relaxed) as i64 {
            self.mark.store(allocated.wrapping_add(PEAK_STEP), Relaxed);
            return true;
        }
        false
    }

    /// A block was given back.
    #[inline]
    pub fn gave(&self, requested: u64, bytes: u64) {
        bump(&self.requested, requested.wrapping_neg());
        let allocated = bump(&self.allocated, bytes.wrapping_neg());
        let given = self.given.load(Relaxed).wrapping_add(1);
        self.given.store(given, Release);
        let mark = self.mark.load(Relaxed) as i64;
        if (allocated as i64) < mark.wrapping_sub(2 * PEAK_STEP as i64) {
            self.mark.store(allocated.wrapping_add(PEAK_STEP), Relaxed);
        }
    }
}

impl Cache {
    /// An empty cache of the calling thread for `heap`.
    pub fn new(heap: Arc<Heap>, counts: Arc<Counts>) -> Cache {
        let bin = |_| Bin {
            count: AtomicU32::new(0),
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        let waiting = heap.key.order.is_everywhere().then(Waiting::default);
        Cache {
            heap,
            waiting,
            gate: Gate::new(linux::has_barrier_on_all_threads()),
            busy: AtomicBool::new(false),
            bins: (0..BINNED_UNITS).map(bin).collect(),
            parked: Default::default(),
            parked_turn: AtomicU32::new(0),
            parked_large: Parked::default(),
            last_large: AtomicU64::new(0),
            counts,
        }
    }

    /// Whose cache it is.
    #[inline]
    pub fn heap(&self) -> &Arc<Heap> {
        &self.heap
    }

    /// The cache's thread goes in, if it is not shut out; for its own thread alone, as all that follows
    /// up to [`Cache::take_from`].
    #[inline]
    pub fn enter(&self) -> Option<Inside<'_>> {
        self.gate.enter()
    }

    /// The thread begins work on the heap outside the gate: until [`Cache::end_work`] whoever has
    /// retired the heap leaves it as it is. What the thread reads next tells it whether it is retired.
    pub fn begin_work(&self) {
        self.busy.store(true, Relaxed);
        // For the fence in it: who shuts the gate for good looks for work afterwards.
        drop(self.gate.enter());
    }

    /// [`Cache::begin_work`] for a thread that has gone in: it comes out at work.
    pub fn come_out_to_work(&self, inside: Inside) {
        self.busy.store(true, Relaxed);
        drop(inside);
    }

    /// See [`Cache::begin_work`].
    pub fn end_work(&self) {
        self.busy.store(false, Release);
    }

    /// Whether the cache's thread is at work, for any thread once the gate was shut for good.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Acquire)
    }

    /// A freed block of just this size, for a thread that has gone in.
    #[inline]
    pub fn take_inside(&self, _: &Inside, units: u64) -> Option<u64> {
        if units <= BINNED_UNITS {
            let bin = &self.bins[units as usize - 1];
            let last = bin.count.load(Relaxed).checked_sub(1)?;
            bin.count.store(last, Relaxed);
            return Some(bin.slots[last as usize % BIN_SLOTS].load(Relaxed));
        }
        self.take_parked(units)
    }

    /// Puts blocks of `units`, at most [`bin_room`], into the empty bin of that size.
    pub fn fill_inside(&self, _: &Inside, units: u64, blocks: &[u64]) {
        let bin = &self.bins[units as usize - 1];
        debug_assert!(bin.count.load(Relaxed) == 0 && blocks.len() <= BIN_SLOTS);
        for (slot, address) in bin.slots.iter().zip(blocks) {
            slot.store(*address, Relaxed);
        }
        bin.count.store(blocks.len() as u32, Relaxed);
    }

    fn take_parked(&self, units: u64) -> Option<u64> {
        let mut places = match units < LARGE_UNITS {
            true => self.parked.iter(),
            false => std::slice::from_ref(&self.parked_large).iter(),
        };
        let place = places.find(|place| place.units.load(Relaxed) == units)?;
        Some(place.swap(0, 0)?.address)
    }

    /// A block was given out.
    #[inline]
    pub fn gave_out(&self, address: u64, units: u64) {
        if units >= LARGE_UNITS {
            self.last_large.store(address, Relaxed);
        }
    }

    /// Keeps a freed block.
    #[inline]
    pub fn keep(&self, address: u64, units: u64) -> Kept {
        match self.gate.enter() {
            Some(inside) => self.keep_inside(&inside, address, units),
            None => Kept::No,
        }
    }

    /// [`Cache::keep`] for a thread that has gone in.
    #[inline]
    pub fn keep_inside(&self, _: &Inside, address: u64, units: u64) -> Kept {
        if units <= BINNED_UNITS {
            let bin = &self.bins[units as usize - 1];
            let count = bin.count.load(Relaxed);
            if count >= bin_room(units) {
                return Kept::No;
            }
            bin.slots[count as usize % BIN_SLOTS].store(address, Relaxed);
            bin.count.store(count + 1, Relaxed);
            return Kept::Yes;
        }
        let place = match units < LARGE_UNITS {
            true => {
                let turn = self.parked_turn.load(Relaxed) as usize;
                self.parked_turn
                    .store((turn as u32).wrapping_add(1), Relaxed);
                &self.parked[turn % PARKED]
            }
            false if self.last_large.load(Relaxed) == address => &self.parked_large,
            false => return Kept::No,
        };
        (place.swap(address, units)).map_or(Kept::Yes, Kept::InsteadOf)
    }

    /// Keeps a freed block of a size that has a bin with room.
    pub fn keep_small(&self, held: Held) -> bool {
        held.units <= BINNED_UNITS && self.keep(held.address, held.units) == Kept::Yes
    }

    /// Whether the heap's freed blocks may still be used by any work.
    #[inline]
    pub fn has_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Keeps such a block, for a thread that has gone in; whether it is time to hand those over.
    #[inline]
    pub fn wait_inside(&self, _: &Inside, address: u64, word: Word) -> bool {
        (self.waiting.as_ref()).is_some_and(|waiting| waiting.add(address, word))
    }

    /// How many such blocks there are, and their bytes; a moment's reading.
    pub fn waiting(&self) -> (u64, u64) {
        (self.waiting.as_ref()).map_or((0, 0), |waiting| (waiting.blocks(), waiting.bytes()))
    }

    /// Takes the freed blocks that any work may still use.
    pub fn take_waiting(&self) -> Vec<Block> {
        let mut taken = Vec::new();
        if let (Some(waiting), Some(_inside)) = (&self.waiting, self.gate.enter()) {
            waiting.take(&mut taken);
        }
        taken
    }

    /// The large block that waits for a request of just its size.
    pub fn take_large(&self) -> Option<Held> {
        let inside = self.gate.enter()?;
        self.take_large_inside(&inside)
    }

    /// [`Cache::take_large`] for a thread that has gone in.
    pub fn take_large_inside(&self, _: &Inside) -> Option<Held> {
        self.parked_large.swap(0, 0)
    }

    /// Takes most of what a bin holds, to make room.
    pub fn take_most(&self, units: u64, into: &mut Batch) {
        let Some(_inside) = self.gate.enter() else {
            return;
        };
        let bin = &self.bins[units as usize - 1];
        let count = bin.count.load(Relaxed) as usize;
        let kept = (count / 4).min(BIN_KEPT);
        // The oldest go: the youngest are warm.
        for slot in 0..count {
            let address = bin.slots[slot].load(Relaxed);
            match slot < count - kept {
                true => assert!(
                    into.push(address),
                    "a batch has room for what a bin gives away"
                ),
                false => bin.slots[slot + kept - count].store(address, Relaxed),
            }
        }
        bin.count.store(kept as u32, Relaxed);
    }

    /// Takes the small blocks that the thread keeps of this heap.
    pub fn take_small(&self, into: &mut Vec<Held>) {
        if let Some(_inside) = self.gate.enter() {
            self.empty_small(into);
        }
    }

    /// Shuts the thread out until the result is dropped, and empties the cache.
    pub fn shut(&self, into: &mut Emptied) -> Shut<'_> {
        let shut = self.gate.shut(linux::barrier_on_all_threads);
        self.empty_small(&mut into.free);
        into.free.extend(self.parked_large.swap(0, 0));
        if let Some(waiting) = &self.waiting {
            waiting.take(&mut into.waiting);
        }
        shut
    }

    /// Takes everything from another thread, one at a time. `is_final` closes the cache for good.
    pub fn take_from(&self, is_final: bool, into: &mut Emptied) {
        let shut = self.shut(into);
        if is_final {
            Gate::shut_for_good(shut);
        }
    }

    fn empty_small(&self, into: &mut Vec<Held>) {
        for (bin, units) in self.bins.iter().zip(1..) {
            let count = bin.count.load(Relaxed) as usize;
            let addresses = bin.slots[..count].iter().map(|slot| slot.load(Relaxed));
            into.extend(addresses.map(|address| Held { address, units }));
            bin.count.store(0, Relaxed);
        }
        into.extend(self.parked.iter().filter_map(|place| place.swap(0, 0)));
    }

    /// Bytes that the cache holds; a moment's reading.
    pub fn held_bytes(&self) -> u64 {
        let binned: u64 = (self.bins.iter().zip(1..))
            .map(|(bin, units)| u64::from(bin.count.load(Relaxed)) * units * UNIT)
            .sum();
        let parked = self.parked.iter().chain([&self.parked_large]);
        binned
            + self.waiting().1
            + parked
                .map(|place| place.units.load(Relaxed) * UNIT)
                .sum::<u64>()
    }
}
