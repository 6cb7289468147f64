//! Pools on slabs that grow and shrink.

use super::tests::{TEST, make, slab};
use super::*;
use std::time::{Duration, Instant};

#[test]
fn allocation_waits_for_growth_only_where_it_must() {
    // Grows by 2 MiB in half an hour, if nobody waits.
    let slab = slab(8 << 20, 2 << 20, 2 << 20, 1 << 10);
    let pool = ObjectPool::new(TEST, Memory::Slab(slab.clone()), 4096).unwrap();
    let begun = Instant::now();
    let first = make(&pool, 1 << 20, 2).unwrap();
    assert_eq!(first[0].1, slab.address());
    assert_eq!(make(&pool, 1 << 20, 1).unwrap_err().feasible, 0);
    let mut more = 0;
    pool.allocate(TEST, 1 << 20, 6, || None, |_, _, _| more += 1)
        .unwrap();
    assert!(more == 6 && begun.elapsed() < Duration::from_secs(600));
    let error = pool
        .allocate(TEST, 1 << 20, 1, || None, |_, _, _| ())
        .unwrap_err();
    assert_eq!((error.feasible, pool.usage().total), (0, 8 << 20));
    pool.check().unwrap();
}

#[test]
fn parts_are_as_long_as_an_object_needs() {
    let slab = slab(16 << 20, 2 << 20, 2 << 20, 1 << 20);
    let pool = ObjectPool::new(TEST, Memory::Slab(slab.clone()), 4096).unwrap();
    pool.allocate(TEST, 6 << 20, 2, || None, |_, _, _| ())
        .unwrap();
    pool.check().unwrap();
}

#[test]
fn parts_that_nobody_uses_are_given_back_from_the_end() {
    let slab = slab(8 << 20, 2 << 20, 2 << 20, u64::MAX);
    slab.wait_for_bytes(8 << 20, None).unwrap();
    let pool = ObjectPool::new(TEST, Memory::Slab(slab.clone()), 4096).unwrap();
    let made = make(&pool, 2 << 20, 4).unwrap();
    let at = |part: u64| {
        let address = slab.address() + part * (2 << 20);
        made.iter().find(|(_, other)| *other == address).unwrap().0
    };
    pool.free(TEST, &[at(1), at(3)]).unwrap();
    assert_eq!(pool.shrink(TEST, 0).unwrap(), 2 << 20);
    pool.free(TEST, &[at(0), at(2)]).unwrap();
    assert_eq!(pool.shrink(TEST, 4 << 20).unwrap(), 2 << 20);
    assert_eq!(
        (pool.usage().total, slab.progress().ready),
        (4 << 20, 4 << 20)
    );
    pool.check().unwrap();
    // And it grows again, at the same addresses.
    slab.grow(8 << 20).unwrap();
    pool.allocate(TEST, 2 << 20, 4, || None, |_, _, _| ())
        .unwrap();
    pool.check().unwrap();
    pool.close();
    assert_eq!(make(&pool, 4096, 1).unwrap_err().feasible, 0);
}

#[test]
fn alignment_is_that_of_the_slab_at_most() {
    let short = slab(64 << 10, 64 << 10, 0, 0);
    let pool = ObjectPool::new(TEST, Memory::Slab(short.clone()), 64 << 10);
    assert_eq!(pool.is_ok(), short.address() % (64 << 10) == 0);
    assert!(ObjectPool::new(TEST, Memory::Slab(short), 4 << 20).is_err());
}

#[test]
fn a_slab_grows_by_whole_pages_and_is_whole_after_any_length() {
    let slab = slab(16 << 20, 2 << 20, 2 << 20, u64::MAX);
    slab.shrink_to(4 << 20).unwrap();
    for odd in [(5 << 20) + 1, (9 << 20) + 4096, u64::MAX] {
        slab.grow(odd).unwrap();
        let progress = slab.wait_for_bytes(odd, None).unwrap();
        assert_eq!(progress.ready % (2 << 20), 0);
    }
    assert_eq!(slab.progress().ready, 16 << 20);
}

#[test]
fn growing_and_shrinking_together_keep_all_addresses() {
    let slab = slab(32 << 20, 2 << 20, 2 << 20, u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..200).for_each(|_| slab.grow(32 << 20).unwrap()));
            scope.spawn(|| {
                for _ in 0..200 {
                    slab.shrink_to(4 << 20).unwrap();
                    assert!(slab.progress().ready >= 2 << 20);
                }
            });
        }
    });
    slab.grow(32 << 20).unwrap();
    assert_eq!(slab.wait_for_bytes(32 << 20, None).unwrap().ready, 32 << 20);
    let mut end = slab.address();
    for part in slab.parts_from(0) {
        assert_eq!(part.address, end);
        end += part.bytes;
    }
}

#[test]
fn what_can_never_be_had_is_not_waited_for_and_asks_nothing_of_the_slab() {
    let slab = slab(64 << 20, 2 << 20, 2 << 20, 1 << 20);
    let pool = ObjectPool::new(TEST, Memory::Slab(slab.clone()), 4096).unwrap();
    let begun = Instant::now();
    for bytes in [128 << 20, 1 << 40] {
        assert!(
            pool.allocate(TEST, bytes, 1, || None, |_, _, _| ())
                .is_err()
        );
    }
    assert!(make(&pool, 32 << 20, 1).is_err());
    assert!(begun.elapsed() < Duration::from_secs(20) && slab.progress().parts < 3);
    slab.shut();
    assert!(
        pool.allocate(TEST, 32 << 20, 1, || None, |_, _, _| ())
            .is_err()
    );
}
