//! What is counted of the work that the pool and the driver do.

use super::{House, MIB};
use crate::config::value::Size;
use crate::gpu::Stream;
use crate::process::PoolStats;
use crate::selftest::Outcome;
use crate::selftest::check::{ensure, ensure_eq};
use crate::source::Kind;

/// Every request is a hit, served by what was collected, or a miss, as the simulator's count of
/// chunks and of calls shows.
pub fn hits_and_misses() -> Outcome {
    let house = House::plain()?;
    let sim = house.sim()?;
    let stats = || house.process.pool_stats(0);
    ensure_eq!(stats()?, PoolStats::default(), "nothing was done yet");
    let block = house.allocate(Kind::Pool, 40 * MIB, Stream::LEGACY)?;
    let first = stats()?;
    ensure_eq!((first.hits, first.misses), (0, 1), "the first request");
    ensure_eq!(first.chunks, sim.counters().chunks, "chunks");
    ensure_eq!(first.creates, first.chunks, "chunks made");
    house.free(block)?;
    let calls = house.process.driver_stats()?.calls;
    for _ in 0..1000 {
        let block = house.allocate(Kind::Pool, 40 * MIB, Stream::LEGACY)?;
        house.free(block)?;
    }
    let then = stats()?;
    ensure_eq!((then.hits, then.misses), (1000, 1), "the same again");
    let now = house.process.driver_stats()?.calls;
    ensure_eq!(now, calls, "calls of the driver for a thousand hits");
    ensure_eq!(
        (then.cached, then.kept),
        (40 * MIB, 40 * MIB),
        "the thread keeps it"
    );
    let kept = house.allocate(Kind::Pool, 40 * MIB, Stream::LEGACY)?;
    let rest = house.allocate(Kind::Pool, 24 * MIB, Stream::LEGACY)?;
    house.free(kept)?;
    house.free(rest)?;
    let then = stats()?;
    let free = then.cached - then.kept;
    ensure!(then.kept <= 24 * MIB && free >= 40 * MIB, "{then:?}");
    ensure!(
        then.releasable >= 40 * MIB && then.releasable <= free,
        "{then:?}"
    );
    ensure!(then.largest_free >= 40 * MIB, "{then:?}");
    // Another stream, once the first is done: at the same address, without a new chunk.
    house.machine.synchronize()?;
    let stream = house.machine.stream()?;
    let other = house.allocate(Kind::Pool, 40 * MIB, stream.stream())?;
    let taken = stats()?;
    ensure_eq!(other, block, "the address");
    ensure_eq!(
        (taken.collected, taken.misses),
        (1, 2),
        "what was collected"
    );
    ensure!(taken.owner_changes > then.owner_changes, "{taken:?}");
    house.free(other)?;
    house.process.forget_stream(0, stream.stream())?;
    drop(stream);
    stitches(&house)?;
    house.process.trim_all()?;
    let end = stats()?;
    ensure_eq!((end.chunks, end.cached), (0, 0), "after a trim");
    ensure_eq!(end.releases, end.creates, "chunks given back");
    let total = house.process.stats(0, Some(Kind::Pool))?;
    ensure_eq!(
        end.hits + end.collected + end.misses,
        total.allocations,
        "hits and misses are all there is"
    );
    ensure_eq!(total.total_segments, end.creates, "segments ever had");
    house.finish()
}

/// Free memory in two places serves a block that fits in neither, where a limit allows no more.
fn stitches(house: &House) -> Outcome {
    house.process.trim_all()?;
    house.process.set_limit(0, Size::Bytes(256 * MIB))?;
    let blocks: Result<Vec<u64>, _> = (0..8)
        .map(|_| house.allocate(Kind::Pool, 32 * MIB, Stream::LEGACY))
        .collect();
    let blocks = blocks?;
    for block in blocks.iter().step_by(2) {
        house.free(*block)?;
    }
    let before = house.process.pool_stats(0)?;
    let large = house.allocate(Kind::Pool, 100 * MIB, Stream::LEGACY)?;
    let after = house.process.pool_stats(0)?;
    ensure!(after.stitches > before.stitches, "{before:?}, {after:?}");
    ensure!(after.stitched_bytes > before.stitched_bytes, "{after:?}");
    house.free(large)?;
    for block in blocks.iter().skip(1).step_by(2) {
        house.free(*block)?;
    }
    Ok(house.process.set_limit(0, Size::Bytes(0))?)
}

/// A request that is tried again after cached memory has gone is counted once.
pub fn retries() -> Outcome {
    let house = House::open("devices=1,memory=256MiB", &[])?;
    house.sim()?;
    for kind in house.those_of(&[Kind::Device, Kind::Vmm, Kind::Pool])? {
        let before = house.process.stats(0, Some(kind))?;
        let block = house.allocate(kind, 16 * MIB, Stream::LEGACY)?;
        let refused = house.allocate(kind, 250 * MIB, Stream::LEGACY);
        ensure!(refused.is_err(), "{kind:?}: 266 of 256 MiB");
        let after = house.process.stats(0, Some(kind))?;
        ensure_eq!(after.retries, before.retries + 1, "retries of {kind:?}");
        house.free(block)?;
        house.process.trim_all()?;
    }
    ensure!(
        house.process.pool_stats(0)?.waits > 0,
        "nothing was waited for"
    );
    house.finish()
}

/// Calls are always counted, and timed while the option says so.
pub fn driver_calls() -> Outcome {
    let house = House::plain()?;
    let stats = || house.process.driver_stats();
    let work = || -> Outcome {
        let block = house.allocate(Kind::Vmm, MIB, Stream::LEGACY)?;
        house.free(block)?;
        house.process.trim_all()?;
        Ok(())
    };
    ensure_eq!(stats()?.calls, 0, "calls before the first use");
    work()?;
    let untimed = stats()?;
    ensure!(untimed.calls > 5, "{untimed:?}");
    ensure_eq!((untimed.timed_calls, untimed.nanoseconds), (0, 0), "timed");
    house.process.settings().set("driver_timing", "on")?;
    house.process.apply_driver_timing();
    work()?;
    let timed = stats()?;
    ensure_eq!(
        timed.timed_calls,
        timed.calls - untimed.calls,
        "timed calls"
    );
    ensure!(timed.nanoseconds > 0, "{timed:?}");
    house.process.settings().set("driver_timing", "off")?;
    house.process.apply_driver_timing();
    work()?;
    let then = stats()?;
    ensure!(then.calls > timed.calls, "{then:?}");
    ensure_eq!(then.nanoseconds, timed.nanoseconds, "time");
    house.finish()?;
    let early = House::open("devices=1", &[("driver_timing", "on")])?;
    early.process.device(0)?;
    ensure!(
        early.process.driver_stats()?.nanoseconds > 0,
        "from the start"
    );
    early.finish()
}
