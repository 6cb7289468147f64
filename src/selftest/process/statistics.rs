//! Counts that are true, and what happens at their limits.

use super::{House, MIB};
use crate::config::value::Size;
use crate::error::Status;
use crate::gpu::Stream;
use crate::process::{Demand, Stats, tags};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::simulator::Counters;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

/// requested <= allocated <= reserved for every kind at any time, and reserved is what the simulator
/// counts by itself.
pub fn statistics() -> Outcome {
    let house = House::plain()?;
    let mut live = Vec::new();
    for round in 1..=3u64 {
        for kind in house.kinds()? {
            for bytes in [1, 1000, 300 * 1024, 5 * MIB + 7] {
                live.push(house.allocate(kind, bytes * round, Stream::LEGACY)?);
                check(&house)?;
            }
        }
        for _ in 0..6 {
            let at = (live.len() * 7 / 11).min(live.len() - 1);
            house.free(live.swap_remove(at))?;
            check(&house)?;
        }
    }
    for address in live {
        house.free(address)?;
        check(&house)?;
    }
    let total = house.process.stats(0, None)?;
    ensure_eq!(
        total.allocations,
        total.deallocations,
        "allocations and frees"
    );
    ensure!(total.peak_reserved >= total.peak_allocated, "{total:?}");
    ensure!(total.peak_allocated >= total.peak_requested, "{total:?}");
    house.finish()
}

/// Peaks begin again from what there is when they are reset; totals go on.
pub fn peaks_and_totals() -> Outcome {
    let house = House::plain()?;
    for kind in house.kinds()? {
        let before = house.process.stats(0, Some(kind))?;
        let kept = house.allocate(kind, 6 * MIB, Stream::LEGACY)?;
        let gone = house.allocate(kind, 10 * MIB, Stream::LEGACY)?;
        house.free(gone)?;
        house.process.trim(0, 0)?;
        let high = house.process.stats(0, Some(kind))?;
        ensure_eq!(high.peak_requested, 16 * MIB, "peak of {kind:?}");
        ensure_eq!(high.peak_blocks, 2, "peak of the blocks of {kind:?}");
        ensure!(high.peak_reserved >= 16 * MIB, "{kind:?}: {high:?}");
        house.process.reset_peaks(0)?;
        let low = house.process.stats(0, Some(kind))?;
        ensure_eq!(
            low.peak_requested,
            6 * MIB,
            "peak of {kind:?} after a reset"
        );
        ensure_eq!(low.peak_allocated, low.allocated, "{kind:?} after a reset");
        ensure_eq!(low.peak_reserved, low.reserved, "{kind:?} after a reset");
        ensure_eq!(low.peak_blocks, 1, "blocks of {kind:?} after a reset");
        ensure_eq!(
            low.total_requested,
            before.total_requested + 16 * MIB,
            "{kind:?}"
        );
        ensure!(
            low.total_allocated >= low.total_requested,
            "{kind:?}: {low:?}"
        );
        ensure!(low.total_reserved >= low.reserved, "{kind:?}: {low:?}");
        ensure_eq!(
            low.allocations - before.allocations,
            2,
            "blocks of {kind:?}"
        );
        ensure_eq!(
            low.deallocations - before.deallocations,
            1,
            "frees of {kind:?}"
        );
        let raised = house.allocate(kind, MIB, Stream::LEGACY)?;
        let again = house.process.stats(0, Some(kind))?;
        ensure_eq!(
            again.peak_requested,
            7 * MIB,
            "peak of {kind:?} after another"
        );
        house.free(raised)?;
        house.free(kept)?;
    }
    house.finish()
}

fn check(house: &House) -> Outcome {
    let mut sum = Stats::default();
    for kind in Kind::ALL {
        let stats = house.process.stats(0, Some(kind))?;
        ensure!(
            stats.requested <= stats.allocated && stats.allocated <= stats.reserved,
            "{kind:?}: {stats:?}"
        );
        if let Some(sim) = house.machine.sim {
            let counted = counted(house, &sim.counters(), kind)?;
            ensure_eq!(stats.reserved, counted, "reserved by {kind:?}");
        }
        sum.requested += stats.requested;
        sum.allocated += stats.allocated;
        sum.reserved += stats.reserved;
    }
    let total = house.process.stats(0, None)?;
    let sums = (sum.requested, sum.allocated, sum.reserved);
    ensure_eq!(
        (total.requested, total.allocated, total.reserved),
        sums,
        "sums"
    );
    house.process.device(0)?.state().extents.audit()?;
    Ok(())
}

