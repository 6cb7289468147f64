//! Streams that wait for a word in memory, as `cuStreamWaitValue32` makes them. Whoever writes the word
//! tells nobody, so it is looked at whenever the driver is called, and now and then while a call waits.

use crate::abi::ACCESS_READ;
use crate::codes::{self, Result};
use crate::sim::Sim;
use crate::transfer::Place;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How often it is looked at while a call waits.
pub const LOOK_AGAIN: Duration = Duration::from_millis(1);

const FLUSH: u32 = 1 << 30;
const WORD: u64 = size_of::<u32>() as u64;

/// How the word is compared with the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Test {
    /// At or past it, cyclically.
    Reached,
    Equal,
    AnyBit,
    /// Some bit is set in neither.
    NotAllBits,
}

#[derive(Clone, Copy, Debug)]
pub struct Watch {
    pub address: u64,
    pub value: u32,
    pub test: Test,
}

impl Watch {
    pub fn new(address: u64, value: u32, flags: u32) -> Result<Watch> {
        let test = match flags & !FLUSH {
            0 => Test::Reached,
            1 => Test::Equal,
            2 => Test::AnyBit,
            3 => Test::NotAllBits,
            _ => return Err(codes::INVALID_VALUE),
        };
        if address % WORD != 0 {
            return Err(codes::INVALID_VALUE);
        }
        Ok(Watch {
            address,
            value,
            test,
        })
    }

    fn holds(&self, word: u32) -> bool {
        match self.test {
            Test::Reached => word.wrapping_sub(self.value) as i32 >= 0,
            Test::Equal => word == self.value,
            Test::AnyBit => word & self.value != 0,
            Test::NotAllBits => !(word | self.value) != 0,
        }
    }
}

impl Sim {
    /// Whether work of a device may read the word.
    pub fn check_watch(&self, watch: &Watch, device: i32) -> Result {
        match self.place_of(watch.address, WORD, device, ACCESS_READ)? {
            Place::Pageable => Err(codes::INVALID_VALUE),
            _ => Ok(()),
        }
    }

    /// Whether what is waited for has come; memory that is gone is waited for no longer.
    pub fn has_come(&self, watch: &Watch, device: i32) -> bool {
        if self.check_watch(watch, device).is_err() {
            return true;
        }
        // SAFETY: the word is aligned and lies in memory that is mapped, as just checked under the lock.
        let word = unsafe { &*(watch.address as *const AtomicU32) };
        watch.holds(word.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_compared_as_the_driver_does() {
        let holds = |flags, value, word| Watch::new(8, value, flags).unwrap().holds(word);
        assert!(holds(0, 5, 5) && holds(0, 5, 6) && !holds(0, 5, 4));
        assert!(holds(0, u32::MAX, 3), "past the end of the numbers");
        assert!(holds(1, 5, 5) && !holds(1, 5, 6));
        assert!(holds(2, 6, 2) && !holds(2, 6, 1));
        assert!(holds(3, 1, 0) && !holds(3, 1, u32::MAX - 1));
        assert!(Watch::new(8, 0, FLUSH).is_ok());
        assert!(Watch::new(8, 0, 4).is_err() && Watch::new(6, 0, 0).is_err());
    }
}
