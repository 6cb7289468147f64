//! The pools of a process: one way in for every request, whatever device it concerns.

use super::cache::{BIN_SLOTS, BINNED_UNITS, Cache, bin_room};
use super::device::{DevicePool, Lean, NoneCaptures, Placing};
use super::heap::{GraphId, Heap, HeapKey};
use super::local::{self, Instance};
use super::retired::{Ids, Place};
use super::visit::Visit;
use super::word::{LARGEST, Word, units};
use crate::config::value::Location;
use crate::core::gate::Inside;
use crate::core::radix::{Entry, Radix, UNIT};
use crate::core::size::Align;
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::extent::DeviceState;
use crate::gpu::{Device, Stream, Uses};
use crate::pool::backing::Backing;
use crate::sys::linux;
use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What a free found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// A block, which is free now.
    Block,
    /// No live block of a pool, or one of another allocator.
    Nothing,
}

/// A stream as a caller names it.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// Its handle.
    pub stream: Stream,
    /// The device whose stream a handle means that all have, where that is known.
    pub device: Option<i32>,
    /// The work that is meant, for memory of a device. Asks the driver.
    pub uses: &'a dyn Fn(&Arc<Device>) -> Uses,
}

impl Named<'_> {
    fn is_of(&self, heap: &Heap) -> bool {
        heap.is_own_stream(self.stream)
            && self.device.is_none_or(|device| device == heap.key.device)
    }

    /// The work that is meant and does not come before what the heap does next.
    pub(super) fn uses_of(&self, heap: &Heap) -> Uses {
        let device = heap.pool.device();
        let mut uses = (self.uses)(device);
        if heap.is_own_stream(self.stream) {
            uses.leave_out(self.stream, device);
        }
        uses
    }
}

/// The pools.
#[derive(Default)]
pub struct Pools {
    pub(super) instance: Instance,
    pub(super) radix: Arc<Radix>,
    /// Those that get new blocks, and those of threads on their way out.
    pub(super) heaps: Mutex<FxHashMap<HeapKey, Arc<Heap>>>,
    pub(super) ids: RwLock<Ids>,
    /// Streams named for blocks besides their own.
    pub(super) uses: Mutex<FxHashMap<u64, Uses>>,
}

/// A number for the calling thread, above 0.
pub fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    NUMBER
        .try_with(|number| {
            if number.get() == 0 {
                number.set(NEXT.fetch_add(1, Ordering::Relaxed));
            }
            number.get()
        })
        .unwrap_or(u64::MAX)
}

impl Pools {
    /// A pool for a device.
    pub fn device(
        &self,
        state: Arc<DeviceState>,
        backing: Backing,
        is_tight: Lean,
        placing: Placing,
        none_captures: NoneCaptures,
    ) -> Arc<DevicePool> {
        let radix = self.radix.clone();
        let pool = DevicePool::new(state, backing, radix, is_tight, placing, none_captures);
        Arc::new(pool)
    }

    /// A block that the thread's cache, the heap's exchange or its arena has at hand. Makes no driver call
    /// and waits for no work, nor for a thread that divides memory up. None where there is no such block:
    /// then [`Pools::allocate`] finds one.
    #[inline]
    pub fn reuse(&self, key: &HeapKey, requested: u64) -> Option<u64> {
        local::with_key(&self.instance, key, |cache| {
            let units = units(requested);
            // Until the block is counted: a heap that is retired waits for that.
            let inside = cache.enter()?;
            let heap = cache.heap();
            let (address, entry) = match self.take_kept(cache, &inside, units) {
                Some(address) => (address, self.radix.entry(address, units)),
                None => heap.pool.take_free_inside(cache, &inside, units)?,
            };
            let mut word = Word::new(heap.id, requested);
            if key.order.is_everywhere() {
                word = word.unordered();
            }
            let is_time = publish(cache, entry, word);
            drop(inside);
            if is_time {
                look_at_peaks(cache.heap());
            }
            Some(address)
        })
    }

    /// A block that this thread has freed, or else another.
    #[inline]
    fn take_kept(&self, cache: &Cache, inside: &Inside, units: u64) -> Option<u64> {
        (cache.take_inside(inside, units)).or_else(|| self.take_exchanged(cache, inside, units))
    }

    /// A block that another thread has freed; the rest of its batch is this thread's from here on.
    #[cold]
    fn take_exchanged(&self, cache: &Cache, inside: &Inside, units: u64) -> Option<u64> {
        if units > BINNED_UNITS {
            return None;
        }
        let mut blocks = [0; BIN_SLOTS];
        let count = (cache.heap().exchange).take(units, &mut blocks[..bin_room(units) as usize]);
        let (block, rest) = blocks[..count].split_last()?;
        // Who freed them wrote to their entries last: these come all at once now, not one by one.
        for address in &blocks[..count] {
            linux::announce_write(self.radix.entry(*address, units));
        }
        cache.fill_inside(inside, units, rest);
        Some(*block)
    }

