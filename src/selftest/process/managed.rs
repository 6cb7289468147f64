//! Where managed blocks are told to live, read back from the driver.

use super::{House, MIB, placed};
use crate::config::value::{Placement, Size};
use crate::error::{Status, Warning};
use crate::gpu::Stream;
use crate::observe;
use crate::process::{placement, tags};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::CAPTURE_RELAXED;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

const PREFERRED_LOCATION: i32 = 2;
const ACCESSED_BY: i32 = 3;
const LAST_PREFETCH: i32 = 4;

const PREFERRED_TYPE: i32 = 5;
const PREFERRED_ID: i32 = 6;

const HOST_NUMA: i32 = 3;
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

/// What the blocks of a tag are told: by the option, by call over it, and by nobody.
fn placed_by_tag(spec: &str, host: i32) -> Outcome {
    let options = [
        ("prefetch_threshold", "all"),
        (
            "placement",
            "weights=device,kv_cache=host,scratch=none,moved=host",
        ),
    ];
    let house = open_concurrent(spec, &options)?;
    placement::place("moved", Some(Placement::None))?;
    let device = [DEVICE, HOST, DEVICE];
    let cases = [
        ("weights", device),
        ("kv_cache", [host, DEVICE, NOWHERE]),
        ("scratch", [NOWHERE; 3]),
        ("moved", [NOWHERE; 3]),
        ("something else", device),
    ];
    for (name, expected) in cases {
        let mut demand = house.demand(Kind::Managed, MIB, Stream::LEGACY);
        demand.tag = tags::table().intern(name)?;
        let block = house.process.allocate(demand)?;
        ensure_eq!(placed(&house, block, MIB)?, expected, "placement of {name}");
        house.machine.device.fill(block, 7, MIB, Stream::LEGACY)?;
        house.free(block)?;
    }
    placement::place("moved", None)?;
    let mut demand = house.demand(Kind::Managed, MIB, Stream::LEGACY);
    demand.tag = tags::table().intern("moved")?;
    let block = house.process.allocate(demand)?;
    let by_option = placed(&house, block, MIB)?;
    ensure_eq!(
        by_option,
        [host, DEVICE, NOWHERE],
        "as the option says again"
    );
    house.free(block)?;
    ensure_eq!(house.process.warnings().total(), 0, "warnings");
    house.finish()
}

/// Placement by tag; a machine with one node reads its node back as the host.
pub fn tags_placed() -> Outcome {
    placed_by_tag("", HOST)
}

/// The same calls on a coherent machine, where each device has its own node of the host.
pub fn tags_placed_on_coherent() -> Outcome {
    if observe::process().driver()?.is_hip() {
        return Err(Stop::skip("HIP's advice knows the host, no nodes"));
    }
    placed_by_tag("coherent=1", HOST)?;
    let spec = "coherent=1,devices=2,numa_nodes=2";
    let house = open_concurrent(spec, &[("placement", "kv_cache=host")])?;
    house.sim()?;
    for device in [0, 1] {
        for kind in [Kind::Managed, Kind::Vmm] {
            let mut demand = house.demand(kind, MIB, Stream::LEGACY);
            demand.tag = tags::table().intern("kv_cache")?;
            demand.device = device;
            let block = house.process.allocate(demand)?;
            if kind == Kind::Managed {
                let read = |which| house.machine.range_attribute(which, block, MIB);
                let found = (read(PREFERRED_TYPE)?, read(PREFERRED_ID)?);
                ensure_eq!(found, (HOST_NUMA, device), "of device {device}");
            }
            house.free(block)?;
        }
    }
    house.finish()
}

/// Memory placed on the host takes nothing of the device: not of its limit, nor of the room that
/// other managed memory has there.
pub fn on_the_host_no_room_is_taken() -> Outcome {
    let house = open_concurrent("memory=64MiB", &[("placement", "kv_cache=host")])?;
    house.sim()?;
    house.process.set_limit(0, Size::Bytes(32 * MIB))?;
    let mut demand = house.demand(Kind::Managed, 256 * MIB, Stream::LEGACY);
    demand.tag = tags::table().intern("kv_cache")?;
    let cache = house.process.allocate(demand)?;
    house.process.settings().set("managed_headroom", "24MiB")?;
    let weights = house.allocate(Kind::Managed, 32 * MIB, Stream::LEGACY)?;
    let found = placed(&house, weights, 32 * MIB)?;
    ensure_eq!(found, [DEVICE, HOST, DEVICE], "placement of the weights");
    let refused = house
        .process
        .allocate(house.demand(Kind::Managed, MIB, Stream::LEGACY));
    let status = refused.err().map(|error| error.status());
    ensure_eq!(status, Some(Status::OutOfMemory), "beyond the limit");
    house.free(cache)?;
    house.free(weights)?;
    ensure_eq!(house.process.device(0)?.state().limit.used(), 0, "taken");
    house.finish()
}

/// Virtual memory of a tag is made where the tag is placed; other kinds say that they cannot.
pub fn other_kinds_placed() -> Outcome {
    let house = placed::open("", &[("placement", "kv_cache=host,weights=device")])?;
    let sim = house.sim()?;
    let (cache, weights) = (
        tags::table().intern("kv_cache")?,
        tags::table().intern("weights")?,
    );
    let allocate = |kind, tag| {
        let mut demand = house.demand(kind, MIB, Stream::LEGACY);
        demand.tag = tag;
        house.process.allocate(demand)
    };
    let block = allocate(Kind::Vmm, cache)?;
    let chunks = sim.counters();
    ensure_eq!(
        (chunks.host_chunk_bytes, chunks.chunk_bytes),
        (2 * MIB, 0),
        "chunks on the host and on the device"
    );
    house.machine.device.fill(block, 7, MIB, Stream::LEGACY)?;
    house.free(block)?;
    house.free(allocate(Kind::Vmm, weights)?)?;
    for kind in [Kind::Device, Kind::Async] {
        let error = allocate(kind, cache).err().ok_or("it was allocated")?;
        ensure_eq!(error.status(), Status::Unsupported, "{kind:?}: {error}");
        for word in ["kv_cache", kind.name(), "managed", "vmm"] {
            ensure!(error.to_string().contains(word), "no {word} in: {error}");
        }
        house.free(allocate(kind, weights)?)?;
    }
    drop(house);
    let without = House::open("host_numa=0", &[("placement", "kv_cache=host")])?;
    let mut demand = without.demand(Kind::Vmm, MIB, Stream::LEGACY);
    demand.tag = cache;
    let error = without.process.allocate(demand).err();
    let error = error.ok_or("it was allocated")?;
    ensure_eq!(error.status(), Status::Unsupported, "{error}");
    ensure!(error.to_string().contains("managed"), "{error}");
    Ok(())
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
    // Nor may it be named for a tag that lives on the host.
    placement::place("on the host", Some(Placement::Host))?;
    let mut demand = house.demand(Kind::Managed, 3 * MIB, Stream::LEGACY);
    demand.tag = tags::table().intern("on the host")?;
    let on_host = house.process.allocate(demand)?;
    let found = placed(&house, on_host, MIB)?;
    ensure_eq!(found, [HOST, NOWHERE, NOWHERE], "placement on the host");
    ensure_eq!(house.process.warnings().total(), 0, "warnings");
    house.free(block)?;
    house.free(on_host)?;
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
