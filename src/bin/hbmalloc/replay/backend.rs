//! One backend's replay, in a process of its own, so that its peaks and calls are its own. It calls
//! what torch would call under `install()`, and tells its parent, a line each: how far it has come,
//! its figures, and what went wrong.

use super::clock::Clock;
use super::figures::Figures;
use super::lag::{Lag, Range};
use super::options::Options;
use super::points::{Point, Points};
use crate::trace::{Action, Event, Trace};
use hbmalloc::error::{Error, Result, Status, last};
use hbmalloc::gpu::driver::Timing;
use hbmalloc::gpu::{Driver, OwnedStream, Stream};
use hbmalloc::observe;
use hbmalloc::process::{Process, Stats};
use hbmalloc::selftest::simulator::Simulator;
use hbmalloc::source::Kind;
use hbmalloc::torch::{self, Free, Malloc};
use std::ffi::c_void;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const DEVICE: i32 = 0;

/// How often the parent hears of progress, and after how many events the time is looked at.
const NEWS: Duration = Duration::from_millis(100);
const LOOK_EVERY: usize = 256;

/// Replays `trace` on the backend `kind`.
pub fn run(kind: Kind, trace: &Trace, options: &Options) -> ExitCode {
    // SAFETY: asks for a signal when the parent is gone, and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let mut problems = Vec::new();
    let points = (options.points > 0).then(|| Points::new(options.points, trace.events.len()));
    let outcome = Replay::start(kind, trace, options)
        .and_then(|replay| replay.run(points, &mut problems))
        .map_err(|error| problems.push(error.to_string()));
    for problem in &problems {
        println!("problem {}", problem.trim_end().replace('\n', "; "));
    }
    if let Ok(figures) = outcome {
        figures.print();
    }
    ExitCode::from(u8::from(!problems.is_empty()))
}

struct Replay<'a> {
    kind: Kind,
    trace: &'a Trace,
    process: &'static Process,
    driver: &'static Driver,
    simulator: Option<Simulator>,
    /// The trace's streams; its first is the legacy stream, as in torch.
    streams: Vec<OwnedStream>,
    lag: Option<Lag>,
    /// What the simulator counted before the first allocation, in bytes.
    baseline: u64,
    malloc: Malloc,
    free: Free,
    clock: Clock,
    /// Of each block: its address while it is alive, and its nanoseconds so far.
    addresses: Vec<*mut c_void>,
    spent: Vec<f64>,
    /// Nanoseconds of allocations with their frees, as they become complete.
    pairs: Vec<f64>,
    host_ns: f64,
    driver_ns: f64,
    driver_calls: u64,
}

/// Where the driver's counters stood.
struct Meters {
    calls: u64,
    timed: u64,
    time: Duration,
    virtual_ns: u64,
}

