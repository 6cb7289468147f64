//! What each operation promises, one at a time.

use super::{Bench, case};
use crate::core::tags::TagId;
use crate::error::{Result, Status};
use crate::extent::table::{Owner, RunSpec};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Case, Outcome, Stop};

const MACHINE: &str = "devices=2,memory=256MiB,poison=1";

pub const CASES: &[Case] = &[
    case("chunks move", |_| chunks_move()),
    case("a chunk moves under work", |_| moves_under_work()),
    case("few driver calls", |_| few_driver_calls()),
    case("out of memory changes nothing", |_| out_of_memory()),
    case("what cannot be is refused", |_| refusals()),
    case("peers reach moved chunks", |_| peers()),
    case("an alias outlives its chunk's home", |_| orphans()),
    case("many places", |_| many_places()),
];

/// From two ranges into a third, in an order of their own, and on.
fn chunks_move() -> Outcome {
    let mut bench = Bench::open(MACHINE)?;
    let (one, other, third) = (bench.reserve(8)?, bench.reserve(8)?, bench.reserve(16)?);
    let grain = bench.granules(1);
    bench.back(one, &[grain, 2 * grain, grain])?;
    bench.back(other + 2 * grain, &[3 * grain])?;
    let from = [other + 2 * grain, one + 3 * grain, one];
    bench.alias(&from, third + grain)?;
    bench.check_contents()?;
    bench.drop_aliases(&from)?;
    bench.check_contents()?;
    // Again, with the alias before still there; the last comes home.
    bench.alias(&[third + grain], third + 8 * grain)?;
    bench.alias(&[third + 8 * grain], other + 2 * grain)?;
    bench.check_contents()?;
    // Bytes written through one address are seen at the others.
    let mut found = [0; 16];
    let device = &bench.machine.device;
    device.copy_from_host(other + 3 * grain, &[0xC3; 16], bench.stream())?;
    device.copy_to_host(&mut found, third + 2 * grain, bench.stream())?;
    ensure_eq!(found, [0xC3; 16], "bytes at the other address");
    bench.finish()
}

/// An alias may go while work uses the chunk at its new address.
fn moves_under_work() -> Outcome {
    let mut bench = Bench::open("devices=1,poison=1")?;
    let bytes = bench.grain.round_up(bench.machine.busy_bytes());
    let bytes = bytes.ok_or("a size too large")?;
    let granules = bytes / bench.granules(1);
    let (from, to) = (bench.reserve(granules)?, bench.reserve(granules)?);
    bench.back(from, &[bytes])?;
    bench.alias(&[from], to)?;
    let stream = bench.machine.stream()?;
    let busy = bench.machine.busy(stream.stream(), to, bytes)?;
    bench.extents().drop_aliases(&[from])?;
    let running = busy.is_running()?;
    busy.end()?;
    ensure!(running, "the work had ended before");
    bench.model.remove(&[from]);
    bench.check()?;
    if bench.machine.sim.is_none() {
        // The work has written over the marks.
        bench.mark(to)?;
    }
    bench.finish()
}

/// A refusal that lasts; what may pass is tried again with HIP.
const NOT_SUPPORTED: i32 = 801;

