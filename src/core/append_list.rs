//! A list that only grows, read without a lock.

use super::sync::lock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

const ROWS: usize = 64;
const ROW: usize = 256;

type Row<T> = Box<[OnceLock<T>; ROW]>;

/// A list of at most 16384 things.
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
        let Some(row) = self.rows.get(index / ROW) else {
            return Err(thing);
        };
        let row = row.get_or_init(|| Box::new(std::array::from_fn(|_| OnceLock::new())));
        row[index % ROW].set(thing)?;
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
        (0..self.len()).filter_map(|index| self.rows[index / ROW].get()?[index % ROW].get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_stays_in_order_until_the_list_is_full() {
        let list = AppendList::default();
        assert!(list.is_empty());
        for number in 0..ROWS * ROW {
            list.push(number).unwrap();
        }
        assert_eq!(list.push(7), Err(7));
        assert!(list.iter().copied().eq(0..ROWS * ROW));
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
