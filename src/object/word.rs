//! What holds an object, in one word: how often its record was used, whether its maker still has it, and counts of
//! references, pins and views, with a sum over them, so that any change is one compare-and-swap and damage shows.

/// Bits of a word, lowest first: the sum, views, pins, references, the maker's, uses.
const SUM_BITS: u32 = 12;
const COUNT_BITS: u32 = 10;
const VIEWS_AT: u32 = SUM_BITS;
const PINS_AT: u32 = VIEWS_AT + COUNT_BITS;
const REFERENCES_AT: u32 = PINS_AT + COUNT_BITS;
const OWNED_AT: u32 = REFERENCES_AT + COUNT_BITS;
const USES_AT: u32 = OWNED_AT + 1;
/// The most of references, of pins, and of views that an object can have.
pub const MOST: u32 = (1 << COUNT_BITS) - 1;
const USES: u32 = (1 << (64 - USES_AT)) - 1;

/// What holds an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    /// How often the record was given back, in 21 bits.
    pub uses: u32,
    /// Whether who made it has not freed it yet.
    pub is_owned: bool,
    /// References to it, its maker's included.
    pub references: u32,
    /// Pins on it.
    pub pins: u32,
    /// Who sees its memory, whether it is still an object or not.
    pub views: u32,
}

impl Holders {
    /// Nobody, of a record that was given back `uses` times.
    pub const fn nobody(uses: u32) -> Holders {
        Holders {
            uses: uses & USES,
            is_owned: false,
            references: 0,
            pins: 0,
            views: 0,
        }
    }

    /// Its maker alone.
    pub const fn maker(uses: u32) -> Holders {
        Holders {
            is_owned: true,
            references: 1,
            ..Holders::nobody(uses)
        }
    }

    /// Whether anybody holds its memory.
    pub const fn is_held(self) -> bool {
        self.is_object() || self.views > 0
    }

    /// Whether it is an object still, and not only seen.
    pub const fn is_object(self) -> bool {
        self.references > 0 || self.pins > 0
    }

    /// As a word of the record `index`.
    pub const fn word(self, index: u32) -> u64 {
        let counts = (self.uses as u64) << USES_AT
            | (self.is_owned as u64) << OWNED_AT
            | (self.references as u64) << REFERENCES_AT
            | (self.pins as u64) << PINS_AT
            | (self.views as u64) << VIEWS_AT;
        counts | sum(counts, index)
    }

    /// What a word of the record `index` says; nothing if it is damaged.
    pub const fn of(word: u64, index: u32) -> Option<Holders> {
        let counts = word & !((1 << SUM_BITS) - 1);
        if counts | sum(counts, index) != word {
            return None;
        }
        Some(Holders {
            uses: (word >> USES_AT) as u32,
            is_owned: word >> OWNED_AT & 1 == 1,
            references: (word >> REFERENCES_AT) as u32 & MOST,
            pins: (word >> PINS_AT) as u32 & MOST,
            views: (word >> VIEWS_AT) as u32 & MOST,
        })
    }
}

/// A multiplicative hash of the counts (Knuth, The Art of Computer Programming, volume 3, section 6.4), the upper
/// bits of the product. Every single bit of the counts changes it, which a test tries.
const fn sum(counts: u64, index: u32) -> u64 {
    let mixed = (counts >> SUM_BITS) ^ (index as u64).wrapping_mul(0x2545_F491_4F6C_DD1D);
    mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SUM_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_word_says_what_it_was_made_of_and_any_flipped_bit_shows(
            uses in 0..=USES, is_owned: bool, references in 0..=MOST, pins in 0..=MOST, views in 0..=MOST, index: u32,
            bit in 0u32..64,
        ) {
            let holders = Holders { uses, is_owned, references, pins, views };
            let word = holders.word(index);
            prop_assert_eq!(Holders::of(word, index), Some(holders));
            prop_assert_eq!(Holders::of(word ^ 1 << bit, index), None);
        }
    }
}
