//! Counts of what was asked for, given out and held.

use super::{DeviceEntry, Process, lifetime};
use crate::core::gauge::{Gauge, Reading};
use crate::error::{Error, Result, Status};
use crate::extent::table::{Owner, Residency};
use crate::pool::Footprint;
use crate::registry::{AllocatorId, Record};
use crate::source::{Block, Kind};
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one kind of source on one device.
#[derive(Default)]
pub(super) struct Counters {
    requested: Gauge,
    allocated: Gauge,
    blocks: Gauge,
    failed: AtomicU64,
    out_of_memory: AtomicU64,
    retries: AtomicU64,
}

impl Counters {
    pub(super) fn gave(&self, block: &Block) {
        self.requested.add(block.requested);
        self.allocated.add(block.bytes);
        self.blocks.add(1);
    }

    pub(super) fn took(&self, block: &Block) {
        self.requested.sub(block.requested);
        self.allocated.sub(block.bytes);
        self.blocks.sub(1);
    }

    pub(super) fn failed(&self, error: &Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if error.status() == Status::OutOfMemory {
            self.out_of_memory.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request is tried again after what is cached was given back.
    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes requested and allocated, and blocks.
    pub(super) fn read(&self) -> (Reading, Reading, Reading) {
        let (requested, allocated) = (self.requested.read(), self.allocated.read());
        (requested, allocated, self.blocks.read())
    }

    pub(super) fn allocated(&self) -> u64 {
        self.allocated.read().now
    }

    pub(super) fn reset_peaks(&self) {
        for gauge in [&self.requested, &self.allocated, &self.blocks] {
            gauge.reset_peak();
        }
    }
}

/// Statistics of one kind of source, or of all, on one device. Bytes, and counts since the start.
/// Peaks are those since the start or since they were last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes asked for by blocks now given out.
    pub requested: u64,
    /// Bytes of blocks now given out.
    pub allocated: u64,
    /// Bytes held from the device, and from the host for what is placed there.
    pub reserved: u64,
    /// The most `requested` has been; over all kinds, the sum of their peaks.
    pub peak_requested: u64,
    /// The most `allocated` has been; over all kinds, the sum of their peaks.
    pub peak_allocated: u64,
    /// The most `reserved` has been; over all kinds, the sum of their peaks.
    pub peak_reserved: u64,
    /// Blocks given out.
    pub allocations: u64,
    /// Blocks taken back.
    pub deallocations: u64,
    /// Requests that failed.
    pub failed_allocations: u64,
    /// Frees of addresses that are no block, in the whole process.
    pub rejected_frees: u64,
    /// Freed blocks that wait for work to end, on the device.
    pub pending_frees: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// Warnings of every kind, in the whole process.
    pub warnings: u64,
    /// Bytes asked for by all blocks ever given out.
    pub total_requested: u64,
    /// Bytes of all blocks ever given out.
    pub total_allocated: u64,
    /// Bytes ever taken from the device; of the stream-ordered pool, as far as it was seen to grow.
    pub total_reserved: u64,
    /// The most blocks given out at a time; over all kinds, the sum of their peaks.
    pub peak_blocks: u64,
    /// Requests that failed for want of memory.
    pub out_of_memory: u64,
    /// The most bytes that may be held of the device; `u64::MAX` where there is no limit.
    pub limit: u64,
    /// Pieces of memory held from the driver: chunks, or whole blocks. None of the stream-ordered
    /// kind, whose driver does not tell.
    pub segments: u64,
    /// The most there were at a time; over all kinds, the sum of their peaks.
    pub peak_segments: u64,
    /// All that were ever had.
    pub total_segments: u64,
    /// Requests that were tried again after cached memory had been given back.
    pub retries: u64,
    /// The part of what all kinds hold of the device that counts to the limit: memory of the host
    /// does not. Of the stream-ordered pool, what it was last seen to hold.
    pub limit_used: u64,
}

impl Process {
    /// How many blocks of sources, and not of pools, an allocator has given out.
    pub fn source_blocks_of(&self, allocator: AllocatorId) -> u64 {
        let is_its = |record: &Record| record.allocator == Some(allocator);
        self.registry.addresses(is_its).len() as u64
    }

    /// Statistics of `kind`, or of every kind, on a device. Of a device that is not
    /// in use there is nothing to count, and asking does not bring it into use.
    pub fn stats(&self, ordinal: i32, kind: Option<Kind>) -> Result<Stats> {
        lifetime::check_not_forked()?;
        let mut stats = Stats {
            rejected_frees: self.rejected_frees.load(Ordering::Relaxed),
            warnings: self.warnings.total(),
            limit: self.stated_limit(ordinal).unwrap_or(u64::MAX),
            ..Stats::default()
        };
        let Some(device) = self.device_in_use(ordinal)? else {
            return Ok(stats);
        };
        stats.pending_frees = device.state().deferral.entries();
        stats.pending_bytes = device.state().deferral.bytes();
        if kind.is_none_or(|kind| kind == Kind::Async) {
            device.recharge();
        }
        stats.limit = device.state().limit.get().unwrap_or(u64::MAX);
        stats.limit_used = device.state().limit.used();
        for kind in Kind::ALL
            .into_iter()
            .filter(|one| kind.is_none_or(|kind| kind == *one))
        {
            stats.add(device, kind);
        }
        Ok(stats)
    }

