//! From an address to what is known of the block that begins there: a tree with one level for each
//! group of address bits, whose tables are made at their first use and stay. Reading takes three to
//! six loads and no lock, so that any thread can free any block.
//!
//! In a window of addresses no longer than a block, no other block of such a length can begin. So a
//! window of 1 MiB has one entry for a block of 1 MiB or more, wherever in it that begins, and so have
//! the windows of 128 KiB and of 8 KiB in it; only smaller blocks need one for each [`UNIT`]. Few
//! large blocks then touch few cache lines and few pages, however their addresses change: a gigabyte of
//! them costs 160 KiB, and one of the smallest blocks 35 MiB.

use super::sync::{AtomicU32, AtomicU64, OnceBox, Ordering};

/// Beginnings of blocks are multiples of this many bytes.
pub const UNIT: u64 = 512;

/// Addresses of user space on x86-64 and AArch64.
const ADDRESS_BITS: u32 = 48;

/// Bits of an address that pick an entry, from the lowest level up.
const LEAF_BITS: u32 = 4;
const LOW_BITS: u32 = 7;
const MIDDLE_BITS: u32 = 7;
const HIGH_BITS: u32 = 11;
const TOP_BITS: u32 = 10;

const LEAF_ABOVE: u32 = UNIT.trailing_zeros();
const LOW_ABOVE: u32 = LEAF_ABOVE + LEAF_BITS;
const MIDDLE_ABOVE: u32 = LOW_ABOVE + LOW_BITS;
const HIGH_ABOVE: u32 = MIDDLE_ABOVE + MIDDLE_BITS;
const TOP_ABOVE: u32 = HIGH_ABOVE + HIGH_BITS;
const _: () = assert!(TOP_ABOVE + TOP_BITS == ADDRESS_BITS);

/// Windows of 128 KiB stand beside that of 1 MiB which they are in, without a level of their own.
const EIGHTH_BITS: u32 = 3;
const EIGHTH_ABOVE: u32 = MIDDLE_ABOVE - EIGHTH_BITS;

/// From so many units on a block has the entry of its window of 8 KiB, ...
const LOW_UNITS: u64 = 1 << (LOW_ABOVE - LEAF_ABOVE);
/// ... from so many on that of its window of 128 KiB, ...
const EIGHTH_UNITS: u64 = 1 << (EIGHTH_ABOVE - LEAF_ABOVE);
/// ... and from so many on that of its window of 1 MiB.
const MIDDLE_UNITS: u64 = 1 << (MIDDLE_ABOVE - LEAF_ABOVE);

/// What is known of a block.
#[derive(Default)]
pub struct Entry {
    /// 0 while there is no block.
    state: AtomicU64,
    /// For whoever divides the memory up; guarded by that one's lock.
    node: AtomicU32,
    /// Where in the entry's window the block begins, in units.
    begin: AtomicU32,
}

/// A window of addresses: what is known of the one block in it that is no shorter, and of the shorter.
struct Window<T> {
    entry: Entry,
    shorter: OnceBox<T>,
}

impl<T> Default for Window<T> {
    fn default() -> Window<T> {
        Window {
            entry: Entry::default(),
            shorter: OnceBox::new(),
        }
    }
}

type Leaf = [Entry; 1 << LEAF_BITS];

/// Windows of 8 KiB beside each other. Whoever takes a shorter block writes to no entry of these, so
/// entries and ways down do not share cache lines.
#[derive(Default)]
#[repr(align(64))]
struct Row {
    entries: [Entry; 1 << ROW_BITS],
    shorter: [OnceBox<Leaf>; 1 << ROW_BITS],
}

/// Of the bits that pick a window of 8 KiB, those that pick it in its row.
const ROW_BITS: u32 = 4;

type Low = [Row; 1 << (LOW_BITS - ROW_BITS)];
type Middle = [(Window<Low>, [Entry; 1 << EIGHTH_BITS]); 1 << MIDDLE_BITS];
type High = [OnceBox<Middle>; 1 << HIGH_BITS];
type Top = [OnceBox<High>; 1 << TOP_BITS];

/// Where an address is in its window, in units.
fn begin_in(address: u64, window_above: u32) -> u32 {
    ((address >> LEAF_ABOVE) & ((1 << (window_above - LEAF_ABOVE)) - 1)) as u32
}

