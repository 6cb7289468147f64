//! What the demo writes into blocks, so that memory which is lost, shared or freed too early shows.
//!
//! A block of 4 KiB and more begins with a pattern of its own, copied there from the host. Behind it
//! lies the pattern of the last block allocated before that is still alive, copied on the device, on
//! this block's stream: most often between two blocks of one stream, now and then from one stream to
//! another. Its end is filled with one byte. All of it is read back just before the block is freed.
//! The checksum is the CRC-32 of gzip over everything in the order in which it is read back.

use crate::trace::{Action, Trace};
use flate2::Crc;

/// Blocks below this are too small to be told apart by what they hold.
const SMALLEST: u64 = 4 << 10;

/// The most bytes of each of a block's three parts, which bounds the work.
const LARGEST_PART: u64 = 16 << 10;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Which block, in order of allocation.
    pub block: usize,
    /// Bytes of its own pattern, at its beginning, and of the fill, at its end.
    pub own: u64,
    /// Whose pattern lies behind its own, and how many bytes of it.
    pub inherited: Option<(usize, u64)>,
}

impl Content {
    /// What lies at the beginning of the block.
    pub fn head(&self) -> Vec<u8> {
        let mut bytes = pattern(self.block, self.own);
        if let Some((from, count)) = self.inherited {
            bytes.extend(pattern(from, count));
        }
        bytes
    }

    /// What its end is filled with. Never zero, which untouched memory may hold.
    pub fn fill(&self) -> u8 {
        (self.block % 255) as u8 + 1
    }
}

/// The beginning of a block's own pattern: the sequence SplitMix64, seeded by the block.
pub fn pattern(block: usize, bytes: u64) -> Vec<u8> {
    let mut state = (block as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ (word >> 31)).to_le_bytes()
    };
    let mut all = Vec::with_capacity(bytes as usize);
    (0..bytes / 8).for_each(|_| all.extend_from_slice(&next()));
    all
}

/// Which of the blocks alive was allocated last, and how many bytes of pattern each block has.
#[derive(Default)]
pub struct Plan {
    /// Blocks with a pattern, in order of allocation; freed ones are dropped when they come last.
    with_pattern: Vec<(usize, u64)>,
    freed: Vec<bool>,
}

impl Plan {
    /// The content of `block`, now allocated with so many bytes; none where it is too small.
    pub fn allocate(&mut self, block: usize, bytes: u64) -> Option<Content> {
        self.freed.resize(self.freed.len().max(block + 1), false);
        if bytes < SMALLEST {
            return None;
        }
        let own = (bytes / 4).min(LARGEST_PART) / 8 * 8;
        while (self.with_pattern.last()).is_some_and(|(last, _)| self.freed[*last]) {
            self.with_pattern.pop();
        }
        let inherited = self.with_pattern.last();
        let inherited = inherited.map(|(from, bytes)| (*from, own.min(*bytes)));
        self.with_pattern.push((block, own));
        Some(Content {
            block,
            own,
            inherited,
        })
    }

    /// The block is freed: from now on no other inherits from it.
    pub fn free(&mut self, block: usize) {
        self.freed[block] = true;
    }
}

/// A checksum over what was read back.
#[derive(Default)]
pub struct Checksum(Crc);

impl Checksum {
    /// Takes in a block's beginning and end.
    pub fn add(&mut self, head: &[u8], tail: &[u8]) {
        self.0.update(head);
        self.0.update(tail);
    }

    /// The checksum, and the bytes it covers.
    pub fn value(&self) -> u32 {
        self.0.sum()
    }
}

/// The checksum that a replay of the workload must arrive at, computed from the workload alone.
pub fn expected(trace: &Trace) -> u32 {
    let mut plan = Plan::default();
    let mut contents: Vec<Option<Content>> = Vec::new();
    let mut checksum = Checksum::default();
    let mut read = |content: Option<Content>| {
        if let Some(content) = content {
            checksum.add(&content.head(), &vec![content.fill(); content.own as usize]);
        }
    };
    for event in &trace.events {
        let block = event.block;
        match event.action {
            Action::Allocate => contents.push(plan.allocate(block, trace.blocks[block].bytes)),
            Action::Free => {
                read(contents[block].take());
                plan.free(block);
            }
        }
    }
    contents.into_iter().for_each(&mut read);
    checksum.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_inherits_from_the_last_one_alive() {
        let mut plan = Plan::default();
        assert_eq!(plan.allocate(0, 100), None);
        let first = plan.allocate(1, 8192).unwrap();
        assert_eq!((first.own, first.inherited), (2048, None));
        let second = plan.allocate(2, 1 << 30).unwrap();
        assert_eq!((second.own, second.inherited), (16384, Some((1, 2048))));
        plan.free(2);
        assert_eq!(plan.allocate(3, 4096).unwrap().inherited, Some((1, 1024)));
        plan.free(1);
        plan.free(3);
        assert_eq!(plan.allocate(4, 4096).unwrap().inherited, None);
    }

    #[test]
    fn patterns_differ_from_block_to_block_and_parts_do_not_overlap() {
        assert_ne!(pattern(1, 64), pattern(2, 64));
        assert_eq!(pattern(1, 64)[..32], pattern(1, 32));
        let mut plan = Plan::default();
        plan.allocate(0, 4096);
        let content = plan.allocate(1, 4096).unwrap();
        assert!(content.head().len() as u64 + content.own <= 4096);
        assert_ne!(content.fill(), 0);
    }
}
