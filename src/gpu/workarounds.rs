//! What HIP does otherwise than its interface says, found out by a full cycle at the first use of a device
//! (reserve, create, map, give access, unmap, release, free the addresses) and lived with from then on.
//! On CUDA nothing of this is asked or done.
//!
//! Two things are always done with HIP, since a cycle that works shows nothing of them: access is given
//! and taken mapping by mapping (`mapping.rs`), and chunks are limited in size.

use super::chunk::{Chunk, ChunkSpec};
use super::device::Device;
use super::mapping::Mapping;
use super::reservation::Reservation;
use crate::config::value::Location;
use crate::core::size::Align;
use crate::error::{Error, Result, Status};
use crate::sys::linux;
use once_cell::sync::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a cycle showed of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Memory that was unmapped and released is free again only when its addresses are freed.
    pub holds_memory: bool,
    /// A chunk takes a file descriptor of the process.
    pub takes_descriptors: bool,
}

/// What is known of a device, and what its chunks may be.
#[derive(Default)]
pub(super) struct Workarounds {
    findings: OnceCell<Findings>,
    /// The most bytes of one chunk; 0 for no limit.
    most: AtomicU64,
}

/// Enough that what other processes do at the same time is not taken for it.
const CYCLED_BYTES: u64 = 64 << 20;

/// Chunks of one cycle.
const CYCLED_CHUNKS: u64 = 2;

/// As often a cycle that shows nothing clear is run again: other processes use the device too.
const CYCLES: usize = 3;

/// As often access is asked for before a refusal is believed.
const ACCESS_TRIES: u32 = 5;

/// Before the second try; each waits twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_micros(500);

/// Of the descriptors that a process may have, so many are left to others before there are none.
const SPARE_DESCRIPTORS: u64 = 16;

impl Device {
    pub(super) fn is_hip(&self) -> bool {
        self.cuda().is_hip()
    }

    /// Chunks of this device are to be of at most `bytes`.
    pub fn limit_chunks(&self, bytes: u64) {
        self.workarounds().most.store(bytes, Ordering::Relaxed);
    }

    /// What length a chunk is to have where one of `wanted` bytes would do: not more than the limit, and
    /// not so little that all of the device's memory would take more file descriptors than there are.
    pub fn fit_chunk(self: &Arc<Self>, wanted: u64, granularity: Align) -> u64 {
        let most = match self.workarounds().most.load(Ordering::Relaxed) {
            0 => wanted,
            most => wanted.min(granularity.round_up(most).unwrap_or(wanted)),
        };
        most.max(self.least_chunk(granularity))
    }

    /// Chunks that are not shorter than this leave half of the process's file descriptors to others.
    fn least_chunk(self: &Arc<Self>, granularity: Align) -> u64 {
        let takes = self.is_hip() && self.findings().is_ok_and(|found| found.takes_descriptors);
        if !takes {
            return 0;
        }
        let devices = self.device_count().unwrap_or(1).max(1) as u64;
        let chunks = linux::most_descriptors() / 2 / devices;
        let bytes = self.total_memory() / chunks.max(1);
        granularity.round_up(bytes).unwrap_or(bytes)
    }

    /// What a cycle showed; nothing is wrong where the driver is CUDA's.
    pub fn findings(self: &Arc<Self>) -> Result<Findings> {
        let find = || match self.is_hip() {
            true => self.find(),
            false => Ok(Findings::default()),
        };
        self.workarounds().findings.get_or_try_init(find).copied()
    }

    fn find(self: &Arc<Self>) -> Result<Findings> {
        let mut found = Findings::default();
        for _ in 0..CYCLES {
            let seen = self.cycle_once()?;
            found.takes_descriptors = seen.descriptors >= CYCLED_CHUNKS;
            let half = seen.bytes / 2;
            let is_missing = seen.missing_after_release >= half;
            found.holds_memory = is_missing && seen.missing_at_end < half;
            if !is_missing || found.holds_memory {
                break;
            }
        }
        if found != Findings::default() {
            tracing::info!("device {}: {found:?}", self.ordinal());
        }
        Ok(found)
    }

    fn cycle_once(self: &Arc<Self>) -> Result<Seen> {
        let spec = ChunkSpec::plain(Location::Device);
        let _guard = self.enter()?;
        let granularity = spec.granularity(self)?;
        let free = |device: &Device| device.memory_info().map(|(free, _)| free);
        let before = free(self)?;
        let each = (CYCLED_BYTES / CYCLED_CHUNKS)
            .min(before / 4)
            .max(granularity);
        let bytes = each.next_multiple_of(granularity);
        let descriptors = linux::open_descriptors();
        let mut reservation = Reservation::new(self, CYCLED_CHUNKS * bytes, granularity)?;
        let mut chunks = Vec::new();
        for _ in 0..CYCLED_CHUNKS {
            chunks.push(Chunk::create(self, bytes, spec)?);
        }
        let taken = linux::open_descriptors().saturating_sub(descriptors);
        let mut outcome = Ok(());
        for (place, chunk) in (0..).zip(&chunks) {
            outcome = outcome.and(self.cycle_place(reservation.address() + place * bytes, chunk));
        }
        outcome?;
        for chunk in &mut chunks {
            chunk.release()?;
        }
        let after_release = free(self)?;
        reservation.free()?;
        Ok(Seen {
            bytes: CYCLED_CHUNKS * bytes,
            descriptors: taken,
            missing_after_release: before.saturating_sub(after_release),
            missing_at_end: before.saturating_sub(free(self)?),
        })
    }

    fn cycle_place(self: &Arc<Self>, address: u64, chunk: &Chunk) -> Result<()> {
        let mapping = Mapping::new(self, address, chunk)?;
        let allowed = mapping.allow(&[], Location::Device);
        // Nothing has used the range, so it may go at once, whatever came of it.
        mapping
            .unmap()
            .or_else(|(mapping, _)| mapping.unmap())
            .map_err(|(_, error)| error)?;
        allowed
    }

    /// Does what HIP may refuse at first and grant later, a bounded number of times. What will not pass,
    /// and everything on CUDA, is tried once.
    pub(super) fn insist(&self, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            match attempt() {
                Err(error) if self.is_hip() && may_pass(&error) && tries < ACCESS_TRIES => {
                    tracing::debug!("try {tries}: {error}");
                    std::thread::sleep(pause);
                    pause *= 2;
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Why a chunk could not be made, where it is not for lack of memory: HIP says so too when the process
    /// has no file descriptors left.
    pub(super) fn explain_refusal(&self, error: Error) -> Error {
        if !self.is_hip() || error.status() != Status::OutOfMemory {
            return error;
        }
        let (open, most) = (linux::open_descriptors(), linux::most_descriptors());
        if open + SPARE_DESCRIPTORS < most {
            return error;
        }
        error
            .detail(format!(
                "the process has {open} of {most} file descriptors open, of which HIP takes one for each chunk: these have run out, not memory"
            ))
            .advice("Raise the limit (ulimit -n), or set HBMALLOC_ROCM_CHUNK_SIZE higher")
    }
}

/// What one cycle showed.
struct Seen {
    bytes: u64,
    descriptors: u64,
    missing_after_release: u64,
    missing_at_end: u64,
}

/// Whether the same call may be granted a moment later.
fn may_pass(error: &Error) -> bool {
    const INVALID_DEVICE: i32 = 101;
    let lasts = matches!(
        error.status(),
        Status::Unsupported | Status::Shutdown | Status::Capturing
    );
    !lasts && error.code().is_some_and(|code| code.0 != INVALID_DEVICE)
}