impl Entry {
    /// The word of the block, 0 where there is none.
    #[inline]
    pub fn state(&self) -> u64 {
        self.state.load(Ordering::Acquire)
    }

    /// Sets the word of a block that nobody else can know of yet.
    #[inline]
    pub fn set(&self, state: u64) {
        self.state.store(state, Ordering::Release);
    }

    /// Changes the word from what was read; what it is instead, if that has changed.
    #[inline]
    pub fn change(&self, from: u64, to: u64) -> Result<(), u64> {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }

    /// The divider's number.
    pub fn node(&self) -> u32 {
        self.node.load(Ordering::Relaxed)
    }

    /// Whether a block begins at so many units of the window. What is read is true for as long as
    /// whoever asks owns the block.
    #[inline]
    fn is_of(&self, begin: u32) -> bool {
        self.state() != 0 && self.begin.load(Ordering::Relaxed) == begin
    }
}

/// The tree.
pub struct Radix {
    top: Box<Top>,
}

fn table<T: Default, const N: usize>() -> Box<[T; N]> {
    // By way of a Vec: an array of this size must not pass over the stack.
    let slots: Vec<T> = (0..N).map(|_| T::default()).collect();
    match slots.into_boxed_slice().try_into() {
        Ok(table) => table,
        Err(_) => unreachable!("the Vec has N slots"),
    }
}

fn index(address: u64, above: u32, bits: u32) -> usize {
    (address >> above) as usize & ((1 << bits) - 1)
}

/// The row of a window of 8 KiB, and its place there.
fn row_of(address: u64) -> (usize, usize) {
    (
        index(address, LOW_ABOVE + ROW_BITS, LOW_BITS - ROW_BITS),
        index(address, LOW_ABOVE, ROW_BITS),
    )
}

impl Default for Radix {
    fn default() -> Radix {
        Radix { top: table() }
    }
}

