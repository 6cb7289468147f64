//! Physical memory follows need: what one stream, tag or graph has given up serves the next, whichever
//! that is, and the pool holds little more than was in use at a time.

use super::run::demand_of;
use crate::core::tags::TagId;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::process::{Demand, Process, tags};
use crate::registry::GraphPool;
use crate::selftest::check::ensure;
use crate::selftest::machine::{CAPTURE_GLOBAL, Machine};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;

const MIB: u64 = 1 << 20;
/// In use at a time, at most.
pub(super) const NEED: u64 = 256 * MIB;
/// What may be held beyond it.
const MORE: u64 = 80 * MIB;
/// The same where memory cannot move.
const MORE_IN_SEGMENTS: u64 = 120 * MIB;
const STREAMS: usize = 4;

/// Blocks that come to [`NEED`], of one size, for a stream and a tag by their numbers.
#[derive(Clone, Copy)]
pub(super) struct Phase {
    stream: usize,
    tag: usize,
    bytes: u64,
}

pub(super) struct Scene {
    pub process: Process,
    more: u64,
    pub streams: Vec<OwnedStream>,
    tags: Vec<TagId>,
    pub machine: Machine,
}

impl Scene {
    pub fn open(source: &str, waste: &str) -> Result<Scene, Stop> {
        let spec = "devices=1,memory=4GiB";
        let machine = Machine::open(spec)?;
        machine.set_context(None)?;
        let process =
            machine.process(&[("sim", spec), ("pool_source", source), ("waste", waste)])?;
        process.set_captures_told(true);
        let streams = (0..STREAMS).map(|_| machine.stream());
        let names = (0..STREAMS).map(|number| format!("needs {number}"));
        Ok(Scene {
            streams: streams.collect::<Result<_, _>>()?,
            tags: names
                .map(|name| tags::table().intern(&name))
                .collect::<Result<_, _>>()?,
            more: match source {
                "vmm" => MORE,
                _ => MORE_IN_SEGMENTS,
            },
            process,
            machine,
        })
    }

    pub fn demand(&self, phase: Phase) -> Demand {
        Demand {
            stream: self.streams[phase.stream].stream(),
            tag: self.tags[phase.tag],
            ..demand_of(Kind::Pool, phase.bytes)
        }
    }

    /// Allocates all, then frees all, in the order of a program's variables.
    pub fn take(&self, phase: Phase) -> Outcome {
        let mut blocks = Vec::new();
        for _ in 0..NEED / phase.bytes {
            blocks.push(self.process.allocate(self.demand(phase))?);
        }
        for block in blocks {
            self.process.deallocate(block, None, None)?;
        }
        self.machine.synchronize()
    }

    fn holds_little(&self, what: &str) -> Outcome {
        let stats = self.process.stats(0, Some(Kind::Pool))?;
        ensure!(
            stats.peak_reserved <= NEED + self.more,
            "{what}: {} MiB were held and {} in use at a time",
            stats.peak_reserved / MIB,
            stats.peak_allocated / MIB
        );
        Ok(())
    }
}

pub(super) fn phase(stream: usize, tag: usize, bytes: u64) -> Phase {
    Phase { stream, tag, bytes }
}

/// Whoever comes next: another stream, another tag, larger blocks, smaller ones.
pub fn one_after_another() -> Outcome {
    const SMALL: u64 = 64 << 10;
    const LARGE: u64 = 32 * MIB;
    let in_turn = |of: &dyn Fn(usize) -> Phase| (0..STREAMS).map(of).collect::<Vec<_>>();
    let turns = [
        ("streams, large", in_turn(&|n| phase(n, 0, LARGE))),
        ("streams, small", in_turn(&|n| phase(n, 0, SMALL))),
        ("streams and tags, large", in_turn(&|n| phase(n, n, LARGE))),
        ("streams and tags, small", in_turn(&|n| phase(n, n, SMALL))),
        ("tags, large", in_turn(&|n| phase(0, n, LARGE))),
        ("tags, one block each", in_turn(&|n| phase(0, n, NEED))),
        (
            "streams, one block each",
            in_turn(&|n| phase(n, 0, NEED - n as u64 * MIB)),
        ),
        (
            "small, large, small",
            vec![phase(0, 0, SMALL), phase(0, 0, LARGE), phase(0, 0, SMALL)],
        ),
        (
            "small, then large elsewhere",
            vec![phase(0, 0, SMALL), phase(1, 0, LARGE)],
        ),
        (
            "large, then small elsewhere",
            vec![phase(0, 0, LARGE), phase(1, 0, SMALL)],
        ),
    ];
    for (source, waste) in [
        ("vmm", "balanced"),
        ("vmm", "tight"),
        ("device", "balanced"),
        ("managed", "tight"),
    ] {
        for (what, phases) in &turns {
            let scene = Scene::open(source, waste)?;
            for phase in phases {
                scene.take(*phase)?;
            }
            scene.holds_little(&format!("{what}, {source}, {waste}"))?;
        }
    }
    Ok(())
}

/// Graphs captured and released one after another, each with a pool of its own.
pub fn graphs_one_after_another() -> Outcome {
    for limit in [0, 400 * MIB] {
        let scene = Scene::open("vmm", "balanced")?;
        let (process, machine) = (&scene.process, &scene.machine);
        if limit > 0 {
            process.set_limit(0, crate::config::value::Size::Bytes(limit))?;
        }
        let stream: Stream = scene.streams[0].stream();
        for id in 0..12 {
            let pool = GraphPool {
                device: 0,
                id: (9, id),
            };
            process.graph_begin(pool)?;
            machine.begin_capture(stream, CAPTURE_GLOBAL)?;
            let block = process.allocate(scene.demand(phase(0, 0, NEED)));
            machine.end_capture(stream)?;
            process.graph_end(pool)?;
            process.deallocate(block?, None, None)?;
            process.graph_release(pool)?;
            machine.synchronize()?;
        }
        scene.take(phase(1, 1, 32 * MIB))?;
        scene.holds_little(&format!("graphs, limit {limit}"))?;
    }
    Ok(())
}