    /// A block of `requested` bytes above 0 for `key`. `is_unordered` says that work of streams nobody
    /// names may use it until it is freed.
    pub fn allocate(
        &self,
        pool: &Arc<DevicePool>,
        key: &HeapKey,
        requested: u64,
        align: Align,
        is_unordered: bool,
    ) -> Result<u64> {
        if requested > LARGEST {
            return Err(Error::new(Status::OutOfMemory, "allocate")
                .bytes(requested)
                .advice(format!("The pool serves blocks of up to {LARGEST} bytes")));
        }
        let visit = self.visit(pool, key)?;
        let Visit { heap, cache } = &visit;
        let kept = match cache {
            Some(cache) if align.get() <= UNIT => {
                (cache.enter()).and_then(|inside| self.take_kept(cache, &inside, units(requested)))
            }
            _ => None,
        };
        let address = match kept {
            Some(address) => address,
            None => pool.allocate(heap, cache.as_deref(), requested, align)?,
        };
        let mut word = Word::new(heap.id, requested);
        if is_unordered {
            word = word.unordered();
        }
        let entry = self.radix.entry(address, units(requested));
        let is_time = match cache {
            Some(cache) => {
                cache.gave_out(address, units(requested));
                publish(cache, entry, word)
            }
            None => {
                entry.set(word.0);
                heap.late_counts().took(word.requested(), word.bytes());
                true
            }
        };
        if is_time {
            look_at_peaks(heap);
        }
        Ok(address)
    }

    /// Where the memory of `key` is made, once it has a heap.
    pub fn location_of(&self, key: &HeapKey) -> Option<Location> {
        Some(lock(&self.heaps).get(key)?.location())
    }

    pub(super) fn heap_of(&self, word: Word) -> Option<Arc<Heap>> {
        let ids = self.ids.read().unwrap_or_else(PoisonError::into_inner);
        ids.get(word.heap()).cloned()
    }

    /// Says that work already given to a stream uses the block at `address`. None where there is no
    /// such block.
    pub fn record_stream(&self, address: u64, named: Named) -> Option<()> {
        let entry = self.radix.find(address)?;
        let word = Word(entry.state());
        let heap = self.heap_of(word).filter(|_| word.is_live())?;
        if named.is_of(&heap) {
            return Some(());
        }
        let mut added = named.uses_of(&heap);
        if word.is_unordered() {
            // All work of its own device does already.
            added.leave_out_device(heap.pool.device());
        }
        if added.is_empty() {
            return Some(());
        }
        let mut uses = lock(&self.uses);
        if !word.is_shared() && entry.change(word.0, word.shared().0).is_err() {
            // Freed at this moment, or marked by another thread, which the lock has let finish.
            Word(entry.state()).is_shared().then_some(())?;
        }
        uses.entry(address).or_default().join(added);
        Some(())
    }

    /// Names `stream` of `device` no more, since it is about to be destroyed. Memory of any device may
    /// have been used on it.
    pub fn forget_stream(&self, device: i32, stream: Stream) {
        let mut gone = Vec::new();
        lock(&self.heaps).retain(|key, heap| {
            let is_gone = key.stream == stream && (key.device == device || !stream.is_implicit());
            if is_gone {
                gone.push(heap.clone());
            }
            !is_gone
        });
        for heap in gone {
            heap.retire();
        }
        for uses in lock(&self.uses).values_mut() {
            uses.forget(stream);
        }
        for heap in self.all_heaps() {
            lock(&heap.pending).forget(stream);
        }
    }

    /// The graph is gone: its memory may serve others once its blocks are freed.
    pub fn release_graph(&self, device: i32, graph: GraphId) {
        let is_its = |key: &HeapKey| key.device == device && key.graph == Some(graph);
        lock(&self.heaps).retain(|key, _| !is_its(key));
        // Those too whose streams have gone before the graph.
        let mut its = self.all_heaps();
        its.retain(|heap| is_its(&heap.key));
        // From here on all their work is looked for, not that of their streams alone.
        its.iter().for_each(|heap| heap.retire());
        for heap in &its {
            heap.pool.release_graph(graph);
            heap.pool.settle_released();
            heap.queue(Place::Last);
        }
        if let Some(heap) = its.first() {
            self.try_to_look_at_retired(&heap.pool);
        }
    }

    pub(super) fn all_heaps(&self) -> Vec<Arc<Heap>> {
        let ids = self.ids.read().unwrap_or_else(PoisonError::into_inner);
        ids.heaps()
    }

    /// Which allocator gave out the live block at `address`; none where there is no such block.
    pub fn allocator_of(&self, address: u64) -> Option<u64> {
        let word = Word(self.radix.find(address)?.state());
        Some(self.heap_of(word).filter(|_| word.is_live())?.key.allocator)
    }

    /// The number of the tag of the live block at `address`; none where there is no such block.
    pub fn tag_of(&self, address: u64) -> Option<u16> {
        let word = Word(self.radix.find(address)?.state());
        Some(self.heap_of(word).filter(|_| word.is_live())?.key.tag)
    }

    /// The bytes that were asked for by the block that begins at `address`.
    #[inline]
    pub fn requested_of(&self, address: u64) -> Option<u64> {
        let word = Word(self.radix.find(address)?.state());
        word.is_live().then(|| word.requested())
    }

    /// The beginning and length of the live block that `address` lies in. Off the hot path.
    pub fn block_around(&self, address: u64) -> Option<(u64, u64)> {
        self.all_heaps()
            .iter()
            .flat_map(|heap| heap.arenas())
            .find_map(|(arena, _)| {
                let (begin, _) = lock(&arena.space).used_around(address)?;
                let word = Word(self.radix.find(begin)?.state());
                let inside = word.is_live() && address - begin < word.bytes();
                inside.then(|| (begin, word.bytes()))
            })
    }
}

/// A block is given out, and counted; says whether to look at peaks.
#[inline]
fn publish(cache: &Cache, entry: &Entry, word: Word) -> bool {
    entry.set(word.0);
    cache.counts.took(word.requested(), word.bytes())
}

#[cold]
#[inline(never)]
fn look_at_peaks(heap: &Heap) {
    heap.pool.look_at_peaks(heap);
}
