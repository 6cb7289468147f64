//! Free pieces by address, for taking the lowest that is large enough. Blocks then gather at low
//! addresses, and what is free at the end stays in one piece; for large blocks that leaves less
//! between them than the best fit does.
//!
//! Pieces stand in rows of bounded length. A search looks at the largest size of each row, which stand
//! side by side, and then into one row; a change moves no more than a row. Sizes stand apart from
//! addresses, so that looking through them touches few cache lines.

use std::cell::Cell;

/// A row is cut in two when it is full.
const ROW: usize = 64;

struct Row {
    len: usize,
    /// By address; never empty.
    addresses: [u64; ROW],
    sizes: [u32; ROW],
    numbers: [u32; ROW],
}

impl Row {
    fn of(addresses: &[u64], sizes: &[u32], numbers: &[u32]) -> Box<Row> {
        let len = addresses.len();
        let mut row = Box::new(Row {
            len,
            addresses: [0; ROW],
            sizes: [0; ROW],
            numbers: [0; ROW],
        });
        row.addresses[..len].copy_from_slice(addresses);
        row.sizes[..len].copy_from_slice(sizes);
        row.numbers[..len].copy_from_slice(numbers);
        row
    }

    fn insert(&mut self, at: usize, (address, size, number): (u64, u32, u32)) {
        self.addresses.copy_within(at..self.len, at + 1);
        self.sizes.copy_within(at..self.len, at + 1);
        self.numbers.copy_within(at..self.len, at + 1);
        self.addresses[at] = address;
        self.sizes[at] = size;
        self.numbers[at] = number;
        self.len += 1;
    }

    fn remove(&mut self, at: usize) -> u32 {
        let size = self.sizes[at];
        self.addresses.copy_within(at + 1..self.len, at);
        self.sizes.copy_within(at + 1..self.len, at);
        self.numbers.copy_within(at + 1..self.len, at);
        self.len -= 1;
        size
    }

    fn split(&mut self) -> Box<Row> {
        let half = self.len / 2;
        let rest = Row::of(
            &self.addresses[half..self.len],
            &self.sizes[half..self.len],
            &self.numbers[half..self.len],
        );
        self.len = half;
        rest
    }

    fn addresses(&self) -> &[u64] {
        &self.addresses[..self.len]
    }

    fn sizes(&self) -> &[u32] {
        &self.sizes[..self.len]
    }

    fn largest(&self) -> u32 {
        self.sizes().iter().copied().max().unwrap_or(0)
    }
}

/// Pieces, by numbers that the caller gives, listed by address.
#[derive(Default)]
pub struct AddressIndex {
    #[expect(clippy::vec_box, reason = "rows of a KiB move when one is inserted")]
    rows: Vec<Box<Row>>,
    /// The first address of each row.
    firsts: Vec<u64>,
    /// The largest size in each row.
    largest: Vec<u32>,
    /// What was found last, which is likely to change next.
    found: Cell<(usize, usize)>,
}

/// Sizes beyond what 32 bits hold are all alike: no request comes near.
fn narrow(size: u64) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

impl AddressIndex {
    fn row_of(&self, address: u64) -> usize {
        let after = self.firsts.partition_point(|first| *first <= address);
        after.saturating_sub(1)
    }

    fn look(&mut self, index: usize) {
        self.firsts[index] = self.rows[index].addresses[0];
        self.largest[index] = self.rows[index].largest();
    }

    /// Lists the piece `number` of `size`, below 2 to the power 32, at `address`.
    pub fn insert(&mut self, number: u32, address: u64, size: u64) {
        let listed = (address, narrow(size), number);
        if self.rows.is_empty() {
            self.add_row(0, Row::of(&[address], &[listed.1], &[number]));
            return;
        }
        let mut index = self.row_of(address);
        if self.rows[index].len == ROW {
            let rest = self.rows[index].split();
            self.look(index);
            self.add_row(index + 1, rest);
            index = self.row_of(address);
        }
        let row = &mut self.rows[index];
        let at = row.addresses().partition_point(|other| *other < address);
        row.insert(at, listed);
        self.firsts[index] = row.addresses[0];
        self.largest[index] = self.largest[index].max(listed.1);
    }

    fn add_row(&mut self, index: usize, row: Box<Row>) {
        self.rows.insert(index, row);
        self.firsts.insert(index, 0);
        self.largest.insert(index, 0);
        self.look(index);
    }

