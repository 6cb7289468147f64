//! A thread's caches by whom a request is for. Those asked for last stand in front, where one look finds
//! them; behind is a table that is sparse enough for keys not to crowd, however many there are.

use super::heap::{GraphId, HeapKey};
use std::sync::Arc;

struct Entry<C> {
    instance: u32,
    key: HeapKey,
    cache: Arc<C>,
}

impl<C> Clone for Entry<C> {
    fn clone(&self) -> Entry<C> {
        Entry {
            instance: self.instance,
            key: self.key,
            cache: self.cache.clone(),
        }
    }
}

/// A cache for each key.
pub struct Keys<C> {
    front: Vec<Option<Entry<C>>>,
    /// All of them. Linear probing; never more than a quarter full.
    places: Vec<Option<Entry<C>>>,
    /// 64 less the places' logarithm.
    shift: u32,
    len: usize,
}

const FRONT: usize = 256;
const FIRST_PLACES: usize = 64;

#[inline]
fn front_slot(key: &HeapKey) -> usize {
    let stream = key.stream.raw() as usize;
    let mixed = (stream >> 4)
        ^ (stream >> 10)
        ^ (key.tag as usize)
        ^ ((key.device as usize) << 3)
        ^ (key.allocator as usize)
        ^ (key.order.number() as usize);
    mixed % FRONT
}

