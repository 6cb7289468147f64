//! What is allocated and freed while tags sleep.

use super::{Egg, HOLDERS, KIB, MIB, Nest, tag};
use crate::extent::table::Owner;
use crate::process::Demand;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

const POOL: (Kind, Owner) = (Kind::Pool, Owner::Block);

/// What is allocated into a sleeping tag is awake, lies elsewhere, and sleeps next time.
pub fn allocated() -> Outcome {
    for holder in HOLDERS {
        let nest = Nest::plain()?;
        let mut eggs = Vec::new();
        for seed in 0..4 {
            eggs.push(nest.lay(holder, "tag", 3 * MIB + seed, seed)?);
            eggs.push(nest.lay(holder, "tag", 700 + seed, 10 + seed)?);
        }
        // Free memory of the tag, which nobody may be given while it sleeps.
        nest.free_all(eggs.drain(2..4))?;
        let first = nest.sleep(&["tag"])?.total().moved;
        for seed in 20..24 {
            let new = nest.lay(holder, "tag", 3 * MIB + seed, seed)?;
            let small = nest.lay(holder, "tag", 700, 10 + seed)?;
            eggs.extend([new, small]);
        }
        nest.audit()?;
        let there = nest.places(Some("tag"))?;
        ensure!(there.host == first && there.device >= 12 * MIB, "{there:?}");
        nest.verify_all(&eggs[6..]).map_err(|stop| stop.at("new"))?;
        let second = nest.sleep(&["tag"])?;
        ensure!(second.total().moved >= 12 * MIB, "{second:?}");
        ensure_eq!(nest.places(Some("tag"))?.device, 0, "awake");
        let back = nest.wake(&["tag"])?;
        ensure_eq!(
            back.total().moved,
            first + second.total().moved,
            "had again by {holder:?}"
        );
        nest.verify_all(&eggs)?;
        nest.free_all(eggs)?;
        nest.finish()?;
    }
    Ok(())
}

/// Memory that is freed asleep takes what it was saved to along, and is not brought back.
pub fn freed() -> Outcome {
    for holder in HOLDERS {
        let nest = Nest::plain()?;
        freed_of(&nest, holder).map_err(|stop| stop.at(format_args!("{holder:?}")))?;
        nest.finish()
            .map_err(|stop| stop.at(format_args!("{holder:?}")))?;
    }
    Ok(())
}

fn freed_of(nest: &Nest, holder: (Kind, Owner)) -> Outcome {
    let mut eggs = Vec::new();
    for seed in 0..12 {
        eggs.push(nest.lay(holder, "tag", 16 * MIB, seed)?);
    }
    let before = nest.sleep(&["tag"])?;
    let gone = eggs.split_off(4);
    nest.free_all(gone.iter().copied())?;
    nest.audit()?;
    let stats = nest.house.process.stats(0, None)?;
    ensure_eq!(stats.requested, 4 * 16 * MIB, "requested while it sleeps");
    for egg in &gone {
        let again = nest.house.free(egg.address);
        ensure!(again.is_err(), "a second free of {egg:x?} was taken");
    }
    if holder == (Kind::Pool, Owner::Segment) {
        // Such a block waits for all work when it is freed, asleep or not, until somebody looks.
        nest.house.process.trim_all()?;
    }
    let back = nest.wake(&["tag"])?;
    let (moved, copied, live) = (back.total().moved, back.total().copied, 4 * 16 * MIB);
    // In the pool what lies in one chunk with something that lives comes back with it.
    let most = if holder.0 == Kind::Pool { moved } else { live };
    ensure!(
        moved <= before.total().moved / 2 && (live..=most).contains(&copied),
        "8 of 12 were freed asleep: {before:?}, {back:?}"
    );
    ensure_eq!(nest.host_used(), 0, "bytes on the host");
    nest.verify_all(&eggs)?;
    nest.free_all(eggs)
}

