//! How a heap ends: it is retired, then taken from every thread that keeps something of it, and over once
//! nothing of it is out. What is done on the way is the heap's; the order is here, so that it can be tried in
//! every way.

use crate::core::sync::{
    AtomicBool, AtomicUsize,
    Ordering::{AcqRel, Acquire, Release, SeqCst},
};

/// How far the end of a heap has come.
#[derive(Default)]
pub struct Ending {
    retired: AtomicBool,
    shut: AtomicBool,
    guests: AtomicUsize,
}

impl Ending {
    /// The heap gets no new blocks from here on. Of those who say so, one is to `take_back` what threads
    /// keep of it: until no thread keeps anything any more, nor will, and it is free memory. Whether the
    /// caller was the one.
    pub fn retire(&self, take_back: impl FnOnce()) -> bool {
        if self.retired.swap(true, AcqRel) {
            return false;
        }
        take_back();
        self.shut.store(true, Release);
        true
    }

    /// Whether the heap gets no new blocks.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Acquire)
    }

    /// A thread without a cache begins work on the heap.
    pub fn enter(&self) {
        self.guests.fetch_add(1, SeqCst);
    }

    /// It has done its work.
    pub fn leave(&self) {
        self.guests.fetch_sub(1, Release);
    }

    /// Whether nothing of the heap is out: no cache is at work on it, and no block but those given back.
    /// Then it stays so, but for guests.
    pub fn is_over(&self, is_busy: impl Fn() -> bool, has_blocks: impl Fn() -> bool) -> bool {
        // Looked at before the counts, which then show what was allocated, and after them, since who has
        // counted a block as given back is still at work on it.
        let is_quiet = || !is_busy() && self.guests.load(Acquire) == 0;
        // Until it is shut, threads may keep blocks that are counted as given back.
        self.shut.load(Acquire) && is_quiet() && !has_blocks() && is_quiet()
    }
}
