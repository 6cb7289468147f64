//! What an object holds: groups of elements, each with a shape and a type, one behind the other.

use crate::error::{Error, Result};

/// One group of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    /// Its lengths, outermost first; none for a single element.
    pub shape: &'a [u64],
    /// Bytes of an element, above 0.
    pub element: u64,
}

impl Group<'_> {
    fn bytes(&self) -> Option<u64> {
        let multiply = |total: u64, length: &u64| total.checked_mul(*length);
        self.shape.iter().try_fold(self.element, multiply)
    }
}

/// Where each group begins, and where the last one ends: one more than there are groups.
pub fn offsets(operation: &'static str, groups: &[Group<'_>]) -> Result<Vec<u64>> {
    let mut offsets = vec![0];
    let mut end = 0u64;
    for (number, group) in groups.iter().enumerate() {
        let total = group.bytes().and_then(|bytes| end.checked_add(bytes));
        end = total.filter(|total| *total < 1 << 63).ok_or_else(|| {
            Error::invalid(
                operation,
                format!("group {number} of shape {:?} is too large", group.shape),
            )
        })?;
        offsets.push(end);
    }
    match end {
        0 => Err(Error::invalid(operation, "a layout of 0 bytes")
            .advice("Every object needs at least one byte: look at the shapes")),
        _ => Ok(offsets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_lie_one_behind_the_other() {
        let group = |shape, element| Group { shape, element };
        let keys = group(&[2, 32, 128], 2);
        assert_eq!(
            offsets("test", &[keys.clone(), group(&[], 4), group(&[3], 1)]).unwrap(),
            [0, 16384, 16388, 16391]
        );
        for bad in [
            &[][..],
            &[group(&[3, 0], 2)],
            &[keys, group(&[1 << 40, 1 << 40], 8)],
        ] {
            assert!(offsets("test", bad).is_err(), "{bad:?}");
        }
    }
}
