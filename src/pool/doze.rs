//! The pool's part in sleep and wake: memory of a tag is taken out of use, with the blocks in it where
//! they are, and comes back into use later. What is done to the chunks meanwhile is not known here.

use super::arena::Arena;
use super::cache::Emptied;
use super::device::DevicePool;
use super::heap::Heap;
use super::pools::Pools;
use super::word::Word;
use crate::config::value::Location;
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::extent::table::Residency;
use crate::gpu::Fence;
use rustc_hash::FxHashSet;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

/// A place that dozes.
#[derive(Clone, Debug)]
pub struct Dozing {
    /// Its first address.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// What of it is in blocks, by address: first address and length of each stretch.
    pub live: Vec<(u64, u64)>,
}

/// Stretches so close to each other are copied as one: what lies between costs less than another copy
/// (4 MiB copies run at 51 to 54 GB/s where long ones run at 55: some 5 us each).
const GAP: u64 = 256 << 10;

/// How long threads in the middle of a request or a free are waited for. They are there for microseconds
/// unless the system does not let them run.
const PATIENCE: Duration = Duration::from_secs(5);

impl DevicePool {
    /// The arenas whose memory can leave its address: chunks of the device, of the tags.
    fn dozers(&self, wanted: &dyn Fn(u16) -> bool) -> Vec<Arc<Arena>> {
        if !self.backing.is_placed() {
            return Vec::new();
        }
        let mut arenas = lock(&self.arenas).clone();
        arenas.retain(|arena| wanted(arena.tag) && arena.ground.location == Location::Device);
        arenas
    }

    /// Gives up dozing places in which no block is left, but for those of graphs: what they were saved to
    /// goes with them.
    fn give_up_dead(&self, arenas: &[Arc<Arena>]) {
        for arena in arenas.iter().filter(|arena| arena.is_open()) {
            // Nobody plans these addresses anew meanwhile: the caller has the turn to grow.
            let dead = lock(&arena.space).take_dead_places();
            if !dead.is_empty() {
                self.or_later(self.state.extents.unback(&dead).map(|_| ()));
            }
        }
    }
}

