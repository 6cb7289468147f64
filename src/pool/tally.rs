//! The most that the blocks of several threads have come to together: of the whole pool, of a tag, of
//! a stream.

use super::cache::Counts;
use crate::core::append_list::AppendList;
use crate::core::sync::lock;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};
use std::sync::{Arc, Mutex};

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

/// Whose counts there are.
enum Members {
    /// Looked at without a lock. What was added stays, and counts for one after another.
    Growing(Box<AppendList<Arc<Counts>>>),
    /// Those come and go.
    Changing(Mutex<Vec<Arc<Counts>>>, AtomicUsize),
}

impl Members {
    fn len(&self) -> usize {
        match self {
            Members::Growing(list) => list.len(),
            Members::Changing(_, len) => len.load(Acquire),
        }
    }

    fn each(&self, see: impl FnMut(&Arc<Counts>)) {
        match self {
            Members::Growing(list) => list.iter().for_each(see),
            Members::Changing(list, _) => lock(list).iter().for_each(see),
        }
    }
}

/// Counts that are looked at together, and the most they were seen to come to.
pub struct Tally {
    members: Members,
    requested: AtomicU64,
    allocated: AtomicU64,
    blocks: AtomicU64,
    /// Odd while counts are put back to nothing one by one.
    clearing: AtomicU64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally::of(Members::Growing(Box::default()))
    }
}

/// Raises a peak, where it must be raised at all: reading is cheaper than writing.
fn raise(peak: &AtomicU64, seen: u64) {
    // A sum over threads that move meanwhile can be less than nothing.
    if seen <= i64::MAX as u64 && seen > peak.load(Relaxed) {
        peak.fetch_max(seen, Relaxed);
    }
}

impl Tally {
    fn of(members: Members) -> Tally {
        Tally {
            members,
            requested: AtomicU64::default(),
            allocated: AtomicU64::default(),
            blocks: AtomicU64::default(),
            clearing: AtomicU64::default(),
        }
    }

    /// One whose counts may be taken away again ([`Tally::remove`]).
    pub fn changing() -> Tally {
        Tally::of(Members::Changing(Mutex::default(), AtomicUsize::new(0)))
    }

    /// How many threads and heaps write to it.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// One more counts. From the second on, peaks are those seen by looking.
    pub fn add(&self, counts: Arc<Counts>) {
        if self.len() == 1 {
            self.raise(self.alone());
        }
        match &self.members {
            Members::Growing(list) => drop(list.push(counts)),
            Members::Changing(list, len) => {
                let mut list = lock(list);
                list.push(counts);
                len.store(list.len(), Release);
            }
        }
    }

    /// These, which come to nothing together, write to it no more.
    pub fn remove(&self, gone: &[Arc<Counts>]) {
        if self.len() == 1 {
            self.raise(self.alone());
        }
        if let Members::Changing(list, len) = &self.members {
            let mut list = lock(list);
            list.retain(|counts| !gone.iter().any(|gone| Arc::ptr_eq(counts, gone)));
            len.store(list.len(), Release);
        }
    }

    /// Lets `clear` put counts back to nothing that come to nothing together: nobody sees some of
    /// them so and others not. One thread at a time.
    pub fn clearing(tallies: [&Tally; 3], clear: impl FnOnce()) {
        for tally in tallies {
            // What the only one has counted exactly is lost with it.
            if tally.len() == 1 {
                tally.raise(tally.alone());
            }
            tally.clearing.fetch_add(1, Relaxed);
        }
        fence(Release);
        clear();
        for tally in tallies {
            tally.clearing.fetch_add(1, Release);
        }
    }

    /// Looks at what there is now. None where one alone counts, who has counted exactly.
    pub fn look(&self) -> Option<Level> {
        if self.len() <= 1 {
            return None;
        }
        loop {
            let before = self.clearing.load(Acquire);
            let level = self.level();
            fence(Acquire);
            if before % 2 == 0 && self.clearing.load(Relaxed) == before {
                self.raise(level);
                return Some(level);
            }
            std::hint::spin_loop();
        }
    }

