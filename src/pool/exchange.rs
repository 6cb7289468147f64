//! Small blocks that one thread frees and another allocates go from cache to cache in batches: the
//! heap's free lists see nothing of it, and the lock is taken once a batch.

use super::cache::{BIN_KEPT, BIN_SLOTS, BINNED_UNITS, Held};
use crate::core::sync::{AtomicUsize, Mutex, Ordering, lock};

/// As many blocks of one size wait at most.
const ROOM: usize = 4 * BIN_SLOTS;

/// Addresses of blocks of one size, as many as a full bin gives away, in the order they were freed in: blocks
/// that lie side by side then more often stay together on their way from thread to thread, and so does what
/// is known of them, several to a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    addresses: [u64; BIN_SLOTS - BIN_KEPT],
    len: usize,
}

impl Batch {
    /// Adds an address, where there is room for it.
    pub fn push(&mut self, address: u64) -> bool {
        let place = self.addresses.get_mut(self.len);
        let Some(place) = place else {
            return false;
        };
        *place = address;
        self.len += 1;
        true
    }

    /// The addresses.
    pub fn addresses(&self) -> &[u64] {
        &self.addresses[..self.len]
    }
}

/// Freed blocks of one size.
#[derive(Default)]
struct Shelf {
    addresses: Mutex<Vec<u64>>,
    /// How many there are: spares those who find none the lock.
    count: AtomicUsize,
}

/// The blocks of one heap that wait, a shelf for each size that has a bin.
pub struct Exchange(Vec<Shelf>);

impl Default for Exchange {
    fn default() -> Exchange {
        Exchange((0..BINNED_UNITS).map(|_| Shelf::default()).collect())
    }
}

impl Exchange {
    /// Leaves blocks of `units`, which have a bin; no where enough wait.
    pub fn put(&self, units: u64, batch: &Batch) -> bool {
        let shelf = &self.0[units as usize - 1];
        let mut waiting = lock(&shelf.addresses);
        if waiting.len() + batch.len > ROOM {
            return false;
        }
        if waiting.capacity() == 0 {
            waiting.reserve_exact(ROOM);
        }
        waiting.extend_from_slice(batch.addresses());
        shelf.count.store(waiting.len(), Ordering::Relaxed);
        true
    }

    /// Blocks of `units`, those left last, to the front of `into`; how many.
    pub fn take(&self, units: u64, into: &mut [u64]) -> usize {
        let Some(shelf) = self.0.get(units as usize - 1) else {
            return 0;
        };
        if shelf.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut waiting = lock(&shelf.addresses);
        let kept = waiting.len().saturating_sub(into.len());
        let taken = waiting.len() - kept;
        into[..taken].copy_from_slice(&waiting[kept..]);
        waiting.truncate(kept);
        shelf.count.store(kept, Ordering::Relaxed);
        taken
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        let is_empty = |shelf: &Shelf| lock(&shelf.addresses).is_empty();
        self.0.iter().all(is_empty)
    }

    /// Everything that waits.
    pub fn take_all(&self, into: &mut Vec<Held>) {
        let filled = |shelf: &Shelf| shelf.count.load(Ordering::Relaxed) > 0;
        for (shelf, units) in self.0.iter().zip(1..).filter(|(shelf, _)| filled(shelf)) {
            let mut waiting = lock(&shelf.addresses);
            into.extend(waiting.drain(..).map(|address| Held { address, units }));
            shelf.count.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_wait_by_size_and_not_too_many() {
        let exchange = Exchange::default();
        let mut batch = Batch::default();
        let mut taken = [0; 2];
        assert_eq!(exchange.take(3, &mut taken), 0);
        assert_eq!(exchange.take(BINNED_UNITS + 1, &mut taken), 0);
        let mut left = 0;
        for address in 1.. {
            if batch.push(address) {
                continue;
            }
            if !exchange.put(3, &batch) {
                break;
            }
            left += batch.addresses().len();
            batch = Batch::default();
            assert!(batch.push(address));
        }
        assert!(left <= ROOM && left + batch.addresses().len() > ROOM);
        assert_eq!(exchange.take(3, &mut taken), 2);
        assert_eq!(taken, [left as u64 - 1, left as u64]);
        assert_eq!(exchange.take(4, &mut taken), 0);
        let mut rest = Vec::new();
        exchange.take_all(&mut rest);
        assert_eq!(rest.len(), left - 2);
        assert!(rest.iter().all(|held| held.units == 3));
        assert_eq!(exchange.take(3, &mut taken), 0);
    }
}
