//! Whoever registered memory, and must register it again once other chunks are behind it.

use super::{Egg, HOLDERS, MIB, Nest, request};
use crate::process::residency::{Change, To};
use crate::process::tags;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use std::sync::{Arc, Mutex, PoisonError};

/// Each stretch is told of when it sleeps, when it wakes, and when a sleep that failed has brought it back.
pub fn of_every_change() -> Outcome {
    for holder in HOLDERS {
        let nest = Nest::plain()?;
        let told: Arc<Mutex<Vec<(u64, u64, Change)>>> = Arc::default();
        let heard = || std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
        let listener = told.clone();
        let listen = move |_, address, bytes, change| {
            let mut told = listener.lock().unwrap_or_else(PoisonError::into_inner);
            told.push((address, bytes, change));
        };
        nest.house
            .process
            .set_residency_listener(Some(Box::new(listen)));
        // Each more than copies stand behind one event for, so that one has gone when the next fails.
        let eggs = [1, 2, 3].map(|seed| nest.lay(holder, "told", 40 * MIB, seed));
        let [Ok(first), Ok(second), Ok(third)] = eggs else {
            return Err(Stop::Failed("no memory".into()));
        };
        let all = [first, second, third];
        let tells = |told: &[(u64, u64, Change)], change, address| {
            (told.iter()).any(|(begin, bytes, seen)| {
                *seen == change && (*begin..begin + bytes).contains(&address)
            })
        };
        nest.sleep(&["told"])?;
        let slept = heard();
        nest.wake(&["told"])?;
        let woken = heard();
        for egg in &all {
            ensure!(
                tells(&slept, Change::Asleep, egg.address),
                "slept: {slept:?}"
            );
            ensure!(
                tells(&woken, Change::Remapped, egg.address),
                "woken: {woken:?}"
            );
        }
        if let Some(sim) = nest.house.machine.sim {
            let before = nest.places(Some("told"))?;
            sim.fail_once("cuMemUnmap", 2, 999);
            let outcome = (nest.house.process).sleep(&request(&["told"]), To::Host.into());
            sim.fail_clear();
            ensure!(outcome.is_err(), "slept all the same: {outcome:?}");
            ensure_eq!(nest.places(Some("told"))?, before, "where it is");
            let failed = heard();
            ensure!(!failed.is_empty(), "nobody was told");
            let is_anew = |(_, _, change): &(u64, u64, Change)| *change == Change::Remapped;
            ensure!(
                failed.iter().all(is_anew),
                "told after a failure: {failed:?}"
            );
            nest.verify_all(&all)?;
        }
        nest.house.process.set_residency_listener(None);
        nest.free_all(all)?;
        nest.finish()?;
    }
    Ok(())
}

/// Memory wakes in the order of the tags asked for, whatever its addresses, and the report has that order.
pub fn in_the_order_of_tags() -> Outcome {
    for holder in HOLDERS {
        let nest = Nest::plain()?;
        let lay = |(seed, tag)| nest.lay(holder, tag, 6 * MIB, seed);
        let eggs = [(1, "one"), (2, "two"), (3, "three")].map(lay);
        let [Ok(one), Ok(two), Ok(three)] = eggs else {
            return Err(Stop::Failed("no memory".into()));
        };
        let orders: [[(&str, &Egg); 3]; 2] = [
            [("three", &three), ("one", &one), ("two", &two)],
            [("two", &two), ("three", &three), ("one", &one)],
        ];
        for order in orders {
            let names = order.map(|(tag, _)| tag);
            nest.sleep(&[])?;
            let woken = nest.wake(&names)?;
            let at = |egg: &Egg| {
                let has = |(_, begin, bytes): &(i32, u64, u64)| {
                    (*begin..begin + bytes).contains(&egg.address)
                };
                woken.ranges.iter().position(has)
            };
            let places = order.map(|(_, egg)| at(egg));
            ensure!(
                places.is_sorted() && places[0].is_some(),
                "{names:?} woke at {places:?} of {:?}",
                woken.ranges
            );
            let told = woken.by_tag.iter().map(|(tag, _)| tags::name_of(*tag));
            ensure_eq!(told.collect::<Vec<_>>(), names, "the tags reported");
            let least = woken.by_tag.iter().map(|(_, amounts)| amounts.moved).min();
            ensure!(least >= Some(6 * MIB), "{:?}", woken.by_tag);
        }
        nest.verify_all([&one, &two, &three])?;
        nest.free_all([one, two, three])?;
        nest.finish()?;
    }
    Ok(())
}
