//! The pool's memory lives where its tag is placed: blocks, limits, statistics, and what becomes of
//! memory of one place when the other runs out.

use super::{House, MIB};
use crate::config::value::{Location, Placement, Size};
use crate::error::{Error, Status};
use crate::gpu::Stream;
use crate::pool::LARGEST;
use crate::process::{BlockStats, Stats, placement, tags};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::simulator::Simulator;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use crate::sys::linux;

const PLACED: (&str, &str) = ("placement", "weights=device,kv_cache=host,scratch=none");
const OUT_OF_MEMORY: i32 = 2;
const NOT_SUPPORTED: i32 = 801;

impl House {
    fn tagged(&self, tag: &str, bytes: u64, stream: Stream) -> Result<Result<u64, Error>, Stop> {
        let mut demand = self.demand(Kind::Pool, bytes, stream);
        demand.tag = tags::table().intern(tag)?;
        Ok(self.process.allocate(demand))
    }

    fn had(&self, tag: &str, bytes: u64) -> Result<u64, Stop> {
        Ok(self.tagged(tag, bytes, Stream::LEGACY)??)
    }

    fn refused(&self, tag: &str, bytes: u64) -> Result<Error, Stop> {
        let outcome = self.tagged(tag, bytes, Stream::LEGACY)?;
        Ok(outcome.err().ok_or("it was allocated")?)
    }

    fn of_tag(&self, tag: &str) -> Result<BlockStats, Stop> {
        Ok(self.process.tag_stats(0, tags::table().intern(tag)?)?)
    }

    /// Where the memory behind an address is.
    fn place_of(&self, address: u64) -> Result<Location, Stop> {
        let extents = &self.process.device(0)?.state().extents;
        let list = extents.list();
        let found = (list.iter())
            .find(|extent| (extent.address..extent.address + extent.bytes).contains(&address));
        Ok(found.ok_or("nothing is there")?.location)
    }

    /// What is held is what the simulator counts, and only what is the device's counts to the limit.
    fn is_counted(&self, sim: Simulator) -> Result<Stats, Stop> {
        let (stats, now) = (self.process.stats(0, None)?, sim.counters());
        let base = self.base.map_or(0, |base| base.chunk_bytes);
        let held = now.chunk_bytes - base + now.host_chunk_bytes;
        ensure_eq!(stats.reserved, held, "reserved");
        ensure_eq!(stats.limit_used, now.chunk_bytes - base, "of the limit");
        ensure!(
            stats.requested <= stats.allocated && stats.allocated <= stats.reserved,
            "{stats:?}"
        );
        self.process.audit_pool(0)?;
        self.process.device(0)?.state().extents.audit()?;
        Ok(stats)
    }
}

/// A machine with chunks in host memory, or the end of the case with HIP, which may have none.
pub(super) fn open(spec: &str, options: &[(&str, &str)]) -> Result<House, Stop> {
    let house = House::open(spec, options)?;
    if house.machine.driver.is_hip() {
        let probe = house.machine.device.host_numa()?;
        probe.map_err(|error| Stop::skip(error.to_string()))?;
    }
    Ok(house)
}

