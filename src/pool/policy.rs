//! What to put behind a block's addresses: free chunks moved there, or new ones, and of what size.
//!
//! Giving access costs some 24 us a chunk whatever its size, unmapping 16, making one 7 to 9 (one H200,
//! driver 580). So few large chunks are cheap to put together; but a chunk can only move while it is
//! free all over, so large ones leave more memory behind that nobody can use.

use super::pace::Pace;
use crate::core::size::Align;
use crate::core::space::{Color, Epoch};

/// A free chunk that could be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which arena it is in, by the caller's count.
    pub arena: usize,
    /// Its first address.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// The length of the free piece around it.
    pub piece_bytes: u64,
    /// In whose order it is free, ...
    pub color: Color,
    /// ... and until when that one's work may use it.
    pub epoch: Epoch,
    /// Whether no work uses it any more.
    pub is_done: bool,
}

/// What goes behind one stretch of addresses, from its beginning on: chunks moved, then new ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Its first address.
    pub address: u64,
    /// Chunks to move.
    pub moved: Vec<Candidate>,
    /// Chunks to give back, for new ones of other lengths.
    pub released: Vec<Candidate>,
    /// Lengths of chunks to make.
    pub new: Vec<u64>,
}

impl Stretch {
    /// Bytes put behind it.
    pub fn bytes(&self) -> u64 {
        let moved: u64 = self.moved.iter().map(|chunk| chunk.bytes).sum();
        moved + self.new.iter().sum::<u64>()
    }

    /// The bytes of it that are made.
    pub fn new_bytes(&self) -> u64 {
        self.new.iter().sum()
    }
}

/// Beyond this a chunk's costs are those of its bytes.
const MOST: u64 = 256 << 20;

/// Which way the pool leans. The figures were found by modelling recorded programs, and variants of
/// them, with the driver's measured costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lean {
    /// How much more than was asked for at most the pool may hold before it moves memory instead of
    /// making more: in thousandths, ...
    slack: u64,
    /// ... and in bytes.
    slack_bytes: u64,
    /// Chunks are this part of the pool, ...
    part: u64,
    /// ... but not less than this, ...
    least: u64,
    /// ... and a block has no more than this many. ...
    pieces: u64,
    /// While the pool fills they are so many times as long, ...
    filling: u64,
    /// ... and under a tag as long as any.
    is_whole_under_tags: bool,
    /// Where memory cannot move, what the pool may hold beyond what was asked for, in hundredths.
    segment_slack: u64,
}

/// What a block's chunks are made for.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// The block's length.
    pub bytes: u64,
    /// The most bytes that were in use at a time, the block included.
    pub most: u64,
    /// The bytes in use, without the block.
    pub live: u64,
    /// Those of all blocks so far.
    pub total: u64,
    /// Whether it has a tag.
    pub is_tagged: bool,
}

impl Use {
    /// Whether most of what was asked for is still in use: weights being loaded, the first step of a
    /// training. What is then made stays in use as a whole, more often than not, and there is much of it.
    fn is_filling(&self) -> bool {
        self.total < 2 * self.live
    }
}

const BALANCED: Lean = Lean {
    slack: 10,
    slack_bytes: 60 << 20,
    part: 256,
    least: 6 << 20,
    pieces: 48,
    filling: 2,
    is_whole_under_tags: true,
    segment_slack: 15,
};
const TIGHT: Lean = Lean {
    slack: 3,
    slack_bytes: 4 << 20,
    part: 4096,
    least: 2 << 20,
    pieces: 64,
    filling: 1,
    is_whole_under_tags: false,
    segment_slack: 3,
};

/// No chunk is more than this part of the pool for the sake of having few.
const LARGEST_PART: u64 = 64;

/// Chunks behind small blocks are made as large as the others only up to this, but for those under tags.
const AHEAD: u64 = 32 << 20;

impl Lean {
    /// As the option `waste` says.
    pub fn of(is_tight: bool) -> Lean {
        match is_tight {
            true => TIGHT,
            false => BALANCED,
        }
    }

    /// How long new chunks behind a block are to be.
    ///
    /// A chunk costs about the same to make and to move whatever its size, so few are cheap; at both
    /// ends of every gap between blocks one is held that cannot move, so what lies idle grows with their
    /// size, and counts as a share of the pool. A block as large as all others is taken to be what
    /// the pool is for. What a program loads under a tag it keeps, and sleeps and wakes as a whole, which costs
    /// a millisecond or more a chunk while copies run (H200).
    pub fn lengths(self, wanted: Use, granularity: Align, pace: Pace) -> Lengths {
        let grain = granularity.get();
        let is_whole = self.is_whole_under_tags && wanted.is_tagged && wanted.is_filling();
        let chunk = match is_whole {
            true => MOST,
            false => self.chunk_bytes(wanted, granularity, pace),
        };
        let ahead = if is_whole { MOST } else { AHEAD };
        Lengths {
            chunk,
            ahead,
            grain,
        }
    }

