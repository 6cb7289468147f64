//! The most bytes that may be held, and how many are. Room is taken before memory is made, in one
//! step, so that two threads cannot pass the limit together.

use crate::error::{Error, Result, Status};
use std::sync::atomic::{AtomicU64, Ordering};

/// What no limit is kept as.
const NONE: u64 = u64::MAX;

/// A limit on bytes held, and the bytes held.
pub struct Limit {
    /// Of what it is, for errors: `device 0`.
    of: String,
    limit: AtomicU64,
    used: AtomicU64,
}

impl Limit {
    /// No limit yet, and nothing held.
    pub fn new(of: impl Into<String>) -> Limit {
        Limit {
            of: of.into(),
            limit: AtomicU64::new(NONE),
            used: AtomicU64::new(0),
        }
    }

    /// Changes the limit; none for no limit. What is held beyond it stays held, and nothing more can
    /// be taken until less is.
    pub fn set(&self, limit: Option<u64>) {
        self.limit.store(limit.unwrap_or(NONE), Ordering::Relaxed);
    }

    /// The limit, where there is one.
    pub fn get(&self) -> Option<u64> {
        match self.limit.load(Ordering::Relaxed) {
            NONE => None,
            limit => Some(limit),
        }
    }

    /// The bytes held.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// By how much what is held exceeds the limit.
    pub fn excess(&self) -> u64 {
        self.used()
            .saturating_sub(self.limit.load(Ordering::Relaxed))
    }

    /// How much more may be taken.
    pub fn room(&self) -> u64 {
        self.limit
            .load(Ordering::Relaxed)
            .saturating_sub(self.used())
    }

    /// Takes room for `bytes`, to be given back by [`Limit::give`]. Out of memory where that would
    /// pass the limit; then nothing is taken.
    pub fn try_take(&self, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let sum = used.checked_add(bytes)?;
                (sum <= self.limit.load(Ordering::Relaxed)).then_some(sum)
            });
        match taken {
            Ok(_) => Ok(()),
            Err(used) => Err(self.exceeded(used, bytes)),
        }
    }

    /// Takes room for `bytes`, to be given back unless they are kept.
    pub fn hold(&self, bytes: u64) -> Result<Hold<'_>> {
        self.try_take(bytes)?;
        Ok(Hold { limit: self, bytes })
    }

    /// Counts `bytes` that are held already, whatever the limit.
    pub fn take_anyway(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives room back.
    pub fn give(&self, bytes: u64) {
        let before = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                Some(used.saturating_sub(bytes))
            });
        debug_assert!(
            before.is_ok_and(|used| used >= bytes),
            "more given back than was taken"
        );
    }

    /// The error of a request for `bytes` more where `used` are held.
    pub fn exceeded(&self, used: u64, bytes: u64) -> Error {
        let limit = self.limit.load(Ordering::Relaxed);
        Error::new(Status::OutOfMemory, "allocate")
            .bytes(bytes)
            .detail(format!(
                "the limit of {} is {limit} bytes and {used} bytes are held",
                self.of
            ))
            .advice("Raise the limit, or free memory")
    }
}

/// Room that was taken for memory about to be made.
#[must_use = "dropped, it gives the room back"]
pub struct Hold<'a> {
    limit: &'a Limit,
    bytes: u64,
}

impl Hold<'_> {
    /// The memory was made: whoever gives it back gives the room back.
    pub fn keep(mut self) {
        self.bytes = 0;
    }

    /// So much of it was made; what is left is given back unless it is kept too.
    pub fn keep_part(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.limit.give(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn threads_do_not_pass_it_together() {
        let limit = Limit::new("a test");
        limit.set(Some(1000));
        let most = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for step in 0..20_000u64 {
                        let bytes = 1 + step % 400;
                        if let Ok(hold) = limit.hold(bytes) {
                            most.fetch_max(limit.used(), Ordering::Relaxed);
                            drop(hold);
                        }
                    }
                });
            }
        });
        assert!((400..=1000).contains(&most.load(Ordering::Relaxed)));
        assert_eq!(limit.used(), 0);
    }

    #[test]
    fn lowered_below_what_is_held() {
        let limit = Limit::new("device 3");
        limit.try_take(100).unwrap();
        assert_eq!((limit.get(), limit.excess()), (None, 0));
        limit.set(Some(60));
        assert_eq!(
            (limit.get(), limit.excess(), limit.used()),
            (Some(60), 40, 100)
        );
        assert_eq!(limit.room(), 0);
        let error = limit.try_take(1).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
        let text = error.to_string();
        for part in [
            "device 3",
            "60 bytes",
            "100 bytes are held",
            "1 bytes asked for",
        ] {
            assert!(text.contains(part), "{text}");
        }
        limit.give(41);
        assert_eq!(limit.room(), 1);
        limit.try_take(1).unwrap();
        limit.try_take(u64::MAX).unwrap_err();
        assert_eq!(limit.used(), 60);
    }

    #[test]
    fn what_was_made_is_kept() {
        let limit = Limit::new("a test");
        let mut hold = limit.hold(10).unwrap();
        hold.keep_part(4);
        drop(hold);
        assert_eq!(limit.used(), 4);
        limit.hold(6).unwrap().keep();
        assert_eq!(limit.used(), 10);
    }

    proptest! {
        #[test]
        fn agrees_with_plain_arithmetic(steps in proptest::collection::vec((0u64..200, 0u8..3), 1..100)) {
            let limit = Limit::new("a test");
            let (mut most, mut used) = (u64::MAX, 0u64);
            for (amount, what) in steps {
                match what {
                    0 => {
                        let fits = amount == 0 || used + amount <= most;
                        prop_assert_eq!(limit.try_take(amount).is_ok(), fits);
                        used += if fits { amount } else { 0 };
                    }
                    1 => {
                        limit.give(amount.min(used));
                        used -= amount.min(used);
                    }
                    _ => {
                        most = amount;
                        limit.set(Some(most));
                    }
                }
                prop_assert_eq!(limit.used(), used);
                prop_assert_eq!(limit.excess(), used.saturating_sub(most));
            }
        }
    }
}
