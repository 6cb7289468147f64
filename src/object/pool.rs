//! The pool: objects made and freed in batches, references and pins counted.

use super::pins::Pins;
use super::record::Records;
use super::shelf::Shelves;
use super::stock::{GRANULE, Stock};
use super::word::Holders;
use crate::core::size::Align;
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::source::slab::{self, Slab};
use crate::sys::pages::HUGE_PAGE;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// An object: which record it has, and which use of it this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Object(u64);

/// Pools, so that an object of one is none of another.
static POOLS: AtomicU64 = AtomicU64::new(0);

impl Object {
    /// Bits of a handle, lowest first: which use of the record, the record, the pool.
    const USE_BITS: u32 = 21;
    const INDEX_BITS: u32 = 33;
    const POOL_AT: u32 = Object::USE_BITS + Object::INDEX_BITS;

    pub(super) fn new(pool: u64, index: u32, uses: u32) -> Object {
        let record = (u64::from(index) + 1) << Object::USE_BITS;
        Object(pool << Object::POOL_AT | record | u64::from(uses))
    }

    /// As an integer above 0.
    pub fn get(self) -> u64 {
        self.0
    }

    /// Of an integer, whatever it is.
    pub fn from_raw(raw: u64) -> Object {
        Object(raw)
    }

    pub(super) fn index(self) -> Option<u32> {
        let record = self.0 >> Object::USE_BITS & ((1 << Object::INDEX_BITS) - 1);
        u32::try_from(record.checked_sub(1)?).ok()
    }

    pub(super) fn pool(self) -> u64 {
        self.0 >> Object::POOL_AT
    }

    pub(super) fn uses(self) -> u32 {
        self.0 as u32 & ((1 << Object::USE_BITS) - 1)
    }
}

/// What the objects' memory is.
pub enum Memory {
    /// That of a slab, as far as it has grown.
    Slab(Arc<Slab>),
    /// None: addresses from 0 on, as many as [`ObjectPool::extend`] says.
    Addresses,
}

/// Why a batch was not made.
#[derive(Debug)]
pub struct Shortage {
    /// How many objects of that size there would have been memory for.
    pub feasible: usize,
    /// What was wrong.
    pub error: Error,
}

/// How much is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of objects.
    pub used: u64,
    /// Bytes that there are.
    pub total: u64,
    /// The largest piece that is free.
    pub largest: u64,
    /// Objects that somebody holds or still sees.
    pub objects: u64,
}

/// Why a batch is not complete.
enum Missing {
    Closed(Error),
    Memory {
        feasible: usize,
        /// How many parts of the slab were known.
        parts: usize,
    },
}

/// A shelf holds at most this part of all memory.
const SHELF_PART: u64 = 256;

/// Objects on one memory. Any thread.
pub struct ObjectPool {
    pub(super) shelves: Shelves,
    pub(super) stock: Mutex<Stock>,
    pub(super) records: Records,
    pub(super) pins: Mutex<Pins>,
    /// Gone once the pool is closed: who remembers the pool must not keep the memory.
    slab: Mutex<Option<Arc<Slab>>>,
    has_memory: bool,
    /// Of ten bits: after a thousand pools numbers come again.
    pub(super) number: u64,
    align: Align,
    /// The most that waits on a shelf.
    pub(super) most_idle: AtomicU64,
}

impl ObjectPool {
    /// A pool whose objects' addresses and lengths are multiples of `align`, a power of two from 512 on; on a slab at
    /// most 2 MiB.
    pub fn new(operation: &'static str, memory: Memory, align: u64) -> Result<ObjectPool> {
        let most = match &memory {
            // Less than 2 MiB is aligned to less.
            Memory::Slab(slab) => HUGE_PAGE.min(1 << slab.address().trailing_zeros()),
            Memory::Addresses => 1 << 40,
        };
        let align = (Align::new(align))
            .filter(|align| (GRANULE.get()..=most).contains(&align.get()))
            .ok_or_else(|| {
                let detail = format!("an alignment of {align} bytes");
                Error::invalid(operation, detail).advice(format!(
                    "It is a power of two from {} to {most}",
                    GRANULE.get()
                ))
            })?;
        let pool = ObjectPool {
            shelves: Shelves::default(),
            stock: Mutex::new(Stock::new()),
            records: Records::default(),
            pins: Mutex::default(),
            number: POOLS.fetch_add(1, Ordering::Relaxed) & 1023,
            has_memory: matches!(memory, Memory::Slab(_)),
            slab: Mutex::new(match memory {
                Memory::Slab(slab) => Some(slab),
                Memory::Addresses => None,
            }),
            align,
            most_idle: AtomicU64::new(0),
        };
        pool.adopt(&mut lock(&pool.stock));
        Ok(pool)
    }

