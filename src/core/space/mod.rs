//! Addresses divided into pieces: blocks in use, free memory, and holes that nothing backs. All
//! bookkeeping is out of band; what backs the memory is a set of places (chunks), each of which can
//! only be taken away whole.
//!
//! Free memory has a colour: that of the stream whose work may still use it, in whose order it may be
//! used again at once. Memory that no work uses any more has none ([`Color::NEUTRAL`]) and serves
//! everybody. Neighbours of one colour are one piece.

mod audit;
mod dormant;
mod free;
mod pieces;
mod places;
mod window;

#[cfg(test)]
mod tests;

pub use free::Fit;
pub use places::FreePlace;
pub use window::Window;

use super::radix::UNIT;
use super::size::Align;
use free::FreeIndex;
use pieces::{NONE, Pieces, State};
use std::collections::{BTreeMap, BTreeSet};

/// In whose order free memory may be used again; below [`Color::END`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Color(pub u16);

impl Color {
    /// In anybody's: no work uses it.
    pub const NEUTRAL: Color = Color(0);
    /// No colour is as high.
    pub const END: u16 = u16::MAX - 3;
}

/// The times at which memory was freed, as the space's owner counts them.
pub type Epoch = u64;

/// Memory given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its first address.
    pub address: u64,
    /// What to call it in [`Space::free`].
    pub piece: u32,
}

/// Addresses and what is known of them.
pub struct Space {
    granularity: Align,
    pieces: Pieces,
    /// Free pieces by size in units, an index for each colour.
    free: Vec<FreeIndex>,
    fit: Fit,
    /// Holes by address.
    holes: BTreeMap<u64, u32>,
    /// Places taken, by address, and what they were.
    limbo: BTreeMap<u64, (u32, State)>,
    /// What backs the memory: length by first address.
    places: BTreeMap<u64, u64>,
    /// Those of them that nothing backs for a while, and free memory there by address.
    dozing: BTreeSet<u64>,
    dormant: BTreeMap<u64, u32>,
    /// Bytes of blocks in use.
    used: u64,
}

impl Space {
    /// A space without addresses whose places are multiples of `granularity`.
    pub fn new(granularity: Align, fit: Fit) -> Space {
        Space {
            granularity,
            pieces: Pieces::default(),
            free: Vec::new(),
            fit,
            holes: BTreeMap::new(),
            limbo: BTreeMap::new(),
            places: BTreeMap::new(),
            dozing: BTreeSet::new(),
            dormant: BTreeMap::new(),
            used: 0,
        }
    }

    /// Adds a range of addresses with nothing behind them, apart from all others.
    pub fn add_range(&mut self, address: u64, bytes: u64) {
        let piece = self.pieces.add_range(address, bytes, State::Hole);
        self.holes.insert(address, piece);
    }

    /// Adds a range that one place backs, free for `color`.
    pub fn add_backed_range(&mut self, address: u64, bytes: u64, color: Color) {
        let state = State::Free { color, epoch: 0 };
        let piece = self.pieces.add_range(address, bytes, state);
        self.places.insert(address, bytes);
        self.list(piece);
    }

    /// Adds a place behind the range that ends at `address`, free for `color`; memory may reach over both. Looks at
    /// every piece.
    pub fn extend_backed_range(&mut self, address: u64, bytes: u64, color: Color) {
        let last = self.pieces.iter().find(|(_, piece)| piece.end() == address);
        let Some((last, _)) = last else {
            return self.add_backed_range(address, bytes, color);
        };
        let state = State::Free { color, epoch: 0 };
        let piece = self.pieces.add_behind(last, bytes, state);
        self.places.insert(address, bytes);
        self.join(piece);
    }

    /// Forgets the range of a place that is its only one and was taken ([`Space::take_place`]).
    pub fn remove_range(&mut self, address: u64) {
        if let Some(piece) = self.holes.remove(&address) {
            self.pieces.remove_range(piece);
        }
    }

    /// Takes out ranges of which nothing backs any part: address and length of each.
    pub fn take_empty_ranges(&mut self) -> Vec<(u64, u64)> {
        let empty: Vec<u32> = self.pieces.lone_holes().collect();
        for piece in &empty {
            self.unlist(*piece);
            self.pieces.remove_range(*piece);
        }
        let range = |piece: &u32| {
            let piece = self.pieces.get(*piece);
            (piece.address, piece.bytes)
        };
        empty.iter().map(range).collect()
    }

