//! A quantity that rises and falls, the most it has been, and all that was ever added to it.

use std::sync::atomic::{AtomicU64, Ordering};

/// A gauge of bytes or blocks. Each value is exact; a reader beside writers may see them a moment
/// apart.
#[derive(Default)]
pub struct Gauge {
    now: AtomicU64,
    peak: AtomicU64,
    added: AtomicU64,
}

/// What a gauge showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Now.
    pub now: u64,
    /// At most so far, or since the peak was last reset.
    pub peak: u64,
    /// All that was added so far.
    pub added: u64,
}

impl Gauge {
    /// Raises it.
    pub fn add(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
        self.added.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Lowers it by what was added before.
    pub fn sub(&self, bytes: u64) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn read(&self) -> Reading {
        Reading {
            now: self.now.load(Ordering::Relaxed),
            peak: self.peak.load(Ordering::Relaxed),
            added: self.added.load(Ordering::Relaxed),
        }
    }

    /// Starts the peak again from what there is now.
    pub fn reset_peak(&self) {
        // Not a store of `now`: that could undo a higher peak set between reading and storing.
        self.peak.store(0, Ordering::Relaxed);
        self.peak
            .fetch_max(self.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_stays() {
        let gauge = Gauge::default();
        gauge.add(3);
        gauge.sub(2);
        gauge.add(1);
        let wanted = |peak| Reading {
            now: 2,
            peak,
            added: 4,
        };
        assert_eq!(gauge.read(), wanted(3));
        gauge.reset_peak();
        assert_eq!(gauge.read(), wanted(2));
    }
}
