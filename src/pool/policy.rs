//! What to put behind a block's addresses: free chunks moved there, or new ones, and of what size.
//!
//! Giving access costs some 24 us a chunk whatever its size, unmapping 16, making one 7 to 9 (one H200,
//! driver 580). So few large chunks are cheap to put together; but a chunk can only move while it is
//! free all over, so large ones leave more memory behind that nobody can use.

use crate::core::size::Align;

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
}

/// What goes behind one stretch of addresses, from its beginning on: chunks moved, then new ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Its first address.
    pub address: u64,
    /// Chunks to move.
    pub moved: Vec<Candidate>,
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

/// The part of what a pool holds, in thousandths, that may lie idle in chunks that are only partly free.
const IDLE_BALANCED: u64 = 60;
const IDLE_TIGHT: u64 = 15;

/// Beyond this a chunk's costs are those of its bytes.
const MOST: u64 = 256 << 20;

/// The size of new chunks behind `missing` bytes of an arena, in a pool that holds `reserved` bytes.
///
/// At both ends of a free piece lies a chunk that is partly in use and so cannot move: half a chunk at
/// each, as a rule. With so many `free_pieces`, chunks are made as large as leaves idle what may be.
pub fn chunk_bytes(
    missing: u64,
    reserved: u64,
    free_pieces: u64,
    is_tight: bool,
    granularity: Align,
) -> u64 {
    let idle = match is_tight {
        true => IDLE_TIGHT,
        false => IDLE_BALANCED,
    };
    let wanted = reserved / 1000 * idle / (free_pieces + 1);
    let below = |bytes: u64| bytes.checked_ilog2().map_or(0, |log| 1 << log);
    below(wanted)
        .min(missing.next_power_of_two())
        .clamp(granularity.get(), MOST)
}

/// Where memory cannot move, large blocks are cut from segments of at least this: what torch takes.
pub const SEGMENT_BYTES: u64 = 20 << 20;

/// Puts together what is missing: whole free chunks first, then new ones of `chunk` bytes. Where a
/// chunk is longer than what is left of the last stretch, up to `room` more addresses are used. Also
/// says how many.
pub fn assemble(
    missing: &[(u64, u64)],
    room: u64,
    mut candidates: Vec<Candidate>,
    chunk: u64,
) -> (Vec<Stretch>, u64) {
    // Largest first, and of one size those first that lie in the smallest pieces.
    candidates.sort_by_key(|c| (std::cmp::Reverse(c.bytes), c.piece_bytes, c.address));
    let mut extra = 0;
    let mut stretches = Vec::new();
    for (index, (address, bytes)) in missing.iter().enumerate() {
        let mut stretch = Stretch {
            address: *address,
            ..Stretch::default()
        };
        let mut left = *bytes;
        while let Some(at) = candidates.iter().position(|c| c.bytes <= left) {
            if left == 0 {
                break;
            }
            let taken = candidates.remove(at);
            left -= taken.bytes;
            stretch.moved.push(taken);
        }
        if left > 0 && index + 1 == missing.len() {
            let fits = |c: &Candidate| c.bytes >= left && c.bytes - left <= room;
            if let Some(at) = candidates.iter().rposition(fits) {
                let taken = candidates.remove(at);
                extra = taken.bytes - left;
                left = 0;
                stretch.moved.push(taken);
            }
        }
        while left > 0 {
            let size = left.min(chunk);
            stretch.new.push(size);
            left -= size;
        }
        stretches.push(stretch);
    }
    (stretches, extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn candidate(address: u64, mib: u64) -> Candidate {
        Candidate {
            arena: 0,
            address,
            bytes: mib * MIB,
            piece_bytes: mib * MIB,
        }
    }

    #[test]
    fn free_chunks_are_moved_before_new_ones_are_made() {
        let free = vec![candidate(1, 2), candidate(2, 8), candidate(3, 64)];
        let (stretches, extra) = assemble(&[(100, 12 * MIB)], 0, free.clone(), 4 * MIB);
        assert_eq!(extra, 0);
        let moved: Vec<u64> = stretches[0].moved.iter().map(|c| c.address).collect();
        assert_eq!((moved, &stretches[0].new), (vec![2, 1], &vec![2 * MIB]));
        // With room behind, the large one does alone what the small ones leave over.
        let (stretches, extra) = assemble(&[(100, 12 * MIB)], 64 * MIB, free, 4 * MIB);
        assert_eq!(extra, 62 * MIB);
        assert!(stretches[0].new.is_empty());
    }

    #[test]
    fn chunks_grow_with_the_pool_and_shrink_with_the_pieces_it_is_in() {
        let granularity = Align::new(2 * MIB).unwrap();
        let chunk = |missing, reserved, pieces, tight| {
            chunk_bytes(missing, reserved, pieces, tight, granularity)
        };
        assert_eq!(chunk(4096, 8 << 30, 0, false), 2 * MIB);
        assert_eq!(chunk(100 * MIB, 0, 0, false), 2 * MIB);
        assert_eq!(chunk(100 * MIB, 8 << 30, 0, false), 128 * MIB);
        assert_eq!(chunk(100 * MIB, 8 << 30, 30, false), 8 * MIB);
        assert_eq!(chunk(100 * MIB, 8 << 30, 30, true), 2 * MIB);
        assert_eq!(chunk(u64::MAX / 2, 1 << 50, 0, true), MOST);
    }
}
