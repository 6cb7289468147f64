//! Memory given back that waits for an object of the same size.

use crate::core::radix::UNIT;
use crate::sys::spin::{SpinGuard, SpinLock};
use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lengths below 256 KiB are found without hashing.
const SHORT: usize = 512;
/// The most objects of one size on a shelf: a few batches.
const MOST_OF_A_SIZE: usize = 1024;

struct List {
    bytes: u64,
    numbers: Vec<u32>,
}

/// Records by the length of their memory.
pub struct Lists {
    lists: Vec<List>,
    by_bytes: FxHashMap<u64, usize>,
    /// The same for short lengths, by how many units they have, one more than the place.
    by_units: [u32; SHORT],
    /// Which list was used last: the next object is likely to have the same size.
    recent: usize,
    /// Bytes of all of it.
    pub idle: u64,
}

impl Default for Lists {
    fn default() -> Lists {
        Lists {
            lists: Vec::new(),
            by_bytes: FxHashMap::default(),
            by_units: [0; SHORT],
            recent: 0,
            idle: 0,
        }
    }
}

impl Lists {
    #[inline]
    fn find(&mut self, bytes: u64) -> Option<&mut List> {
        let is_it = (self.lists.get(self.recent)).is_some_and(|list| list.bytes == bytes);
        if !is_it {
            self.recent = match self.by_units.get((bytes / UNIT) as usize) {
                Some(place) => (*place as usize).checked_sub(1)?,
                None => *self.by_bytes.get(&bytes)?,
            };
        }
        // Damage must not give out less than was asked for.
        let list = self.lists.get_mut(self.recent);
        list.filter(|list| list.bytes == bytes)
    }

    /// Puts one on the shelf, where there is room: `most` bytes in all.
    #[inline]
    pub fn put(&mut self, number: u32, bytes: u64, most: u64) -> bool {
        if self.idle + bytes > most {
            return false;
        }
        let list = match self.find(bytes) {
            Some(list) => list,
            None => self.add(bytes),
        };
        let has_room = list.numbers.len() < MOST_OF_A_SIZE;
        if has_room {
            list.numbers.push(number);
            self.idle += bytes;
        }
        has_room
    }

    #[cold]
    fn add(&mut self, bytes: u64) -> &mut List {
        let place = self.lists.len();
        self.by_bytes.insert(bytes, place);
        if let Some(short) = self.by_units.get_mut((bytes / UNIT) as usize) {
            *short = place as u32 + 1;
        }
        self.recent = place;
        self.lists.push(List {
            bytes,
            numbers: Vec::new(),
        });
        &mut self.lists[place]
    }

    /// Takes one of that length.
    #[inline]
    pub fn take(&mut self, bytes: u64) -> Option<u32> {
        let number = self.find(bytes)?.numbers.pop()?;
        self.idle -= bytes;
        Some(number)
    }

    /// Takes up to `count`, those that were put there last, in the order in which they were put.
    pub fn take_many(&mut self, bytes: u64, count: usize) -> Vec<u32> {
        let Some(list) = self.find(bytes) else {
            return Vec::new();
        };
        let left = list.numbers.len().saturating_sub(count);
        let taken = list.numbers.split_off(left);
        self.idle -= bytes * taken.len() as u64;
        taken
    }

    /// Takes everything.
    pub fn clear(&mut self) -> Vec<u32> {
        let taken = self.iter().map(|(_, number)| number).collect();
        *self = Lists::default();
        taken
    }

    /// Everything, with the length that it is listed under.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        (self.lists.iter()).flat_map(|list| list.numbers.iter().map(|number| (list.bytes, *number)))
    }

    /// Whether each list is where it is looked for.
    pub fn is_consistent(&self) -> bool {
        let is_found =
            |(place, list): (usize, &List)| self.by_bytes.get(&list.bytes) == Some(&place);
        self.by_bytes.len() == self.lists.len() && self.lists.iter().enumerate().all(is_found)
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.lists.iter().map(|list| list.numbers.len()).sum()
    }

    /// The longest of them.
    pub fn largest(&self) -> u64 {
        let filled = self.lists.iter().filter(|list| !list.numbers.is_empty());
        filled.map(|list| list.bytes).max().unwrap_or(0)
    }
}

/// A cache line or two of its own.
#[derive(Default)]
#[repr(align(128))]
struct Shelf(SpinLock<Lists>);

/// As many shelves as threads are likely to run at once.
pub struct Shelves(Box<[Shelf]>);

impl Default for Shelves {
    fn default() -> Shelves {
        let processors = std::thread::available_parallelism().map_or(4, |count| count.get());
        let count = (2 * processors).next_power_of_two().min(64);
        Shelves((0..count).map(|_| Shelf::default()).collect())
    }
}

static THREADS: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    static NUMBER: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed));
}

impl Shelves {
    /// The calling thread's.
    #[inline]
    pub fn own(&self) -> SpinGuard<'_, Lists> {
        let number = NUMBER.try_with(Cell::get).unwrap_or(0);
        self.0[number & (self.0.len() - 1)].0.lock()
    }

    /// Each, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = SpinGuard<'_, Lists>> {
        self.0.iter().map(|shelf| shelf.0.lock())
    }
}
