//! From an address to what is known of the block that begins there: a tree with one level for each
//! group of address bits, whose tables are made at their first use and stay. Reading takes four
//! loads and no lock, so that any thread can free any block.
//!
//! Only the beginnings of blocks have an entry, one for each [`UNIT`] of addresses that has ever been
//! near one: a large block costs 1.25 KiB of tables where none began nearby, a gigabyte of small ones
//! 33 MiB. The lower tables are small because a block of many MiB makes new ones for itself.

use once_cell::race::OnceBox;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Beginnings of blocks are multiples of this many bytes.
pub const UNIT: u64 = 512;

/// Addresses of user space on x86-64 and AArch64.
const ADDRESS_BITS: u32 = 48;

/// Bits of an address that pick an entry, from the lowest level up.
const LEAF_BITS: u32 = 4;
const LOW_BITS: u32 = 7;
const MIDDLE_BITS: u32 = 14;
const TOP_BITS: u32 = 14;
const UNIT_BITS: u32 = UNIT.trailing_zeros();
const _: () = assert!(UNIT_BITS + LEAF_BITS + LOW_BITS + MIDDLE_BITS + TOP_BITS == ADDRESS_BITS);

type Table<T, const N: usize> = [OnceBox<T>; N];
type Leaf = [Entry; 1 << LEAF_BITS];
type Low = Table<Leaf, { 1 << LOW_BITS }>;
type Middle = Table<Low, { 1 << MIDDLE_BITS }>;
type Top = Table<Middle, { 1 << TOP_BITS }>;

/// What is known of the block that begins at an address.
#[derive(Default)]
pub struct Entry {
    /// 0 while no block begins here.
    state: AtomicU64,
    /// For whoever divides the memory up; guarded by that one's lock.
    node: AtomicU32,
}

impl Entry {
    /// The word of the block, 0 where there is none.
    pub fn state(&self) -> u64 {
        self.state.load(Ordering::Acquire)
    }

    /// A block begins here. Says no if one did already.
    pub fn claim(&self, state: u64) -> bool {
        self.state.swap(state, Ordering::AcqRel) == 0
    }

    /// Sets the word of a block that nobody else can know of yet.
    pub fn set(&self, state: u64) {
        self.state.store(state, Ordering::Release);
    }

    /// Changes the word from what was read; what it is instead, if that has changed.
    pub fn change(&self, from: u64, to: u64) -> Result<(), u64> {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }

    /// The divider's number.
    pub fn node(&self) -> u32 {
        self.node.load(Ordering::Relaxed)
    }

    /// Sets the divider's number, under its lock.
    pub fn set_node(&self, node: u32) {
        self.node.store(node, Ordering::Relaxed);
    }
}

/// The tree.
pub struct Radix {
    top: Box<Top>,
}

fn table<T, const N: usize>() -> Box<Table<T, N>> {
    // By way of a Vec: an array of this size must not pass over the stack.
    let slots: Vec<OnceBox<T>> = (0..N).map(|_| OnceBox::new()).collect();
    match slots.into_boxed_slice().try_into() {
        Ok(table) => table,
        Err(_) => unreachable!("the Vec has N slots"),
    }
}

fn index(address: u64, above: u32, bits: u32) -> usize {
    (address >> above) as usize & ((1 << bits) - 1)
}

const LEAF_ABOVE: u32 = UNIT_BITS;
const LOW_ABOVE: u32 = LEAF_ABOVE + LEAF_BITS;
const MIDDLE_ABOVE: u32 = LOW_ABOVE + LOW_BITS;
const TOP_ABOVE: u32 = MIDDLE_ABOVE + MIDDLE_BITS;

impl Default for Radix {
    fn default() -> Radix {
        Radix { top: table() }
    }
}

impl Radix {
    /// The entry of an address where a block may begin; none where no block ever began nearby, and
    /// for addresses that are none.
    #[inline]
    pub fn get(&self, address: u64) -> Option<&Entry> {
        if address >> ADDRESS_BITS != 0 || address % UNIT != 0 {
            return None;
        }
        let middle = self.top[index(address, TOP_ABOVE, TOP_BITS)].get()?;
        let low = middle[index(address, MIDDLE_ABOVE, MIDDLE_BITS)].get()?;
        let leaf = low[index(address, LOW_ABOVE, LOW_BITS)].get()?;
        Some(&leaf[index(address, LEAF_ABOVE, LEAF_BITS)])
    }

    /// The entry of an address, its tables made where they are missing. The address must be a
    /// multiple of [`UNIT`] in user space.
    #[inline]
    pub fn entry(&self, address: u64) -> &Entry {
        self.get(address).unwrap_or_else(|| self.make(address))
    }

    #[cold]
    fn make(&self, address: u64) -> &Entry {
        assert!(
            address >> ADDRESS_BITS == 0 && address % UNIT == 0,
            "{address:#x} cannot be where a block begins"
        );
        let middle = self.top[index(address, TOP_ABOVE, TOP_BITS)].get_or_init(table);
        let low = middle[index(address, MIDDLE_ABOVE, MIDDLE_BITS)].get_or_init(table);
        let leaf = low[index(address, LOW_ABOVE, LOW_BITS)]
            .get_or_init(|| Box::new(std::array::from_fn(|_| Entry::default())));
        &leaf[index(address, LEAF_ABOVE, LEAF_BITS)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn what_is_no_address_of_a_block_has_no_entry() {
        let radix = Radix::default();
        for address in [0, 1, 511, 512, 1 << 48, !511] {
            assert!(radix.get(address).is_none(), "{address:#x}");
        }
        assert!(radix.entry((1 << 48) - UNIT).claim(7));
        assert_eq!(radix.get((1 << 48) - UNIT).unwrap().state(), 7);
    }

    #[test]
    fn one_of_many_threads_claims_and_one_releases() {
        let radix = Radix::default();
        for round in 1..200u64 {
            let address = round * UNIT * 131;
            let claims: u64 = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| u64::from(radix.entry(address).claim(9))))
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .sum()
            });
            assert_eq!(claims, 1);
            let entry = radix.get(address).unwrap();
            let frees: u64 = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| u64::from(entry.change(9, 0).is_ok())))
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .sum()
            });
            assert_eq!(frees, 1);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(steps in proptest::collection::vec((0u64..1 << 39, 1u64..9), 1..100)) {
            let radix = Radix::default();
            let mut model: HashMap<u64, u64> = HashMap::new();
            for (unit, state) in &steps {
                let address = unit * UNIT;
                radix.entry(address).set(*state);
                model.insert(address, *state);
            }
            for (unit, _) in &steps {
                for address in [unit * UNIT, (unit ^ 1) * UNIT] {
                    let state = radix.get(address).map_or(0, Entry::state);
                    prop_assert_eq!(state, model.get(&address).copied().unwrap_or(0));
                }
            }
        }
    }
}
