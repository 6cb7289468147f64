//! Lists of pieces to copy, whose addresses somebody vouched for, and the copying of them on the host: by several
//! threads where there is much of it, since one does not fill the memory's channels.

use crate::error::{Error, Result, Status};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that copy, the caller's own among them.
const THREADS: usize = 8;
/// What one of them copies at a time.
const STEP: u64 = 1 << 20;
/// Below this the caller copies alone. On two cores of a Xeon a second thread won at 4 MiB (15 to 20 GB/s beside 12) and
/// lost at 2.
const SEVERAL: u64 = 4 << 20;

/// One piece, of which somebody vouched for both sides.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    to: u64,
    from: u64,
    bytes: u64,
}

impl Piece {
    /// Where it goes.
    pub fn to(self) -> u64 {
        self.to
    }

    /// Where it is.
    pub fn from(self) -> u64 {
        self.from
    }

    /// Its length.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// A part of it.
    pub fn part(self, offset: u64, bytes: u64) -> Piece {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "inside the piece");
        Piece {
            to: self.to + offset,
            from: self.from + offset,
            bytes,
        }
    }

    fn copy(self) {
        // SAFETY: `Pieces::new`'s caller vouched for both ranges; they may overlap.
        unsafe {
            std::ptr::copy(
                self.from as *const u8,
                self.to as *mut u8,
                self.bytes as usize,
            );
        }
    }
}

/// Pieces to copy.
pub struct Pieces<'a> {
    to: &'a [*mut c_void],
    from: &'a [*const c_void],
    bytes: &'a [usize],
}

