//! What an extent that sleeps was saved to.

use super::file::FileSpan;
use super::host::Span;
use crate::extent::residency::Backup;
use crate::extent::table::{Extents, Residency};
use std::any::Any;
use std::sync::Arc;

/// The contents of an extent: stretches of it, and where their bytes are.
#[derive(Default)]
pub(super) struct Saved {
    /// By offset in the extent, in bytes; one stretch behind the other or apart.
    pub pieces: Vec<(u64, Stored)>,
}

/// Where a stretch is.
pub(super) enum Stored {
    Host(Span),
    File(FileSpan),
}

impl Stored {
    /// Its length.
    pub fn bytes(&self) -> u64 {
        match self {
            Stored::Host(span) => span.piece.bytes,
            Stored::File(span) => span.bytes,
        }
    }
}

impl Saved {
    /// As the extent keeps it; none where there is nothing.
    pub fn into_backup(self) -> Option<Backup> {
        let at = match self.pieces.first()? {
            (_, Stored::Host(_)) => Residency::Host,
            (_, Stored::File(_)) => Residency::File,
        };
        Some(Backup {
            at,
            contents: Arc::new(self),
        })
    }

    /// What an extent keeps, if it was saved here.
    pub fn of(backup: &Backup) -> Option<Arc<Saved>> {
        backup.contents.clone().downcast().ok()
    }

    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, stored)| stored.bytes()).sum()
    }

    /// Whether the stretches of an extent at `address` are all in it.
    pub fn covers(&self, address: u64, live: &[(u64, u64)]) -> bool {
        live.iter().all(|(begin, bytes)| {
            let (mut at, end) = (begin - address, begin - address + bytes);
            for (offset, stored) in &self.pieces {
                if *offset <= at && at < offset + stored.bytes() {
                    at = offset + stored.bytes();
                }
            }
            at >= end
        })
    }
}

/// A stretch of a device's memory as it was saved to the host.
#[derive(Default)]
pub struct OnHost {
    /// In the stretch's order: first address on the host, and length.
    pub pieces: Vec<(u64, u64)>,
    /// What keeps the pieces as they are.
    pub saved: Vec<Arc<dyn Any + Send + Sync>>,
}

impl OnHost {
    /// Looks for `bytes` bytes from `address` on; none where any of them are not on the host.
    pub fn find(extents: &Extents, address: u64, bytes: u64) -> Option<OnHost> {
        let end = address.checked_add(bytes).filter(|end| *end > address)?;
        let (mut at, mut found) = (address, OnHost::default());
        for place in extents.places(|_| true) {
            if place.address + place.bytes <= at || at == end {
                continue;
            }
            let backup = place.backup?;
            let saved = Saved::of(&backup)?;
            for (offset, stored) in &saved.pieces {
                let begin = place.address + offset;
                let piece_end = (begin + stored.bytes()).min(end);
                if piece_end <= at || at == end {
                    continue;
                }
                let Stored::Host(span) = stored else {
                    return None;
                };
                if begin > at {
                    return None;
                }
                let on_host = span.piece.part.address() + span.piece.offset;
                found.pieces.push((on_host + (at - begin), piece_end - at));
                at = piece_end;
            }
            found.saved.push(backup.contents);
        }
        (at == end).then_some(found)
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Its first address on the host, where it is in one piece there.
    pub fn in_one_piece(&self) -> Option<u64> {
        let follows = |pair: &[(u64, u64)]| pair[0].0 + pair[0].1 == pair[1].0;
        let first = self.pieces.first()?;
        (self.pieces.windows(2).all(follows)).then_some(first.0)
    }
}
