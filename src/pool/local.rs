//! The caches of the calling thread: by whom a request is for, and by the heap of a block.

use super::cache::Cache;
use super::heap::{Heap, HeapKey};
use std::cell::RefCell;
use std::sync::Arc;

const SLOTS: usize = 64;

/// The thread's caches. A slot serves several heaps in turn; the one that has to leave gives what it
/// keeps back.
struct Local {
    by_key: Vec<Option<(u32, HeapKey, Arc<Cache>)>>,
    by_heap: Vec<Option<(u32, Arc<Cache>)>>,
}

thread_local! {
    static LOCAL: RefCell<Local> = const { RefCell::new(Local { by_key: Vec::new(), by_heap: Vec::new() }) };
}

impl Drop for Local {
    fn drop(&mut self) {
        for (_, cache) in self.by_heap.drain(..).flatten() {
            cache.heap().drop_cache(&cache);
        }
    }
}

#[inline]
fn slot_of_key(key: &HeapKey) -> usize {
    let stream = key.stream.raw() as usize;
    let mixed = (stream >> 4)
        ^ (stream >> 10)
        ^ (key.tag as usize)
        ^ ((key.device as usize) << 3)
        ^ (key.allocator as usize);
    mixed % SLOTS
}

impl Local {
    fn make_room(&mut self) {
        if self.by_heap.is_empty() {
            self.by_key.resize_with(SLOTS, || None);
            self.by_heap.resize_with(SLOTS, || None);
        }
    }

    fn cache_of(&mut self, instance: u32, heap: &Arc<Heap>) -> Arc<Cache> {
        self.make_room();
        let slot = &mut self.by_heap[heap.id as usize % SLOTS];
        if let Some((of, cache)) = slot {
            if *of == instance && cache.heap().id == heap.id {
                return cache.clone();
            }
        }
        let cache = heap.add_cache();
        if let Some((_, old)) = slot.replace((instance, cache.clone())) {
            for entry in &mut self.by_key {
                if matches!(entry, Some((_, _, other)) if Arc::ptr_eq(other, &old)) {
                    *entry = None;
                }
            }
            old.heap().drop_cache(&old);
        }
        cache
    }
}

/// Lets `act` use this thread's cache for `key`, if it has one.
#[inline]
pub fn with_key<R>(
    instance: u32,
    key: &HeapKey,
    act: impl FnOnce(&Cache) -> Option<R>,
) -> Option<R> {
    LOCAL
        .try_with(|local| {
            let local = local.try_borrow().ok()?;
            match local.by_key.get(slot_of_key(key))? {
                Some((of, have, cache)) if *of == instance && have == key => act(cache),
                _ => None,
            }
        })
        .ok()
        .flatten()
}

/// Lets `act` use this thread's cache of the heap numbered `id`, if it has one.
#[inline]
pub fn with_heap<R>(instance: u32, id: u16, act: impl FnOnce(&Cache) -> R) -> Option<R> {
    LOCAL
        .try_with(|local| {
            let local = local.try_borrow().ok()?;
            match local.by_heap.get(id as usize % SLOTS)? {
                Some((of, cache)) if *of == instance && cache.heap().id == id => Some(act(cache)),
                _ => None,
            }
        })
        .ok()
        .flatten()
}

/// This thread's cache for `key`, if it has one.
pub fn cache_for(instance: u32, key: &HeapKey) -> Option<Arc<Cache>> {
    LOCAL
        .try_with(|local| {
            let local = local.try_borrow().ok()?;
            match local.by_key.get(slot_of_key(key))? {
                Some((of, have, cache)) if *of == instance && have == key => Some(cache.clone()),
                _ => None,
            }
        })
        .ok()
        .flatten()
}

/// This thread's cache of `heap`, made if it has none; none where the thread is on its way out.
pub fn cache_of(instance: u32, heap: &Arc<Heap>) -> Option<Arc<Cache>> {
    LOCAL
        .try_with(|local| Some(local.try_borrow_mut().ok()?.cache_of(instance, heap)))
        .ok()
        .flatten()
}

/// Remembers that requests of `key` are for `cache`.
pub fn remember(instance: u32, key: &HeapKey, cache: &Arc<Cache>) {
    let _ = LOCAL.try_with(|local| {
        if let Ok(mut local) = local.try_borrow_mut() {
            local.make_room();
            local.by_key[slot_of_key(key)] = Some((instance, *key, cache.clone()));
        }
    });
}