impl<'a> Pieces<'a> {
    /// Three lists of one length. An address that cannot be one is an error that names the piece.
    ///
    /// # Safety
    /// Each piece of a size above 0 may be read and written, where it is copied by whom, until it is.
    pub unsafe fn new(
        operation: &'static str,
        to: &'a [*mut c_void],
        from: &'a [*const c_void],
        bytes: &'a [usize],
    ) -> Result<Pieces<'a>> {
        assert!(
            to.len() == from.len() && to.len() == bytes.len(),
            "one length"
        );
        let pieces = Pieces { to, from, bytes };
        for (index, piece) in pieces.iter() {
            let ends = |address: u64| address.checked_add(piece.bytes).is_some();
            if piece.to == 0 || piece.from == 0 || !ends(piece.to) || !ends(piece.from) {
                return Err(
                    Error::new(Status::InvalidArgument, operation).detail(format!(
                        "piece {index} of {}: {} bytes from {:#x} to {:#x}; nothing was copied",
                        to.len(),
                        piece.bytes,
                        piece.from,
                        piece.to
                    )),
                );
            }
        }
        Ok(pieces)
    }

    /// How many there are, empty ones too.
    pub fn count(&self) -> usize {
        self.bytes.len()
    }

    /// Those of a size above 0, with their places in the list.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Piece)> + '_ {
        (0..self.bytes.len())
            .filter(|index| self.bytes[*index] > 0)
            .map(|index| {
                let piece = Piece {
                    to: self.to[index] as u64,
                    from: self.from[index] as u64,
                    bytes: self.bytes[index] as u64,
                };
                (index, piece)
            })
    }

    /// Copies them on the host, as if one after another.
    pub fn copy_on_host(&self) {
        let total = (self.iter()).fold(0u64, |sum, (_, piece)| sum.saturating_add(piece.bytes));
        let there = std::thread::available_parallelism().map_or(1, |count| count.get());
        let threads = THREADS.min(there).min((total / STEP) as usize);
        if total < SEVERAL || threads < 2 || self.touch() {
            self.iter().for_each(|(_, piece)| piece.copy());
            return;
        }
        self.copy_by(threads);
    }

    /// Whether a piece goes to where another one, or itself, is or goes: their order matters then.
    fn touch(&self) -> bool {
        let mut written: Vec<Range<u64>> = (self.iter())
            .map(|(_, piece)| piece.to..piece.to + piece.bytes)
            .collect();
        written.sort_unstable_by_key(|range| range.start);
        if written.windows(2).any(|two| two[1].start < two[0].end) {
            return true;
        }
        self.iter().any(|(_, piece)| {
            let first = written.partition_point(|range| range.end <= piece.from);
            (written.get(first)).is_some_and(|range| range.start < piece.from + piece.bytes)
        })
    }

    fn copy_by(&self, threads: usize) {
        let (steps, runs) = self.steps();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                steps[run.clone()].iter().for_each(|step| step.copy());
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // One that cannot be had leaves its part to the others.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
    }

    /// The pieces in parts of at most a step, and runs of those that are a step together.
    fn steps(&self) -> (Vec<Piece>, Vec<Range<usize>>) {
        let (mut steps, mut runs) = (Vec::new(), Vec::new());
        let (mut begin, mut sum) = (0, 0);
        for (_, piece) in self.iter() {
            for offset in (0..piece.bytes).step_by(STEP as usize) {
                let step = piece.part(offset, STEP.min(piece.bytes - offset));
                steps.push(step);
                sum += step.bytes;
                if sum >= STEP {
                    runs.push(begin..steps.len());
                    (begin, sum) = (steps.len(), 0);
                }
            }
        }
        if begin < steps.len() {
            runs.push(begin..steps.len());
        }
        (steps, runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To, from, bytes.
    type Triple = (u64, u64, usize);

    fn pieces<R>(list: &[Triple], then: impl FnOnce(&Pieces<'_>) -> R) -> R {
        let to: Vec<_> = list.iter().map(|one| one.0 as *mut c_void).collect();
        let from: Vec<_> = list.iter().map(|one| one.1 as *const c_void).collect();
        let bytes: Vec<_> = list.iter().map(|one| one.2).collect();
        // SAFETY: the tests below copy only what they own.
        then(&unsafe { Pieces::new("test", &to, &from, &bytes) }.unwrap())
    }

    #[test]
    fn what_touches_is_seen() {
        let cases: [(&[Triple], bool); 7] = [
            (&[(100, 200, 100), (300, 400, 100)], false),
            (&[(100, 200, 101)], true),
            (&[(200, 100, 101)], true),
            (&[(100, 200, 50), (149, 300, 1)], true),
            (&[(100, 200, 50), (300, 149, 1)], true),
            (&[(100, 200, 50), (300, 150, 1)], false),
            (&[(100, 200, 50), (300, 99, 2), (500, 600, 0)], true),
        ];
        for (list, expected) in cases {
            assert_eq!(pieces(list, |pieces| pieces.touch()), expected, "{list:?}");
        }
    }

    #[test]
    fn steps_are_the_pieces_in_order() {
        let step = STEP as usize;
        let list = [
            (1 << 40, 1 << 41, 3 * step + 5),
            (1 << 42, 1 << 43, 7),
            (3, 4, 0),
            (1 << 44, 1 << 45, step),
        ];
        let (steps, runs) = pieces(&list, |pieces| pieces.steps());
        let sizes: Vec<_> = steps.iter().map(|step| step.bytes).collect();
        assert_eq!(sizes, [STEP, STEP, STEP, 5, 7, STEP]);
        assert_eq!(steps[3].from - (1 << 41), 3 * STEP);
        assert_eq!(runs, [0..1, 1..2, 2..3, 3..6]);
    }

    #[test]
    fn threads_copy_what_one_would() {
        let source: Vec<u8> = (0..10 * STEP as usize + 3).map(|i| (i / 7) as u8).collect();
        let mut target = vec![0u8; source.len()];
        let third = source.len() / 3;
        let (to, from) = (target.as_mut_ptr() as u64, source.as_ptr() as u64);
        let at = |begin: usize, len: usize| (to + begin as u64, from + begin as u64, len);
        let list = [
            at(2 * third, source.len() - 2 * third),
            at(0, third),
            at(third, third),
        ];
        pieces(&list, |pieces| pieces.copy_by(4));
        assert!(target == source);
    }

    #[test]
    fn order_matters_where_they_touch() {
        let len = 2 * SEVERAL as usize;
        let mut bytes = vec![0u8; len + 1];
        bytes[0] = 9;
        let at = bytes.as_mut_ptr() as u64;
        // Moved up by one, and then the first over the last.
        pieces(&[(at + 1, at, len), (at, at + len as u64, 1)], |pieces| {
            pieces.copy_on_host()
        });
        assert_eq!((bytes[0], bytes[1], bytes[2], bytes[len]), (0, 9, 0, 0));
    }
}
