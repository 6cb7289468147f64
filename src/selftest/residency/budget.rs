//! The host's part: what may be pinned, what is kept there for the next sleep, what goes back.

use super::{Egg, MIB, Nest, fails_with, request};
use crate::error::Status;
use crate::extent::table::Owner;
use crate::process::residency::{How, To};
use crate::residency::Report;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

const POOL: (Kind, Owner) = (Kind::Pool, Owner::Block);
const VMM: (Kind, Owner) = (Kind::Vmm, Owner::Block);
const SPEC: &str = "devices=1,memory=4GiB,poison=1";

/// What is more than the host may pin stays awake, all of it; less of it sleeps.
pub fn of_the_host() -> Outcome {
    for holder in [VMM, POOL] {
        let nest = Nest::open(SPEC, &[("sleep_host_limit", "16MiB")])?;
        let small = nest.lay(holder, "small", 6 * MIB, 1)?;
        let large = nest.lay(holder, "large", 20 * MIB, 2)?;
        for tags in [&["large"][..], &["small", "large"], &[]] {
            let process = &nest.house.process;
            let refused = process.sleep(&request(tags), To::Host.into());
            let error = fails_with("a sleep of too much", refused, Status::OutOfMemory)?;
            let text = error.to_string();
            ensure!(text.contains("sleep_host_limit"), "no advice: {text}");
            nest.audit()?;
            ensure_eq!(nest.places(None)?.host, 0, "asleep after a refusal");
            nest.verify_all([&small, &large])?;
            // It is in use as before: what is freed serves again.
            let new = nest.lay(holder, "large", 20 * MIB, 3)?;
            nest.house.free(new.address)?;
        }
        nest.sleep(&["small"])?;
        let refused = (nest.house.process).sleep(&request(&["large"]), To::Host.into());
        fails_with("beside what sleeps", refused, Status::OutOfMemory)?;
        nest.discard(&["large"])?;
        nest.wake(&[])?;
        nest.verify(&small)?;
        nest.free_all([small, large])?;
        nest.finish()?;
    }
    Ok(())
}

/// Pinned once, and used again; a trim leaves what holds something.
pub fn room_is_kept_and_trimmed() -> Outcome {
    let nest = Nest::open(SPEC, &[])?;
    let process = &nest.house.process;
    process.prepare_host(30 * MIB)?;
    nest.audit()?;
    let pinned = process.host_use().pinned;
    ensure!(pinned >= 30 * MIB && nest.host_used() == 0, "{pinned}");
    process.prepare_host(20 * MIB)?;
    ensure_eq!(process.host_use().pinned, pinned, "room that is there");
    let eggs = [
        nest.lay(VMM, "one", 10 * MIB, 1)?,
        nest.lay(POOL, "two", 10 * MIB, 2)?,
    ];
    for _ in 0..3 {
        nest.sleep(&["one"])?;
        nest.sleep(&["two"])?;
        ensure_eq!(process.host_use().pinned, pinned, "pinned anew");
        ensure_eq!(
            process.trim_host(0)?,
            0,
            "trimmed though it holds something"
        );
        nest.wake(&[])?;
        nest.verify_all(&eggs)?;
    }
    ensure_eq!(process.trim_host(pinned)?, 0, "trimmed to what there is");
    ensure_eq!(process.trim_host(0)?, pinned, "trimmed");
    nest.audit()?;
    if let Some(sim) = nest.house.machine.sim {
        ensure_eq!(sim.counters().registered, 0, "registered");
    }
    // Without any room it is had again.
    nest.sleep(&[])?;
    nest.wake(&[])?;
    nest.verify_all(&eggs)?;
    for bytes in [u64::MAX, 1 << 60] {
        fails_with(
            "endless room",
            process.prepare_host(bytes),
            Status::OutOfMemory,
        )?;
    }
    nest.audit()?;
    nest.free_all(eggs)?;
    nest.finish()
}

fn sleep_clean(nest: &Nest, tags: &[&str]) -> Result<Report, Stop> {
    let report = nest.house.process.sleep(
        &request(tags),
        How {
            is_clean: true,
            ..To::Host.into()
        },
    );
    nest.audit()?;
    Ok(report?)
}

