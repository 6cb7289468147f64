//! The address space of one stream-ordered pool: granules that are memory, and the free pieces between live blocks.
//! A pool grows in place, so that a block may lie across old and new memory, and gives back any granule that is wholly free.

use crate::codes::Result;
use crate::region;
use crate::stream::Streams;
use std::collections::{BTreeMap, BTreeSet};

/// A pool grows and shrinks by this much.
pub const GRANULE: u64 = 32 << 20;

/// Free memory, usable by another stream once this point of its own has passed.
#[derive(Clone, Copy)]
pub struct Free {
    pub len: u64,
    pub stream: u64,
    pub seq: u64,
}

impl Free {
    pub fn done(&self, streams: &Streams) -> bool {
        streams.reached(self.stream, self.seq)
    }

    fn usable(&self, stream: u64, streams: &Streams) -> bool {
        self.stream == stream || self.done(streams)
    }
}

#[derive(Default)]
pub struct Space {
    pub base: u64,
    pub len: u64,
    /// Numbers of the granules that are memory.
    granules: BTreeSet<u64>,
    free: BTreeMap<u64, Free>,
    by_len: BTreeSet<(u64, u64)>,
    /// Some neighbours could not be joined yet, since work that used them was under way.
    apart: bool,
}

impl Space {
    pub fn new(base: u64, len: u64) -> Space {
        Space {
            base,
            len,
            ..Space::default()
        }
    }

    pub fn reserved(&self) -> u64 {
        self.granules.len() as u64 * GRANULE
    }

    pub fn is_memory(&self, address: u64, end: u64) -> bool {
        let (first, last) = (
            (address - self.base) / GRANULE,
            (end - 1 - self.base) / GRANULE,
        );
        (first..=last).all(|at| self.granules.contains(&at))
    }

    fn insert(&mut self, base: u64, piece: Free) {
        self.by_len.insert((piece.len, base));
        self.free.insert(base, piece);
    }

    fn remove(&mut self, base: u64) -> Option<Free> {
        let piece = self.free.remove(&base)?;
        self.by_len.remove(&(piece.len, base));
        Some(piece)
    }

    /// Takes the smallest free piece that a stream may have now.
    pub fn take(&mut self, len: u64, stream: u64, streams: &Streams) -> Option<u64> {
        let mut fits = self.by_len.range((len, 0)..).map(|(_, base)| *base);
        let base = fits.find(|base| self.free[base].usable(stream, streams))?;
        let piece = self.remove(base)?;
        if piece.len > len {
            self.insert(
                base + len,
                Free {
                    len: piece.len - len,
                    ..piece
                },
            );
        }
        Some(base)
    }

    /// Puts a piece back and joins it with neighbours that may be used alike.
    pub fn put(&mut self, base: u64, piece: Free, streams: &Streams) {
        let (mut base, mut piece) = (base, piece);
        let before = self.free.range(..base).next_back().map(|(at, f)| (*at, *f));
        if let Some((at, other)) = before.filter(|(at, f)| at + f.len == base) {
            match join(other, piece, streams) {
                Some(joined) => {
                    self.remove(at);
                    (base, piece) = (at, joined);
                }
                None => self.apart = true,
            }
        }
        let next = base + piece.len;
        match self
            .free
            .get(&next)
            .map(|other| join(piece, *other, streams))
        {
            Some(Some(joined)) => {
                self.remove(next);
                piece = joined;
            }
            Some(None) => self.apart = true,
            None => {}
        }
        self.insert(base, piece);
    }

    /// Joins what could not be joined when it was freed.
    pub fn merge(&mut self, streams: &Streams) {
        if !std::mem::take(&mut self.apart) {
            return;
        }
        self.by_len.clear();
        for (base, piece) in std::mem::take(&mut self.free) {
            self.put(base, piece, streams);
        }
    }

    /// Where the next block of a length would make the pool grow: the first granule and how many.
    pub fn growth(&self, len: u64, stream: u64, streams: &Streams) -> Option<(u64, u64)> {
        let top = self.granules.last().map_or(0, |last| last + 1);
        let whole = len.div_ceil(GRANULE);
        let hole =
            (0..top).find(|at| (*at..at + whole).all(|n| n < top && !self.granules.contains(&n)));
        if let Some(at) = hole {
            return Some((at, whole));
        }
        let end = self.base + top * GRANULE;
        let tail = self
            .free
            .range(..end)
            .next_back()
            .filter(|(at, f)| **at + f.len == end && f.usable(stream, streams));
        let have = tail.map_or(0, |(_, f)| f.len);
        let more = len.saturating_sub(have).div_ceil(GRANULE);
        ((top + more) * GRANULE <= self.len).then_some((top, more))
    }

    /// Makes granules memory, free for a stream.
    pub fn commit(
        &mut self,
        first: u64,
        count: u64,
        stream: u64,
        streams: &Streams,
    ) -> Result<u64> {
        let (at, len) = (self.base + first * GRANULE, count * GRANULE);
        region::protect(at, len, crate::abi::ACCESS_READ_WRITE)?;
        self.granules.extend(first..first + count);
        // A piece for the same stream joins the tail even while that is still in use by it.
        let seq = 0;
        let before = self
            .free
            .range(..at)
            .next_back()
            .filter(|(b, f)| **b + f.len == at)
            .map(|(_, f)| *f);
        let piece = match before.filter(|f| f.usable(stream, streams) && f.stream == stream) {
            Some(tail) => Free { len, ..tail },
            None => Free { len, stream, seq },
        };
        self.put(at, piece, streams);
        Ok(at)
    }

    /// Gives back wholly free granules from the top while more than `keep` bytes are held; the answer is where they were.
    pub fn shrink(&mut self, keep: u64, streams: &Streams) -> Vec<u64> {
        self.merge(streams);
        let mut given = Vec::new();
        if self.by_len.last().is_none_or(|(len, _)| *len < GRANULE) {
            return given;
        }
        for at in self.granules.iter().rev().copied().collect::<Vec<_>>() {
            if self.reserved() < keep.saturating_add(GRANULE) {
                break;
            }
            let (from, to) = (self.base + at * GRANULE, self.base + (at + 1) * GRANULE);
            let holder = self
                .free
                .range(..=from)
                .next_back()
                .map(|(base, f)| (*base, *f));
            let Some((base, piece)) =
                holder.filter(|(base, f)| base + f.len >= to && f.done(streams))
            else {
                continue;
            };
            if streams.running_in(from, GRANULE) {
                continue;
            }
            if region::vacate(from, GRANULE).is_err() {
                break;
            }
            self.remove(base);
            self.granules.remove(&at);
            given.push(from);
            if base < from {
                self.insert(
                    base,
                    Free {
                        len: from - base,
                        ..piece
                    },
                );
            }
            if base + piece.len > to {
                self.insert(
                    to,
                    Free {
                        len: base + piece.len - to,
                        ..piece
                    },
                );
            }
        }
        given
    }
}

fn join(a: Free, b: Free, streams: &Streams) -> Option<Free> {
    let len = a.len + b.len;
    if a.done(streams) && b.done(streams) {
        return Some(Free { len, ..a });
    }
    (a.stream == b.stream).then(|| Free {
        len,
        stream: a.stream,
        seq: a.seq.max(b.seq),
    })
}
