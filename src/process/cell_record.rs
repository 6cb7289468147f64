//! The record of the process's cells: what is known of each, and what was done with them.

use crate::core::gauge::Gauge;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::Result;
use crate::extent::cell::Handles;
use crate::gpu::Stream;
use crate::source::Block;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is known of a cell.
#[derive(Clone, Debug)]
pub struct CellInfo {
    /// Counted over all cells of the process, since addresses come again.
    pub serial: u64,
    /// Its first address.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// The device's ordinal.
    pub device: i32,
    /// Its tag.
    pub tag: TagId,
    /// Whether the caller reserved the addresses.
    pub is_lent: bool,
    /// Where the driver's handles of its memory are shown.
    pub handles: Handles,
    /// Whether it may be several chunks, as with HIP.
    pub is_chunked: bool,
    /// Whether it has had memory: before that, whoever reserved it is about to map it.
    pub(super) is_born: bool,
    /// Whether statistics count it as a block given out: while a caller has it mapped.
    pub(super) counted: bool,
}

impl CellInfo {
    pub(super) fn block(&self) -> Block {
        Block {
            address: self.address,
            requested: self.bytes,
            bytes: self.bytes,
            stream: Stream::LEGACY,
        }
    }
}

/// What was done with cells, counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CellStats {
    /// Cells there are.
    pub cells: u64,
    /// Bytes that callers have mapped in them.
    pub mapped: u64,
    /// The most that has been.
    pub peak_mapped: u64,
    /// Addresses reserved for a cell.
    pub reserves: u64,
    /// Cells freed.
    pub frees: u64,
    /// Times that memory was created and mapped.
    pub creates: u64,
    /// Times that it was unmapped and released.
    pub unmaps: u64,
    /// Calls that failed.
    pub failures: u64,
}

/// The cells of the process.
#[derive(Default)]
pub(super) struct Cells {
    pub(super) by_address: Mutex<BTreeMap<u64, CellInfo>>,
    serial: AtomicU64,
    pub(super) mapped: Gauge,
    pub(super) reserves: AtomicU64,
    pub(super) frees: AtomicU64,
    pub(super) creates: AtomicU64,
    pub(super) unmaps: AtomicU64,
    pub(super) failures: AtomicU64,
}

impl Cells {
    pub(super) fn tag_of(&self, address: u64) -> Option<TagId> {
        lock(&self.by_address).get(&address).map(|cell| cell.tag)
    }

    pub(super) fn at(&self, address: u64) -> Option<CellInfo> {
        lock(&self.by_address).get(&address).cloned()
    }

    pub(super) fn count<T>(&self, counter: &AtomicU64, outcome: Result<T>) -> Result<T> {
        match &outcome {
            Ok(_) => counter.fetch_add(1, Ordering::Relaxed),
            Err(_) => self.failures.fetch_add(1, Ordering::Relaxed),
        };
        outcome
    }

    /// Notes whether a caller has the cell mapped; the answer is whether that is new. Of a cell that
    /// was freed meanwhile nothing is noted.
    pub(super) fn note(&self, cell: &CellInfo, mapped: bool) -> bool {
        let mut cells = lock(&self.by_address);
        match cells.get_mut(&cell.address) {
            Some(known) if known.serial == cell.serial && known.counted != mapped => {
                known.is_born = true;
                known.counted = mapped;
                true
            }
            _ => false,
        }
    }

    pub(super) fn next(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed) + 1
    }
}
