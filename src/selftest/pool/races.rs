//! Streams that come and go on several threads, whose blocks other threads free at the same time: before a
//! stream is forgotten, while it is, and when the next stream has taken its place.

use super::heaps::open;
use super::run::demand_of;
use crate::core::sync::lock;
use crate::gpu::Stream;
use crate::process::Process;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::Machine;
use crate::selftest::stress::random::Random;
use crate::selftest::stress::shadow::Shadow;
use crate::selftest::stress::{seconds, seed};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const THREADS: u64 = 4;
/// Blocks that wait for anybody to free them, at most.
const CROWD: usize = 300;

struct Crowd {
    machine: Machine,
    process: Process,
    shadow: Mutex<Shadow>,
    shared: Mutex<Vec<u64>>,
    allocated: AtomicU64,
    bytes: AtomicU64,
    streams: AtomicU64,
}

/// Runs for a while.
pub(super) fn run() -> Outcome {
    let (seed, seconds) = (seed()?, seconds(2)?);
    println!("pool: streams that end, {THREADS} threads, {seconds} s; HBMALLOC_TEST_SEED={seed}");
    let (machine, process) = open()?;
    let crowd = Crowd {
        machine,
        process,
        shadow: Mutex::default(),
        shared: Mutex::default(),
        allocated: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        streams: AtomicU64::new(0),
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let crowd = &crowd;
        let threads: Vec<_> = (0..THREADS)
            .map(|number| scope.spawn(move || crowd.work(Random::new(seed ^ number << 32), end)))
            .collect();
        let panicked = |_| Err(Stop::from("a thread panicked"));
        (threads.into_iter())
            .map(|thread| thread.join().unwrap_or_else(panicked))
            .collect()
    });
    outcomes.into_iter().collect::<Outcome>()?;
    crowd.close()
}

impl Crowd {
    fn work(&self, mut random: Random, end: Instant) -> Outcome {
        self.machine.set_context(Some(&self.machine.device))?;
        while Instant::now() < end {
            self.one_stream(&mut random)?;
        }
        Ok(())
    }

    /// A stream from its making to its end, which blocks of it may outlive.
    fn one_stream(&self, random: &mut Random) -> Outcome {
        let owned = self.machine.stream()?;
        let stream = match random.number() % 8 {
            // The thread's own, which does not end here.
            0 => Stream::from_raw(2 as _),
            _ => owned.stream(),
        };
        let mut own = Vec::new();
        for _ in 0..random.number() % 24 {
            own.push(self.allocate(stream, random)?);
            if random.number() % 3 == 0 {
                let at = random.number() as usize % own.len();
                self.free(own.swap_remove(at))?;
            }
            self.free_shared(random)?;
        }
        let mut shared = lock(&self.shared);
        while let Some(block) = own.pop() {
            match shared.len() < CROWD && random.number() % 2 == 0 {
                true => shared.push(block),
                false => {
                    drop(shared);
                    self.free(block)?;
                    shared = lock(&self.shared);
                }
            }
        }
        drop(shared);
        self.process.forget_stream(0, owned.stream())?;
        self.streams.fetch_add(1, Relaxed);
        self.free_shared(random)
    }

    fn allocate(&self, stream: Stream, random: &mut Random) -> Result<u64, Stop> {
        let sizes = [512, 700, 4096, 4096, 40 << 10, 300 << 10, 1 << 20, 3 << 20];
        let bytes = sizes[random.number() as usize % sizes.len()];
        let mut demand = demand_of(Kind::Pool, bytes);
        demand.stream = stream;
        let block = self.process.allocate(demand)?;
        lock(&self.shadow).gave(block, bytes)?;
        self.allocated.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        Ok(block)
    }

    fn free(&self, block: u64) -> Outcome {
        lock(&self.shadow).takes(block)?;
        Ok(self.process.deallocate(block, None, None)?)
    }

    /// Frees what other threads have left, of streams that may be gone.
    fn free_shared(&self, random: &mut Random) -> Outcome {
        for _ in 0..random.number() % 3 {
            let block = {
                let mut shared = lock(&self.shared);
                let at = random.number() as usize % shared.len().max(1);
                (at < shared.len()).then(|| shared.swap_remove(at))
            };
            block.map_or(Ok(()), |block| self.free(block))?;
        }
        Ok(())
    }

    fn close(&self) -> Outcome {
        for block in std::mem::take(&mut *lock(&self.shared)) {
            self.free(block)?;
        }
        ensure!(
            lock(&self.shadow).is_empty(),
            "blocks are left in the model"
        );
        let (process, seen) = (&self.process, self.process.stats(0, Some(Kind::Pool))?);
        let (blocks, bytes) = (self.allocated.load(Relaxed), self.bytes.load(Relaxed));
        ensure_eq!(
            (
                seen.allocations,
                seen.deallocations,
                seen.total_requested,
                seen.allocated
            ),
            (blocks, blocks, bytes, 0),
            "blocks had, given back, bytes, and bytes live"
        );
        ensure!(
            seen.peak_blocks <= (CROWD + 24 * THREADS as usize) as u64,
            "{} blocks at a time were counted, more than there were",
            seen.peak_blocks
        );
        process.audit_pool(0)?;
        let books = process.pool_footprint(0)?;
        println!(
            "pool: {} streams, {blocks} blocks, {books:?}",
            self.streams.load(Relaxed)
        );
        // One for each block that outlives its stream, and what was not looked at yet.
        ensure!(books.heaps < CROWD + 50 * THREADS as usize, "{books:?}");
        self.machine.synchronize()?;
        process.trim(0, 0)?;
        let held = process.stats(0, Some(Kind::Pool))?.reserved;
        ensure_eq!(held, 0, "held after a trim");
        Ok(())
    }
}
