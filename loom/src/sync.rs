//! Loom's in place of the standard ones.

pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub use loom::sync::{Mutex, MutexGuard};
pub use loom::thread::yield_now;
pub use std::sync::Arc;
use std::sync::OnceLock;

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

/// The system's barrier on all threads makes a full one of it when it matters.
pub fn compiler_fence(order: Ordering) {
    fence(order);
}

loom::lazy_static! {
    /// How many tables were made.
    static ref MADE: AtomicUsize = AtomicUsize::new(0);
    static ref MAKING: Mutex<()> = Mutex::new(());
}

/// A thing made once, and its number among all. That making comes before finding is the promise of what
/// this stands for; one atomic for all tells loom, which would not bear the thousands that tables have.
pub struct OnceBox<T>(OnceLock<(usize, Box<T>)>);

impl<T> Default for OnceBox<T> {
    fn default() -> OnceBox<T> {
        OnceBox::new()
    }
}

impl<T> OnceBox<T> {
    pub fn new() -> OnceBox<T> {
        OnceBox(OnceLock::new())
    }

    pub fn get(&self) -> Option<&T> {
        let seen = MADE.load(Ordering::Acquire);
        let (number, value) = self.0.get()?;
        (*number <= seen).then_some(value)
    }

    pub fn get_or_init(&self, make: impl FnOnce() -> Box<T>) -> &T {
        if let Some(value) = self.get() {
            return value;
        }
        let _turn = lock(&MAKING);
        if self.0.get().is_none() {
            let number = MADE.load(Ordering::Acquire) + 1;
            // Nobody finds it before the number is reached.
            let _ = self.0.set((number, make()));
            MADE.store(number, Ordering::Release);
        }
        &self.0.get().unwrap().1
    }
}
