//! Streams: queues of operations that run in order, and the rules that order one stream behind another.
//! A handle may be used again after its stream is destroyed, as addresses are by the driver; the id never is.

use crate::abi::Location;
use crate::codes::{self, Result};
use crate::counters::Snapshot;
use crate::event::Record;
use crate::sim::Sim;
use crate::watch::Watch;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;

pub const LEGACY: u64 = 1;
pub const PER_THREAD: u64 = 2;
pub const NON_BLOCKING: u32 = 1;

pub type HostFunction = extern "C" fn(*mut c_void);

#[derive(Clone)]
pub enum Action {
    Copy {
        dst: u64,
        src: u64,
        len: u64,
        staged: Option<Arc<[u8]>>,
    },
    Fill {
        dst: u64,
        value: u32,
        width: u8,
        len: u64,
    },
    Host {
        function: HostFunction,
        data: usize,
    },
    Record(Arc<Record>),
    Wait(Arc<Record>),
    /// Waits for a word in memory.
    Watch(Watch),
    /// Holds its place in the order: frees to a pool, prefetches.
    Marker {
        base: u64,
        len: u64,
        place: Option<Location>,
    },
    /// Plain memory that goes when the stream comes to it.
    Free {
        base: u64,
    },
    /// Uses a range until it is stopped.
    Spin {
        base: u64,
        len: u64,
        stopped: bool,
    },
}

impl Action {
    /// Ranges that the operation reads or writes.
    pub fn uses(&self) -> [(u64, u64); 2] {
        match self {
            Action::Copy {
                dst,
                len,
                staged: Some(_),
                ..
            } => [(*dst, *len), (0, 0)],
            Action::Copy { dst, src, len, .. } => [(*dst, *len), (*src, *len)],
            Action::Fill { dst, len, .. } => [(*dst, *len), (0, 0)],
            Action::Marker { base, len, .. } | Action::Spin { base, len, .. } => {
                [(*base, *len), (0, 0)]
            }
            _ => [(0, 0); 2],
        }
    }

    pub fn touches(&self, base: u64, len: u64) -> bool {
        self.uses()
            .iter()
            .any(|(at, size)| *size > 0 && *at < base + len && base < at + size)
    }

    pub fn name(&self) -> &'static str {
        match self {
            Action::Copy { .. } => "copy",
            Action::Fill { .. } => "fill",
            Action::Host { .. } => "host function",
            Action::Record(_) => "event record",
            Action::Wait(_) => "event wait",
            Action::Watch(_) => "value wait",
            Action::Marker { .. } => "prefetch",
            Action::Free { .. } => "free",
            Action::Spin { .. } => "kernel",
        }
    }
}

pub struct Op {
    pub seq: u64,
    /// (stream key, sequence number) of what must have finished before.
    pub after: Vec<(u64, u64)>,
    pub action: Action,
    pub device_ns: u64,
    pub submitted_ns: u64,
}

pub struct Stream {
    pub handle: u64,
    pub id: u64,
    pub context: u64,
    pub device: i32,
    pub flags: u32,
    pub priority: i32,
    pub queue: VecDeque<Op>,
    /// A worker has the first operation.
    pub running: bool,
    pub submitted: u64,
    pub completed: u64,
    pub held: bool,
    pub destroyed: bool,
    /// When the last operation ended, on the device's own clock.
    pub clock_ns: u64,
    pub busy_ns: u64,
    pub capture: Option<u64>,
    /// Made by the context itself, so not a program's leak.
    pub implicit: bool,
}

#[derive(Default)]
pub struct Streams {
    pub map: FxHashMap<u64, Stream>,
    handles: FxHashMap<u64, u64>,
    free_handles: Vec<u64>,
    /// Keys of streams with something queued.
    pub active: Vec<u64>,
    /// Keys of streams whose first operation waits for a worker.
    pub ready: VecDeque<u64>,
    next_key: u64,
    next_handle: u64,
    pub device_ns: u64,
    /// How many operations wait for a word in memory.
    pub watches: usize,
}

const FIRST_HANDLE: u64 = 0x5200_0000_0000;
/// Distance between handles, about a driver object.
const HANDLE_STEP: u64 = 0x400;

impl Streams {
    pub fn create(
        &mut self,
        context: u64,
        device: i32,
        flags: u32,
        priority: i32,
        implicit: bool,
    ) -> u64 {
        self.next_key += 1;
        let key = self.next_key;
        let handle = if implicit {
            0
        } else {
            self.free_handles.pop().unwrap_or_else(|| {
                self.next_handle += HANDLE_STEP;
                FIRST_HANDLE + self.next_handle
            })
        };
        let stream = Stream {
            handle,
            id: key,
            context,
            device,
            flags,
            priority,
            queue: VecDeque::new(),
            running: false,
            submitted: 0,
            completed: 0,
            held: false,
            destroyed: false,
            clock_ns: 0,
            busy_ns: 0,
            capture: None,
            implicit,
        };
        self.map.insert(key, stream);
        if !implicit {
            self.handles.insert(handle, key);
        }
        key
    }

