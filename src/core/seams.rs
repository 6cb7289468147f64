//! Where one registration of the host's pages ends and the next begins: one copy of the driver's may not cross it.

use std::collections::BTreeSet;

/// Addresses that copies are cut at.
#[derive(Clone, Debug, Default)]
pub struct Seams(BTreeSet<u64>);

impl Seams {
    /// Enters some.
    pub fn add(&mut self, addresses: &[u64]) {
        self.0.extend(addresses);
    }

    /// Takes some out.
    pub fn remove(&mut self, addresses: &[u64]) {
        for address in addresses {
            self.0.remove(address);
        }
    }

    /// How many of `bytes` above 0 from `address` on come before the next one.
    pub fn before_next(&self, address: u64, bytes: u64) -> u64 {
        let end = address.saturating_add(bytes);
        let behind = address.saturating_add(1);
        // A range that is empty from its start is none to a tree.
        let next = (behind < end).then(|| self.0.range(behind..end).next());
        next.flatten().map_or(bytes, |seam| seam - address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_seams_lie_inside_it() {
        let mut seams = Seams::default();
        assert_eq!(seams.before_next(0, u64::MAX), u64::MAX);
        seams.add(&[100, 300]);
        let cases = [
            ((0, 100), 100),
            ((0, 101), 100),
            ((99, 2), 1),
            ((100, 200), 200),
            ((100, 201), 200),
            ((250, 1000), 50),
            ((300, 1000), 1000),
            ((u64::MAX - 1, 1), 1),
        ];
        for ((address, bytes), expected) in cases {
            assert_eq!(seams.before_next(address, bytes), expected, "{address}");
        }
        seams.remove(&[100, 200]);
        assert_eq!(seams.before_next(0, 1000), 300);
    }
}
