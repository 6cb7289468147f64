//! The lock that one thread goes in and out of by plain stores: at no time are two inside.
#![allow(missing_docs)]

use hbmalloc_loom::sys::biased::{BiasedLock, Inside};
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};

/// Two words that whoever is inside makes unequal for a moment.
type Pair = [AtomicU64; 2];
type Lock = Arc<BiasedLock<Pair>>;

fn step(inside: Inside<'_, Pair>) {
    let seen = inside[0].load(Ordering::Relaxed);
    assert_eq!(seen, inside[1].load(Ordering::Relaxed));
    for word in &*inside {
        word.store(seen + 1, Ordering::Relaxed);
    }
}

/// The favourite beside others, each with so many turns.
fn model(others: usize, turns: u64) {
    let mut builder = Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let lock: Lock = Arc::new(BiasedLock::new([AtomicU64::new(0), AtomicU64::new(0)]));
        // Who comes first is the favourite.
        step(lock.lock());
        let go = move |lock: &Lock| (0..turns).for_each(|_| step(lock.lock()));
        let threads: Vec<_> = (0..others)
            .map(|_| {
                let lock = lock.clone();
                loom::thread::spawn(move || go(&lock))
            })
            .collect();
        let at_once = lock.enter().map(step).is_some();
        go(&lock);
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        let sum = 1 + u64::from(at_once) + turns * (1 + others as u64);
        assert_eq!(lock.lock()[0].load(Ordering::Relaxed), sum);
    });
}

#[test]
fn the_favourite_and_another_thread() {
    model(1, 2);
}

#[test]
fn the_favourite_and_two_threads() {
    model(2, 1);
}
