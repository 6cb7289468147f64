//! Memory freed in one stream's order becomes everybody's once that stream has come so far, and then
//! may serve others or go back to the device.

use super::arena::Arena;
use super::counters::add;
use super::device::{DevicePool, Wanted};
use super::growth::Relief;
use super::heap::Heap;
use super::pending::Effort;
use crate::config::value::Location;
use crate::core::space::{Color, Epoch, Space};
use crate::core::sync::lock;
use crate::error::{Error, Result, Status, Warning};
use crate::gpu::Fence;
use std::sync::Arc;

/// What is known of how far a heap's stream has come.
#[derive(Default)]
pub struct Progress {
    /// Asked for, and not seen done yet.
    asked: Option<(Epoch, Fence)>,
    /// Work given until then was seen done.
    done_until: Epoch,
}

impl Progress {
    /// The epoch until which work was seen done.
    pub(super) fn done_until(&self) -> Epoch {
        self.done_until
    }

    /// The epoch until which the work is newly seen done, without waiting. Asks anew where
    /// nothing is under way.
    pub(super) fn look(
        &mut self,
        pool: &DevicePool,
        behind: impl FnOnce() -> Result<Fence>,
    ) -> Result<Option<Epoch>> {
        let mut seen = None;
        if let Some((epoch, fence)) = self.asked.take() {
            if !fence.is_done()? {
                self.asked = Some((epoch, fence));
                return Ok(None);
            }
            seen = Some(epoch);
        }
        let epoch = pool.next_epoch();
        let fence = behind()?;
        match fence.is_done()? {
            true => seen = Some(epoch),
            false => self.asked = Some((epoch, fence)),
        }
        self.done_until = seen.unwrap_or(self.done_until);
        Ok(seen)
    }

    /// All work given until `epoch` was waited for.
    fn reached(&mut self, epoch: Epoch) {
        self.asked = None;
        self.done_until = self.done_until.max(epoch);
    }
}

impl Heap {
    /// The epoch until which its stream's work was last seen done.
    pub(super) fn done_until(&self) -> Epoch {
        lock(&self.progress).done_until
    }

    /// [`Progress::look`] at the heap's own work.
    fn look(&self) -> Result<Option<Epoch>> {
        let device = self.pool.device();
        let mut progress = lock(&self.progress);
        progress.look(&self.pool, || match self.is_nameable() {
            // What it has free was waited for.
            _ if self.key.order.is_everywhere() => Ok(Fence::DONE),
            true => {
                device.none_captures(&[self.key.stream])?;
                Fence::behind_streams(device, &[self.key.stream])
            }
            false => Fence::order_point(device),
        })
    }

    /// Asks how far its stream has come.
    pub(super) fn look_at_progress(&self) {
        let device = self.pool.device();
        let looked = device.outside_captures(|| {
            let _guard = device.enter()?;
            self.look()
        });
        self.pool.or_later(looked.map(|_| ()));
    }

    /// Takes what it is done with for everybody.
    pub(super) fn settle(self: &Arc<Heap>) {
        self.pool.settle(std::iter::once(self));
    }

    /// Whether there may be whole chunks in what it has freed and still has to itself.
    fn has_chunks(&self) -> bool {
        (self.arenas().iter()).any(|(arena, color)| {
            let grain = arena.ground.granularity.get();
            arena.is_open() && lock(&arena.space).largest(*color) >= grain
        })
    }

    pub(super) fn settle_until(&self, epoch: Epoch) {
        for (arena, color) in self.arenas() {
            // A replay may write there again until the graph is gone.
            if arena.is_open_at(epoch) && lock(&arena.space).settle(color, epoch) > 0 {
                add(&self.pool.counters.owner_changes, 1);
            }
        }
    }
}

