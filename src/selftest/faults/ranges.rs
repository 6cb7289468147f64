//! Faults in what a pool does with its ranges. What is all or nothing is nothing after a failure, and
//! what takes down is done when it is asked for again.

use super::{Scenario, Stage, exhaust};
use crate::config::value::Location;
use crate::core::tags::TagId;
use crate::error::{self, Status};
use crate::extent::DeviceState;
use crate::extent::range::RangeSpec;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::Machine;
use crate::selftest::simulator::{Counters, Simulator};
use crate::selftest::{Case, Context, Outcome, Stop};

/// What happens to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Reserve,
    /// New chunks, with a device in use that must reach them.
    Back,
    /// More new chunks than there is memory for.
    BackTooMuch,
    /// Chunks of two ranges behind one another in a third.
    Alias,
    DropAliases,
    Unback,
    /// Of chunks that are still seen elsewhere, and then of those aliases.
    UnbackFirst,
    Release,
}

use Operation::*;

const OPERATIONS: [Operation; 8] = [
    Reserve,
    Back,
    BackTooMuch,
    Alias,
    DropAliases,
    Unback,
    UnbackFirst,
    Release,
];

/// The cases.
pub const CASES: &[Case] = &[Case {
    name: "ranges",
    run: all,
}];

fn all(context: &Context) -> Outcome {
    for operation in OPERATIONS {
        let tried = exhaust(&operation).map_err(|stop| stop.at(format_args!("{operation:?}")))?;
        context.observe(&format!("{operation:?}: {tried} faults"));
    }
    Ok(())
}

const GRAIN: u64 = 2 << 20;
const SIZES: [u64; 3] = [GRAIN, 2 * GRAIN, GRAIN];
const RANGE: u64 = 8 * GRAIN;

impl Scenario for Operation {
    fn prepare(&self) -> Result<Box<dyn Stage>, Stop> {
        let (machine, sim) = Machine::simulated("devices=2,memory=20MiB")?;
        machine.driver.device(1)?;
        machine.set_context(None)?;
        let state = DeviceState::new(machine.device.clone());
        state.grain(Location::Device)?;
        let mut scene = Scene {
            base: sim.counters(),
            operation: *self,
            state,
            ranges: Vec::new(),
            failed: false,
            held_before: 0,
            sim,
            machine,
        };
        scene.set_up()?;
        Ok(Box::new(scene))
    }
}

struct Scene {
    operation: Operation,
    state: DeviceState,
    ranges: Vec<u64>,
    failed: bool,
    held_before: u64,
    base: Counters,
    sim: Simulator,
    machine: Machine,
}

impl Scene {
    fn reserve(&mut self) -> error::Result<()> {
        let (chunk, grain) = self.state.grain(Location::Device)?;
        let range = self.state.extents.reserve(&RangeSpec {
            bytes: RANGE,
            align: grain.get(),
            chunk,
            tag: TagId::NONE,
        })?;
        self.ranges.push(range);
        Ok(())
    }

    /// Two chunks of the first range and one of the second.
    fn from(&self) -> [u64; 3] {
        [
            self.ranges[0] + GRAIN,
            self.ranges[0] + 3 * GRAIN,
            self.ranges[1],
        ]
    }

    /// Where they move to.
    fn to(&self) -> [u64; 3] {
        [2, 4, 5].map(|at| self.ranges[2] + at * GRAIN)
    }

    fn set_up(&mut self) -> Outcome {
        for _ in 0..3 {
            self.reserve()?;
        }
        let extents = &self.state.extents;
        if !matches!(self.operation, Reserve | Back | Release) {
            extents.back(self.ranges[0], &SIZES)?;
            extents.back(self.ranges[1], &[GRAIN])?;
        }
        if matches!(self.operation, DropAliases | Unback | UnbackFirst) {
            extents.alias(&self.from(), self.to()[0])?;
        }
        if self.operation == Unback {
            extents.drop_aliases(&self.from())?;
        }
        self.held_before = extents.physical().now;
        Ok(())
    }

    /// As set up, with the simulator's count.
    fn nothing_happened(&self) -> Outcome {
        let extents = &self.state.extents;
        extents.sweep();
        ensure_eq!(extents.physical().now, self.held_before, "bytes held");
        let aliases = extents.list().iter().any(|line| line.alias);
        ensure!(!aliases, "an alias is left");
        self.consistent()
    }

    fn consistent(&self) -> Outcome {
        self.state.extents.audit()?;
        let held = self.state.extents.physical();
        let counters = self.sim.counters();
        ensure_eq!(counters.chunk_bytes, held.now, "the simulator's bytes");
        // The probe had one too.
        let peak = held.peak.max(self.base.peak_physical_bytes);
        ensure_eq!(self.sim.peak_physical(0), peak, "the simulator's peak");
        Ok(())
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
        false
    }

    fn retries(&self) -> bool {
        // Memory runs out there anyway.
        self.operation == BackTooMuch
    }

    fn act(&mut self) -> error::Result<()> {
        let outcome = match self.operation {
            Reserve => self.reserve(),
            Back => self.state.extents.back(self.ranges[0], &SIZES),
            BackTooMuch => {
                let outcome = self.state.extents.back(self.ranges[2], &[GRAIN; 8]);
                match outcome {
                    Err(error) if error.status() == Status::OutOfMemory => Ok(()),
                    outcome => outcome,
                }
            }
            Alias => self.state.extents.alias(&self.from(), self.to()[0]),
            DropAliases => self.state.extents.drop_aliases(&self.from()),
            Unback => self.state.extents.unback(&self.to()).map(drop),
            UnbackFirst => {
                let extents = &self.state.extents;
                extents.unback(&self.to())?;
                extents.drop_aliases(&self.from())
            }
            Release => self.state.extents.release(self.ranges[1]),
        };
        self.failed = outcome.is_err();
        outcome
    }

    fn settle(mut self: Box<Self>, _: bool) -> Outcome {
        let state = self.machine.thread_state();
        ensure_eq!(state, (0, 0), "context and capture mode of the thread");
        self.consistent()?;
        if self.failed && matches!(self.operation, Reserve | Back | BackTooMuch | Alias) {
            self.nothing_happened()?;
        }
        if self.failed {
            self.act()
                .map_err(|error| Stop::from(error).at("the same again"))?;
            self.consistent()?;
        }
        let extents = &self.state.extents;
        let those = |alias| {
            let lines = extents.list().into_iter();
            lines
                .filter(|line| line.alias == alias)
                .map(|line| line.address)
                .collect::<Vec<_>>()
        };
        extents.drop_aliases(&those(true))?;
        extents.unback(&those(false))?;
        self.consistent()?;
        for range in &self.ranges {
            extents.release(*range)?;
        }
        ensure_eq!(extents.list().len(), 0, "places left");
        let counters = self.sim.counters();
        ensure_eq!(
            counters.memory(),
            self.base.memory(),
            "memory, addresses and events alive"
        );
        ensure_eq!(counters.faults, 0, "faults");
        Ok(())
    }
}
