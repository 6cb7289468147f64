//! Which kind of memory callers get that name none. Every such allocation asks, so the answer is kept
//! for as long as no option changes.

use super::{Process, lifetime};
use crate::config::table::Opt;
use crate::error::{Error, Result, Status};
use crate::source::Kind;
use std::sync::atomic::{AtomicU64, Ordering};

const KIND_BITS: u32 = 8;

/// What the options said last.
#[derive(Default)]
pub(super) struct Choice(AtomicU64);

impl Choice {
    fn known(&self, version: u64) -> Option<Kind> {
        let kept = self.0.load(Ordering::Relaxed);
        let kind = (kept & ((1 << KIND_BITS) - 1)) as i32;
        (kept >> KIND_BITS == version).then(|| Kind::from_number(kind))?
    }

    fn keep(&self, version: u64, kind: Kind) {
        let kept = version << KIND_BITS | kind as u64;
        self.0.store(kept, Ordering::Relaxed);
    }
}

impl Process {
    /// The kind that the option `backend` names.
    #[inline]
    pub fn default_kind(&self) -> Result<Kind> {
        lifetime::check_not_forked()?;
        match self.choice.known(self.settings.version()) {
            Some(kind) => Ok(kind),
            None => self.read_kind(),
        }
    }

    /// The kind of segments that a caller divides up and caches itself: a cache under that cache would
    /// only keep memory from everybody else, so of the pool it is what the pool is over.
    pub fn default_segment_kind(&self) -> Result<Kind> {
        match self.default_kind()? {
            Kind::Pool => kind_of(&self.settings.text(Opt::PoolSource)),
            kind => Ok(kind),
        }
    }

    #[cold]
    fn read_kind(&self) -> Result<Kind> {
        // Read first: what is set meanwhile makes the answer one of an older version.
        let version = self.settings.version();
        self.settings.check()?;
        let kind = kind_of(&self.settings.text(Opt::Backend))?;
        self.choice.keep(version, kind);
        Ok(kind)
    }
}

fn kind_of(name: &str) -> Result<Kind> {
    Kind::from_name(name).ok_or_else(|| {
        Error::new(Status::Unsupported, "option backend")
            .detail(format!("the backend '{name}' is not in this build"))
            .advice("Use pool or vmm")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn the_answer_follows_the_options() {
        let process = Process::with_settings(Settings::from_variables([]));
        let kinds = || {
            let (block, segment) = (process.default_kind(), process.default_segment_kind());
            (block.unwrap(), segment.unwrap())
        };
        for _ in 0..2 {
            assert_eq!(kinds(), (Kind::Pool, Kind::Vmm));
        }
        process.settings().set("pool_source", "device").unwrap();
        assert_eq!(kinds(), (Kind::Pool, Kind::Device));
        process.settings().set("backend", "managed").unwrap();
        assert_eq!(kinds(), (Kind::Managed, Kind::Managed));
        process.settings().set("backend", "nothing").unwrap_err();
        assert_eq!(kinds(), (Kind::Managed, Kind::Managed));
    }

    #[test]
    fn a_bad_value_in_the_environment_is_an_error_until_it_is_set_right() {
        let variable = ("HBMALLOC_LIMIT".to_owned(), "much".to_owned());
        let process = Process::with_settings(Settings::from_variables([variable]));
        for _ in 0..2 {
            let error = process.default_kind().unwrap_err();
            assert_eq!(error.status(), Status::BadOption);
        }
        process.settings().set("limit", "1GiB").unwrap();
        assert_eq!(process.default_kind().unwrap(), Kind::Pool);
    }
}
