//! What memory holds, before and after.

use super::{Egg, HOLDERS, KIB, MIB, Nest, request};
use crate::extent::table::Owner;
use crate::process::residency::To;
use crate::residency::Amounts;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

const POOL: (Kind, Owner) = (Kind::Pool, Owner::Block);
const VMM: (Kind, Owner) = (Kind::Vmm, Owner::Block);
const SEGMENT: (Kind, Owner) = (Kind::Vmm, Owner::Segment);

const SIZES: [u64; 16] = [
    1,
    255,
    511,
    512,
    513,
    4 * KIB,
    64 * KIB + 1,
    300 * KIB,
    MIB - 1,
    MIB,
    MIB + 1,
    2 * MIB,
    5 * MIB + 3,
    20 * MIB,
    33 * MIB,
    67 * MIB + 3,
];

fn one_of_every_size(nest: &Nest, holder: (Kind, Owner), tag: &str) -> Result<Vec<Egg>, Stop> {
    let lay = |(seed, bytes): (usize, &u64)| nest.lay(holder, tag, *bytes, seed as u64 + 1);
    SIZES.iter().enumerate().map(lay).collect()
}

/// Blocks and segments of every size come back whole, to their addresses.
pub fn of_every_size() -> Outcome {
    for holder in HOLDERS {
        let nest = Nest::plain()?;
        every_size_of(&nest, holder).map_err(|stop| stop.at(format_args!("{holder:?}")))?;
        nest.finish()
            .map_err(|stop| stop.at(format_args!("{holder:?}")))?;
    }
    Ok(())
}

fn every_size_of(nest: &Nest, holder: (Kind, Owner)) -> Outcome {
    let eggs = one_of_every_size(nest, holder, "weights")?;
    let requested: u64 = eggs.iter().map(|egg| egg.bytes).sum();
    for _ in 0..3 {
        let report = nest.sleep(&["weights"])?;
        let there = nest.places(Some("weights"))?;
        ensure!(
            report.total().moved >= requested,
            "{report:?} of {requested}"
        );
        ensure!(
            there.device == 0 && there.host == report.total().moved,
            "asleep: {there:?}, {report:?}"
        );
        ensure_eq!(nest.host_used(), report.total().copied, "bytes on the host");
        if let Some(sim) = nest.house.machine.sim {
            ensure_eq!(sim.counters().chunk_bytes, 0, "bytes of the device");
        }
        let back = nest.wake(&["weights"])?;
        ensure_eq!(
            (back.total().moved, back.total().copied),
            (report.total().moved, report.total().copied),
            "had again and copied"
        );
        ensure_eq!(nest.host_used(), 0, "bytes on the host");
        nest.verify_all(&eggs)?;
    }
    nest.free_all(eggs)
}

/// A block larger than a part of the host's room.
pub fn across_parts() -> Outcome {
    for holder in [VMM, POOL] {
        let nest = Nest::plain()?;
        // The first leaves room that begins in the middle of a part.
        let small = nest.lay(holder, "one", 3 * MIB, 1)?;
        let large = nest.lay(holder, "two", 150 * MIB, 2)?;
        nest.sleep(&["one"])?;
        nest.sleep(&["two"])?;
        nest.wake(&["one"])?;
        // The room of the first is free between what is used.
        let more = nest.lay(holder, "three", 7 * MIB, 3)?;
        nest.sleep(&["one", "three"])?;
        nest.wake(&["three", "two", "one"])?;
        let eggs = [small, large, more];
        nest.verify_all(&eggs)?;
        nest.free_all(eggs)?;
        nest.finish()?;
    }
    Ok(())
}

/// Of the pool only what is in blocks is copied.
pub fn packed() -> Outcome {
    let nest = Nest::plain()?;
    let mut eggs = Vec::new();
    for seed in 0..64 {
        eggs.push(nest.lay(POOL, "holes", MIB, seed)?);
    }
    let (kept, gone): (Vec<Egg>, Vec<Egg>) = eggs.into_iter().partition(|egg| egg.seed % 2 == 0);
    nest.free_all(gone)?;
    let report = nest.sleep(&["holes"])?;
    ensure_eq!(report.total().copied, 32 * MIB, "bytes copied");
    ensure_eq!(nest.host_used(), 32 * MIB, "bytes in use on the host");
    nest.wake(&["holes"])?;
    nest.verify_all(&kept)?;
    nest.free_all(kept)?;
    // Nothing lives: nothing is copied, and nothing need come back.
    let report = nest.sleep(&["holes"])?;
    ensure_eq!(report.total().copied, 0, "bytes copied of nothing");
    ensure_eq!(
        nest.wake(&["holes"])?.total().moved,
        0,
        "chunks for nothing"
    );
    nest.finish()
}

