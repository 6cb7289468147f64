//! Contexts: one primary a device, counted, and those made by hand; and the stack of current contexts that each thread has.

use crate::codes::{self, Code, Result};
use crate::sim::Sim;
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub struct Context {
    pub device: i32,
    pub id: u64,
    pub flags: u32,
    /// Retains of a primary context; 1 for one made by hand.
    pub references: u64,
    pub legacy: u64,
    pub per_thread: FxHashMap<u64, u64>,
    pub peers: FxHashSet<u64>,
    pub error: Option<Code>,
}

#[derive(Default)]
pub struct Contexts {
    /// Contexts that are alive, primaries only while retained.
    map: FxHashMap<u64, Context>,
    primary_flags: FxHashMap<i32, u32>,
    next: u64,
    next_id: u64,
}

const PRIMARY: u64 = 0x5100_0000_0000;
const CREATED: u64 = 0x5180_0000_0000;
const HANDLE_STEP: u64 = 0x1000;

pub fn primary_handle(device: i32) -> u64 {
    PRIMARY + (device as u64 + 1) * HANDLE_STEP
}

/// The device of a primary context's handle, also while it is not active.
pub fn primary_device(handle: u64) -> Option<i32> {
    (PRIMARY..CREATED)
        .contains(&handle)
        .then(|| ((handle - PRIMARY) / HANDLE_STEP) as i32 - 1)
}

const DEPTH: usize = 64;

struct Stack {
    depth: Cell<usize>,
    entries: [Cell<u64>; DEPTH],
}

static NEXT_THREAD: AtomicU64 = AtomicU64::new(1);

// Without destructors, so that both are usable from handlers that run when the thread is nearly gone.
thread_local! {
    static STACK: Stack = const { Stack { depth: Cell::new(0), entries: [const { Cell::new(0) }; DEPTH] } };
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// A number for the calling thread.
pub fn thread() -> u64 {
    THREAD.with(|t| {
        if t.get() == 0 {
            t.set(NEXT_THREAD.fetch_add(1, Relaxed));
        }
        t.get()
    })
}

/// The context on top of the calling thread's stack, 0 for none.
pub fn top() -> u64 {
    STACK.with(|s| {
        s.depth
            .get()
            .checked_sub(1)
            .map_or(0, |at| s.entries[at].get())
    })
}

pub fn push(context: u64) -> Result {
    STACK.with(|s| {
        let at = s.depth.get();
        s.entries.get(at).ok_or(codes::INVALID_VALUE)?.set(context);
        s.depth.set(at + 1);
        Ok(())
    })
}

pub fn pop() -> Result<u64> {
    STACK.with(|s| {
        let at = s.depth.get().checked_sub(1).ok_or(codes::INVALID_CONTEXT)?;
        s.depth.set(at);
        Ok(s.entries[at].get())
    })
}

/// Replaces the top; a null context pops it.
pub fn set(context: u64) -> Result {
    if context == 0 {
        let _ = pop();
        return Ok(());
    }
    if top() != 0 {
        pop()?;
    }
    push(context)
}

impl Contexts {
    pub fn new(_devices: u32) -> Contexts {
        Contexts::default()
    }

    pub fn get(&self, handle: u64) -> Option<&Context> {
        self.map.get(&handle)
    }

    pub fn get_mut(&mut self, handle: u64) -> Option<&mut Context> {
        self.map.get_mut(&handle)
    }

    pub fn legacy(&self, handle: u64) -> Option<u64> {
        self.map.get(&handle).map(|c| c.legacy)
    }

    pub fn active(&self) -> u64 {
        self.map.len() as u64
    }

    pub fn error(&self, handle: u64) -> Option<Code> {
        self.map.get(&handle).and_then(|c| c.error)
    }

    pub fn break_context(&mut self, handle: u64) {
        if let Some(context) = self.map.get_mut(&handle) {
            context.error.get_or_insert(codes::ILLEGAL_ADDRESS);
        }
    }

    pub fn mend_all(&mut self) {
        for context in self.map.values_mut() {
            context.error = None;
        }
    }

    pub fn primary_flags(&self, device: i32) -> u32 {
        self.primary_flags.get(&device).copied().unwrap_or(0)
    }

    pub fn set_primary_flags(&mut self, device: i32, flags: u32) {
        self.primary_flags.insert(device, flags);
        if let Some(context) = self.map.get_mut(&primary_handle(device)) {
            context.flags = flags;
        }
    }
}

impl Sim {
    /// The calling thread's context, alive and unbroken.
    pub fn current(&self) -> Result<u64> {
        let context = top();
        if context == 0 {
            return Err(codes::INVALID_CONTEXT);
        }
        if self.contexts.get(context).is_none() {
            return Err(codes::CONTEXT_IS_DESTROYED);
        }
        self.context_error(context)?;
        Ok(context)
    }

    pub fn current_device(&self) -> Result<(u64, i32)> {
        let context = self.current()?;
        let device = self
            .contexts
            .get(context)
            .ok_or(codes::CONTEXT_IS_DESTROYED)?
            .device;
        Ok((context, device))
    }

    pub fn add_context(&mut self, handle: u64, device: i32, flags: u32) {
        let legacy = self.streams.create(handle, device, 0, 0, true);
        self.contexts.next_id += 1;
        let context = Context {
            device,
            id: self.contexts.next_id,
            flags,
            references: 1,
            legacy,
            per_thread: FxHashMap::default(),
            peers: FxHashSet::default(),
            error: None,
        };
        self.contexts.map.insert(handle, context);
    }

    pub fn create_context(&mut self, device: i32, flags: u32) -> u64 {
        self.contexts.next += 1;
        let handle = CREATED + self.contexts.next * HANDLE_STEP;
        self.add_context(handle, device, flags);
        handle
    }

    pub fn retain_primary(&mut self, device: i32) -> u64 {
        let handle = primary_handle(device);
        match self.contexts.get_mut(handle) {
            Some(context) => context.references += 1,
            None => self.add_context(handle, device, self.contexts.primary_flags(device)),
        }
        handle
    }

    /// Drops what belongs to a context: streams, events and plain allocations. Its queued work has ended.
    pub fn drop_context(&mut self, handle: u64) {
        let Some(context) = self.contexts.map.remove(&handle) else {
            return;
        };
        let keys: Vec<u64> = self
            .streams
            .map
            .iter()
            .filter(|(_, s)| s.context == handle)
            .map(|(k, _)| *k)
            .collect();
        for key in keys {
            self.streams.destroy(key);
        }
        self.events.drop_context(handle);
        self.drop_context_memory(handle, context.device);
    }

    pub fn legacy_of(&mut self, context: u64) -> u64 {
        self.contexts.legacy(context).unwrap_or(0)
    }

    pub fn per_thread_of(&mut self, context: u64) -> u64 {
        let thread = thread();
        let known = self
            .contexts
            .get(context)
            .and_then(|c| c.per_thread.get(&thread).copied());
        known.unwrap_or_else(|| {
            let device = self.contexts.get(context).map_or(0, |c| c.device);
            let key = self.streams.create(context, device, 0, 0, true);
            if let Some(entry) = self.contexts.get_mut(context) {
                entry.per_thread.insert(thread, key);
            }
            key
        })
    }
}
