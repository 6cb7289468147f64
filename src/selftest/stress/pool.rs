//! The caching pool under many threads: blocks that others free, streams that come and go, tags, limits
//! that change, graphs, trims. In rounds: threads end with each, and then the figures, the model and
//! the driver must tell the same.

use super::random::Random;
use super::shadow::Shadow;
use super::{seconds, seed};
use crate::config::value::Size;
use crate::core::size::Align;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Result, Status};
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::process::{Demand, Process, tags};
use crate::registry::GraphPool;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::{CAPTURE_RELAXED, Machine};
use crate::selftest::{Outcome, Stop};
use crate::source::{Kind, LastUse};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

const THREADS: usize = 16;
const STREAMS: usize = 8;
/// More live blocks of a thread than this are not made.
const CROWD: usize = 200;
/// Seconds of a round, of all at first and when nothing else is said.
const ROUND: u64 = 10;
const SECONDS: u64 = 3;
/// Bytes of a mark at either end of a block.
const MARK: u64 = 32;
const MIB: u64 = 1 << 20;
/// What a card is limited to, so that memory runs out there too.
const MOST: u64 = 1 << 30;

#[derive(Clone, Copy)]
struct Lent {
    address: u64,
    requested: u64,
    stream: Stream,
    tag: TagId,
    mark: Option<u8>,
}

impl Lent {
    fn bytes(&self) -> u64 {
        self.requested.next_multiple_of(512)
    }

    fn ends(&self) -> [(u64, u64); 2] {
        let mark = MARK.min(self.requested);
        [
            (self.address, mark),
            (self.address + self.requested - mark, mark),
        ]
    }
}

#[derive(Default)]
struct Counts {
    steps: AtomicU64,
    refused: AtomicU64,
    remote: AtomicU64,
    captures: AtomicU64,
    trims: AtomicU64,
    looked_at: AtomicU64,
}

struct Crowd {
    process: Process,
    /// Held for writing while a stream is replaced, so that nobody names it meanwhile.
    streams: RwLock<Vec<OwnedStream>>,
    tags: Vec<TagId>,
    /// The blocks that each thread has made, for any to free.
    live: Vec<Mutex<Vec<Lent>>>,
    shadow: Mutex<Shadow>,
    counts: Counts,
    over: AtomicBool,
    machine: Machine,
}

/// Runs for a while.
pub fn pool() -> Outcome {
    let (seed, seconds) = (seed()?, seconds(SECONDS)?);
    println!("stress: {THREADS} threads on the pool, {seconds} s; HBMALLOC_TEST_SEED={seed}");
    let spec = format!("devices=1,memory={MOST},poison=1,delay_us=20");
    let machine = Machine::open(&spec)?;
    let base = machine.sim.map(|sim| sim.counters());
    let crowd = Crowd::on(machine, &spec)?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut round = 0;
    while round == 0 || Instant::now() < end {
        let stop = end.min(Instant::now() + Duration::from_secs(ROUND));
        crowd.round(seed.wrapping_add(round << 40), stop)?;
        crowd.compare()?;
        round += 1;
    }
    let counts = &crowd.counts;
    let stats = crowd.process.stats(0, Some(Kind::Pool))?;
    println!(
        "stress: {} steps in {round} rounds, {} allocations, {} refused, {} freed by other threads, {} captures, {} trims, {} blocks looked at, at most {} MiB held",
        counts.steps.load(Relaxed),
        stats.allocations,
        counts.refused.load(Relaxed),
        counts.remote.load(Relaxed),
        counts.captures.load(Relaxed),
        counts.trims.load(Relaxed),
        counts.looked_at.load(Relaxed),
        stats.peak_reserved >> 20,
    );
    crowd.empty()?;
    if let (Some(sim), Some(base)) = (crowd.machine.sim, base) {
        let streams = crowd.streams.write().map(|mut streams| streams.clear());
        ensure!(streams.is_ok(), "a thread panicked");
        ensure_eq!(
            sim.counters().memory(),
            base.memory(),
            "alive in the driver"
        );
    }
    Ok(())
}

