//! A list that only grows, read without a lock.

use super::sync::lock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

/// Each row is twice as long as the one before.
const ROWS: usize = 24;
const FIRST_ROW: usize = 64;

type Row<T> = Box<[OnceLock<T>]>;

/// In which row a thing stands, at which place there, and how long the row is.
fn place_of(index: usize) -> (usize, usize, usize) {
    let row = (index / FIRST_ROW + 1).ilog2() as usize;
    let length = FIRST_ROW << row;
    (row, index - (length - FIRST_ROW), length)
}

/// A list of at most a thousand million things.
pub struct AppendList<T> {
    rows: [OnceLock<Row<T>>; ROWS],
    len: AtomicUsize,
    appending: Mutex<()>,
}

impl<T> Default for AppendList<T> {
    fn default() -> AppendList<T> {
        AppendList {
            rows: std::array::from_fn(|_| OnceLock::new()),
            len: AtomicUsize::new(0),
            appending: Mutex::new(()),
        }
    }
}

impl<T> AppendList<T> {
    /// Adds a thing at the end; gives it back where the list is full.
    pub fn push(&self, thing: T) -> Result<(), T> {
        let _turn = lock(&self.appending);
        let index = self.len.load(Ordering::Relaxed);
        let (row, place, length) = place_of(index);
        let Some(row) = self.rows.get(row) else {
            return Err(thing);
        };
        let row = row.get_or_init(|| (0..length).map(|_| OnceLock::new()).collect());
        row[place].set(thing)?;
        self.len.store(index + 1, Ordering::Release);
        Ok(())
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The things that are there when this is called.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let rows = self.rows.iter().map_while(OnceLock::get);
        let places = rows.flat_map(|row| row.iter());
        places.take(self.len()).filter_map(OnceLock::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_stays_in_order() {
        let list = AppendList::default();
        assert!(list.is_empty());
        for number in 0..40_000 {
            list.push(number).unwrap();
        }
        assert_eq!(list.len(), 40_000);
        assert!(list.iter().copied().eq(0..40_000));
    }

    #[test]
    fn places_follow_one_another() {
        let mut expected = (0, 0, FIRST_ROW);
        for index in 0..5000 {
            assert_eq!(place_of(index), expected);
            expected.1 += 1;
            if expected.1 == expected.2 {
                expected = (expected.0 + 1, 0, 2 * expected.2);
            }
        }
    }

    #[test]
    fn readers_beside_writers_see_a_beginning_of_the_list() {
        let list = AppendList::default();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..500).for_each(|_| list.push(3).unwrap())))
                .collect();
            while !writers.iter().all(|writer| writer.is_finished()) {
                let count = list.len();
                assert!(list.iter().take(count).all(|thing| *thing == 3));
                assert!(list.iter().count() >= count);
            }
        });
        assert_eq!(list.len(), 2000);
    }
}
