//! Events: what each one was last recorded behind. A record is shared by the event, the queue entries and the streams that wait, so an event may go before them.

use crate::codes::{self, Result};
use crate::cost;
use crate::sim::Sim;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// One recording: done when each stream it covers has come to its part.
pub struct Record {
    left: AtomicUsize,
    done_ns: AtomicU64,
}

impl Record {
    pub fn new(parts: usize, now: u64) -> Arc<Record> {
        Arc::new(Record {
            left: AtomicUsize::new(parts),
            done_ns: AtomicU64::new(now),
        })
    }

    pub fn done(&self) -> bool {
        self.left.load(Relaxed) == 0
    }

    pub fn time(&self) -> u64 {
        self.done_ns.load(Relaxed)
    }

    pub fn part_done(&self, at: u64) {
        self.done_ns.fetch_max(at, Relaxed);
        self.left.fetch_sub(1, Relaxed);
    }
}

/// Whether the last recording was part of a capture.
#[derive(Clone)]
pub enum Captured {
    No,
    /// Inside this one, behind so much of each of its streams.
    In(u64, FxHashMap<u64, u64>),
    /// Inside one that has ended: the event stands for nothing until it is recorded again.
    Ended,
}

pub struct Event {
    pub context: u64,
    pub flags: u32,
    pub record: Option<Arc<Record>>,
    pub captured: Captured,
}

pub const DISABLE_TIMING: u32 = 2;
pub const EVENT_FLAGS: u32 = 7;

#[derive(Default)]
pub struct Events {
    map: FxHashMap<u64, Event>,
    free_handles: Vec<u64>,
    next: u64,
}

const FIRST_HANDLE: u64 = 0x5300_0000_0000;
const HANDLE_STEP: u64 = 0x80;

impl Events {
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    pub fn create(&mut self, context: u64, flags: u32) -> u64 {
        let handle = self.free_handles.pop().unwrap_or_else(|| {
            self.next += HANDLE_STEP;
            FIRST_HANDLE + self.next
        });
        self.map.insert(
            handle,
            Event {
                context,
                flags,
                record: None,
                captured: Captured::No,
            },
        );
        handle
    }

    pub fn destroy(&mut self, handle: u64) -> Result {
        self.map.remove(&handle).ok_or(codes::INVALID_HANDLE)?;
        self.free_handles.push(handle);
        Ok(())
    }

    pub fn get(&self, handle: u64) -> Result<&Event> {
        self.map.get(&handle).ok_or(codes::INVALID_HANDLE)
    }

    pub fn get_mut(&mut self, handle: u64) -> Result<&mut Event> {
        self.map.get_mut(&handle).ok_or(codes::INVALID_HANDLE)
    }

    pub fn forget_capture(&mut self, capture: u64) {
        for event in self.map.values_mut() {
            if matches!(event.captured, Captured::In(id, _) if id == capture) {
                event.captured = Captured::Ended;
            }
        }
    }

    pub fn drop_context(&mut self, context: u64) {
        let gone: Vec<u64> = self
            .map
            .iter()
            .filter(|(_, e)| e.context == context)
            .map(|(h, _)| *h)
            .collect();
        for handle in gone {
            let _ = self.destroy(handle);
        }
    }
}

impl Sim {
    /// A recording behind all work given to some streams so far; idle ones need no place in a queue.
    pub fn record_behind(&mut self, keys: &[u64]) -> Arc<Record> {
        let mut busy = Vec::new();
        let mut at = cost::now();
        for key in keys {
            if self.is_idle(*key) && self.implicit_order(*key).is_empty() {
                at = at.max(self.streams.map.get(key).map_or(0, |s| s.clock_ns));
            } else {
                busy.push(*key);
            }
        }
        let record = Record::new(busy.len(), at);
        for key in busy {
            self.enqueue(key, crate::stream::Action::Record(record.clone()), 0);
        }
        record
    }
}
