//! Threads that allocate, use, lend to other streams and free each other's blocks at random, against
//! a model that knows what is live. The simulated driver watches for memory taken away under work.
//!
//! `HBMALLOC_STRESS_SECONDS` says how long, `HBMALLOC_TEST_SEED` which run: a seed repeats each
//! thread's decisions, though not how the threads meet.

mod pool;
pub mod random;
pub mod shadow;
mod worker;

use super::check::ensure_eq;
use super::machine::Machine;
use super::{Case, Outcome, Stop, Suite};
use crate::core::sync::lock;
use crate::gpu::stream::OwnedStream;
use crate::process::Process;
use crate::source::Kind;
use random::Random;
use shadow::Shadow;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use worker::Lent;

/// The suite.
pub const SUITE: Suite = Suite {
    name: "stress",
    about: "threads at random against a model",
    cases: &[&[
        Case {
            name: "pool",
            run: |_| pool::pool(),
        },
        Case {
            name: "threads",
            run: |_| threads(),
        },
    ]],
};

const THREADS: u64 = 8;
const STREAMS: usize = 6;
const SECONDS: u64 = 3;

/// What the threads share.
struct Arena {
    process: Process,
    machine: Machine,
    kinds: Vec<Kind>,
    /// Held for writing while a stream is replaced, so that nobody names it meanwhile: that much is
    /// the callers' own duty.
    streams: RwLock<Vec<OwnedStream>>,
    live: Mutex<Vec<Lent>>,
    shadow: Mutex<Shadow>,
    over: AtomicBool,
}

fn variable<T: FromStr>(name: &str) -> Result<Option<T>, Stop> {
    match std::env::var(name) {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(format!("{name}='{text}' is no number").into()),
        },
    }
}

/// The seed that `HBMALLOC_TEST_SEED` names, or one of the moment.
pub fn seed() -> Result<u64, Stop> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let of_the_moment = now.map_or(1, |now| now.as_nanos() as u64);
    Ok(variable("HBMALLOC_TEST_SEED")?.unwrap_or(of_the_moment))
}

/// The seconds that `HBMALLOC_STRESS_SECONDS` names, or `usual`.
pub fn seconds(usual: u64) -> Result<u64, Stop> {
    Ok(variable("HBMALLOC_STRESS_SECONDS")?.unwrap_or(usual))
}

fn threads() -> Outcome {
    let seconds = seconds(SECONDS)?;
    let seed = seed()?;
    println!("stress: {THREADS} threads, {seconds} s; HBMALLOC_TEST_SEED={seed}");
    let arena = Arena::open()?;
    let base = arena.machine.sim.map(|sim| sim.counters());
    let end = Instant::now() + Duration::from_secs(seconds);
    let steps = std::thread::scope(|scope| {
        let arena = &arena;
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let random = Random::new(seed.wrapping_add(thread << 32));
                scope.spawn(move || {
                    let outcome = arena.work(random, end);
                    if outcome.is_err() {
                        arena.over.store(true, Ordering::Relaxed);
                    }
                    outcome
                })
            })
            .collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .map(|outcome| outcome.map_err(|_| Stop::from("a thread panicked"))?)
            .sum::<Result<u64, Stop>>()
    })?;
    arena.compare()?;
    let most = arena.process.stats(0, None)?;
    println!(
        "stress: {steps} steps, {} allocations, at most {} MiB held",
        most.allocations,
        most.peak_reserved >> 20
    );
    arena.empty()?;
    if let (Some(sim), Some(base)) = (arena.machine.sim, base) {
        ensure_eq!(
            sim.counters().memory(),
            base.memory(),
            "alive in the driver"
        );
    }
    Ok(())
}

impl Arena {
    fn open() -> Result<Arena, Stop> {
        let spec = "devices=1,memory=16GiB,poison=1,delay_us=50";
        let machine = Machine::open(spec)?;
        let process = machine.process(&[("sim", spec)])?;
        let device = &machine.device;
        let mut kinds = vec![Kind::Device];
        // A card's host has other uses for its memory.
        if machine.sim.is_some() {
            kinds.push(Kind::Pinned);
        }
        for (kind, probe) in [
            (Kind::Managed, device.managed_memory()?),
            (Kind::Async, device.memory_pools()?),
            (Kind::Vmm, device.vmm()?),
            (Kind::Pool, device.vmm()?),
        ] {
            if probe.is_ok() {
                kinds.push(kind);
            }
        }
        let streams: Result<Vec<_>, Stop> = (0..STREAMS).map(|_| machine.stream()).collect();
        Ok(Arena {
            kinds,
            streams: RwLock::new(streams?),
            process,
            machine,
            live: Mutex::default(),
            shadow: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    /// Statistics, model and simulator must tell the same, now that all threads rest.
    fn compare(&self) -> Outcome {
        self.machine.synchronize()?;
        let live = lock(&self.live);
        ensure_eq!(lock(&self.shadow).len(), live.len(), "blocks in the model");
        ensure_eq!(self.process.live_blocks(), live.len(), "blocks recorded");
        for kind in Kind::ALL {
            let stats = self.process.stats(0, Some(kind))?;
            let of_kind = || live.iter().filter(|lent| lent.kind == kind);
            let requested: u64 = of_kind().map(|lent| lent.requested).sum();
            let allocated: u64 = of_kind().map(|lent| lent.bytes).sum();
            ensure_eq!(stats.requested, requested, "requested of {kind:?}");
            ensure_eq!(stats.allocated, allocated, "allocated of {kind:?}");
            if let Some(sim) = self.machine.sim {
                let counters = sim.counters();
                let held = match kind {
                    Kind::Device => counters.device_bytes,
                    Kind::Managed => counters.managed_bytes,
                    Kind::Async => counters.async_reserved_bytes,
                    Kind::Pinned => counters.pinned_bytes,
                    Kind::Vmm => counters.chunk_bytes - self.reserved(Kind::Pool)?,
                    Kind::Pool => counters.chunk_bytes - self.reserved(Kind::Vmm)?,
                };
                ensure_eq!(stats.reserved, held, "reserved of {kind:?}");
            }
        }
        self.process.device(0)?.state().extents.audit()?;
        Ok(())
    }

    fn reserved(&self, kind: Kind) -> Result<u64, Stop> {
        Ok(self.process.stats(0, Some(kind))?.reserved)
    }

    /// Takes everything back and looks for what is left.
    fn empty(&self) -> Outcome {
        let rest = std::mem::take(&mut *lock(&self.live));
        for lent in rest {
            self.take_back(&lent, true)?;
        }
        self.machine.synchronize()?;
        self.process.trim_all()?;
        let stats = self.process.stats(0, None)?;
        let left = (
            stats.requested,
            stats.allocated,
            stats.reserved,
            stats.pending_frees,
        );
        ensure_eq!(
            left,
            (0, 0, 0, 0),
            "requested, allocated, reserved, pending"
        );
        ensure_eq!(
            stats.allocations,
            stats.deallocations,
            "allocations and frees"
        );
        ensure_eq!(lock(&self.shadow).is_empty(), true, "the model is empty");
        ensure_eq!(stats.warnings, 0, "warnings");
        if let Some(sim) = self.machine.sim {
            ensure_eq!(sim.faults(), Vec::<String>::new(), "faults");
        }
        Ok(())
    }
}
