//! Memory of captured graphs: mapped until the last graph of its pool is gone, because a replay
//! writes where its capture did.

use super::{House, MAPPED, MIB};
use crate::error::{self, Status, Warning};
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::process::Demand;
use crate::registry::GraphPool;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::{CAPTURE_GLOBAL, CAPTURE_RELAXED};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

pub(super) const BYTES: u64 = 6 * MIB;

pub(super) fn pool(id: u64) -> GraphPool {
    GraphPool {
        device: 0,
        id: (0, id),
    }
}

/// Runs `body` in a capture on `stream` into `pool`, as torch's hooks tell of it.
pub(super) fn in_capture<T>(
    house: &House,
    pool: GraphPool,
    stream: Stream,
    body: impl FnOnce() -> Result<T, Stop>,
) -> Result<T, Stop> {
    house.process.graph_begin(pool)?;
    house.machine.begin_capture(stream, CAPTURE_GLOBAL)?;
    let outcome = body();
    house
        .machine
        .end_capture(stream)
        .map_err(|stop| stop.at("the capture's end"))?;
    house.process.graph_end(pool)?;
    outcome
}

/// Runs `body` for each kind whose memory the table of extents shows, each in a process of its own.
pub(super) fn on_each_mapped(body: fn(&House, Kind) -> Outcome) -> Outcome {
    for kind in MAPPED {
        let house = House::plain()?;
        if house.has(kind)? {
            body(&house, kind).map_err(|stop| stop.at(kind.name()))?;
            house.finish().map_err(|stop| stop.at(kind.name()))?;
        }
    }
    Ok(())
}

/// What a replay would do.
pub(super) fn write(house: &House, address: u64, stream: Stream) -> Outcome {
    house.machine.device.fill(address, 3, BYTES, stream)?;
    house.machine.synchronize()
}

/// Blocks of a capture, freed in it or after it, stay until release. What the async source may not
/// give to a graph comes from virtual memory.
pub fn graph_memory() -> Outcome {
    let house = House::plain()?;
    let stream = house.machine.stream()?;
    for (id, kind) in (1..).zip(house.kinds()?) {
        let (freed, live) = in_capture(&house, pool(id), stream.stream(), || {
            let live = house.allocate(kind, BYTES, stream.stream())?;
            let freed = house.allocate(kind, BYTES, stream.stream())?;
            house.free(freed)?;
            Ok((freed, live))
        })?;
        if kind == Kind::Async {
            let stats = house.process.stats(0, Some(Kind::Vmm))?;
            ensure!(stats.allocated >= BYTES, "vmm serves captures: {stats:?}");
        }
        house.free(live)?;
        house.process.trim_all()?;
        for address in [freed, live] {
            write(&house, address, stream.stream()).map_err(|stop| stop.at(kind.name()))?;
        }
        let stats = house.process.stats(0, None)?;
        ensure!(
            stats.reserved >= 2 * BYTES,
            "{kind:?} gave graph memory back: {stats:?}"
        );
        ensure_eq!(stats.allocated, 0, "allocated by {kind:?}");
        house.process.graph_release(pool(id))?;
        house.process.trim_all()?;
        ensure_eq!(
            house.process.stats(0, None)?.reserved,
            0,
            "reserved after release by {kind:?}"
        );
    }
    house.finish()
}

/// Within a pool a freed block serves its own stream again, and no other.
pub fn reuse() -> Outcome {
    on_each_mapped(reuse_of)
}

fn reuse_of(house: &House, kind: Kind) -> Outcome {
    let (stream, other) = (house.machine.stream()?, house.machine.stream()?);
    let first = in_capture(house, pool(1), stream.stream(), || {
        let first = house.allocate(kind, BYTES, stream.stream())?;
        house.free(first)?;
        let again = house.allocate(kind, BYTES - 5, stream.stream())?;
        ensure_eq!(again, first, "the block of the same stream");
        house.free(again)?;
        let small = house.allocate(kind, 5, stream.stream())?;
        ensure!(small != first, "a large block serves a small request");
        house.free(small)?;
        Ok(first)
    })?;
    let elsewhere = in_capture(house, pool(1), other.stream(), || {
        let elsewhere = house.allocate(kind, BYTES, other.stream())?;
        ensure!(elsewhere != first, "the block of another stream");
        Ok(elsewhere)
    })?;
    // Another pool's graphs are replayed at other times.
    let apart = in_capture(house, pool(2), stream.stream(), || {
        house.allocate(kind, BYTES, stream.stream())
    })?;
    ensure!(apart != first, "the block of another pool");
    house.free(elsewhere)?;
    house.free(apart)?;
    for id in [1, 1, 2] {
        house.process.graph_release(pool(id))?;
    }
    Ok(())
}

/// What a capture has freed is mapped there for good, whatever the capture needs afterwards: a replay
/// writes to the address.
pub fn stays_in_place() -> Outcome {
    on_each_mapped(stays_in_place_of)
}