/// Where all of it is freed asleep, a trim leaves nothing anywhere, without a wake.
pub fn freed_and_trimmed() -> Outcome {
    for holder in HOLDERS {
        let nest = Nest::plain()?;
        let mut eggs = Vec::new();
        for seed in 0..6 {
            eggs.push(nest.lay(holder, "tag", 5 * MIB, seed)?);
            eggs.push(nest.lay(holder, "tag", 700, seed)?);
        }
        nest.sleep(&["tag"])?;
        nest.free_all(eggs)?;
        nest.finish()
            .map_err(|stop| stop.at(format_args!("{holder:?}")))?;
    }
    Ok(())
}

/// Small blocks that threads keep for themselves, freed by others while they sleep and awake again.
pub fn freed_by_other_threads() -> Outcome {
    let nest = Nest::plain()?;
    for round in 0..4 {
        let mut eggs: Vec<Egg> = Vec::new();
        for seed in 0..64 {
            let bytes = [512, 4 * KIB, 40 * KIB, 300 * KIB][seed as usize % 4];
            eggs.push(nest.lay(POOL, "tag", bytes, round << 8 | seed)?);
        }
        // This thread's cache, and that of another, hold free blocks when sleep begins.
        let (own, rest) = eggs.split_at(8);
        let (others, rest) = rest.split_at(8);
        nest.free_all(own.iter().copied())?;
        on_another_thread(|| nest.free_all(others.iter().copied()))?;
        nest.sleep(&["tag"])?;
        let (gone, kept) = rest.split_at(24);
        on_another_thread(|| {
            nest.free_all(gone.iter().copied())?;
            // What is freed asleep serves nobody, this thread neither.
            let new = nest.lay(POOL, "tag", 512, 9)?;
            let all = gone.iter().chain(kept);
            ensure!(
                all.clone().all(|egg| egg.address != new.address),
                "{new:x?} is asleep"
            );
            nest.verify(&new)?;
            nest.house.free(new.address)
        })?;
        nest.audit()?;
        nest.wake(&["tag"])?;
        nest.verify_all(kept)?;
        on_another_thread(|| nest.free_all(kept.iter().copied()))?;
        nest.audit()?;
    }
    nest.finish()
}

fn on_another_thread(act: impl FnOnce() -> Outcome + Send) -> Outcome {
    std::thread::scope(|scope| {
        let joined = scope.spawn(act).join();
        joined.unwrap_or_else(|_| Err(Stop::from("a thread panicked")))
    })
}

/// Streams are forgotten, and others take their seats, while their memory sleeps.
pub fn streams_that_end() -> Outcome {
    let nest = Nest::plain()?;
    let process = &nest.house.process;
    for round in 0..6u64 {
        let mut eggs = Vec::new();
        for (number, bytes) in (0..).zip([700, 300 * KIB, 3 * MIB, 20 * MIB]) {
            let stream = nest.house.machine.stream()?;
            let demand = Demand {
                stream: stream.stream(),
                ..nest.demand(POOL, tag("tag")?, bytes)
            };
            for half in 0..2 {
                let egg = Egg {
                    address: nest.ask(&demand)?,
                    bytes,
                    seed: round << 8 | number << 4 | half,
                };
                nest.write(&egg)?;
                eggs.push(egg);
            }
            if round % 2 == 0 {
                nest.sleep(&["tag"])?;
            }
            process.forget_stream(0, stream.stream())?;
        }
        nest.sleep(&["tag"])?;
        let (gone, kept): (Vec<Egg>, Vec<Egg>) = eggs.iter().partition(|egg| egg.seed % 2 == 0);
        nest.free_all(gone)?;
        let more = nest.lay(POOL, "tag", 3 * MIB, 7)?;
        nest.wake(&["tag"])?;
        nest.verify_all(kept.iter().chain([&more]))?;
        nest.free_all(kept)?;
        nest.house.free(more.address)?;
        nest.audit()?;
    }
    nest.finish()
}