/// Blocks small and large of each tag, used, freed and had again.
pub fn blocks() -> Outcome {
    let house = open("numa_nodes=2", &[PLACED])?;
    let sim = house.sim()?;
    let host = Location::HostNuma(0);
    let cases = [
        ("kv_cache", host),
        ("weights", Location::Device),
        ("scratch", Location::Device),
        ("something else", Location::Device),
    ];
    let sizes = [1, 4096, 300 << 10, MIB, 7 * MIB, 300 * MIB];
    for (tag, wanted) in cases {
        let mut blocks = Vec::new();
        for bytes in sizes {
            let block = house.had(tag, bytes)?;
            ensure_eq!(house.place_of(block)?, wanted, "{bytes} bytes of {tag}");
            let device = &house.machine.device;
            // All of it by one call, which may not cross from one chunk of the host to the next.
            device.fill(block, 7, bytes, Stream::LEGACY)?;
            blocks.push(block);
        }
        let held = house.of_tag(tag)?;
        let asked: u64 = sizes.iter().sum();
        ensure_eq!(held.requested, asked, "requested under {tag}");
        ensure!(
            held.allocated >= asked && held.reserved >= held.allocated,
            "{held:?}"
        );
        house.is_counted(sim)?;
        let (made, last) = (sim.calls("cuMemCreate"), blocks[4]);
        house.free(last)?;
        ensure_eq!(house.had(tag, 7 * MIB)?, last, "the block freed last");
        ensure_eq!(sim.calls("cuMemCreate"), made, "chunks made");
        for block in blocks {
            house.free(block)?;
        }
        house.machine.synchronize()?;
    }
    let cached = house.is_counted(sim)?;
    ensure!(sim.counters().host_chunk_bytes >= 300 * MIB, "{cached:?}");
    let given_back = house.process.trim(0, 0)?;
    ensure_eq!(given_back, cached.reserved, "given back by a trim");
    ensure_eq!(house.is_counted(sim)?.reserved, 0, "left");
    house.finish()
}

/// Blocks on the host that come and go in all sizes each lie in one chunk, and a trim leaves neither
/// memory nor addresses.
pub fn whole() -> Outcome {
    let house = open("", &[PLACED])?;
    let sim = house.sim()?;
    let ranges = sim.calls("cuMemAddressReserve") - sim.calls("cuMemAddressFree");
    let mut live = Vec::new();
    for step in 0..400u64 {
        let bytes = match step % 5 {
            0 => (step % 7 + 1) * 3 * MIB,
            1 => 512 * (step % 64 + 1),
            2 => 90 * MIB,
            _ => (step * 37 % 23 + 1) * MIB + 512,
        };
        let block = house.had("kv_cache", bytes)?;
        let device = &house.machine.device;
        device.fill(block, step as u8, bytes, Stream::LEGACY)?;
        live.push((block, bytes, step as u8));
        if live.len() > 12 {
            let (block, bytes, pattern) = live.swap_remove((step * 31 % 12) as usize);
            for at in [block, block + bytes - 1] {
                let mut seen = [0];
                device.copy_to_host(&mut seen, at, Stream::LEGACY)?;
                house.machine.synchronize()?;
                ensure_eq!(seen, [pattern], "{bytes} bytes at {block:#x}");
            }
            house.free(block)?;
        }
    }
    let held = house.is_counted(sim)?;
    let most = held.peak_allocated;
    ensure!(held.peak_reserved <= 2 * most, "held: {held:?}");
    for (block, ..) in live {
        house.free(block)?;
    }
    // Nothing is made that cannot be mapped, and its addresses go too.
    for call in ["cuMemCreate", "cuMemMap", "cuMemSetAccess"] {
        for nth in 1..=8 {
            sim.fail_once(call, nth, OUT_OF_MEMORY);
        }
        house.refused("kv_cache", 700 * MIB)?;
        sim.fail_clear();
        house.is_counted(sim)?;
    }
    house.machine.synchronize()?;
    house.process.trim(0, 0)?;
    ensure_eq!(house.is_counted(sim)?.reserved, 0, "left");
    let left = sim.calls("cuMemAddressReserve") - sim.calls("cuMemAddressFree");
    ensure_eq!(left, ranges, "ranges of addresses left");
    house.finish()
}