fn stays_in_place_of(house: &House, kind: Kind) -> Outcome {
    let stream = house.machine.stream()?;
    let freed = in_capture(house, pool(1), stream.stream(), || {
        let give = |chunks: u64| house.allocate(kind, chunks * BYTES, stream.stream());
        let blocks = [give(20)?, give(1)?, give(20)?];
        house.free(blocks[0])?;
        house.free(blocks[2])?;
        // Both together, and one of them is not its beginning.
        house.free(give(40)?)?;
        house.free(blocks[1])?;
        Ok(blocks)
    })?;
    house.process.trim_all()?;
    for block in freed {
        ensure!(house.is_mapped(block)?, "{block:#x} has left its address");
        write(house, block, stream.stream())?;
    }
    house.process.graph_release(pool(1))?;
    Ok(())
}

/// With two captures into one pool, the last release counts.
pub fn shared_pool() -> Outcome {
    on_each_mapped(shared_pool_of)
}

fn shared_pool_of(house: &House, kind: Kind) -> Outcome {
    let stream = house.machine.stream()?;
    let capture = || {
        in_capture(house, pool(1), stream.stream(), || {
            house.allocate(kind, BYTES, stream.stream())
        })
    };
    let (first, second) = (capture()?, capture()?);
    house.free(first)?;
    house.free(second)?;
    house.process.graph_release(pool(1))?;
    house.process.trim_all()?;
    for address in [first, second] {
        ensure!(
            house.is_mapped(address)?,
            "unmapped while a graph of the pool lives"
        );
        write(house, address, stream.stream())?;
    }
    house.process.graph_release(pool(1))?;
    Ok(())
}

/// Releases and ends that no capture began for are refused, and change nothing.
pub fn release_unknown() -> Outcome {
    let house = House::plain()?;
    let block = house.allocate(Kind::Vmm, BYTES, Stream::LEGACY)?;
    let refused = |what: &str, outcome: error::Result<()>, status: Status| -> Outcome {
        let found = outcome.err().map(|error| error.status());
        ensure_eq!(found, Some(status), "{what}");
        Ok(())
    };
    let (end, release) = (
        || house.process.graph_end(pool(9)),
        || house.process.graph_release(pool(9)),
    );
    refused("a release before all", release(), Status::InvalidArgument)?;
    refused("an end before all", end(), Status::InvalidArgument)?;
    house.process.graph_begin(pool(9))?;
    refused("a release before the end", release(), Status::Busy)?;
    end()?;
    refused("a second end", end(), Status::InvalidArgument)?;
    ensure_eq!(
        house.process.device(0)?.state().device.capture_open(),
        false,
        "a capture is open"
    );
    release()?;
    refused("a second release", release(), Status::InvalidArgument)?;
    house.free(block)?;
    house.finish()
}

/// A block whose pool is gone goes with its own free.
pub fn freed_after_release() -> Outcome {
    let house = House::plain()?;
    let stream = house.machine.stream()?;
    for kind in house.kinds()? {
        let block = in_capture(&house, pool(1), stream.stream(), || {
            house.allocate(kind, BYTES, stream.stream())
        })?;
        house.process.graph_release(pool(1))?;
        write(&house, block, stream.stream())?;
        house.free(block)?;
        house.process.trim_all()?;
        ensure_eq!(
            house.process.stats(0, None)?.reserved,
            0,
            "reserved by {kind:?}"
        );
    }
    house.finish()
}

/// The stream of a capture may go before its graph.
pub fn stream_gone_before() -> Outcome {
    let house = House::plain()?;
    for kind in house.kinds()? {
        let stream = house.machine.stream()?;
        let block = in_capture(&house, pool(1), stream.stream(), || {
            house.allocate(kind, BYTES, stream.stream())
        })?;
        house.free(block)?;
        house.process.forget_stream(0, stream.stream())?;
        drop(stream);
        house.process.trim_all()?;
        let held = house.process.stats(0, None)?.reserved;
        ensure!(held >= BYTES, "{kind:?} gave a graph's memory back");
        house.process.graph_release(pool(1))?;
        house.process.trim_all()?;
        let held = house.process.stats(0, None)?.reserved;
        ensure_eq!(held, 0, "reserved by {kind:?}");
    }
    house.finish()
}

/// Segments are torch's to keep: freed, they go, whatever captured them.
pub fn segments() -> Outcome {
    on_each_mapped(segments_of)
}

fn segments_of(house: &House, kind: Kind) -> Outcome {
    let stream = house.machine.stream()?;
    let segment = in_capture(house, pool(1), stream.stream(), || {
        let demand = Demand {
            owner: Owner::Segment,
            last_use: crate::source::LastUse::Anywhere,
            ..house.demand(kind, 20 * MIB, stream.stream())
        };
        Ok(house.process.allocate(demand)?)
    })?;
    house.free(segment)?;
    house.process.trim_all()?;
    ensure!(!house.is_mapped(segment)?, "a freed segment stays");
    house.process.graph_release(pool(1))?;
    Ok(())
}

