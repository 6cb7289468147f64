//! What the locks here share between threads, for `loom/` to put its own in place.

pub use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence, fence};
pub use std::thread::yield_now;