fn mixed(key: &HeapKey) -> u64 {
    let graph = match key.graph {
        None => 0,
        Some(GraphId::Pool(number)) => number ^ 1,
        Some(GraphId::Untold(number)) => !number,
        Some(GraphId::Segments) => 2,
    };
    let more = (u64::from(key.tag) << 44) ^ (key.allocator << 32) ^ (key.order.number() << 20);
    let one = key.stream.raw() as u64 ^ more ^ ((key.device as u64) << 60);
    // Multiplying carries every bit into the highest ones, which choose the place.
    (one ^ graph.wrapping_mul(0xd6e8_feb8_6659_fd93)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl<C> Keys<C> {
    /// No keys.
    pub const fn new() -> Keys<C> {
        Keys {
            front: Vec::new(),
            places: Vec::new(),
            shift: 0,
            len: 0,
        }
    }

    /// The cache of a key, if it stands in front.
    #[inline]
    pub fn in_front(&self, instance: u32, key: &HeapKey) -> Option<&Arc<C>> {
        let entry = self.front.get(front_slot(key))?.as_ref()?;
        (entry.instance == instance && entry.key == *key).then_some(&entry.cache)
    }

    /// The cache of a key, which stands in front from here on.
    pub fn find(&mut self, instance: u32, key: &HeapKey) -> Option<&Arc<C>> {
        let found = self.place_of(instance, key)?.clone();
        let slot = self.front.get_mut(front_slot(key))?;
        Some(&slot.insert(found).cache)
    }

    fn place_of(&self, instance: u32, key: &HeapKey) -> Option<&Entry<C>> {
        let mask = self.places.len().wrapping_sub(1);
        let mut at = (mixed(key) >> (self.shift & 63)) as usize;
        loop {
            // Where there are no places there is none of this number either.
            let entry = self.places.get(at & mask)?.as_ref()?;
            if entry.instance == instance && entry.key == *key {
                return Some(entry);
            }
            at += 1;
        }
    }

    /// Adds a cache, in place of the key's former one.
    pub fn insert(&mut self, instance: u32, key: HeapKey, cache: Arc<C>) {
        if 4 * (self.len + 1) > self.places.len() {
            self.rebuild(|_, _| true);
        }
        let entry = Entry {
            instance,
            key,
            cache,
        };
        self.front[front_slot(&key)] = Some(entry.clone());
        self.put(entry);
    }

    /// Keeps the caches that `keeps` says.
    pub fn retain(&mut self, keeps: impl Fn(u32, &C) -> bool) {
        self.rebuild(keeps);
    }

    fn rebuild(&mut self, keeps: impl Fn(u32, &C) -> bool) {
        let entries: Vec<Entry<C>> = std::mem::take(&mut self.places)
            .into_iter()
            .flatten()
            .filter(|entry| keeps(entry.instance, &entry.cache))
            .collect();
        let places = (8 * (entries.len() + 1)).next_power_of_two();
        let places = places.max(FIRST_PLACES);
        self.front.clear();
        self.front.resize_with(FRONT, || None);
        self.places.resize_with(places, || None);
        self.shift = 64 - places.trailing_zeros();
        self.len = 0;
        entries.into_iter().for_each(|entry| self.put(entry));
    }

    fn put(&mut self, entry: Entry<C>) {
        let mask = self.places.len() - 1;
        let mut at = (mixed(&entry.key) >> self.shift) as usize;
        loop {
            let place = &mut self.places[at & mask];
            match place {
                Some(other) if other.instance == entry.instance && other.key == entry.key => {
                    *place = Some(entry);
                    return;
                }
                Some(_) => at += 1,
                None => {
                    *place = Some(entry);
                    self.len += 1;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Stream;
    use crate::pool::order::Order;

    fn key(number: u64) -> HeapKey {
        HeapKey {
            device: (number % 3) as i32,
            stream: Stream::from_raw((number << 20) as usize as _),
            order: match number % 11 {
                0 => Order::EVERYWHERE,
                _ => Order::of(number % 5),
            },
            tag: (number % 7) as u16,
            allocator: number % 2,
            graph: match number % 4 {
                0 => None,
                1 => Some(GraphId::Segments),
                2 => Some(GraphId::Untold(number)),
                _ => Some(GraphId::Pool(number)),
            },
        }
    }

    #[test]
    fn each_key_has_its_own_cache_however_many_there_are() {
        let mut keys = Keys::new();
        assert!(keys.find(0, &key(1)).is_none() && keys.in_front(0, &key(1)).is_none());
        for number in 0..3000 {
            keys.insert(0, key(number), Arc::new(number));
            keys.insert(1, key(number), Arc::new(number + 10_000));
        }
        keys.insert(0, key(17), Arc::new(17_000));
        let expected = |number| match number {
            17 => 17_000,
            other => other,
        };
        for number in 0..3000 {
            assert_eq!(**keys.find(0, &key(number)).unwrap(), expected(number));
            assert_eq!(
                keys.in_front(0, &key(number)).map(|cache| **cache),
                Some(expected(number))
            );
            assert_eq!(**keys.find(1, &key(number)).unwrap(), number + 10_000);
            assert!(keys.in_front(0, &key(number)).is_none());
            assert!(keys.find(2, &key(number)).is_none());
        }
        keys.insert(0, key(18), Arc::new(18));
        keys.retain(|instance, cache| instance == 0 && cache % 2 == 1);
        for number in 0..3000 {
            let found = keys.find(0, &key(number)).map(|cache| **cache);
            let odd = (number % 2 == 1 && number != 17).then_some(number);
            assert_eq!(found, odd);
            assert!(keys.find(1, &key(number)).is_none());
        }
        assert!(keys.len < 1500 && 4 * keys.len < keys.places.len());
    }

    /// A table with streams at distances that are powers of two, and with many graphs on one stream.
    #[test]
    fn regular_keys_do_not_crowd() {
        let plain = HeapKey {
            graph: None,
            ..key(0)
        };
        let on = |stream: u64| HeapKey {
            stream: Stream::from_raw(stream as usize as _),
            ..plain
        };
        let mut rows: Vec<Vec<HeapKey>> = (4..40)
            .map(|distance| (1..200u64).map(|number| on(number << distance)).collect())
            .collect();
        let of_graph = |graph| HeapKey {
            graph: Some(graph),
            ..plain
        };
        for graph in [GraphId::Pool, GraphId::Untold] {
            rows.push((0..200).map(|number| of_graph(graph(number))).collect());
        }
        rows.push((0..200).map(|tag| HeapKey { tag, ..plain }).collect());
        let of_thread = |thread| HeapKey {
            order: Order::of(thread),
            ..plain
        };
        rows.push((0..200).map(of_thread).collect());
        for row in rows {
            let mut keys = Keys::new();
            row.iter()
                .for_each(|key| keys.insert(0, *key, Arc::new(())));
            let mut run = 0;
            for place in &keys.places {
                run = if place.is_some() { run + 1 } else { 0 };
                assert!(run <= 12, "{run} places in a row for {:?}", row[1]);
            }
        }
    }
}
