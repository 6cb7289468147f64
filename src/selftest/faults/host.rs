//! Faults in what makes, pins and gives back memory of the host.

use super::{Scenario, Stage, exhaust};
use crate::error;
use crate::process::Process;
use crate::process::host::{HostBlockStats, HostKind};
use crate::process::host_making::HostPlan;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::Machine;
use crate::selftest::simulator::{Counters, Simulator};
use crate::selftest::{Case, Context, Outcome, Stop};
use crate::source::host::{HostBlock, PageKind, Wanted};

const MIB: u64 = 1 << 20;
const BYTES: u64 = 7 * MIB;
/// What is registered at once, where it is in parts.
const PART: u64 = 2 * MIB;
const WRITE_COMBINED: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// The driver is opened for it.
    FirstAllocation,
    Allocation,
    Free,
    /// The driver's own, which is write-combined.
    DriversAllocation,
    DriversFree,
    /// Registered in several parts.
    AllocationInParts,
    FreeInParts,
    /// Which node is nearest to a device.
    NearestNode,
}

use Operation::*;

const OPERATIONS: [Operation; 8] = [
    FirstAllocation,
    Allocation,
    Free,
    DriversAllocation,
    DriversFree,
    AllocationInParts,
    FreeInParts,
    NearestNode,
];

/// The cases.
pub const CASES: &[Case] = &[Case {
    name: "memory of the host",
    run: all,
}];

fn all(context: &Context) -> Outcome {
    for operation in OPERATIONS {
        let tried = exhaust(&operation).map_err(|stop| stop.at(format_args!("{operation:?}")))?;
        context.observe(&format!("{operation:?}: {tried} faults"));
        ensure!(tried > 0, "{operation:?} makes no call");
    }
    Ok(())
}

impl Scenario for Operation {
    fn prepare(&self) -> Result<Box<dyn Stage>, Stop> {
        let spec = "devices=2";
        let (machine, sim) = Machine::simulated(spec)?;
        machine.set_context(None)?;
        let mut scene = Scene {
            process: machine.process(&[("sim", spec)])?,
            operation: *self,
            live: Vec::new(),
            parts: None,
            base: sim.counters(),
            sim,
            machine,
        };
        match self {
            FirstAllocation | NearestNode => {}
            _ => scene.process.device(0).map(|_| ())?,
        }
        match self {
            Free => scene.allocate(0)?,
            DriversFree => scene.allocate(WRITE_COMBINED)?,
            FreeInParts => scene.make_parts()?,
            _ => {}
        }
        Ok(Box::new(scene))
    }
}

struct Scene {
    process: Process,
    operation: Operation,
    live: Vec<u64>,
    parts: Option<HostBlock>,
    base: Counters,
    sim: Simulator,
    machine: Machine,
}

impl Scene {
    fn allocate(&mut self, flags: u32) -> error::Result<()> {
        let plan = HostPlan {
            is_pinned: true,
            flags,
            ..HostPlan::default()
        };
        let made = self.process.allocate_host(HostKind::Pinned, BYTES, &plan)?;
        self.live.push(made);
        Ok(())
    }

    fn free(&mut self) -> error::Result<()> {
        while let Some(address) = self.live.last() {
            (self.process).free_host(HostKind::Pinned, *address, None, None)?;
            self.live.pop();
        }
        Ok(())
    }

    fn make_parts(&mut self) -> error::Result<()> {
        let wanted = Wanted {
            operation: "test",
            bytes: BYTES,
            pages: PageKind::Ordinary,
            binding: None,
            pinned: Some((&self.machine.device, 0)),
        };
        let made = HostBlock::make_in_parts(&wanted, self.process.warnings(), PART)?;
        self.parts = Some(made);
        Ok(())
    }

    fn free_parts(&mut self) -> error::Result<()> {
        match self.parts.take().map(HostBlock::give_back) {
            Some(Err((block, error))) => {
                self.parts = Some(block);
                Err(error)
            }
            _ => Ok(()),
        }
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
        matches!(self.operation, FirstAllocation | NearestNode)
    }

    fn retries(&self) -> bool {
        false
    }

    fn act(&mut self) -> error::Result<()> {
        match self.operation {
            FirstAllocation | Allocation => self.allocate(0),
            DriversAllocation => self.allocate(WRITE_COMBINED),
            Free | DriversFree => self.free(),
            AllocationInParts => self.make_parts(),
            FreeInParts => self.free_parts(),
            NearestNode => self.process.nearest_node(0).map(|_| ()),
        }
    }

    fn settle(mut self: Box<Self>, _: bool) -> Outcome {
        let thread = self.machine.thread_state();
        ensure_eq!(thread, (0, 0), "context and capture mode of the thread");
        let next = |stop: Stop| stop.at("the next call");
        self.free().map_err(Stop::from).map_err(next)?;
        self.free_parts().map_err(Stop::from).map_err(next)?;
        self.allocate(0).map_err(Stop::from).map_err(next)?;
        self.make_parts().map_err(Stop::from).map_err(next)?;
        let registered = self.sim.counters().registered - self.base.registered;
        ensure_eq!(registered, 1 + BYTES.div_ceil(PART), "registrations");
        self.free()?;
        self.free_parts()?;
        self.machine.synchronize()?;
        let held = self.process.host_block_stats()?;
        ensure_eq!(held, HostBlockStats::default(), "blocks of the host");
        let (counters, base) = (self.sim.counters(), self.base);
        let pinned = |of: &Counters| (of.registered, of.registered_bytes);
        ensure_eq!(pinned(&counters), pinned(&base), "registrations left");
        ensure_eq!(
            counters.memory(),
            base.memory(),
            "memory and addresses alive"
        );
        let faults = self.sim.faults();
        ensure_eq!(counters.faults, 0, "faults: {}", faults.join("; "));
        Ok(())
    }
}
