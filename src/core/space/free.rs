//! Which free piece a block is cut from.

use crate::core::address_index::AddressIndex;
use crate::core::radix::UNIT;
use crate::core::size_index::SizeIndex;

/// How a space chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The piece that is least too large, in a fixed number of steps.
    Best,
    /// The lowest address.
    Lowest,
}

/// The free pieces of one colour.
pub(super) enum FreeIndex {
    BySize(Box<SizeIndex>),
    ByAddress(AddressIndex),
}

impl FreeIndex {
    pub fn new(fit: Fit) -> FreeIndex {
        match fit {
            Fit::Best => FreeIndex::BySize(Box::default()),
            Fit::Lowest => FreeIndex::ByAddress(AddressIndex::default()),
        }
    }

    pub fn insert(&mut self, piece: u32, address: u64, units: u64) {
        match self {
            FreeIndex::BySize(index) => index.insert(piece, units),
            FreeIndex::ByAddress(index) => index.insert(piece, address, units),
        }
    }

    pub fn remove(&mut self, piece: u32, address: u64) {
        match self {
            FreeIndex::BySize(index) => index.remove(piece),
            FreeIndex::ByAddress(index) => index.remove(address),
        }
    }

    /// Lists a piece in the place of one that it has come out of, or taken in.
    pub fn replace(&mut self, old: (u32, u64), new: (u32, u64), units: u64) {
        match self {
            FreeIndex::BySize(index) => {
                index.remove(old.0);
                index.insert(new.0, units);
            }
            FreeIndex::ByAddress(index) => index.replace(old.1, new.0, new.1, units),
        }
    }

    pub fn find(&self, units: u64) -> Option<u32> {
        match self {
            FreeIndex::BySize(index) => index.find(units),
            FreeIndex::ByAddress(index) => index.find(units),
        }
    }

    pub fn at_least(&self, units: u64) -> Vec<u32> {
        match self {
            FreeIndex::BySize(index) => index.at_least(units),
            FreeIndex::ByAddress(index) => index.at_least(units),
        }
    }

    /// Pieces among which is the one that `units` at `address` lie in, if that is listed.
    pub fn around(&self, address: u64, units: u64) -> Vec<u32> {
        match self {
            FreeIndex::BySize(index) => index.at_least(units),
            FreeIndex::ByAddress(index) => index.around(address).into_iter().collect(),
        }
    }

    pub fn largest(&self) -> Option<u64> {
        match self {
            FreeIndex::BySize(index) => index.largest(),
            FreeIndex::ByAddress(index) => index.largest(),
        }
    }

    /// Every piece that is listed and its units, found without trust in the lists; what is wrong with them.
    pub fn listed(&self) -> Result<Vec<(u32, u64)>, String> {
        match self {
            FreeIndex::BySize(index) => index.checked(),
            FreeIndex::ByAddress(index) => Ok(index.entries().collect()),
        }
    }

    /// Whether a piece of `bytes` may be listed with `units`; lists by address cut them off.
    pub fn holds(bytes: u64, units: u64) -> bool {
        let whole = bytes / UNIT;
        whole == units || (units == u64::from(u32::MAX) && whole > units)
    }
}
