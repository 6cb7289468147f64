//! Whoever registered memory, and must register it again once other chunks are behind it.

use super::{HOLDERS, MIB, Nest, request};
use crate::process::residency::{Change, To};
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
