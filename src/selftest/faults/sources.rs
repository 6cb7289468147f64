//! Faults in each operation of each source.

use super::{Scenario, Stage, exhaust};
use crate::error;
use crate::extent::deferral::DRAIN_ENTRIES;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::selftest::check::ensure_eq;
use crate::selftest::machine::Machine;
use crate::selftest::simulator::Simulator;
use crate::selftest::sources::{Bench, SUBJECTS, Subject};
use crate::selftest::{Case, Context, Outcome, Stop};
use crate::source::{Block, Freeing, LastUse};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const BYTES: u64 = 9 * MIB;

/// What happens to a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The first allocation, with every probe.
    FirstAllocation,
    /// A later one.
    Allocation,
    /// One that finds freed blocks whose work is done.
    AllocationThatDrains,
    /// One that finds blocks freed when nothing could be recorded.
    AllocationThatOrders,
    /// One that has to wait for freed blocks.
    AllocationThatWaits,
    /// A free of a block its own stream used.
    Free,
    /// A free of a block another stream used as well.
    FreeWithOthers,
    /// A free of a block anybody may use.
    FreeAnywhere,
    /// A free in a program that tells us of streams and captures.
    FreeTold,
    /// A free in a program that tells us nothing.
    FreeUnknown,
    /// The free that drains the queue.
    FreeThatDrains,
    /// Giving everything back.
    Trim,
}

use Operation::*;

/// Every operation.
pub const OPERATIONS: [Operation; 12] = [
    FirstAllocation,
    Allocation,
    AllocationThatDrains,
    AllocationThatOrders,
    AllocationThatWaits,
    Free,
    FreeWithOthers,
    FreeAnywhere,
    FreeTold,
    FreeUnknown,
    FreeThatDrains,
    Trim,
];

/// An operation on a source.
pub struct OnSource {
    /// The source.
    pub subject: &'static Subject,
    /// The operation.
    pub operation: Operation,
}

/// A case a source.
pub const CASES: &[Case] = &[
    on_source("device", |context| all_of(context, 0)),
    on_source("managed", |context| all_of(context, 1)),
    on_source("async", |context| all_of(context, 2)),
    on_source("async own pool", |context| all_of(context, 3)),
    on_source("vmm", |context| all_of(context, 4)),
    on_source("vmm in small chunks", |context| all_of(context, 5)),
    on_source("vmm on the host", |context| all_of(context, 6)),
    on_source("pinned", |context| all_of(context, 7)),
];

const fn on_source(name: &'static str, run: fn(&Context) -> Outcome) -> Case {
    Case { name, run }
}

fn all_of(context: &Context, subject: usize) -> Outcome {
    if context.driver.is_hip() && SUBJECTS[subject].name == "vmm_host" {
        return Err(Stop::skip(
            "HIP does not offer virtual memory on host nodes",
        ));
    }
    for scenario in OnSource::all(&SUBJECTS[subject]) {
        let operation = scenario.operation;
        let tried = exhaust(&scenario).map_err(|stop| stop.at(format_args!("{operation:?}")))?;
        context.observe(&format!("{operation:?}: {tried} faults"));
    }
    Ok(())
}

impl OnSource {
    /// Every operation that the source can come to.
    pub fn all(subject: &'static Subject) -> impl Iterator<Item = OnSource> {
        // Managed and host memory do not run out when the simulated device does.
        let endless = ["managed", "vmm_host", "pinned"].contains(&subject.name);
        OPERATIONS
            .into_iter()
            .filter(move |operation| !(endless && *operation == AllocationThatWaits))
            .map(move |operation| OnSource { subject, operation })
    }
}

impl Scenario for OnSource {
    fn prepare(&self) -> Result<Box<dyn Stage>, Stop> {
        let spec = match self.operation {
            AllocationThatWaits => "devices=2,memory=40MiB",
            _ => "devices=2",
        };
        let (machine, sim) = Machine::simulated(spec)?;
        // A device in use besides, so that the calls which look for peers and admit them are made.
        machine.driver.device(1)?;
        machine.set_context(None)?;
        let streams = [machine.stream()?, machine.stream()?];
        let machine = Arc::new(machine);
        let mut scene = Scene {
            bench: Bench::new(&machine, self.subject),
            operation: self.operation,
            live: Vec::new(),
            streams,
            sim,
            machine,
        };
        scene.set_up()?;
        Ok(Box::new(scene))
    }
}

