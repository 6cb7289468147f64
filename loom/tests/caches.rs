//! Blocks that threads keep and hand on: whatever happens at the same time, each is somewhere once.
#![allow(missing_docs)]

use hbmalloc_loom::pool::cache::{Cache, Held, Kept};
use hbmalloc_loom::pool::exchange::{Batch, Exchange};
use hbmalloc_loom::pool::heap::Heap;
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};

fn each_once(mut found: Vec<u64>, wanted: &[u64]) {
    found.sort_unstable();
    assert_eq!(found, wanted);
}

fn cache() -> Arc<Cache> {
    Arc::new(Cache::new(std::sync::Arc::new(Heap), Default::default()))
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = Some(3);
    builder.check(check);
}

fn emptied_beside(is_final: bool, units: u64) {
    model(move || {
        let cache = cache();
        cache.gave_out(512, units);
        assert_eq!(cache.keep(512, units), Kept::Yes);
        let other = cache.clone();
        let thief = loom::thread::spawn(move || {
            let mut held = Vec::new();
            other.take_from(is_final, &mut held);
            held
        });
        let mut mine = Vec::new();
        cache.gave_out(1024, units);
        match cache.keep(1024, units) {
            Kept::Yes => {}
            Kept::InsteadOf(held) => mine.push(held.address),
            Kept::No => mine.push(1024),
        }
        mine.extend(cache.take(units));
        let held = thief.join().unwrap();
        assert!(held.iter().all(|held| held.units == units));
        mine.extend(held.iter().map(|held| held.address));
        let mut left = Vec::new();
        cache.take_from(true, &mut left);
        mine.extend(left.iter().map(|held| held.address));
        each_once(mine, &[512, 1024]);
        assert_eq!(cache.keep(1536, units), Kept::No);
    });
}

#[test]
fn a_bin_is_emptied_by_another_thread() {
    emptied_beside(false, 1);
}

#[test]
fn the_large_block_is_taken_by_another_thread() {
    emptied_beside(true, 4096);
}

#[test]
fn larger_blocks_are_taken_by_another_thread_for_good() {
    emptied_beside(true, 100);
}

#[test]
fn batches_go_from_thread_to_thread() {
    model(|| {
        let exchange = Arc::new(Exchange::default());
        let batch = |address| {
            let mut batch = Batch::default();
            batch.push(address);
            batch
        };
        assert!(exchange.put(3, &batch(512)));
        let putter = exchange.clone();
        let putter = loom::thread::spawn(move || putter.put(3, &batch(1024)));
        let taker = exchange.clone();
        let taker = loom::thread::spawn(move || taker.take(3).unwrap_or_default());
        let mut found = Vec::new();
        exchange.take_all(&mut found);
        assert!(putter.join().unwrap());
        let held = |address: &u64| Held {
            address: *address,
            units: 3,
        };
        found.extend(taker.join().unwrap().addresses().iter().map(held));
        // All that was put before is seen from here on.
        exchange.take_all(&mut found);
        each_once(
            found.iter().map(|held| held.address).collect(),
            &[512, 1024],
        );
    });
}

/// What who retires a heap sees of a cache that it has shut for good: whether nothing is out.
fn is_done_with(cache: &Cache) -> bool {
    let counts = &cache.counts;
    !cache.is_busy()
        && counts.given.load(Ordering::Acquire) == counts.taken.load(Ordering::Acquire)
        && !cache.is_busy()
}

fn taken(cache: &Cache) -> u64 {
    cache.counts.taken.load(Ordering::Relaxed)
}

/// A request that the cache serves, beside the retirement of its heap.
#[test]
fn a_block_at_hand_is_counted_or_not_had() {
    model(|| {
        let cache = cache();
        assert_eq!(cache.keep(512, 1), Kept::Yes);
        let there = cache.clone();
        let owner = loom::thread::spawn(move || {
            if let Some(inside) = there.enter() {
                if there.take_inside(&inside, 1).is_some() {
                    there.counts.took(100, 512);
                }
            }
        });
        let mut held = Vec::new();
        cache.take_from(true, &mut held);
        let is_done = is_done_with(&cache);
        owner.join().unwrap();
        assert_eq!(is_done, taken(&cache) == 0);
        assert_eq!(is_done, held.len() == 1);
    });
}

/// A request that the cache does not serve, beside the retirement of its heap.
#[test]
fn work_on_a_heap_is_seen_or_not_begun() {
    model(|| {
        let (cache, retired) = (cache(), Arc::new(AtomicBool::new(false)));
        let (there, retired_there) = (cache.clone(), retired.clone());
        let owner = loom::thread::spawn(move || {
            there.begin_work();
            if !retired_there.load(Ordering::Acquire) {
                there.counts.took(100, 512);
            }
            there.end_work();
        });
        retired.store(true, Ordering::Release);
        cache.take_from(true, &mut Vec::new());
        let is_done = is_done_with(&cache);
        owner.join().unwrap();
        assert!(!is_done || taken(&cache) == 0);
    });
}

/// The last block is freed past the cache: who sees it counted sees it back.
#[test]
fn a_block_counted_as_given_back_is_back() {
    model(|| {
        let (cache, is_back) = (cache(), Arc::new(AtomicBool::new(false)));
        cache.counts.took(100, 512);
        cache.take_from(true, &mut Vec::new());
        let (there, is_back_there) = (cache.clone(), is_back.clone());
        let owner = loom::thread::spawn(move || {
            there.begin_work();
            there.counts.gave(100, 512);
            is_back_there.store(true, Ordering::Relaxed);
            there.end_work();
        });
        let is_done = is_done_with(&cache);
        assert!(!is_done || is_back.load(Ordering::Relaxed));
        owner.join().unwrap();
    });
}
