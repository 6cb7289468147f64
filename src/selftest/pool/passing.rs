//! Programs that run for ever and make a stream, a thread or a graph for each request: the last of thousands
//! costs what the first did, nothing piles up, and the statistics lose none of them.

use super::heaps::open;
use super::run::demand_of;
use crate::gpu::Gate;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::pool::Footprint;
use crate::process::Process;
use crate::registry::GraphPool;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::machine::{CAPTURE_GLOBAL, Machine};
use crate::selftest::stress::random::Random;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const STREAMS: u64 = 20_000;
const HANDLES: usize = 6_000;
const THREADS: u64 = 3_000;
const GRAPHS: u64 = 5_000;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// What there are books on may come to so much, ...
const BOOKS: Footprint = Footprint {
    heaps: 24,
    retired: 12,
    arenas: 48,
    ranges: 64,
    counters: 24,
};
/// ... and what is held.
const HELD: u64 = 200 * MIB;

/// What the caller has had, by its own account.
#[derive(Default)]
struct Account {
    blocks: AtomicU64,
    bytes: AtomicU64,
}

impl Account {
    fn allocate(&self, process: &Process, stream: Stream, bytes: u64) -> Result<u64, Stop> {
        let mut demand = demand_of(Kind::Pool, bytes);
        demand.stream = stream;
        let address = process.allocate(demand)?;
        self.blocks.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        Ok(address)
    }

    /// Everything is given back: the statistics say so, and what there was.
    fn closes(&self, process: &Process) -> Outcome {
        let stats = process.stats(0, Some(Kind::Pool))?;
        let mut of_streams = (0, 0, 0);
        for stream in process.streams(0)? {
            let of = process.stream_stats(0, stream)?;
            of_streams.0 += of.allocations;
            of_streams.1 += of.deallocations;
            of_streams.2 += of.total_requested;
        }
        let of_tag = process.tag_stats(0, crate::core::tags::TagId::NONE)?;
        let (blocks, bytes) = (self.blocks.load(Relaxed), self.bytes.load(Relaxed));
        let seen = (
            stats.allocations,
            stats.deallocations,
            stats.total_requested,
        );
        ensure_eq!(
            seen,
            (blocks, blocks, bytes),
            "blocks had, given back, and bytes"
        );
        ensure_eq!(of_streams, seen, "the same over all streams");
        let of_tag = (
            of_tag.allocations,
            of_tag.deallocations,
            of_tag.total_requested,
        );
        ensure_eq!(of_tag, seen, "the same of no tag");
        ensure_eq!((stats.requested, stats.allocated), (0, 0), "live");
        process.audit_pool(0)?;
        process.trim(0, 0)?;
        let stats = process.stats(0, Some(Kind::Pool))?;
        ensure_eq!(stats.reserved, 0, "held after a trim");
        Ok(())
    }
}

fn is_bounded(process: &Process, number: u64) -> Outcome {
    let seen = process.pool_footprint(0)?;
    let held = process.stats(0, Some(Kind::Pool))?.peak_reserved;
    let fits = seen.heaps <= BOOKS.heaps
        && seen.retired <= BOOKS.retired
        && seen.arenas <= BOOKS.arenas
        && seen.ranges <= BOOKS.ranges
        && seen.counters <= BOOKS.counters
        && held <= HELD;
    ensure!(
        fits,
        "after {number}: {seen:?}, and {} MiB held",
        held / MIB
    );
    Ok(())
}

/// How many driver calls the library makes for some of them.
struct Pace {
    every: u64,
    before: u64,
    calls: Vec<u64>,
}

impl Pace {
    fn new(every: u64) -> Pace {
        Pace {
            every,
            before: 0,
            calls: Vec::new(),
        }
    }

    /// Another is done with.
    fn note(&mut self, process: &Process, number: u64) -> Outcome {
        if number % self.every != 0 {
            return Ok(());
        }
        let calls = process.driver_stats()?.calls;
        self.calls.push(calls - self.before);
        self.before = calls;
        is_bounded(process, number)
    }

    /// At the end they take what they took at the beginning. Where the device was late by chance more is
    /// asked, so it is the least that is compared.
    fn is_steady(&self, what: &str) -> Outcome {
        let quarter = self.calls.len() / 4;
        let least = |calls: &[u64]| calls.iter().copied().min().unwrap_or(0);
        let first = least(&self.calls[..quarter]);
        let last = least(&self.calls[self.calls.len() - quarter..]);
        let every = self.every;
        println!("pool: {first} driver calls for {every} {what} at first, {last} at last");
        ensure!(
            quarter > 0 && last <= first + first / 10,
            "{last} driver calls for {every} {what}, {first} at first"
        );
        Ok(())
    }
}

/// A block that outlives its stream by far.
struct Keepsake {
    address: u64,
    bytes: u64,
}

impl Keepsake {
    fn new(
        machine: &Machine,
        process: &Process,
        account: &Account,
        bytes: u64,
    ) -> Result<Keepsake, Stop> {
        let stream = machine.stream()?;
        let address = account.allocate(process, stream.stream(), bytes)?;
        machine.device.fill(address, 0x5a, bytes, stream.stream())?;
        stream.stream().synchronize(&machine.device)?;
        process.forget_stream(0, stream.stream())?;
        Ok(Keepsake { address, bytes })
    }

