//! Pools against a model that knows who holds what.

use super::word::Holders;
use super::*;
use crate::core::sync::lock;
use crate::error::{Status, Warnings};
use crate::source::host::PageKind;
use crate::source::slab::{Slab, SlabWanted};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

const TOTAL: u64 = 1 << 20;
pub(super) const TEST: &str = "test";

fn of_addresses(bytes: u64) -> ObjectPool {
    let pool = ObjectPool::new(TEST, Memory::Addresses, 4096).unwrap();
    pool.extend(TEST, bytes).unwrap();
    pool
}

pub(super) fn slab(bytes: u64, first: u64, part: u64, pace: u64) -> Arc<Slab> {
    let wanted = SlabWanted {
        operation: TEST,
        bytes,
        first,
        part,
        pace,
        pages: PageKind::Ordinary,
        binding: None,
        pinned: None,
    };
    Arc::new(Slab::open(wanted, &Warnings::default()).unwrap())
}

/// Does not wait.
fn now() -> Option<Instant> {
    Some(Instant::now())
}

pub(super) fn make(
    pool: &ObjectPool,
    bytes: u64,
    count: usize,
) -> Result<Vec<(Object, u64)>, Shortage> {
    let mut found = Vec::new();
    pool.allocate(TEST, bytes, count, now, |_, object, address| {
        found.push((object, address));
    })?;
    Ok(found)
}

#[derive(Clone, Debug)]
enum Step {
    Make(u64, usize),
    Free(usize),
    Hold(usize),
    Drop(usize),
    Pin(usize, u64),
    Unpin(usize, u64),
    View(usize),
    Unview(usize),
    UnpinAll(u64),
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0usize..64;
    let owner = 0u64..3;
    prop_oneof![
        4 => (1u64..40_000, 0usize..9).prop_map(|(bytes, count)| Step::Make(bytes, count)),
        2 => Just(Step::Make(8192, 3)),
        4 => which.clone().prop_map(Step::Free),
        1 => which.clone().prop_map(Step::Hold),
        3 => which.clone().prop_map(Step::Drop),
        1 => (which.clone(), owner.clone()).prop_map(|(which, owner)| Step::Pin(which, owner)),
        1 => which.clone().prop_map(Step::View),
        2 => which.clone().prop_map(Step::Unview),
        2 => (which, owner.clone()).prop_map(|(which, owner)| Step::Unpin(which, owner)),
        1 => owner.prop_map(Step::UnpinAll),
        1 => Just(Step::Sweep),
    ]
}

#[derive(Clone, Default)]
struct Known {
    address: u64,
    size: u64,
    is_owned: bool,
    references: u32,
    pins: BTreeMap<u64, u32>,
    views: u32,
}

impl Known {
    fn is_held(&self) -> bool {
        self.is_object() || self.views > 0
    }

    fn is_object(&self) -> bool {
        self.references > 0 || !self.pins.is_empty()
    }
}

/// What is given out must be nobody's.
fn check_apart(known: &HashMap<Object, Known>, address: u64, size: u64) {
    for other in known.values().filter(|known| known.is_held()) {
        assert!(address + size <= other.address || other.address + other.size <= address);
    }
    assert_eq!(address % 4096, 0);
}

