//! What the radix says of a block, in one word: that it is live, whose heap it belongs to, how many
//! bytes were asked for. Everything a free on any thread needs to know without a lock.

use crate::core::radix::UNIT;

const REQUESTED_BITS: u32 = 40;
const HEAP_BITS: u32 = 16;

/// The largest request that the pool serves.
pub const LARGEST: u64 = (1 << REQUESTED_BITS) - UNIT;

const LIVE: u64 = 1 << 63;
const SHARED: u64 = 1 << 62;
const UNORDERED: u64 = 1 << 61;
/// The block's memory dozes, so that no thread may keep it.
const ASLEEP: u64 = 1 << 60;

/// The word of a live block; 0 is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(pub u64);

impl Word {
    /// The word of a block of `requested` bytes, at most [`LARGEST`], of the heap `heap`.
    #[inline]
    pub fn new(heap: u16, requested: u64) -> Word {
        debug_assert!(requested <= LARGEST);
        Word(LIVE | (u64::from(heap) << REQUESTED_BITS) | requested)
    }

    /// Whether there is a block.
    #[inline]
    pub fn is_live(self) -> bool {
        self.0 & LIVE != 0
    }

    /// Whether streams were named that use it besides its heap's.
    pub fn is_shared(self) -> bool {
        self.0 & SHARED != 0
    }

    /// Whether any work may use it, on streams that nobody names.
    pub fn is_unordered(self) -> bool {
        self.0 & UNORDERED != 0
    }

    /// Whether its heap may have it again as soon as it is freed.
    #[inline]
    pub fn is_plain(self) -> bool {
        self.0 & (SHARED | UNORDERED | ASLEEP) == 0
    }

    /// Whether any work may use it, and nothing else is to be looked at.
    #[inline]
    pub fn is_just_unordered(self) -> bool {
        self.0 & (SHARED | UNORDERED | ASLEEP) == UNORDERED
    }

    /// The same block, used by anybody.
    pub fn unordered(self) -> Word {
        Word(self.0 | UNORDERED)
    }

    /// The same block, shared.
    pub fn shared(self) -> Word {
        Word(self.0 | SHARED)
    }

    /// The same, of a block whose memory dozes.
    pub fn asleep(self) -> Word {
        Word(self.0 | ASLEEP)
    }

    /// The same, of a block whose memory does not doze.
    pub fn awake(self) -> Word {
        Word(self.0 & !ASLEEP)
    }

    /// Whether the block's memory dozes.
    pub fn is_asleep(self) -> bool {
        self.0 & ASLEEP != 0
    }

    /// The number of its heap.
    #[inline]
    pub fn heap(self) -> u16 {
        ((self.0 >> REQUESTED_BITS) & ((1 << HEAP_BITS) - 1)) as u16
    }

    /// Bytes asked for.
    #[inline]
    pub fn requested(self) -> u64 {
        self.0 & ((1 << REQUESTED_BITS) - 1)
    }

    /// Bytes that belong to it.
    #[inline]
    pub fn bytes(self) -> u64 {
        units(self.requested()) * UNIT
    }
}

/// A size in units, rounded up.
#[inline]
pub fn units(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_tells_what_it_was_made_of() {
        for (heap, requested) in [(0, 1), (u16::MAX, LARGEST), (7, 513)] {
            let word = Word::new(heap, requested);
            assert!(word.is_live() && word.is_plain() && word.shared().is_shared());
            assert!(!word.unordered().is_plain() && !word.unordered().is_shared());
            assert!(word.unordered().is_just_unordered() && !word.is_just_unordered());
            assert!(!word.unordered().shared().is_just_unordered());
            assert_eq!(
                (word.shared().heap(), word.shared().requested()),
                (heap, requested)
            );
            assert_eq!(word.bytes(), requested.div_ceil(512) * 512);
            assert!(!word.asleep().is_plain() && word.asleep().is_asleep());
            assert_eq!(word.asleep().awake(), word);
        }
        assert!(!Word(0).is_live());
    }
}