/// What the simulator counts of a kind: chunks are the vmm source's and the pool's together.
fn counted(house: &House, counters: &Counters, kind: Kind) -> Result<u64, Stop> {
    let beside = |other: Kind| -> Result<u64, Stop> {
        Ok(counted_with_others(counters, kind) - house.process.stats(0, Some(other))?.reserved)
    };
    Ok(match kind {
        Kind::Vmm => beside(Kind::Pool)?,
        Kind::Pool => beside(Kind::Vmm)?,
        kind => counted_with_others(counters, kind),
    })
}

fn counted_with_others(counters: &Counters, kind: Kind) -> u64 {
    match kind {
        Kind::Device => counters.device_bytes,
        Kind::Managed => counters.managed_bytes,
        Kind::Async => counters.async_reserved_bytes,
        Kind::Pinned => counters.pinned_bytes,
        Kind::Vmm | Kind::Pool => counters.chunk_bytes + counters.host_chunk_bytes,
    }
}

/// Failed requests are counted and change nothing else.
pub fn failures() -> Outcome {
    let house = House::plain()?;
    for kind in house.kinds()? {
        let before = house.process.stats(0, Some(kind))?;
        let refused = house
            .process
            .allocate(house.demand(kind, 1 << 50, Stream::LEGACY));
        let status = refused.err().map(|error| error.status());
        ensure_eq!(status, Some(Status::OutOfMemory), "{kind:?}");
        let after = house.process.stats(0, Some(kind))?;
        ensure_eq!(
            after.failed_allocations,
            before.failed_allocations + 1,
            "failures of {kind:?}"
        );
        ensure_eq!(
            after.out_of_memory,
            before.out_of_memory + 1,
            "of those for want of memory, of {kind:?}"
        );
        ensure_eq!(after.allocated, before.allocated, "allocated by {kind:?}");
    }
    house.finish()
}

/// A limit on what blocks of all kinds take together.
pub fn limit() -> Outcome {
    let house = House::plain()?;
    ensure_eq!(
        house.process.stats(0, None)?.limit,
        u64::MAX,
        "no limit yet"
    );
    house.process.set_limit(0, Size::Bytes(64 * MIB))?;
    ensure_eq!(house.process.stats(0, None)?.limit, 64 * MIB, "limit");
    let mut kinds = house.kinds()?;
    kinds.retain(|kind| *kind != Kind::Pinned);
    for kind in kinds {
        let half = house.allocate(kind, 40 * MIB, Stream::LEGACY)?;
        let refused = house
            .process
            .allocate(house.demand(kind, 30 * MIB, Stream::LEGACY));
        let error = refused.err().ok_or("the limit was passed".to_owned())?;
        ensure_eq!(error.status(), Status::OutOfMemory, "{error}");
        let text = error.to_string();
        for figure in [64 * MIB, 30 * MIB, 40 * MIB] {
            ensure!(text.contains(&figure.to_string()), "no {figure} in: {text}");
        }
        let rest = house.allocate(kind, 20 * MIB, Stream::LEGACY)?;
        house.free(half)?;
        house.free(rest)?;
    }
    house.finish()
}

/// A block is had where the limit, or the device, leaves room for just that block.
pub fn just_within() -> Outcome {
    let house = House::open("devices=2,memory=256MiB", &[])?;
    house.sim()?;
    for kind in house.those_of(&[Kind::Device, Kind::Vmm, Kind::Pool])? {
        for bytes in [2 * MIB, 20 * MIB, 64 * MIB] {
            house.process.set_limit(0, Size::Bytes(bytes))?;
            let block = house.allocate(kind, bytes, Stream::LEGACY)?;
            house.free(block)?;
            house.process.trim(0, 0)?;
            house.process.set_limit(0, Size::Bytes(0))?;
            let most = house.allocate(kind, 256 * MIB - bytes, Stream::LEGACY)?;
            let rest = house.allocate(kind, bytes, Stream::LEGACY)?;
            house.free(most)?;
            house.free(rest)?;
            house.process.trim(0, 0)?;
        }
    }
    house.finish()
}

