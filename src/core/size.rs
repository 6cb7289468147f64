//! Sizes and alignments, with arithmetic that cannot overflow unseen.

/// A power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Align(u64);

impl Align {
    /// `value` as an alignment, if it is a power of two.
    pub const fn new(value: u64) -> Option<Align> {
        if value.is_power_of_two() {
            Some(Align(value))
        } else {
            None
        }
    }

    /// The alignment in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The least multiple of the alignment that is not below `bytes`.
    pub const fn round_up(self, bytes: u64) -> Option<u64> {
        match bytes.checked_add(self.0 - 1) {
            Some(sum) => Some(sum & !(self.0 - 1)),
            None => None,
        }
    }

    /// The greatest multiple of the alignment that is not above `value`.
    pub const fn round_down(self, value: u64) -> u64 {
        value & !(self.0 - 1)
    }

    /// Whether `value` is a multiple of the alignment.
    pub const fn divides(self, value: u64) -> bool {
        value & (self.0 - 1) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_powers_of_two() {
        assert!(Align::new(0).is_none() && Align::new(3).is_none());
        assert_eq!(Align::new(1).unwrap().round_up(u64::MAX), Some(u64::MAX));
        assert_eq!(Align::new(2).unwrap().round_up(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn rounds_to_the_least_multiple(shift in 0u32..40, bytes in 0u64..1 << 50) {
            let align = Align::new(1 << shift).unwrap();
            let rounded = align.round_up(bytes).unwrap();
            prop_assert!(align.divides(rounded));
            prop_assert!(rounded >= bytes && rounded - bytes < align.get());
        }
    }
}
