//! Where managed blocks are told to live, read back from the driver.

use super::{House, MIB};
use crate::error::Warning;
use crate::gpu::Stream;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::CAPTURE_RELAXED;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

const PREFERRED_LOCATION: i32 = 2;
const ACCESSED_BY: i32 = 3;
const LAST_PREFETCH: i32 = 4;

const NOWHERE: i32 = -2;
const HOST: i32 = -1;
const DEVICE: i32 = 0;

/// What is read back of a block: preferred location, accessed by, last prefetch.
type Placed = [i32; 3];

fn placed(house: &House, address: u64, bytes: u64) -> Result<Placed, Stop> {
    house.machine.synchronize()?;
    let read = |attribute| house.machine.range_attribute(attribute, address, bytes);
    Ok([
        read(PREFERRED_LOCATION)?,
        read(ACCESSED_BY)?,
        read(LAST_PREFETCH)?,
    ])
}

fn open(spec: &str, options: &[(&str, &str)]) -> Result<House, Stop> {
    let house = House::open(spec, options)?;
    if !house.has(Kind::Managed)? {
        return Err(Stop::skip("no managed memory"));
    }
    Ok(house)
}

fn open_concurrent(spec: &str, options: &[(&str, &str)]) -> Result<House, Stop> {
    let house = open(spec, options)?;
    match house.machine.device.concurrent_managed_access()? {
        Ok(()) => Ok(house),
        Err(why) => Err(Stop::skip(why.to_string())),
    }
}

/// Sizes on both sides of the threshold, one live at a time.
fn expect_prefetch(house: &House, sizes: &[(u64, bool)]) -> Outcome {
    let stream = house.machine.stream()?;
    for (bytes, prefetched) in sizes {
        let block = house.allocate(Kind::Managed, *bytes, stream.stream())?;
        let last = if *prefetched { DEVICE } else { NOWHERE };
        let found = placed(house, block, *bytes)?;
        ensure_eq!(found, [DEVICE, HOST, last], "placement of {bytes} bytes");
        house.free(block)?;
    }
    ensure_eq!(house.process.warnings().total(), 0, "warnings");
    house.finish()
}

/// Preferred location the device, mapped for the host, prefetched below the threshold.
pub fn placement() -> Outcome {
    let house = open_concurrent("", &[("prefetch_threshold", "64MiB")])?;
    let below = [4096, MIB, 64 * MIB - 4096, 64 * MIB - 1].map(|bytes| (bytes, true));
    let beyond = [64 * MIB, 64 * MIB + 1, 256 * MIB, 512 * MIB].map(|bytes| (bytes, false));
    expect_prefetch(&house, &[below, beyond].concat())
}

/// `0` prefetches nothing, `all` everything.
pub fn prefetch_options() -> Outcome {
    let sizes = [1, 4096, 64 * MIB];
    let never = open_concurrent("", &[("prefetch_threshold", "0")])?;
    expect_prefetch(&never, &sizes.map(|bytes| (bytes, false)))?;
    drop(never);
    let always = open_concurrent("", &[("prefetch_threshold", "all")])?;
    expect_prefetch(&always, &sizes.map(|bytes| (bytes, true)))
}

/// What would not fit the card beside the headroom does not prefer it.
pub fn headroom() -> Outcome {
    let options = [("managed_headroom", "100%"), ("prefetch_threshold", "0")];
    let house = open_concurrent("", &options)?;
    let block = house.allocate(Kind::Managed, MIB, Stream::LEGACY)?;
    ensure_eq!(
        placed(&house, block, MIB)?,
        [NOWHERE, HOST, NOWHERE],
        "without room"
    );
    let warned = house.process.warnings().count(Warning::ManagedBeyondCard);
    ensure_eq!(warned, 1, "warnings of memory beyond the card");
    // The option acts at once.
    house.process.settings().set("managed_headroom", "0")?;
    let next = house.allocate(Kind::Managed, MIB, Stream::LEGACY)?;
    ensure_eq!(
        placed(&house, next, MIB)?,
        [DEVICE, HOST, NOWHERE],
        "with room"
    );
    house.free(block)?;
    house.free(next)?;
    house.finish()
}

/// A prefetch on a capturing stream would become part of the graph.
pub fn in_capture() -> Outcome {
    let house = open_concurrent("", &[("prefetch_threshold", "all")])?;
    let stream = house.machine.stream()?;
    house
        .machine
        .begin_capture(stream.stream(), CAPTURE_RELAXED)?;
    let block = house.allocate(Kind::Managed, MIB, stream.stream());
    house
        .machine
        .end_capture(stream.stream())
        .map_err(|stop| stop.at("the capture's end"))?;
    let block = block?;
    ensure_eq!(
        placed(&house, block, MIB)?,
        [DEVICE, HOST, NOWHERE],
        "in a capture"
    );
    ensure_eq!(house.process.warnings().total(), 0, "warnings");
    // No hook tells of this capture's end: the block would be kept for good.
    house.free(block)?;
    house.machine.device.free_plain(block)?;
    Ok(())
}

/// A coherent machine is placed alike.
pub fn coherent() -> Outcome {
    let house = open_concurrent("coherent=1", &[("prefetch_threshold", "64MiB")])?;
    house.sim()?;
    ensure!(
        house.machine.device.is_coherent()?,
        "the machine is not coherent"
    );
    expect_prefetch(&house, &[(MIB, true), (64 * MIB, false)])
}

/// Without concurrent access the driver refuses advice and prefetch, so it is not asked.
pub fn not_concurrent() -> Outcome {
    let house = open("concurrent_managed=0", &[("prefetch_threshold", "all")])?;
    let sim = house.sim()?;
    let block = house.allocate(Kind::Managed, 3 * MIB, Stream::LEGACY)?;
    // The host may be named, the device not.
    for (call, times) in [("cuMemAdvise", 1), ("cuMemPrefetchAsync", 0)] {
        ensure_eq!(sim.calls(call), times, "{call}");
    }
    ensure_eq!(
        placed(&house, block, MIB)?,
        [NOWHERE, HOST, NOWHERE],
        "placement"
    );
    ensure_eq!(house.process.warnings().total(), 0, "warnings");
    house.free(block)?;
    house.finish()
}

/// Advice and prefetch that fail are warnings, and the block is good.
pub fn refused() -> Outcome {
    let house = open_concurrent("", &[("prefetch_threshold", "all")])?;
    let sim = house.sim()?;
    let kinds = [
        ("cuMemAdvise", 1, Warning::Advice, [NOWHERE, HOST, DEVICE]),
        ("cuMemAdvise", 2, Warning::Advice, [DEVICE, NOWHERE, DEVICE]),
        (
            "cuMemPrefetchAsync",
            1,
            Warning::Prefetch,
            [DEVICE, HOST, NOWHERE],
        ),
    ];
    for (call, nth, warning, expected) in kinds {
        let before = house.process.warnings().count(warning);
        sim.fail_once(call, nth, 999);
        let block = house.allocate(Kind::Managed, MIB, Stream::LEGACY)?;
        ensure_eq!(
            house.process.warnings().count(warning),
            before + 1,
            "warnings for {call}"
        );
        ensure_eq!(
            placed(&house, block, MIB)?,
            expected,
            "placement when {call} {nth} fails"
        );
        house
            .machine
            .device
            .copy_from_host(block, &[1; 64], Stream::LEGACY)?;
        house.free(block)?;
    }
    house.finish()
}