    fn chunk_bytes(self, wanted: Use, granularity: Align, pace: Pace) -> u64 {
        let Use { bytes, most, .. } = wanted;
        if bytes >= most / 8 * 7 {
            return MOST;
        }
        let few = (bytes / self.pieces).min(most / LARGEST_PART);
        let share = pace.stretch((most / self.part).max(self.least)).max(few);
        let chunk = match wanted.is_filling() {
            true => share * self.filling,
            false => share,
        };
        granularity.round_down(chunk).clamp(granularity.get(), MOST)
    }

    /// How many bytes the pool may hold without a second thought when `most` were in use at a time: at
    /// most half as much again, however long finding memory takes.
    pub fn may_hold(self, most: u64, pace: Pace) -> u64 {
        let slack = most / 1000 * self.slack + self.slack_bytes;
        most + pace.stretch(slack).min(slack.max(most / 2))
    }
}

impl Lean {
    /// The same where memory cannot move. A segment costs as much to get back as to make, so more of
    /// it is kept.
    pub fn may_hold_in_segments(self, most: u64) -> u64 {
        most + most / 100 * self.segment_slack + self.slack_bytes
    }
}

/// How long new chunks are to be.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// About so many bytes, ...
    pub chunk: u64,
    /// ... behind blocks that are shorter not more than this, ...
    pub ahead: u64,
    /// ... multiples of this.
    pub grain: u64,
}

/// Where memory cannot move, large blocks are cut from segments of at least this: what torch takes.
pub const SEGMENT_BYTES: u64 = 20 << 20;

/// Puts together what is missing. While the pool holds less than it may (`credit`), new chunks are
/// made, of about `chunk` bytes: that costs least. Beyond, whole free chunks are moved, the largest that
/// fit first; for what then is left, one that is longer gives way to a new one of just the length.
/// Where even that cannot be had, the pool comes to hold more.
///
/// Within the credit the last stretch is made longer by up to `room`, so that many small blocks come
/// to have one chunk; by how much is said too.
pub fn assemble(
    missing: &[(u64, u64)],
    room: u64,
    mut candidates: Vec<Candidate>,
    lengths: Lengths,
    mut credit: u64,
) -> (Vec<Stretch>, u64) {
    let Lengths { chunk, grain, .. } = lengths;
    // Largest first, and of one size those first that lie in the smallest pieces.
    candidates.sort_by_key(|c| (std::cmp::Reverse(c.bytes), c.piece_bytes, c.address));
    let mut stretches = Vec::new();
    let mut extra = 0;
    for (index, (address, bytes)) in missing.iter().enumerate() {
        let mut stretch = Stretch {
            address: *address,
            ..Stretch::default()
        };
        let mut left = *bytes;
        while left > credit {
            let fits = candidates.partition_point(|c| c.bytes > left);
            if fits == candidates.len() {
                break;
            }
            let taken = candidates.remove(fits);
            left -= taken.bytes;
            stretch.moved.push(taken);
        }
        if left > credit {
            let longer = candidates.partition_point(|c| c.bytes > left);
            if let Some(at) = (0..longer).rev().find(|at| candidates[*at].is_done) {
                let given = candidates.remove(at);
                credit += given.bytes;
                stretch.released.push(given);
            }
        }
        if index + 1 == missing.len() && left > 0 && stretch.moved.is_empty() {
            let ahead = chunk.min(lengths.ahead).min(credit).min(left + room);
            extra = ahead.saturating_sub(left) / grain * grain;
            left += extra;
        }
        credit = credit.saturating_sub(left);
        stretch.new = parts(left, chunk, grain);
        stretches.push(stretch);
    }
    (stretches, extra)
}

