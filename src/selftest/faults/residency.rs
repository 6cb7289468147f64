//! Faults in sleep and wake: whichever call of the driver fails, nothing of what memory held is lost, it
//! sleeps or is awake as was said, and the next call works.

use super::{OUT_OF_MEMORY, Scenario, Stage, exhaust_with};
use crate::core::tags::TagId;
use crate::error;
use crate::extent::table::Owner;
use crate::gpu::stream::OwnedStream;
use crate::process::residency::{How, Request, To};
use crate::process::{Demand, Process, tags};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::Machine;
use crate::selftest::simulator::{Counters, Simulator};
use crate::selftest::{Case, Context, Outcome, Stop};
use crate::source::{ALIGN, Kind, LastUse};

const MIB: u64 = 1 << 20;
/// What is read back at once.
const PART: u64 = 256 << 10;
const SPEC: &str = "devices=2,memory=1GiB,poison=1";
/// Small chunks, where sizes are free: contents are copied thousands of times.
const SMALL: &str = "devices=2,memory=1GiB,poison=1,granularity=64KiB";
/// Half of the smallest chunk there.
const HALF: u64 = 32 << 10;
const TAG: &str = "faults";
const UNKNOWN: i32 = 999;
/// A bad value, and not supported: large or locked pages may be refused with either.
const REFUSALS: [i32; 2] = [1, 801];

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Sleep,
    /// What was kept on the host has not been written to.
    SleepClean,
    Discard,
    /// What sleeps already is given up.
    DiscardAsleep,
    Wake,
    WakeDiscarded,
    /// Room on the host is had before.
    Prepare,
    TrimHost,
    /// Memory is freed that sleeps, then given back.
    FreeAsleep,
}

use Operation::*;

const OPERATIONS: [Operation; 9] = [
    Sleep,
    SleepClean,
    Discard,
    DiscardAsleep,
    Wake,
    WakeDiscarded,
    Prepare,
    TrimHost,
    FreeAsleep,
];

/// What has memory: kind, owner and bytes.
type Holders = &'static [(Kind, Owner, u64)];

const BLOCKS: Holders = &[
    (Kind::Vmm, Owner::Block, 4 * HALF),
    (Kind::Vmm, Owner::Segment, 2 * HALF),
];
const POOLED: Holders = &[
    (Kind::Pool, Owner::Block, 700),
    (Kind::Pool, Owner::Block, 3 * MIB),
    (Kind::Pool, Owner::Segment, 2 * MIB),
];
/// More than is copied before the first chunks go.
const LONG: Holders = &[
    (Kind::Vmm, Owner::Block, 32 * MIB),
    (Kind::Vmm, Owner::Block, 2 * MIB),
];

/// A case each.
pub const CASES: &[Case] = &[
    case("residency, vmm", |context| {
        all_of(context, BLOCKS, &OPERATIONS, &[OUT_OF_MEMORY, UNKNOWN])?;
        all_of(context, BLOCKS, &[Prepare], &REFUSALS)
    }),
    case("residency, pool", |context| {
        all_of(context, POOLED, &OPERATIONS, &[OUT_OF_MEMORY, UNKNOWN])
    }),
    case("residency, in groups", |context| {
        all_of(context, LONG, &[Sleep, Wake], &[UNKNOWN])
    }),
    case("residency, the way back fails too", |_| twice()),
];

const fn case(name: &'static str, run: fn(&Context) -> Outcome) -> Case {
    Case { name, run }
}

fn all_of(context: &Context, holders: Holders, operations: &[Operation], codes: &[i32]) -> Outcome {
    let mut wrong = Vec::new();
    for operation in operations {
        let scenario = OnTag {
            holders,
            operation: *operation,
        };
        match exhaust_with(&scenario, codes).map_err(|stop| stop.at(format_args!("{operation:?}")))
        {
            Ok(tried) => context.observe(&format!("{operation:?}: {tried} faults")),
            Err(Stop::Failed(text)) => wrong.push(text),
            Err(skipped) => return Err(skipped),
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("\n  ").into()),
    }
}

struct OnTag {
    holders: Holders,
    operation: Operation,
}

impl OnTag {
    fn open(&self) -> Result<Scene, Stop> {
        let is_small = self.holders.iter().all(|(_, _, bytes)| *bytes <= 4 * HALF);
        let spec = if is_small { SMALL } else { SPEC };
        let (machine, sim) = Machine::simulated(spec)?;
        machine.set_context(None)?;
        let stream = machine.stream()?;
        let process = machine.process(&[("sim", spec)])?;
        process.set_captures_told(true);
        let mut scene = Scene {
            base: sim.counters(),
            live: Vec::new(),
            operation: self.operation,
            failure: None,
            is_lost: false,
            tag: tags::table().intern(TAG)?,
            stream,
            process,
            sim,
            machine,
        };
        for (seed, holder) in (1..).zip(self.holders) {
            scene.lay(*holder, seed)?;
        }
        scene.set_up()?;
        Ok(scene)
    }
}