/// The error says what is free, what this process holds and what waits.
pub fn out_of_memory_text() -> Outcome {
    let house = House::open("devices=1,memory=64MiB", &[])?;
    house.sim()?;
    let live = house.allocate(Kind::Vmm, 16 * MIB, Stream::LEGACY)?;
    for kind in [Kind::Device, Kind::Async, Kind::Vmm, Kind::Pool] {
        let refused = house
            .process
            .allocate(house.demand(kind, 60 * MIB, Stream::LEGACY));
        let text = refused.err().ok_or("60 of 48 MiB".to_owned())?.to_string();
        for figure in [60 * MIB, 48 * MIB, 64 * MIB, 16 * MIB] {
            ensure!(text.contains(&figure.to_string()), "no {figure} in: {text}");
        }
        ensure!(
            text.contains(". Free blocks, or ask for less"),
            "no next step in: {text}"
        );
        let too_large = house.demand(kind, 1 << 45, Stream::LEGACY);
        let text = (house.process.allocate(too_large).err())
            .ok_or("32 TiB of 64 MiB".to_owned())?
            .to_string();
        ensure!(
            text.contains("35184372088832 bytes asked for")
                && text.contains(". The device as a whole is smaller: ask for less"),
            "no next step in: {text}"
        );
        let beyond = "it serves blocks of up to 1099511627264 bytes";
        ensure_eq!(text.contains(beyond), kind == Kind::Pool, "{text}");
    }
    house.free(live)?;
    house.finish()
}

/// Word for word: the limit, what is held and in blocks, the pool's among them, and the tags that hold
/// most.
pub fn out_of_memory_report() -> Outcome {
    let house = House::open("devices=1,memory=256MiB", &[])?;
    house.sim()?;
    house.process.set_limit(0, Size::Bytes(128 * MIB))?;
    let tagged = |kind: Kind, tag: &str, bytes: u64| -> Result<u64, Stop> {
        Ok(house.process.allocate(Demand {
            tag: tags::table().intern(tag)?,
            ..house.demand(kind, bytes, Stream::LEGACY)
        })?)
    };
    let blocks = [
        tagged(Kind::Pool, "weights", 32 * MIB)?,
        tagged(Kind::Vmm, "kv_cache", 48 * MIB)?,
        tagged(Kind::Vmm, "weights", 2 * MIB)?,
        house.allocate(Kind::Pool, 8 * MIB, Stream::LEGACY)?,
        tagged(Kind::Vmm, "least of all", 1)?,
    ];
    for kind in [Kind::Pool, Kind::Vmm, Kind::Device] {
        let error = (house.allocate(kind, 64 * MIB, Stream::LEGACY).err())
            .map(|stop| format!("{stop:?}"))
            .ok_or("64 MiB more were had")?;
        // The pool may hold a little more than its blocks take.
        let pooled = house.process.stats(0, Some(Kind::Pool))?;
        ensure!((40..48).contains(&(pooled.reserved / MIB)), "{pooled:?}");
        let taken = (32 + 48 + 2 + 8 + 2) * MIB;
        let held = taken - 40 * MIB + pooled.reserved;
        let wanted = format!(
            "device 0 has {} bytes free of {} bytes, its limit is {} bytes; this process holds {held} bytes, {taken} bytes of them in blocks, and 0 freed blocks of 0 bytes wait for work to end; its blocks take {} bytes under 'kv_cache', {} bytes under 'weights', {} bytes under no tag",
            256 * MIB - held,
            256 * MIB,
            128 * MIB,
            48 * MIB,
            34 * MIB,
            8 * MIB
        );
        ensure!(
            error.contains(&wanted),
            "{kind:?}: not as expected: {error}"
        );
        let pool = format!(
            "; the pool holds {} bytes, {} bytes of them in blocks; its largest free piece has {} bytes",
            pooled.reserved,
            40 * MIB,
            pooled.reserved - 40 * MIB
        );
        ensure_eq!(error.contains(&pool), kind == Kind::Pool, "{error}");
        ensure!(
            error.contains(
                ". Raise the limit (set_limit, HBMALLOC_LIMIT); free blocks, or ask for less"
            ),
            "no next step in: {error}"
        );
    }
    for block in blocks {
        house.free(block)?;
    }
    house.finish()
}

/// What a trim says it gave back is what the device has more.
pub fn trim() -> Outcome {
    let house = House::plain()?;
    let sim = house.sim()?;
    for kind in house.kinds()? {
        let block = house.allocate(kind, 48 * MIB, Stream::LEGACY)?;
        house.free(block)?;
        let before = sim.counters();
        let said = house.process.trim(0, 0)?;
        let now = sim.counters();
        ensure_eq!(
            said,
            counted_with_others(&before, kind) - counted_with_others(&now, kind),
            "given back by {kind:?}"
        );
    }
    house.finish()
}
