//! Random sequences of everything a process does with memory, one after another on one thread,
//! against a model of what must hold after each step.
#![allow(missing_docs)]

mod support;

use hbmalloc::config::value::Location;
use hbmalloc::core::tags::TagId;
use hbmalloc::extent::table::Owner;
use hbmalloc::gpu::Stream;
use hbmalloc::gpu::stream::OwnedStream;
use hbmalloc::process::{Demand, Process};
use hbmalloc::registry::GraphPool;
use hbmalloc::selftest::machine::{CAPTURE_GLOBAL, Machine};
use hbmalloc::selftest::simulator::{Counters, Simulator};
use hbmalloc::selftest::stress::shadow::Shadow;
use hbmalloc::source::{ALIGN, Kind, LastUse};
use proptest::prelude::*;
use std::collections::BTreeMap;

const STREAMS: usize = 3;
const SPEC: &str = "devices=1,memory=512MiB";
const MEMORY: u64 = 512 << 20;

#[derive(Clone, Debug)]
enum Step {
    Allocate {
        kind: usize,
        bytes: u64,
        stream: usize,
        use_known: usize,
        segment: bool,
        on_host: bool,
    },
    Free {
        index: usize,
    },
    FreeUsedOn {
        index: usize,
        stream: usize,
    },
    FreeWild {
        address: u64,
    },
    Record {
        index: usize,
        stream: usize,
    },
    /// Work on a stream that uses a block, known to the block or waited for.
    Work {
        index: usize,
        stream: usize,
    },
    /// Streams stand still, or go on.
    Hold {
        stream: usize,
    },
    Release {
        stream: usize,
    },
    ReplaceStream {
        stream: usize,
    },
    BeginCapture {
        stream: usize,
        pool: u64,
        told: bool,
    },
    EndCapture,
    ReleasePool {
        pool: u64,
    },
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    let index = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    let stream = || 0..STREAMS;
    let bytes = prop_oneof![
        4 => (0u32..25).prop_flat_map(|shift| 1u64..=1 << shift),
        1 => Just(150u64 << 20),
        1 => prop_oneof![Just(0), Just(1 << 40), Just(u64::MAX)],
    ];
    prop_oneof![
        8 => (0..Kind::ALL.len(), bytes, 0..STREAMS + 1, 0..4usize, any::<bool>(), any::<bool>()).prop_map(
            |(kind, bytes, stream, use_known, segment, on_host)| Step::Allocate {
                kind, bytes, stream, use_known, segment, on_host,
            }
        ),
        6 => index().prop_map(|index| Step::Free { index }),
        2 => (index(), stream()).prop_map(|(index, stream)| Step::FreeUsedOn { index, stream }),
        1 => any::<u64>().prop_map(|address| Step::FreeWild { address }),
        2 => (index(), stream()).prop_map(|(index, stream)| Step::Record { index, stream }),
        3 => (index(), stream()).prop_map(|(index, stream)| Step::Work { index, stream }),
        1 => stream().prop_map(|stream| Step::Hold { stream }),
        2 => stream().prop_map(|stream| Step::Release { stream }),
        1 => stream().prop_map(|stream| Step::ReplaceStream { stream }),
        1 => (stream(), 1..3u64, any::<bool>())
            .prop_map(|(stream, pool, told)| Step::BeginCapture { stream, pool, told }),
        2 => Just(Step::EndCapture),
        1 => (1..3u64).prop_map(|pool| Step::ReleasePool { pool }),
        1 => Just(Step::Trim),
    ]
}

#[derive(Clone, Copy)]
struct Live {
    kind: Kind,
    requested: u64,
    bytes: u64,
}

struct Capture {
    stream: usize,
    pool: Option<GraphPool>,
}

struct Run {
    process: Process,
    sim: Simulator,
    base: Counters,
    streams: Vec<OwnedStream>,
    held: [bool; STREAMS],
    live: BTreeMap<u64, Live>,
    shadow: Shadow,
    capture: Option<Capture>,
    /// Whether device or managed memory was freed and may wait.
    plain_freed: bool,
    /// How often each pool was begun and not released.
    pools: BTreeMap<u64, u64>,
    /// Blocks of captures nobody told of, which are kept for good.
    kept: Vec<u64>,
    machine: Machine,
}

fn pool(id: u64) -> GraphPool {
    GraphPool {
        device: 0,
        id: (0, id),
    }
}

impl Run {
    fn new() -> Run {
        let machine = Machine::open(SPEC).unwrap();
        let sim = machine.sim.unwrap();
        Run {
            process: machine.process(&[("sim", SPEC)]).unwrap(),
            base: sim.counters(),
            sim,
            streams: (0..STREAMS).map(|_| machine.stream().unwrap()).collect(),
            held: [false; STREAMS],
            live: BTreeMap::new(),
            shadow: Shadow::default(),
            capture: None,
            plain_freed: false,
            pools: BTreeMap::new(),
            kept: Vec::new(),
            machine,
        }
    }
}

impl Run {
    fn stream(&self, index: usize) -> Stream {
        self.streams
            .get(index)
            .map_or(Stream::LEGACY, OwnedStream::stream)
    }