    fn close(self, machine: &Machine, process: &Process) -> Outcome {
        let mut seen = vec![0; self.bytes as usize];
        let device = &machine.device;
        device.copy_to_host(&mut seen, self.address, Stream::LEGACY)?;
        let whole = seen.iter().all(|byte| *byte == 0x5a);
        ensure!(whole, "a block of a stream that is gone was written to");
        Ok(process.deallocate(self.address, None, None)?)
    }
}

/// A stream is made, used, forgotten and destroyed, again and again.
pub(super) fn streams() -> Outcome {
    let (machine, process) = open()?;
    let account = Account::default();
    let kept = [300 * KIB, 3 * MIB].map(|bytes| Keepsake::new(&machine, &process, &account, bytes));
    let mut pace = Pace::new(500);
    // So that their handles are not had again: more than have statistics of their own.
    let mut undestroyed = Vec::new();
    for number in 1..=STREAMS {
        let owned = machine.stream()?;
        let stream = owned.stream();
        let mut blocks = Vec::new();
        for index in 0..number % 4 + 1 {
            let bytes = [4 * KIB, 2 * MIB, 700, 200 * KIB][index as usize];
            let block = account.allocate(&process, stream, bytes)?;
            machine.device.fill(block, number as u8, 512, stream)?;
            blocks.push(block);
        }
        let late = if number % 3 == 0 { blocks.pop() } else { None };
        for block in blocks {
            process.deallocate(block, None, None)?;
        }
        match number % 8 {
            0 => {}
            // What is late is late by so few streams, or nothing could be said of how many are kept.
            4 => machine.synchronize()?,
            _ => stream.synchronize(&machine.device)?,
        }
        process.forget_stream(0, stream)?;
        if machine.sim.is_some() && undestroyed.len() < HANDLES {
            undestroyed.push(owned);
        }
        late.map_or(Ok(()), |block| process.deallocate(block, None, None))?;
        pace.note(&process, number)?;
    }
    pace.is_steady("streams")?;
    machine.synchronize()?;
    for kept in kept {
        kept?.close(&machine, &process)?;
    }
    if machine.sim.is_some() {
        let told = process.streams(0)?;
        let is_few = told.len() <= 4200 && told.contains(&Stream::GONE);
        ensure!(is_few, "{} streams have statistics", told.len());
    }
    account.closes(&process)
}

/// The device is late now and then, also just when the last heap there is has been taken: as many heaps as
/// that asks for serve for ever.
pub(super) fn late_streams() -> Outcome {
    const STREAMS: u32 = 2000;
    const MOST: usize = 8;
    let (machine, process) = open()?;
    machine.needs_context_events()?;
    let account = Account::default();
    let gate = Gate::create(&machine.device)?;
    let mut random = Random::new(1);
    let mut last: Option<OwnedStream> = None;
    for number in 1..=STREAMS {
        let owned: OwnedStream = machine.stream()?;
        let block = account.allocate(&process, owned.stream(), 200 * KIB)?;
        gate.reach(number);
        if let Some(last) = last.replace(owned) {
            last.stream().synchronize(&machine.device)?;
        }
        let stream = last.as_ref().map_or(Stream::LEGACY, OwnedStream::stream);
        let is_late = random.once_in(5);
        if is_late {
            gate.hold(stream, number + 1)?;
        }
        machine.device.fill(block, number as u8, 512, stream)?;
        if !is_late {
            stream.synchronize(&machine.device)?;
        }
        process.deallocate(block, None, None)?;
        process.forget_stream(0, stream)?;
    }
    gate.reach(STREAMS + 1);
    machine.synchronize()?;
    let heaps = process.pool_footprint(0)?.heaps;
    println!("pool: {heaps} heaps for {STREAMS} streams, some of them late");
    ensure!(
        heaps <= MOST,
        "{heaps} heaps for {STREAMS} streams one after another, {MOST} at most"
    );
    account.closes(&process)
}

thread_local! {
    static AT_THE_END: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) };
}

/// Allocates and frees when its thread has ended as far as the library knows.
struct AtTheEnd {
    process: Arc<Process>,
    account: Arc<Account>,
    failed: Arc<AtomicU64>,
}

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        let (process, account) = (&self.process, &self.account);
        let outcome = (0..3).try_for_each(|_| {
            let block = account.allocate(process, Stream::from_raw(2 as _), 8 * KIB)?;
            Ok::<(), Stop>(process.deallocate(block, None, None)?)
        });
        self.failed.fetch_add(u64::from(outcome.is_err()), Relaxed);
    }
}

