//! What the library's figures, its own books and the driver must say after each step.

use super::model::Block;
use super::run::{HOST, MARK, Run};
use super::step::Ask;
use crate::config::value::Location;
use crate::core::tags::TagId;
use crate::error::{Error, Status, Warning};
use crate::gpu::Stream;
use crate::process::{BlockStats, Stats};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use crate::sys::linux;
use std::collections::BTreeSet;

const MIB: u64 = 1 << 20;

/// How far a peak may lie below the true one, for each thread on each heap.
const PEAK_STEP: u64 = 1 << 20;

/// Figures before a call.
pub struct Figures {
    stats: Stats,
    /// What is held of the device for the pool.
    held: u64,
    blocks: usize,
    /// The most the simulated device has held.
    peak: u64,
}

impl Run {
    pub(super) fn figures(&self) -> Result<Figures, Stop> {
        Ok(Figures {
            stats: self.process.stats(0, Some(Kind::Pool))?,
            held: self.held_of_device()?,
            blocks: self.process.live_blocks(),
            peak: self.machine.sim.map_or(0, |sim| sim.peak_physical(0)),
        })
    }

    /// What of memory that is counted to the limit the driver was seen to give.
    fn driver_bytes(&self) -> Option<u64> {
        let (sim, base) = (self.machine.sim?, self.base?);
        let now = sim.counters();
        Some(match self.setting.source {
            "device" => now.device_bytes - base.device_bytes,
            "managed" => now.managed_bytes - base.managed_bytes,
            "pinned" => now.pinned_bytes - base.pinned_bytes,
            _ => now.chunk_bytes - base.chunk_bytes + now.host_chunk_bytes,
        })
    }

    /// What the pool holds and counts to the limit.
    fn held_of_device(&self) -> Result<u64, Stop> {
        let reserved = self.process.stats(0, Some(Kind::Pool))?.reserved;
        Ok(reserved - self.process.device(0)?.state().extents.pooled_at(HOST))
    }

    /// A limit is not passed, neither at the end of a call nor meanwhile.
    pub(super) fn within_limits(&self, before: &Figures) -> Outcome {
        if self.limit == 0 || ["managed", "pinned"].contains(&self.setting.source) {
            return Ok(());
        }
        let after = self.figures()?;
        let (held, limit) = (after.held, self.limit);
        ensure!(
            held <= limit.max(before.held),
            "{held} bytes are held and the limit is {limit}"
        );
        // A plain allocation is rounded up by the driver, beyond what the library can know.
        let slack = match (self.setting.source, self.base) {
            ("device", _) => 4 * MIB,
            (_, Some(base)) => base.physical_bytes,
            _ => 0,
        };
        ensure!(
            after.peak <= (limit + slack).max(before.peak),
            "{} bytes were held meanwhile and the limit is {limit}",
            after.peak
        );
        Ok(())
    }

    /// A request that failed has changed nothing, and could not have been served.
    pub(super) fn refused(&self, ask: &Ask, error: &Error, before: &Figures) -> Outcome {
        let after = self.figures()?;
        let counts = |stats: &Stats| {
            (
                (stats.requested, stats.allocated),
                (stats.allocations, stats.deallocations),
            )
        };
        ensure_eq!(counts(&after.stats), counts(&before.stats), "after {error}");
        ensure_eq!(after.blocks, before.blocks, "blocks after {error}");
        self.within_limits(before)?;
        if ask.bytes == 0 {
            ensure_eq!(error.status(), Status::InvalidArgument, "of no bytes");
            return Ok(());
        }
        ensure_eq!(error.status(), Status::OutOfMemory, "{error}");
        // While a capture is open nothing can be waited for, and memory of graphs stays.
        if self.is_capturing() || self.setting.source != "vmm" {
            return Ok(());
        }
        let room = match self.place_of(ask.tag) {
            Location::Device => self.room()?,
            Location::HostNuma(_) => linux::total_memory(),
        };
        let wanted = ask.bytes.max(2 * MIB).saturating_add(2 * MIB);
        ensure!(
            wanted > room,
            "{ask:?} was refused, while {room} bytes are free in whole chunks or can be had: {error}"
        );
        Ok(())
    }

    /// Bytes that a block could be made of: free chunks, and what the driver and the limit have left.
    fn room(&self) -> Result<u64, Stop> {
        let mut most = match self.machine.sim {
            Some(_) => self.setting.memory,
            None => self.machine.device.total_memory(),
        };
        for bound in [self.limit, self.cap] {
            if bound > 0 {
                most = most.min(bound);
            }
        }
        let base = self.base.map_or(0, |base| base.physical_bytes);
        let held = self.held_of_device()?;
        let chunks = self.chunks()?;
        let of_device = chunks.iter().filter(|chunk| chunk.2 == Location::Device);
        let free: u64 = of_device.map(|chunk| chunk.1).sum();
        Ok(most.saturating_sub(base + held) + free)
    }

    /// Chunks that neither a live block nor a graph needs: their addresses, bytes and places.
    fn chunks(&self) -> Result<Vec<(u64, u64, Location)>, Stop> {
        let extents = &self.process.device(0)?.state().extents;
        let list = extents.list().into_iter().filter(|extent| !extent.alias);
        let chunks = list.map(|extent| (extent.address, extent.bytes, extent.location));
        Ok(chunks
            .filter(|(address, bytes, _)| !self.model.needs(*address, address + bytes))
            .collect())
    }

