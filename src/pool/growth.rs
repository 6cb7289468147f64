//! What a request does that no free memory fits: it looks further and further, each step dearer than
//! the one before. Free memory of other streams whose work is done is taken at its address; then
//! addresses are put together and chunks moved behind them, or made; when the device has no more,
//! everything that waits is waited for and everything cached is given back.

use super::arena::{Arena, Ground};
use super::counters::add;
use super::device::{DevicePool, Wanted};
use super::pace::{Account, Pace};
use super::policy::{self, Candidate, Stretch};
use crate::config::value::Location;
use crate::core::space::{Color, Epoch, Given, Space, Window};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::deferral::Behind;
use crate::extent::range::RangeSpec;
use crate::gpu::Uses;
use crate::sys::linux;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

impl DevicePool {
    /// Memory for what [`DevicePool::take_free`] has none for.
    pub(super) fn grow(self: &Arc<DevicePool>, wanted: &Wanted) -> Result<Given> {
        let location = wanted.heap.location();
        self.check_possible(wanted.bytes, location)?;
        let mut turn = lock(&self.growth);
        self.state.deferral.drain();
        // Somebody else may have grown meanwhile.
        if let Some(given) = self.take_free(wanted) {
            return Ok(given);
        }
        if self.gather(wanted) > 0 {
            if let Some(given) = self.take_free(wanted) {
                return Ok(given);
            }
        }
        add(&self.counters.growths, 1);
        let room = match location {
            Location::Device => self.state.limit.room(),
            // Memory of the host takes nothing of the limit.
            Location::HostNuma(_) => u64::MAX,
        };
        let mut outcome = self.extend(wanted, &mut turn, room);
        for relief in [Relief::Thrift, Relief::WhatIsDone, Relief::Everything] {
            match &outcome {
                Err(error) if error.status() == Status::OutOfMemory => {}
                _ => break,
            }
            if self.relieve(relief, location) {
                outcome = match self.take_free(wanted) {
                    Some(given) => Ok(given),
                    None => self.extend(wanted, &mut turn, 0),
                };
            }
        }
        outcome
    }

    /// What the whole device or host could not hold is not tried at all: that would take every chunk
    /// it has before it failed.
    fn check_possible(&self, bytes: u64, location: Location) -> Result<()> {
        let (total, whose) = match location {
            Location::Device => (self.device().total_memory(), "device"),
            Location::HostNuma(_) => (linux::total_memory(), "host"),
        };
        if !self.backing.is_placed() || bytes <= total {
            return Ok(());
        }
        Err(Error::new(Status::OutOfMemory, "allocate")
            .bytes(bytes)
            .detail(format!("{total} bytes is all that the {whose} has")))
    }

    /// Collects what other threads keep of the arena and what other streams are done with; the bytes
    /// or pieces collected.
    fn gather(&self, wanted: &Wanted) -> u64 {
        let (arena, _) = wanted.heap.arena(wanted.bytes);
        let mut gathered = 0;
        for heap in self.heap_list() {
            let shares = heap
                .arenas()
                .iter()
                .any(|(other, _)| Arc::ptr_eq(other, arena));
            if shares && (heap.threads() > 1 || !Arc::ptr_eq(&heap, wanted.heap)) {
                gathered += heap.flush(false);
                gathered += self.or_later(heap.settle_pending(heap.effort())) as u64;
            }
        }
        gathered + self.settle_others(wanted)
    }

    /// Puts a block's addresses together and backs them. Beyond `credit` bytes nothing is made that can
    /// be done without.
    fn extend(
        self: &Arc<DevicePool>,
        wanted: &Wanted,
        pace: &mut Pace,
        credit: u64,
    ) -> Result<Given> {
        if !self.backing.is_movable(wanted.heap.location()) {
            return self.add_segment(wanted);
        }
        let (arena, color) = wanted.heap.arena(wanted.bytes);
        let mut window = self.plan(wanted)?;
        if window.missing.is_empty() {
            let space = lock(&arena.space);
            return Ok(self.complete(space, window, Vec::new(), color));
        }
        let arenas = lock(&self.arenas).clone();
        let Ground { location, .. } = arena.ground;
        let sums = self.at(location);
        let most = sums.peak_allocated.max(sums.allocated + wanted.bytes);
        let held = self.state.extents.pooled_at(location);
        // Before the first chunk there is nothing that could be done with.
        if held > 0 {
            wanted.heap.look_at_progress();
        }
        let is_tight = self.is_tight();
        let lean = policy::Lean::of(is_tight);
        let room = |pace| (lean.may_hold(most, pace).saturating_sub(held)).min(credit);
        let mut candidates = Vec::new();
        if window.missing_bytes() > room(*pace) {
            wanted.give_up_kept();
            self.settle_elsewhere(wanted);
            candidates = self.candidates(&arenas, wanted);
            match is_tight {
                true => *pace = Pace::default(),
                false => pace.look(&self.account(wanted.bytes)),
            }
        }
        let credit = room(*pace);
        let purpose = policy::Use {
            bytes: wanted.bytes,
            most,
            live: sums.allocated,
            total: sums.total_allocated,
            is_tagged: arena.tag != 0,
        };
        let grain = arena.ground.granularity;
        let mut lengths = lean.lengths(purpose, grain, *pace);
        lengths.chunk = self.state.device.fit_chunk(lengths.chunk, grain);
        let (stretches, extra) =
            policy::assemble(&window.missing, window.room, candidates, lengths, credit);
        lock(&arena.space).extend(&mut window, extra);
        tracing::debug!(
            "{} bytes: {} of {} missing are moved there, {} made, in chunks of up to {}",
            wanted.bytes,
            stretches
                .iter()
                .map(|s| s.bytes() - s.new_bytes())
                .sum::<u64>(),
            window.missing_bytes(),
            stretches.iter().map(Stretch::new_bytes).sum::<u64>(),
            lengths.chunk,
        );
        self.back(wanted, &arenas, window, stretches)
    }

