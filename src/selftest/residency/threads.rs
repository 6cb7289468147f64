//! Threads allocate and free in a tag that another puts to sleep and wakes all the time. They touch
//! blocks of that tag only while nobody may sleep, and blocks of another tag at any time.

use super::{Egg, KIB, MIB, Nest, request, tag};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::process::Demand;
use crate::process::residency::To;
use crate::selftest::stress::random::Random;
use crate::selftest::stress::shadow::Shadow;
use crate::selftest::stress::{seconds, seed};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

const THREADS: u64 = 4;
const SECONDS: u64 = 3;
const CROWD: usize = 40;

struct Crowd<'a> {
    nest: &'a Nest,
    kinds: &'a [Kind],
    tags: [TagId; 2],
    /// Held for writing while the tag sleeps, so that who holds it for reading may touch its memory.
    awake: RwLock<()>,
    /// Blocks that any thread may free, of the sleeping tag.
    shared: Mutex<Vec<u64>>,
    shadow: Mutex<Shadow>,
    seeds: AtomicU64,
    over: AtomicBool,
}

/// Blocks of the pool.
pub fn beside_sleep() -> Outcome {
    run(&[Kind::Pool])
}

/// Blocks of virtual memory, whose addresses come and go, and of the pool.
pub fn of_sources_beside_sleep() -> Outcome {
    run(&[Kind::Vmm, Kind::Pool])
}

fn run(kinds: &[Kind]) -> Outcome {
    let (seed, seconds) = (seed()?, seconds(SECONDS)?);
    println!("residency: {THREADS} threads, {seconds} s; HBMALLOC_TEST_SEED={seed}");
    let nest = Nest::open("devices=1,memory=4GiB,poison=1,delay_us=20", &[])?;
    let crowd = Crowd {
        nest: &nest,
        kinds,
        tags: [tag("sleeps")?, tag("stays")?],
        awake: RwLock::default(),
        shared: Mutex::default(),
        shadow: Mutex::default(),
        seeds: AtomicU64::new(1),
        over: AtomicBool::new(false),
    };
    // Something that is there all the time.
    let lasting = [
        nest.lay((kinds[0], Owner::Block), "sleeps", 9 * MIB, 1 << 40)?,
        nest.lay((kinds[0], Owner::Block), "sleeps", 700, 2 << 40)?,
    ];
    let end = Instant::now() + Duration::from_secs(seconds);
    let (outcome, cycles) = crowd.all(seed, end, &lasting);
    outcome.map_err(|stop| stop.at(format_args!("HBMALLOC_TEST_SEED={seed}")))?;
    println!(
        "residency: {cycles} cycles, {} blocks",
        crowd.seeds.load(Relaxed)
    );
    for block in lock(&crowd.shared).drain(..) {
        nest.house.free(block)?;
    }
    nest.wake(&[])?;
    nest.free_all(lasting)?;
    nest.finish()
}

