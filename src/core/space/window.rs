//! Where a block goes that no free piece can hold: a stretch of free memory and holes side by side,
//! chosen so that as little as possible is missing behind it.

use super::pieces::{NONE, State};
use super::{Color, Epoch, Given, Space};
use crate::core::size::Align;
use rustc_hash::FxHashSet;

/// A stretch set aside for a block while what is missing behind it is seen to.
pub struct Window {
    /// The block's first address.
    pub address: u64,
    /// The block's length.
    pub bytes: u64,
    /// Stretches (address, length) that nothing backs yet, multiples of the granularity.
    pub missing: Vec<(u64, u64)>,
    /// How much of the hole behind the window could be had besides.
    pub room: u64,
    piece: u32,
    parts: Vec<Part>,
}

/// What was there before.
struct Part {
    bytes: u64,
    state: State,
}

impl Window {
    /// Bytes that nothing backs yet.
    pub fn missing_bytes(&self) -> u64 {
        self.missing.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// A stretch that might do.
#[derive(Clone, Copy)]
struct Candidate {
    missing: u64,
    /// In how many pieces it is missing.
    holes: u64,
    address: u64,
    first: u32,
}

/// What backing one more hole costs, in bytes backed: 30 us for a chunk of its own, 0.35 us for a MiB
/// (one H200, driver 580).
const HOLE_COST: u64 = 86 << 20;

impl Candidate {
    fn cost(&self) -> u64 {
        self.missing + self.holes * HOLE_COST
    }
}

impl Space {
    /// Sets the best stretch for `bytes` aside; none where no run of addresses is long enough.
    pub fn plan(&mut self, bytes: u64, align: Align, color: Color) -> Option<Window> {
        let mut best: Option<Candidate> = None;
        let mut seen = FxHashSet::default();
        for seed in self.seeds(color) {
            let run = self.run_around(seed, color);
            if !seen.insert(run[0]) {
                continue;
            }
            for candidate in self.candidates(&run, bytes, align) {
                let rank = |c: &Candidate| (c.cost(), c.address);
                if best.is_none_or(|best| rank(&candidate) < rank(&best)) {
                    best = Some(candidate);
                }
            }
        }
        best.map(|best| self.occupy(best, bytes))
    }

    /// Pieces that a run longer than one free piece must have one of.
    fn seeds(&self, color: Color) -> Vec<u32> {
        let mut seeds: Vec<u32> = self.holes.values().copied().collect();
        let is_mixed = color != Color::NEUTRAL && self.free.len() > color.0 as usize;
        if let (Some(neutral), true) = (self.free.first(), is_mixed) {
            seeds.extend(neutral.at_least(1));
        }
        seeds
    }

    /// The neighbours around a piece that the colour may have, in order.
    fn run_around(&self, seed: u32, color: Color) -> Vec<u32> {
        let serves = |number: u32| number != NONE && self.pieces.get(number).state().serves(color);
        let mut first = seed;
        while serves(self.pieces.get(first).before) {
            first = self.pieces.get(first).before;
        }
        let mut run = vec![first];
        let mut next = self.pieces.get(first).after;
        while serves(next) {
            run.push(next);
            next = self.pieces.get(next).after;
        }
        run
    }

    fn candidates(&self, run: &[u32], bytes: u64, align: Align) -> Vec<Candidate> {
        let (begin, end) = match (run.first(), run.last()) {
            (Some(first), Some(last)) => (
                self.pieces.get(*first).address,
                self.pieces.get(*last).end(),
            ),
            _ => return Vec::new(),
        };
        let mut found = Vec::new();
        for (index, number) in run.iter().enumerate() {
            let piece = self.pieces.get(*number);
            let from_here = align
                .round_up(piece.address)
                .map(|address| (index, address));
            let up_to_here = piece
                .end()
                .checked_sub(bytes)
                .map(|address| (0, align.round_down(address)));
            for (from, address) in from_here.into_iter().chain(up_to_here) {
                let fits =
                    address >= begin && address.checked_add(bytes).is_some_and(|last| last <= end);
                if fits {
                    found.push(self.missing_in(&run[from..], address, bytes));
                }
            }
        }
        found
    }

    /// What `bytes` at `address` in a run would take.
    fn missing_in(&self, run: &[u32], address: u64, bytes: u64) -> Candidate {
        let (mut first, mut missing, mut holes) = (NONE, 0, 0);
        for number in run {
            let piece = self.pieces.get(*number);
            if piece.end() <= address {
                continue;
            }
            if piece.address >= address + bytes {
                break;
            }
            if first == NONE {
                first = *number;
            }
            if piece.state() == State::Hole {
                let (begin, end) = self.whole_granules(address, bytes);
                missing += end.min(piece.end()) - begin.max(piece.address);
                holes += 1;
            }
        }
        Candidate {
            missing,
            holes,
            address,
            first,
        }
    }

    fn whole_granules(&self, address: u64, bytes: u64) -> (u64, u64) {
        let end = address + bytes;
        let rounded = self.granularity.round_up(end).unwrap_or(end);
        (self.granularity.round_down(address), rounded)
    }

    /// Makes one piece in use of the stretch, with whole granules of its holes.
    fn occupy(&mut self, chosen: Candidate, bytes: u64) -> Window {
        let Candidate { address, first, .. } = chosen;
        let (whole_begin, whole_end) = self.whole_granules(address, bytes);
        let in_hole = |space: &Space, piece: u32| space.pieces.get(piece).state() == State::Hole;
        let begin = match in_hole(self, first) {
            true => whole_begin.max(self.pieces.get(first).address),
            false => address,
        };
        let mut piece = first;
        self.unlist(piece);
        if begin > self.pieces.get(piece).address {
            piece = self.pieces.split(first, begin);
            self.list(first);
        }
        let mut window = Window {
            address,
            bytes,
            missing: Vec::new(),
            room: 0,
            piece,
            parts: Vec::new(),
        };
        let mut next = piece;
        loop {
            let end = match in_hole(self, next) {
                true => whole_end,
                false => address + bytes,
            };
            if end < self.pieces.get(next).end() {
                let rest = self.pieces.split(next, end);
                self.list(rest);
            }
            let reached = self.add_part(&mut window, next);
            if reached >= address + bytes {
                break;
            }
            next = self.pieces.get(window.piece).after;
            self.unlist(next);
        }
        self.note_room(&mut window);
        window
    }

    /// Adds an unlisted piece to the end of a window; where it then ends.
    fn add_part(&mut self, window: &mut Window, piece: u32) -> u64 {
        let node = *self.pieces.get(piece);
        window.parts.push(Part {
            bytes: node.bytes,
            state: node.state(),
        });
        if node.state() == State::Hole {
            match window.missing.last_mut() {
                Some((begin, bytes)) if *begin + *bytes == node.address => *bytes += node.bytes,
                _ => window.missing.push((node.address, node.bytes)),
            }
        }
        self.pieces.get_mut(piece).set_state(State::Used);
        self.used += node.bytes;
        if piece != window.piece {
            self.pieces.merge(window.piece);
        }
        node.end()
    }

    fn note_room(&self, window: &mut Window) {
        let after = self.pieces.get(window.piece).after;
        let is_open = matches!(window.parts.last(), Some(part) if part.state == State::Hole);
        window.room = match after {
            NONE => 0,
            after if is_open && self.pieces.get(after).state() == State::Hole => {
                self.pieces.get(after).bytes
            }
            _ => 0,
        };
    }

    /// Makes a window longer by `extra` of its room, a multiple of the granularity.
    pub fn extend(&mut self, window: &mut Window, extra: u64) {
        debug_assert!(extra <= window.room && self.granularity.divides(extra));
        if extra == 0 {
            return;
        }
        let hole = self.pieces.get(window.piece).after;
        self.unlist(hole);
        let node = *self.pieces.get(hole);
        if extra < node.bytes {
            let rest = self.pieces.split(hole, node.address + extra);
            self.list(rest);
        }
        self.add_part(window, hole);
        self.note_room(window);
    }

    /// Everything missing is backed now, by places of these addresses and lengths: the block is
    /// given out, and what is left on both sides is free for `color`.
    pub fn complete(
        &mut self,
        window: Window,
        places: impl IntoIterator<Item = (u64, u64)>,
        color: Color,
        epoch: Epoch,
    ) -> Given {
        self.places.extend(places);
        let mut piece = window.piece;
        let begin = self.pieces.get(piece).address;
        if begin < window.address {
            let block = self.pieces.split(piece, window.address);
            self.free(piece, color, epoch);
            piece = block;
        }
        self.shorten(piece, window.bytes, color, epoch);
        Given {
            address: window.address,
            piece,
        }
    }

    /// Nothing came of it: everything is as before, but that `places` (address, length) of what was
    /// missing are backed now and free for `color`.
    pub fn abandon(
        &mut self,
        window: Window,
        places: impl IntoIterator<Item = (u64, u64)>,
        color: Color,
        epoch: Epoch,
    ) {
        let mut piece = window.piece;
        for part in window.parts {
            let node = *self.pieces.get(piece);
            let rest = (part.bytes < node.bytes)
                .then(|| self.pieces.split(piece, node.address + part.bytes));
            self.used -= part.bytes;
            self.pieces.get_mut(piece).set_state(part.state);
            self.join(piece);
            match rest {
                Some(rest) => piece = rest,
                None => break,
            }
        }
        for (address, bytes) in places {
            self.back_hole(address, bytes, State::Free { color, epoch });
        }
    }

    fn back_hole(&mut self, address: u64, bytes: u64, state: State) {
        let around = self.holes.range(..=address).next_back();
        let Some((_, hole)) = around.map(|(begin, hole)| (*begin, *hole)) else {
            return;
        };
        self.unlist(hole);
        let piece = self.carve(hole, address, address + bytes);
        self.pieces.get_mut(piece).set_state(state);
        self.places.insert(address, bytes);
        self.join(piece);
    }
}
