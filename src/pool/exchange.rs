//! Small blocks that one thread frees and another allocates go from cache to cache in batches: the
//! heap's free lists see nothing of it, and the lock is taken once a batch.

use super::cache::{BINNED_UNITS, Held};
use crate::core::sync::{AtomicUsize, Mutex, Ordering, lock};

/// So many batches of one size wait at most.
const BATCHES: usize = 8;

/// Freed blocks of one size, by batches.
#[derive(Default)]
struct Shelf {
    batches: Mutex<Vec<Vec<Held>>>,
    /// How many there are: spares those who find none the lock.
    count: AtomicUsize,
}

/// The batches of one heap, a shelf for each size that has a bin.
pub struct Exchange(Vec<Shelf>);

impl Default for Exchange {
    fn default() -> Exchange {
        Exchange((0..BINNED_UNITS).map(|_| Shelf::default()).collect())
    }
}

impl Exchange {
    /// Leaves a batch of blocks of `units`, which have a bin; gives it back where enough wait.
    pub fn put(&self, units: u64, batch: Vec<Held>) -> Option<Vec<Held>> {
        let shelf = &self.0[units as usize - 1];
        let mut batches = lock(&shelf.batches);
        if batches.len() >= BATCHES {
            return Some(batch);
        }
        batches.push(batch);
        shelf.count.store(batches.len(), Ordering::Relaxed);
        None
    }

    /// A batch of blocks of `units`.
    pub fn take(&self, units: u64) -> Option<Vec<Held>> {
        let shelf = self.0.get(units as usize - 1)?;
        if shelf.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut batches = lock(&shelf.batches);
        let batch = batches.pop();
        shelf.count.store(batches.len(), Ordering::Relaxed);
        batch
    }

    /// Everything that waits.
    pub fn take_all(&self, into: &mut Vec<Held>) {
        let filled = |shelf: &&Shelf| shelf.count.load(Ordering::Relaxed) > 0;
        for shelf in self.0.iter().filter(filled) {
            let mut batches = lock(&shelf.batches);
            into.extend(batches.drain(..).flatten());
            shelf.count.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_wait_by_size_and_not_too_many() {
        let exchange = Exchange::default();
        let batch = |address| vec![Held { address, units: 3 }];
        assert!(exchange.take(3).is_none() && exchange.take(BINNED_UNITS + 1).is_none());
        for address in 0..BATCHES as u64 {
            assert!(exchange.put(3, batch(address)).is_none());
        }
        assert_eq!(exchange.put(3, batch(99)), Some(batch(99)));
        assert_eq!(exchange.take(3), Some(batch(BATCHES as u64 - 1)));
        assert!(exchange.take(4).is_none());
        let mut rest = Vec::new();
        exchange.take_all(&mut rest);
        assert_eq!(rest.len(), BATCHES - 1);
        assert!(exchange.take(3).is_none());
    }
}
