//! Heaps that nobody asks any more for: of streams that were forgotten, of threads that have ended, of graphs
//! that are gone. What they leave serves new heaps, so that a program may go through any number of
//! streams, threads and graphs at the same cost.

use super::arena::{Arena, Ground};
use super::device::DevicePool;
use super::heap::{GraphId, Heap, HeapKey, Seat};
use super::pending::Effort;
use super::pools::Pools;
use super::settle::Progress;
use crate::config::value::Location;
use crate::core::space::Color;
use crate::core::sync::{lock, try_lock};
use crate::gpu::Fence;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, MutexGuard, PoisonError};

/// So many of them at most are looked at for a new heap, ...
const MOST_LOOKS: usize = 16;
/// ... so many that threads are at work on, so many seats, and so many arenas that are left.
const LOOKS: usize = 3;

/// So many arenas of graphs that are gone may keep memory; of more, some is given back.
const LEFT: usize = 32;

/// Who may have a seat: heaps of the same tag and place, and of no graph that has arenas of its own.
type Class = (u16, Location, Option<GraphId>);

fn class_of(key: &HeapKey, location: Location) -> Class {
    (key.tag, location, key.graph)
}

/// Whether a graph has the arenas for itself.
fn is_closed(graph: Option<GraphId>) -> bool {
    matches!(graph, Some(GraphId::Pool(_) | GraphId::Untold(_)))
}

/// What is retired on a device.
#[derive(Default)]
pub(super) struct Retired {
    /// Heaps whose blocks are all back, or may be.
    waiting: VecDeque<Arc<Heap>>,
    /// Seats to be had.
    seats: FxHashMap<Class, Vec<Seat>>,
    /// Arenas that no heap has any more. There is nothing in them but free memory.
    left: VecDeque<Arc<Arena>>,
}

/// What a pool keeps books on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Heaps, those retired and the seats of those that are no more among them.
    pub heaps: usize,
    /// The part of them that is retired, and has blocks or work yet.
    pub retired: usize,
    /// Arenas.
    pub arenas: usize,
    /// Ranges of addresses.
    pub ranges: usize,
    /// Counters of threads on heaps.
    pub counters: usize,
}

impl DevicePool {
    /// What there are books on.
    pub fn footprint(&self) -> Footprint {
        let arenas = lock(&self.arenas).clone();
        let heaps = self.heap_list();
        let seats: usize = lock(&self.retired).seats.values().map(Vec::len).sum();
        Footprint {
            heaps: heaps.len() + seats,
            retired: heaps.iter().filter(|heap| heap.is_retired()).count(),
            arenas: arenas.len(),
            ranges: (arenas.iter())
                .map(|arena| lock(&arena.space).range_count())
                .sum(),
            counters: self.tally.len(),
        }
    }

    /// A seat for `key`, if there is one to be had: of a few the one with most memory, which would have
    /// to be moved to another.
    pub(super) fn take_seat(&self, key: &HeapKey, ground: &Ground) -> Option<Seat> {
        let class = class_of(key, ground.location);
        let mut retired = lock(&self.retired);
        let Entry::Occupied(mut seats) = retired.seats.entry(class) else {
            return None;
        };
        let list = seats.get_mut();
        let free = |seat: &Seat| lock(&seat.small.space).largest(Color::NEUTRAL);
        let last = list.len().saturating_sub(LOOKS)..list.len();
        let best = last.max_by_key(|at| free(&list[*at]))?;
        let seat = list.swap_remove(best);
        if list.is_empty() {
            seats.remove();
        }
        Some(seat)
    }

    fn seats_for(&self, key: &HeapKey, ground: &Ground) -> usize {
        let class = class_of(key, ground.location);
        lock(&self.retired).seats.get(&class).map_or(0, Vec::len)
    }

    /// Makes what a retired heap has freed everybody's, as far as all work is seen done. Never waits, and
    /// asks nothing while a capture is open. Whoever calls holds the growth lock.
    fn settle_retired(&self, heap: &Heap) {
        // One order point is for all that were retired before it.
        let mut all_work = lock(&self.all_work);
        heap.settle_until(all_work.done_until());
        if heap.is_everybodys() {
            return;
        }
        let device = self.device();
        let looked = device.outside_captures(|| {
            let _guard = device.enter()?;
            all_work.look(self, || Fence::order_point(device))
        });
        if let Some(epoch) = self.or_later(looked) {
            heap.settle_until(epoch);
        }
    }

    /// A heap is no more: its seat is for others. Of a graph's the number is all that can serve
    /// again.
    fn leave(&self, heap: &Heap) -> Option<u16> {
        let seat = heap.seat.clone();
        if is_closed(heap.key.graph) {
            return Some(self.dissolve(seat));
        }
        let class = class_of(&heap.key, heap.location());
        let mut retired = lock(&self.retired);
        retired.seats.entry(class).or_default().push(seat);
        None
    }

