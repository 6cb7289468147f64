//! Operations at random against the model, with and without failing driver calls.
//! `HBMALLOC_TEST_SEED` repeats a run.

use super::{Bench, case};
use crate::error::{Error, Result, Status};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::stress::random::Random;
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = &[
    case("at random", |_| at_random(false)),
    case("at random, with faults", |_| at_random(true)),
];

const STEPS: usize = 1500;
const RANGES: usize = 4;
const GRANULES: usize = 48;
/// Steps between looks at all contents.
const LOOKS: usize = 25;

const FALLIBLE: [&str; 9] = [
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemCreate",
    "cuMemMap",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuMemRelease",
    "cuCtxGetCurrent",
    "cuCtxPushCurrent_v2",
];
const CODES: [i32; 3] = [1, 2, 999];

struct Walk {
    bench: Bench,
    random: Random,
    faults: bool,
}

fn at_random(faults: bool) -> Outcome {
    let seed = crate::selftest::stress::seed()?;
    let bench = Bench::open("devices=2,memory=160MiB,poison=1")?;
    if faults && bench.machine.sim.is_none() {
        return Err(Stop::needs_simulator());
    }
    bench.machine.driver.device(0)?;
    let random = Random::new(seed);
    let mut walk = Walk {
        bench,
        random,
        faults,
    };
    walk.run()
        .and_then(|()| walk.bench.finish())
        .map_err(|stop| stop.at(format_args!("HBMALLOC_TEST_SEED={seed}")))
}

impl Walk {
    fn run(&mut self) -> Outcome {
        for step in 0..STEPS {
            let outcome = match self.random.below(20) {
                0 | 1 => self.reserve(),
                2..=7 => self.back(),
                8..=12 => self.alias(),
                13..=15 => self.take_down(true),
                16..=18 => self.take_down(false),
                _ => self.release(),
            };
            outcome
                .and_then(|()| self.bench.check())
                .map_err(|stop| stop.at(format_args!("step {step}")))?;
            if step % LOOKS == 0 {
                self.bench.check_contents()?;
            }
        }
        Ok(())
    }

    /// Lets one of the coming driver calls fail, sometimes.
    fn arm(&mut self) {
        if let (true, Some(sim)) = (self.faults, self.bench.machine.sim) {
            if self.random.once_in(2) {
                let call = FALLIBLE[self.random.below(FALLIBLE.len())];
                let nth = 1 + self.random.below(4) as u64;
                sim.fail_once(call, nth, CODES[self.random.below(CODES.len())]);
                if self.random.once_in(3) {
                    // The way back fails as well, and the first attempt to mend that.
                    sim.fail_once("cuMemUnmap", 1, 999);
                    sim.fail_once("cuMemUnmap", 2, 999);
                }
            }
        }
    }

    fn disarm(&self) {
        self.bench.extents().sweep();
        if let Some(sim) = self.bench.machine.sim {
            sim.fail_clear();
        }
        // As any later operation would.
        self.bench.extents().sweep();
    }

    /// Whether an operation that is all or nothing was done; a failure must have a reason.
    fn settle(&self, outcome: Result<()>) -> std::result::Result<bool, Stop> {
        self.disarm();
        match outcome {
            Ok(()) => Ok(true),
            Err(_) if self.faults => Ok(false),
            Err(error) if error.status() == Status::OutOfMemory => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn reserve(&mut self) -> Outcome {
        if self.bench.model.ranges.len() >= RANGES {
            return Ok(());
        }
        let spec = self.bench.spec(1 + self.random.below(GRANULES) as u64);
        self.arm();
        let outcome = self.bench.extents().reserve(&spec);
        if let Ok(range) = &outcome {
            self.bench.model.ranges.insert(*range, spec.bytes);
        }
        self.settle(outcome.map(drop)).map(drop)
    }

    /// An address in some range, at a granule.
    fn any_address(&mut self) -> Option<u64> {
        let count = self.bench.model.ranges.len();
        if count == 0 {
            return None;
        }
        let (range, bytes) = self
            .bench
            .model
            .ranges
            .iter()
            .nth(self.random.below(count))?;
        let granule = self.random.below((bytes / self.bench.grain.get()) as usize);
        Some(range + self.bench.granules(granule as u64))
    }

    /// Some of a list, in an order of their own.
    fn some_of(&mut self, mut all: Vec<u64>, most: usize) -> Vec<u64> {
        let count = self.random.below(most.min(all.len()) + 1);
        let pick = |_| all.swap_remove(self.random.below(all.len()));
        (0..count).map(pick).collect()
    }

    fn back(&mut self) -> Outcome {
        let Some(address) = self.any_address() else {
            return Ok(());
        };
        let count = 1 + self.random.below(5);
        let sizes: Vec<u64> = (0..count)
            .map(|_| self.bench.granules(1 + self.random.below(4) as u64))
            .collect();
        let possible = self.bench.model.is_hole(address, sizes.iter().sum());
        self.arm();
        let outcome = self.bench.extents().back(address, &sizes);
        if !self.expected(possible, outcome)? {
            return Ok(());
        }
        for place in self.bench.model.back(address, &sizes) {
            self.bench.mark(place)?;
        }
        Ok(())
    }

    fn alias(&mut self) -> Outcome {
        let Some(to) = self.any_address() else {
            return Ok(());
        };
        let from = self.some_of(self.bench.model.those(false), 5);
        let bytes = from
            .iter()
            .map(|place| self.bench.model.places[place].bytes)
            .sum();
        let possible = self.bench.model.is_hole(to, bytes);
        self.arm();
        let outcome = self.bench.extents().alias(&from, to);
        if self.expected(possible, outcome)? {
            self.bench.model.alias(&from, to);
        }
        Ok(())
    }

    /// What the model says cannot be must be refused for that.
    fn expected(&self, possible: bool, outcome: Result<()>) -> std::result::Result<bool, Stop> {
        if possible {
            return self.settle(outcome);
        }
        self.disarm();
        let refusal = |error: &Error| error.status() == Status::InvalidArgument || self.faults;
        match outcome {
            Err(error) if refusal(&error) => Ok(false),
            Err(error) => Err(error.into()),
            Ok(()) => Err("what is backed was backed again".into()),
        }
    }

    /// Tried again until it is done.
    fn take_down(&mut self, alias: bool) -> Outcome {
        let places = self.some_of(self.bench.model.those(alias), 6);
        let before = self.bench.extents().physical().now;
        self.arm();
        let extents = self.bench.extents();
        let act = || match alias {
            true => extents.drop_aliases(&places),
            false => extents.unback(&places).map(drop),
        };
        let outcome = act();
        let failed = outcome.is_err();
        self.disarm();
        if failed {
            ensure!(self.faults, "{outcome:?}");
            extents.audit()?;
            act()?;
        }
        let freed = before - self.bench.extents().physical().now;
        ensure_eq!(freed, self.bench.model.remove(&places), "bytes given back");
        Ok(())
    }

    fn release(&mut self) -> Outcome {
        let ranges: Vec<u64> = self.bench.model.ranges.keys().copied().collect();
        for range in self.some_of(ranges, 2) {
            let bare = self.bench.model.is_bare(range);
            self.arm();
            let outcome = self.bench.extents().release(range);
            if self.expected(bare, outcome)? {
                self.bench.model.ranges.remove(&range);
            }
        }
        Ok(())
    }
}
