//! What an arena knows: its region, what lies in it, what came from upstream instead, and counts of both.

use super::Upstream;
use crate::core::gauge::Reading;
use crate::core::size::Align;
use crate::core::stack::{Marks, Stack};
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
pub(super) struct State {
    /// The handle of the arena; 0 while this is nobody's.
    pub number: u64,
    /// Whether streams mean nothing to upstream.
    any_stream: bool,
    /// Whom the region serves at once; [`Stream::GONE`] for nobody.
    served: Stream,
    /// Whether the region serves nobody until it was had anew.
    pub is_closed: bool,
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
            any_stream: !upstream.is_by_stream(),
            upstream: Some(upstream),
            ..State::nobodys()
        }
    }

    /// That of no arena.
    pub fn nobodys() -> State {
        State {
            number: 0,
            any_stream: false,
            served: Stream::GONE,
            is_closed: true,
            stack: Stack::default(),
            spilled_sums: Spilled::default(),
            peaks: Peaks::default(),
            largest_need: 0,
            allocations: 0,
            total_requested: 0,
            total_allocated: 0,
            region: None,
            spilled: FxHashMap::default(),
            spills: Reading::default(),
            reserved: Reading::default(),
            pieces: Reading::default(),
            failed: 0,
            out_of_memory: 0,
            upstream: None,
            passing: 0,
            is_moving: false,
        }
    }

    /// Whether the region is used in the order of that stream.
    pub fn is_of(&self, stream: Stream) -> bool {
        self.any_stream
            || (self.region)
                .is_some_and(|region| region.stream == stream && region.thread == thread_of(stream))
    }

    /// The same where that is known at once, and the region may be had from.
    #[inline(always)]
    pub fn serves_at_once(&self, stream: Stream) -> bool {
        self.served == stream || (self.any_stream && !self.is_closed)
    }

    /// Whether there may be more in the region on that stream.
    pub fn serves(&self, stream: Stream) -> bool {
        !self.is_closed && self.is_of(stream)
    }

    /// Nothing more is put into the region.
    pub fn close(&mut self) {
        self.is_closed = true;
        self.served = Stream::GONE;
    }

    /// A block in the region, if that makes no peak.
    #[inline(always)]
    pub fn push_at_once(&mut self, bytes: u64) -> Option<u64> {
        let (address, taken) = self.stack.push_below_marks(bytes)?;
        self.allocations += 1;
        self.total_requested += bytes;
        self.total_allocated += taken;
        Some(address)
    }

    /// A block in the region at a multiple of `align`, for use on that stream; none where there is no room for
    /// it, or for its record.
    pub fn push(&mut self, bytes: u64, align: Align, stream: Stream) -> Option<u64> {
        if !self.serves(stream) {
            return None;
        }
        let used = self.stack.used();
        let address = self.stack.push(bytes, align)?;
        self.count(bytes, self.stack.used() - used);
        Some(address)
    }

    /// A block of `bytes` was given out, which takes `taken`.
    fn count(&mut self, bytes: u64, taken: u64) {
        let now = self.now();
        let need = self.stack.need() + self.spilled_sums.need;
        self.largest_need = self.largest_need.max(need);
        self.peaks.requested = self.peaks.requested.max(now.requested);
        self.peaks.allocated = self.peaks.allocated.max(now.allocated);
        self.peaks.blocks = self.peaks.blocks.max(now.blocks);
        self.allocations += 1;
        self.total_requested += bytes;
        self.total_allocated += taken;
        self.set_marks();
    }

    fn now(&self) -> Peaks {
        Peaks {
            requested: self.stack.requested() + self.spilled_sums.requested,
            allocated: self.stack.used() + self.spilled_sums.allocated,
            blocks: self.live(),
        }
    }

    /// Whenever a peak, the sums of what is spilled, or paddings changed, but for those that go.
    fn set_marks(&mut self) {
        let (peaks, spilled) = (&self.peaks, &self.spilled_sums);
        let slack = self.stack.need() - self.stack.used();
        let need = self.largest_need.saturating_sub(spilled.need + slack);
        let marks = Marks {
            used: need.min(peaks.allocated.saturating_sub(spilled.allocated)),
            requested: peaks.requested.saturating_sub(spilled.requested),
            blocks: peaks.blocks.saturating_sub(self.spills.now) as usize,
        };
        self.stack.set_marks(marks);
    }

    /// What was had from upstream for a block is in its hands.
    pub fn spill(&mut self, address: u64, spill: Spill) {
        self.restore_spill(address, spill);
        raise(&mut self.spills, 1);
        self.note_reserved(spill.bytes);
        self.count(spill.requested, spill.bytes);
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
            self.set_marks();
        }
    }

    /// Upstream did not take it.
    pub fn take_spill_back(&mut self, address: u64, spill: Spill) {
        self.restore_spill(address, spill);
        self.spills.now += 1;
        self.set_marks();
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
        self.served = match region.stream.is_per_thread() {
            true => Stream::GONE,
            false => region.stream,
        };
        self.is_closed = false;
        self.region = Some(region);
        self.set_marks();
    }

    /// The region, in which nothing lies, no longer serves.
    pub fn lift(&mut self) -> Option<Region> {
        self.stack = Stack::default();
        self.close();
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
            self.close();
        }
    }

    /// The region and what is spilled are no more.
    pub fn lose_all(&mut self) {
        let spilled = std::mem::take(&mut self.spilled);
        let region = self.lift();
        let lengths = spilled.values().map(|spill| spill.bytes);
        let lost = lengths.chain(region.map(|region| region.bytes));
        lost.for_each(|bytes| self.note_returned(bytes));
        self.spilled_sums = Spilled::default();
        self.spills.now = 0;
        self.set_marks();
    }

    /// How many blocks are given out.
    pub fn live(&self) -> u64 {
        self.stack.len() as u64 + self.spills.now
    }

    pub fn stats(&self) -> ArenaStats {
        let reading = |now, peak, added| Reading { now, peak, added };
        let (now, peaks) = (self.now(), &self.peaks);
        ArenaStats {
            requested: reading(now.requested, peaks.requested, self.total_requested),
            allocated: reading(now.allocated, peaks.allocated, self.total_allocated),
            reserved: self.reserved,
            blocks: reading(now.blocks, peaks.blocks, self.allocations),
            spilled: self.spills,
            spilled_bytes: self.spilled_sums.allocated,
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
            && stats.allocated.now <= stats.reserved.now
            && stats.requested.now <= stats.requested.peak
            && stats.allocated.now <= stats.allocated.peak
            && stats.blocks.now <= stats.blocks.peak
            && self.stack.need() + self.spilled_sums.need <= self.largest_need;
        match is_right {
            true => Ok(()),
            false => Err(format!("{stats:?} with {:?}", self.spilled)),
        }
    }
}