    /// Leaves a seat's arenas behind; its number. Whoever calls holds the growth lock, so that nobody
    /// has a free place of the colour in mind.
    fn dissolve(&self, seat: Seat) -> u16 {
        let is_last = seat.large.drop_color(seat.large_color);
        let left = &mut lock(&self.retired).left;
        left.push_back(seat.small);
        // The large arena of a tag without graphs serves whoever comes next.
        if is_last && is_closed(seat.large.graph()) {
            left.push_back(seat.large);
        }
        seat.id
    }

    /// Gives up all seats to be had; their numbers.
    fn dissolve_seats(&self) -> Vec<u16> {
        let Some(_turn) = self.try_turn() else {
            return Vec::new();
        };
        let seats = std::mem::take(&mut lock(&self.retired).seats);
        let seats = seats.into_values().flatten();
        seats.map(|seat| self.dissolve(seat)).collect()
    }

    /// Drops a few of the arenas that are left, if nothing is in them. Where there are many, what is in them
    /// goes back to the device. Whoever calls holds the growth lock.
    fn tidy(&self) {
        let left = lock(&self.retired).left.len();
        // No fewer than a look at retired heaps leaves, where there are many.
        let beyond = left.saturating_sub(LEFT).min(2 * MOST_LOOKS);
        let looks = left.min(LOOKS.max(beyond));
        if looks > 0 {
            // Addresses from which memory has moved away are mapped until then.
            self.state.deferral.drain();
        }
        for _ in 0..looks {
            let (arena, is_many) = {
                let mut retired = lock(&self.retired);
                let Some(arena) = retired.left.pop_front() else {
                    return;
                };
                (arena, retired.left.len() >= LEFT)
            };
            if is_many && self.backing.is_placed() {
                let (_, error) = self.give_back_from(&arena, u64::MAX);
                self.or_later(error.map_or(Ok(()), Err));
            }
            self.release_addresses_of(&mut lock(&arena.space));
            let is_void = lock(&arena.space).is_void();
            match is_void {
                true => lock(&self.arenas).retain(|other| !Arc::ptr_eq(other, &arena)),
                false => lock(&self.retired).left.push_back(arena),
            }
        }
    }

    fn try_turn(&self) -> Option<MutexGuard<'_, super::pace::Pace>> {
        try_lock(&self.growth)
    }
}

/// Where in the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    First,
    Last,
}

/// What came of looking at a retired heap.
enum Look {
    /// It is no more.
    Ended,
    /// It has live blocks, or its graph lives. Whoever ends that queues it again.
    HasBlocks,
    /// The device has work to do first.
    Waits,
    /// A thread is at work on it, or its blocks wait.
    Busy,
}

impl Heap {
    /// Whether it has no free memory to itself.
    fn is_everybodys(&self) -> bool {
        let is_free_of =
            |(arena, color): &(&Arc<Arena>, Color)| lock(&arena.space).largest(*color) == 0;
        self.arenas().iter().all(is_free_of)
    }

    /// Whether no graph has its arenas for itself.
    fn is_open(&self) -> bool {
        self.arenas().iter().all(|(arena, _)| arena.is_open())
    }

    /// Queues a retired heap to be looked at.
    pub(super) fn queue(self: &Arc<Heap>, place: Place) {
        if self.is_queued.swap(true, Ordering::SeqCst) {
            return;
        }
        let waiting = &mut lock(&self.pool.retired).waiting;
        match place {
            Place::First => waiting.push_front(self.clone()),
            Place::Last => waiting.push_back(self.clone()),
        }
    }

    /// A block of a retired heap was counted as given back.
    pub(super) fn note_return(self: &Arc<Heap>) {
        if !self.has_blocks() {
            self.queue(Place::Last);
        }
    }
}

impl Pools {
    /// A seat for `key`: one that a retired heap has left, else a new one. The caller has the numbers
    /// for itself.
    pub(super) fn seat(
        &self,
        ids: &mut Ids,
        pool: &Arc<DevicePool>,
        key: &HeapKey,
        ground: Ground,
    ) -> Option<Seat> {
        if let Some(seat) = pool.take_seat(key, &ground) {
            return Some(seat);
        }
        let id = ids.take().or_else(|| {
            // What other tags' heaps have left serves too, if not its memory.
            ids.spare.extend(pool.dissolve_seats());
            ids.take()
        })?;
        Some(pool.new_seat(id, key, ground))
    }

    /// Looks at retired heaps of a device, unless somebody changes what backs addresses just now.
    pub(super) fn try_to_look_at_retired(&self, pool: &DevicePool) {
        if let Some(_turn) = pool.try_turn() {
            self.look_at_retired(pool);
        }
    }