/// The host's memory takes nothing of the device nor of its limit, and does not make the pool hold
/// more of the device than it needs.
pub fn limits() -> Outcome {
    let house = open("memory=512MiB", &[PLACED])?;
    let sim = house.sim()?;
    house.process.set_limit(0, Size::Bytes(256 * MIB))?;
    let cache: Result<Vec<u64>, Stop> = (0..8).map(|_| house.had("kv_cache", 256 * MIB)).collect();
    let cache = cache?;
    ensure_eq!(house.is_counted(sim)?.limit_used, 0, "of the limit");
    let room = house.process.room(0)?;
    ensure_eq!(room, 256 * MIB, "room beside what is on the host");
    // Within the slack memory is made and not moved, whatever is held on the host.
    for tag in ["weights", "scratch"] {
        house.free(house.had(tag, 16 * MIB)?)?;
    }
    let moved = house.process.pool_stats(0)?.stitches;
    ensure_eq!(moved, 0, "chunks moved within the slack");
    let weights = house.had("weights", 250 * MIB)?;
    house.is_counted(sim)?;
    let error = house.refused("weights", 64 * MIB)?;
    ensure_eq!(error.status(), Status::OutOfMemory, "{error}");
    let more = house.had("kv_cache", 256 * MIB)?;
    house.free(weights)?;
    house.machine.synchronize()?;
    house.process.set_limit(0, Size::Bytes(32 * MIB))?;
    let stats = house.is_counted(sim)?;
    ensure!(
        stats.limit_used <= 32 * MIB,
        "the limit was lowered: {stats:?}"
    );
    ensure!(stats.reserved >= 9 * 256 * MIB, "of the host: {stats:?}");
    house.process.set_limit(0, Size::Bytes(0))?;
    // With gigabytes on the host the device's slack is still that of the device's megabytes.
    for tag in 0..4 {
        let blocks: Result<Vec<u64>, Stop> = (0..8)
            .map(|_| house.had(&format!("in turn {tag}"), 16 * MIB))
            .collect();
        for block in blocks? {
            house.free(block)?;
        }
        house.machine.synchronize()?;
    }
    let held = house.is_counted(sim)?.limit_used;
    ensure!(held <= (250 + 63) * MIB, "{} MiB of the device", held / MIB);
    for block in cache.into_iter().chain([more]) {
        house.free(block)?;
    }
    house.finish()
}

/// Memory of the device is not given back because the host has no more, nor the other way round, and
/// none goes from one to the other.
pub fn apart() -> Outcome {
    let house = open("memory=256MiB", &[PLACED])?;
    let sim = house.sim()?;
    let keep = |tag: &str, bytes: u64| -> Outcome {
        let block = house.had(tag, bytes)?;
        house.free(block)?;
        house.machine.synchronize()
    };
    keep("kv_cache", 96 * MIB)?;
    keep("weights", 128 * MIB)?;
    let on_host = sim.counters().host_chunk_bytes;
    let on_device = sim.counters().chunk_bytes;
    // The device has room for this only where what another tag has kept is moved or given back.
    let block = house.had("scratch", 200 * MIB)?;
    ensure_eq!(house.place_of(block)?, Location::Device, "the place");
    let error = house.refused("scratch", 100 * MIB)?;
    ensure_eq!(error.status(), Status::OutOfMemory, "{error}");
    ensure!(!error.to_string().contains("NUMA"), "{error}");
    ensure_eq!(sim.counters().host_chunk_bytes, on_host, "kept on the host");
    // What the sources ask for leaves it alone too.
    let refused = house.allocate(Kind::Vmm, 100 * MIB, Stream::LEGACY);
    ensure!(refused.is_err(), "100 of 56 MiB were had");
    ensure_eq!(sim.counters().host_chunk_bytes, on_host, "kept on the host");
    house.free(block)?;
    house.machine.synchronize()?;
    keep("weights", 128 * MIB)?;
    let on_device = sim.counters().chunk_bytes.max(on_device);
    for nth in 1..=64 {
        sim.fail_once("cuMemCreate", nth, OUT_OF_MEMORY);
    }
    let error = house.refused("kv_cache", 192 * MIB)?;
    sim.fail_clear();
    ensure_eq!(error.status(), Status::OutOfMemory, "{error}");
    let where_to = "memory of the host, of NUMA node 0";
    ensure!(error.to_string().contains(where_to), "{error}");
    ensure_eq!(sim.counters().chunk_bytes, on_device, "kept of the device");
    let cache = house.had("kv_cache", 192 * MIB)?;
    ensure_eq!(sim.counters().chunk_bytes, on_device, "kept of the device");
    house.free(cache)?;
    // What the host cannot have is not tried.
    if linux::total_memory() < LARGEST {
        let made = sim.calls("cuMemCreate");
        let error = house.refused("kv_cache", LARGEST)?;
        ensure!(
            error.to_string().contains("which as a whole has"),
            "{error}"
        );
        ensure_eq!(sim.calls("cuMemCreate"), made, "chunks made");
    }
    house.is_counted(sim)?;
    house.finish()
}

