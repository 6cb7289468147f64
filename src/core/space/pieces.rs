//! The pieces of a space in the order of their addresses.

use super::{Color, Epoch};

pub(super) const NONE: u32 = u32::MAX;

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Used,
    /// Backed, and nobody's.
    Free {
        color: Color,
        /// Until when its colour's work may use it.
        epoch: Epoch,
    },
    /// Not backed.
    Hole,
    /// On its way to be a hole: its chunk is wanted or already serves elsewhere.
    Limbo,
    /// Free, in a place that nothing backs for a while.
    Dormant,
}

impl State {
    /// Whether two neighbours are one piece.
    pub fn joins(self, other: State) -> bool {
        match (self, other) {
            (State::Free { color, .. }, State::Free { color: other, .. }) => color == other,
            (State::Hole, State::Hole) | (State::Dormant, State::Dormant) => true,
            _ => false,
        }
    }

    /// Whether `color` may have it: at once, or once something backs it.
    pub fn serves(self, wanted: Color) -> bool {
        match self {
            State::Free { color, .. } => color == wanted || color == Color::NEUTRAL,
            State::Hole => true,
            State::Used | State::Limbo | State::Dormant => false,
        }
    }
}

/// Half a cache line: of a hundred thousand pieces, which are asked for in any order, hardly any is in
/// a cache.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub(super) struct Piece {
    pub address: u64,
    pub bytes: u64,
    /// Neighbours within the range.
    pub before: u32,
    pub after: u32,
    state: Packed,
}

const _: () = assert!(size_of::<Piece>() == 32);

/// A state in eight bytes: the epoch above, and below what the piece is, which for free memory is its
/// colour.
#[derive(Clone, Copy, Debug)]
struct Packed(u64);

const COLOR_BITS: u32 = 16;
const USED: u16 = u16::MAX;
const HOLE: u16 = u16::MAX - 1;
const LIMBO: u16 = u16::MAX - 2;
const DORMANT: u16 = Color::END;

impl From<State> for Packed {
    fn from(state: State) -> Packed {
        let (epoch, what) = match state {
            State::Used => (0, USED),
            State::Hole => (0, HOLE),
            State::Limbo => (0, LIMBO),
            State::Dormant => (0, DORMANT),
            State::Free { color, epoch } => (epoch, color.0),
        };
        debug_assert!(epoch >> (64 - COLOR_BITS) == 0);
        Packed(epoch << COLOR_BITS | u64::from(what))
    }
}

fn check_neighbours(left: &Piece, right: &Piece) -> Result<(), String> {
    let address = right.address;
    if left.address.checked_add(left.bytes) != Some(address) {
        return Err(format!("a gap or overlap before {address:#x}"));
    }
    if left.state().joins(right.state()) {
        return Err(format!("two pieces at {address:#x} should be one"));
    }
    Ok(())
}

impl Piece {
    /// Whether its state is one that is given to pieces: an epoch belongs to memory of a colour.
    fn is_possible(&self) -> bool {
        let epoch = self.state.0 >> COLOR_BITS;
        matches!(self.state(), State::Free { color, .. } if color != Color::NEUTRAL) || epoch == 0
    }

    pub fn end(&self) -> u64 {
        self.address + self.bytes
    }

    #[inline]
    pub fn state(&self) -> State {
        match self.state.0 as u16 {
            USED => State::Used,
            HOLE => State::Hole,
            LIMBO => State::Limbo,
            DORMANT => State::Dormant,
            color => State::Free {
                color: Color(color),
                epoch: self.state.0 >> COLOR_BITS,
            },
        }
    }

    pub fn set_state(&mut self, state: State) {
        self.state = state.into();
    }
}

#[derive(Default)]
pub(super) struct Pieces {
    all: Vec<Piece>,
    /// Numbers that may serve again.
    spare: Vec<u32>,
    /// The first piece of every range.
    firsts: Vec<u32>,
}

impl Pieces {
    pub fn get(&self, piece: u32) -> &Piece {
        &self.all[piece as usize]
    }

    pub fn get_mut(&mut self, piece: u32) -> &mut Piece {
        &mut self.all[piece as usize]
    }

    fn add(&mut self, piece: Piece) -> u32 {
        match self.spare.pop() {
            Some(number) => {
                self.all[number as usize] = piece;
                number
            }
            None => {
                self.all.push(piece);
                (self.all.len() - 1) as u32
            }
        }
    }

