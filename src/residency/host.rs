//! Room on the host for what sleeps: pinned parts that stay for the next sleep until they are trimmed.
//! Any number of bytes can be had in pieces as long as that many are free; pieces never reach from one part
//! into the next, since a copy that crosses two registrations fails in the driver.

use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::gpu::{HostPiece, Registered};
use crate::sys::limits;
use crate::sys::pages::HUGE_PAGE;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The length of a part. Of 32, 64 and 128 MiB, populated by 4 to 12 threads, this was the best with 8 (one
/// H200's host: a first sleep at 31 to 39 GB/s, with 128 MiB and 6 threads 28 to 34).
pub(super) const PART_BYTES: u64 = 64 << 20;

/// What is left to the rest of the machine when more is pinned.
const LEFT_TO_OTHERS: u64 = 1 << 30;

/// All room of the process.
#[derive(Default)]
pub struct HostStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By first address.
    parts: BTreeMap<u64, Arc<Registered>>,
    /// Free stretches by first address, joined only inside a part.
    free: BTreeMap<u64, u64>,
    free_bytes: u64,
    /// Of the free bytes, those that are promised to somebody.
    promised: u64,
    /// Bytes that somebody is about to add.
    coming: u64,
    total: u64,
}

/// What is pinned for sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostUse {
    /// Bytes pinned.
    pub pinned: u64,
    /// Those that hold something.
    pub used: u64,
}

/// A stretch of a part; free again when dropped.
pub(super) struct Span {
    store: Arc<HostStore>,
    pub piece: HostPiece,
}

impl Drop for Span {
    fn drop(&mut self) {
        let begin = self.piece.part.address() + self.piece.offset;
        lock(&self.store.inner).give(begin, self.piece.bytes);
    }
}

impl Inner {
    fn give(&mut self, mut begin: u64, mut bytes: u64) {
        self.free_bytes += bytes;
        let end = begin + bytes;
        if let Some((before, length)) = self.free.range(..begin).next_back() {
            let (before, length) = (*before, *length);
            if before + length == begin && !self.parts.contains_key(&begin) {
                (begin, bytes) = (before, bytes + length);
            }
        }
        if !self.parts.contains_key(&end) {
            if let Some(after) = self.free.remove(&end) {
                bytes += after;
            }
        }
        self.free.insert(begin, bytes);
    }

    fn part_of(&self, address: u64) -> Option<&Arc<Registered>> {
        let (begin, part) = self.parts.range(..=address).next_back()?;
        (address - begin < part.bytes()).then_some(part)
    }

    fn use_now(&self) -> HostUse {
        HostUse {
            pinned: self.total,
            used: self.total - self.free_bytes,
        }
    }
}

/// A promise of room: part of it free already, part still to be made.
pub(super) struct Promise {
    store: Arc<HostStore>,
    /// Bytes of free room that are this one's.
    ready: u64,
    /// Bytes still to be made for it.
    pub missing: u64,
}

impl HostStore {
    /// What is pinned now.
    pub fn in_use(&self) -> HostUse {
        lock(&self.inner).use_now()
    }

    /// Promises `bytes` of room, of at most `budget` pinned in all. An error where that cannot be; then
    /// nothing has changed.
    pub(super) fn promise(self: &Arc<HostStore>, bytes: u64, budget: u64) -> Result<Promise> {
        let mut inner = lock(&self.inner);
        let ready = bytes.min(inner.free_bytes - inner.promised);
        // Whole huge pages are pinned.
        let missing = (bytes - ready).checked_next_multiple_of(HUGE_PAGE);
        let missing = missing.unwrap_or(u64::MAX);
        let pinned = inner.total + inner.coming;
        if missing > 0 {
            let lacking = |what: String| {
                Err(Error::new(Status::OutOfMemory, "sleep")
                    .bytes(bytes)
                    .detail(format!(
                        "{ready} bytes of pinned host memory are free, {missing} more would have to be \
                         pinned: {what}"
                    ))
                    .advice("Sleep less, to a file or without a copy"))
            };
            if missing > budget.saturating_sub(pinned) {
                return lacking(format!(
                    "{pinned} are, and the option `sleep_host_limit` allows {budget}"
                ));
            }
            let left = limits::available();
            let needed = missing.saturating_add(inner.coming + LEFT_TO_OTHERS);
            if needed > left {
                return lacking(format!("the host has {left} bytes left"));
            }
        }
        inner.promised += ready;
        inner.coming += missing;
        Ok(Promise {
            store: self.clone(),
            ready,
            missing,
        })
    }

    /// Gives free parts back to the system, until at most `keep` bytes are pinned; the bytes given back.
    /// Waits for work of the devices, since unpinning does.
    pub fn trim(&self, keep: u64) -> u64 {
        let mut gone = Vec::new();
        let mut inner = lock(&self.inner);
        let candidates: Vec<(u64, u64)> = (inner.parts.iter().rev())
            .map(|(address, part)| (*address, part.bytes()))
            .collect();
        let mut given_back = 0;
        for (address, bytes) in candidates {
            let is_free = inner.free.get(&address) == Some(&bytes);
            let is_promised = inner.free_bytes - inner.promised.min(inner.free_bytes) < bytes;
            if inner.total <= keep || !is_free || is_promised {
                continue;
            }
            inner.free.remove(&address);
            inner.free_bytes -= bytes;
            inner.total -= bytes;
            gone.extend(inner.parts.remove(&address));
            given_back += bytes;
        }
        drop(inner);
        drop(gone);
        given_back
    }

    /// Finds whatever contradicts itself.
    pub fn audit(&self) -> std::result::Result<(), String> {
        let inner = lock(&self.inner);
        let total: u64 = inner.parts.values().map(|part| part.bytes()).sum();
        let free: u64 = inner.free.values().sum();
        if (total, free) != (inner.total, inner.free_bytes) {
            return Err(format!(
                "{total} bytes in parts and {free} free, {} and {} counted",
                inner.total, inner.free_bytes
            ));
        }
        for (address, bytes) in &inner.free {
            let part = (inner.part_of(*address)).ok_or("free memory in no part")?;
            if address + bytes > part.address() + part.bytes() {
                return Err(format!("{bytes} free bytes at {address:#x} cross a seam"));
            }
        }
        Ok(())
    }
}

impl Promise {
    /// A part that was made for it.
    pub fn add(&mut self, part: Registered) {
        let bytes = part.bytes();
        let mut inner = lock(&self.store.inner);
        let address = part.address();
        inner.parts.insert(address, Arc::new(part));
        inner.total += bytes;
        inner.coming -= bytes.min(self.missing);
        inner.promised += bytes;
        inner.give(address, bytes);
        self.missing -= bytes.min(self.missing);
        self.ready += bytes;
    }

    /// Room for up to `most` bytes; none when nothing is left that is ready.
    pub fn take(&mut self, most: u64) -> Option<Span> {
        let most = most.min(self.ready);
        if most == 0 {
            return None;
        }
        let mut inner = lock(&self.store.inner);
        let (begin, length) = inner.free.pop_first()?;
        let bytes = length.min(most);
        if bytes < length {
            inner.free.insert(begin + bytes, length - bytes);
        }
        inner.free_bytes -= bytes;
        inner.promised -= bytes;
        self.ready -= bytes;
        let part = inner.part_of(begin)?.clone();
        let piece = HostPiece {
            offset: begin - part.address(),
            bytes,
            part,
        };
        Some(Span {
            store: self.store.clone(),
            piece,
        })
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut inner = lock(&self.store.inner);
        inner.promised -= self.ready;
        inner.coming -= self.missing;
    }
}