impl DevicePool {
    /// Takes what other streams are done with for everybody, in the arena of a request. Nothing while
    /// a capture is open. Returns how many streams had something.
    pub(super) fn settle_others(&self, wanted: &Wanted) -> u64 {
        let (arena, own) = wanted.heap.arena(wanted.bytes);
        let colors = lock(&arena.space).colors();
        let others: Vec<u16> = colors
            .iter()
            .filter(|(color, _)| *color != own && *color != Color::NEUTRAL)
            .filter_map(|(color, _)| arena.heap_of(*color))
            .collect();
        if others.is_empty() {
            return 0;
        }
        let heaps = self.heap_list();
        let chosen: Vec<_> = heaps
            .iter()
            .filter(|heap| others.contains(&heap.id))
            .collect();
        self.settle(chosen.into_iter())
    }

    /// Takes what other heaps keep and are done with for everybody, wherever it is, so that its chunks
    /// can serve a request; what is of another place cannot. Nothing while a capture is open.
    pub(super) fn settle_elsewhere(&self, wanted: &Wanted) {
        let (arena, _) = wanted.heap.arena(wanted.bytes);
        let heaps = self.heaps_at(Some(arena.ground.location));
        let others = heaps.iter().filter(|heap| !Arc::ptr_eq(heap, wanted.heap));
        let grain = arena.ground.granularity.get();
        for heap in others.clone().filter(|heap| heap.kept_bytes() >= grain) {
            heap.flush(false);
        }
        let waits = |heap: &&Arc<Heap>| {
            heap.key.order.is_everywhere() && lock(&heap.pending).bytes() >= grain
        };
        for heap in others.clone().filter(waits) {
            self.or_later(heap.settle_pending(Effort::Record));
        }
        self.settle(others.filter(|heap| heap.has_chunks()));
    }

    /// Looks how far the work of graphs has come that are gone, whose memory a capture could not ask
    /// for.
    pub fn settle_released(&self) {
        let heaps = self.heap_list();
        let of_graphs = |heap: &&Arc<Heap>| heap.key.graph.is_some() && heap.is_retired();
        self.settle(
            heaps
                .iter()
                .filter(of_graphs)
                .filter(|heap| heap.has_chunks()),
        );
    }