/// A capture that no hook told of: nobody will say when its graph is gone, so its blocks are kept.
pub fn unknown_capture() -> Outcome {
    let house = House::plain()?;
    let stream = house.machine.stream()?;
    house
        .machine
        .begin_capture(stream.stream(), CAPTURE_RELAXED)?;
    let block = house.allocate(Kind::Async, BYTES, stream.stream());
    house.machine.end_capture(stream.stream())?;
    let block = block?;
    house.free(block)?;
    house.process.trim_all()?;
    ensure!(house.is_mapped(block)?, "unmapped while its graph may live");
    write(&house, block, stream.stream())?;
    ensure_eq!(
        house.process.warnings().count(Warning::CaptureKept),
        1,
        "warnings"
    );
    ensure_eq!(house.process.live_blocks(), 0, "blocks");
    // It is no leak of the machine: the case's own process is over.
    house.process.device(0)?.state().extents.retire(block)?;
    house.finish()
}

/// The same of the pool: what a capture that nobody told of has freed may serve that capture again,
/// and neither another nor work outside, since its graph may be replayed at any time.
pub fn unknown_captures_apart() -> Outcome {
    let house = House::plain()?;
    if !house.has(Kind::Pool)? {
        return Err(Stop::skip("no virtual memory management"));
    }
    let stream = house.machine.stream()?;
    let untold = |body: &dyn Fn() -> Result<u64, Stop>| -> Result<u64, Stop> {
        house
            .machine
            .begin_capture(stream.stream(), CAPTURE_RELAXED)?;
        let outcome = body();
        house.machine.end_capture(stream.stream())?;
        outcome
    };
    let allocate = || house.allocate(Kind::Pool, BYTES, stream.stream());
    let first = untold(&|| {
        let block = allocate()?;
        house.free(block)?;
        ensure_eq!(allocate()?, block, "the block within its capture");
        house.free(block)?;
        Ok(block)
    })?;
    let second = untold(&allocate)?;
    ensure!(second != first, "a block of another capture");
    let outside = allocate()?;
    ensure!(outside != first, "a block of a capture");
    house.free(second)?;
    house.free(outside)?;
    house.process.trim_all()?;
    for block in [first, second] {
        ensure!(house.is_mapped(block)?, "unmapped while its graph may live");
        write(&house, block, stream.stream())?;
    }
    ensure!(!house.is_mapped(outside)?, "trim left what no graph uses");
    let warned = house.process.warnings().count(Warning::CaptureKept);
    ensure_eq!(warned, 3, "warnings");
    ensure_eq!(house.process.live_blocks(), 0, "blocks");
    Ok(())
}

/// Blocks from before the capture, freed in it, wait for its end.
pub fn free_in_capture() -> Outcome {
    let house = House::plain()?;
    let (own, capturing) = (house.machine.stream()?, house.machine.stream()?);
    for kind in house.kinds()? {
        let block = house.allocate(kind, BYTES, own.stream())?;
        in_capture(&house, pool(1), capturing.stream(), || {
            house.free(block)?;
            ensure_eq!(house.process.trim_all()?, 0, "trimmed in a capture");
            // The pool has a block at once that only its own stream used.
            let waiting = u64::from(kind != Kind::Pool);
            let stats = house.process.stats(0, None)?;
            ensure_eq!(stats.pending_frees, waiting, "frees of {kind:?} waiting");
            ensure!(stats.reserved >= BYTES, "{kind:?} gave it back: {stats:?}");
            Ok(())
        })?;
        house.process.graph_release(pool(1))?;
        house.process.trim_all()?;
        ensure_eq!(
            house.process.stats(0, None)?.pending_frees,
            0,
            "frees of {kind:?} waiting"
        );
    }
    house.finish()
}

/// Two captures at once on one device, each on its own thread and stream: a block goes with the
/// capture of its stream, whoever allocates it.
pub fn two_captures() -> Outcome {
    on_each_mapped(two_captures_of)
}

fn two_captures_of(house: &House, kind: Kind) -> Outcome {
    let (one, two) = (house.machine.stream()?, house.machine.stream()?);
    let first = std::thread::scope(|scope| {
        let begin = || -> Result<u64, Stop> {
            house.process.graph_begin(pool(1))?;
            house.machine.begin_capture(one.stream(), CAPTURE_RELAXED)?;
            house.allocate(kind, BYTES, one.stream())
        };
        let joined = scope.spawn(begin).join();
        joined.unwrap_or_else(|_| Err("the thread panicked".to_owned().into()))
    })?;
    let second = in_capture(house, pool(2), two.stream(), || {
        let second = house.allocate(kind, BYTES, two.stream())?;
        // This thread helps with the other capture, as torch's backward does.
        let helped = house.allocate(kind, BYTES, one.stream())?;
        house.free(helped)?;
        Ok(second)
    })?;
    house.free(second)?;
    house.process.graph_release(pool(2))?;
    house.machine.end_capture(one.stream())?;
    house.process.graph_end(pool(1))?;
    house.process.trim_all()?;
    let held = house.process.stats(0, Some(kind))?.reserved;
    ensure!(
        held >= 2 * BYTES && house.is_mapped(first)?,
        "{held} held for the capture that is not released"
    );
    ensure!(!house.is_mapped(second)?, "held for one that is released");
    house.free(first)?;
    house.process.graph_release(pool(1))?;
    Ok(())
}
