//! Blocks that threads keep and hand on: whatever happens at the same time, each is somewhere once.
#![allow(missing_docs)]

use hbmalloc_loom::pool::cache::{Cache, Emptied, Held, Kept};
use hbmalloc_loom::pool::ending::Ending;
use hbmalloc_loom::pool::exchange::{Batch, Exchange};
use hbmalloc_loom::pool::heap::{Heap, HeapKey};
use hbmalloc_loom::pool::order::Order;
use hbmalloc_loom::pool::word::Word;
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};

fn each_once(mut found: Vec<u64>, wanted: &[u64]) {
    found.sort_unstable();
    assert_eq!(found, wanted);
}

fn cache() -> Arc<Cache> {
    cache_of(Order::STREAM)
}

fn cache_of(order: Order) -> Arc<Cache> {
    let key = HeapKey { order };
    let heap = std::sync::Arc::new(Heap { key });
    Arc::new(Cache::new(heap, Default::default()))
}

fn take(cache: &Cache, is_final: bool) -> Vec<Held> {
    let mut emptied = Emptied::default();
    cache.take_from(is_final, &mut emptied);
    assert!(emptied.waiting.is_empty());
    emptied.free
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
        let thief = loom::thread::spawn(move || take(&other, is_final));
        let mut mine = Vec::new();
        cache.gave_out(1024, units);
        match cache.keep(1024, units) {
            Kept::Yes => {}
            Kept::InsteadOf(held) => mine.push(held.address),
            Kept::No => mine.push(1024),
        }
        let inside = cache.enter();
        mine.extend(inside.and_then(|inside| cache.take_inside(&inside, units)));
        let held = thief.join().unwrap();
        assert!(held.iter().all(|held| held.units == units));
        mine.extend(held.iter().map(|held| held.address));
        let left = take(&cache, true);
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

/// Its thread adds blocks and hands them over, while another one empties the cache.
#[test]
fn blocks_that_wait_are_taken_once() {
    model(|| {
        let cache = cache_of(Order::EVERYWHERE);
        let word = Word::new(0, 512).unordered();
        let other = cache.clone();
        let thief = loom::thread::spawn(move || {
            let mut emptied = Emptied::default();
            other.take_from(true, &mut emptied);
            emptied.waiting
        });
        let mut found = Vec::new();
        for address in [512, 1024] {
            match cache.enter() {
                Some(inside) => assert!(!cache.wait_inside(&inside, address, word)),
                None => found.push((address, word)),
            }
        }
        found.extend(cache.take_waiting());
        found.extend(thief.join().unwrap());
        assert!(found.iter().all(|(_, of)| *of == word));
        each_once(
            found.iter().map(|(address, _)| *address).collect(),
            &[512, 1024],
        );
    });
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
        let taker = loom::thread::spawn(move || {
            let mut blocks = [0; 9];
            let count = taker.take(3, &mut blocks);
            blocks[..count].to_vec()
        });
        let mut found = Vec::new();
        exchange.take_all(&mut found);
        assert!(putter.join().unwrap());
        let held = |address: &u64| Held {
            address: *address,
            units: 3,
        };
        found.extend(taker.join().unwrap().iter().map(held));
        // All that was put before is seen from here on.
        exchange.take_all(&mut found);
        each_once(
            found.iter().map(|held| held.address).collect(),
            &[512, 1024],
        );
    });
}

/// Whether a heap with this one cache is done with.
fn is_over(ending: &Ending, cache: &Cache) -> bool {
    let has_blocks = || {
        let given = cache.counts.given.load(Ordering::Acquire);
        given != cache.counts.taken.load(Ordering::Acquire)
    };
    ending.is_over(|| cache.is_busy(), has_blocks)
}

/// A heap with one cache is retired; what the cache kept.
fn retire(ending: &Ending, cache: &Cache, returned: impl FnOnce()) -> Vec<Held> {
    let mut held = Vec::new();
    assert!(ending.retire(|| {
        held = take(cache, true);
        returned();
    }));
    held
}

fn taken(cache: &Cache) -> u64 {
    cache.counts.taken.load(Ordering::Relaxed)
}

/// A request that the cache serves, beside the retirement of its heap.
#[test]
fn a_block_at_hand_is_counted_or_not_had() {
    model(|| {
        let (cache, ending) = (cache(), Ending::default());
        assert_eq!(cache.keep(512, 1), Kept::Yes);
        let there = cache.clone();
        let owner = loom::thread::spawn(move || {
            if let Some(inside) = there.enter() {
                if there.take_inside(&inside, 1).is_some() {
                    there.counts.took(100, 512);
                }
            }
        });
        let held = retire(&ending, &cache, || ());
        let is_over = is_over(&ending, &cache);
        owner.join().unwrap();
        assert_eq!(is_over, taken(&cache) == 0);
        assert_eq!(is_over, held.len() == 1);
    });
}