    /// How many ranges of addresses it has.
    pub fn range_count(&self) -> usize {
        self.pieces.range_count()
    }

    /// Whether it has no addresses.
    pub fn is_void(&self) -> bool {
        self.pieces.range_count() == 0
    }

    /// Bytes of blocks in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Gives out `bytes`, a multiple of [`UNIT`] above 0, of free memory that `color` may use.
    pub fn allocate(&mut self, bytes: u64, align: Align, color: Color) -> Option<Given> {
        let slack = align.get().saturating_sub(UNIT);
        let piece = self.fitting(bytes.checked_add(slack)?, color)?;
        let begin = self.pieces.get(piece).address;
        let address = align.round_up(begin)?;
        Some(self.use_part(piece, address, bytes))
    }

    /// The free piece to take `bytes` from, among those of the colour and those of nobody.
    fn fitting(&self, bytes: u64, color: Color) -> Option<u32> {
        let find = |color: Color| {
            let found = self.free.get(color.0 as usize)?.find(bytes / UNIT)?;
            let piece = self.pieces.get(found);
            let rank = match self.fit {
                Fit::Best => piece.bytes,
                Fit::Lowest => piece.address,
            };
            Some((rank, found))
        };
        let own = find(color);
        let neutral = match color {
            Color::NEUTRAL => None,
            _ => find(Color::NEUTRAL),
        };
        match (own, neutral) {
            // What is everybody's is left to others where it fits no better.
            (Some(own), Some(neutral)) if neutral.0 < own.0 => Some(neutral.1),
            (Some(own), _) => Some(own.1),
            (None, neutral) => neutral.map(|(_, piece)| piece),
        }
    }

    fn use_part(&mut self, piece: u32, address: u64, bytes: u64) -> Given {
        let whole = *self.pieces.get(piece);
        let piece = if whole.address == address && whole.bytes > bytes {
            let rest = self.pieces.split(piece, address + bytes);
            self.relist((piece, address), rest);
            piece
        } else {
            self.unlist(piece);
            self.carve(piece, address, address + bytes)
        };
        self.pieces.get_mut(piece).set_state(State::Used);
        self.used += bytes;
        Given { address, piece }
    }

    /// Cuts `[begin, end)` out of an unlisted piece; what is left of it on both sides is listed again.
    fn carve(&mut self, piece: u32, begin: u64, end: u64) -> u32 {
        let before = *self.pieces.get(piece);
        let mut piece = piece;
        if begin > before.address {
            let left = piece;
            piece = self.pieces.split(left, begin);
            self.list(left);
        }
        if end < before.address + before.bytes {
            let right = self.pieces.split(piece, end);
            self.list(right);
        }
        piece
    }

    /// Takes a block back; work of `color` given until `epoch` may still use it.
    pub fn free(&mut self, piece: u32, color: Color, epoch: Epoch) {
        let node = *self.pieces.get(piece);
        debug_assert!(matches!(node.state(), State::Used));
        let state = match self.touches_dozing(node.address, node.bytes) {
            true => State::Dormant,
            false => State::Free { color, epoch },
        };
        self.pieces.get_mut(piece).set_state(state);
        self.used -= node.bytes;
        self.join(piece);
    }

    /// Cuts a block in use in two, both in use; the piece behind the first `bytes`.
    pub fn split_used(&mut self, piece: u32, bytes: u64) -> u32 {
        let address = self.pieces.get(piece).address;
        self.pieces.split(piece, address + bytes)
    }

    /// The length of a block in use.
    pub fn bytes_of(&self, piece: u32) -> u64 {
        self.pieces.get(piece).bytes
    }

    /// The address and length of the block in use that `address` lies in. Looks at every piece.
    pub fn used_around(&self, address: u64) -> Option<(u64, u64)> {
        let inside = |piece: &pieces::Piece| {
            piece.state() == State::Used && piece.address <= address && address < piece.end()
        };
        let found = self.pieces.iter().find(|(_, piece)| inside(piece))?;
        Some((found.1.address, found.1.bytes))
    }

    /// The addresses of the blocks in use.
    pub fn used_blocks(&self) -> Vec<u64> {
        (self.pieces.iter())
            .filter(|(_, piece)| piece.state() == State::Used)
            .map(|(_, piece)| piece.address)
            .collect()
    }

