//! Faults from the first driver call on, in what a whole process does with its blocks.

use super::{Scenario, Stage, exhaust};
use crate::core::tags::TagId;
use crate::error;
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::process::{Demand, Process};
use crate::registry::GraphPool;
use crate::selftest::check::ensure_eq;
use crate::selftest::machine::{CAPTURE_RELAXED, Machine};
use crate::selftest::simulator::{Counters, Simulator};
use crate::selftest::{Case, Context, Outcome, Stop};
use crate::source::{ALIGN, Kind, LastUse};

const BYTES: u64 = 5 << 20;
/// As much is filled at each such step, so that every chunk of a block is used and few pages of it.
const STEP: u64 = 1 << 20;
const FILLED: u64 = 4 << 10;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The first allocation: the driver is opened, the device comes into use.
    FirstAllocation,
    /// A second device comes into use.
    SecondDevice,
    /// An allocation.
    Allocation,
    /// A free.
    Free,
    /// A free of a block that another stream used.
    FreeOfRecorded,
    /// A free in a capture.
    FreeInCapture,
    /// An allocation on a capturing stream, for a graph pool.
    GraphAllocation,
    /// The end of a graph pool with a block in it.
    GraphRelease,
    /// A stream is about to be destroyed.
    ForgetStream,
    /// Everything cached is given back.
    TrimAll,
    /// Memory has run out until freed blocks are given back.
    OutOfMemory,
}

use Operation::*;

const OPERATIONS: [Operation; 11] = [
    FirstAllocation,
    SecondDevice,
    Allocation,
    Free,
    FreeOfRecorded,
    FreeInCapture,
    GraphAllocation,
    GraphRelease,
    ForgetStream,
    TrimAll,
    OutOfMemory,
];

/// An operation of a process with blocks of one kind.
pub struct OnProcess {
    /// The kind.
    pub kind: Kind,
    /// What a pool is over.
    pub pool_source: &'static str,
    /// The operation.
    pub operation: Operation,
}

/// A case a kind.
pub const CASES: &[Case] = &[
    on_process("process, device", |context| {
        all_of(context, Kind::Device, "vmm")
    }),
    on_process("process, managed", |context| {
        all_of(context, Kind::Managed, "vmm")
    }),
    on_process("process, async", |context| {
        all_of(context, Kind::Async, "vmm")
    }),
    on_process("process, vmm", |context| all_of(context, Kind::Vmm, "vmm")),
    on_process("process, pool", |context| {
        all_of(context, Kind::Pool, "vmm")
    }),
    on_process("process, pool over device", |context| {
        all_of(context, Kind::Pool, "device")
    }),
    on_process("process, pool over managed", |context| {
        all_of(context, Kind::Pool, "managed")
    }),
    on_process("process, pinned", |context| {
        all_of(context, Kind::Pinned, "vmm")
    }),
    on_process("process, pool over pinned", |context| {
        all_of(context, Kind::Pool, "pinned")
    }),
];

const fn on_process(name: &'static str, run: fn(&Context) -> Outcome) -> Case {
    Case { name, run }
}

fn all_of(context: &Context, kind: Kind, pool_source: &'static str) -> Outcome {
    for scenario in OnProcess::all(kind, pool_source) {
        let operation = scenario.operation;
        let tried = exhaust(&scenario).map_err(|stop| stop.at(format_args!("{operation:?}")))?;
        context.observe(&format!("{operation:?}: {tried} faults"));
    }
    Ok(())
}

impl OnProcess {
    /// Every operation on a kind.
    pub fn all(kind: Kind, pool_source: &'static str) -> impl Iterator<Item = OnProcess> {
        let is_endless = matches!(kind, Kind::Managed | Kind::Pinned)
            || ["managed", "pinned"].contains(&pool_source);
        OPERATIONS
            .into_iter()
            .filter(move |operation| !(is_endless && *operation == OutOfMemory))
            .map(move |operation| OnProcess {
                kind,
                pool_source,
                operation,
            })
    }
}

const POOL: GraphPool = GraphPool {
    device: 0,
    id: (0, 7),
};

impl Scenario for OnProcess {
    fn prepare(&self) -> Result<Box<dyn Stage>, Stop> {
        let spec = match self.operation {
            OutOfMemory => "devices=2,memory=40MiB",
            _ => "devices=2",
        };
        let (machine, sim) = Machine::simulated(spec)?;
        machine.set_context(None)?;
        let streams = [machine.stream()?, machine.stream()?];
        let mut scene = Scene {
            process: machine.process(&[("sim", spec), ("pool_source", self.pool_source)])?,
            base: sim.counters(),
            kind: self.kind,
            operation: self.operation,
            live: Vec::new(),
            open: None,
            has_pool: false,
            streams,
            sim,
            machine,
        };
        scene.set_up()?;
        Ok(Box::new(scene))
    }
}

struct Scene {
    process: Process,
    kind: Kind,
    operation: Operation,
    live: Vec<u64>,
    /// The stream that captures.
    open: Option<Stream>,
    has_pool: bool,
    streams: [OwnedStream; 2],
    base: Counters,
    sim: Simulator,
    machine: Machine,
}