    /// What misses have cost so far, wherever the memory is, at one of `bytes`.
    fn account(&self, bytes: u64) -> Account {
        let (counters, sums) = (&self.counters, self.total());
        Account {
            creates: counters.creates.load(Relaxed),
            moves: counters.stitches.load(Relaxed),
            releases: counters.releases.load(Relaxed),
            blocks: sums.taken,
            most: sums.peak_allocated.max(sums.allocated + bytes),
        }
    }

    /// Sets addresses aside for a block, in a new range where none are left.
    fn plan(&self, wanted: &Wanted) -> Result<Window> {
        let (arena, color) = wanted.heap.arena(wanted.bytes);
        let planned = lock(&arena.space).plan(wanted.bytes, wanted.align, color);
        if let Some(window) = planned {
            return Ok(window);
        }
        let granularity = arena.ground.granularity;
        let least = (wanted.bytes.checked_add(wanted.align.get()))
            .and_then(|bytes| granularity.round_up(bytes))
            .ok_or_else(|| Error::new(Status::OutOfMemory, "allocate").bytes(wanted.bytes))?;
        let bytes = least.max(self.range_bytes(arena));
        let (chunk, _) = self.state.grain(arena.ground.location)?;
        let address = self.state.extents.reserve(&RangeSpec {
            bytes,
            align: granularity.get(),
            chunk,
            tag: TagId::from_number(arena.tag),
        })?;
        let mut space = lock(&arena.space);
        space.add_range(address, bytes);
        space
            .plan(wanted.bytes, wanted.align, color)
            .ok_or_else(|| Error::new(Status::Internal, "plan addresses").bytes(wanted.bytes))
    }

    /// Addresses are plenty, but not for thousands of tags and graphs: twice the device's memory for
    /// large blocks that have neither, so that there is nearly always a hole of any length, and an
    /// eighth of that a time for others.
    fn range_bytes(&self, arena: &Arena) -> u64 {
        const SMALL_RANGE: u64 = 4 << 30;
        let most = (2 * self.device().total_memory()).next_power_of_two();
        match (arena.is_large, arena.graph().is_some() || arena.tag != 0) {
            (true, false) => most,
            (true, true) => (most / 8).max(SMALL_RANGE),
            (false, _) => SMALL_RANGE,
        }
    }