fn run(pool: &ObjectPool, steps: Vec<Step>) {
    let mut known: HashMap<Object, Known> = HashMap::new();
    let mut order: Vec<Object> = Vec::new();
    for step in steps {
        let pick = |which: usize| order.get(which % order.len().max(1)).copied();
        match step {
            Step::Make(bytes, count) => match make(pool, bytes, count) {
                Ok(made) => {
                    assert_eq!(made.len(), count);
                    for (object, address) in made {
                        let size = bytes.next_multiple_of(4096);
                        check_apart(&known, address, size);
                        let maker = Known {
                            address,
                            size,
                            is_owned: true,
                            references: 1,
                            ..Known::default()
                        };
                        assert!(known.insert(object, maker).is_none());
                        order.push(object);
                    }
                }
                Err(shortage) => {
                    assert!(shortage.feasible < count);
                    assert_eq!(shortage.error.status(), Status::OutOfMemory);
                    make(pool, bytes, shortage.feasible)
                        .unwrap()
                        .iter()
                        .for_each(|(object, _)| pool.free(TEST, &[*object]).unwrap());
                }
            },
            Step::Sweep => pool.sweep(),
            Step::UnpinAll(owner) => {
                let mine = known
                    .values_mut()
                    .filter_map(|known| known.pins.remove(&owner));
                assert_eq!(
                    pool.unpin_all(TEST, owner).unwrap(),
                    mine.sum::<u32>() as usize
                );
            }
            Step::Free(which)
            | Step::Hold(which)
            | Step::Drop(which)
            | Step::Pin(which, _)
            | Step::Unpin(which, _)
            | Step::View(which)
            | Step::Unview(which) => {
                let Some(object) = pick(which) else { continue };
                let known = known.get_mut(&object).unwrap();
                act(pool, object, known, &step);
            }
        }
        let used: u64 = known
            .values()
            .filter(|known| known.is_held())
            .map(|known| known.size)
            .sum();
        let objects = known.values().filter(|known| known.is_held()).count() as u64;
        let usage = pool.usage();
        assert_eq!((usage.used, usage.objects), (used, objects));
        pool.check().unwrap();
    }
    for (object, known) in &known {
        let told = pool.holders(TEST, *object).ok();
        let pins = known.pins.values().sum();
        let views = known.views;
        assert_eq!(
            told,
            known.is_held().then_some((known.references, pins, views))
        );
    }
}