/// One call a stretch, whatever the number of chunks, and the context entered once.
fn few_driver_calls() -> Outcome {
    let mut bench = Bench::open(MACHINE)?;
    let sim = bench.machine.sim.ok_or_else(Stop::needs_simulator)?;
    if bench.machine.driver.is_hip() {
        return Err(Stop::skip("HIP takes a call for each mapping"));
    }
    bench.machine.set_context(None)?;
    let (range, to) = (bench.reserve(16)?, bench.reserve(16)?);
    let grain = bench.granules(1);
    let places: Vec<u64> = (0..8).map(|at| range + at * grain).collect();
    let moved: Vec<u64> = (0..8).map(|at| to + at * grain).collect();
    let calls = |act: &dyn Fn() -> Result<()>| -> Result<[u64; 4]> {
        let names = [
            "cuMemSetAccess",
            "cuMemUnmap",
            "cuCtxPushCurrent_v2",
            "cuMemMap",
        ];
        let before = names.map(|name| sim.calls(name));
        act()?;
        let mut after = names.map(|name| sim.calls(name));
        after.iter_mut().zip(before).for_each(|(a, b)| *a -= b);
        Ok(after)
    };
    let extents = bench.extents();
    let backed = calls(&|| extents.back(range, &[grain; 8]))?;
    ensure_eq!(backed, [1, 0, 1, 8], "calls of back");
    let aliased = calls(&|| extents.alias(&places, to))?;
    ensure_eq!(aliased, [1, 0, 1, 8], "calls of alias");
    // In any order, and not all of them neighbours.
    let some = [5, 0, 1, 4].map(|at| places[at]);
    let dropped = calls(&|| extents.drop_aliases(&some))?;
    ensure_eq!(dropped, [0, 2, 1, 0], "calls of drop_aliases");
    extents.drop_aliases(&places)?;
    let given = calls(&|| extents.unback(&moved).map(|_| ()))?;
    ensure_eq!(given, [0, 1, 1, 0], "calls of unback");
    bench.finish()
}

fn out_of_memory() -> Outcome {
    let mut bench = Bench::open(MACHINE)?;
    let range = bench.reserve(1 << 10)?;
    let grain = bench.granules(1);
    bench.back(range, &[grain, grain])?;
    // More than any device has, in pieces that each would fit.
    let total = bench.machine.device.total_memory();
    let piece = bench.grain.round_up(total / 4).ok_or("a size too large")?;
    let wide = bench.reserve(5 * piece / grain)?;
    match bench.extents().back(wide, &[piece; 5]) {
        Err(error) => ensure_eq!(error.status(), Status::OutOfMemory, "{error}"),
        Ok(()) => return Err("more memory than there is".into()),
    }
    bench.check()?;
    bench.back(wide, &[grain])?;
    bench.finish()
}

fn refusals() -> Outcome {
    let mut bench = Bench::open(MACHINE)?;
    let (range, other) = (bench.reserve(8)?, bench.reserve(8)?);
    let grain = bench.granules(1);
    let block = bench.extents().build(&RunSpec {
        bytes: grain,
        align: grain,
        chunk_bytes: grain,
        chunk: bench.chunk,
        owner: Owner::Block,
        tag: TagId::NONE,
    })?;
    let outside = block.max(range).max(other) + (1 << 40);
    {
        let extents = bench.extents();
        extents.back(range, &[2 * grain, grain])?;
        extents.alias(&[range], other)?;
        let refused = |what: &str, outcome: Result<()>| match outcome {
            Err(error) if error.status() == Status::InvalidArgument => Ok(()),
            Err(error) => Err(Stop::from(error).at(what)),
            Ok(()) => Err(format!("{what}: accepted").into()),
        };
        let free = range + 4 * grain;
        let home = range + 2 * grain;
        refused("back over a place", extents.back(home, &[grain]))?;
        refused("back into a place", extents.back(range + grain, &[grain]))?;
        refused("back past the range", extents.back(free, &[grain; 5]))?;
        refused("back a block", extents.back(block, &[grain]))?;
        refused("back no range", extents.back(outside, &[grain]))?;
        refused("no bytes", extents.back(free, &[grain, 0]))?;
        let endless = [grain, u64::MAX - grain + 1];
        refused("more than there are numbers", extents.back(free, &endless))?;
        refused("alias an alias", extents.alias(&[range], free))?;
        refused("alias nothing", extents.alias(&[free], other + 4 * grain))?;
        refused("alias inside", extents.alias(&[other + grain], free))?;
        refused("alias twice", extents.alias(&[home, home], free))?;
        refused("alias over a place", extents.alias(&[home], other))?;
        refused("alias a block", extents.alias(&[block], free))?;
        refused("alias over itself", extents.alias(&[home], home))?;
        refused("drop a home", extents.drop_aliases(&[range, other]))?;
        refused("drop inside", extents.drop_aliases(&[range + grain]))?;
        refused("drop a block", extents.drop_aliases(&[block]))?;
        refused(
            "give an alias back",
            extents.unback(&[home, range]).map(drop),
        )?;
        refused("give a block back", extents.unback(&[block]).map(drop))?;
        refused("release what is backed", extents.release(range))?;
        refused("release a block", extents.release(block))?;
        ensure_eq!(extents.unback(&[free, outside])?, 0, "bytes behind nothing");
        extents.drop_aliases(&[free, outside])?;
        extents.release(outside)?;
        extents.retire(range)?;
        extents.retire(block)?;
    }
    bench.model.back(range, &[2 * grain, grain]);
    bench.model.alias(&[range], other);
    bench.check()?;
    for place in bench.model.those(false) {
        bench.mark(place)?;
    }
    bench.finish()
}

