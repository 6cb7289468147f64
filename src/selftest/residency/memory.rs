//! Memory of the device runs out, is limited, or has to stay.

use super::{MIB, Nest, fails_with, request};
use crate::config::value::Size;
use crate::error::Status;
use crate::extent::table::Owner;
use crate::process::residency::To;
use crate::selftest::Outcome;
use crate::selftest::check::{ensure, ensure_eq};
use crate::source::Kind;

const POOL: (Kind, Owner) = (Kind::Pool, Owner::Block);
const VMM: (Kind, Owner) = (Kind::Vmm, Owner::Block);
const PLAIN: (Kind, Owner) = (Kind::Device, Owner::Block);

/// A wake that finds too little memory changes nothing, and a later one works; in parts too.
pub fn out_on_wake() -> Outcome {
    for holder in super::HOLDERS {
        let nest = Nest::open("devices=1,memory=200MiB,poison=1", &[])?;
        nest.house.sim()?;
        let eggs = [
            nest.lay(holder, "one", 40 * MIB, 1)?,
            nest.lay(holder, "two", 64 * MIB, 2)?,
        ];
        nest.sleep(&[])?;
        let asleep = (nest.places(None)?, nest.host_used());
        let filler = nest.lay(PLAIN, "filler", 110 * MIB, 3)?;
        for _ in 0..2 {
            let refused = nest.house.process.wake(&request(&[]));
            nest.audit()?;
            fails_with("a wake without memory", refused, Status::OutOfMemory)?;
            let after = (nest.places(None)?, nest.host_used());
            ensure_eq!(after, asleep, "where it is after a refusal");
        }
        nest.verify(&filler)?;
        nest.wake(&["one"])?;
        nest.verify(&eggs[0])?;
        let refused = nest.house.process.wake(&request(&["two"]));
        fails_with("a wake of the rest", refused, Status::OutOfMemory)?;
        // What the device has left may be less than it says, and is found out only on the way.
        nest.free_all([filler])?;
        let sim = nest.house.sim()?;
        let free = nest.house.machine.device.memory_info()?.0;
        sim.out_of_memory_at(0, 200 * MIB - free + 40 * MIB);
        let refused = nest.house.process.wake(&request(&["two"]));
        sim.out_of_memory_at(0, 0);
        fails_with("a wake half way", refused, Status::OutOfMemory)?;
        nest.audit()?;
        nest.wake(&[])?;
        nest.verify_all(&eggs)?;
        nest.free_all(eggs)?;
        nest.finish()?;
    }
    Ok(())
}

/// What sleeps takes nothing of the limit, and has to fit when it comes back.
pub fn beyond_the_limit() -> Outcome {
    for holder in [VMM, POOL] {
        let nest = Nest::plain()?;
        let process = &nest.house.process;
        process.device(0)?;
        process.set_limit(0, Size::Bytes(100 * MIB))?;
        let egg = nest.lay(holder, "one", 60 * MIB, 1)?;
        let refused = nest.lay(holder, "two", 60 * MIB, 2);
        ensure!(refused.is_err(), "the limit does not hold");
        nest.sleep(&["one"])?;
        let other = nest.lay(holder, "two", 60 * MIB, 2)?;
        let refused = process.wake(&request(&["one"]));
        nest.audit()?;
        fails_with("a wake beyond the limit", refused, Status::OutOfMemory)?;
        nest.verify(&other)?;
        nest.sleep(&["two"])?;
        nest.wake(&["one"])?;
        nest.verify(&egg)?;
        process.set_limit(0, Size::Bytes(200 * MIB))?;
        nest.wake(&["two"])?;
        nest.verify_all([&egg, &other])?;
        nest.free_all([egg, other])?;
        process.set_limit(0, Size::Bytes(0))?;
        nest.finish()?;
    }
    Ok(())
}

/// Free chunks that the pool holds are no reason to refuse a wake.
pub fn what_is_cached_makes_room() -> Outcome {
    let nest = Nest::plain()?;
    let process = &nest.house.process;
    process.device(0)?;
    process.set_limit(0, Size::Bytes(100 * MIB))?;
    let egg = nest.lay(VMM, "one", 60 * MIB, 1)?;
    nest.sleep(&["one"])?;
    for bytes in [60 * MIB, MIB] {
        let cached = nest.lay(POOL, "two", bytes, 2)?;
        nest.free_all([cached])?;
    }
    nest.wake(&["one"])?;
    nest.verify(&egg)?;
    nest.free_all([egg])?;
    process.set_limit(0, Size::Bytes(0))?;
    nest.finish()
}

/// What is pinned stays where it is, whatever lies beside it, until it is no longer.
pub fn pinned() -> Outcome {
    for holder in super::HOLDERS {
        let nest = Nest::plain()?;
        pinned_of(&nest, holder).map_err(|stop| stop.at(format_args!("{holder:?}")))?;
        nest.finish()
            .map_err(|stop| stop.at(format_args!("{holder:?}")))?;
    }
    Ok(())
}

fn pinned_of(nest: &Nest, holder: (Kind, Owner)) -> Outcome {
    let process = &nest.house.process;
    let stays = nest.lay(holder, "tag", 8 * MIB, 1)?;
    let goes = nest.lay(holder, "tag", 24 * MIB, 2)?;
    let small = nest.lay(holder, "tag", 700, 3)?;
    process.pin(stays.address, stays.bytes)?;
    process.pin(stays.address + 5, 1)?;
    for to in [To::Host, To::Nothing] {
        let report = process.sleep(&request(&["tag"]), to.into())?;
        nest.audit()?;
        let there = nest.places(Some("tag"))?;
        ensure!(report.total().pinned >= 8 * MIB, "{report:?}");
        ensure_eq!(
            (there.device, there.pinned),
            (report.total().pinned, report.total().pinned),
            "awake, and pinned"
        );
        nest.verify(&stays)?;
        if to == To::Host {
            // What is allocated and freed beside it works.
            let new = nest.lay(holder, "tag", MIB, 4)?;
            nest.verify_all([&new, &stays])?;
            nest.free_all([new])?;
            let asleep = process.pin(small.address, 1);
            fails_with("a pin asleep", asleep, Status::InvalidArgument)?;
            nest.wake(&["tag"])?;
            nest.verify_all([&goes, &small, &stays])?;
        }
    }
    nest.wake(&["tag"])?;
    nest.verify(&stays)?;
    nest.write(&goes)?;
    process.unpin(stays.address + 5, 1)?;
    let report = process.sleep(&request(&["tag"]), To::Host.into())?;
    ensure!(report.total().pinned > 0, "one pin is left: {report:?}");
    nest.wake(&["tag"])?;
    process.unpin(stays.address, stays.bytes)?;
    let once_more = process.unpin(stays.address, stays.bytes);
    fails_with("one unpin too many", once_more, Status::InvalidArgument)?;
    ensure_eq!(nest.sleep(&["tag"])?.total().pinned, 0, "pinned");
    ensure_eq!(nest.places(None)?.device, 0, "awake");
    nest.wake(&["tag"])?;
    nest.verify_all([&stays, &goes])?;
    nest.free_all([stays, goes, small])?;
    fails_with("a pin of nothing", process.pin(8, 8), Status::NotOwned)?;
    Ok(())
}
