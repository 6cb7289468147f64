//! A quantity that rises and falls, and the most it has been.

use std::sync::atomic::{AtomicU64, Ordering};

/// A gauge of bytes. Each value is exact; a reader beside writers may see the two a moment apart.
#[derive(Default)]
pub struct Gauge {
    now: AtomicU64,
    peak: AtomicU64,
}

/// What a gauge showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Now.
    pub now: u64,
    /// At most so far.
    pub peak: u64,
}

impl Gauge {
    /// Raises it.
    pub fn add(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
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
        }
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
        assert_eq!(gauge.read(), Reading { now: 2, peak: 3 });
    }
}
