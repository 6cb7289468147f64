//! What is known of objects, apart from their memory: a record each, in rows that stay where they are, so that
//! references are counted without a lock.

use super::stock::NONE;
use super::word::Holders;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Each row is twice as long as the one before.
const ROWS: usize = 22;
const FIRST_ROW: usize = 1024;
/// How many records there can be.
pub const MOST_RECORDS: u32 = (FIRST_ROW as u32) * ((1 << ROWS) - 1);

/// What is known of one object. Its memory is told while it is held, or waits on a shelf for the next one; records
/// that are neither have none.
#[repr(align(32))]
pub struct Record {
    /// [`Holders`] as a word.
    pub word: AtomicU64,
    /// Its first address.
    pub address: AtomicU64,
    /// Its length.
    pub bytes: AtomicU64,
    /// What the space calls it.
    pub piece: AtomicU32,
}

impl Record {
    /// Says where its memory is.
    pub fn place(&self, address: u64, bytes: u64, piece: u32) {
        self.address.store(address, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.piece.store(piece, Ordering::Relaxed);
    }

    /// Its address and length.
    pub fn memory(&self) -> (u64, u64) {
        let read = |field: &AtomicU64| field.load(Ordering::Relaxed);
        (read(&self.address), read(&self.bytes))
    }
}

/// Records by number.
pub struct Records {
    rows: [OnceLock<Box<[Record]>>; ROWS],
}

impl Default for Records {
    fn default() -> Records {
        Records {
            rows: std::array::from_fn(|_| OnceLock::new()),
        }
    }
}

fn row_of(index: u32) -> (usize, usize) {
    let row = (index as usize / FIRST_ROW + 1).ilog2() as usize;
    (row, index as usize - ((FIRST_ROW << row) - FIRST_ROW))
}

impl Records {
    /// The record of a number, if it was ever made.
    pub fn get(&self, index: u32) -> Option<&Record> {
        let (row, place) = row_of(index);
        self.rows.get(row)?.get()?.get(place)
    }

    /// Makes the record of a number below [`MOST_RECORDS`], and those around it.
    pub fn make(&self, index: u32) -> &Record {
        let (row, place) = row_of(index);
        let first = ((FIRST_ROW << row) - FIRST_ROW) as u32;
        let row = self.rows[row].get_or_init(|| {
            let record = |place: u32| Record {
                word: AtomicU64::new(Holders::nobody(0).word(first + place)),
                address: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                piece: AtomicU32::new(NONE),
            };
            (0..(FIRST_ROW << row) as u32).map(record).collect()
        });
        &row[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_places_of_their_own() {
        let records = Records::default();
        assert!(records.get(0).is_none() && records.get(u32::MAX).is_none());
        for index in 0..5000 {
            let record = records.make(index);
            assert_eq!(
                record.word.load(Ordering::Relaxed),
                Holders::nobody(0).word(index)
            );
            record.address.store(u64::from(index), Ordering::Relaxed);
        }
        for index in 0..5000 {
            assert_eq!(records.get(index).unwrap().memory().0, u64::from(index));
        }
        let (row, place) = row_of(MOST_RECORDS - 1);
        assert_eq!((row, place), (ROWS - 1, (FIRST_ROW << (ROWS - 1)) - 1));
    }
}