    /// Cuts a block in use down to its first `bytes`; the rest is free.
    pub fn shorten(&mut self, piece: u32, bytes: u64, color: Color, epoch: Epoch) {
        let node = *self.pieces.get(piece);
        if bytes < node.bytes {
            let rest = self.pieces.split(piece, node.address + bytes);
            self.free(rest, color, epoch);
        }
    }

    /// Work of `color` given until `epoch` is done: what was freed until then is everybody's. Returns
    /// how many bytes that are.
    pub fn settle(&mut self, color: Color, epoch: Epoch) -> u64 {
        if color == Color::NEUTRAL || self.free.len() <= color.0 as usize {
            return 0;
        }
        let mut settled = 0;
        for piece in self.free[color.0 as usize].at_least(1) {
            let done = matches!(self.pieces.get(piece).state(), State::Free { epoch: freed, .. } if freed <= epoch);
            if done {
                self.unlist(piece);
                let node = self.pieces.get_mut(piece);
                settled += node.bytes;
                node.set_state(State::Free {
                    color: Color::NEUTRAL,
                    epoch: 0,
                });
                self.join(piece);
            }
        }
        settled
    }

    /// The colours that have free memory, and the largest piece of each in bytes.
    pub fn colors(&self) -> Vec<(Color, u64)> {
        let largest = |(color, index): (usize, &FreeIndex)| {
            Some((Color(color as u16), index.largest()? * UNIT))
        };
        self.free.iter().enumerate().filter_map(largest).collect()
    }

    /// The largest free piece of a colour, in bytes.
    pub fn largest(&self, color: Color) -> u64 {
        let index = self.free.get(usize::from(color.0));
        index.and_then(FreeIndex::largest).unwrap_or(0) * UNIT
    }

    /// How many free pieces there are.
    pub fn free_pieces(&self) -> usize {
        self.free.iter().map(|index| index.at_least(1).len()).sum()
    }

    /// Joins an unlisted piece, free or a hole, with neighbours of its kind and lists it.
    fn join(&mut self, piece: u32) -> u32 {
        let node = *self.pieces.get(piece);
        let joins = |space: &Space, other: u32| {
            other != NONE && space.pieces.get(other).state().joins(node.state())
        };
        let (before, after) = (node.before, node.after);
        match (joins(self, before), joins(self, after)) {
            (false, false) => {
                self.list(piece);
                piece
            }
            (false, true) => {
                let listed = (after, self.pieces.get(after).address);
                self.pieces.merge(piece);
                self.relist(listed, piece);
                piece
            }
            (true, is_between) => {
                if is_between {
                    self.unlist(after);
                    self.pieces.merge(piece);
                }
                let listed = (before, self.pieces.get(before).address);
                self.pieces.merge(before);
                self.relist(listed, before);
                before
            }
        }
    }

    /// Lists a piece in the place of one (its number, its address) of the same kind, which it has come
    /// out of or taken in.
    fn relist(&mut self, old: (u32, u64), piece: u32) {
        let node = self.pieces.get(piece);
        match node.state() {
            State::Free { color, .. } => {
                let index = &mut self.free[color.0 as usize];
                index.replace(old, (piece, node.address), node.bytes / UNIT);
            }
            State::Hole => {
                self.holes.remove(&old.1);
                self.holes.insert(node.address, piece);
            }
            State::Dormant => {
                self.dormant.remove(&old.1);
                self.dormant.insert(node.address, piece);
            }
            State::Used | State::Limbo => {}
        }
    }

    fn list(&mut self, piece: u32) {
        let node = self.pieces.get(piece);
        match node.state() {
            State::Free { color, .. } => {
                let color = color.0 as usize;
                if self.free.len() <= color {
                    let fit = self.fit;
                    self.free.resize_with(color + 1, || FreeIndex::new(fit));
                }
                self.free[color].insert(piece, node.address, node.bytes / UNIT);
            }
            State::Hole => {
                self.holes.insert(node.address, piece);
            }
            State::Dormant => {
                self.dormant.insert(node.address, piece);
            }
            State::Used | State::Limbo => {}
        }
    }

    fn unlist(&mut self, piece: u32) {
        let node = self.pieces.get(piece);
        match node.state() {
            State::Free { color, .. } => self.free[color.0 as usize].remove(piece, node.address),
            State::Hole => {
                self.holes.remove(&node.address);
            }
            State::Dormant => {
                self.dormant.remove(&node.address);
            }
            State::Used | State::Limbo => {}
        }
    }
}