    /// Finds whatever contradicts itself in the books of a device's pool.
    pub fn audit_pool(&self, ordinal: i32) -> std::result::Result<(), String> {
        let device = self.device_in_use(ordinal).ok().flatten();
        match device.and_then(|device| device.pool_in_use()) {
            Some(pool) => pool.audit(),
            None => Ok(()),
        }
    }

    /// What a device's pool keeps books on.
    pub fn pool_footprint(&self, ordinal: i32) -> Result<Footprint> {
        let device = self.device_in_use(ordinal)?;
        let pool = device.and_then(|device| device.pool_in_use());
        Ok(pool.map_or(Footprint::default(), |pool| pool.footprint()))
    }

    /// The most bytes that one more block on a device might get: what the device has free, as far as
    /// the limit allows, and what is held and in no block. Brings the device into use.
    pub fn room(&self, ordinal: i32) -> Result<u64> {
        let device = self.device(ordinal)?;
        let (free, _) = device.state().device.memory_info()?;
        let stats = self.stats(ordinal, None)?;
        let allowed = stats.limit.saturating_sub(stats.limit_used);
        let in_blocks = stats
            .allocated
            .saturating_sub(bytes_of_blocks_asleep(device));
        let cached = stats.reserved.saturating_sub(in_blocks);
        Ok(free.min(allowed) + cached.saturating_sub(device.cached_on_host()))
    }

    /// Starts every peak of a device again from what there is now. Whatever fails, the others are
    /// reset; the first failure is returned.
    pub fn reset_peaks(&self, ordinal: i32) -> Result<()> {
        let Some(device) = self.device_in_use(ordinal)? else {
            return Ok(());
        };
        let mut outcome = Ok(());
        for kind in Kind::ALL {
            device.counters(kind).reset_peaks();
            outcome = outcome.and(device.source(kind).reset_peak());
        }
        device.by_owner().reset_peaks();
        if let Some(pool) = device.pool_in_use() {
            pool.reset_peaks();
        }
        outcome
    }
}

impl Stats {
    fn add(&mut self, device: &DeviceEntry, kind: Kind) {
        match kind {
            Kind::Pool => self.add_pool(device),
            kind => self.add_source(device, kind),
        }
        let pieces = device.pieces(kind);
        self.segments += pieces.now;
        self.peak_segments += pieces.peak;
        self.total_segments += pieces.added;
        let counters = device.counters(kind);
        self.retries += counters.retries.load(Ordering::Relaxed);
        self.failed_allocations += counters.failed.load(Ordering::Relaxed);
        self.out_of_memory += counters.out_of_memory.load(Ordering::Relaxed);
    }

    fn add_pool(&mut self, device: &DeviceEntry) {
        let Some(pool) = device.pool_in_use() else {
            return;
        };
        let (sums, held, pending) = (pool.total(), device.held(Kind::Pool), pool.pending());
        // What sleeps is allocated and not held.
        let asleep = device.state().extents.asleep(true);
        self.reserved += held.now.max(sums.allocated.saturating_sub(asleep));
        self.allocated += sums.allocated;
        self.requested += sums.requested;
        self.peak_reserved += held.peak.max(sums.peak_allocated);
        self.peak_allocated += sums.peak_allocated;
        self.peak_requested += sums.peak_requested;
        self.total_reserved += held.added.max(sums.allocated);
        self.total_allocated += sums.total_allocated;
        self.total_requested += sums.total_requested;
        self.allocations += sums.taken;
        self.deallocations += sums.given;
        self.peak_blocks += sums.peak_blocks;
        self.retries += pool.counters.retries.load(Ordering::Relaxed);
        self.pending_frees += pending.0;
        self.pending_bytes += pending.1;
    }

    fn add_source(&mut self, device: &DeviceEntry, kind: Kind) {
        let counters = device.counters(kind);
        let (requested, allocated, blocks) = counters.read();
        let held = device.held(kind);
        // Other threads move these while they are read one by one; what is told keeps their order.
        let asleep = match kind {
            Kind::Vmm => device.state().extents.asleep(false),
            _ => 0,
        };
        self.reserved += held.now.max(allocated.now.saturating_sub(asleep));
        self.allocated += allocated.now;
        self.requested += requested.now.min(allocated.now);
        self.peak_reserved += held.peak.max(allocated.peak);
        self.peak_allocated += allocated.peak;
        self.peak_requested += requested.peak.min(allocated.peak);
        self.total_reserved += held.added.max(allocated.now);
        self.total_allocated += allocated.added;
        self.total_requested += requested.added.min(allocated.added);
        self.allocations += blocks.added;
        self.deallocations += blocks.added.saturating_sub(blocks.now);
        self.peak_blocks += blocks.peak;
    }
}

/// What blocks come to that sleep, which are allocated and not held. Of the pool's memory of a tag that sleeps in part, the
/// blocks are taken to be there first.
fn bytes_of_blocks_asleep(device: &DeviceEntry) -> u64 {
    let extents = &device.state().extents;
    let of_sources = extents.asleep(false);
    let Some(pool) = device.pool_in_use().filter(|_| extents.asleep(true) > 0) else {
        return of_sources;
    };
    let mut by_tag: FxHashMap<u16, u64> = FxHashMap::default();
    for place in extents.places(|_| true) {
        if place.owner == Owner::Pool && place.residency != Residency::Mapped {
            *by_tag.entry(place.tag.number()).or_default() += place.bytes;
        }
    }
    let of_tags = (by_tag.iter()).map(|(tag, bytes)| pool.of_tag(*tag).allocated.min(*bytes));
    of_sources + of_tags.sum::<u64>()
}
