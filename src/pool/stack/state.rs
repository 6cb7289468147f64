//! What an arena knows: its region, what lies in it, what came from upstream instead, and counts of both.

use super::Upstream;
use crate::core::gauge::Reading;
use crate::core::size::Align;
use crate::core::stack::Stack;
use crate::error::{Error, Status};
use crate::gpu::Stream;
use crate::pool::thread_number;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// A block that came from upstream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spill {
    /// What upstream gave, and its length: the block may begin further on.
    pub base: u64,
    pub bytes: u64,
    pub requested: u64,
    pub need: u64,
}

/// What the stack lies in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub base: u64,
    pub bytes: u64,
    pub stream: Stream,
    /// The thread whose stream that is, where every thread has another.
    thread: u64,
}

impl Region {
    pub fn new(base: u64, bytes: u64, stream: Stream) -> Region {
        Region {
            base,
            bytes,
            stream,
            thread: thread_of(stream),
        }
    }
}

fn thread_of(stream: Stream) -> u64 {
    match stream.is_per_thread() {
        true => thread_number(),
        false => 0,
    }
}

/// Sums over what is spilled.
#[derive(Clone, Copy, Debug, Default)]
struct Spilled {
    requested: u64,
    allocated: u64,
    need: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Peaks {
    requested: u64,
    allocated: u64,
    blocks: u64,
}

/// What an arena did, in bytes and counts since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Asked for by blocks now given out.
    pub requested: Reading,
    /// In blocks, with what rounding and alignment take.
    pub allocated: Reading,
    /// Had from upstream: the region and what is spilled.
    pub reserved: Reading,
    /// Blocks given out.
    pub blocks: Reading,
    /// Blocks that came from upstream because the region had no room.
    pub spilled: Reading,
    /// Blocks now given out that did, in bytes as had from upstream.
    pub spilled_bytes: u64,
    /// Pieces had from upstream: the region and what is spilled.
    pub pieces: Reading,
    /// The region's length.
    pub region: u64,
    /// As long a region would have served every request so far.
    pub largest_need: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Those that failed for want of memory.
    pub out_of_memory: u64,
}

/// The state.
#[derive(Default)]
pub(super) struct State {
    /// The handle of the arena; 0 while this is nobody's.
    pub number: u64,
    /// Whether streams mean anything to upstream.
    by_stream: bool,
    stream: Option<Stream>,
    pub stack: Stack,
    spilled_sums: Spilled,
    peaks: Peaks,
    pub largest_need: u64,
    allocations: u64,
    total_requested: u64,
    total_allocated: u64,
    pub region: Option<Region>,
    pub spilled: FxHashMap<u64, Spill>,
    spills: Reading,
    reserved: Reading,
    pieces: Reading,
    failed: u64,
    out_of_memory: u64,
    pub upstream: Option<Arc<dyn Upstream>>,
    /// Calls on their way to upstream or back.
    pub passing: u64,
    /// Whether one of them changes the region.
    pub is_moving: bool,
}

fn raise(reading: &mut Reading, by: u64) {
    reading.now += by;
    reading.added += by;
    reading.peak = reading.peak.max(reading.now);
}

impl State {
    pub fn new(number: u64, upstream: Arc<dyn Upstream>) -> State {
        State {
            number,
            by_stream: upstream.is_by_stream(),
            upstream: Some(upstream),
            ..State::default()
        }
    }

    /// Whether the region is used in the order of that stream.
    #[inline]
    pub fn serves(&self, stream: Stream) -> bool {
        !self.by_stream || (self.stream == Some(stream) && self.is_same_thread(stream))
    }

    #[inline]
    fn is_same_thread(&self, stream: Stream) -> bool {
        !stream.is_per_thread()
            || (self.region).is_some_and(|region| region.thread == thread_number())
    }

    #[inline]
    pub fn push(&mut self, bytes: u64, align: Align, stream: Stream) -> Option<u64> {
        if !self.serves(stream) {
            return None;
        }
        let used = self.stack.used();
        let address = self.stack.push(bytes, align)?;
        self.total_allocated += self.stack.used() - used;
        self.count(bytes);
        Some(address)
    }

    /// A block of `bytes` was given out.
    #[inline]
    fn count(&mut self, bytes: u64) {
        let (stack, spilled) = (&self.stack, &self.spilled_sums);
        let need = stack.need() + spilled.need;
        self.largest_need = self.largest_need.max(need);
        let peaks = &mut self.peaks;
        peaks.requested = peaks.requested.max(stack.requested() + spilled.requested);
        peaks.allocated = peaks.allocated.max(stack.used() + spilled.allocated);
        peaks.blocks = peaks.blocks.max(stack.len() as u64 + self.spills.now);
        self.allocations += 1;
        self.total_requested += bytes;
    }

