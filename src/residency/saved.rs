//! What an extent that sleeps was saved to.

use super::file::FileSpan;
use super::host::Span;
use crate::extent::residency::Backup;
use crate::extent::table::Residency;
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
