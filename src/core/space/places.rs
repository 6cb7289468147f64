//! What backs a space: places that can only be taken away whole, and so only while free all over.

use super::pieces::State;
use super::{Color, Epoch, Space};
use crate::core::radix::UNIT;

/// A place of which nothing is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreePlace {
    /// Its first address.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// In whose order it is free.
    pub color: Color,
    /// Until when that colour's work may use it.
    pub epoch: Epoch,
    /// The length of the free piece it lies in.
    pub piece_bytes: u64,
}

impl Space {
    /// Bytes of all places that are not dozing.
    pub fn backed(&self) -> u64 {
        self.places.values().sum::<u64>() - self.dozing_bytes()
    }

    /// How many places there are.
    pub fn place_count(&self) -> usize {
        self.places.len()
    }

    /// The places of which nothing is in use and that lie in one free piece.
    pub fn free_places(&self) -> Vec<FreePlace> {
        let least = self.granularity.get() / UNIT;
        let mut found = Vec::new();
        for index in &self.free {
            for number in index.at_least(least) {
                let piece = self.pieces.get(number);
                let State::Free { color, epoch } = piece.state() else {
                    continue;
                };
                let inside = self.places.range(piece.address..piece.end());
                found.extend(
                    inside
                        .filter(|(address, bytes)| **address + **bytes <= piece.end())
                        .map(|(address, bytes)| FreePlace {
                            address: *address,
                            bytes: *bytes,
                            color,
                            epoch,
                            piece_bytes: piece.bytes,
                        }),
                );
            }
        }
        found
    }

    /// How many free pieces there are of which a part lies in a place that is in use too, and so
    /// cannot be taken away.
    pub fn stuck_pieces(&self) -> usize {
        let is_stuck = |number: &u32| {
            let piece = self.pieces.get(*number);
            let inside = self.places.range(piece.address..piece.end());
            let whole = inside.filter(|(address, bytes)| **address + **bytes <= piece.end());
            whole.map(|(_, bytes)| bytes).sum::<u64>() < piece.bytes
        };
        let pieces = self.free.iter().flat_map(|index| index.at_least(1));
        pieces.filter(is_stuck).count()
    }

    /// Takes a place of which nothing is in use: its addresses are in limbo until
    /// [`Space::place_gone`] or [`Space::give_back_place`]. No if it was in use since it was seen
    /// free for `color` until `epoch`: what was true of its work then need not be true now.
    pub fn take_place(&mut self, address: u64, color: Color, epoch: Epoch) -> bool {
        let Some(bytes) = self.places.get(&address).copied() else {
            return false;
        };
        let Some(number) = self.free_piece_around(address, bytes) else {
            return false;
        };
        let was = self.pieces.get(number).state();
        let is_as_seen = matches!(was, State::Free { color: now, epoch: freed }
            if now == Color::NEUTRAL || (now == color && freed <= epoch));
        if !is_as_seen {
            return false;
        }
        self.unlist(number);
        let number = self.carve(number, address, address + bytes);
        self.pieces.get_mut(number).set_state(State::Limbo);
        self.limbo.insert(address, (number, was));
        self.places.remove(&address);
        true
    }

    fn free_piece_around(&self, address: u64, bytes: u64) -> Option<u32> {
        let around = |number: &u32| {
            let piece = self.pieces.get(*number);
            piece.address <= address && address + bytes <= piece.end()
        };
        let candidates = (self.free.iter()).flat_map(|index| index.around(address, bytes / UNIT));
        candidates.into_iter().find(around)
    }

    /// Nothing backs the addresses of a place that was taken any more.
    pub fn place_gone(&mut self, address: u64) {
        if let Some((number, _)) = self.limbo.remove(&address) {
            self.pieces.get_mut(number).set_state(State::Hole);
            self.join(number);
        }
    }

    /// A place that was taken stays after all, free as it was.
    pub fn give_back_place(&mut self, address: u64) {
        if let Some((number, was)) = self.limbo.remove(&address) {
            let piece = self.pieces.get_mut(number);
            piece.set_state(was);
            self.places.insert(address, piece.bytes);
            self.join(number);
        }
    }
}
