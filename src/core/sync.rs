//! Locks that a panic elsewhere does not take away; and all that the files with an order of their own
//! share between threads, for `loom/` to put its own in place.

pub use once_cell::race::OnceBox;
pub use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence,
};
pub use std::sync::{Arc, Mutex, MutexGuard};
use std::sync::{PoisonError, TryLockError};
pub use std::thread::yield_now;

/// [`lock`], unless another thread has it locked.
pub fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Locks `mutex`, poisoned or not: what these locks guard is consistent between statements, and an
/// allocator that stops answering because another thread panicked would only add to the damage.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