impl Scene {
    fn set_up(&mut self) -> Outcome {
        if self.operation == FirstAllocation {
            return Ok(());
        }
        self.allocate(0)?;
        match self.operation {
            // What a captured stream-ordered block comes from must have been probed.
            GraphAllocation | GraphRelease => {
                self.allocate_of(Kind::Vmm, 0)?;
                self.begin_capture(1)?;
                self.process.graph_begin(POOL)?;
                self.has_pool = true;
                if self.operation == GraphRelease {
                    self.allocate(1)?;
                    self.free()?;
                    self.end_capture()?;
                }
            }
            FreeInCapture => self.begin_capture(0)?,
            FreeOfRecorded | ForgetStream => self.record(1)?,
            TrimAll => {
                self.record(1)?;
                self.free()?;
            }
            OutOfMemory => {
                while self.allocate(0).is_ok() {}
                self.process.trim_all()?;
                while !self.live.is_empty() {
                    self.record(1)?;
                    self.free()?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn allocate(&mut self, stream: usize) -> error::Result<()> {
        self.allocate_of(self.kind, stream)
    }

    fn allocate_of(&mut self, kind: Kind, stream: usize) -> error::Result<()> {
        let address = self.process.allocate(Demand {
            kind,
            device: 0,
            bytes: BYTES,
            align: ALIGN,
            stream: self.streams[stream].stream(),
            owner: Owner::Block,
            last_use: LastUse::Streams,
            allocator: None,
            location: None,
            tag: TagId::NONE,
        })?;
        self.live.push(address);
        Ok(())
    }

    fn free(&mut self) -> error::Result<()> {
        match self.live.pop() {
            Some(address) => self.process.deallocate(address, None, None),
            None => Ok(()),
        }
    }

    fn record(&self, stream: usize) -> error::Result<()> {
        let last = *self.live.last().expect("a live block");
        self.process
            .record_stream(last, self.streams[stream].stream())
    }

    fn begin_capture(&mut self, stream: usize) -> Outcome {
        let stream = self.streams[stream].stream();
        self.machine.begin_capture(stream, CAPTURE_RELAXED)?;
        self.open = Some(stream);
        Ok(())
    }

    fn end_capture(&mut self) -> Outcome {
        let Some(stream) = self.open.take() else {
            return Ok(());
        };
        if self.has_pool {
            self.process.graph_end(POOL)?;
        }
        self.machine
            .end_capture(stream)
            .map_err(|stop| stop.at("the capture's end"))
    }
}

impl Stage for Scene {
    fn simulator(&self) -> Simulator {
        self.sim
    }

    fn warnings(&self) -> u64 {
        self.process.warnings().total()
    }

    fn probes(&self) -> bool {
        matches!(self.operation, FirstAllocation)
    }

    fn retries(&self) -> bool {
        true
    }

    fn act(&mut self) -> error::Result<()> {
        match self.operation {
            FirstAllocation | Allocation | OutOfMemory => self.allocate(0),
            SecondDevice => self.process.device(1).map(|_| ()),
            Free | FreeOfRecorded | FreeInCapture => self.free(),
            GraphAllocation => self.allocate(1),
            GraphRelease => {
                self.has_pool = false;
                self.process.graph_release(POOL)
            }
            ForgetStream => self.process.forget_stream(0, self.streams[1].stream()),
            TrimAll => self.process.trim_all().map(|_| ()),
        }
    }

    fn settle(mut self: Box<Self>, refused: bool) -> Outcome {
        ensure_eq!(
            self.machine.thread_state(),
            (0, 0),
            "context and capture mode of the thread"
        );
        self.end_capture()?;
        match self.allocate(0) {
            Err(_) if refused => {}
            outcome => outcome.map_err(|error| Stop::from(error).at("the next allocation"))?,
        }
        for address in &self.live {
            let places = (0..BYTES).step_by(STEP as usize).chain([BYTES - FILLED]);
            for at in places.map(|offset| address + offset) {
                self.machine
                    .device
                    .fill(at, 7, FILLED, self.streams[0].stream())
                    .map_err(|error| Stop::from(error).at("the next work"))?;
            }
        }
        while !self.live.is_empty() {
            self.free()
                .map_err(|error| Stop::from(error).at("the next free"))?;
        }
        if self.has_pool {
            self.process.graph_release(POOL)?;
        }
        self.machine.synchronize()?;
        self.process.trim_all()?;
        ensure_eq!(self.process.live_blocks(), 0, "blocks recorded");
        let stats = self.process.stats(0, None)?;
        ensure_eq!(
            (stats.requested, stats.allocated, stats.reserved),
            (0, 0, 0),
            "{stats:?}"
        );
        ensure_eq!(stats.pending_frees, 0, "waiting frees");
        let counters = self.sim.counters();
        ensure_eq!(
            counters.memory(),
            self.base.memory(),
            "memory, addresses and events alive"
        );
        ensure_eq!(
            counters.faults,
            0,
            "faults: {}",
            self.sim.faults().join("; ")
        );
        Ok(())
    }
}
