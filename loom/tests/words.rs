//! The word of a block, as frees on any thread and streams named for it change it: each block is taken
//! back once, and a stream that was named before is heard of then.
#![allow(missing_docs)]

use hbmalloc_loom::core::radix::{Entry, Radix};
use hbmalloc_loom::core::sync::lock;
use hbmalloc_loom::pool::word::Word;
use loom::model::Builder;
use loom::sync::{Arc, Mutex};

const ADDRESS: u64 = 5 << 20;
const UNITS: [u64; 3] = [1, 16, 2048];

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = Some(2);
    builder.check(check);
}

fn give_out(radix: &Radix, address: u64, units: u64, word: Word) {
    radix.set_node(address, units, 7);
    radix.entry(address, units).set(word.0);
}

fn word(units: u64) -> Word {
    Word::new(3, units * 512)
}

#[test]
fn of_two_frees_one_takes_the_block() {
    for units in UNITS {
        model(move || {
            let radix = Arc::new(Radix::default());
            give_out(&radix, ADDRESS, units, word(units));
            let other = radix.clone();
            let free = |radix: &Radix| {
                let Some(entry) = radix.find(ADDRESS) else {
                    return false;
                };
                let word = Word(entry.state());
                word.is_live() && entry.change(word.0, 0).is_ok()
            };
            let thread = loom::thread::spawn(move || free(&other));
            let here = free(&radix);
            assert_ne!(thread.join().unwrap(), here);
            assert_eq!(radix.find(ADDRESS).map_or(0, Entry::state), 0);
        });
    }
}

/// Tables are made by whoever needs them first, also beside others.
#[test]
fn neighbours_are_found_while_tables_are_made() {
    model(|| {
        let radix = Arc::new(Radix::default());
        let threads: Vec<_> = [(ADDRESS, 1), (ADDRESS + 512, 1)]
            .map(|(address, units)| {
                let radix = radix.clone();
                loom::thread::spawn(move || {
                    give_out(&radix, address, units, word(units));
                    let entry = radix.find(address).unwrap();
                    assert_eq!((entry.state(), entry.node()), (word(units).0, 7));
                })
            })
            .into_iter()
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        for address in [ADDRESS, ADDRESS + 512] {
            assert_eq!(radix.find(address).map(Entry::state), Some(word(1).0));
        }
    });
}

/// A small block is found while larger ones come and go in its window: never by their word.
#[test]
fn a_small_block_beside_large_ones_in_its_window() {
    model(|| {
        let radix = Arc::new(Radix::default());
        // A large block was here before.
        give_out(&radix, ADDRESS, 2048, word(2048));
        radix.entry(ADDRESS, 2048).change(word(2048).0, 0).unwrap();
        give_out(&radix, ADDRESS, 1, word(1));
        let other = radix.clone();
        let large = loom::thread::spawn(move || {
            give_out(&other, ADDRESS + 4096, 4096, word(4096));
            let entry = other.find(ADDRESS + 4096).unwrap();
            entry.change(word(4096).0, 0).unwrap();
        });
        let entry = radix.find(ADDRESS).unwrap();
        assert_eq!(entry.change(word(1).0, 0), Ok(()));
        large.join().unwrap();
        assert_eq!(radix.find(ADDRESS).map_or(0, Entry::state), 0);
    });
}

/// The steps of `Pools::record_stream` and `Pools::free`, whose locks are the same.
#[test]
fn a_stream_is_named_for_the_block_or_finds_it_gone() {
    for quick in [true, false] {
        model(move || {
            let radix = Arc::new(Radix::default());
            give_out(&radix, ADDRESS, 1, word(1));
            let named = Arc::new(Mutex::new(0));
            let (others, other) = (named.clone(), radix.clone());
            let namer = loom::thread::spawn(move || {
                let entry = other.find(ADDRESS).unwrap();
                let word = Word(entry.state());
                if !word.is_live() {
                    return false;
                }
                let mut uses = lock(&others);
                if !word.is_shared() && entry.change(word.0, word.shared().0).is_err() {
                    return false;
                }
                *uses += 1;
                true
            });
            let entry = radix.find(ADDRESS).unwrap();
            let seen = Word(entry.state());
            let at_once = quick && seen.is_plain() && entry.change(seen.0, 0).is_ok();
            let heard = match at_once {
                true => 0,
                false => loop {
                    let seen = Word(entry.state());
                    let mut uses = lock(&named);
                    if entry.change(seen.0, 0).is_ok() {
                        break std::mem::take(&mut *uses);
                    }
                },
            };
            let was_named = namer.join().unwrap();
            assert_eq!(heard, u32::from(was_named), "named and not heard of");
            assert_eq!(*lock(&named), 0, "left for the next block there");
        });
    }
}
