//! The caches of the calling thread: by whom a request is for, and by the heap of a block. No two heaps
//! share a place, so a thread may go through any number of streams in turn.

use super::cache::Cache;
use super::heap::{Heap, HeapKey};
use super::keys::Keys;
use super::order::Order;
use crate::sys::linux;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

/// Tells one process's pools from another's: tests have several, whose threads' caches lie side by side.
pub struct Instance {
    number: u32,
    alive: Arc<()>,
}

impl Default for Instance {
    fn default() -> Instance {
        static INSTANCES: AtomicU32 = AtomicU32::new(0);
        Instance {
            number: INSTANCES.fetch_add(1, Ordering::Relaxed),
            alive: Arc::default(),
        }
    }
}

/// The thread's caches of one instance's heaps, by the heaps' numbers.
struct Table {
    instance: u32,
    /// Whether the instance is there still.
    alive: Weak<()>,
    caches: Vec<Option<Arc<Cache>>>,
    /// How many were made since those of heaps that are gone were looked for.
    made: usize,
}

impl Drop for Table {
    fn drop(&mut self) {
        if linux::has_forked() {
            // Other threads' locks are held for good, and the memory is the parent's.
            std::mem::forget(std::mem::take(&mut self.caches));
            return;
        }
        let here = Order::of_this_thread();
        for cache in self.caches.drain(..).flatten() {
            let heap = cache.heap();
            heap.drop_cache(&cache);
            // The stream that the thread has by itself goes with it.
            if heap.key.order == here {
                heap.retire();
            }
        }
    }
}

/// So many caches are made before those of heaps that are gone are looked for, and as many as there are.
const MADE: usize = 64;

impl Table {
    const fn new(instance: u32, alive: Weak<()>) -> Table {
        Table {
            instance,
            alive,
            caches: Vec::new(),
            made: 0,
        }
    }

    /// The cache of the heap numbered `id`, or of one that had the number before and is retired.
    #[inline]
    fn cache(&self, id: u16) -> Option<&Arc<Cache>> {
        self.caches.get(usize::from(id))?.as_ref()
    }

    fn add(&mut self, heap: &Arc<Heap>) -> Arc<Cache> {
        let index = usize::from(heap.id);
        if index >= self.caches.len() {
            self.caches.resize(index + 1, None);
        }
        let cache = heap.add_cache();
        if let Some(old) = self.caches[index].replace(cache.clone()) {
            old.heap().drop_cache(&old);
        }
        self.made += 1;
        cache
    }

    /// Drops the caches of heaps that get no new blocks, now and then; whether it did.
    fn sweep(&mut self) -> bool {
        if self.made < MADE.max(self.caches.len()) {
            return false;
        }
        self.made = 0;
        for slot in &mut self.caches {
            if let Some(cache) = slot.take_if(|cache| cache.heap().is_retired()) {
                cache.heap().drop_cache(&cache);
            }
        }
        true
    }
}

/// The thread's caches.
struct Local {
    keys: Keys<Cache>,
    /// Those of the instance that was asked for last; the rest, which only tests have.
    table: Table,
    others: Vec<Table>,
}

thread_local! {
    static LOCAL: RefCell<Local> = const { RefCell::new(Local::new()) };
}

impl Local {
    const fn new() -> Local {
        Local {
            keys: Keys::new(),
            table: Table::new(0, Weak::new()),
            others: Vec::new(),
        }
    }

    /// Puts the instance's table in front.
    fn turn_to(&mut self, instance: &Instance) {
        if self.table.instance == instance.number && self.table.alive.strong_count() > 0 {
            return;
        }
        let is_its = |table: &Table| table.instance == instance.number;
        let found = self.others.iter().position(is_its);
        let table = match found {
            Some(index) => self.others.swap_remove(index),
            None => Table::new(instance.number, Arc::downgrade(&instance.alive)),
        };
        let before = std::mem::replace(&mut self.table, table);
        self.others.push(before);
        self.others.retain(|table| table.alive.strong_count() > 0);
        let others = &self.others;
        self.keys.retain(|of, _| {
            of == instance.number || others.iter().any(|table| table.instance == of)
        });
    }

    fn cache_of(&mut self, instance: &Instance, heap: &Arc<Heap>) -> Arc<Cache> {
        self.turn_to(instance);
        if let Some(cache) = self.table.cache(heap.id) {
            if Arc::ptr_eq(cache.heap(), heap) {
                return cache.clone();
            }
        }
        if self.table.sweep() {
            self.keys.retain(|_, cache| !cache.heap().is_retired());
        }
        self.table.add(heap)
    }
}

/// Lets `act` use this thread's cache for `key`, if it has one.
#[inline]
pub fn with_key<R>(
    instance: &Instance,
    key: &HeapKey,
    act: impl FnOnce(&Cache) -> Option<R>,
) -> Option<R> {
    LOCAL
        .try_with(|local| {
            let local = local.try_borrow().ok()?;
            match local.keys.in_front(instance.number, key) {
                Some(cache) => act(cache),
                None => {
                    drop(local);
                    with_key_behind(instance, key, act)
                }
            }
        })
        .ok()
        .flatten()
}

#[cold]
#[inline(never)]
fn with_key_behind<R>(
    instance: &Instance,
    key: &HeapKey,
    act: impl FnOnce(&Cache) -> Option<R>,
) -> Option<R> {
    let cache = cache_for(instance, key)?;
    act(&cache)
}

/// Lets `act` use this thread's cache of the heap numbered `id`, if it has one; or of a heap that had the
/// number before, whose gate is shut for good.
#[inline]
pub fn with_heap<R>(instance: &Instance, id: u16, act: impl FnOnce(&Cache) -> R) -> Option<R> {
    LOCAL
        .try_with(|local| {
            let local = local.try_borrow().ok()?;
            let cache = local.table.cache(id)?;
            (local.table.instance == instance.number).then(|| act(cache))
        })
        .ok()
        .flatten()
}

/// This thread's cache for `key`, if it has one; the next look finds it sooner.
pub fn cache_for(instance: &Instance, key: &HeapKey) -> Option<Arc<Cache>> {
    LOCAL
        .try_with(|local| {
            let mut local = local.try_borrow_mut().ok()?;
            local.keys.find(instance.number, key).cloned()
        })
        .ok()
        .flatten()
}

/// Whether the thread has ended but for what it does on its way out, without caches.
pub fn is_on_its_way_out() -> bool {
    LOCAL.try_with(|_| ()).is_err()
}

/// This thread's cache of `heap`, made if it has none; none where the thread is on its way out.
pub fn cache_of(instance: &Instance, heap: &Arc<Heap>) -> Option<Arc<Cache>> {
    LOCAL
        .try_with(|local| Some(local.try_borrow_mut().ok()?.cache_of(instance, heap)))
        .ok()
        .flatten()
}

/// Remembers that requests of `key` are for `cache`.
pub fn remember(instance: &Instance, key: &HeapKey, cache: &Arc<Cache>) {
    let _ = LOCAL.try_with(|local| {
        if let Ok(mut local) = local.try_borrow_mut() {
            local.keys.insert(instance.number, *key, cache.clone());
        }
    });
}
