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

/// The size of chunks that a pool of `reserved` bytes grows by.
pub fn chunk_bytes(reserved: u64, is_tight: bool, granularity: Align) -> u64 {
    let share = match is_tight {
        true => 4096,
        false => 512,
    };
    let wanted = (reserved / share).next_power_of_two();
    wanted.clamp(granularity.get(), MOST)
}

/// Beyond this a chunk's costs are those of its bytes.
const MOST: u64 = 256 << 20;

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
    fn chunks_grow_with_the_pool() {
        let granularity = Align::new(2 * MIB).unwrap();
        assert_eq!(chunk_bytes(0, false, granularity), 2 * MIB);
        assert_eq!(chunk_bytes(8 << 30, false, granularity), 8 * MIB);
        assert_eq!(chunk_bytes(1 << 50, true, granularity), MOST);
    }
}