    /// Keys go on where another table ended, so that a thread that still waits there matches nothing here.
    pub fn continue_from(&mut self, before: &Streams) {
        self.next_key = before.next_key;
    }

    pub fn by_handle(&self, handle: u64) -> Result<u64> {
        self.handles
            .get(&handle)
            .copied()
            .ok_or(codes::INVALID_HANDLE)
    }

    /// The handle goes at once; the stream itself when its work is done.
    pub fn destroy(&mut self, key: u64) {
        let Some(stream) = self.map.get_mut(&key) else {
            return;
        };
        stream.destroyed = true;
        // Nobody could release it any more.
        stream.held = false;
        if !stream.implicit {
            self.handles.remove(&stream.handle);
            self.free_handles.push(stream.handle);
        }
        self.sweep(key);
    }

    /// Forgets a destroyed stream that has nothing left to do.
    pub fn sweep(&mut self, key: u64) {
        if self
            .map
            .get(&key)
            .is_some_and(|s| s.destroyed && s.queue.is_empty())
        {
            self.map.remove(&key);
        }
    }

    /// Whether everything up to a sequence number has run; a stream that is gone has run everything.
    pub fn reached(&self, key: u64, seq: u64) -> bool {
        self.map.get(&key).is_none_or(|s| s.completed >= seq)
    }

    pub fn any_running(&self) -> bool {
        self.active
            .iter()
            .any(|key| self.map.get(key).is_some_and(|s| s.running))
    }

    /// Whether a worker is inside an operation that touches a range.
    pub fn running_in(&self, base: u64, len: u64) -> bool {
        self.active
            .iter()
            .filter_map(|key| self.map.get(key))
            .any(|stream| {
                stream.running
                    && stream
                        .queue
                        .front()
                        .is_some_and(|op| op.action.touches(base, len))
            })
    }

    pub fn count(&self, out: &mut Snapshot) {
        out.streams = self
            .map
            .values()
            .filter(|s| !s.implicit && !s.destroyed)
            .count() as u64;
        out.queued = self.map.values().map(|s| s.queue.len() as u64).sum();
        out.device_ns = self.device_ns;
    }

    /// (key, last sequence number) of all streams with work, that fit.
    pub fn pending(&self, fits: impl Fn(&Stream) -> bool) -> Vec<(u64, u64)> {
        let active = self
            .active
            .iter()
            .filter_map(|key| Some((*key, self.map.get(key)?)));
        active
            .filter(|(_, s)| fits(s))
            .map(|(key, s)| (key, s.submitted))
            .collect()
    }
}

impl Sim {
    /// The stream behind a handle, as the calling thread sees it.
    pub fn stream_key(&mut self, handle: u64) -> Result<u64> {
        match handle {
            0 | LEGACY => {
                let context = self.current()?;
                Ok(self.legacy_of(context))
            }
            PER_THREAD => {
                let context = self.current()?;
                Ok(self.per_thread_of(context))
            }
            _ => self.streams.by_handle(handle),
        }
    }

    pub fn stream(&self, key: u64) -> Result<&Stream> {
        self.streams.map.get(&key).ok_or(codes::INVALID_HANDLE)
    }

    pub fn stream_mut(&mut self, key: u64) -> Result<&mut Stream> {
        self.streams.map.get_mut(&key).ok_or(codes::INVALID_HANDLE)
    }

    /// What an operation given to a stream now must follow, by the legacy stream's rules.
    pub fn implicit_order(&self, key: u64) -> Vec<(u64, u64)> {
        if self.streams.active.is_empty() {
            return Vec::new();
        }
        let Some(stream) = self.streams.map.get(&key) else {
            return Vec::new();
        };
        if stream.flags & NON_BLOCKING != 0 {
            return Vec::new();
        }
        let (context, legacy) = (stream.context, self.contexts.legacy(stream.context));
        if legacy == Some(key) {
            self.streams
                .pending(|s| s.context == context && s.flags & NON_BLOCKING == 0 && s.id != key)
        } else {
            let queued = legacy.and_then(|l| Some((l, self.streams.map.get(&l)?)));
            queued
                .filter(|(_, s)| !s.queue.is_empty())
                .map(|(l, s)| (l, s.submitted))
                .into_iter()
                .collect()
        }
    }

    /// Whether a stream has nothing left to do and nothing holds it back, so that an instant operation needs no queue.
    pub fn is_idle(&self, key: u64) -> bool {
        self.streams
            .map
            .get(&key)
            .is_none_or(|s| s.queue.is_empty() && !s.held)
    }
}