    /// Where the piece at `address` is listed: its row, and its place there.
    fn place_of(&self, address: u64) -> Option<(usize, usize)> {
        let (index, at) = self.found.get();
        let is_it = |row: &Row| row.addresses().get(at) == Some(&address);
        if self.rows.get(index).is_some_and(|row| is_it(row)) {
            return Some((index, at));
        }
        let index = self.row_of(address);
        let at = self.rows.get(index)?.addresses().binary_search(&address);
        Some((index, at.ok()?))
    }

    /// Lists a piece in the place of the one at `address`, between the same neighbours.
    pub fn replace(&mut self, address: u64, number: u32, new_address: u64, size: u64) {
        let Some((index, at)) = self.place_of(address) else {
            return;
        };
        let (row, size) = (&mut self.rows[index], narrow(size));
        let before = row.sizes[at];
        row.addresses[at] = new_address;
        row.sizes[at] = size;
        row.numbers[at] = number;
        self.firsts[index] = row.addresses[0];
        if size >= self.largest[index] {
            self.largest[index] = size;
        } else if before == self.largest[index] {
            self.largest[index] = row.largest();
        }
    }

    /// Takes the piece at `address`, which is listed, off the list.
    pub fn remove(&mut self, address: u64) {
        let Some((index, at)) = self.place_of(address) else {
            return;
        };
        let row = &mut self.rows[index];
        let size = row.remove(at);
        if row.len == 0 {
            self.rows.remove(index);
            self.firsts.remove(index);
            self.largest.remove(index);
            return;
        }
        self.firsts[index] = row.addresses[0];
        if size == self.largest[index] {
            self.largest[index] = row.largest();
        }
    }

    /// The piece of at least `size` with the lowest address.
    pub fn find(&self, size: u64) -> Option<u32> {
        let size = narrow(size);
        let index = self.largest.iter().position(|largest| *largest >= size)?;
        let row = &self.rows[index];
        let at = row.sizes().iter().position(|other| *other >= size)?;
        self.found.set((index, at));
        Some(row.numbers[at])
    }

    /// Every piece of at least `size`, by address.
    pub fn at_least(&self, size: u64) -> Vec<u32> {
        let size = narrow(size);
        let mut found = Vec::new();
        for (row, _) in (self.rows.iter().zip(&self.largest)).filter(|(_, most)| **most >= size) {
            let pieces = row.sizes().iter().zip(&row.numbers);
            found.extend(pieces.filter(|(other, _)| **other >= size).map(|(_, n)| *n));
        }
        found
    }

    /// Every piece and its size, cut off to 32 bits, by address.
    pub fn entries(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let rows = self.rows.iter().map(AsRef::<Row>::as_ref);
        rows.flat_map(|row| (0..row.len).map(|at| (row.numbers[at], u64::from(row.sizes[at]))))
    }

    /// The piece that `address` lies in, if it is listed.
    pub fn around(&self, address: u64) -> Option<u32> {
        let row = self.rows.get(self.row_of(address))?;
        let after = row.addresses().partition_point(|other| *other <= address);
        Some(row.numbers[after.checked_sub(1)?])
    }

    /// The largest size listed.
    pub fn largest(&self) -> Option<u64> {
        self.largest.iter().max().map(|size| u64::from(*size))
    }

    /// How many pieces are listed.
    pub fn len(&self) -> usize {
        self.rows.iter().map(|row| row.len).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn agrees_with_a_map_by_address(
            steps in proptest::collection::vec((0u64..600, 1u64..50), 1..900),
        ) {
            let mut index = AddressIndex::default();
            let mut model: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
            for (number, (address, size)) in steps.into_iter().enumerate() {
                match model.remove(&address) {
                    Some((_, number)) if size % 2 == 0 => {
                        // Cut from the front, as far as its neighbours leave room.
                        let to = model.range(address..).next().map_or(address + 3, |(next, _)| *next);
                        let to = (address + to) / 2;
                        index.replace(address, number + 1000, to, size + 60);
                        model.insert(to, (size + 60, number + 1000));
                    }
                    Some(_) => index.remove(address),
                    None => {
                        index.insert(number as u32, address, size);
                        model.insert(address, (size, number as u32));
                    }
                }
                let fit: Vec<u32> = model.values().filter(|(s, _)| *s >= size).map(|(_, n)| *n).collect();
                prop_assert_eq!(index.find(size), fit.first().copied());
                prop_assert_eq!(index.at_least(size), fit);
                prop_assert_eq!(index.largest(), model.values().map(|(s, _)| *s).max());
                prop_assert_eq!(index.len(), model.len());
                let around = model.range(..=address).next_back().map(|(_, (_, n))| *n);
                prop_assert_eq!(index.around(address), around);
            }
        }
    }
}
