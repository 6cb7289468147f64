//! One backend's replay, in a process of its own, so that its peaks and calls are its own. It tells
//! its parent, a line each: how far it has come, its figures, and what went wrong.

use super::data::{Checksum, Content, Plan};
use super::report::Figures;
use crate::trace::{Action, Trace};
use hbmalloc::core::tags::TagId;
use hbmalloc::error::Result;
use hbmalloc::extent::table::Owner;
use hbmalloc::gpu::{Device, Fence, OwnedStream, Stream};
use hbmalloc::observe;
use hbmalloc::process::{Demand, Process, Stats};
use hbmalloc::selftest::simulator::Simulator;
use hbmalloc::source::{ALIGN, Kind, LastUse};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEVICE: i32 = 0;

/// How often the parent hears of progress. A parent that is gone ends this process by SIGPIPE.
const NEWS: Duration = Duration::from_millis(100);

/// Problems that are told one by one; the rest is counted.
const TOLD: usize = 5;

/// Replays `trace` on the backend `kind`; the block read back in `damaged`-th place is overwritten
/// first, to see that it is found out.
pub fn run(kind: Kind, trace: &Trace, damaged: Option<u64>) -> ExitCode {
    let mut problems = Vec::new();
    match Replay::start(kind, trace, damaged) {
        Ok(replay) => {
            let outcome = replay.run(&mut problems);
            if let Err(error) = outcome {
                problems.push(error.to_string());
            }
        }
        Err(error) => problems.push(error),
    }
    for problem in problems.iter().take(TOLD) {
        println!("problem {}", problem.trim_end().replace('\n', "; "));
    }
    if problems.len() > TOLD {
        println!("problem and {} more", problems.len() - TOLD);
    }
    ExitCode::from(u8::from(!problems.is_empty()))
}

struct Block {
    address: u64,
    content: Option<Content>,
}

struct Replay<'a> {
    kind: Kind,
    trace: &'a Trace,
    damaged: Option<u64>,
    process: &'static Process,
    device: Arc<Device>,
    simulator: Simulator,
    /// The trace's streams; its first is the legacy stream, as in torch.
    streams: Vec<OwnedStream>,
    live: Vec<Option<Block>>,
    plan: Plan,
    checksum: Checksum,
    figures: Figures,
    read_back: u64,
}