    fn level(&self) -> Level {
        let mut level = Level::default();
        self.members.each(|counts| {
            let taken = counts.taken.load(Relaxed);
            let here = Level {
                requested: counts.requested.load(Relaxed),
                allocated: counts.allocated.load(Relaxed),
                blocks: taken.wrapping_sub(counts.given.load(Relaxed)),
            };
            level.requested = level.requested.wrapping_add(here.requested);
            level.allocated = level.allocated.wrapping_add(here.allocated);
            level.blocks = level.blocks.wrapping_add(here.blocks);
        });
        level
    }

    /// It was seen to come to this.
    pub fn raise(&self, level: Level) {
        raise(&self.requested, level.requested);
        raise(&self.allocated, level.allocated);
        raise(&self.blocks, level.blocks);
    }

    /// The most there was, as far as was seen, where `now` is what there is.
    pub fn peak(&self, now: Level) -> Level {
        let alone = match self.len() {
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
        let mut alone = None;
        self.members.each(|counts| {
            alone.get_or_insert(Level {
                requested: counts.high_requested.load(Relaxed),
                allocated: counts.high_allocated.load(Relaxed),
                blocks: counts.high_blocks.load(Relaxed),
            });
        });
        alone.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_counts_exactly_and_several_as_far_as_was_looked() {
        let tally = Tally::default();
        let (one, two) = (Arc::<Counts>::default(), Arc::<Counts>::default());
        tally.add(one.clone());
        one.took(100, 512);
        one.gave(100, 512);
        assert!(tally.look().is_none());
        let level = |requested, allocated, blocks| Level {
            requested,
            allocated,
            blocks,
        };
        assert_eq!(tally.peak(Level::default()), level(100, 512, 1));
        tally.add(two.clone());
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

    #[test]
    fn peaks_stay_when_counts_are_taken_away_or_cleared() {
        let level = |requested, allocated, blocks| Level {
            requested,
            allocated,
            blocks,
        };
        let (whole, stream) = (Tally::default(), Tally::changing());
        let (one, two) = (Arc::<Counts>::default(), Arc::<Counts>::default());
        for tally in [&whole, &stream] {
            tally.add(one.clone());
        }
        one.took(700, 1024);
        one.gave(700, 1024);
        stream.remove(std::slice::from_ref(&one));
        Tally::clearing([&whole, &whole, &whole], || one.clear());
        assert_eq!(stream.len(), 0);
        for tally in [&whole, &stream] {
            assert_eq!(tally.peak(Level::default()), level(700, 1024, 1));
        }
        for tally in [&whole, &stream] {
            tally.add(two.clone());
        }
        stream.add(one.clone());
        one.took(2000, 2048);
        two.took(1, 512);
        assert_eq!(stream.look(), Some(level(2001, 2560, 2)));
        assert_eq!(whole.look(), stream.look());
        one.gave(2000, 2048);
        two.gave(1, 512);
        stream.remove(&[one, two]);
        assert_eq!(stream.peak(Level::default()), level(2001, 2560, 2));
    }

    /// Counts that cancel each other out are cleared while another thread looks.
    #[test]
    fn nobody_sees_counts_half_cleared() {
        let whole = Tally::default();
        let pairs: Vec<_> = (0..40).map(|_| Arc::<Counts>::default()).collect();
        pairs.iter().for_each(|counts| whole.add(counts.clone()));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..3000 {
                    // First what is less than nothing, so that the sum is never above.
                    for pair in pairs.chunks(2) {
                        pair[1].gave(1000, 1024);
                        pair[0].took(1000, 1024);
                    }
                    Tally::clearing([&whole, &whole, &whole], || {
                        pairs.iter().rev().for_each(|counts| counts.clear());
                    });
                }
            });
            while !writer.is_finished() {
                whole.look();
            }
        });
        assert_eq!(whole.peak(Level::default()), Level::default());
    }
}