struct Scene {
    bench: Bench,
    operation: Operation,
    live: Vec<Block>,
    streams: [OwnedStream; 2],
    sim: Simulator,
    machine: Arc<Machine>,
}

impl Scene {
    fn own(&self) -> Stream {
        self.streams[0].stream()
    }

    fn set_up(&mut self) -> Outcome {
        if self.operation == FirstAllocation {
            return Ok(());
        }
        // Probes are done, and what they asked is known.
        self.allocate(BYTES)?;
        let last_use = match self.operation {
            AllocationThatOrders => LastUse::Unknown,
            _ => LastUse::Streams,
        };
        match self.operation {
            AllocationThatDrains | AllocationThatOrders | Trim => {
                for _ in 0..3 {
                    self.allocate(BYTES)?;
                    self.free_with_others(last_use)?;
                }
            }
            AllocationThatWaits => {
                while self.allocate(BYTES).is_ok() {}
                while !self.live.is_empty() {
                    self.free(LastUse::Unknown)?;
                }
            }
            FreeThatDrains => {
                for _ in 0..=DRAIN_ENTRIES {
                    self.allocate(4096)?;
                }
                while self.live.len() > 1 {
                    self.free_with_others(last_use)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn allocate(&mut self, bytes: u64) -> error::Result<()> {
        let request = self.bench.request(bytes, self.own());
        let block = self.bench.source.allocate(&request)?;
        self.live.push(block);
        Ok(())
    }

    /// The block is gone for the caller whatever is answered.
    fn free(&mut self, last_use: LastUse) -> error::Result<()> {
        match self.live.pop() {
            Some(block) => self.bench.source.deallocate(&block, last_use.into()),
            None => Ok(()),
        }
    }

    /// [`Scene::free`] of a block that another stream was named for too.
    fn free_with_others(&mut self, last_use: LastUse) -> error::Result<()> {
        let Some(block) = self.live.pop() else {
            return Ok(());
        };
        let other = self.streams[1].stream();
        let freeing = Freeing::behind(last_use, &self.machine.device, other);
        self.bench.source.deallocate(&block, freeing)
    }
}

impl Stage for Scene {
    fn simulator(&self) -> Simulator {
        self.sim
    }

    fn warnings(&self) -> u64 {
        self.machine.warnings.total()
    }

    fn probes(&self) -> bool {
        self.operation == FirstAllocation
    }

    fn retries(&self) -> bool {
        self.operation == AllocationThatWaits
    }

    fn act(&mut self) -> error::Result<()> {
        match self.operation {
            FirstAllocation | Allocation | AllocationThatDrains | AllocationThatOrders
            | AllocationThatWaits => self.allocate(BYTES),
            Free | FreeThatDrains => self.free(LastUse::Streams),
            FreeWithOthers => self.free_with_others(LastUse::Streams),
            FreeAnywhere => self.free(LastUse::Anywhere),
            FreeTold => self.free_with_others(LastUse::Told),
            FreeUnknown => self.free(LastUse::Unknown),
            Trim => self.bench.source.trim(0),
        }
    }

    fn settle(mut self: Box<Self>, refused: bool) -> Outcome {
        ensure_eq!(
            self.machine.thread_state(),
            (0, 0),
            "context and capture mode of the thread"
        );
        self.bench.check()?;
        match self.allocate(BYTES) {
            Err(_) if refused => {}
            outcome => outcome.map_err(|error| Stop::from(error).at("the next allocation"))?,
        }
        while !self.live.is_empty() {
            self.free(LastUse::Streams)
                .map_err(|error| Stop::from(error).at("the next free"))?;
        }
        self.bench.finish()
    }
}