impl<'a> Replay<'a> {
    fn start(
        kind: Kind,
        trace: &'a Trace,
        damaged: Option<u64>,
    ) -> std::result::Result<Replay<'a>, String> {
        let text = |error: hbmalloc::error::Error| error.to_string();
        let process = observe::process();
        // As with torch's hooks: streams that use a block are told of.
        process.set_hooked(true);
        let driver = process.driver().map_err(text)?;
        let simulator = Simulator::of(driver)
            .ok_or_else(|| format!("{} is not the simulated driver", driver.path().display()))?;
        process.device(DEVICE).map_err(text)?;
        let device = driver.device(DEVICE).map_err(text)?.clone();
        let streams: Result<Vec<_>> = (1..trace.streams())
            .map(|_| OwnedStream::create(&device))
            .collect();
        Ok(Replay {
            kind,
            trace,
            damaged,
            process,
            device,
            simulator,
            streams: streams.map_err(text)?,
            live: Vec::new(),
            plan: Plan::default(),
            checksum: Checksum::default(),
            figures: Figures::default(),
            read_back: 0,
        })
    }

    fn run(mut self, problems: &mut Vec<String>) -> Result<()> {
        let started = Instant::now();
        let mut told = started;
        for (done, event) in self.trace.events.iter().enumerate() {
            if told.elapsed() >= NEWS {
                told = Instant::now();
                println!("progress {done}");
            }
            match event.action {
                Action::Allocate => self.allocate(event.block)?,
                Action::Free => self.free(event.block, problems)?,
            }
        }
        for block in 0..self.live.len() {
            self.free(block, problems)?;
        }
        self.measured(|replay| replay.process.trim(DEVICE, 0).map(|_| ()))?;
        self.figures.seconds = started.elapsed().as_secs_f64();
        self.finish(problems)
    }

    fn stream(&self, number: usize) -> Stream {
        match number.checked_sub(1) {
            None => Stream::LEGACY,
            Some(index) => self.streams[index].stream(),
        }
    }

    fn stream_of(&self, block: usize) -> Stream {
        self.stream(self.trace.blocks[block].stream)
    }

    /// Runs calls of the library, and adds what they ask of the driver to the figures.
    fn measured<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = (self.simulator.calls("*"), self.simulator.virtual_ns());
        let outcome = body(self);
        self.figures.calls += self.simulator.calls("*") - before.0;
        self.figures.driver_ns += self.simulator.virtual_ns() - before.1;
        outcome
    }

    fn allocate(&mut self, block: usize) -> Result<()> {
        let bytes = self.trace.blocks[block].bytes;
        let demand = Demand {
            kind: self.kind,
            device: DEVICE,
            bytes,
            align: ALIGN,
            stream: self.stream_of(block),
            owner: Owner::Block,
            last_use: LastUse::Streams,
            allocator: None,
            location: None,
            tag: TagId::NONE,
        };
        let address = self.measured(|replay| replay.process.allocate(demand))?;
        let content = self.plan.allocate(block, bytes);
        self.live.push(Some(Block { address, content }));
        match content {
            Some(content) => self.write(address, &content),
            None => Ok(()),
        }
    }

    fn write(&self, address: u64, content: &Content) -> Result<()> {
        let stream = self.stream_of(content.block);
        let own = super::data::pattern(content.block, content.own);
        self.device.copy_from_host(address, &own, stream)?;
        if let Some((from, bytes)) = content.inherited {
            self.hand_on(from, address + content.own, bytes, stream)?;
        }
        let end = address + self.trace.blocks[content.block].bytes;
        let (fill, count) = (content.fill(), content.own);
        self.device.fill(end - count, fill, count, stream)
    }

    /// Copies a block's pattern on another block's stream, as a program hands a tensor on: the
    /// stream waits for the block's own, and the library is told that it uses the block.
    fn hand_on(&self, from: usize, to: u64, bytes: u64, stream: Stream) -> Result<()> {
        let Some(Some(source)) = self.live.get(from) else {
            return Ok(());
        };
        let home = self.stream_of(from);
        if home != stream {
            let _guard = self.device.enter()?;
            Fence::behind_streams(&self.device, &[home])?.holds_back(stream)?;
            self.process.record_stream(source.address, stream)?;
        }
        self.device
            .copy_on_device(to, source.address, bytes, stream)
    }

    fn free(&mut self, number: usize, problems: &mut Vec<String>) -> Result<()> {
        let Some(block) = self.live[number].take() else {
            return Ok(());
        };
        if let Some(content) = &block.content {
            if let Err(problem) = self.read(block.address, content)? {
                problems.push(problem);
            }
        }
        self.plan.free(number);
        self.measured(|replay| replay.process.deallocate(block.address, None, None))
    }

    /// Reads a block back and compares.
    fn read(&mut self, address: u64, content: &Content) -> Result<std::result::Result<(), String>> {
        let stream = self.stream_of(content.block);
        self.read_back += 1;
        if self.damaged == Some(self.read_back) {
            self.device
                .fill(address + 3, !content.head()[3], 1, stream)?;
        }
        let expected = content.head();
        let mut head = vec![0; expected.len()];
        let mut tail = vec![0; content.own as usize];
        let end = address + self.trace.blocks[content.block].bytes;
        self.device.copy_to_host(&mut head, address, stream)?;
        self.device
            .copy_to_host(&mut tail, end - content.own, stream)?;
        self.checksum.add(&head, &tail);
        self.figures.verified += (head.len() + tail.len()) as u64;
        let fill = vec![content.fill(); tail.len()];
        let wrong = first_difference(&head, &expected).or_else(|| {
            let at = first_difference(&tail, &fill)?;
            Some(end - address - content.own + at)
        });
        Ok(match wrong {
            None => Ok(()),
            Some(at) => Err(format!(
                "block {} of {} bytes: byte {at} is not what was written",
                content.block,
                end - address
            )),
        })
    }

    /// Gathers the figures, checks them and tells them.
    fn finish(mut self, problems: &mut Vec<String>) -> Result<()> {
        self.streams.clear();
        let stats = self.process.stats(DEVICE, Some(self.kind))?;
        self.figures.blocks = stats.allocations;
        self.figures.asked = stats.peak_requested;
        self.figures.held = stats.peak_reserved;
        self.figures.card = self.simulator.peak_physical(DEVICE);
        // This process uses one kind of memory only.
        self.figures.counted = self.simulator.counters().peak_memory_bytes;
        self.figures.checksum = self.checksum.value();
        self.figures.log = self.simulator.call_log();
        self.check_statistics(&stats, problems);
        self.check_nothing_is_left(problems);
        self.figures.print();
        Ok(())
    }

    fn check_statistics(&self, stats: &Stats, problems: &mut Vec<String>) {
        let (peak, blocks) = (self.trace.peak().0, self.trace.blocks.len() as u64);
        if stats.peak_requested.abs_diff(peak) > crate::trace::slack(self.kind, self.trace) {
            problems.push(format!(
                "{} bytes were counted as asked for at a time, {peak} were",
                stats.peak_requested
            ));
        }
        if stats.peak_reserved != self.figures.counted {
            problems.push(format!(
                "hbmalloc says that it held {} bytes at most, the simulator counted {}",
                stats.peak_reserved, self.figures.counted
            ));
        }
        if (stats.allocations, stats.deallocations) != (blocks, blocks) {
            problems.push(format!(
                "{blocks} blocks were asked for, {} given out and {} taken back",
                stats.allocations, stats.deallocations
            ));
        }
    }

    fn check_nothing_is_left(&self, problems: &mut Vec<String>) {
        let blocks = self.process.live_blocks();
        if blocks != 0 {
            problems.push(format!("{blocks} blocks are left in the registry"));
        }
        let alive = self.simulator.counters();
        let bytes = alive.memory_bytes;
        if (bytes, alive.reservations) != (0, 0) {
            problems.push(format!(
                "at the end the simulator still counts {bytes} bytes and {} address ranges",
                alive.reservations
            ));
        }
        let faults = self.simulator.faults();
        if !faults.is_empty() {
            problems.push(format!("faults on the device: {}", faults.join("; ")));
        }
    }
}

/// Where two readings of the same length differ first; whole at once, since they mostly agree.
fn first_difference(read: &[u8], written: &[u8]) -> Option<u64> {
    if read == written {
        return None;
    }
    let at = read
        .iter()
        .zip(written)
        .position(|(one, other)| one != other);
    at.map(|at| at as u64)
}