fn act(pool: &ObjectPool, object: Object, known: &mut Known, step: &Step) {
    match step {
        Step::Free(_) => {
            let freed = pool.free(TEST, &[object]);
            assert_eq!(freed.is_ok(), known.is_held() && known.is_owned);
            if freed.is_ok() {
                known.is_owned = false;
                known.references -= 1;
            }
        }
        Step::Hold(_) => {
            let held = pool.hold(TEST, object);
            assert_eq!(held.is_ok(), known.is_object());
            known.references += u32::from(held.is_ok());
        }
        Step::Drop(_) => {
            let dropped = pool.drop_reference(TEST, object);
            assert_eq!(dropped.is_ok(), known.references > 0);
            if dropped.is_ok() {
                known.references -= 1;
                known.is_owned &= known.references > 0;
            }
        }
        Step::Pin(_, owner) => {
            let pinned = pool.pin(TEST, object, *owner);
            assert_eq!(pinned.is_ok(), known.is_object());
            if pinned.is_ok() {
                *known.pins.entry(*owner).or_default() += 1;
            }
        }
        Step::Unpin(_, owner) => {
            let unpinned = pool.unpin(TEST, object, *owner);
            assert_eq!(unpinned.is_ok(), known.pins.contains_key(owner));
            if let Some(count) = known.pins.get_mut(owner) {
                *count -= 1;
                known.pins.retain(|_, count| *count > 0);
            }
        }
        Step::View(_) => {
            let seen = pool.view(TEST, &[object]);
            assert_eq!(seen.is_ok(), known.is_object());
            known.views += u32::from(seen.is_ok());
        }
        Step::Unview(_) => {
            let gone = pool.unview(TEST, &[object]);
            assert_eq!(gone.is_ok(), known.views > 0);
            known.views -= u32::from(gone.is_ok());
        }
        _ => unreachable!(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn pools_do_as_a_model_does(steps in proptest::collection::vec(step(), 1..120)) {
        run(&of_addresses(TOTAL), steps);
    }

    #[test]
    fn pools_on_a_slab_do_as_a_model_does(steps in proptest::collection::vec(step(), 1..60)) {
        // Two parts that no object reaches over.
        let slab = slab(4 << 20, 2 << 20, 2 << 20, u64::MAX);
        slab.wait_for_bytes(4 << 20, None).unwrap();
        run(&ObjectPool::new(TEST, Memory::Slab(slab), 4096).unwrap(), steps);
    }
}

#[test]
fn batches_are_side_by_side_where_they_can_be_and_all_or_nothing() {
    let pool = of_addresses(TOTAL);
    let batch = make(&pool, 16_000, 10).unwrap();
    let addresses: Vec<u64> = batch.iter().map(|(_, address)| *address).collect();
    assert_eq!(
        addresses,
        (0..10).map(|place| place * 16384).collect::<Vec<_>>()
    );
    let shortage = make(&pool, 16_000, 55).unwrap_err();
    assert_eq!(shortage.feasible, 54);
    assert!(
        shortage
            .error
            .to_string()
            .contains("of which 54 can be had")
    );
    let objects: Vec<Object> = batch.iter().map(|(object, _)| *object).collect();
    pool.free(TEST, &objects).unwrap();
    // What was freed comes again in its order.
    let again = make(&pool, 16_000, 10).unwrap();
    assert!(again.iter().map(|(_, address)| *address).eq(addresses));
    assert_eq!(make(&pool, 16_384, 0).unwrap().len(), 0);
    assert!(make(&pool, 0, 1).is_err() && make(&pool, u64::MAX, 1).is_err());
    assert!(make(&pool, 1 << 50, usize::MAX).is_err());
    pool.check().unwrap();
}

#[test]
fn what_is_freed_twice_or_was_never_made_is_an_error_and_the_rest_is_freed() {
    let pool = of_addresses(TOTAL);
    let made = make(&pool, 4096, 4).unwrap();
    let mut objects: Vec<Object> = made.iter().map(|(object, _)| *object).collect();
    objects.insert(2, objects[0]);
    let error = pool.free(TEST, &objects).unwrap_err();
    assert_eq!(error.status(), Status::NotOwned);
    assert!(error.to_string().contains("number 2 of 5"), "{error}");
    assert_eq!(pool.usage().used, 0);
    for raw in [0, 1, objects[0].get(), u64::MAX, 1 << 40] {
        let error = pool.free(TEST, &[Object::from_raw(raw)]).unwrap_err();
        assert_eq!(error.status(), Status::NotOwned, "{raw:#x}");
    }
    // Its memory is another's by now.
    let next = make(&pool, 4096, 1).unwrap()[0];
    assert!(pool.free(TEST, &[objects[0]]).is_err() && pool.hold(TEST, objects[0]).is_err());
    assert_eq!(pool.holders(TEST, next.0).unwrap(), (1, 0, 0));
    pool.check().unwrap();
}

#[test]
fn objects_of_another_pool_are_none() {
    let (one, other) = (of_addresses(TOTAL), of_addresses(TOTAL));
    let mine = make(&one, 4096, 1).unwrap()[0].0;
    make(&other, 4096, 1).unwrap();
    assert_eq!(
        other.free(TEST, &[mine]).unwrap_err().status(),
        Status::NotOwned
    );
    assert_eq!(other.usage().objects, 1);
    one.free(TEST, &[mine]).unwrap();
}

#[test]
fn counts_end_with_an_error() {
    let pool = of_addresses(TOTAL);
    let object = make(&pool, 4096, 1).unwrap()[0].0;
    while pool.hold(TEST, object).is_ok() {}
    assert_eq!(pool.holders(TEST, object).unwrap().0, super::word::MOST);
    while pool.pin(TEST, object, 7).is_ok() {}
    pool.check().unwrap();
    assert_eq!(pool.unpin_all(TEST, 7).unwrap(), super::word::MOST as usize);
}

#[test]
fn damage_to_any_field_of_any_record_is_found() {
    let pool = of_addresses(TOTAL);
    let made = make(&pool, 4096, 6).unwrap();
    pool.pin(TEST, made[1].0, 1).unwrap();
    pool.hold(TEST, made[2].0).unwrap();
    pool.view(TEST, &[made[0].0]).unwrap();
    // Held, waiting on a shelf, and spare.
    pool.free(TEST, &[made[3].0, made[4].0]).unwrap();
    pool.sweep();
    pool.free(TEST, &[made[5].0]).unwrap();
    pool.check().unwrap();
    let flips = |flip: &dyn Fn() -> u64| {
        flip();
        let found = pool.check();
        flip();
        pool.check().unwrap();
        found.is_err()
    };
    for index in 0..6 {
        let record = pool.records.get(index).unwrap();
        for bit in 0..64 {
            for (name, field) in [
                ("word", &record.word),
                ("address", &record.address),
                ("bytes", &record.bytes),
            ] {
                let is_found = flips(&|| field.fetch_xor(1 << bit, Ordering::Relaxed));
                assert!(is_found, "{name} of {index}, bit {bit}");
            }
            let piece = || {
                record
                    .piece
                    .fetch_xor(1 << (bit % 32), Ordering::Relaxed)
                    .into()
            };
            assert!(flips(&piece), "piece of {index}, bit {bit}");
        }
    }
    // The space's own records: its tests try each; here that they are looked at.
    let space = || lock(&pool.stock).space.flip(0, 1, 12).into();
    assert!(flips(&space));
}

#[test]
fn a_damaged_object_is_an_error_and_not_a_crash() {
    let pool = of_addresses(TOTAL);
    let object = make(&pool, 4096, 1).unwrap()[0].0;
    pool.records
        .get(0)
        .unwrap()
        .word
        .fetch_xor(1 << 20, Ordering::Relaxed);
    assert_eq!(
        pool.free(TEST, &[object]).unwrap_err().status(),
        Status::Internal
    );
    assert_eq!(
        pool.hold(TEST, object).unwrap_err().status(),
        Status::Internal
    );
    assert_eq!(Holders::of(0, 1), None);
}

#[test]
fn sixteen_threads_get_memory_of_their_own() {
    let pool = of_addresses(64 << 20);
    let taken: Mutex<BTreeMap<u64, u64>> = Mutex::default();
    std::thread::scope(|scope| {
        for thread in 0..16u64 {
            let (pool, taken) = (&pool, &taken);
            scope.spawn(move || {
                let mut seed = thread + 1;
                let mut next = move |most: u64| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 33) % most
                };
                let mut mine: Vec<(Object, u64)> = Vec::new();
                for _ in 0..600 {
                    let (size, count) = (4096 << next(4), next(8) as usize);
                    if let Ok(made) = make(pool, size, count) {
                        let mut taken = taken.lock().unwrap();
                        for (_, address) in &made {
                            let before = taken.range(..address + size).next_back();
                            assert!(before.is_none_or(|(begin, bytes)| begin + bytes <= *address));
                            taken.insert(*address, size);
                        }
                        mine.extend(made);
                    }
                    while mine.len() > 20 {
                        let (object, address) = mine.swap_remove(next(20) as usize);
                        taken.lock().unwrap().remove(&address);
                        pool.free(TEST, &[object]).unwrap();
                    }
                }
                let objects: Vec<Object> = mine.iter().map(|(object, _)| *object).collect();
                let mut taken = taken.lock().unwrap();
                taken.retain(|address, _| mine.iter().all(|(_, other)| other != address));
                drop(taken);
                pool.free(TEST, &objects).unwrap();
            });
        }
        for _ in 0..50 {
            pool.check().unwrap();
        }
    });
    let usage = pool.usage();
    assert_eq!((usage.used, usage.objects), (0, 0));
    pool.sweep();
    assert_eq!(pool.usage().largest, 64 << 20);
}