    /// After a trim to nothing only chunks are held that somebody needs.
    pub(super) fn nothing_needless(&self) -> Outcome {
        ensure_eq!(self.chunks()?, Vec::new(), "chunks held that nobody needs");
        Ok(())
    }

    /// The figures, the books and the driver.
    pub fn check(&self) -> Outcome {
        let stats = self.process.stats(0, Some(Kind::Pool))?;
        let model = &self.model;
        let told = (
            (stats.requested, stats.allocated),
            (stats.allocations, stats.deallocations),
        );
        let wanted = (
            (model.requested(|_| true), model.allocated(|_| true)),
            (model.given, model.taken),
        );
        ensure_eq!(
            told,
            wanted,
            "requested, allocated, blocks given and taken back"
        );
        // The scratch block is one more.
        ensure_eq!(self.process.live_blocks(), model.live.len() + 1, "blocks");
        self.check_parts()?;
        let low = model
            .peak_requested
            .saturating_sub(PEAK_STEP * (self.writers.len() as u64 + 1));
        ensure!(
            (low..=model.peak_requested).contains(&stats.peak_requested),
            "a peak of {} requested, which was {}",
            stats.peak_requested,
            model.peak_requested
        );
        if let Some(held) = self.driver_bytes() {
            // A segment that was given back waits in its source until work has ended.
            let kind = Some(Kind::Pool).filter(|_| self.setting.source == "vmm");
            let reserved = self.process.stats(0, kind)?.reserved;
            let scratch = kind.map_or(self.scratch_bytes, |_| 0);
            ensure_eq!(reserved - scratch, held, "reserved");
        }
        let device = self.process.device(0)?;
        device.state().extents.audit()?;
        self.check_places()?;
        self.process.audit_pool(0)?;
        let unlooked = self.process.warnings().count(Warning::GiveBack);
        ensure_eq!(unlooked, 0, "warnings that memory could not be given back");
        ensure_eq!(self.machine.thread_state().0, 0, "the thread's context");
        if let Some(sim) = self.machine.sim {
            ensure_eq!(sim.faults(), Vec::<String>::new(), "faults");
        }
        Ok(())
    }

    /// Memory is where its tag is placed, and only the device's counts to the limit.
    fn check_places(&self) -> Outcome {
        let Some((sim, base)) = self.machine.sim.zip(self.base) else {
            return Ok(());
        };
        let (now, state) = (sim.counters(), self.process.device(0)?.state());
        for extent in state.extents.list() {
            let tag = self.tags.iter().position(|tag| *tag == extent.tag);
            let wanted = self.place_of(tag.unwrap_or(0));
            ensure_eq!(extent.location, wanted, "the place of {:?}", extent.tag);
        }
        let on_host = state.extents.pooled_at(HOST);
        ensure_eq!(on_host, now.host_chunk_bytes, "held on the host");
        if self.setting.source == "vmm" {
            let held = now.chunk_bytes - base.chunk_bytes;
            let used = self.process.stats(0, None)?.limit_used;
            ensure_eq!(used - self.scratch_bytes, held, "counted to the limit");
        }
        Ok(())
    }

    /// The sums of each tag and of each stream.
    fn check_parts(&self) -> Outcome {
        let told = |stats: &BlockStats| {
            let live = stats.allocations - stats.deallocations;
            [stats.requested, stats.allocated, live]
        };
        let of = |wanted: &dyn Fn(&Block) -> bool| {
            let count = self.model.live.values().filter(|block| wanted(block));
            [
                self.model.requested(wanted),
                self.model.allocated(wanted),
                count.count() as u64,
            ]
        };
        let tags: BTreeSet<u16> = self.writers.iter().map(|(_, tag, ..)| *tag).collect();
        let streams: BTreeSet<Stream> = self.writers.iter().map(|(stream, ..)| *stream).collect();
        // The scratch block has no tag, and the legacy stream.
        let beside = |mut sums: [u64; 3], has_scratch: bool| {
            if has_scratch {
                sums[0] += MARK;
                sums[1] += self.scratch_allocated;
                sums[2] += 1;
            }
            sums
        };
        for tag in &tags {
            let wanted = beside(of(&|block| block.tag == *tag), *tag == 0);
            let stats = self.process.tag_stats(0, TagId::from_number(*tag))?;
            ensure_eq!(told(&stats), wanted, "of tag {tag}");
        }
        for stream in &streams {
            let wanted = beside(
                of(&|block| block.handle == *stream),
                *stream == Stream::LEGACY,
            );
            let stats = self.process.stream_stats(0, *stream)?;
            ensure_eq!(told(&stats), wanted, "on {stream:?}");
        }
        Ok(())
    }

    pub(super) fn nothing_left(&self) -> Outcome {
        let stats = self.process.stats(0, Some(Kind::Pool))?;
        let left = (stats.reserved, stats.pending_frees, stats.pending_bytes);
        ensure_eq!(left, (0, 0, 0), "reserved, pending frees and bytes");
        if let (Some(sim), Some(base)) = (self.machine.sim, self.base) {
            ensure_eq!(
                sim.counters().memory(),
                base.memory(),
                "alive in the driver"
            );
        }
        Ok(())
    }
}