    pub fn add_range(&mut self, address: u64, bytes: u64, state: State) -> u32 {
        let piece = self.add(Piece {
            address,
            bytes,
            before: NONE,
            after: NONE,
            state: state.into(),
        });
        self.firsts.push(piece);
        piece
    }

    /// Adds a piece at the end of a range, behind its last one.
    pub fn add_behind(&mut self, last: u32, bytes: u64, state: State) -> u32 {
        let piece = self.add(Piece {
            address: self.get(last).end(),
            bytes,
            before: last,
            after: NONE,
            state: state.into(),
        });
        self.get_mut(last).after = piece;
        piece
    }

    /// How many ranges there are.
    pub fn range_count(&self) -> usize {
        self.firsts.len()
    }

    /// The holes that are all of their range.
    pub fn lone_holes(&self) -> impl Iterator<Item = u32> + '_ {
        self.firsts.iter().copied().filter(|first| {
            let piece = self.get(*first);
            piece.after == NONE && piece.state() == State::Hole
        })
    }

    /// Forgets a range of one piece.
    pub fn remove_range(&mut self, piece: u32) {
        self.firsts.retain(|first| *first != piece);
        self.spare.push(piece);
    }

    /// Cuts a piece in two at `address`, both of its kind; the number of the second.
    pub fn split(&mut self, piece: u32, address: u64) -> u32 {
        let whole = *self.get(piece);
        debug_assert!(whole.address < address && address < whole.end());
        let right = self.add(Piece {
            address,
            bytes: whole.end() - address,
            before: piece,
            ..whole
        });
        let left = self.get_mut(piece);
        left.bytes = address - whole.address;
        left.after = right;
        if whole.after != NONE {
            self.get_mut(whole.after).before = right;
        }
        right
    }

    /// Joins a piece with the one after it.
    pub fn merge(&mut self, piece: u32) {
        let right_number = self.get(piece).after;
        let right = *self.get(right_number);
        let left = self.get_mut(piece);
        left.bytes += right.bytes;
        left.after = right.after;
        if let (State::Free { color, epoch }, State::Free { epoch: other, .. }) =
            (left.state(), right.state())
        {
            let epoch = epoch.max(other);
            left.set_state(State::Free { color, epoch });
        }
        if right.after != NONE {
            self.get_mut(right.after).before = piece;
        }
        self.spare.push(right_number);
    }

    /// Every piece in order, found without trust in what the pieces say of each other; what contradicts itself.
    pub fn checked(&self) -> Result<Vec<(u32, Piece)>, String> {
        let mut found = Vec::with_capacity(self.all.len());
        for first in &self.firsts {
            let (mut number, mut before) = (*first, NONE);
            while number != NONE {
                let piece = *(self.all.get(number as usize))
                    .ok_or_else(|| format!("piece {number} does not exist"))?;
                let address = piece.address;
                if piece.before != before {
                    return Err(format!("the piece at {address:#x} has lost its neighbour"));
                }
                if let (Some((_, left)), true) = (found.last(), before != NONE) {
                    check_neighbours(left, &piece)?;
                }
                let end = address.checked_add(piece.bytes);
                if piece.bytes == 0 || end.is_none() || !piece.is_possible() {
                    return Err(format!("the piece at {address:#x} cannot be"));
                }
                found.push((number, piece));
                if found.len() > self.all.len() {
                    return Err("pieces lie in a circle".to_owned());
                }
                (before, number) = (number, piece.after);
            }
        }
        if found.len() + self.spare.len() != self.all.len() {
            return Err("pieces were lost".to_owned());
        }
        Ok(found)
    }

    /// Every piece, range by range.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Piece)> {
        self.firsts.iter().flat_map(|first| {
            let after = |number: &u32| {
                let next = self.get(*number).after;
                (next != NONE).then_some(next)
            };
            std::iter::successors(Some(*first), after).map(|number| (number, self.get(number)))
        })
    }
}

#[cfg(test)]
impl Pieces {
    pub const FIELDS: usize = 5;

    /// Damages a field of what is known of a piece.
    pub fn flip(&mut self, number: u32, field: usize, bit: u32) {
        let piece = &mut self.all[number as usize];
        match field {
            0 => piece.address ^= 1 << bit,
            1 => piece.bytes ^= 1 << bit,
            2 => piece.before ^= 1 << (bit % 32),
            3 => piece.after ^= 1 << (bit % 32),
            _ => piece.state.0 ^= 1 << bit,
        }
    }
}