    /// Free chunks that may be moved behind a block of the heap: those of the same place whose work
    /// comes before the heap's own, and those that no work uses.
    fn candidates(&self, arenas: &[Arc<Arena>], wanted: &Wanted) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (index, arena) in arenas.iter().enumerate() {
            // A replay writes where its capture did, so nothing leaves its address.
            if !arena.is_open() || arena.ground.location != wanted.heap.location() {
                continue;
            }
            let places = self.movable_places(arena);
            let mut last = (Color::NEUTRAL, true, Epoch::MAX);
            for place in places {
                if place.color != last.0 {
                    let (before, done) = self.comes_before(arena, place.color, wanted);
                    last = (place.color, before, done);
                }
                if last.1 {
                    found.push(Candidate {
                        is_done: place.epoch <= last.2,
                        arena: index,
                        address: place.address,
                        bytes: place.bytes,
                        piece_bytes: place.piece_bytes,
                        color: place.color,
                        epoch: place.epoch,
                    });
                }
            }
        }
        found
    }

    /// Whether the work of a colour comes before that of the request's heap, and until when it is done.
    fn comes_before(&self, arena: &Arena, color: Color, wanted: &Wanted) -> (bool, Epoch) {
        if color == Color::NEUTRAL {
            return (true, Epoch::MAX);
        }
        // A replay is in nobody's order but that of its launch.
        if wanted.heap.key.graph.is_some() && arena.graph() != wanted.heap.key.graph {
            return (false, 0);
        }
        let heaps = lock(&self.heaps);
        let heap = (arena.heap_of(color)).and_then(|id| heaps.iter().find(|heap| heap.id == id));
        let Some(heap) = heap else {
            return (false, 0);
        };
        if heap.key.order.is_everywhere() {
            // What it has free was waited for.
            return (true, Epoch::MAX);
        }
        let comes_before = !heap.is_retired()
            && heap.key.stream == wanted.heap.key.stream
            && heap.key.order == wanted.heap.key.order;
        // What a graph's replays may write to is never done.
        let done = match heap.key.graph {
            None => heap.done_until(),
            Some(_) => 0,
        };
        (comes_before, done)
    }

    /// Backs a window; on failure, what could be backed is free memory and the rest as before.
    fn back(
        self: &Arc<DevicePool>,
        wanted: &Wanted,
        arenas: &[Arc<Arena>],
        window: Window,
        mut stretches: Vec<Stretch>,
    ) -> Result<Given> {
        let (arena, color) = wanted.heap.arena(wanted.bytes);
        let mut places = Vec::new();
        let mut moved = Vec::new();
        let outcome = stretches
            .iter_mut()
            .try_for_each(|stretch| self.back_stretch(arenas, stretch, &mut places, &mut moved));
        self.forget_moved(arenas, &moved);
        let space = lock(&arena.space);
        match outcome {
            Ok(()) => Ok(self.complete(space, window, places, color)),
            Err(error) => {
                let mut space = space;
                space.abandon(window, places, color, self.epoch());
                Err(error.bytes(wanted.bytes))
            }
        }
    }

    fn back_stretch(
        &self,
        arenas: &[Arc<Arena>],
        stretch: &mut Stretch,
        places: &mut Vec<(u64, u64)>,
        moved: &mut Vec<Candidate>,
    ) -> Result<()> {
        // What was free may have been given out meanwhile: then a new chunk goes there.
        let taken: Vec<(Candidate, bool)> = stretch
            .moved
            .iter()
            .map(|place| (*place, self.take(arenas, place)))
            .collect();
        let lost = taken.iter().filter(|(_, is_ours)| !is_ours);
        stretch.new.extend(lost.map(|(place, _)| place.bytes));
        stretch.moved = (taken.iter().filter(|(_, is_ours)| *is_ours))
            .map(|(place, _)| *place)
            .collect();
        self.release(arenas, &stretch.released);
        let outcome = self.fill(stretch, places);
        match outcome {
            Ok(()) => moved.append(&mut stretch.moved),
            Err(_) => {
                for place in &stretch.moved {
                    lock(&arenas[place.arena].space).give_back_place(place.address);
                }
            }
        }
        outcome
    }

    /// Gives chunks back that no work uses. One that is in use again, or cannot go now, stays.
    fn release(&self, arenas: &[Arc<Arena>], chunks: &[Candidate]) {
        for chunk in chunks {
            if !self.take(arenas, chunk) {
                continue;
            }
            let gone = (self.backing).give_back(&self.state, &[(chunk.address, chunk.bytes)]);
            let mut space = lock(&arenas[chunk.arena].space);
            match gone.kept.is_empty() {
                true => {
                    add(&self.counters.releases, 1);
                    space.place_gone(chunk.address);
                }
                false => space.give_back_place(chunk.address),
            }
        }
    }

    /// Makes the new chunks of a stretch, then moves the others there, which seldom fails.
    fn fill(&self, stretch: &Stretch, places: &mut Vec<(u64, u64)>) -> Result<()> {
        let extents = &self.state.extents;
        let moved_bytes = stretch.bytes() - stretch.new_bytes();
        let begin_new = stretch.address + moved_bytes;
        if !stretch.new.is_empty() {
            extents.back(begin_new, &stretch.new)?;
            add(&self.counters.creates, stretch.new.len() as u64);
        }
        if !stretch.moved.is_empty() {
            let from: Vec<u64> = stretch.moved.iter().map(|place| place.address).collect();
            let outcome = extents.alias(&from, stretch.address);
            if outcome.is_err() {
                push_places(places, begin_new, &stretch.new);
                return outcome;
            }
            add(&self.counters.stitches, from.len() as u64);
            add(&self.counters.stitched_bytes, moved_bytes);
            let sizes: Vec<u64> = stretch.moved.iter().map(|place| place.bytes).collect();
            push_places(places, stretch.address, &sizes);
        }
        push_places(places, begin_new, &stretch.new);
        Ok(())
    }

    /// The old addresses of moved chunks are unmapped once nothing uses them.
    fn forget_moved(self: &Arc<DevicePool>, arenas: &[Arc<Arena>], moved: &[Candidate]) {
        if moved.is_empty() {
            return;
        }
        let old: Vec<(Arc<Arena>, u64)> = moved
            .iter()
            .map(|place| (arenas[place.arena].clone(), place.address))
            .collect();
        let addresses: Vec<u64> = moved.iter().map(|place| place.address).collect();
        let state = self.state.clone();
        // No bytes: the memory itself serves elsewhere.
        let behind = Behind::Everything(Uses::everything(self.device()));
        self.state.deferral.push(behind, 0, move || {
            state.extents.drop_aliases(&addresses)?;
            for (arena, address) in &old {
                lock(&arena.space).place_gone(*address);
            }
            Ok(())
        });
    }

    fn complete(
        &self,
        mut space: std::sync::MutexGuard<'_, Space>,
        window: Window,
        places: Vec<(u64, u64)>,
        color: Color,
    ) -> Given {
        let given = space.complete(window, places, color, self.epoch());
        self.note(space, given)
    }

    /// A block in memory that cannot move.
    fn add_segment(&self, wanted: &Wanted) -> Result<Given> {
        let (arena, color) = wanted.heap.arena(wanted.bytes);
        let granularity = arena.ground.granularity;
        let slack = wanted
            .align
            .get()
            .saturating_sub(crate::source::ALIGN.get());
        let least = (wanted.bytes.checked_add(slack))
            .and_then(|bytes| granularity.round_up(bytes))
            .ok_or_else(|| Error::new(Status::OutOfMemory, "allocate").bytes(wanted.bytes))?;
        let bytes = match arena.is_large {
            true => least.max(policy::SEGMENT_BYTES),
            false => least,
        };
        self.give_back_before(wanted, bytes);
        let (stream, capturing) = (wanted.heap.key.stream, wanted.heap.key.graph.is_some());
        let segment = |bytes| match self.backing.is_placed() {
            true => self.add_chunk(arena, bytes).map(|address| (address, bytes)),
            false => (self.backing).segment(bytes, stream, arena.tag, capturing),
        };
        let (address, bytes) = segment(bytes).or_else(|error| match error.status() {
            Status::OutOfMemory if least < bytes => segment(least),
            _ => Err(error),
        })?;
        add(&self.counters.creates, 1);
        let mut space = lock(&arena.space);
        space.add_backed_range(address, bytes, color);
        let given = space
            .allocate(wanted.bytes, wanted.align, color)
            .ok_or_else(|| Error::new(Status::Internal, "divide a segment").bytes(bytes))?;
        Ok(self.note(space, given))
    }

    /// A chunk in a range of its own.
    fn add_chunk(&self, arena: &Arena, bytes: u64) -> Result<u64> {
        let (extents, ground) = (&self.state.extents, arena.ground);
        let (chunk, _) = self.state.grain(ground.location)?;
        let address = extents.reserve(&RangeSpec {
            bytes,
            align: ground.granularity.get(),
            chunk,
            tag: TagId::from_number(arena.tag),
        })?;
        extents.back(address, &[bytes]).inspect_err(|_| {
            let mut space = lock(&arena.space);
            space.add_range(address, bytes);
            self.release_addresses_of(&mut space);
        })?;
        Ok(address)
    }

    /// Where a segment of `bytes` more would be more than the pool may hold, free ones go first.
    fn give_back_before(&self, wanted: &Wanted, bytes: u64) {
        let location = wanted.heap.location();
        let (held, sums) = match self.segments() {
            Some((_, holding)) => (holding.read().now, self.total()),
            None => (self.state.extents.pooled_at(location), self.at(location)),
        };
        let most = sums.peak_allocated.max(sums.allocated + wanted.bytes);
        let may_hold = policy::Lean::of(self.is_tight()).may_hold_in_segments(most);
        let beyond = (held + bytes).saturating_sub(may_hold);
        if beyond > 0 {
            wanted.give_up_kept();
            self.settle_elsewhere(wanted);
            wanted.heap.settle();
            self.or_later(self.give_back(beyond, Some(location)));
        }
    }
}

fn push_places(places: &mut Vec<(u64, u64)>, mut address: u64, sizes: &[u64]) {
    for size in sizes {
        places.push((address, *size));
        address += size;
    }
}

/// How much is done to find memory when the device has no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relief {
    /// Free memory is put together first, and only what is missing made.
    Thrift,
    /// Free chunks that no work uses go back to the device.
    WhatIsDone,
    /// All work is waited for first.
    Everything,
}