fn peers() -> Outcome {
    const READ_WRITE: u64 = 3;
    let mut bench = Bench::open(MACHINE)?;
    if bench.machine.driver.device_count() < 2 {
        return Err(Stop::skip("needs two devices"));
    }
    let (range, to) = (bench.reserve(4)?, bench.reserve(8)?);
    let grain = bench.granules(1);
    bench.back(range, &[grain, grain])?;
    bench.alias(&[range], to)?;
    bench.machine.driver.device(1)?;
    bench.extents().admit_peer(1);
    bench.back(range + 2 * grain, &[grain, grain])?;
    bench.alias(&[range + grain, range + 3 * grain], to + grain)?;
    let mut unreached = None;
    if let Some(sim) = bench.machine.sim {
        // A device that cannot be let in must not keep the other from its memory.
        sim.fail_once("cuMemSetAccess", 1, NOT_SUPPORTED);
        bench.back(to + 6 * grain, &[grain])?;
        unreached = Some(to + 6 * grain);
        let warned = bench.machine.warnings.total();
        ensure_eq!(warned, 1, "warnings of access that could not be given");
    }
    for place in bench.model.places.keys() {
        for device in [0, 1] {
            if device == 1 && unreached == Some(*place) {
                continue;
            }
            let access = bench.machine.access(*place, device)?;
            ensure_eq!(
                access,
                READ_WRITE,
                "access of device {device} at {place:#x}"
            );
        }
    }
    bench.finish()
}

/// Memory goes with the last address at which it can be seen.
fn orphans() -> Outcome {
    let mut bench = Bench::open(MACHINE)?;
    let (range, to) = (bench.reserve(4)?, bench.reserve(4)?);
    let grain = bench.granules(1);
    bench.back(range, &[grain, grain])?;
    bench.alias(&[range], to)?;
    ensure_eq!(bench.extents().unback(&[to])?, 0, "bytes that are used");
    bench.model.places.remove(&to);
    bench.check()?;
    bench.check_contents()?;
    bench.drop_aliases(&[range])?;
    ensure_eq!(bench.extents().physical().now, grain, "bytes that are left");
    bench.finish()
}

/// Tens of thousands on the simulated driver, where the clock shows a search through all of them.
fn many_places() -> Outcome {
    let mut bench = Bench::open("devices=1,memory=64GiB")?;
    let count = if bench.machine.sim.is_some() {
        20_000
    } else {
        2_000
    };
    let grain = bench.granules(1);
    let (range, to) = (bench.reserve(count)?, bench.reserve(count)?);
    let places: Vec<u64> = (0..count).map(|at| range + at * grain).collect();
    let moved: Vec<u64> = (0..count).map(|at| to + at * grain).collect();
    {
        let extents = bench.extents();
        for part in places.chunks(16) {
            extents.back(part[0], &vec![grain; part.len()])?;
        }
        for (from, to) in places.chunks(8).zip(moved.chunks(8)) {
            extents.alias(from, to[0])?;
            extents.drop_aliases(from)?;
        }
        ensure_eq!(extents.list().len() as u64, count, "places");
        let freed = extents.unback(&moved)?;
        ensure_eq!(freed, count * grain, "bytes given back");
    }
    bench.finish()
}