/// What was kept and not written sleeps without a copy; what was written is saved anew.
pub fn clean() -> Outcome {
    for holder in super::HOLDERS {
        let nest = Nest::open(SPEC, &[("keep_host", "64MiB")])?;
        let mut egg = nest.lay(holder, "weights", 6 * MIB, 1)?;
        // Nothing has been saved yet.
        ensure!(
            sleep_clean(&nest, &["weights"])?.total().copied >= 6 * MIB,
            "copied"
        );
        for _ in 0..3 {
            nest.wake(&["weights"])?;
            ensure!(nest.host_used() >= 6 * MIB, "nothing is kept");
            nest.verify(&egg)?;
            let again = sleep_clean(&nest, &["weights"])?;
            ensure_eq!(
                (again.total().copied, again.total().moved > 0),
                (0, true),
                "copied, moved"
            );
        }
        nest.wake(&["weights"])?;
        egg.seed = 2;
        nest.write(&egg)?;
        ensure!(
            nest.sleep(&["weights"])?.total().copied >= 6 * MIB,
            "not copied"
        );
        ensure!(nest.host_used() <= 8 * MIB, "the old copy is kept too");
        nest.wake(&["weights"])?;
        nest.verify(&egg)?;
        sleep_clean(&nest, &["weights"])?;
        nest.wake(&["weights"])?;
        nest.verify(&egg)?;
        // What is kept goes with the block, and with the contents.
        nest.discard(&["weights"])?;
        ensure_eq!(nest.host_used(), 0, "kept of what is discarded");
        nest.wake(&["weights"])?;
        nest.write(&egg)?;
        nest.sleep(&["weights"])?;
        nest.wake(&["weights"])?;
        nest.verify(&egg)?;
        nest.free_all([egg])?;
        nest.finish()
            .map_err(|stop| stop.at(format_args!("{holder:?}")))?;
    }
    Ok(())
}

/// The option bounds what is kept; what has no copy is saved though it is said to be clean.
pub fn kept_as_far_as_it_goes() -> Outcome {
    let nest = Nest::open(SPEC, &[("keep_host", "10MiB")])?;
    let eggs: Vec<Egg> = (1..4)
        .map(|seed| nest.lay(VMM, "weights", 6 * MIB, seed))
        .collect::<Result<_, _>>()?;
    nest.sleep(&["weights"])?;
    nest.wake(&["weights"])?;
    ensure!(
        (6 * MIB..=10 * MIB).contains(&nest.host_used()),
        "{} bytes are kept",
        nest.host_used()
    );
    ensure_eq!(
        sleep_clean(&nest, &["weights"])?.total().copied,
        12 * MIB,
        "bytes copied of what was not kept"
    );
    nest.house.process.settings().set("keep_host", "0")?;
    nest.wake(&["weights"])?;
    ensure_eq!(nest.host_used(), 0, "bytes kept with no budget");
    nest.verify_all(&eggs)?;
    nest.free_all(eggs)?;
    nest.finish()
}

/// Blocks that came into a place after its copy was made are saved, whatever is said of the tag: nobody
/// wrote to the old ones, and the new ones were not there.
pub fn clean_in_the_pool() -> Outcome {
    let nest = Nest::open(SPEC, &[("keep_host", "256MiB")])?;
    let mut eggs = Vec::new();
    for seed in 0..24 {
        eggs.push(nest.lay(POOL, "weights", MIB + 512 * seed, seed)?);
    }
    for round in 1..5 {
        nest.sleep(&["weights"])?;
        nest.wake(&["weights"])?;
        // Freed, and memory moves to where it is needed.
        let (gone, kept): (Vec<Egg>, Vec<Egg>) =
            eggs.into_iter().partition(|egg| egg.seed % 3 == round % 3);
        nest.free_all(gone)?;
        eggs = kept;
        let other = nest.lay(POOL, "other", 24 * MIB, 999)?;
        nest.house.free(other.address)?;
        nest.audit()?;
        nest.house.process.trim_all()?;
        sleep_clean(&nest, &["weights"])?;
        nest.wake(&["weights"])?;
        nest.verify_all(&eggs)
            .map_err(|stop| stop.at(format_args!("round {round}")))?;
        for seed in 0..8 {
            let seed = 100 * round + seed;
            eggs.push(nest.lay(POOL, "weights", MIB + 512 * seed, seed)?);
        }
    }
    nest.free_all(eggs)?;
    nest.finish()
}

/// What is kept comes to no more than the option says, however many tags were woken one after another.
pub fn kept_over_several_wakes() -> Outcome {
    let nest = Nest::open(SPEC, &[("keep_host", "10MiB")])?;
    let mut eggs = Vec::new();
    for (seed, tag) in (1..).zip(["one", "two", "three"]) {
        eggs.push(nest.lay(VMM, tag, 6 * MIB, seed)?);
    }
    for tag in ["one", "two", "three"] {
        nest.sleep(&[tag])?;
        nest.wake(&[tag])?;
    }
    let used = nest.host_used();
    nest.verify_all(&eggs)?;
    nest.free_all(eggs)?;
    nest.finish()?;
    ensure!(used <= 10 * MIB, "{used} bytes are kept, of {}", 10 * MIB);
    Ok(())
}

/// Copies that are kept of what is awake are no reason to refuse a sleep: they are only there to save time.
pub fn kept_copies_make_room() -> Outcome {
    let options = [("keep_host", "64MiB"), ("sleep_host_limit", "16MiB")];
    let nest = Nest::open(SPEC, &options)?;
    let eggs = [
        nest.lay(VMM, "one", 10 * MIB, 1)?,
        nest.lay(VMM, "two", 10 * MIB, 2)?,
    ];
    nest.sleep(&["one"])?;
    nest.wake(&["one"])?;
    let refused = nest.sleep(&["two"]).map(|_| ());
    nest.wake(&[])?;
    nest.verify_all(&eggs)?;
    nest.free_all(eggs)?;
    nest.finish()?;
    refused
}
