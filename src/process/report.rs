//! What an error says that memory has run out: who holds it, and what could be done.

use super::{DeviceEntry, tags};
use crate::error::{Error, Status};
use crate::source::Kind;

/// How many tags an error names, those whose blocks take most.
const TOLD_TAGS: usize = 3;

impl DeviceEntry {
    /// Adds to an error that memory has run out what is free, held, in blocks and waiting, the limit,
    /// and the tags whose blocks take most.
    pub(super) fn out_of_memory(&self, error: Error) -> Error {
        if error.status() != Status::OutOfMemory {
            return error;
        }
        let ordinal = self.state().device.ordinal();
        let (waiting, waiting_bytes) = self.pending();
        let mut text = match self.state().device.memory_info() {
            Ok((free, total)) => format!("device {ordinal} has {free} bytes free of {total}"),
            Err(_) => format!("device {ordinal} does not say what it has free"),
        };
        if let Some(limit) = self.state().limit.get() {
            text += &format!(", its limit is {limit}");
        }
        text += &format!(
            "; this process holds {}, {} of them in blocks, and {waiting_bytes} of {waiting} freed blocks wait for work to end",
            self.held_by_all(),
            self.in_blocks(),
        );
        let top = self.top_tags(TOLD_TAGS);
        // A program that uses no tags learns nothing by this.
        if top.iter().any(|(tag, _)| !tag.is_none()) {
            let told = top.iter().map(|(tag, bytes)| {
                let name = tags::table().name(*tag);
                let name = name.map_or("no tag".to_owned(), |name| format!("'{name}'"));
                format!("{bytes} under {name}")
            });
            text += &format!("; its blocks take {}", told.collect::<Vec<_>>().join(", "));
        }
        error.detail(text)
    }

    /// [`DeviceEntry::out_of_memory`] of the pool: what it holds too.
    pub(super) fn pool_out_of_memory(&self, error: Error) -> Error {
        let (Status::OutOfMemory, Some(pool)) = (error.status(), self.pool_in_use()) else {
            return error;
        };
        let text = format!(
            "the pool holds {} bytes, {} of them in blocks; its largest free piece has {}",
            self.held(Kind::Pool).now,
            pool.total().allocated,
            pool.largest_free(),
        );
        self.out_of_memory(error).also(&text)
    }

    /// Freed blocks that wait for work to end, and their bytes.
    pub(super) fn pending(&self) -> (u64, u64) {
        let deferral = &self.state().deferral;
        let pooled = self.pool_in_use().map_or((0, 0), |pool| pool.pending());
        let (blocks, bytes) = (deferral.entries(), deferral.bytes());
        (blocks + pooled.0, bytes + pooled.1)
    }

    /// Bytes of live blocks of all kinds.
    fn in_blocks(&self) -> u64 {
        let pooled = self.pool_in_use().map_or(0, |pool| pool.total().allocated);
        let sources = Kind::SOURCES.into_iter();
        pooled
            + sources
                .map(|kind| self.counters(kind).allocated())
                .sum::<u64>()
    }
}
