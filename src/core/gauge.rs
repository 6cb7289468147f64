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

/// Memory held: its bytes, and in how many pieces.
#[derive(Default)]
pub struct Holding {
    bytes: Gauge,
    pieces: Gauge,
}

impl Holding {
    /// One more piece is held.
    pub fn add(&self, bytes: u64) {
        self.bytes.add(bytes);
        self.pieces.add(1);
    }

    /// One that was added is held no more.
    pub fn sub(&self, bytes: u64) {
        self.bytes.sub(bytes);
        self.pieces.sub(1);
    }

    /// Its bytes.
    pub fn read(&self) -> Reading {
        self.bytes.read()
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> Reading {
        self.pieces.read()
    }

    /// Starts the peaks again from what there is now.
    pub fn reset_peak(&self) {
        self.bytes.reset_peak();
        self.pieces.reset_peak();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_counted_beside_their_bytes() {
        let holding = Holding::default();
        holding.add(5);
        holding.add(7);
        holding.sub(5);
        let shown = |reading: Reading| (reading.now, reading.peak, reading.added);
        assert_eq!(shown(holding.read()), (7, 12, 12));
        assert_eq!(shown(holding.pieces()), (1, 2, 2));
        holding.reset_peak();
        assert_eq!((holding.read().peak, holding.pieces().peak), (7, 1));
    }

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
