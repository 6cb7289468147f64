//! Places that lose what backs them for a while, and the blocks in them not their addresses. Free memory
//! there is *dormant*: nobody is given it, and what is freed meanwhile becomes dormant too.

use super::pieces::State;
use super::{Color, Space};

impl Space {
    /// Takes every place for which `stays` does not hold out of use; blocks in them stay. The places that
    /// doze now, by address, those included that did before.
    pub fn doze(&mut self, stays: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let places = self.places.keys().copied();
        let dozing: Vec<u64> = places.filter(|address| !stays(*address)).collect();
        self.dozing.extend(dozing);
        if !self.dozing.is_empty() {
            let free = self.free.iter().flat_map(|index| index.at_least(1));
            for number in free.collect::<Vec<_>>() {
                let piece = *self.pieces.get(number);
                if self.touches_dozing(piece.address, piece.bytes) {
                    self.unlist(number);
                    self.pieces.get_mut(number).set_state(State::Dormant);
                    self.join(number);
                }
            }
        }
        self.dozing_places()
    }

    fn dozing_places(&self) -> Vec<(u64, u64)> {
        let bytes = |address: &u64| Some((*address, *self.places.get(address)?));
        self.dozing.iter().filter_map(bytes).collect()
    }

    /// Whether any part of a stretch lies in a place that dozes.
    pub fn touches_dozing(&self, address: u64, bytes: u64) -> bool {
        if self.dozing.is_empty() {
            return false;
        }
        let before = self.places.range(..=address).next_back();
        let reaching = before.filter(|(begin, length)| *begin + *length > address);
        let first = reaching.map_or(address, |(begin, _)| *begin);
        (self.dozing.range(first..address + bytes)).next().is_some()
    }

    /// Whether anything dozes.
    pub fn is_dozing(&self) -> bool {
        !self.dozing.is_empty()
    }

    /// Bytes of places that doze.
    pub fn dozing_bytes(&self) -> u64 {
        let bytes = |address| self.places.get(address).copied().unwrap_or(0);
        self.dozing.iter().map(bytes).sum()
    }

    /// The blocks in use, by address, that lie in places that doze: address and length of each.
    pub fn dozing_blocks(&self) -> Vec<(u64, u64)> {
        if self.dozing.is_empty() {
            return Vec::new();
        }
        let used = |piece: &super::pieces::Piece| {
            piece.state() == State::Used && self.touches_dozing(piece.address, piece.bytes)
        };
        let pieces = self.pieces.iter().map(|(_, piece)| piece);
        let mut blocks: Vec<(u64, u64)> = (pieces.filter(|piece| used(piece)))
            .map(|piece| (piece.address, piece.bytes))
            .collect();
        blocks.sort_unstable();
        blocks
    }

    /// Gives up the places that doze and hold no block any more: what was there is a hole. Their first
    /// addresses.
    pub fn take_dead_places(&mut self) -> Vec<u64> {
        let mut dead = Vec::new();
        for (address, bytes) in self.dozing_places() {
            let around = self.dormant.range(..=address).next_back();
            let Some((_, number)) = around.map(|(begin, number)| (*begin, *number)) else {
                continue;
            };
            if self.pieces.get(number).end() < address + bytes {
                continue;
            }
            self.unlist(number);
            let number = self.carve(number, address, address + bytes);
            self.pieces.get_mut(number).set_state(State::Hole);
            self.places.remove(&address);
            self.dozing.remove(&address);
            self.join(number);
            dead.push(address);
        }
        dead
    }

    /// Places that doze and of which `is_asleep` does not hold are in use again: what is freed in them from
    /// here on is free. What is dormant stays so until [`Space::wake`].
    pub fn rouse(&mut self, is_asleep: impl Fn(u64) -> bool) {
        self.dozing.retain(|address| is_asleep(*address));
    }

    /// What is dormant in places that doze no more is free memory that no work uses.
    pub fn wake(&mut self) {
        let free = State::Free {
            color: Color::NEUTRAL,
            epoch: 0,
        };
        let dormant: Vec<u32> = self.dormant.values().copied().collect();
        for number in dormant {
            let piece = *self.pieces.get(number);
            if !self.touches_dozing(piece.address, piece.bytes) {
                self.unlist(number);
                self.pieces.get_mut(number).set_state(free);
                self.join(number);
            }
        }
    }
}
