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

    #[path = "../../src/pool/order.rs"]
    pub mod order;

    pub mod pools {
        /// As if there were one thread.
        pub fn thread_number() -> u64 {
            1
        }
    }

    pub mod arena {
        /// As in the library.
        pub const LARGE_UNITS: u64 = 2048;
    }

    pub mod heap {
        /// A cache only keeps the heap for whoever asks, but for one question.
        pub struct Heap {
            pub key: HeapKey,
        }

        pub struct HeapKey {
            pub order: super::order::Order,
        }
    }
}

#[path = "."]
pub mod sys {
    #[path = "../../src/sys/biased.rs"]
    pub mod biased;

    pub mod atomics {
        pub use crate::core::sync::{
            AtomicBool, AtomicUsize, Ordering, compiler_fence, fence, yield_now,
        };
    }

    /// A lock is one, however it waits.
    pub mod spin {
        use loom::sync::{Mutex, MutexGuard};

        #[derive(Default)]
        pub struct SpinLock<T>(Mutex<T>);

        pub type SpinGuard<'a, T> = MutexGuard<'a, T>;

        impl<T> SpinLock<T> {
            pub fn lock(&self) -> SpinGuard<'_, T> {
                self.0.lock().unwrap()
            }
        }
    }

    /// Loom's threads are all of one of the system's.
    pub mod thread_mark {
        use std::sync::atomic::{AtomicUsize, Ordering};

        #[derive(Clone, Copy)]
        pub struct ThreadMark(usize);

        loom::thread_local! {
            static OWN: usize = {
                static NEXT: AtomicUsize = AtomicUsize::new(1);
                NEXT.fetch_add(1, Ordering::Relaxed)
            };
        }

        impl ThreadMark {
            pub fn here() -> ThreadMark {
                ThreadMark(OWN.with(|own| *own))
            }

            pub fn number(self) -> usize {
                self.0
            }
        }
    }

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