impl Crowd {
    fn on(machine: Machine, spec: &str) -> std::result::Result<Crowd, Stop> {
        let process = machine.process(&[("sim", spec)])?;
        process.set_captures_told(true);
        let streams: std::result::Result<Vec<_>, Stop> =
            (0..STREAMS).map(|_| machine.stream()).collect();
        let mut known = vec![TagId::NONE];
        for name in ["stress one", "stress two", "stress three"] {
            known.push(tags::table().intern(name)?);
        }
        process.set_limit(0, Size::Bytes(MOST))?;
        Ok(Crowd {
            process,
            streams: RwLock::new(streams?),
            tags: known,
            live: (0..THREADS).map(|_| Mutex::default()).collect(),
            shadow: Mutex::default(),
            counts: Counts::default(),
            over: AtomicBool::new(false),
            machine,
        })
    }

    fn round(&self, seed: u64, end: Instant) -> Outcome {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let random = Random::new(seed.wrapping_add((thread as u64) << 32));
                    scope.spawn(move || {
                        let outcome = self.work(thread, random, end);
                        if outcome.is_err() {
                            self.over.store(true, Relaxed);
                        }
                        outcome
                    })
                })
                .collect();
            let mut outcome = Ok(());
            for worker in workers {
                let joined = worker.join();
                let joined = joined.map_err(|_| Stop::from("a thread panicked"));
                outcome = outcome.and(joined.and_then(|outcome| outcome));
            }
            outcome
        })
    }

    fn work(&self, thread: usize, mut random: Random, end: Instant) -> Outcome {
        let random = &mut random;
        let mut steps = 0;
        while Instant::now() < end && !self.over.load(Relaxed) {
            match random.below(2000) {
                0 => self.replace_stream(random)?,
                1..=2 => self.trim(random)?,
                3 => self.set_limit(random)?,
                4..=9 => self.capture(thread, random)?,
                10 => self.lean(random)?,
                11..=200 => self.use_elsewhere(thread, random)?,
                201..=1100 if lock(&self.live[thread]).len() < CROWD => {
                    self.lend(thread, random)?;
                }
                1101..=1140 => self.burst(thread, random)?,
                _ => self.free_one(thread, random)?,
            }
            steps += 1;
        }
        self.counts.steps.fetch_add(steps, Relaxed);
        Ok(())
    }

    fn pick(&self, streams: &[OwnedStream], random: &mut Random) -> Stream {
        match random.below(STREAMS + 2) {
            index if index < STREAMS => streams[index].stream(),
            STREAMS => Stream::LEGACY,
            _ => Stream::from_raw(2 as _),
        }
    }

    /// As the exports ask: for a block at hand first.
    fn ask(&self, bytes: u64, align: Align, stream: Stream, tag: TagId) -> Result<u64> {
        let at_hand = (align <= crate::source::ALIGN)
            .then(|| self.process.reuse_pooled(0, bytes, stream, None, tag))
            .flatten();
        match at_hand {
            Some(address) => Ok(address),
            None => self.process.allocate(Demand {
                kind: Kind::Pool,
                device: 0,
                bytes,
                align,
                stream,
                owner: Owner::Block,
                last_use: LastUse::Told,
                allocator: None,
                location: None,
                tag,
            }),
        }
    }

    /// A new block, or none where memory has run out.
    fn take(&self, stream: Stream, random: &mut Random) -> std::result::Result<Option<Lent>, Stop> {
        let requested = match random.below(8) {
            0 => random.size(25),
            1..=2 => random.size(21),
            _ => [512, 4096, 1 << 15, 100_000][random.below(4)],
        };
        let align = match random.below(16) {
            0 => Align::new(1 << random.below(23)).unwrap_or(crate::source::ALIGN),
            _ => crate::source::ALIGN,
        };
        let tag = self.tags[random.below(self.tags.len())];
        let address = match self.ask(requested, align, stream, tag) {
            Ok(address) => address,
            Err(error) if error.status() == Status::OutOfMemory => {
                self.counts.refused.fetch_add(1, Relaxed);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        ensure!(align.divides(address), "{address:#x} is not at {align:?}");
        let lent = Lent {
            address,
            requested,
            stream,
            tag,
            mark: None,
        };
        lock(&self.shadow).gave(address, lent.bytes())?;
        Ok(Some(lent))
    }

    fn fill(&self, lent: &Lent, mark: u8, stream: Stream) -> Outcome {
        for (place, bytes) in lent.ends() {
            self.machine.device.fill(place, mark, bytes, stream)?;
        }
        Ok(())
    }

    fn lend(&self, thread: usize, random: &mut Random) -> Outcome {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        let stream = self.pick(&streams, random);
        let Some(mut lent) = self.take(stream, random)? else {
            return Ok(());
        };
        if random.once_in(3) {
            let mark = random.number() as u8;
            self.fill(&lent, mark, stream)?;
            lent.mark = Some(mark);
        }
        lock(&self.live[thread]).push(lent);
        Ok(())
    }

    /// Many small blocks of one size: bins and batches fill.
    fn burst(&self, thread: usize, random: &mut Random) -> Outcome {
        let bytes = 512 << random.below(6);
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        let stream = self.pick(&streams, random);
        let tag = self.tags[random.below(self.tags.len())];
        for _ in 0..random.below(100) {
            let Ok(address) = self.ask(bytes, crate::source::ALIGN, stream, tag) else {
                return Ok(());
            };
            lock(&self.shadow).gave(address, bytes)?;
            let lent = Lent {
                address,
                requested: bytes,
                stream,
                tag,
                mark: None,
            };
            lock(&self.live[thread]).push(lent);
        }
        Ok(())
    }

    /// A block of this thread, or of another.
    fn take_any(&self, thread: usize, random: &mut Random) -> Option<Lent> {
        let from = match random.once_in(2) {
            true => thread,
            false => random.below(THREADS),
        };
        let mut live = lock(&self.live[from]);
        let count = live.len();
        let lent = (count > 0).then(|| live.swap_remove(random.below(count)))?;
        self.counts
            .remote
            .fetch_add(u64::from(from != thread), Relaxed);
        Some(lent)
    }

    fn free_one(&self, thread: usize, random: &mut Random) -> Outcome {
        match self.take_any(thread, random) {
            Some(lent) => self.take_back(&lent, random.once_in(4)),
            None => Ok(()),
        }
    }

    fn take_back(&self, lent: &Lent, verify: bool) -> Outcome {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        // What it was allocated on may be gone, or mean another stream here.
        let is_there = streams.iter().any(|owned| owned.stream() == lent.stream)
            || lent.stream == Stream::LEGACY;
        if let (Some(mark), true, true) = (lent.mark, verify, is_there) {
            for (place, bytes) in lent.ends() {
                let mut seen = [0; MARK as usize];
                let seen = &mut seen[..bytes as usize];
                let device = &self.machine.device;
                device.copy_to_host(seen, place, lent.stream)?;
                ensure!(
                    seen.iter().all(|byte| *byte == mark),
                    "{place:#x} of {:#x} holds {seen:x?}, not {mark:x}",
                    lent.address
                );
            }
            self.counts.looked_at.fetch_add(1, Relaxed);
        }
        lock(&self.shadow).takes(lent.address)?;
        Ok(self.process.deallocate(lent.address, None, None)?)
    }

    /// Gives another stream work on a block, told of before or with its free.
    fn use_elsewhere(&self, thread: usize, random: &mut Random) -> Outcome {
        let Some(lent) = self.take_any(thread, random) else {
            return Ok(());
        };
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        let stream = self.pick(&streams, random);
        if let Some(mark) = lent.mark {
            self.fill(&lent, mark, stream)?;
        }
        if random.once_in(3) {
            lock(&self.shadow).takes(lent.address)?;
            self.process.deallocate(lent.address, None, Some(stream))?;
        } else {
            self.process.record_stream(lent.address, stream)?;
            lock(&self.live[thread]).push(lent);
        }
        Ok(())
    }

    fn replace_stream(&self, random: &mut Random) -> Outcome {
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        let index = random.below(STREAMS);
        self.process.forget_stream(0, streams[index].stream())?;
        streams[index] = self.machine.stream()?;
        Ok(())
    }

    fn trim(&self, random: &mut Random) -> Outcome {
        self.process.trim(0, random.below(4) as u64 * 100 * MIB)?;
        self.counts.trims.fetch_add(1, Relaxed);
        Ok(())
    }

    fn set_limit(&self, random: &mut Random) -> Outcome {
        let bytes = [MOST, MOST, 600 * MIB, 300 * MIB][random.below(4)];
        Ok(self.process.set_limit(0, Size::Bytes(bytes))?)
    }

    fn lean(&self, random: &mut Random) -> Outcome {
        let lean = ["balanced", "tight"][random.below(2)];
        self.process.settings().set("waste", lean)?;
        Ok(())
    }

    /// A capture by this thread on a stream of its own, and the end of its graph: what it had is
    /// nobody else's until then, freed or not.
    fn capture(&self, thread: usize, random: &mut Random) -> Outcome {
        let pool = GraphPool {
            device: 0,
            id: (3, thread as u64 + 1),
        };
        let owned = self.machine.stream()?;
        let stream = owned.stream();
        self.process.graph_begin(pool)?;
        self.machine.begin_capture(stream, CAPTURE_RELAXED)?;
        let mut taken = Vec::new();
        for _ in 0..1 + random.below(6) {
            taken.extend(self.take(stream, random)?);
        }
        self.machine.end_capture(stream)?;
        self.process.graph_end(pool)?;
        for lent in &taken {
            self.process.deallocate(lent.address, None, None)?;
        }
        // A replay.
        let other = self.take(stream, random)?;
        for lent in &taken {
            self.fill(lent, 7, stream)?;
        }
        if let Some(other) = other {
            self.take_back(&other, false)?;
        }
        // Work that is on its way uses the memory of the graph still.
        for lent in &taken {
            lock(&self.shadow).takes(lent.address)?;
        }
        self.process.graph_release(pool)?;
        self.process.forget_stream(0, stream)?;
        self.counts.captures.fetch_add(1, Relaxed);
        Ok(())
    }

    fn rest(&self) -> Vec<Lent> {
        self.live
            .iter()
            .flat_map(|live| lock(live).clone())
            .collect()
    }

    /// Now that all threads have ended, the figures, the model and the driver must tell the same.
    fn compare(&self) -> Outcome {
        self.machine.synchronize()?;
        let live = self.rest();
        ensure_eq!(lock(&self.shadow).len(), live.len(), "blocks in the model");
        ensure_eq!(self.process.live_blocks(), live.len(), "blocks recorded");
        let sums = |wanted: &dyn Fn(&Lent) -> bool| {
            let chosen = || live.iter().filter(|lent| wanted(lent));
            (
                chosen().map(|lent| lent.requested).sum::<u64>(),
                chosen().map(Lent::bytes).sum::<u64>(),
            )
        };
        let stats = self.process.stats(0, Some(Kind::Pool))?;
        let told = (stats.requested, stats.allocated);
        ensure_eq!(told, sums(&|_| true), "requested and allocated");
        for tag in &self.tags {
            let stats = self.process.tag_stats(0, *tag)?;
            let told = (stats.requested, stats.allocated);
            ensure_eq!(told, sums(&|lent| lent.tag == *tag), "of {tag:?}");
        }
        for stream in self.process.streams(0)? {
            let stats = self.process.stream_stats(0, stream)?;
            let told = (stats.requested, stats.allocated);
            ensure_eq!(told, sums(&|lent| lent.stream == stream), "on {stream:?}");
        }
        if let Some(sim) = self.machine.sim {
            ensure_eq!(stats.reserved, sim.counters().chunk_bytes, "reserved");
            ensure_eq!(sim.faults(), Vec::<String>::new(), "faults");
        }
        self.process.device(0)?.state().extents.audit()?;
        Ok(self.process.audit_pool(0)?)
    }

    fn empty(&self) -> Outcome {
        for lent in self.rest() {
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
        ensure_eq!(stats.warnings, 0, "warnings");
        Ok(())
    }
}