/// A place that is said later holds where the tag meets a stream for the first time.
pub fn said_later() -> Outcome {
    let house = open("", &[])?;
    let sim = house.sim()?;
    let other = house.machine.stream()?;
    let tag = "said later";
    let place = |placement| placement::place(tag, placement);
    let host = Location::HostNuma(0);
    let mut blocks = vec![house.had(tag, 4 * MIB)?];
    place(Some(Placement::Host))?;
    blocks.push(house.had(tag, 4 * MIB)?);
    blocks.push(house.tagged(tag, 4 * MIB, other.stream())??);
    place(Some(Placement::None))?;
    blocks.push(house.tagged(tag, 4 * MIB, other.stream())??);
    let places: Result<Vec<Location>, Stop> = (blocks.iter())
        .map(|block| house.place_of(*block))
        .collect();
    let wanted = [Location::Device, Location::Device, host, host];
    ensure_eq!(places?, wanted, "places");
    let of_tag = house.of_tag(tag)?;
    ensure_eq!(of_tag.allocated, 16 * MIB, "allocated under the tag");
    house.is_counted(sim)?;
    for block in blocks {
        house.free(block)?;
    }
    // A stream that is told gone and made again is met for the first time.
    house.process.forget_stream(0, other.stream())?;
    let block = house.tagged(tag, 4 * MIB, other.stream())??;
    ensure_eq!(house.place_of(block)?, Location::Device, "the place");
    house.free(block)?;
    place(None)?;
    house.process.forget_stream(0, other.stream())?;
    house.finish()
}

/// Each device's host memory is that of the node nearest to it.
pub fn nearest() -> Outcome {
    let house = open("devices=2,numa_nodes=2", &[PLACED])?;
    house.sim()?;
    for device in [0, 1] {
        let mut demand = house.demand(Kind::Pool, MIB, Stream::LEGACY);
        demand.tag = tags::table().intern("kv_cache")?;
        demand.device = device;
        let block = house.process.allocate(demand)?;
        let list = house.process.device(device)?.state().extents.list();
        let places: Vec<Location> = list.iter().map(|extent| extent.location).collect();
        let nearest = Location::HostNuma(device);
        ensure_eq!(places, [nearest], "of device {device}");
        house.free(block)?;
    }
    house.finish()
}

/// Where memory cannot be placed the error says so, and the tag is served once it is placed elsewhere.
pub fn refused() -> Outcome {
    let cases = [
        ("host_numa=0", "vmm", "virtual memory on host NUMA nodes"),
        ("vmm=0", "vmm", "the pool over device"),
        ("", "device", "the pool over device"),
    ];
    for (spec, source, word) in cases {
        let tag = format!("refused: {spec} {word}");
        let house = House::open(spec, &[("pool_source", source)])?;
        house.sim()?;
        placement::place(&tag, Some(Placement::Host))?;
        let error = house.refused(&tag, MIB)?;
        ensure_eq!(error.status(), Status::Unsupported, "{spec}: {error}");
        for word in [word, "managed"] {
            ensure!(error.to_string().contains(word), "no {word} in: {error}");
        }
        placement::place(&tag, Some(Placement::Device))?;
        let block = house.had(&tag, MIB)?;
        house.free(block)?;
        placement::place(&tag, None)?;
        house.finish()?;
    }
    // What the driver refuses is not placed elsewhere.
    let house = open("", &[PLACED])?;
    let sim = house.sim()?;
    house.free(house.had("weights", MIB)?)?;
    sim.fail_once("cuMemCreate", 1, NOT_SUPPORTED);
    let error = house.refused("kv_cache", MIB)?;
    ensure!(error.to_string().contains("801"), "{error}");
    house.finish()
}
