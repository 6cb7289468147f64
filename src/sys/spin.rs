//! A lock for what one thread uses nearly alone: let go of by a plain store, where a mutex must find out whether
//! somebody sleeps on it. Who finds it taken yields until it is free.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

/// The lock. A panic in it does not close it.
#[derive(Debug, Default)]
pub struct SpinLock<T> {
    is_taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is used by one thread at a time, whose turn it is by `is_taken`.
unsafe impl<T: Send> Sync for SpinLock<T> {}

/// How often is looked before the processor is left to others.
const LOOKS: u32 = 64;

impl<T> SpinLock<T> {
    /// Waits for its turn.
    #[inline]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        let take =
            || (self.is_taken).compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        if take().is_err() {
            self.wait(take);
        }
        SpinGuard(self, PhantomData)
    }

    #[cold]
    fn wait(&self, take: impl Fn() -> std::result::Result<bool, bool>) {
        loop {
            for _ in 0..LOOKS {
                if !self.is_taken.load(Ordering::Relaxed) && take().is_ok() {
                    return;
                }
                std::hint::spin_loop();
            }
            std::thread::yield_now();
        }
    }
}

/// The turn; over when dropped.
pub struct SpinGuard<'a, T>(&'a SpinLock<T>, PhantomData<&'a mut T>);

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: it is this guard's turn.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: it is this guard's turn, and the guard is borrowed alone.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_is_inside() {
        let lock: SpinLock<(u64, u64)> = SpinLock::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let mut turn = lock.lock();
                        let pair: &mut (u64, u64) = &mut turn;
                        assert_eq!(pair.0, pair.1);
                        pair.0 += 1;
                        std::hint::black_box(&mut *pair);
                        pair.1 += 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), (80_000, 80_000));
    }
}
