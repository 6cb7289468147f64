//! A lock for what one thread uses nearly alone. That thread, the favourite, goes in and out by plain stores.
//! Another one that comes deposes it, and pays for that by a barrier on every thread of the process; from
//! then on threads take turns, until one has had many turns in a row and is the favourite.
//!
//! The favourite says that it is inside, then looks whether it still is the favourite; who deposes it says
//! that it is not, then looks whether it is inside: Dekker's pattern, as in `core::gate`. Each favourite
//! has a seat that no other thread ever has, so that one that was put off between its two steps disturbs
//! nobody.

use super::atomics::{AtomicBool, AtomicUsize, Ordering, compiler_fence, fence, yield_now};
use super::linux;
use super::spin::{SpinGuard, SpinLock};
use super::thread_mark::ThreadMark;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// So many threads may have been favourites.
const SEATS: usize = 16;

/// So many turns in a row make a favourite: deposing it costs microseconds, a turn some 10 nanoseconds more
/// than going in as the favourite does.
const TURNS_IN_A_ROW: u32 = 128;

/// Nobody's mark.
const NOBODY: usize = 0;

#[derive(Default)]
struct Seat {
    /// The mark of its owner while that is the favourite.
    favourite: AtomicUsize,
    is_inside: AtomicBool,
}

#[derive(Default)]
struct Turns {
    last: usize,
    in_a_row: u32,
    /// Whose the seats are.
    owners: Vec<usize>,
}

/// The lock.
pub struct BiasedLock<T> {
    /// The seat that was taken last.
    seat: AtomicUsize,
    seats: [Seat; SEATS],
    turn: SpinLock<Turns>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is used by one thread at a time: the favourite inside, or whoever's turn it is after
// the favourite has left for good.
unsafe impl<T: Send> Sync for BiasedLock<T> {}

impl<T> BiasedLock<T> {
    /// A lock without a favourite.
    pub fn new(value: T) -> BiasedLock<T> {
        BiasedLock {
            seat: AtomicUsize::new(0),
            seats: Default::default(),
            turn: SpinLock::default(),
            value: UnsafeCell::new(value),
        }
    }

    /// Goes in at once if the calling thread is the favourite. Not to be called inside.
    #[inline(always)]
    pub fn enter(&self) -> Option<Inside<'_, T>> {
        let me = ThreadMark::here().number();
        let seat = &self.seats[self.seat.load(Ordering::Acquire) % SEATS];
        if seat.favourite.load(Ordering::Relaxed) != me || seat.is_inside.load(Ordering::Relaxed) {
            return None;
        }
        seat.is_inside.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if seat.favourite.load(Ordering::Acquire) != me {
            seat.is_inside.store(false, Ordering::Release);
            return None;
        }
        Some(Inside {
            lock: self,
            seat: Some(seat),
            turn: None,
            _of_a_thread: PhantomData,
        })
    }

    /// Waits until nobody else is inside. Not to be called inside.
    #[inline]
    pub fn lock(&self) -> Inside<'_, T> {
        match self.enter() {
            Some(inside) => inside,
            None => self.take_turn(),
        }
    }

    #[cold]
    fn take_turn(&self) -> Inside<'_, T> {
        let turn = self.turn.lock();
        let number = self.seat.load(Ordering::Relaxed);
        let me = ThreadMark::here().number();
        let seat = &self.seats[number];
        let favourite = seat.favourite.load(Ordering::Relaxed);
        assert_ne!(favourite, me, "a thread that is inside locks again");
        if favourite != NOBODY {
            seat.favourite.store(NOBODY, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            linux::barrier_on_all_threads();
            while seat.is_inside.load(Ordering::Acquire) {
                yield_now();
            }
        }
        Inside {
            lock: self,
            seat: None,
            turn: Some(turn),
            _of_a_thread: PhantomData,
        }
    }

    /// The calling thread's turn ends, perhaps with a seat.
    #[cold]
    fn end_turn(&self, turns: &mut Turns) {
        let me = ThreadMark::here().number();
        turns.in_a_row = match turns.last == me {
            true => turns.in_a_row.saturating_add(1),
            false => 0,
        };
        turns.last = me;
        if turns.in_a_row < TURNS_IN_A_ROW && !turns.owners.is_empty() {
            return;
        }
        let own = turns.owners.iter().position(|owner| *owner == me);
        let seat = own.unwrap_or(turns.owners.len());
        if seat >= SEATS || !linux::has_barrier_on_all_threads() {
            return;
        }
        if own.is_none() {
            turns.owners.push(me);
        }
        self.seats[seat].favourite.store(me, Ordering::Relaxed);
        self.seat.store(seat, Ordering::Release);
    }
}