impl<'a> Replay<'a> {
    fn start(kind: Kind, trace: &'a Trace, options: &Options) -> Result<Replay<'a>> {
        let process = observe::process();
        options.apply(process)?;
        process.settings().set("backend", kind.name())?;
        // As with torch's hooks: streams that use a block are told of.
        process.set_hooked(true);
        let driver = process.driver()?;
        process.device(DEVICE)?;
        let device = driver.device(DEVICE)?;
        let streams: Result<Vec<_>> = (1..trace.streams())
            .map(|_| OwnedStream::create(device))
            .collect();
        let (malloc, free) = torch::entry_points_of(Some(kind)).ok_or_else(|| {
            Error::new(Status::Unsupported, "replay")
                .detail(format!("{} has no entry points for torch", kind.name()))
        })?;
        let simulator = Simulator::of(driver);
        let lag =
            (options.lag > 0).then(|| Lag::start(options.lag, trace.streams(), device, simulator));
        Ok(Replay {
            kind,
            trace,
            process,
            driver,
            lag: lag.transpose()?,
            baseline: simulator.map_or(0, |simulator| simulator.counters().memory_bytes),
            simulator,
            streams: streams?,
            malloc,
            free,
            clock: Clock::calibrate(),
            addresses: vec![std::ptr::null_mut(); trace.blocks.len()],
            spent: vec![0.0; trace.blocks.len()],
            pairs: Vec::with_capacity(trace.blocks.len()),
            host_ns: 0.0,
            driver_ns: 0.0,
            driver_calls: 0,
        })
    }

    fn run(mut self, mut points: Option<Points>, problems: &mut Vec<String>) -> Result<Figures> {
        // As in torch, whose context is current on the threads that allocate.
        let _guard = self.driver.device(DEVICE)?.enter()?;
        self.driver.time_calls(match self.simulator {
            // What simulating costs is nothing that a program on a card would pay.
            Some(_) => Timing::All,
            None => Timing::Counted,
        });
        let mut told = Instant::now();
        for (done, event) in self.trace.events.iter().enumerate() {
            if done % LOOK_EVERY == 0 && told.elapsed() >= NEWS {
                told = Instant::now();
                println!("progress {done}");
            }
            self.step(done as u32 + 1, *event)?;
            if let Some(points) = &mut points {
                self.look(done as u64 + 1, points)?;
            }
        }
        self.driver.time_calls(Timing::Off);
        let stats = self.process.stats(DEVICE, Some(self.kind))?;
        self.check_counts(&stats, problems);
        let figures = self.figures(&stats);
        self.lag = None;
        self.give_all_back()?;
        self.check_nothing_is_left(problems);
        Ok(figures)
    }

    fn stream(&self, number: usize) -> Stream {
        match number.checked_sub(1) {
            None => Stream::LEGACY,
            Some(index) => self.streams[index].stream(),
        }
    }

    /// Runs the event `number`, counted from 1.
    fn step(&mut self, number: u32, event: Event) -> Result<()> {
        let block = event.block;
        let wanted = self.trace.blocks[block];
        let (bytes, stream) = (wanted.bytes as usize, self.stream(wanted.stream).raw());
        if let Some(lag) = &self.lag {
            lag.advance(number);
        }
        if event.action == Action::Free {
            self.work_on(number, block)?;
        }
        if let Some(lag) = &self.lag {
            lag.enter(number);
        }
        match event.action {
            Action::Allocate => {
                let malloc = self.malloc;
                let (address, nanoseconds) = self.timed(|| malloc(bytes, DEVICE, stream));
                if address.is_null() {
                    return Err(last::error());
                }
                self.addresses[block] = address;
                self.spent[block] = nanoseconds;
            }
            Action::Free => {
                let (free, address) = (self.free, self.addresses[block]);
                let ((), nanoseconds) = self.timed(|| free(address, bytes, DEVICE, stream));
                self.addresses[block] = std::ptr::null_mut();
                self.pairs.push(self.spent[block] + nanoseconds);
            }
        }
        if let Some(lag) = &self.lag {
            lag.leave();
        }
        match event.action {
            Action::Allocate => self.work_on(number, block),
            Action::Free => Ok(()),
        }
    }

    /// Takes in how memory stands after so many events.
    fn look(&self, event: u64, points: &mut Points) -> Result<()> {
        let stats = self.process.stats(DEVICE, Some(self.kind))?;
        let now = Point {
            event,
            requested: stats.requested,
            allocated: stats.allocated,
            reserved: stats.reserved,
        };
        if let Some(point) = points.add(now, event == self.trace.events.len() as u64) {
            point.print();
        }
        Ok(())
    }

    /// Where work is to lag: gives the block's stream some that uses it.
    fn work_on(&mut self, number: u32, block: usize) -> Result<()> {
        let wanted = self.trace.blocks[block];
        let stream = self.stream(wanted.stream);
        let range = Range {
            address: self.addresses[block] as u64,
            bytes: wanted.bytes,
        };
        match &mut self.lag {
            None => Ok(()),
            Some(lag) => lag.work(number, wanted.stream, stream, range),
        }
    }

    fn meters(&self) -> Meters {
        let (timed, time) = self.driver.driver_time();
        Meters {
            calls: self.driver.calls(),
            timed,
            time,
            virtual_ns: self.simulator.map_or(0, |simulator| simulator.virtual_ns()),
        }
    }

    /// Runs a call of the library; the answer is what it came to in nanoseconds, the driver's part
    /// included. On the simulator that part is what its virtual clock says, not what simulating took.
    #[inline(always)]
    fn timed<T>(&mut self, call: impl FnOnce() -> T) -> (T, f64) {
        let before = self.meters();
        let started = self.clock.now();
        let answer = call();
        let ended = self.clock.now();
        let after = self.meters();
        // Half of what timing a driver call costs falls into the time it tells, half outside.
        let timing = (after.timed - before.timed) as f64 * self.clock.system_cost() / 2.0;
        let measured = (after.time - before.time).as_nanos() as f64;
        let all = self.clock.between(started, ended);
        let host = (all - measured - timing).max(0.0);
        let driver = match self.simulator {
            Some(_) => (after.virtual_ns - before.virtual_ns) as f64,
            None => (measured - timing).max(0.0),
        };
        self.host_ns += host;
        self.driver_ns += driver;
        self.driver_calls += after.calls - before.calls;
        (answer, host + driver)
    }

    fn figures(&mut self, stats: &Stats) -> Figures {
        let mut figures = Figures::default();
        self.pairs.sort_unstable_by(f64::total_cmp);
        figures.set("peak_requested", self.trace.peak().0 as f64);
        figures.set("peak_allocated", stats.peak_allocated as f64);
        figures.set("peak_reserved", stats.peak_reserved as f64);
        if let Some(last) = self.pairs.last() {
            figures.set("pair_ns_p50", self.pairs[self.pairs.len() / 2]);
            figures.set("pair_ns_p99", self.pairs[self.pairs.len() * 99 / 100]);
            figures.set("pair_ns_max", *last);
        }
        figures.set("pairs", self.pairs.len() as f64);
        figures.set("host_ms", self.host_ns / 1e6);
        figures.set("driver_calls", self.driver_calls as f64);
        figures.set("driver_ms", self.driver_ns / 1e6);
        figures.set("total_ms", (self.host_ns + self.driver_ns) / 1e6);
        figures.set("clock_ns", self.clock.own_cost());
        if let Some(lag) = &self.lag {
            figures.set("forced_waits", lag.forced() as f64);
        }
        figures
    }

    fn check_counts(&self, stats: &Stats, problems: &mut Vec<String>) {
        let (peak, asked) = (self.trace.peak().0, stats.peak_requested);
        if asked.abs_diff(peak) > crate::trace::slack(self.kind, self.trace) {
            problems.push(format!(
                "{asked} bytes were counted as asked for at a time, {peak} were"
            ));
        }
        let blocks = (self.trace.blocks.len() as u64, self.pairs.len() as u64);
        if (stats.allocations, stats.deallocations) != blocks {
            problems.push(format!(
                "{} blocks were asked for and {} freed; {} and {} were counted",
                blocks.0, blocks.1, stats.allocations, stats.deallocations
            ));
        }
        let held = self.simulator.map(|simulator| simulator.counters());
        let held = held.map_or(stats.peak_reserved, |counters| {
            counters.peak_memory_bytes - self.baseline
        });
        if held != stats.peak_reserved {
            problems.push(format!(
                "hbmalloc says that it held {} bytes at most, the simulator counted {held}",
                stats.peak_reserved
            ));
        }
    }

    fn give_all_back(&mut self) -> Result<()> {
        for (block, address) in self.addresses.iter().enumerate() {
            let wanted = self.trace.blocks[block];
            let stream = self.stream(wanted.stream).raw();
            (self.free)(*address, wanted.bytes as usize, DEVICE, stream);
        }
        self.process.trim(DEVICE, 0)?;
        self.streams.clear();
        Ok(())
    }

    fn check_nothing_is_left(&self, problems: &mut Vec<String>) {
        let blocks = self.process.live_blocks();
        if blocks != 0 {
            problems.push(format!("{blocks} blocks are left in the registry"));
        }
        let Some(simulator) = self.simulator else {
            return;
        };
        let counters = simulator.counters();
        if counters.memory_bytes != 0 {
            problems.push(format!(
                "at the end the simulator still counts {} bytes",
                counters.memory_bytes
            ));
        }
        let faults = simulator.faults();
        if !faults.is_empty() {
            problems.push(format!("faults on the device: {}", faults.join("; ")));
        }
    }
}
