//! What one thread has freed of a heap whose blocks any work may still use: they wait here without a lock until they
//! are worth one, and then with the heap's others. Only the cache's thread adds, inside its gate.

use super::word::Word;
use crate::core::sync::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// A freed block, and what it was.
pub type Block = (u64, Word);

/// So many blocks at most.
const SLOTS: usize = 64;

/// Beyond so many bytes they go where other threads see them.
const BYTES: u64 = 8 << 20;

/// The list.
pub struct Waiting {
    count: AtomicU64,
    bytes: AtomicU64,
    slots: Box<[(AtomicU64, AtomicU64)]>,
}

impl Default for Waiting {
    fn default() -> Waiting {
        let slot = |_| (AtomicU64::new(0), AtomicU64::new(0));
        Waiting {
            count: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            slots: (0..SLOTS).map(slot).collect(),
        }
    }
}

impl Waiting {
    /// Adds a block to a list that is not full; whether it is now.
    #[inline]
    pub fn add(&self, address: u64, word: Word) -> bool {
        let count = self.count.load(Relaxed);
        let slot = &self.slots[count as usize % SLOTS];
        slot.0.store(address, Relaxed);
        slot.1.store(word.0, Relaxed);
        let bytes = self.bytes.load(Relaxed) + word.bytes();
        self.bytes.store(bytes, Relaxed);
        self.count.store(count + 1, Release);
        count + 1 == SLOTS as u64 || bytes >= BYTES
    }

    /// Takes all of them.
    pub fn take(&self, into: &mut Vec<Block>) {
        let count = self.count.swap(0, Acquire) as usize;
        self.bytes.store(0, Relaxed);
        let block =
            |slot: &(AtomicU64, AtomicU64)| (slot.0.load(Relaxed), Word(slot.1.load(Relaxed)));
        into.extend(self.slots[..count].iter().map(block));
    }

    /// How many there are; a moment's reading.
    pub fn blocks(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Their bytes; a moment's reading.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}