    /// What objects' addresses and lengths are multiples of.
    pub fn align(&self) -> u64 {
        self.align.get()
    }

    /// The slab that it is on, until it is closed.
    pub fn slab(&self) -> Option<Arc<Slab>> {
        lock(&self.slab).clone()
    }

    /// Takes over what the slab has grown by; whether it had.
    pub(super) fn adopt(&self, stock: &mut Stock) -> bool {
        let Some(slab) = self.slab() else {
            return false;
        };
        let parts = slab.parts_from(stock.parts);
        for part in &parts {
            stock.add(part.address, part.bytes);
        }
        stock.parts += parts.len();
        self.bound_shelves(stock);
        !parts.is_empty()
    }

    fn bound_shelves(&self, stock: &Stock) {
        let most = stock.total / SHELF_PART;
        self.most_idle.store(most, Ordering::Relaxed);
    }

    /// Adds addresses behind the last, to a pool that has no memory.
    pub fn extend(&self, operation: &'static str, bytes: u64) -> Result<()> {
        let mut stock = lock(&self.stock);
        let is_possible = !self.has_memory
            && bytes > 0
            && GRANULE.divides(bytes)
            && stock
                .total
                .checked_add(bytes)
                .is_some_and(|end| end < 1 << 62);
        if !is_possible || stock.is_closed {
            return Err(Error::invalid(operation, format!("{bytes} more bytes"))
                .advice("A pool on a slab grows with it; addresses grow by multiples of 512"));
        }
        stock.extend(bytes);
        self.bound_shelves(&stock);
        Ok(())
    }

    /// Makes as many objects of `bytes` as `found` is called for: all or none. Each has one reference, its
    /// maker's, and an address. Where memory has run out and the slab grows, waits for it until the deadline, which is asked
    /// for only then.
    pub fn allocate(
        &self,
        operation: &'static str,
        bytes: u64,
        count: usize,
        deadline: impl Fn() -> Option<Instant>,
        mut found: impl FnMut(usize, Object, u64),
    ) -> std::result::Result<(), Shortage> {
        let nothing = |error| Shortage { feasible: 0, error };
        if count == 0 {
            return Ok(());
        }
        let size = self.size(operation, bytes).map_err(nothing)?;
        let (mut tries, mut until) = (0, None);
        loop {
            let mut lists = self.shelves.own();
            if count == 1 {
                if let Some(number) = lists.take(size) {
                    let (object, address) = self.begin(number);
                    found(0, object, address);
                    return Ok(());
                }
            }
            let numbers = lists.take_many(size, count);
            let (feasible, parts) = match self.complete(operation, numbers, size, count) {
                Ok(numbers) => {
                    for (place, number) in numbers.into_iter().enumerate() {
                        let (object, address) = self.begin(number);
                        found(place, object, address);
                    }
                    return Ok(());
                }
                Err(Missing::Closed(error)) => return Err(nothing(error)),
                Err(Missing::Memory { feasible, parts }) => (feasible, parts),
            };
            drop(lists);
            tries += 1;
            if tries == 1 {
                until = deadline();
                self.sweep();
            } else if !self.can_ever(size, count) || !self.wait(size, parts, until) {
                // What was freed meanwhile, or came last, is looked at once more.
                if tries > 2 {
                    return Err(self.shortage(operation, size, count, feasible));
                }
            } else {
                tries = 1;
            }
        }
    }

    /// Whether growing could help.
    fn can_ever(&self, size: u64, count: usize) -> bool {
        let bytes = size.checked_mul(count as u64);
        (self.slab()).is_some_and(|slab| bytes.is_some_and(|bytes| bytes <= slab.bytes()))
    }