impl Radix {
    /// The entry of the block that begins at an address, or one whose word is 0; none where no block
    /// began nearby, and for addresses that are none.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&Entry> {
        self.find_and(address, |_| ())
    }

    /// [`Radix::find`] for whoever is going to change the word: `announce` is called with entries of
    /// short blocks before they are read. A cache line that another processor wrote to last then comes
    /// once, to be written to, instead of once to be read and again to be written to.
    #[inline]
    pub fn find_and(&self, address: u64, announce: impl Fn(&Entry)) -> Option<&Entry> {
        if address >> ADDRESS_BITS != 0 || address % UNIT != 0 {
            return None;
        }
        let high = self.top[index(address, TOP_ABOVE, TOP_BITS)].get()?;
        let middle = high[index(address, HIGH_ABOVE, HIGH_BITS)].get()?;
        let (window, eighths) = &middle[index(address, MIDDLE_ABOVE, MIDDLE_BITS)];
        if window.entry.is_of(begin_in(address, MIDDLE_ABOVE)) {
            return Some(&window.entry);
        }
        let eighth = &eighths[index(address, EIGHTH_ABOVE, EIGHTH_BITS)];
        if eighth.is_of(begin_in(address, EIGHTH_ABOVE)) {
            return Some(eighth);
        }
        let (row, at) = row_of(address);
        let row = &window.shorter.get()?[row];
        let entry = &row.entries[at];
        announce(entry);
        if entry.is_of(begin_in(address, LOW_ABOVE)) {
            return Some(entry);
        }
        let entry = &row.shorter[at].get()?[index(address, LEAF_ABOVE, LEAF_BITS)];
        announce(entry);
        Some(entry)
    }

    /// The entry for a block of `units` at an address, whether there is one or not, its tables made
    /// where they are missing. The address must be a multiple of [`UNIT`] in user space, and the
    /// caller's to give out.
    #[inline]
    pub fn entry(&self, address: u64, units: u64) -> &Entry {
        let (window, eighths) = self.middle(address);
        if units >= MIDDLE_UNITS {
            return &window.entry;
        }
        if units >= EIGHTH_UNITS {
            return &eighths[index(address, EIGHTH_ABOVE, EIGHTH_BITS)];
        }
        let (row, at) = row_of(address);
        let row = &window.shorter.get_or_init(table)[row];
        if units >= LOW_UNITS {
            return &row.entries[at];
        }
        let leaf = row.shorter[at].get_or_init(table);
        &leaf[index(address, LEAF_ABOVE, LEAF_BITS)]
    }

    #[inline]
    fn middle(&self, address: u64) -> &(Window<Low>, [Entry; 1 << EIGHTH_BITS]) {
        assert!(
            address >> ADDRESS_BITS == 0 && address % UNIT == 0,
            "{address:#x} cannot be where a block begins"
        );
        let high = self.top[index(address, TOP_ABOVE, TOP_BITS)].get_or_init(table);
        let middle = high[index(address, HIGH_ABOVE, HIGH_BITS)].get_or_init(table);
        &middle[index(address, MIDDLE_ABOVE, MIDDLE_BITS)]
    }

    /// Remembers the divider's number of a block that it gives out and that has no word yet; its entry.
    /// Under the divider's lock.
    pub fn set_node(&self, address: u64, units: u64, node: u32) -> &Entry {
        let entry = self.entry(address, units);
        let begin = match units {
            MIDDLE_UNITS.. => begin_in(address, MIDDLE_ABOVE),
            EIGHTH_UNITS.. => begin_in(address, EIGHTH_ABOVE),
            LOW_UNITS.. => begin_in(address, LOW_ABOVE),
            _ => 0,
        };
        entry.begin.store(begin, Ordering::Relaxed);
        entry.node.store(node, Ordering::Relaxed);
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_is_no_address_of_a_block_has_no_entry() {
        let radix = Radix::default();
        for address in [0, 1, 511, 512, 1 << 48, !511] {
            assert!(radix.find(address).is_none(), "{address:#x}");
        }
        radix.entry((1 << 48) - UNIT, 1).set(7);
        assert_eq!(radix.find((1 << 48) - UNIT).unwrap().state(), 7);
    }

    #[test]
    fn one_of_many_threads_takes_a_block_back() {
        let radix = Radix::default();
        for (round, units) in (1..200u64).zip(
            [1, LOW_UNITS, EIGHTH_UNITS, MIDDLE_UNITS]
                .into_iter()
                .cycle(),
        ) {
            let address = round * UNIT * 131;
            radix.set_node(address, units, 5);
            radix.entry(address, units).set(9);
            let entry = radix.find(address).unwrap();
            assert_eq!((entry.state(), entry.node()), (9, 5));
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

    fn lengths() -> impl Strategy<Value = u64> {
        prop_oneof![
            1..LOW_UNITS,
            LOW_UNITS..LOW_UNITS + 3,
            LOW_UNITS..EIGHTH_UNITS,
            EIGHTH_UNITS - 1..EIGHTH_UNITS + 2,
            EIGHTH_UNITS..MIDDLE_UNITS,
            MIDDLE_UNITS - 2..MIDDLE_UNITS + 3,
            MIDDLE_UNITS..8 * MIDDLE_UNITS,
        ]
    }

    proptest! {
        /// Blocks of any length that do not overlap are told apart, at any address.
        #[test]
        fn agrees_with_a_plain_map(
            steps in proptest::collection::vec((0u64..12 * MIDDLE_UNITS, lengths()), 1..200),
        ) {
            let radix = Radix::default();
            // From the first unit of each block to its length.
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            for (state, (unit, units)) in (1..).zip(steps) {
                let overlapping: Vec<u64> = model
                    .range(..unit + units)
                    .filter(|(first, units)| *first + **units > unit)
                    .map(|(first, _)| *first)
                    .collect();
                for first in overlapping {
                    let units = model.remove(&first).unwrap();
                    let entry = radix.find(first * UNIT).unwrap();
                    prop_assert!(std::ptr::eq(entry, radix.entry(first * UNIT, units)));
                    prop_assert!(entry.change(entry.state(), 0).is_ok());
                    prop_assert_eq!(radix.find(first * UNIT).map_or(0, Entry::state), 0);
                }
                radix.set_node(unit * UNIT, units, state as u32);
                radix.entry(unit * UNIT, units).set(state);
                model.insert(unit, units);
                for (first, units) in &model {
                    let entry = radix.find(first * UNIT).unwrap();
                    prop_assert_eq!(u64::from(entry.node()), entry.state());
                    for beside in [first + 1, first + units / 2, first ^ 1] {
                        let found = radix.find(beside * UNIT).map_or(0, Entry::state);
                        prop_assert_eq!(found != 0, model.contains_key(&beside), "{}", beside);
                    }
                }
            }
        }
    }
}