impl Scenario for OnTag {
    fn prepare(&self) -> Result<Box<dyn Stage>, Stop> {
        Ok(Box::new(self.open()?))
    }
}

struct Scene {
    process: Process,
    operation: Operation,
    tag: TagId,
    /// Address, bytes, and what is in it.
    live: Vec<(u64, u64, u8)>,
    /// What the operation said.
    failure: Option<String>,
    /// Whether contents were to be given up.
    is_lost: bool,
    stream: OwnedStream,
    base: Counters,
    sim: Simulator,
    machine: Machine,
}

impl Scene {
    fn lay(&mut self, (kind, owner, bytes): (Kind, Owner, u64), seed: u8) -> Outcome {
        let address = self.process.allocate(Demand {
            kind,
            device: 0,
            bytes,
            align: ALIGN,
            stream: self.stream.stream(),
            owner,
            last_use: match owner {
                Owner::Segment => LastUse::Anywhere,
                _ => LastUse::Streams,
            },
            allocator: None,
            location: None,
            tag: self.tag,
        })?;
        let device = &self.machine.device;
        device.fill(address, seed, bytes, self.stream.stream())?;
        self.live.push((address, bytes, seed));
        self.machine.synchronize()
    }

    fn request(&self) -> Request {
        Request {
            tags: Some(vec![TAG.to_owned()]),
            device: Some(0),
            dead: Vec::new(),
        }
    }

    fn set_up(&mut self) -> Outcome {
        let request = self.request();
        match self.operation {
            Sleep | Discard | Prepare => {}
            SleepClean => {
                self.process.settings().set("keep_host", "100MiB")?;
                self.process.sleep(&request, To::Host.into())?;
                self.process.wake(&request)?;
            }
            DiscardAsleep | Wake | FreeAsleep => {
                self.process.sleep(&request, To::Host.into())?;
            }
            WakeDiscarded => {
                self.is_lost = true;
                self.process.sleep(&request, To::Nothing.into())?;
            }
            TrimHost => {
                // Two parts.
                self.process.prepare_host(2 * MIB)?;
                self.process.prepare_host(4 * MIB)?;
            }
        }
        Ok(())
    }

    fn do_it(&mut self) -> error::Result<()> {
        let request = self.request();
        match self.operation {
            Sleep => self.process.sleep(&request, To::Host.into()).map(|_| ()),
            SleepClean => self
                .process
                .sleep(
                    &request,
                    How {
                        is_clean: true,
                        ..To::Host.into()
                    },
                )
                .map(|_| ()),
            Discard | DiscardAsleep => {
                self.is_lost = true;
                (self.process.sleep(&request, To::Nothing.into())).map(|_| ())
            }
            Wake | WakeDiscarded => self.process.wake(&request).map(|_| ()),
            Prepare => self.process.prepare_host(3 * MIB),
            TrimHost => self.process.trim_host(0).map(|_| ()),
            FreeAsleep => {
                let last = self.live.pop().expect("a live block");
                self.process.deallocate(last.0, None, None)?;
                self.process.trim_all().map(|_| ())
            }
        }
    }

    fn audit(&self) -> Outcome {
        self.process.audit_host()?;
        self.process.audit_pool(0)?;
        self.process.device(0)?.state().extents.audit()?;
        Ok(())
    }

    /// What failed has changed nothing, unless its text says what.
    fn is_as_was_said(&self) -> Outcome {
        let Some(text) = &self.failure else {
            return Ok(());
        };
        let there = self.process.whereabouts(Some(0), Some(TAG))?;
        let asleep = there.host + there.discarded;
        match self.operation {
            Sleep | SleepClean | Discard if !text.contains("Some of it sleeps") => {
                ensure_eq!(asleep, 0, "asleep after a sleep that failed");
                self.holds()?;
            }
            Wake | WakeDiscarded if !text.contains("Not all of it sleeps") => {
                ensure_eq!(there.device, 0, "awake after a wake that failed");
            }
            _ => {}
        }
        if self.operation == Sleep && asleep == 0 {
            let used = self.process.host_use().used;
            ensure_eq!(used, 0, "bytes on the host of what is awake");
        }
        Ok(())
    }

    /// What blocks hold, where they are awake.
    fn holds(&self) -> Outcome {
        for (address, bytes, seed) in self.live.iter().filter(|_| !self.is_lost) {
            // In parts, so that the same pages of the host serve all.
            let expected = vec![*seed; PART.min(*bytes) as usize];
            let mut found = vec![0; expected.len()];
            for at in (0..*bytes).step_by(PART as usize) {
                let part = &mut found[..PART.min(bytes - at) as usize];
                let device = &self.machine.device;
                device.copy_to_host(part, address + at, self.stream.stream())?;
                let same = *part == expected[..part.len()];
                ensure!(
                    same,
                    "{bytes} bytes at {address:#x} are not {seed} any more"
                );
            }
        }
        Ok(())
    }