/// The calling thread is inside while this lives.
pub struct Inside<'a, T> {
    lock: &'a BiasedLock<T>,
    seat: Option<&'a Seat>,
    turn: Option<SpinGuard<'a, Turns>>,
    /// Who goes in comes out.
    _of_a_thread: PhantomData<*mut T>,
}

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: only this thread is inside.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Inside<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: only this thread is inside, and this is borrowed alone.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Inside<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(seat) = self.seat {
            seat.is_inside.store(false, Ordering::Release);
        }
        // Not before: a favourite that is inside without having said so would go in once more.
        if let Some(turns) = &mut self.turn {
            self.lock.end_turn(turns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(lock: &BiasedLock<(u64, u64)>) {
        let mut inside = lock.lock();
        let pair: &mut (u64, u64) = &mut inside;
        assert_eq!(pair.0, pair.1);
        pair.0 += 1;
        std::hint::black_box(&mut *pair);
        pair.1 += 1;
    }

    #[test]
    fn one_thread_at_a_time_is_inside() {
        for _ in 0..20 {
            let lock: BiasedLock<(u64, u64)> = BiasedLock::new((0, 0));
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| (0..20_000).for_each(|_| step(&lock)));
                }
            });
            assert_eq!(*lock.lock(), (60_000, 60_000));
        }
    }

    fn turns(lock: &BiasedLock<(u64, u64)>, count: u32) {
        (0..count).for_each(|_| step(lock));
    }

    #[test]
    fn the_first_thread_is_the_favourite_and_another_after_many_turns() {
        let works = linux::has_barrier_on_all_threads();
        let lock = BiasedLock::new((0, 0));
        assert!(lock.enter().is_none());
        turns(&lock, 1);
        assert_eq!(lock.enter().is_some(), works);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                turns(&lock, TURNS_IN_A_ROW);
                assert!(lock.enter().is_none());
                turns(&lock, 1);
                assert_eq!(lock.enter().is_some(), works);
            });
            other.join().unwrap();
        });
        assert!(lock.enter().is_none());
        turns(&lock, TURNS_IN_A_ROW + 1);
        assert_eq!(lock.enter().is_some(), works, "it has its seat again");
    }

    #[test]
    fn a_thread_that_is_inside_does_not_go_in_once_more() {
        let lock = BiasedLock::new((0, 0));
        let first = lock.lock();
        assert!(lock.enter().is_none());
        drop(first);
        if let Some(_inside) = lock.enter() {
            assert!(lock.enter().is_none());
            let again = std::panic::AssertUnwindSafe(|| drop(lock.lock()));
            assert!(std::panic::catch_unwind(again).is_err());
        }
        turns(&lock, 1);
    }

    #[test]
    fn threads_that_follow_one_another_at_odd_moments_lose_nothing() {
        let lock = BiasedLock::new((0, 0));
        let threads = SEATS as u64 + 2;
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let lock = &lock;
                scope.spawn(move || {
                    std::thread::sleep(std::time::Duration::from_millis(thread));
                    turns(lock, 100_000);
                });
            }
        });
        assert_eq!(lock.lock().0, 100_000 * threads);
    }
}
