//! Which owner an address belongs to: exact addresses for frees, addresses inside for questions
//! about them. Sharded by address, so that threads rarely meet.

use super::sync::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Enough that sixteen threads seldom want the same one.
const SHARDS: usize = 64;

/// A map from disjoint address ranges to their owners.
pub struct Ownership<T> {
    shards: [Mutex<BTreeMap<u64, Entry<T>>>; SHARDS],
}

struct Entry<T> {
    bytes: u64,
    owner: T,
}

impl<T> Default for Ownership<T> {
    fn default() -> Self {
        Ownership {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl<T> Ownership<T> {
    /// Records the owner of `bytes` at `address`; gives the owner back if the address has one.
    pub fn insert(&self, address: u64, bytes: u64, owner: T) -> Result<(), T> {
        let mut shard = lock(self.shard(address));
        if shard.contains_key(&address) {
            return Err(owner);
        }
        shard.insert(address, Entry { bytes, owner });
        Ok(())
    }

    /// Removes and returns the owner of the range that begins at `address`, if `wanted` agrees.
    pub fn remove_if(&self, address: u64, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut shard = lock(self.shard(address));
        if !wanted(&shard.get(&address)?.owner) {
            return None;
        }
        shard.remove(&address).map(|entry| entry.owner)
    }

    /// Lets `change` see and change the owner of the range that begins at `address`.
    pub fn with<R>(&self, address: u64, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        lock(self.shard(address))
            .get_mut(&address)
            .map(|entry| change(&mut entry.owner))
    }

    /// Lets `change` see and change every owner, a shard at a time.
    pub fn for_each(&self, mut change: impl FnMut(&mut T)) {
        for shard in &self.shards {
            for entry in lock(shard).values_mut() {
                change(&mut entry.owner);
            }
        }
    }

    /// Where the ranges begin whose owners are `wanted`.
    pub fn addresses(&self, wanted: impl Fn(&T) -> bool) -> Vec<u64> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            let all = shard.iter().filter(|(_, entry)| wanted(&entry.owner));
            found.extend(all.map(|(address, _)| *address));
        }
        found
    }

    /// The beginning and length of the range that `address` lies in. Looks at every shard: for
    /// questions off the hot path.
    pub fn range_of(&self, address: u64) -> Option<(u64, u64)> {
        self.shards.iter().find_map(|shard| {
            let shard = lock(shard);
            let (begin, entry) = shard.range(..=address).next_back()?;
            (address - begin < entry.bytes.max(1)).then_some((*begin, entry.bytes))
        })
    }

    /// How many ranges are recorded.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, address: u64) -> &Mutex<BTreeMap<u64, Entry<T>>> {
        // Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4): neighbours spread.
        let hash = (address >> 9).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.shards[(hash >> 58) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn addresses_inside_find_their_range() {
        let map = Ownership::default();
        map.insert(0x1000, 0x800, 'a').unwrap();
        map.insert(0x1800, 0x800, 'b').unwrap();
        assert_eq!(map.range_of(0x17ff), Some((0x1000, 0x800)));
        assert_eq!(map.range_of(0x1800), Some((0x1800, 0x800)));
        assert_eq!(map.range_of(0x2000), None);
        assert_eq!(map.range_of(0xfff), None);
        assert_eq!(map.insert(0x1000, 1, 'c'), Err('c'));
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(steps in proptest::collection::vec((0u64..64, any::<bool>()), 1..200)) {
            let map = Ownership::default();
            let mut model: HashMap<u64, usize> = HashMap::new();
            for (step, (slot, insert)) in steps.into_iter().enumerate() {
                let address = slot << 9;
                if insert {
                    prop_assert_eq!(map.insert(address, 512, step).is_ok(), !model.contains_key(&address));
                    model.entry(address).or_insert(step);
                } else {
                    prop_assert_eq!(map.remove_if(address, |_| true), model.remove(&address));
                }
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.range_of(address + 511).is_some(), model.contains_key(&address));
            }
        }
    }
}
