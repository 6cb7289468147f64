//! Frees, on whatever thread: where the block goes is decided by its word, without a lock where the thread has a cache of
//! the block's heap and nothing was named for it.

use super::cache::{BINNED_UNITS, Cache, Held, Kept};
use super::exchange::Batch;
use super::heap::Heap;
use super::local;
use super::pools::{Freed, Named, Pools};
use super::visit::Visit;
use super::word::Word;
use crate::core::gate::Inside;
use crate::core::radix::{Entry, UNIT};
use crate::core::sync::lock;
use crate::error::Result;
use crate::gpu::Uses;
use crate::sys::linux;
use std::sync::atomic::{Ordering, fence};

impl Pools {
    /// Takes a block back, of `allocator` where one is named; work given to `used_on` may still use it.
    /// Never waits.
    #[inline]
    pub fn free(
        &self,
        address: u64,
        allocator: Option<u64>,
        used_on: Option<Named>,
    ) -> Result<Freed> {
        let Some(entry) = (self.radix).find_and(address, linux::announce_write) else {
            return Ok(Freed::Nothing);
        };
        let word = Word(entry.state());
        if !word.is_live() {
            return Ok(Freed::Nothing);
        }
        let is_quick = word.is_plain()
            && local::with_heap(&self.instance, word.heap(), |cache| {
                let key = &cache.heap().key;
                let is_own = allocator.is_none_or(|allocator| allocator == key.allocator)
                    && used_on.is_none_or(|named| named.stream == key.stream)
                    && key.order.is_stream();
                // Where the thread is shut out for good, the number may be another heap's by now.
                let inside = if is_own { cache.enter() } else { None };
                let Some(inside) = inside else {
                    return false;
                };
                if entry.change(word.0, 0).is_err() {
                    return false;
                }
                cache.counts.gave(word.requested(), word.bytes());
                let units = word.bytes() / UNIT;
                match cache.keep_inside(&inside, address, units) {
                    Kept::Yes => {}
                    kept => make_way(cache, inside, Held { address, units }, kept),
                }
                true
            }) == Some(true);
        match is_quick || (used_on.is_none() && self.free_waiting(entry, address, word, allocator))
        {
            true => Ok(Freed::Block),
            false => self.free_slowly(entry, address, allocator, used_on),
        }
    }

    /// Frees a block that any work may use, without a lock; no where that cannot be.
    #[inline]
    fn free_waiting(
        &self,
        entry: &Entry,
        address: u64,
        word: Word,
        allocator: Option<u64>,
    ) -> bool {
        word.is_just_unordered()
            && local::with_heap(&self.instance, word.heap(), |cache| {
                let key = &cache.heap().key;
                let is_own = allocator.is_none_or(|allocator| allocator == key.allocator);
                let inside = if cache.has_waiting() && is_own {
                    cache.enter()
                } else {
                    None
                };
                let Some(inside) = inside else {
                    return false;
                };
                if entry.change(word.0, 0).is_err() {
                    return false;
                }
                cache.counts.gave(word.requested(), word.bytes());
                if cache.wait_inside(&inside, address, word) {
                    hand_over(cache, inside);
                }
                true
            }) == Some(true)
    }

    #[cold]
    fn free_slowly(
        &self,
        entry: &Entry,
        address: u64,
        allocator: Option<u64>,
        used_on: Option<Named>,
    ) -> Result<Freed> {
        let (word, heap, waits) = loop {
            let word = Word(entry.state());
            let Some(heap) = self.heap_of(word).filter(|_| word.is_live()) else {
                return Ok(Freed::Nothing);
            };
            if allocator.is_some_and(|allocator| allocator != heap.key.allocator) {
                return Ok(Freed::Nothing);
            }
            let others = used_on.filter(|named| !heap.is_own_stream(named.stream));
            let others = others.map(|named| named.uses_of(&heap));
            // The lock keeps a stream from being named between the two steps, and from being forgotten
            // before the block waits for it.
            let mut uses = lock(&self.uses);
            if entry.change(word.0, 0).is_ok() {
                // Until the block is counted as given back its heap is one: that of the number now.
                let heap = self.heap_of(word).unwrap_or(heap);
                let behind = all_uses(&heap, word, uses.remove(&address), others);
                let waits = behind.map(|behind| heap.free_later(address, word, behind));
                break (word, heap, waits);
            }
        };
        let cache = local::cache_of(&self.instance, &heap);
        let visit = Visit::begin(heap, cache);
        let Visit { heap, cache } = &visit;
        match cache {
            Some(cache) => cache.counts.gave(word.requested(), word.bytes()),
            None => heap.late_counts().gave(word.requested(), word.bytes()),
        }
        let units = word.bytes() / UNIT;
        match (waits, cache) {
            (Some(None), _) => {}
            (Some(Some(effort)), _) => drop(heap.pool.or_later(heap.settle_pending(effort))),
            (None, Some(cache)) if heap.key.order.is_stream() && !word.is_asleep() => {
                keep(cache, Held { address, units });
            }
            (None, _) => heap.return_block(Held { address, units }),
        }
        // Between the count and the question: who retires the heap sees the one, or this the other.
        fence(Ordering::SeqCst);
        let retired = heap.is_retired().then(|| heap.clone());
        drop(visit);
        if let Some(heap) = retired {
            heap.note_return();
        }
        Ok(Freed::Block)
    }
}

/// Which work may use a freed block besides that of its own stream.
fn all_uses(heap: &Heap, word: Word, named: Option<Uses>, others: Option<Uses>) -> Option<Uses> {
    let unordered = word.is_unordered();
    let everything = unordered.then(|| Uses::everything(heap.pool.device()));
    let all = [everything, named, others].into_iter().flatten();
    all.filter(|uses| !uses.is_empty()).reduce(|mut all, more| {
        all.join(more);
        all
    })
}

/// What waits in a cache for all work goes where other threads find it.
#[cold]
#[inline(never)]
fn hand_over(cache: &Cache, inside: Inside) {
    cache.come_out_to_work(inside);
    cache.heap().queue_behind_everything(cache.take_waiting());
    cache.end_work();
}

/// What has no room in a cache goes where others find it, of a thread that had gone in.
#[cold]
fn make_way(cache: &Cache, inside: Inside, freed: Held, kept: Kept) {
    cache.come_out_to_work(inside);
    match kept {
        Kept::Yes => {}
        Kept::InsteadOf(held) => cache.heap().return_block(held),
        Kept::No => overflow(cache, freed),
    }
    cache.end_work();
}

/// A thread's cache gets a freed block; what then has no room in it goes where others find it.
#[inline]
fn keep(cache: &Cache, freed: Held) {
    match cache.keep(freed.address, freed.units) {
        Kept::Yes => {}
        Kept::InsteadOf(held) => cache.heap().return_block(held),
        Kept::No => overflow(cache, freed),
    }
}

/// The bin of a freed block is full: older blocks make way.
#[cold]
fn overflow(cache: &Cache, freed: Held) {
    // Nobody would look for what a retired heap's threads leave each other.
    if freed.units > BINNED_UNITS || cache.heap().is_retired() {
        cache.heap().return_block(freed);
        return;
    }
    let mut batch = Batch::default();
    cache.take_most(freed.units, &mut batch);
    if !cache.heap().exchange.put(freed.units, &batch) {
        let held = |address: &u64| Held {
            address: *address,
            units: freed.units,
        };
        let held: Vec<Held> = batch.addresses().iter().map(held).collect();
        cache.heap().return_blocks(&held);
    }
    if cache.keep(freed.address, freed.units) != Kept::Yes {
        cache.heap().return_block(freed);
    }
}
