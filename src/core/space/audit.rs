//! Whether all that is known of a space agrees. Nothing is believed before it was checked, so that damage to
//! any record is an answer and not a crash.

use super::Space;
use super::free::FreeIndex;
use super::pieces::{Piece, State};
use std::collections::BTreeMap;

impl Space {
    /// Finds whatever contradicts itself.
    pub fn audit(&self) -> Result<(), String> {
        self.used_pieces().map(drop)
    }

    /// Every block in use: its piece, address and length, in the order of ranges and addresses; or what contradicts
    /// itself.
    pub fn used_pieces(&self) -> Result<Vec<(u32, u64, u64)>, String> {
        let pieces = self.pieces.checked()?;
        let (used, free): (Vec<_>, Vec<_>) = (pieces.iter().copied())
            .filter(|(_, piece)| matches!(piece.state(), State::Used | State::Free { .. }))
            .partition(|(_, piece)| piece.state() == State::Used);
        let bytes: u64 = used.iter().map(|(_, piece)| piece.bytes).sum();
        if bytes != self.used {
            return Err(format!("{bytes} bytes in use, {} counted", self.used));
        }
        self.audit_free(&free)?;
        for (number, piece) in &pieces {
            let listed = match piece.state() {
                State::Hole => self.holes.get(&piece.address),
                State::Dormant => self.dormant.get(&piece.address),
                _ => Some(number),
            };
            if listed != Some(number) {
                return Err(format!("the piece at {:#x} is not listed", piece.address));
            }
        }
        self.audit_places(&pieces)?;
        let told = |(number, piece): &(u32, Piece)| (*number, piece.address, piece.bytes);
        Ok(used.iter().map(told).collect())
    }

    /// Each free piece is listed once, by its colour and size, and nothing else is.
    fn audit_free(&self, free: &[(u32, Piece)]) -> Result<(), String> {
        let mut missing: BTreeMap<u32, Piece> = free.iter().copied().collect();
        for (color, index) in self.free.iter().enumerate() {
            for (number, units) in index.listed()? {
                let piece = missing.remove(&number);
                let is_it = piece.is_some_and(|piece| {
                    matches!(piece.state(), State::Free { color: own, .. } if usize::from(own.0) == color)
                        && FreeIndex::holds(piece.bytes, units)
                });
                if !is_it {
                    return Err(format!("piece {number} is listed as what it is not"));
                }
            }
        }
        match missing.first_key_value() {
            Some((_, piece)) => Err(format!("the piece at {:#x} is not listed", piece.address)),
            None => Ok(()),
        }
    }

    /// Places lie behind all that is in use or free, and behind nothing else.
    fn audit_places(&self, pieces: &[(u32, Piece)]) -> Result<(), String> {
        let is_backed = |piece: &&(u32, Piece)| {
            matches!(
                piece.1.state(),
                State::Used | State::Free { .. } | State::Dormant
            )
        };
        let backed = pieces.iter().filter(is_backed);
        let backed = stretches(backed.map(|(_, piece)| (piece.address, piece.bytes)))?;
        let places = stretches(
            self.places
                .iter()
                .map(|(address, bytes)| (*address, *bytes)),
        )?;
        match backed == places {
            true => Ok(()),
            false => Err("places do not lie where memory is in use or free".to_owned()),
        }
    }
}

/// Stretches by address, neighbours as one.
fn stretches(parts: impl Iterator<Item = (u64, u64)>) -> Result<Vec<(u64, u64)>, String> {
    let mut parts: Vec<_> = parts.collect();
    parts.sort_unstable();
    let mut found: Vec<(u64, u64)> = Vec::new();
    for (address, bytes) in parts {
        let end = (address.checked_add(bytes))
            .filter(|_| bytes > 0)
            .ok_or_else(|| format!("what lies at {address:#x} cannot be"))?;
        match found.last_mut() {
            Some(last) if last.1 > address => {
                return Err(format!("an overlap at {address:#x}"));
            }
            Some(last) if last.1 == address => last.1 = end,
            _ => found.push((address, end)),
        }
    }
    Ok(found)
}

#[cfg(test)]
impl Space {
    /// How many fields [`Space::flip`] knows of a piece: its own, and those of its size among the neutral ones.
    pub const FIELDS: usize =
        super::pieces::Pieces::FIELDS + crate::core::size_index::SizeIndex::FIELDS;

    /// Damages a field of what is known of a piece; no if it has no such field.
    pub fn flip(&mut self, piece: u32, field: usize, bit: u32) -> bool {
        use super::pieces::Pieces;
        if field < Pieces::FIELDS {
            self.pieces.flip(piece, field, bit);
            return true;
        }
        let is_free = matches!(self.pieces.get(piece).state(), State::Free { .. });
        match self.free.first_mut() {
            Some(FreeIndex::BySize(index)) if is_free => {
                index.flip(piece, field - Pieces::FIELDS, bit);
                true
            }
            _ => false,
        }
    }
}
