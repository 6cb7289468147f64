//! A lock that costs its owner two plain stores. One thread goes in and out all day; any other may
//! shut it out, and pays for both by a barrier on every thread of the process (membarrier on Linux).
//! Where there is no such barrier, the owner pays a fence.
//!
//! The owner says that it is inside, then looks whether it is shut out; the other shuts it out, then
//! looks whether it is inside. With a barrier between the two steps of each, at least one sees the
//! other (Dekker's pattern; the asymmetric form is that of Dice, Huang and Yang, "Asymmetric Dekker
//! synchronization", 2001).

use super::sync::{AtomicBool, Ordering, compiler_fence, fence, yield_now};

/// The gate.
pub struct Gate {
    inside: AtomicBool,
    shut: AtomicBool,
    /// Whether others have a barrier on all threads.
    asymmetric: bool,
}

impl Gate {
    /// An open gate. `asymmetric` says that [`Gate::shut`] will be given a barrier that acts on all
    /// threads of the process.
    pub fn new(asymmetric: bool) -> Gate {
        Gate {
            inside: AtomicBool::new(false),
            shut: AtomicBool::new(false),
            asymmetric,
        }
    }

    /// The owner goes in, if it is not shut out.
    #[inline]
    pub fn enter(&self) -> Option<Inside<'_>> {
        self.inside.store(true, Ordering::Relaxed);
        match self.asymmetric {
            true => compiler_fence(Ordering::SeqCst),
            false => fence(Ordering::SeqCst),
        }
        let inside = Inside(self);
        (!self.shut.load(Ordering::Acquire)).then_some(inside)
    }

    /// Shuts the owner out and waits until it is outside. One thread at a time may do this.
    pub fn shut(&self, barrier: impl FnOnce()) -> Shut<'_> {
        let was_shut = self.shut.swap(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.asymmetric {
            barrier();
        }
        while self.inside.load(Ordering::Acquire) {
            yield_now();
        }
        Shut {
            gate: self,
            was_shut,
        }
    }

    /// Shuts the owner out for good. Only while it is shut out.
    pub fn shut_for_good(shut: Shut<'_>) {
        std::mem::forget(shut);
    }
}

/// The owner is inside while this lives.
pub struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.inside.store(false, Ordering::Release);
    }
}

/// The owner is shut out while this lives.
pub struct Shut<'a> {
    gate: &'a Gate,
    /// For good.
    was_shut: bool,
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.gate.shut.store(self.was_shut, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn owner_and_thief_are_never_inside_together() {
        let gate = Gate::new(false);
        // Two words that whoever is inside makes unequal for a moment.
        let words = [AtomicU64::new(0), AtomicU64::new(0)];
        let step = || {
            let seen = words[0].load(Ordering::Relaxed);
            assert_eq!(seen, words[1].load(Ordering::Relaxed));
            words[0].store(seen + 1, Ordering::Relaxed);
            words[1].store(seen + 1, Ordering::Relaxed);
        };
        let stop = AtomicBool::new(false);
        let (mut entered, mut shut) = (0, 0);
        std::thread::scope(|scope| {
            let thief = scope.spawn(|| {
                let mut shut = 0;
                while !stop.load(Ordering::Relaxed) {
                    let _shut = gate.shut(|| {});
                    step();
                    shut += 1;
                }
                shut
            });
            while entered < 20_000 {
                if let Some(_inside) = gate.enter() {
                    step();
                    entered += 1;
                }
            }
            stop.store(true, Ordering::Relaxed);
            shut = thief.join().unwrap();
        });
        assert_eq!(words[0].load(Ordering::Relaxed), entered + shut);
    }

    #[test]
    fn shut_for_good_stays_shut() {
        let gate = Gate::new(false);
        assert!(gate.enter().is_some());
        Gate::shut_for_good(gate.shut(|| {}));
        assert!(gate.enter().is_none());
        drop(gate.shut(|| {}));
        assert!(gate.enter().is_none());
    }
}
