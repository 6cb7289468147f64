//! Warnings: what went less well than it should without being an error. Each kind is logged once,
//! since an allocator would otherwise repeat it a thousand times a second, and counted always.

use std::sync::atomic::{AtomicU64, Ordering};

/// The kinds of warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Warning {
    /// The environment holds something odd.
    Environment,
    /// Advice on managed memory was refused.
    Advice,
    /// A prefetch of managed memory was refused.
    Prefetch,
    /// Managed memory no longer prefers the device: the card would not hold it.
    ManagedBeyondCard,
    /// torch loaded the entry points without our hooks.
    PlainLoad,
    /// A block of a capture is kept for ever, since nobody will say when the graph is gone.
    CaptureKept,
    /// An address that is no block of ours, or no longer one, was freed.
    RejectedFree,
    /// Giving memory back failed; it will be tried again.
    GiveBack,
    /// Letting a peer device reach memory failed.
    PeerAccess,
    /// Asking whether the device can do something failed; it is done without.
    Probe,
    /// A log file could not be opened or written.
    LogFile,
    /// The library is in the process twice.
    LoadedTwice,
    /// torch's question for the largest block cannot be answered.
    CacheInfo,
    /// Files of sleep go through the page cache.
    BufferedFile,
    /// Memory of the host could not be bound to a node.
    Unbound,
    /// Memory of another process could not be opened, since it serves no more openers.
    NotServed,
}

const KINDS: usize = Warning::NotServed as usize + 1;

/// How often each kind of warning arose.
#[derive(Default)]
pub struct Warnings {
    counts: [AtomicU64; KINDS],
}

impl Warnings {
    /// Counts a warning, and logs its text the first time its kind arises.
    pub fn warn(&self, kind: Warning, text: impl FnOnce() -> String) {
        if self.counts[kind as usize].fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(target: "hbmalloc", "{}", text());
        }
    }

    /// How many warnings there were of every kind together.
    pub fn total(&self) -> u64 {
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// How many warnings there were of one kind.
    pub fn count(&self, kind: Warning) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }
}