impl Crowd<'_> {
    fn all(&self, seed: u64, end: Instant, lasting: &[Egg]) -> (Outcome, u64) {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|number| {
                    let random = Random::new(seed ^ number << 32);
                    scope.spawn(move || self.with_the_others(|| self.work(random, end)))
                })
                .collect();
            let mut cycles = 0;
            let random = Random::new(seed ^ 99 << 32);
            let mut outcome =
                self.with_the_others(|| self.sleep_and_wake(random, end, lasting, &mut cycles));
            self.over.store(true, Relaxed);
            for worker in workers {
                let joined = worker.join();
                let joined = joined.unwrap_or_else(|_| Err(Stop::from("a thread panicked")));
                outcome = outcome.and(joined);
            }
            (outcome, cycles)
        })
    }

    /// Ends the others too where it fails.
    fn with_the_others(&self, act: impl FnOnce() -> Outcome) -> Outcome {
        let outcome = act();
        if outcome.is_err() {
            self.over.store(true, Relaxed);
        }
        outcome
    }

    fn sleep_and_wake(
        &self,
        mut random: Random,
        end: Instant,
        lasting: &[Egg],
        cycles: &mut u64,
    ) -> Outcome {
        let process = &self.nest.house.process;
        let wanted = request(&["sleeps"]);
        while Instant::now() < end && !self.over.load(Relaxed) {
            let to = match random.once_in(8) {
                true => To::Nothing,
                false => To::Host,
            };
            let asleep = self.awake.write().unwrap_or_else(PoisonError::into_inner);
            process.sleep(&wanted, to.into())?;
            process.audit_host()?;
            if random.once_in(2) {
                std::thread::sleep(Duration::from_millis(random.number() % 5));
            }
            // Again, with what came meanwhile.
            if random.once_in(3) {
                process.sleep(&wanted, To::Host.into())?;
            }
            process.wake(&wanted)?;
            drop(asleep);
            if to == To::Nothing {
                lasting.iter().try_for_each(|egg| self.nest.write(egg))?;
            }
            self.nest.verify_all(lasting)?;
            process.device(0)?.state().extents.audit()?;
            process.audit_host()?;
            *cycles += 1;
        }
        Ok(())
    }

    fn work(&self, mut random: Random, end: Instant) -> Outcome {
        let own = self.nest.house.machine.stream()?;
        let mut stays: Vec<Egg> = Vec::new();
        while Instant::now() < end && !self.over.load(Relaxed) {
            match random.below(20) {
                0..=6 => self.lend(&mut random, own.stream())?,
                7..=12 => self.free_shared(&mut random)?,
                13..=14 => self.touch(&mut random, &own)?,
                15..=16 if stays.len() < CROWD => {
                    stays.push(self.make(&mut random, own.stream(), 1, true)?);
                }
                17 if random.once_in(8) => drop(self.nest.house.process.trim(0, 0)?),
                _ => self.drop_one(&mut random, &own, &mut stays)?,
            }
        }
        while !stays.is_empty() {
            self.drop_one(&mut random, &own, &mut stays)?;
        }
        Ok((self.nest.house.process).forget_stream(0, own.stream())?)
    }

    /// A block of tag 0, which sleeps, or 1; written to where it may be.
    fn make(
        &self,
        random: &mut Random,
        stream: Stream,
        tag: usize,
        writes: bool,
    ) -> Result<Egg, Stop> {
        let bytes = match random.below(6) {
            0 => random.size(12),
            1..=3 => KIB * (1 + random.number() % 400),
            4 => MIB + random.number() % MIB,
            _ => MIB * (1 + random.number() % 6),
        };
        let kind = self.kinds[random.below(self.kinds.len())];
        let demand = Demand {
            stream,
            ..(self.nest).demand((kind, Owner::Block), self.tags[tag], bytes)
        };
        let egg = Egg {
            address: self.nest.ask(&demand)?,
            bytes,
            seed: self.seeds.fetch_add(1, Relaxed),
        };
        lock(&self.shadow).gave(egg.address, bytes)?;
        if writes {
            let device = &self.nest.house.machine.device;
            device.copy_from_host(egg.address, &super::pattern(egg.seed, bytes), stream)?;
        }
        Ok(egg)
    }

    /// Allocates whether or not the tag sleeps; another thread may free it.
    fn lend(&self, random: &mut Random, stream: Stream) -> Outcome {
        if lock(&self.shared).len() >= 3 * CROWD {
            return Ok(());
        }
        let egg = self.make(random, stream, 0, false)?;
        lock(&self.shared).push(egg.address);
        Ok(())
    }

    fn free_shared(&self, random: &mut Random) -> Outcome {
        let block = {
            let mut shared = lock(&self.shared);
            let at = random.below(shared.len().max(1));
            (at < shared.len()).then(|| shared.swap_remove(at))
        };
        let Some(block) = block else { return Ok(()) };
        lock(&self.shadow).takes(block)?;
        self.nest.house.free(block)
    }

    /// From its making to its end while nobody sleeps: it holds what it is given.
    fn touch(&self, random: &mut Random, own: &OwnedStream) -> Outcome {
        let _awake = self.awake.read().unwrap_or_else(PoisonError::into_inner);
        let egg = self.make(random, own.stream(), 0, true)?;
        super::verify_on(&self.nest.house.machine.device, &egg, own.stream())?;
        lock(&self.shadow).takes(egg.address)?;
        self.nest.house.free(egg.address)
    }

    fn drop_one(&self, random: &mut Random, own: &OwnedStream, stays: &mut Vec<Egg>) -> Outcome {
        if stays.is_empty() {
            return Ok(());
        }
        let egg = stays.swap_remove(random.below(stays.len()));
        super::verify_on(&self.nest.house.machine.device, &egg, own.stream())?;
        lock(&self.shadow).takes(egg.address)?;
        self.nest.house.free(egg.address)
    }
}