/// Threads end that each used its own default stream.
pub(super) fn threads() -> Outcome {
    let (machine, process) = open()?;
    let (process, account) = (Arc::new(process), Arc::new(Account::default()));
    let failed = Arc::new(AtomicU64::new(0));
    let mut pace = Pace::new(100);
    for number in 1..=THREADS {
        let (process_there, account_there) = (process.clone(), account.clone());
        let at_the_end = AtTheEnd {
            process: process.clone(),
            account: account.clone(),
            failed: failed.clone(),
        };
        let thread = std::thread::spawn(move || {
            if number % 5 == 0 {
                // Before the thread has caches, so that it goes after them.
                AT_THE_END.set(Some(at_the_end));
            }
            let (process, account) = (process_there, account_there);
            let allocate = |bytes| account.allocate(&process, Stream::from_raw(2 as _), bytes);
            let (small, large) = (allocate(4 * KIB)?, allocate(2 * MIB)?);
            process.deallocate(small, None, None)?;
            Ok::<u64, Stop>(large)
        });
        let left = thread
            .join()
            .map_err(|_| Stop::from("a thread panicked"))??;
        process.deallocate(left, None, None)?;
        pace.note(&process, number)?;
    }
    pace.is_steady("threads")?;
    ensure_eq!(
        failed.load(Relaxed),
        0,
        "threads whose last requests failed"
    );
    machine.synchronize()?;
    account.closes(&process)
}

/// Graph pools are captured into and released, on two streams in turn.
pub(super) fn graphs() -> Outcome {
    let (machine, process) = open()?;
    let account = Account::default();
    let streams = [machine.stream()?, machine.stream()?];
    let mut pace = Pace::new(250);
    for number in 1..=GRAPHS {
        let pool = GraphPool {
            device: 0,
            id: (11, number),
        };
        let stream = streams[(number % 2) as usize].stream();
        process.graph_begin(pool)?;
        machine.begin_capture(stream, CAPTURE_GLOBAL)?;
        let small = account.allocate(&process, stream, 4 * KIB + number);
        let large = account.allocate(&process, stream, 2 * MIB + (number % 7) * MIB);
        machine.end_capture(stream)?;
        process.graph_end(pool)?;
        process.deallocate(small?, None, None)?;
        if number % 2 == 0 {
            process.graph_release(pool)?;
            process.deallocate(large?, None, None)?;
        } else {
            process.deallocate(large?, None, None)?;
            process.graph_release(pool)?;
        }
        pace.note(&process, number)?;
    }
    pace.is_steady("graphs")?;
    machine.synchronize()?;
    account.closes(&process)
}

/// Each of several streams has memory of every graph.
pub(super) fn graphs_of_streams() -> Outcome {
    const STREAMS: u64 = 8;
    let (machine, process) = open()?;
    let account = Account::default();
    let streams: Result<Vec<OwnedStream>, _> = (0..STREAMS).map(|_| machine.stream()).collect();
    let streams = streams?;
    for number in 1..=300 {
        let pool = GraphPool {
            device: 0,
            id: (12, number),
        };
        let mut blocks = Vec::new();
        for stream in &streams {
            process.graph_begin(pool)?;
            machine.begin_capture(stream.stream(), CAPTURE_GLOBAL)?;
            let block = account.allocate(&process, stream.stream(), 4 * KIB);
            machine.end_capture(stream.stream())?;
            process.graph_end(pool)?;
            blocks.push(block?);
        }
        for block in blocks {
            process.deallocate(block, None, None)?;
            process.graph_release(pool)?;
        }
        machine.synchronize()?;
        let kept = process.pool_footprint(0)?;
        ensure!(
            kept.arenas <= 160 && kept.ranges <= 160,
            "after {number} graphs: {kept:?}"
        );
    }
    account.closes(&process)
}

/// What a stream frees while it stands still serves no other stream before it has gone on, though the
/// stream was forgotten; then it does, and the next stream takes the seat.
pub(super) fn late_work() -> Outcome {
    let (machine, process) = open()?;
    machine.needs_context_events()?;
    let account = Account::default();
    let device = &machine.device;
    let gate = Gate::create(device)?;
    for number in 1..=20 {
        let first: OwnedStream = machine.stream()?;
        let sizes = [4 * KIB, 3 * MIB];
        let mut blocks = Vec::new();
        for bytes in sizes {
            blocks.push((account.allocate(&process, first.stream(), bytes)?, bytes));
        }
        gate.hold(first.stream(), number)?;
        for (block, bytes) in &blocks {
            device.fill(*block, 1, *bytes, first.stream())?;
            process.deallocate(*block, None, None)?;
        }
        process.forget_stream(0, first.stream())?;
        let second = machine.stream()?;
        for bytes in sizes {
            let block = account.allocate(&process, second.stream(), bytes)?;
            let free_of =
                |(other, length): &(u64, u64)| block + bytes <= *other || other + length <= block;
            let is_apart = blocks.iter().all(free_of);
            if !is_apart {
                gate.reach(number);
            }
            ensure!(
                is_apart,
                "{block:#x} is still written to by a stream that was forgotten"
            );
            process.deallocate(block, None, None)?;
        }
        gate.reach(number);
        machine.synchronize()?;
        process.forget_stream(0, second.stream())?;
        is_bounded(&process, u64::from(number))?;
        let heaps = process.pool_footprint(0)?.heaps;
        ensure!(heaps <= 4, "{heaps} heaps for two streams at a time");
    }
    account.closes(&process)
}
