//! The model beside the table: which chunks back which places of which ranges.

use std::collections::{BTreeMap, BTreeSet};

/// A chunk by its number.
pub type ChunkId = u64;

/// A place of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub chunk: ChunkId,
    pub bytes: u64,
    pub alias: bool,
}

/// What should be reserved and backed.
#[derive(Clone, Default)]
pub struct Model {
    /// First address to length.
    pub ranges: BTreeMap<u64, u64>,
    pub places: BTreeMap<u64, Place>,
    next: ChunkId,
}

impl Model {
    /// Whether nothing backs a stretch, and a range holds it.
    pub fn is_hole(&self, address: u64, bytes: u64) -> bool {
        let inside = |(base, len): (&u64, &u64)| address + bytes <= base + len;
        let free = |(at, place): (&u64, &Place)| at + place.bytes <= address;
        self.ranges
            .range(..=address)
            .next_back()
            .is_some_and(inside)
            && self
                .places
                .range(..address + bytes)
                .next_back()
                .is_none_or(free)
    }

    /// New chunks; the answer is their places.
    pub fn back(&mut self, address: u64, sizes: &[u64]) -> Vec<u64> {
        let mut at = address;
        let mut made = Vec::new();
        for bytes in sizes {
            self.next += 1;
            let place = Place {
                chunk: self.next,
                bytes: *bytes,
                alias: false,
            };
            self.places.insert(at, place);
            made.push(at);
            at += bytes;
        }
        made
    }

    /// Chunks at other places too.
    pub fn alias(&mut self, from: &[u64], to: u64) {
        let mut at = to;
        for old in from {
            let Some(place) = self.places.get_mut(old) else {
                continue;
            };
            let moved = *place;
            place.alias = true;
            self.places.insert(at, moved);
            at += moved.bytes;
        }
    }

    /// Places gone; the answer is the bytes that nothing names any more.
    pub fn remove(&mut self, places: &[u64]) -> u64 {
        let before = self.bytes();
        for place in places {
            self.places.remove(place);
        }
        before - self.bytes()
    }

    /// Bytes of all chunks.
    pub fn bytes(&self) -> u64 {
        let mut seen = BTreeSet::new();
        let each = self.places.values();
        each.filter(|place| seen.insert(place.chunk))
            .map(|place| place.bytes)
            .sum()
    }

    /// Places that are aliases, or that are not.
    pub fn those(&self, alias: bool) -> Vec<u64> {
        let wanted = self.places.iter().filter(|(_, p)| p.alias == alias);
        wanted.map(|(address, _)| *address).collect()
    }

    /// Whether a range has nothing behind it.
    pub fn is_bare(&self, range: u64) -> bool {
        let end = range + self.ranges.get(&range).copied().unwrap_or(0);
        self.places.range(range..end).next().is_none()
    }
}
