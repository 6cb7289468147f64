//! Free pieces by address, for taking the lowest that is large enough. Blocks then gather at low
//! addresses, and what is free at the end stays in one piece; for large blocks that leaves less
//! between them than the best fit does.
//!
//! Pieces stand in rows of bounded length, each of which knows its largest: a search looks at the rows
//! and then into one, a change moves no more than a row.

/// A row is cut in two beyond this.
const ROW: usize = 128;

#[derive(Clone, Copy)]
struct Listed {
    address: u64,
    size: u64,
    number: u32,
}

#[derive(Default)]
struct Row {
    /// By address; never empty.
    pieces: Vec<Listed>,
    largest: u64,
}

impl Row {
    fn new(pieces: Vec<Listed>) -> Row {
        let mut row = Row { pieces, largest: 0 };
        row.look();
        row
    }

    fn look(&mut self) {
        self.largest = self
            .pieces
            .iter()
            .map(|piece| piece.size)
            .max()
            .unwrap_or(0);
    }

    fn first_address(&self) -> u64 {
        self.pieces.first().map_or(0, |piece| piece.address)
    }
}

/// Pieces, by numbers that the caller gives, listed by address.
#[derive(Default)]
pub struct AddressIndex {
    rows: Vec<Row>,
}

impl AddressIndex {
    fn row_of(&self, address: u64) -> usize {
        let after = self
            .rows
            .partition_point(|row| row.first_address() <= address);
        after.saturating_sub(1)
    }

    /// Lists the piece `number` of `size` at `address`.
    pub fn insert(&mut self, number: u32, address: u64, size: u64) {
        let listed = Listed {
            address,
            size,
            number,
        };
        let index = self.row_of(address);
        let Some(row) = self.rows.get_mut(index) else {
            self.rows.push(Row::new(vec![listed]));
            return;
        };
        let at = row.pieces.partition_point(|piece| piece.address < address);
        row.pieces.insert(at, listed);
        row.largest = row.largest.max(size);
        if row.pieces.len() > ROW {
            let rest = Row::new(row.pieces.split_off(ROW / 2));
            row.look();
            self.rows.insert(index + 1, rest);
        }
    }

    /// Takes the piece at `address`, which is listed, off the list.
    pub fn remove(&mut self, address: u64) {
        let index = self.row_of(address);
        let Some(row) = self.rows.get_mut(index) else {
            return;
        };
        let Ok(at) = row
            .pieces
            .binary_search_by_key(&address, |piece| piece.address)
        else {
            return;
        };
        let removed = row.pieces.remove(at);
        if row.pieces.is_empty() {
            self.rows.remove(index);
        } else if removed.size == row.largest {
            row.look();
        }
    }

    /// The piece of at least `size` with the lowest address.
    pub fn find(&self, size: u64) -> Option<u32> {
        let row = self.rows.iter().find(|row| row.largest >= size)?;
        let piece = row.pieces.iter().find(|piece| piece.size >= size)?;
        Some(piece.number)
    }

    /// Every piece of at least `size`, by address.
    pub fn at_least(&self, size: u64) -> Vec<u32> {
        let rows = self.rows.iter().filter(|row| row.largest >= size);
        let pieces = rows.flat_map(|row| &row.pieces);
        let wanted = pieces.filter(|piece| piece.size >= size);
        wanted.map(|piece| piece.number).collect()
    }

    /// The piece that `address` lies in, if it is listed.
    pub fn around(&self, address: u64) -> Option<u32> {
        let row = self.rows.get(self.row_of(address))?;
        let after = row.pieces.partition_point(|piece| piece.address <= address);
        Some(row.pieces.get(after.checked_sub(1)?)?.number)
    }

    /// The largest size listed.
    pub fn largest(&self) -> Option<u64> {
        self.rows.iter().map(|row| row.largest).max()
    }

    /// How many pieces are listed.
    pub fn len(&self) -> usize {
        self.rows.iter().map(|row| row.pieces.len()).sum()
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