/// A request that the cache does not serve, beside the retirement of its heap.
#[test]
fn work_on_a_heap_is_seen_or_not_begun() {
    model(|| {
        let (cache, ending) = (cache(), Arc::new(Ending::default()));
        let (there, ending_there) = (cache.clone(), ending.clone());
        let owner = loom::thread::spawn(move || {
            there.begin_work();
            if !ending_there.is_retired() {
                there.counts.took(100, 512);
            }
            there.end_work();
        });
        retire(&ending, &cache, || ());
        let is_over = is_over(&ending, &cache);
        owner.join().unwrap();
        assert!(!is_over || taken(&cache) == 0);
    });
}

/// The last block is freed past the cache, by a thread at work on the heap: who sees it counted sees it back.
fn back_once_counted(begin: fn(&Cache, &Ending), end: fn(&Cache, &Ending)) {
    // Some of the worker's steps are tried before this thread's only where it yields, others only where not.
    back_once_counted_beside(begin, end, || ());
    back_once_counted_beside(begin, end, loom::thread::yield_now);
}

fn back_once_counted_beside(
    begin: fn(&Cache, &Ending),
    end: fn(&Cache, &Ending),
    before_looking: fn(),
) {
    model(move || {
        let (cache, ending) = (cache(), Arc::new(Ending::default()));
        let is_back = Arc::new(AtomicBool::new(false));
        cache.counts.took(100, 512);
        retire(&ending, &cache, || ());
        let (there, ending_there, is_back_there) = (cache.clone(), ending.clone(), is_back.clone());
        let worker = loom::thread::spawn(move || {
            begin(&there, &ending_there);
            there.counts.gave(100, 512);
            is_back_there.store(true, Ordering::Relaxed);
            end(&there, &ending_there);
        });
        before_looking();
        let is_over = is_over(&ending, &cache);
        assert!(!is_over || is_back.load(Ordering::Relaxed));
        worker.join().unwrap();
    });
}

#[test]
fn a_block_counted_as_given_back_is_back() {
    back_once_counted(|cache, _| cache.begin_work(), |cache, _| cache.end_work());
}

#[test]
fn a_block_given_back_by_a_guest_is_back() {
    back_once_counted(|_, ending| ending.enter(), |_, ending| ending.leave());
}

/// All blocks are counted as given back, and a cache keeps one: the heap is not over before that is
/// free memory.
#[test]
fn what_a_cache_keeps_is_free_memory_before_the_end() {
    model(|| {
        let (cache, ending) = (cache(), Arc::new(Ending::default()));
        let is_free = Arc::new(AtomicBool::new(false));
        assert_eq!(cache.keep(512, 1), Kept::Yes);
        let (there, ending_there, is_free_there) = (cache.clone(), ending.clone(), is_free.clone());
        let retirer = loom::thread::spawn(move || {
            let free = || is_free_there.store(true, Ordering::Relaxed);
            assert_eq!(retire(&ending_there, &there, free).len(), 1);
        });
        // Another thread's free of the last block is what makes it look.
        assert!(!is_over(&ending, &cache) || is_free.load(Ordering::Relaxed));
        retirer.join().unwrap();
        assert!(is_over(&ending, &cache));
    });
}

/// A thread takes what others have freed into its bin, beside the retirement of the heap.
#[test]
fn an_exchanged_block_is_kept_or_left() {
    model(|| {
        let (cache, exchange) = (cache(), Arc::new(Exchange::default()));
        let mut batch = Batch::default();
        batch.push(512);
        batch.push(1024);
        assert!(exchange.put(1, &batch));
        let (there, exchange_there) = (cache.clone(), exchange.clone());
        let owner = loom::thread::spawn(move || {
            let inside = there.enter()?;
            let mut blocks = [0; 2];
            let count = exchange_there.take(1, &mut blocks);
            let (block, rest) = blocks[..count].split_last()?;
            there.fill_inside(&inside, 1, rest);
            Some(*block)
        });
        let mut held = take(&cache, true);
        exchange.take_all(&mut held);
        let mut found: Vec<u64> = held.iter().map(|held| held.address).collect();
        found.extend(owner.join().unwrap());
        each_once(found, &[512, 1024]);
    });
}