impl Pools {
    /// Takes the memory of the tags out of use: free memory in it is given to nobody, and blocks there stay
    /// until they are freed. Free chunks go back to the device first. `stays` says which places are to be
    /// left in use. Waits for work on freed blocks; an error while a capture is open, and then
    /// nothing has changed.
    pub fn doze(
        &self,
        pool: &Arc<DevicePool>,
        wanted: &dyn Fn(u16) -> bool,
        stays: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<Dozing>> {
        let _turn = lock(&pool.growth);
        let heaps = heaps_of(pool, wanted);
        heaps.iter().for_each(|heap| {
            heap.flush(false);
        });
        pool.settle_all()?;
        pool.state.deferral.wait();
        let arenas = pool.dozers(wanted);
        pool.give_up_dead(&arenas);
        for arena in arenas.iter().filter(|arena| arena.is_open()) {
            let (_, error) = pool.give_back_from(arena, u64::MAX);
            pool.or_later(error.map_or(Ok(()), Err));
        }
        for arena in &arenas {
            lock(&arena.space).doze(stays);
        }
        let outcome = self.mark(pool, wanted, &arenas);
        if let Err(error) = outcome {
            self.use_again(pool, &arenas, false);
            return Err(error);
        }
        Ok(arenas.iter().flat_map(|arena| dozing(arena)).collect())
    }

    /// Marks every block that dozes, and empties the threads' caches of those that are free, until no
    /// thread can come to keep one.
    fn mark(
        &self,
        pool: &Arc<DevicePool>,
        wanted: &dyn Fn(u16) -> bool,
        arenas: &[Arc<Arena>],
    ) -> Result<()> {
        let begin = Instant::now();
        loop {
            let heaps = heaps_of(pool, wanted);
            let on_the_way = shut_out(&heaps, || self.mark_blocks(arenas));
            if on_the_way == 0 {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(Error::new(Status::Busy, "sleep").detail(format!(
                    "{on_the_way} blocks were on their way to or from a thread for {} s",
                    PATIENCE.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Marks the blocks that doze; how many are on their way to or from a thread.
    fn mark_blocks(&self, arenas: &[Arc<Arena>]) -> usize {
        let blocks = |arena: &Arc<Arena>| lock(&arena.space).dozing_blocks();
        let blocks: Vec<(u64, u64)> = arenas.iter().flat_map(blocks).collect();
        let _uses = lock(&self.uses);
        // Freed blocks that wait for work of other streams come back to the arena, not to a thread.
        let mut waiting = FxHashSet::default();
        for heap in self.all_heaps() {
            waiting.extend(lock(&heap.pending).addresses());
        }
        let is_seen_to = |(address, _): &&(u64, u64)| {
            let Some(entry) = self.radix.find(*address) else {
                return true;
            };
            let word = Word(entry.state());
            match word.is_live() {
                true => word.is_asleep() || entry.change(word.0, word.asleep().0).is_ok(),
                false => waiting.contains(address),
            }
        };
        blocks.iter().filter(|block| !is_seen_to(block)).count()
    }

    /// Gives up all that dozes and holds no block any more.
    pub fn forget_dead(&self, pool: &DevicePool) {
        let _turn = lock(&pool.growth);
        pool.give_up_dead(&pool.dozers(&|_| true));
    }

    /// What dozes of the tags, at a later time.
    pub fn dozing(&self, pool: &DevicePool, wanted: &dyn Fn(u16) -> bool) -> Vec<Dozing> {
        let _turn = lock(&pool.growth);
        let arenas = pool.dozers(wanted);
        pool.give_up_dead(&arenas);
        arenas.iter().flat_map(|arena| dozing(arena)).collect()
    }

    /// Memory of the tags that has chunks is in use again. `is_settled` says that no work can have used what was
    /// freed meanwhile; else an order point is waited for, or it stays out of use until the next time.
    pub fn wake(&self, pool: &DevicePool, wanted: &dyn Fn(u16) -> bool, is_settled: bool) {
        let _turn = lock(&pool.growth);
        self.use_again(pool, &pool.dozers(wanted), is_settled);
    }

    fn use_again(&self, pool: &DevicePool, arenas: &[Arc<Arena>], is_settled: bool) {
        let places = pool.state.extents.places(|_| true).into_iter();
        let asleep = places.filter(|place| place.residency != Residency::Mapped);
        let asleep: FxHashSet<u64> = asleep.map(|place| place.address).collect();
        for arena in arenas {
            let mut space = lock(&arena.space);
            let blocks = space.dozing_blocks();
            space.rouse(|address| asleep.contains(&address));
            let still: FxHashSet<_> = space.dozing_blocks().into_iter().collect();
            drop(space);
            self.unmark(blocks.into_iter().filter(|block| !still.contains(block)));
        }
        let settled = match is_settled {
            true => Ok(()),
            false => Fence::order_point(pool.device()).and_then(|fence| fence.wait()),
        };
        if pool.or_later(settled.map(|()| true)) {
            for arena in arenas {
                lock(&arena.space).wake();
            }
        }
    }

    fn unmark(&self, blocks: impl Iterator<Item = (u64, u64)>) {
        let _uses = lock(&self.uses);
        for (address, _) in blocks {
            let Some(entry) = self.radix.find(address) else {
                continue;
            };
            let word = Word(entry.state());
            if word.is_live() && word.is_asleep() {
                // Who frees it meanwhile goes the long way, which is as good.
                let _ = entry.change(word.0, word.awake().0);
            }
        }
    }
}

fn heaps_of(pool: &DevicePool, wanted: &dyn Fn(u16) -> bool) -> Vec<Arc<Heap>> {
    let mut heaps = pool.heap_list();
    heaps.retain(|heap| wanted(heap.key.tag));
    heaps
}

/// Runs `act` while no thread has anything of the heaps.
fn shut_out<R>(heaps: &[Arc<Heap>], act: impl FnOnce() -> R) -> R {
    let caches: Vec<MutexGuard<_>> = heaps.iter().map(|heap| heap.caches()).collect();
    let mut shut = Vec::new();
    for (heap, caches) in heaps.iter().zip(&caches) {
        let mut emptied = Emptied::default();
        for cache in caches.iter() {
            shut.push(cache.shut(&mut emptied));
        }
        heap.exchange.take_all(&mut emptied.free);
        heap.take_in(emptied);
    }
    act()
}

fn dozing(arena: &Arena) -> Vec<Dozing> {
    let mut space = lock(&arena.space);
    let (places, blocks) = (space.doze(|_| true), space.dozing_blocks());
    drop(space);
    let mut next = 0;
    let live = |(address, bytes): &(u64, u64)| {
        let end = address + bytes;
        let mut live: Vec<(u64, u64)> = Vec::new();
        while blocks
            .get(next)
            .is_some_and(|(at, len)| at + len <= *address)
        {
            next += 1;
        }
        for (at, len) in blocks[next..].iter().take_while(|(at, _)| *at < end) {
            let (begin, stop) = ((*at).max(*address), (at + len).min(end));
            match live.last_mut() {
                Some((last, len)) if begin <= *last + *len + GAP => *len = stop - *last,
                _ => live.push((begin, stop - begin)),
            }
        }
        Dozing {
            address: *address,
            bytes: *bytes,
            live,
        }
    };
    places.iter().map(live).collect()
}