/// Cuts a length into equal parts of about `most`, multiples of `grain` as the length is.
fn parts(bytes: u64, most: u64, grain: u64) -> Vec<u64> {
    let mut count = bytes.div_ceil(most.max(1));
    let mut left = bytes;
    let mut parts = Vec::new();
    while left > 0 {
        let part = (left / count.max(1)).next_multiple_of(grain).min(left);
        parts.push(part);
        left -= part;
        count = count.saturating_sub(1);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn about(chunk: u64) -> Lengths {
        Lengths {
            chunk,
            ahead: AHEAD,
            grain: 2 * MIB,
        }
    }

    fn candidate(address: u64, mib: u64) -> Candidate {
        Candidate {
            arena: 0,
            address,
            bytes: mib * MIB,
            piece_bytes: mib * MIB,
            color: Color::NEUTRAL,
            epoch: 0,
            is_done: mib > 8,
        }
    }

    #[test]
    fn beyond_the_credit_free_chunks_are_moved_and_long_ones_cut_to_length() {
        let free = vec![candidate(1, 2), candidate(2, 8), candidate(3, 64)];
        let missing = [(100, 13 * MIB - MIB)];
        let stretch = &assemble(&missing, 0, free.clone(), about(4 * MIB), 12 * MIB).0[0];
        assert_eq!((stretch.moved.len(), &stretch.new), (0, &vec![4 * MIB; 3]));
        let stretch = &assemble(&missing, 0, free.clone(), about(4 * MIB), 0).0[0];
        let moved: Vec<u64> = stretch.moved.iter().map(|c| c.address).collect();
        assert_eq!((moved, &stretch.new), (vec![2, 1], &vec![2 * MIB]));
        assert_eq!(stretch.released, [free[2]]);
        let mut busy = free;
        busy[2].is_done = false;
        let stretch = &assemble(&missing, 0, busy, about(4 * MIB), 0).0[0];
        assert_eq!((stretch.new_bytes(), stretch.released.len()), (2 * MIB, 0));
        assert_eq!(stretch.bytes(), 12 * MIB);
    }

    #[test]
    fn a_length_is_cut_into_parts_that_are_alike() {
        let grain = 2 * MIB;
        assert_eq!(parts(12 * MIB, 5 * MIB, grain), [4 * MIB; 3]);
        assert_eq!(parts(14 * MIB, 8 * MIB, grain), [8 * MIB, 6 * MIB]);
        assert_eq!(parts(2 * MIB, 256 * MIB, grain), [2 * MIB]);
        assert!(parts(0, 2 * MIB, grain).is_empty());
        // Where the driver wants longer ones.
        assert_eq!(parts(24 * MIB, 16 * MIB, 8 * MIB), [16 * MIB, 8 * MIB]);
    }

    #[test]
    fn small_blocks_share_a_chunk_within_the_credit() {
        let grown = |room, credit| assemble(&[(0, 2 * MIB)], room, vec![], about(8 * MIB), credit);
        assert_eq!(grown(64 * MIB, 64 * MIB).1, 6 * MIB);
        assert_eq!(grown(64 * MIB, 64 * MIB).0[0].new, [8 * MIB]);
        assert_eq!(grown(4 * MIB, 64 * MIB).1, 4 * MIB);
        assert_eq!(grown(64 * MIB, 5 * MIB).1, 2 * MIB);
        assert_eq!(grown(64 * MIB, 0).1, 0);
        let whole = Lengths {
            ahead: MOST,
            ..about(MOST)
        };
        let (stretches, _) = assemble(&[(0, 2 * MIB)], 1 << 30, vec![], whole, 100 * MIB);
        assert_eq!(stretches[0].new, [100 * MIB]);
    }

    #[test]
    fn chunks_grow_with_the_block_and_the_pool() {
        let granularity = Align::new(2 * MIB).unwrap();
        let made = |bytes, most, total, tight, is_tagged| {
            let wanted = Use {
                bytes,
                most,
                live: most - bytes,
                total,
                is_tagged,
            };
            Lean::of(tight)
                .lengths(wanted, granularity, Pace::default())
                .chunk
        };
        let chunk = |bytes, most, total, tight| made(bytes, most, total, tight, false);
        assert_eq!(chunk(4096, 1 << 30, 4 << 30, false), 6 * MIB);
        assert_eq!(chunk(4096, 1 << 30, 1 << 30, false), 12 * MIB);
        assert_eq!(chunk(64 * MIB, 64 * MIB, 0, false), MOST);
        assert_eq!(chunk(64 * MIB, 8 << 30, 1 << 40, false), 32 * MIB);
        assert_eq!(chunk(64 * MIB, 8 << 30, 9 << 30, false), 64 * MIB);
        assert_eq!(chunk(1 << 30, 8 << 30, 9 << 30, true), 16 * MIB);
        assert_eq!(chunk(1 << 40, 1 << 50, 0, false), MOST);
        let tagged = |bytes, total, tight| made(bytes, 8 << 30, total, tight, true);
        assert_eq!(tagged(4 * MIB, 9 << 30, false), MOST);
        assert_eq!(tagged(200 * MIB, 1 << 40, false), 32 * MIB);
        assert_eq!(tagged(1 << 30, 9 << 30, true), 16 * MIB);
    }
}