    /// Adds what is missing of `count` from the stock, under the lock of a shelf; nothing is taken if that is less.
    fn complete(
        &self,
        operation: &'static str,
        mut numbers: Vec<u32>,
        size: u64,
        count: usize,
    ) -> std::result::Result<Vec<u32>, Missing> {
        if numbers.len() == count {
            return Ok(numbers);
        }
        let mut stock = lock(&self.stock);
        if stock.is_closed {
            stock.put_back(&self.records, numbers);
            return Err(Missing::Closed(closed(operation)));
        }
        numbers.extend(stock.take(&self.records, size, count - numbers.len()));
        if numbers.len() < count && self.adopt(&mut stock) {
            numbers.extend(stock.take(&self.records, size, count - numbers.len()));
        }
        if numbers.len() == count {
            return Ok(numbers);
        }
        let feasible = numbers.len();
        stock.put_back(&self.records, numbers);
        Err(Missing::Memory {
            feasible,
            parts: stock.parts,
        })
    }

    fn size(&self, operation: &'static str, bytes: u64) -> Result<u64> {
        (self.align.round_up(bytes))
            .filter(|size| (1..1 << 62).contains(size))
            .ok_or_else(|| Error::invalid(operation, format!("objects of {bytes} bytes")))
    }

    /// Whether the slab has more than `known` parts, perhaps after a while.
    fn wait(&self, size: u64, known: usize, deadline: Option<Instant>) -> bool {
        self.slab()
            .is_some_and(|slab| slab.wait_for_part(known, size, deadline) > known)
    }

    fn shortage(
        &self,
        operation: &'static str,
        size: u64,
        count: usize,
        feasible: usize,
    ) -> Shortage {
        let Usage {
            used,
            total,
            largest,
            ..
        } = self.usage();
        let mut error = Error::new(Status::OutOfMemory, operation)
            .bytes(size.saturating_mul(count as u64))
            .detail(format!(
                "{count} objects of {size} bytes, of which {feasible} can be had; {used} of {total} bytes are in use, the largest free piece has {largest}"
            ))
            .advice("Free objects, or ask for fewer");
        let progress = self.slab().map(|slab| slab.progress());
        if let Some(failure) = progress.and_then(|progress| progress.failure) {
            error = error.also(&format!("the slab could not grow on: {failure}"));
        }
        Shortage { feasible, error }
    }

    /// Under the lock of a shelf.
    #[inline]
    fn begin(&self, number: u32) -> (Object, u64) {
        let record = self.records.make(number);
        let word = record.word.load(Ordering::Relaxed);
        // A damaged word is told by the next check; here it begins anew.
        let uses = Holders::of(word, number).map_or(0, |holders| holders.uses);
        let word = Holders::maker(uses).word(number);
        record.word.store(word, Ordering::Release);
        (Object::new(self.number, number, uses), record.memory().0)
    }

    /// What waits on all shelves becomes free memory again.
    pub(super) fn sweep(&self) {
        for mut lists in self.shelves.iter() {
            let numbers = lists.clear();
            lock(&self.stock).put_back(&self.records, numbers);
        }
    }

    /// Gives parts of the slab back that nothing is in use of, from the end, while `least` bytes stay; growing stops.
    /// How many bytes were given back.
    pub fn shrink(&self, operation: &'static str, least: u64) -> Result<u64> {
        let Some(slab) = self.slab() else {
            return Err(Error::invalid(operation, "the pool has no memory"));
        };
        slab.stop_growing();
        self.sweep();
        let mut given_back = 0;
        loop {
            let mut stock = lock(&self.stock);
            self.adopt(&mut stock);
            let last = stock.parts.checked_sub(1).filter(|last| *last > 0);
            let Some(part) = last.and_then(|last| slab.parts_from(last).first().copied()) else {
                return Ok(given_back);
            };
            if stock.total - part.bytes < least || !stock.remove(part.address, part.bytes) {
                return Ok(given_back);
            }
            stock.parts -= 1;
            match slab.give_back_last(least, Some(part.address)) {
                Ok(0) => {
                    // It has grown meanwhile.
                    self.adopt(&mut stock);
                    return Ok(given_back);
                }
                Ok(bytes) => given_back += bytes,
                Err(error) => {
                    // It is still there, and free.
                    self.adopt(&mut stock);
                    return Err(slab::after(given_back, error));
                }
            }
        }
    }

    /// Nothing is given out any more.
    pub fn close(&self) {
        lock(&self.stock).is_closed = true;
        self.sweep();
        lock(&self.slab).take();
    }
}

#[cold]
fn closed(operation: &'static str) -> Error {
    Error::invalid(operation, "the pool is closed")
}