    /// What was had from upstream for a block is in its hands.
    pub fn spill(&mut self, address: u64, spill: Spill) {
        self.restore_spill(address, spill);
        raise(&mut self.spills, 1);
        self.note_reserved(spill.bytes);
        self.total_allocated += spill.bytes;
        self.count(spill.requested);
    }

    fn restore_spill(&mut self, address: u64, spill: Spill) {
        let sums = &mut self.spilled_sums;
        sums.requested += spill.requested;
        sums.allocated += spill.bytes;
        sums.need += spill.need;
        self.spilled.insert(address, spill);
    }

    /// The block is on its way to upstream.
    pub fn unspill(&mut self, address: u64) {
        if let Some(spill) = self.spilled.remove(&address) {
            let sums = &mut self.spilled_sums;
            sums.requested -= spill.requested;
            sums.allocated -= spill.bytes;
            sums.need -= spill.need;
            self.spills.now -= 1;
        }
    }

    /// Upstream did not take it.
    pub fn take_spill_back(&mut self, address: u64, spill: Spill) {
        self.restore_spill(address, spill);
        self.spills.now += 1;
    }

    /// So many bytes more are had from upstream.
    pub fn note_reserved(&mut self, bytes: u64) {
        raise(&mut self.reserved, bytes);
        raise(&mut self.pieces, 1);
    }

    /// So many less.
    pub fn note_returned(&mut self, bytes: u64) {
        self.reserved.now -= bytes;
        self.pieces.now -= 1;
    }

    pub fn note_failed(&mut self, error: &Error) {
        self.failed += 1;
        self.out_of_memory += u64::from(error.status() == Status::OutOfMemory);
    }

    /// The region's memory begins to serve.
    pub fn install(&mut self, region: Region) {
        self.stack = Stack::new(region.base, region.bytes);
        self.stream = Some(region.stream);
        self.region = Some(region);
    }

    /// The region, in which nothing lies, no longer serves.
    pub fn lift(&mut self) -> Option<Region> {
        self.stack = Stack::default();
        self.stream = None;
        self.region.take()
    }

    /// The region of a stream of that handle serves no more, and does not name it.
    pub fn forget_stream(&mut self, stream: Stream) {
        if let Some(region) = self
            .region
            .as_mut()
            .filter(|region| region.stream == stream)
        {
            region.stream = Stream::LEGACY;
            self.stream = None;
            self.stack.close();
        }
    }

    /// How many blocks are given out.
    pub fn live(&self) -> u64 {
        self.stack.len() as u64 + self.spills.now
    }

    pub fn stats(&self) -> ArenaStats {
        let reading = |now, peak, added| Reading { now, peak, added };
        let (stack, spilled) = (&self.stack, &self.spilled_sums);
        ArenaStats {
            requested: reading(
                stack.requested() + spilled.requested,
                self.peaks.requested,
                self.total_requested,
            ),
            allocated: reading(
                stack.used() + spilled.allocated,
                self.peaks.allocated,
                self.total_allocated,
            ),
            reserved: self.reserved,
            blocks: reading(self.live(), self.peaks.blocks, self.allocations),
            spilled: self.spills,
            spilled_bytes: spilled.allocated,
            pieces: self.pieces,
            region: self.region.map_or(0, |region| region.bytes),
            largest_need: self.largest_need,
            failed: self.failed,
            out_of_memory: self.out_of_memory,
        }
    }

    /// Finds what contradicts itself, while no call is under way.
    pub fn audit(&self) -> std::result::Result<(), String> {
        self.stack.audit()?;
        let sum = |of: fn(&Spill) -> u64| self.spilled.values().map(of).sum::<u64>();
        let region = self.region.map_or(0, |region| region.bytes);
        let stats = self.stats();
        let is_right = sum(|spill| spill.requested) == self.spilled_sums.requested
            && sum(|spill| spill.bytes) == self.spilled_sums.allocated
            && sum(|spill| spill.need) == self.spilled_sums.need
            && self.spilled.len() as u64 == self.spills.now
            && stats.reserved.now == region + stats.spilled_bytes
            && stats.pieces.now == self.spills.now + u64::from(self.region.is_some())
            && stats.requested.now <= stats.allocated.now
            && stats.allocated.now <= stats.reserved.now;
        match is_right {
            true => Ok(()),
            false => Err(format!("{stats:?} with {:?}", self.spilled)),
        }
    }
}