/// Statistics go on while memory sleeps: blocks are blocks, and what is held is less.
pub fn figures() -> Outcome {
    let nest = Nest::plain()?;
    let process = &nest.house.process;
    let mut eggs = Vec::new();
    for (seed, holder) in (0..).zip(HOLDERS) {
        eggs.push(nest.lay(holder, "tag", 8 * MIB, seed)?);
    }
    let (before, room) = (process.stats(0, None)?, process.room(0)?);
    nest.sleep(&["tag"])?;
    let (asleep, more) = (process.stats(0, None)?, process.room(0)?);
    ensure_eq!(
        (asleep.requested, asleep.allocated),
        (before.requested, before.allocated),
        "requested and allocated"
    );
    ensure!(more >= room + 32 * MIB, "room: {room}, then {more}");
    let of_tag = process.tag_stats(0, tag("tag")?)?;
    ensure_eq!(of_tag.requested, 4 * 8 * MIB, "requested of the tag");
    let block = process.block_of(eggs[2].address);
    ensure_eq!(block.map(|(at, _)| at), Some(eggs[2].address), "the block");
    process.trim_all()?;
    nest.audit()?;
    nest.wake(&["tag"])?;
    ensure_eq!(process.stats(0, None)?.reserved, before.reserved, "held");
    nest.verify_all(&eggs)?;
    nest.free_all(eggs)?;
    nest.finish()
}

/// What is told to be held is what is held.
pub fn held() -> Outcome {
    for holder in HOLDERS {
        let nest = Nest::plain()?;
        let process = &nest.house.process;
        let egg = nest.lay(holder, "tag", 8 * MIB, 1)?;
        let before = process.stats(0, None)?.reserved;
        let moved = nest.sleep(&["tag"])?.total().moved;
        let held = process.stats(0, None)?.reserved;
        ensure_eq!((held, moved), (0, before), "held by {holder:?}, and moved");
        nest.wake(&["tag"])?;
        ensure_eq!(process.stats(0, None)?.reserved, before, "held");
        nest.free_all([egg])?;
        nest.finish()?;
    }
    Ok(())
}

/// What came while a tag slept is in use as before after a second sleep has failed: what is freed of it
/// serves again.
pub fn in_use_after_a_failure() -> Outcome {
    let nest = Nest::open(
        "devices=1,memory=4GiB,poison=1",
        &[("sleep_host_limit", "16MiB")],
    )?;
    let first = nest.lay(POOL, "tag", 8 * MIB, 1)?;
    nest.sleep(&["tag"])?;
    let new = nest.lay(POOL, "tag", 40 * MIB, 2)?;
    let refused = nest.sleep(&["tag"]);
    ensure!(refused.is_err(), "the budget does not hold");
    nest.verify(&new)?;
    let held = nest.places(None)?.device;
    for seed in 3..6 {
        nest.free_all([new])?;
        let again = nest.lay(POOL, "tag", 40 * MIB, seed)?;
        ensure_eq!(nest.places(None)?.device, held, "held for one block");
        ensure_eq!(again.address, new.address, "its address");
    }
    nest.wake(&["tag"])?;
    nest.verify(&first)?;
    nest.free_all([first, new])?;
    nest.finish()
}

/// The same, freed while its stream still works on it, and then the tag wakes: another stream is not given
/// what that work uses.
pub fn not_given_on_after_a_failure() -> Outcome {
    let nest = Nest::open(
        "devices=1,memory=4GiB,poison=1",
        &[("sleep_host_limit", "16MiB")],
    )?;
    let bytes = nest.house.machine.busy_bytes().max(40 * MIB);
    let first = nest.lay(POOL, "tag", 8 * MIB, 1)?;
    nest.sleep(&["tag"])?;
    let new = nest.allocate(POOL, "tag", bytes)?;
    let refused = nest.sleep(&["tag"]);
    ensure!(refused.is_err(), "the budget does not hold");
    let busy = nest.house.machine.busy(nest.stream.stream(), new, bytes)?;
    nest.house.free(new)?;
    nest.wake(&["tag"])?;
    let other = nest.house.machine.stream()?;
    let next = nest.ask(&Demand {
        stream: other.stream(),
        ..nest.demand(POOL, tag("tag")?, bytes)
    })?;
    let is_apart = next >= new + bytes || next + bytes <= new;
    let is_running = busy.is_running()?;
    busy.end()?;
    nest.verify(&first)?;
    nest.free_all([first])?;
    nest.house.free(next)?;
    nest.house.process.forget_stream(0, other.stream())?;
    nest.finish()?;
    ensure!(
        is_apart || !is_running,
        "memory that another stream works on was given out"
    );
    Ok(())
}