    fn captures(&self, stream: usize) -> bool {
        self.capture
            .as_ref()
            .is_some_and(|capture| capture.stream == stream)
    }

    fn at(&self, index: usize) -> Option<(u64, Live)> {
        let at = index.checked_rem(self.live.len())?;
        self.live
            .iter()
            .nth(at)
            .map(|(address, live)| (*address, *live))
    }

    /// There is one thread, and nobody else would let a stream go on that it waits for.
    fn release_all(&mut self) {
        for stream in 0..STREAMS {
            self.release(stream);
        }
    }

    /// Whether a block waits whose memory the driver takes back only after all work of the device, so
    /// that whoever gives back what waits may wait as well.
    fn plain_waits(&mut self) -> bool {
        self.plain_freed &= self.process.stats(0, None).unwrap().pending_frees > 0;
        self.plain_freed
    }

    fn release(&mut self, stream: usize) {
        if std::mem::take(&mut self.held[stream]) {
            self.sim.release(self.stream(stream));
        }
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Allocate { .. } => self.allocate(step)?,
            Step::Free { index } => self.free(index, None)?,
            Step::FreeUsedOn { index, stream } => self.free(index, Some(stream))?,
            Step::FreeWild { address } if !self.live.contains_key(&address) => {
                prop_assert!(self.process.deallocate(address, None, None).is_err());
            }
            Step::Record { index, stream } => {
                if let Some((address, _)) = self.at(index) {
                    self.process
                        .record_stream(address, self.stream(stream))
                        .unwrap();
                }
            }
            Step::Work { index, stream } => self.work(index, stream),
            Step::Hold { stream } if !self.captures(stream) => {
                self.sim.hold(self.stream(stream));
                self.held[stream] = true;
            }
            Step::Release { stream } => self.release(stream),
            Step::ReplaceStream { stream } if !self.captures(stream) => {
                self.release(stream);
                self.process.forget_stream(0, self.stream(stream)).unwrap();
                self.streams[stream] = self.machine.stream().unwrap();
            }
            Step::BeginCapture { stream, pool, told } if self.capture.is_none() => {
                self.begin_capture(stream, pool, told)?;
            }
            Step::EndCapture => self.end_capture(),
            Step::ReleasePool { pool } if self.capture.is_none() => self.release_pool(pool),
            Step::Trim => {
                self.release_all();
                self.process.trim_all().unwrap();
            }
            _ => {}
        }
        Ok(())
    }

    fn allocate(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let Step::Allocate {
            kind,
            bytes,
            stream,
            use_known,
            segment,
            on_host,
        } = *step
        else {
            return Ok(());
        };
        let kind = Kind::ALL[kind];
        let used = self.sim.counters().physical_bytes;
        if used.saturating_add(bytes) > MEMORY / 4 * 3 || self.plain_waits() {
            // Whoever runs out of memory waits for freed blocks.
            self.release_all();
        }
        let outcome = self.process.allocate(Demand {
            kind,
            device: 0,
            bytes,
            align: ALIGN,
            stream: self.stream(stream),
            owner: if segment {
                Owner::Segment
            } else {
                Owner::Block
            },
            last_use: [
                LastUse::Streams,
                LastUse::Anywhere,
                LastUse::Unknown,
                LastUse::Told,
            ][use_known],
            allocator: None,
            location: on_host.then_some(Location::HostNuma(0)),
            tag: TagId::NONE,
        });
        match outcome {
            Ok(address) => {
                let (_, length) = self.process.block_of(address).unwrap();
                prop_assert!(ALIGN.divides(address) && length >= bytes && bytes > 0);
                self.shadow
                    .gave(address, length)
                    .map_err(TestCaseError::fail)?;
                let by_vmm = kind == Kind::Async && self.captures(stream);
                let kind = if by_vmm { Kind::Vmm } else { kind };
                self.live.insert(
                    address,
                    Live {
                        kind,
                        requested: bytes,
                        bytes: length,
                    },
                );
            }
            Err(error) => {
                let room = MEMORY.saturating_sub(self.sim.counters().physical_bytes);
                // A pool grows by 32 MiB.
                let fits = bytes > 0 && bytes.saturating_add(32 << 20) <= room;
                prop_assert!(!fits, "{bytes} bytes with {room} free: {error}");
            }
        }
        Ok(())
    }

    fn free(&mut self, index: usize, used_on: Option<usize>) -> Result<(), TestCaseError> {
        let Some((address, live)) = self.at(index) else {
            return Ok(());
        };
        self.plain_freed |= matches!(live.kind, Kind::Device | Kind::Managed | Kind::Pinned);
        if self.plain_waits() || matches!(live.kind, Kind::Device | Kind::Managed | Kind::Pinned) {
            self.release_all();
        }
        self.live.remove(&address);
        self.shadow.takes(address).map_err(TestCaseError::fail)?;
        let used_on = used_on.map(|stream| self.stream(stream));
        self.process.deallocate(address, None, used_on).unwrap();
        prop_assert!(self.process.deallocate(address, None, None).is_err());
        Ok(())
    }

    fn work(&mut self, index: usize, stream: usize) {
        let Some((address, live)) = self.at(index) else {
            return;
        };
        if self.captures(stream) {
            return;
        }
        let bytes = live.bytes.min(4096);
        let handle = self.stream(stream);
        self.machine.device.fill(address, 1, bytes, handle).unwrap();
        self.process.record_stream(address, handle).unwrap();
    }

    fn begin_capture(&mut self, stream: usize, id: u64, told: bool) -> Result<(), TestCaseError> {
        self.release(stream);
        let told = told.then(|| pool(id));
        if let Some(pool) = told {
            self.process.graph_begin(pool).unwrap();
            *self.pools.entry(id).or_default() += 1;
        }
        self.machine
            .begin_capture(self.stream(stream), CAPTURE_GLOBAL)
            .unwrap();
        self.capture = Some(Capture { stream, pool: told });
        // The first thing in a capture is an allocation, or nobody could know of it.
        let before: Vec<u64> = self.live.keys().copied().collect();
        self.allocate(&Step::Allocate {
            kind: Kind::ALL
                .iter()
                .position(|kind| *kind == Kind::Async)
                .unwrap(),
            bytes: 4096,
            stream,
            use_known: 0,
            segment: false,
            on_host: false,
        })?;
        if told.is_none() {
            let new = self
                .live
                .keys()
                .find(|address| !before.contains(address))
                .copied();
            self.kept.extend(new);
            // Nothing else is allocated in it: what is, is kept for good.
            self.end_capture();
        }
        Ok(())
    }

    fn end_capture(&mut self) {
        let Some(capture) = self.capture.take() else {
            return;
        };
        self.machine
            .end_capture(self.stream(capture.stream))
            .expect("the capture stays valid");
        if let Some(pool) = capture.pool {
            self.process.graph_end(pool).unwrap();
        }
    }

    fn release_pool(&mut self, id: u64) {
        self.release_all();
        let released = self.process.graph_release(pool(id));
        match self.pools.get_mut(&id).filter(|users| **users > 0) {
            Some(users) => {
                released.unwrap();
                *users -= 1;
            }
            None => assert!(released.is_err(), "a graph that is not there was released"),
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let device = self.process.device(0).unwrap();
        device
            .state()
            .extents
            .audit()
            .map_err(TestCaseError::fail)?;
        let counters = self.sim.counters();
        let chunks = counters.chunk_bytes + counters.host_chunk_bytes;
        let reserved = |kind| self.process.stats(0, Some(kind)).unwrap().reserved;
        for kind in Kind::ALL {
            let stats = self.process.stats(0, Some(kind)).unwrap();
            let of_kind = || self.live.values().filter(|live| live.kind == kind);
            prop_assert_eq!(
                stats.requested,
                of_kind().map(|live| live.requested).sum::<u64>()
            );
            prop_assert_eq!(
                stats.allocated,
                of_kind().map(|live| live.bytes).sum::<u64>()
            );
            prop_assert!(stats.allocated <= stats.reserved, "{:?}: {:?}", kind, stats);
            let held = match kind {
                Kind::Device => counters.device_bytes,
                Kind::Managed => counters.managed_bytes,
                Kind::Async => counters.async_reserved_bytes,
                Kind::Pinned => counters.pinned_bytes,
                // Chunks are those of the vmm source and of the pool together.
                Kind::Vmm => chunks - reserved(Kind::Pool),
                Kind::Pool => chunks - reserved(Kind::Vmm),
            };
            prop_assert_eq!(stats.reserved, held, "{:?}", kind);
        }
        prop_assert_eq!(self.process.live_blocks(), self.live.len());
        prop_assert_eq!(self.shadow.len(), self.live.len());
        prop_assert_eq!(self.machine.thread_state(), (0, 0));
        prop_assert_eq!(self.sim.faults(), Vec::<String>::new());
        Ok(())
    }

    /// Everything is given back, and nothing is left.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        self.release_all();
        self.end_capture();
        while !self.live.is_empty() {
            self.free(0, None)?;
        }
        while let Some((id, _)) = self.pools.iter().find(|(_, users)| **users > 0) {
            self.release_pool(*id);
        }
        self.machine.synchronize().unwrap();
        self.process.trim_all().unwrap();
        self.check()?;
        let device = self.process.device(0).unwrap();
        for block in &self.kept {
            device.state().extents.retire(*block).unwrap();
        }
        prop_assert_eq!(self.sim.counters().memory(), self.base.memory());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_to_the_model(steps in prop::collection::vec(step(), 1..80)) {
        let settings = Process::current().settings();
        let driver = support::built("libhbmalloc_sim.so");
        settings.set("driver", driver.to_str().unwrap()).unwrap();
        settings.set("log", "off").unwrap();
        let mut run = Run::new();
        run.machine.set_context(None).unwrap();
        for step in &steps {
            run.take(step)?;
            run.check().map_err(|error| TestCaseError::fail(format!("after {step:?}: {error}")))?;
        }
        run.finish()?;
    }
}
