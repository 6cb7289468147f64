//! The memory behind the shelves, and records that nobody uses.

use super::record::{MOST_RECORDS, Records};
use crate::core::radix::UNIT;
use crate::core::size::Align;
use crate::core::space::{Color, Fit, Space};
use std::sync::atomic::Ordering;

/// What lengths are multiples of.
pub const GRANULE: Align = Align::new(UNIT).unwrap();
/// No piece of the space.
pub const NONE: u32 = u32::MAX;

/// Of one pool.
pub struct Stock {
    pub space: Space,
    /// Records without memory.
    pub spare: Vec<u32>,
    /// How many records there are.
    pub made: u32,
    /// How many of the slab's parts the space has.
    pub parts: usize,
    /// Bytes of the space.
    pub total: u64,
    /// Nothing is given out any more.
    pub is_closed: bool,
}

impl Stock {
    pub fn new() -> Stock {
        Stock {
            space: Space::new(GRANULE, Fit::Best),
            spare: Vec::new(),
            made: 0,
            parts: 0,
            total: 0,
            is_closed: false,
        }
    }

    /// Adds memory of its own, that objects do not reach over the ends of.
    pub fn add(&mut self, address: u64, bytes: u64) {
        self.space.add_backed_range(address, bytes, Color::NEUTRAL);
        self.total += bytes;
    }

    /// Adds addresses behind the last.
    pub fn extend(&mut self, bytes: u64) {
        match self.total {
            0 => self.add(0, bytes),
            end => {
                self.space.extend_backed_range(end, bytes, Color::NEUTRAL);
                self.total += bytes;
            }
        }
    }

    /// Takes memory of its own back, of which nothing is in use.
    pub fn remove(&mut self, address: u64, bytes: u64) -> bool {
        let is_free = self.space.take_place(address, Color::NEUTRAL, 0);
        if is_free {
            self.space.place_gone(address);
            self.space.remove_range(address);
            self.total -= bytes;
        }
        is_free
    }

    /// Memory for up to `count` objects of `bytes`, side by side where that much is free in one piece, lowest
    /// addresses first then. Their records.
    pub fn take(&mut self, records: &Records, bytes: u64, count: usize) -> Vec<u32> {
        let mut taken = Vec::with_capacity(count.min(1 << 16));
        if count > 1 {
            self.take_together(records, bytes, count, &mut taken);
        }
        while taken.len() < count {
            let Some(given) = self.allocate(bytes) else {
                break;
            };
            match self.record() {
                Some(number) => {
                    records.make(number).place(given.0, bytes, given.1);
                    taken.push(number);
                }
                None => {
                    self.space.free(given.1, Color::NEUTRAL, 0);
                    break;
                }
            }
        }
        taken
    }

    fn allocate(&mut self, bytes: u64) -> Option<(u64, u32)> {
        let given = self.space.allocate(bytes, GRANULE, Color::NEUTRAL)?;
        Some((given.address, given.piece))
    }

    fn take_together(&mut self, records: &Records, bytes: u64, count: usize, taken: &mut Vec<u32>) {
        let numbers = self.spare.len() + (MOST_RECORDS - self.made) as usize;
        let whole = bytes.checked_mul(count as u64).filter(|_| count <= numbers);
        let Some((mut address, mut piece)) = whole.and_then(|whole| self.allocate(whole)) else {
            return;
        };
        for left in (0..count).rev() {
            let Some(number) = self.record() else { break };
            let rest = match left {
                0 => NONE,
                _ => self.space.split_used(piece, bytes),
            };
            records.make(number).place(address, bytes, piece);
            taken.push(number);
            (address, piece) = (address + bytes, rest);
        }
    }

    fn record(&mut self) -> Option<u32> {
        self.spare.pop().or_else(|| {
            let number = self.made;
            (number < MOST_RECORDS).then(|| {
                self.made += 1;
                number
            })
        })
    }

    /// Takes the memory of records back that nobody holds; they are spare from here on.
    pub fn put_back(&mut self, records: &Records, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            let record = records.make(number);
            let piece = record.piece.load(Ordering::Relaxed);
            record.place(0, 0, NONE);
            self.space.free(piece, Color::NEUTRAL, 0);
            self.spare.push(number);
        }
    }
}