    fn settle<'a>(&self, heaps: impl Iterator<Item = &'a Arc<Heap>>) -> u64 {
        let device = self.device();
        let settled = device.outside_captures(|| {
            let _guard = device.enter()?;
            let mut settled = 0;
            for heap in heaps {
                // One that cannot be asked does not keep the others from it.
                if let Some(epoch) = self.or_later(heap.look()) {
                    heap.settle_until(epoch);
                    settled += 1;
                }
            }
            Ok(settled)
        });
        self.or_later(settled)
    }

    /// What came of looking for memory that may go: where it failed nothing is lost, since it is
    /// looked for again. A capture is no failure.
    pub(super) fn or_later<T: Default>(&self, outcome: Result<T>) -> T {
        outcome.unwrap_or_else(|error| {
            if error.status() != Status::Capturing {
                self.device().warnings().warn(Warning::GiveBack, || {
                    format!("freed memory could not be looked at, it will be tried again: {error}")
                });
            }
            T::default()
        })
    }

    /// Waits until all work given to the device is done; everything free is then everybody's.
    pub(super) fn settle_all(&self) -> Result<()> {
        let heaps = self.heap_list();
        for heap in &heaps {
            heap.settle_pending(Effort::Wait)?;
        }
        let epoch = self.next_epoch();
        Fence::order_point(self.device())?.wait()?;
        add(&self.counters.waits, 1);
        lock(&self.all_work).reached(epoch);
        for heap in &heaps {
            lock(&heap.progress).reached(epoch);
            heap.settle_until(epoch);
        }
        Ok(())
    }

    /// Makes room on the device, or where else memory has run out; whether there is a point in trying
    /// again.
    pub(super) fn relieve(&self, relief: Relief, location: Location) -> bool {
        if relief == Relief::Thrift {
            return true;
        }
        let heaps = self.heaps_at(Some(location));
        for heap in &heaps {
            heap.flush(false);
        }
        match relief {
            Relief::Thrift => {}
            Relief::WhatIsDone => {
                add(&self.counters.retries, 1);
                for heap in &heaps {
                    self.or_later(heap.settle_pending(Effort::Record));
                }
                self.settle(heaps.iter());
            }
            Relief::Everything => {
                let settled = self.settle_all().map(|()| true);
                if !self.or_later(settled) {
                    return false;
                }
                self.state.deferral.wait();
            }
        }
        let given_back = self.or_later(self.give_back(u64::MAX, Some(location)));
        given_back > 0 || relief == Relief::Everything
    }

    /// Gives free chunks that no work uses back, at one place where one is named, up to about `bytes`;
    /// the bytes given back. Whoever calls holds the growth lock.
    pub(super) fn give_back(&self, bytes: u64, location: Option<Location>) -> Result<u64> {
        let arenas = self.arenas_at(location);
        let (mut given_back, mut outcome) = (0, Ok(()));
        for arena in arenas.iter().filter(|arena| arena.is_open()) {
            if given_back >= bytes {
                break;
            }
            let (gone, error) = self.give_back_from(arena, bytes - given_back);
            given_back += gone;
            outcome = error.map_or(outcome, Err);
        }
        match outcome {
            Err(error) if given_back == 0 => Err(error),
            outcome => {
                self.or_later(outcome);
                Ok(given_back)
            }
        }
    }

    /// [`DevicePool::give_back`] of one arena; the bytes given back, and what went wrong.
    pub(super) fn give_back_from(&self, arena: &Arena, bytes: u64) -> (u64, Option<Error>) {
        let free = self.movable_places(arena);
        let mut taken = Vec::new();
        let mut planned = 0;
        for place in free.iter().filter(|place| place.color == Color::NEUTRAL) {
            if planned >= bytes {
                break;
            }
            if self.take_place(arena, place.address, place.color, place.epoch) {
                taken.push((place.address, place.bytes));
                planned += place.bytes;
            }
        }
        if taken.is_empty() {
            return (0, None);
        }
        let gone = self.backing.give_back(&self.state, &taken);
        let mut space = lock(&arena.space);
        for (address, _) in &taken {
            if gone.kept.contains(address) {
                space.give_back_place(*address);
                continue;
            }
            space.place_gone(*address);
            if !self.backing.is_placed() {
                space.remove_range(*address);
            }
        }
        if !self.backing.is_movable(arena.ground.location) {
            self.release_addresses_of(&mut space);
        }
        (gone.bytes, gone.error)
    }

    /// Gives cached memory back until the pool holds no more than `keep` bytes, at one place where one is
    /// named, or nothing more is free; waits for work on freed blocks. Nothing while a capture is open.
    pub fn trim(&self, keep: u64, location: Option<Location>) -> Result<u64> {
        let _turn = lock(&self.growth);
        for heap in self.heaps_at(location) {
            heap.flush(false);
        }
        match self.settle_all() {
            Err(error) if error.status() == Status::Capturing => return Ok(0),
            other => other?,
        }
        self.state.deferral.wait();
        let held = self.reserved_at(location);
        let given_back = match held.checked_sub(keep) {
            None | Some(0) => 0,
            Some(surplus) => self.give_back(surplus, location)?,
        };
        self.release_addresses();
        Ok(given_back)
    }

    /// Gives up ranges of addresses that nothing backs.
    fn release_addresses(&self) {
        for arena in lock(&self.arenas).iter() {
            self.release_addresses_of(&mut lock(&arena.space));
        }
    }

    pub(super) fn release_addresses_of(&self, space: &mut Space) {
        for (address, bytes) in space.take_empty_ranges() {
            // What cannot be freed now serves on, or is freed by a later call.
            let released = self.state.extents.release(address).map(|()| true);
            if !self.or_later(released) {
                space.add_range(address, bytes);
            }
        }
    }

    /// A graph is gone: what its replays wrote to may leave its arenas.
    pub(super) fn release_graph(&self, graph: super::heap::GraphId) {
        let epoch = self.next_epoch();
        for arena in lock(&self.arenas).iter() {
            if arena.graph() == Some(graph) {
                arena.release(epoch);
            }
        }
    }
}
