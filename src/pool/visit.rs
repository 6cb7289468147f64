//! Work on a heap outside the gate of the thread's cache: requests that the cache has nothing for, and
//! frees that it cannot keep. While such a visit lasts, blocks may be on their way to or from a caller that
//! no count shows yet, so nobody takes a retired heap for one that is done with.

use super::cache::Cache;
use super::device::DevicePool;
use super::heap::{Heap, HeapKey};
use super::local;
use super::pools::Pools;
use crate::core::space::Color;
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use std::sync::{Arc, PoisonError};

/// A thread at work on a heap.
pub(super) struct Visit {
    /// Which.
    pub heap: Arc<Heap>,
    /// The thread's cache of it; none where the thread is on its way out.
    pub cache: Option<Arc<Cache>>,
}

impl Visit {
    /// The work begins. Only then is it asked whether the heap is retired; see
    /// [`Cache::begin_work`].
    pub fn begin(heap: Arc<Heap>, cache: Option<Arc<Cache>>) -> Visit {
        match &cache {
            Some(cache) => cache.begin_work(),
            None => heap.ending.enter(),
        }
        Visit { heap, cache }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        match &self.cache {
            Some(cache) => cache.end_work(),
            None => self.heap.ending.leave(),
        }
    }
}

impl Pools {
    /// The calling thread at work on the heap of `key`, without a lock from the second time on.
    pub(super) fn visit(&self, pool: &Arc<DevicePool>, key: &HeapKey) -> Result<Visit> {
        if let Some(cache) = local::cache_for(&self.instance, key) {
            let visit = Visit::begin(cache.heap().clone(), Some(cache));
            if !visit.heap.is_retired() {
                return Ok(visit);
            }
        }
        let is_late = local::is_on_its_way_out();
        loop {
            let heap = self.heap(pool, key, is_late)?;
            let cache = local::cache_of(&self.instance, &heap);
            let visit = Visit::begin(heap, cache);
            match &visit.cache {
                Some(cache) if !visit.heap.is_retired() => {
                    local::remember(&self.instance, key, cache);
                    return Ok(visit);
                }
                None if self.is_current(&visit.heap) => {
                    if is_late && key.order.is_of_a_thread() {
                        // The thread's end was seen before: nothing else would retire it.
                        visit.heap.retire();
                    }
                    return Ok(visit);
                }
                // Retired since it was found.
                _ => {}
            }
        }
    }

    fn heap(&self, pool: &Arc<DevicePool>, key: &HeapKey, is_late: bool) -> Result<Arc<Heap>> {
        // What a thread asks for on its way out is in the order of its stream still.
        let serves = |heap: &&Arc<Heap>| is_late || !heap.is_retired();
        if let Some(heap) = lock(&self.heaps).get(key).filter(serves) {
            return Ok(heap.clone());
        }
        // Asks the driver, so no lock is held.
        let ground = pool.ground_of(key.tag)?;
        pool.check_stream(key.stream)?;
        self.look_at_retired_for(pool, key, &ground);
        let mut heaps = lock(&self.heaps);
        if let Some(heap) = heaps.get(key).filter(serves) {
            return Ok(heap.clone());
        }
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        let seat = self.seat(&mut ids, pool, key, ground).ok_or_else(|| {
            Error::new(Status::Busy, "allocate")
                .detail(format!(
                    "{} combinations of stream, tag, allocator, graph and thread are in use, which is \
                     all there may be at a time",
                    Color::END - 1
                ))
                .advice("Forget streams and release graphs that are done with, and free their blocks")
        })?;
        let heap = pool.add_heap(seat, *key);
        ids.set(heap.id, Some(heap.clone()));
        heaps.insert(*key, heap.clone());
        Ok(heap)
    }

    /// Whether the heap is one still.
    pub(super) fn is_current(&self, heap: &Arc<Heap>) -> bool {
        let ids = self.ids.read().unwrap_or_else(PoisonError::into_inner);
        (ids.get(heap.id)).is_some_and(|current| Arc::ptr_eq(current, heap))
    }
}