    /// The next calls work, and at the end nothing is left.
    fn close(mut self) -> Outcome {
        self.audit().map_err(|stop| stop.at("right after"))?;
        self.is_as_was_said()?;
        let new = self.live.len();
        self.lay((Kind::Vmm, Owner::Block, 2 * HALF), 77)
            .and_then(|()| self.lay((Kind::Pool, Owner::Block, 2 * HALF), 78))
            .map_err(|stop| stop.at("the next allocation"))?;
        let request = self.request();
        (self.process.wake(&request))
            .map_err(|error| Stop::from(error).at("the next wake"))
            .and_then(|_| self.audit())?;
        self.holds().map_err(|stop| stop.at("woken"))?;
        if self.is_lost {
            self.live
                .drain(..new)
                .collect::<Vec<_>>()
                .into_iter()
                .try_for_each(|(address, _, _)| self.process.deallocate(address, None, None))?;
            self.is_lost = false;
        }
        if self.live.iter().map(|(_, bytes, _)| bytes).sum::<u64>() < 16 * MIB {
            // Of what is long this would take most of the time.
            (self.process.sleep(&request, To::Host.into()))
                .and_then(|_| self.process.wake(&request))
                .map_err(|error| Stop::from(error).at("once more"))?;
            self.audit()?;
            self.holds().map_err(|stop| stop.at("woken once more"))?;
        }
        for (address, _, _) in std::mem::take(&mut self.live) {
            self.process.deallocate(address, None, None)?;
        }
        self.leaves_nothing()
    }

    fn leaves_nothing(&self) -> Outcome {
        self.machine.synchronize()?;
        self.process.trim_all()?;
        ensure_eq!(self.process.live_blocks(), 0, "blocks recorded");
        self.process.trim_host(0)?;
        let host = self.process.host_use();
        ensure_eq!((host.pinned, host.used), (0, 0), "pinned and used");
        let stats = self.process.stats(0, None)?;
        let left = (stats.requested, stats.reserved, stats.pending_frees);
        ensure_eq!(left, (0, 0, 0), "requested, reserved, waiting");
        let counters = self.sim.counters();
        let (now, base) = (counters, self.base);
        ensure_eq!(now.memory(), base.memory(), "alive in the driver");
        ensure_eq!(
            (now.registered, now.registered_bytes, now.streams),
            (base.registered, base.registered_bytes, base.streams),
            "registered, its bytes, and streams"
        );
        ensure_eq!(self.sim.faults(), Vec::<String>::new(), "faults");
        Ok(())
    }
}

impl Stage for Scene {
    fn simulator(&self) -> Simulator {
        self.sim
    }

    fn act(&mut self) -> error::Result<()> {
        let outcome = self.do_it();
        self.failure = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    fn warnings(&self) -> u64 {
        self.process.warnings().total()
    }

    fn probes(&self) -> bool {
        false
    }

    fn retries(&self) -> bool {
        true
    }

    fn tries_again(&self, call: &str) -> bool {
        // Streams and registrations of ours go in the end.
        [
            "cuCtxGetCurrent",
            "cuCtxPushCurrent_v2",
            "cuStreamDestroy_v2",
            "cuMemHostUnregister",
        ]
        .contains(&call)
    }

    fn settle(self: Box<Self>, _refused: bool) -> Outcome {
        ensure_eq!(
            self.machine.thread_state(),
            (0, 0),
            "context and capture mode of the thread"
        );
        self.close()
    }
}

/// A call fails, and then one that would have undone what was done: what is neither here nor there is
/// whole after the next wake all the same.
fn twice() -> Outcome {
    let mut wrong = Vec::new();
    for (operation, first) in [
        (Wake, "cuMemcpyHtoDAsync_v2"),
        (Wake, "cuMemSetAccess"),
        (Wake, "cuStreamSynchronize"),
        (Sleep, "cuMemUnmap"),
        (Sleep, "cuMemRelease"),
        (Sleep, "cuStreamSynchronize"),
    ] {
        for second in [
            "cuMemUnmap",
            "cuMemRelease",
            "cuMemCreate",
            "cuMemMap",
            "cuMemcpyHtoDAsync_v2",
        ] {
            for holders in [BLOCKS, POOLED] {
                let place = format!("{operation:?}: {first}, then {second}");
                let mut scene = OnTag { holders, operation }.open()?;
                let nth = 1 + u64::from(first == second);
                scene.sim.fail_once(first, 1, UNKNOWN);
                scene.sim.fail_once(second, nth, UNKNOWN);
                let _ = scene.act();
                scene.sim.fail_clear();
                // Nothing is to be as before after two failures, but nothing may be lost.
                scene.failure = None;
                if let Err(Stop::Failed(text)) = scene.close().map_err(|stop| stop.at(place)) {
                    wrong.push(text);
                }
            }
        }
    }
    let count = wrong.len();
    ensure!(wrong.is_empty(), "{count}:\n    {}", wrong.join("\n    "));
    Ok(())
}
