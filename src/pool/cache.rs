//! What one thread keeps of one heap: freed blocks that the same thread can have again without a lock
//! or an atomic operation, and the counts of what it took and gave back. Only its thread goes in;
//! whoever needs the memory shuts the gate and empties it.

use super::heap::Heap;
use crate::core::gate::Gate;
use crate::core::radix::UNIT;
use crate::sys::linux;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Blocks of up to so many units have a bin for each size.
pub const BINNED_UNITS: u64 = 64;
const BIN_SLOTS: usize = 32;
/// A bin keeps at most so many bytes.
const BIN_BYTES: u64 = 128 << 10;
/// Larger blocks wait in one short list for a request of just their size; ...
const PARKED: usize = 8;
/// ... of those that share an arena only the last, since what waits is not where the next block would
/// best go.
const PARKED_LARGE: usize = 1;

/// Freed blocks of one size, last in first out.
struct Bin {
    count: AtomicU32,
    slots: [AtomicU64; BIN_SLOTS],
}

/// How many blocks of a size a bin takes.
fn bin_room(units: u64) -> u32 {
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

/// The cache of a thread for a heap.
pub struct Cache {
    heap: Arc<Heap>,
    gate: Gate,
    bins: Box<[Bin]>,
    parked_count: AtomicU32,
    parked: [(AtomicU64, AtomicU64); PARKED],
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
    /// Blocks given back.
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
        bump(&self.given, 1);
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
        Cache {
            heap,
            gate: Gate::new(linux::has_barrier_on_all_threads()),
            bins: (0..BINNED_UNITS).map(bin).collect(),
            parked_count: AtomicU32::new(0),
            parked: Default::default(),
            counts,
        }
    }

    /// Whose cache it is.
    #[inline]
    pub fn heap(&self) -> &Arc<Heap> {
        &self.heap
    }

    /// A freed block of just this size. Only for the cache's own thread, as the next three.
    #[inline]
    pub fn take(&self, units: u64) -> Option<u64> {
        let _inside = self.gate.enter()?;
        if units <= BINNED_UNITS {
            let bin = &self.bins[units as usize - 1];
            let last = bin.count.load(Relaxed).checked_sub(1)?;
            bin.count.store(last, Relaxed);
            return Some(bin.slots[last as usize % BIN_SLOTS].load(Relaxed));
        }
        self.take_parked(units)
    }

    fn take_parked(&self, units: u64) -> Option<u64> {
        let count = self.parked_count.load(Relaxed) as usize;
        let index = (0..count.min(PARKED))
            .rev()
            .find(|index| self.parked[*index].1.load(Relaxed) == units)?;
        let address = self.parked[index].0.load(Relaxed);
        let last = &self.parked[count - 1];
        self.parked[index].0.store(last.0.load(Relaxed), Relaxed);
        self.parked[index].1.store(last.1.load(Relaxed), Relaxed);
        self.parked_count.store(count as u32 - 1, Relaxed);
        Some(address)
    }

    /// Keeps a freed block; no where there is no room, or the thread is shut out.
    #[inline]
    pub fn keep(&self, address: u64, units: u64) -> bool {
        let Some(_inside) = self.gate.enter() else {
            return false;
        };
        if units <= BINNED_UNITS {
            let bin = &self.bins[units as usize - 1];
            let count = bin.count.load(Relaxed);
            if count >= bin_room(units) {
                return false;
            }
            bin.slots[count as usize % BIN_SLOTS].store(address, Relaxed);
            bin.count.store(count + 1, Relaxed);
            return true;
        }
        let count = self.parked_count.load(Relaxed) as usize;
        let room = match units < super::arena::LARGE_UNITS {
            true => PARKED,
            false => PARKED_LARGE,
        };
        if count >= room {
            return false;
        }
        self.parked[count].0.store(address, Relaxed);
        self.parked[count].1.store(units, Relaxed);
        self.parked_count.store(count as u32 + 1, Relaxed);
        true
    }

    /// Takes half of what a bin holds, to make room.
    pub fn take_half(&self, units: u64, into: &mut Vec<Held>) {
        let Some(_inside) = self.gate.enter() else {
            return;
        };
        let bin = &self.bins[units as usize - 1];
        let count = bin.count.load(Relaxed) as usize;
        let kept = count / 2;
        // The oldest go: the youngest are warm.
        for slot in 0..count {
            let address = bin.slots[slot].load(Relaxed);
            match slot < count - kept {
                true => into.push(Held { address, units }),
                false => bin.slots[slot + kept - count].store(address, Relaxed),
            }
        }
        bin.count.store(kept as u32, Relaxed);
    }

    /// Takes the blocks too large for a bin.
    pub fn take_parked_all(&self, into: &mut Vec<Held>) {
        if let Some(_inside) = self.gate.enter() {
            self.empty_parked(|_| true, into);
        }
    }

    /// Takes everything the thread keeps of this heap in small blocks, large ones, or both.
    pub fn take_all(&self, small: bool, large: bool, into: &mut Vec<Held>) {
        if let Some(_inside) = self.gate.enter() {
            self.empty(small, large, into);
        }
    }

    /// The same from another thread, one at a time. `is_final` closes the cache for good.
    pub fn take_from(&self, is_final: bool, into: &mut Vec<Held>) {
        let shut = self.gate.shut(linux::barrier_on_all_threads);
        self.empty(true, true, into);
        if is_final {
            Gate::shut_for_good(shut);
        }
    }

    fn empty(&self, small: bool, large: bool, into: &mut Vec<Held>) {
        let is_wanted = |units: u64| match units < super::arena::LARGE_UNITS {
            true => small,
            false => large,
        };
        if small {
            for (bin, units) in self.bins.iter().zip(1..) {
                let count = bin.count.load(Relaxed) as usize;
                let addresses = bin.slots[..count].iter().map(|slot| slot.load(Relaxed));
                into.extend(addresses.map(|address| Held { address, units }));
                bin.count.store(0, Relaxed);
            }
        }
        self.empty_parked(is_wanted, into);
    }

    fn empty_parked(&self, is_wanted: impl Fn(u64) -> bool, into: &mut Vec<Held>) {
        let count = self.parked_count.load(Relaxed) as usize;
        let mut kept = 0;
        for slot in 0..count {
            let (address, units) = &self.parked[slot];
            let (address, units) = (address.load(Relaxed), units.load(Relaxed));
            if is_wanted(units) {
                into.push(Held { address, units });
            } else {
                self.parked[kept].0.store(address, Relaxed);
                self.parked[kept].1.store(units, Relaxed);
                kept += 1;
            }
        }
        self.parked_count.store(kept as u32, Relaxed);
    }

    /// Bytes that the cache holds; a moment's reading.
    pub fn held_bytes(&self) -> u64 {
        let binned: u64 = (self.bins.iter().zip(1..))
            .map(|(bin, units)| u64::from(bin.count.load(Relaxed)) * units * UNIT)
            .sum();
        let parked = (self.parked_count.load(Relaxed) as usize).min(PARKED);
        let parked = self.parked[..parked].iter();
        binned
            + parked
                .map(|(_, units)| units.load(Relaxed) * UNIT)
                .sum::<u64>()
    }
}
