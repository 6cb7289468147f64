//! The files of the library that need no lock where others do, compiled with loom's atomics in place of
//! the standard ones. `loom/tests` then tries the orders in which their steps can happen, reads of
//! stale values included.
//!
//! The files take what they share from `core::sync`, so that this crate can put its own there. What is
//! around them is replaced by as little as they need.
#![allow(dead_code, missing_docs)]

#[path = "."]
pub mod core {
    #[path = "../../src/core/gate.rs"]
    pub mod gate;
    #[path = "../../src/core/radix.rs"]
    pub mod radix;
    #[path = "sync.rs"]
    pub mod sync;
}

#[path = "."]
pub mod pool {
    #[path = "../../src/pool/cache.rs"]
    pub mod cache;
    #[path = "../../src/pool/ending.rs"]
    pub mod ending;
    #[path = "../../src/pool/exchange.rs"]
    pub mod exchange;
    #[path = "../../src/pool/waiting.rs"]
    pub mod waiting;
    #[path = "../../src/pool/word.rs"]
    pub mod word;

    pub mod arena {
        /// As in the library.
        pub const LARGE_UNITS: u64 = 2048;
    }

    pub mod heap {
        /// A cache only keeps the heap for whoever asks, but for one question.
        #[derive(Default)]
        pub struct Heap {
            pub key: HeapKey,
        }

        #[derive(Default)]
        pub struct HeapKey {
            pub everywhere: bool,
        }
    }
}

pub mod sys {
    pub mod linux {
        use loom::sync::atomic::{Ordering, fence};

        /// The asymmetric form is modelled: the owner's compiler fence is a full one here, which is what
        /// the barrier makes of it.
        pub fn has_barrier_on_all_threads() -> bool {
            true
        }

        pub fn barrier_on_all_threads() {
            fence(Ordering::SeqCst);
        }
    }
}
