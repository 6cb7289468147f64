//! The most that the blocks of several threads have come to together: of the whole pool, of a tag, of
//! a stream.

use super::cache::Counts;
use crate::core::append_list::AppendList;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What blocks come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes of blocks.
    pub allocated: u64,
    /// Blocks.
    pub blocks: u64,
}

/// Counts that are looked at together, and the most they were seen to come to.
#[derive(Default)]
pub struct Tally {
    counts: AppendList<Arc<Counts>>,
    requested: AtomicU64,
    allocated: AtomicU64,
    blocks: AtomicU64,
}

/// Raises a peak, where it must be raised at all: reading is cheaper than writing.
fn raise(peak: &AtomicU64, seen: u64) {
    // A sum over threads that move meanwhile can be less than nothing.
    if seen <= i64::MAX as u64 && seen > peak.load(Relaxed) {
        peak.fetch_max(seen, Relaxed);
    }
}

impl Tally {
    /// How many threads and heaps write to it.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// One more counts; gives it back where there is no room. From the second on, peaks are those
    /// seen by looking.
    pub fn add(&self, counts: Arc<Counts>) -> Result<(), Arc<Counts>> {
        if self.counts.len() == 1 {
            self.raise(self.alone());
        }
        self.counts.push(counts)
    }

    /// Looks at what there is now. None where one alone counts, who has counted exactly.
    pub fn look(&self) -> Option<Level> {
        if self.counts.len() <= 1 {
            return None;
        }
        let mut level = Level::default();
        for counts in self.counts.iter() {
            let taken = counts.taken.load(Relaxed);
            let here = Level {
                requested: counts.requested.load(Relaxed),
                allocated: counts.allocated.load(Relaxed),
                blocks: taken.wrapping_sub(counts.given.load(Relaxed)),
            };
            level.requested = level.requested.wrapping_add(here.requested);
            level.allocated = level.allocated.wrapping_add(here.allocated);
            level.blocks = level.blocks.wrapping_add(here.blocks);
        }
        self.raise(level);
        Some(level)
    }

    /// It was seen to come to this.
    pub fn raise(&self, level: Level) {
        raise(&self.requested, level.requested);
        raise(&self.allocated, level.allocated);
        raise(&self.blocks, level.blocks);
    }

    /// The most there was, as far as was seen, where `now` is what there is.
    pub fn peak(&self, now: Level) -> Level {
        let alone = match self.counts.len() {
            0 | 1 => self.alone(),
            _ => Level::default(),
        };
        let most = |seen: &AtomicU64, alone: u64, now: u64| seen.load(Relaxed).max(alone).max(now);
        let allocated = most(&self.allocated, alone.allocated, now.allocated);
        Level {
            requested: most(&self.requested, alone.requested, now.requested).min(allocated),
            allocated,
            blocks: most(&self.blocks, alone.blocks, now.blocks),
        }
    }

    /// Begins again from what there is; the counts' own peaks are reset beside.
    pub fn reset(&self, now: Level) {
        self.requested.store(now.requested, Relaxed);
        self.allocated.store(now.allocated, Relaxed);
        self.blocks.store(now.blocks, Relaxed);
    }

    /// The peaks that the only one has counted.
    fn alone(&self) -> Level {
        let counts = self.counts.iter().next();
        counts.map_or(Level::default(), |counts| Level {
            requested: counts.high_requested.load(Relaxed),
            allocated: counts.high_allocated.load(Relaxed),
            blocks: counts.high_blocks.load(Relaxed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_counts_exactly_and_several_as_far_as_was_looked() {
        let tally = Tally::default();
        let (one, two) = (Arc::<Counts>::default(), Arc::<Counts>::default());
        assert!(tally.add(one.clone()).is_ok());
        one.took(100, 512);
        one.gave(100, 512);
        assert!(tally.look().is_none());
        let level = |requested, allocated, blocks| Level {
            requested,
            allocated,
            blocks,
        };
        assert_eq!(tally.peak(Level::default()), level(100, 512, 1));
        assert!(tally.add(two.clone()).is_ok());
        assert_eq!(tally.peak(Level::default()), level(100, 512, 1));
        one.took(700, 1024);
        two.took(200, 512);
        // Freed by another than took it.
        two.gave(700, 1024);
        assert_eq!(tally.look(), Some(level(200, 512, 1)));
        one.took(1000, 1024);
        tally.look();
        assert_eq!(tally.peak(Level::default()), level(1200, 1536, 2));
        tally.reset(level(5, 512, 1));
        assert_eq!(tally.peak(Level::default()), level(5, 512, 1));
    }
}