/// What whoever divides a segment up has free in it is not copied.
pub fn of_segments_in_part() -> Outcome {
    let nest = Nest::plain()?;
    let segment = nest.lay(SEGMENT, "segments", 40 * MIB, 1)?;
    let block = nest.lay(VMM, "segments", 6 * MIB, 2)?;
    let at = segment.address;
    let mut wanted = request(&["segments"]);
    wanted.dead = vec![
        (at + 30 * MIB, 10 * MIB),
        (at + 3 * MIB + 512, MIB),
        (at + 8 * MIB, 8 * MIB),
        (at + 10 * MIB, MIB),
        // Blocks are live whatever is said of them.
        (block.address, block.bytes),
    ];
    let report = nest.house.process.sleep(&wanted, To::Host.into())?;
    nest.audit()?;
    ensure_eq!(
        (report.total().moved, report.total().copied),
        (46 * MIB, 27 * MIB),
        "moved and copied"
    );
    nest.wake(&["segments"])?;
    let mut found = vec![0; 40 * MIB as usize];
    let device = &nest.house.machine.device;
    device.copy_to_host(&mut found, at, nest.stream.stream())?;
    let expected = super::pattern(1, 40 * MIB);
    for (begin, end) in [
        (0, 3 * MIB + 512),
        (4 * MIB + 512, 8 * MIB),
        (16 * MIB, 30 * MIB),
    ] {
        let (begin, end) = (begin as usize, end as usize);
        ensure!(
            found[begin..end] == expected[begin..end],
            "{begin:#x}..{end:#x} has changed"
        );
    }
    nest.verify(&block)?;
    nest.free_all([segment, block])?;
    nest.finish()
}

/// What sleeps sleeps on, what is awake stays so, and nothing is nothing.
pub fn told_twice() -> Outcome {
    let nest = Nest::plain()?;
    let nothing = Amounts::default();
    nest.house.process.device(0)?;
    ensure_eq!(nest.sleep(&[])?.total(), nothing, "a sleep of nothing");
    ensure_eq!(nest.wake(&[])?.total(), nothing, "a wake of nothing");
    let mut eggs = one_of_every_size(&nest, POOL, "twice")?;
    eggs.push(nest.lay(VMM, "twice", 5 * MIB, 77)?);
    ensure_eq!(
        nest.wake(&["twice"])?.total(),
        nothing,
        "a wake of what never slept"
    );
    let first = nest.sleep(&["twice", "twice"])?;
    for tags in [&["twice"][..], &[]] {
        ensure_eq!(nest.sleep(tags)?.total(), nothing, "a second sleep");
        ensure_eq!(nest.host_used(), first.total().copied, "bytes on the host");
    }
    ensure_eq!(
        nest.wake(&["twice", "twice"])?.total().moved,
        first.total().moved,
        "had again"
    );
    for tags in [&["twice"][..], &[]] {
        ensure_eq!(nest.wake(tags)?.total(), nothing, "a second wake");
    }
    nest.verify_all(&eggs)?;
    nest.free_all(eggs)?;
    nest.finish()
}

/// Without tags everything goes; with tags nothing else does.
pub fn untagged() -> Outcome {
    let nest = Nest::plain()?;
    let mut eggs = Vec::new();
    for (seed, tag) in (1..).zip(["", "named", "other"]) {
        for (number, holder) in (0..).zip(HOLDERS) {
            eggs.push(nest.lay(holder, tag, 3 * MIB, 10 * seed + number)?);
        }
    }
    let all = nest.places(None)?.device;
    let named = nest.sleep(&["named"])?.total().moved;
    ensure_eq!(nest.places(Some("other"))?.host, 0, "asleep of another tag");
    ensure_eq!(nest.places(None)?.host, named, "asleep in all");
    nest.verify_all(eggs.iter().filter(|egg| egg.seed / 10 != 2))?;
    let rest = nest.sleep(&[])?.total().moved;
    ensure!(
        named > 0 && named + rest <= all,
        "{named} + {rest} of {all}"
    );
    ensure_eq!(nest.places(None)?.device, 0, "awake");
    nest.wake(&["other"])?;
    nest.verify_all(eggs.iter().filter(|egg| egg.seed / 10 == 3))?;
    ensure!(nest.places(None)?.host > 0, "all of it is awake");
    nest.wake(&[])?;
    ensure_eq!(nest.places(None)?.host, 0, "asleep");
    nest.verify_all(&eggs)?;
    nest.free_all(eggs)?;
    nest.finish()
}

/// Addresses stay, contents go, those that were saved too.
pub fn discarded() -> Outcome {
    for holder in HOLDERS {
        let nest = Nest::plain()?;
        let egg = nest.lay(holder, "scratch", 6 * MIB, 1)?;
        let kept = nest.lay(holder, "kept", 6 * MIB, 2)?;
        let gone = nest.discard(&["scratch"])?;
        ensure!(
            gone.total().moved >= 6 * MIB && gone.total().copied == 0,
            "{gone:?}"
        );
        let there = nest.places(Some("scratch"))?;
        ensure_eq!(
            (there.device, there.discarded),
            (0, gone.total().moved),
            "awake and discarded"
        );
        ensure_eq!(nest.host_used(), 0, "bytes on the host");
        // Asleep with nothing saved, it cannot be saved any more.
        ensure_eq!(
            nest.sleep(&["scratch"])?.total().copied,
            0,
            "copied of nothing"
        );
        let back = nest.wake(&["scratch"])?;
        ensure_eq!(
            (back.total().moved, back.total().copied),
            (gone.total().moved, 0),
            "had, copied"
        );
        nest.write(&egg)?;
        nest.verify(&egg)?;
        nest.sleep(&[])?;
        ensure!(nest.host_used() >= 12 * MIB, "not all was saved");
        ensure_eq!(
            nest.discard(&["scratch"])?.total().moved,
            0,
            "given back twice"
        );
        ensure_eq!(nest.host_used(), 6 * MIB, "bytes on the host");
        nest.wake(&[])?;
        nest.verify(&kept)?;
        nest.write(&egg)?;
        nest.verify_all([&egg, &kept])?;
        nest.free_all([egg, kept])?;
        nest.finish()?;
    }
    Ok(())
}