    /// Looks at retired heaps of a device for the sake of a new one. Where no seat is to be had it would
    /// need memory next, so it may as well wait for its turn: who did not would add to those who wait. Where
    /// there are fewer seats than heaps that wait for one order point, that is asked for already: if the
    /// device were late when the last seat is taken, each such time would add a heap.
    pub(super) fn look_at_retired_for(&self, pool: &DevicePool, key: &HeapKey, ground: &Ground) {
        let (waiting, left) = {
            let retired = lock(&pool.retired);
            (retired.waiting.len(), retired.left.len())
        };
        match pool.seats_for(key, ground) {
            0 if waiting > 0 || left > LEFT => {
                let _turn = lock(&pool.growth);
                if pool.seats_for(key, ground) == 0 {
                    self.look_at_retired(pool);
                }
            }
            seats if waiting > seats => self.try_to_look_at_retired(pool),
            _ => {}
        }
    }

    /// Looks at those that are done with and at few others. Whoever calls holds the growth lock.
    fn look_at_retired(&self, pool: &DevicePool) {
        let mut busy = 0;
        for _ in 0..MOST_LOOKS {
            let next = lock(&pool.retired).waiting.pop_front();
            let Some(heap) = next else {
                break;
            };
            match self.look_at_one(&heap) {
                Look::Ended | Look::HasBlocks => {}
                // Those behind it were retired later.
                Look::Waits => {
                    heap.queue(Place::First);
                    break;
                }
                Look::Busy => {
                    heap.queue(Place::Last);
                    busy += 1;
                    if busy == LOOKS {
                        break;
                    }
                }
            }
        }
        // Giving back asks the driver for much.
        let device = pool.device();
        let tidied = device.outside_captures(|| {
            pool.tidy();
            Ok(())
        });
        pool.or_later(tidied);
    }

    fn look_at_one(&self, heap: &Arc<Heap>) -> Look {
        heap.is_queued.swap(false, Ordering::SeqCst);
        // Before what is looked at next: who gives the last block back, or releases the graph, queues it
        // again from here on.
        fence(Ordering::SeqCst);
        if !self.is_current(heap) {
            // Queued by who gave a block back and was slower than who saw that it was the last.
            return Look::Ended;
        }
        if heap.has_blocks() || !heap.is_open() {
            return Look::HasBlocks;
        }
        heap.pool.or_later(heap.settle_pending(Effort::Record));
        if !heap.is_done_with() {
            return Look::Busy;
        }
        heap.flush_exchange();
        heap.pool.settle_retired(heap);
        match (heap.is_everybodys(), self.end(heap)) {
            (_, true) => Look::Ended,
            (false, false) => Look::Waits,
            (true, false) => Look::Busy,
        }
    }

    /// Makes a retired heap one that is no more, if still nothing of it is left.
    fn end(&self, heap: &Arc<Heap>) -> bool {
        let mut heaps = lock(&self.heaps);
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        // From here on it has no guests, nor gets blocks by any.
        if !heap.is_done_with() || !heap.is_everybodys() || !heap.exchange.is_empty() {
            return false;
        }
        if let Entry::Occupied(of_key) = heaps.entry(heap.key) {
            if Arc::ptr_eq(of_key.get(), heap) {
                of_key.remove();
            }
        }
        ids.set(heap.id, None);
        // Threads that have a cache of it keep the heap for a while, but nothing of the driver's.
        *lock(&heap.progress) = Progress::default();
        heap.pool.fold(heap);
        ids.spare.extend(heap.pool.leave(heap));
        true
    }
}

/// The heaps by their numbers.
#[derive(Default)]
pub(super) struct Ids {
    heaps: Vec<Option<Arc<Heap>>>,
    /// Numbers that may serve again.
    spare: Vec<u16>,
}

impl Ids {
    /// The heap of a number.
    pub fn get(&self, id: u16) -> Option<&Arc<Heap>> {
        self.heaps.get(usize::from(id))?.as_ref()
    }

    /// Whose a number is from here on.
    pub fn set(&mut self, id: u16, heap: Option<Arc<Heap>>) {
        if let Some(place) = self.heaps.get_mut(usize::from(id)) {
            *place = heap;
        }
    }

    /// All heaps.
    pub fn heaps(&self) -> Vec<Arc<Heap>> {
        self.heaps.iter().flatten().cloned().collect()
    }

    /// A number that no heap has.
    fn take(&mut self) -> Option<u16> {
        if let Some(id) = self.spare.pop() {
            return Some(id);
        }
        let id = u16::try_from(self.heaps.len()).ok();
        // One colour more than heaps is needed where they share an arena.
        let id = id.filter(|id| *id < Color::END - 1)?;
        self.heaps.push(None);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_and_serve_again() {
        let mut ids = Ids::default();
        let taken: Vec<u16> = std::iter::from_fn(|| ids.take()).collect();
        assert!(taken.iter().copied().eq(0..Color::END - 1));
        ids.spare.extend([7, 9]);
        assert_eq!(
            (ids.take(), ids.take(), ids.take()),
            (Some(9), Some(7), None)
        );
        assert!(ids.get(7).is_none() && ids.get(u16::MAX).is_none() && ids.heaps().is_empty());
    }
}
