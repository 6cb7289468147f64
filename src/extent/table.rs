//! The table of extents: for every reserved range, the chunks that back it place by place.
//!
//! Driver calls are made under the table's lock: the driver serialises mapping anyway, and so a
//! device that joins as a peer misses no extent.

use super::backing::Backing;
use super::cell::CellState;
use super::guard::{Guard, KnownZeros};
use super::residency::Backup;
use super::shared::{Exports, Imports};
use crate::config::value::Location;
use crate::core::gauge::{Gauge, Holding, Reading};
use crate::core::limit::Limit;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Warning};
use crate::gpu::{Chunk, ChunkSpec, Device, Mapping, Reservation};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Where the contents of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// In a chunk mapped at the extent's address.
    Mapped,
    /// In pinned memory of the host.
    Host,
    /// In a file.
    File,
    /// Nowhere: the address is held, the contents are gone.
    Discarded,
}

/// Who decides what becomes of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A block of the vmm source, which has its extents to itself.
    Block,
    /// A segment that torch divides up.
    Segment,
    /// A pool, whose ranges may have holes and whose chunks move between addresses.
    Pool,
    /// A caller that takes the memory from behind an address and puts new memory there itself.
    Cell,
}

/// One place of a range. Its chunk lives while a place names it.
pub(super) struct Extent {
    pub(super) bytes: u64,
    pub(super) chunk: Option<Arc<Chunk>>,
    pub(super) mapping: Option<Mapping>,
    /// The chunk has moved to another place, and is still mapped here.
    pub(super) alias: bool,
    /// Where its contents were saved to: all of them while it sleeps, what they were then once it is
    /// awake again.
    pub(super) backup: Option<Backup>,
    /// How many have asked that its chunk stays where it is.
    pub(super) pins: u32,
    /// The numbers of the exports among them.
    pub(super) exports: Vec<u64>,
    /// It was woken, and what it held is not back yet: to everybody else it sleeps.
    pub(super) is_unfilled: bool,
    /// Zeros that are mapped here while it sleeps, if any are.
    pub(super) guard: Option<Guard>,
}

impl Extent {
    pub(super) fn residency(&self) -> Residency {
        match (&self.mapping, &self.backup) {
            (Some(_), _) if !self.is_unfilled => Residency::Mapped,
            (_, Some(backup)) => backup.at,
            (_, None) => Residency::Discarded,
        }
    }
}

/// A reserved range and its extents by address: without gaps, but for those of pools.
pub(super) struct Run {
    pub(super) reservation: Reservation,
    pub(super) extents: BTreeMap<u64, Extent>,
    pub(super) spec: ChunkSpec,
    pub(super) owner: Owner,
    pub(super) tag: TagId,
    /// What is at home in ranges of the tag.
    pub(super) of_tag: Arc<Gauge>,
    /// What more there is to a cell.
    pub(super) cell: Option<CellState>,
    /// Its block is gone, or never was one: all that is left is to take it down.
    pub(super) is_leaving: bool,
}

impl Run {
    fn is_pools_on_host(&self) -> bool {
        self.owner == Owner::Pool && self.spec.location != Location::Device
    }
}

/// What a range is to be.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Its length, a multiple of the granularity.
    pub bytes: u64,
    /// Alignment of its address, a power of two.
    pub align: u64,
    /// The most bytes of one chunk; `bytes` where one chunk may back it all.
    pub chunk_bytes: u64,
    /// The kind of chunks.
    pub chunk: ChunkSpec,
    /// Who decides about it: not a pool, whose ranges are reserved bare.
    pub owner: Owner,
    /// The tag of what lives in it.
    pub tag: TagId,
}

/// A line of the table, for reports.
#[derive(Clone, Debug)]
pub struct ExtentInfo {
    /// Its first address.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// Where its contents are.
    pub residency: Residency,
    /// Whether its chunk has moved to another address and is only mapped here until running work
    /// has ended: its bytes are counted there.
    pub alias: bool,
    /// Who decides about it.
    pub owner: Owner,
    /// Its tag.
    pub tag: TagId,
    /// Where its chunk is.
    pub location: Location,
}

/// What is reserved and what backs it.
#[derive(Default)]
pub(super) struct Table {
    /// By first address.
    pub(super) runs: BTreeMap<u64, Run>,
    /// Ranges that a failed build could not take down again; the next operation does.
    left_runs: Vec<u64>,
    /// Places of pools' ranges of which the same is true.
    pub(super) left_places: Vec<u64>,
}

impl Table {
    /// The range that an address lies in.
    pub(super) fn run_at(&mut self, address: u64) -> Option<&mut Run> {
        let (base, run) = self.runs.range_mut(..=address).next_back()?;
        (address - base < run.reservation.bytes()).then_some(run)
    }

    /// Whether a range has any of a stretch of addresses.
    pub(super) fn is_taken(&self, address: u64, bytes: u64) -> bool {
        let before = self.runs.range(..address + bytes).next_back();
        before.is_some_and(|(base, run)| base + run.reservation.bytes() > address)
    }
}

/// The extents of one device.
pub struct Extents {
    pub(super) device: Arc<Device>,
    pub(super) table: Mutex<Table>,
    /// Bytes of physical memory held.
    pub(super) physical: Gauge,
    /// The part of it behind ranges of pools, and the rest.
    pub(super) pooled: Holding,
    pub(super) unpooled: Holding,
    /// The part of what is behind ranges of pools that is memory of the host.
    pub(super) pooled_on_host: Gauge,
    /// What is at home in ranges of each tag. Never locked while something else is asked for.
    pub(super) by_tag: Mutex<FxHashMap<TagId, Arc<Gauge>>>,
    /// The limit of the device.
    pub(super) limit: Arc<Limit>,
    pub(super) zeros: Mutex<KnownZeros>,
    /// Chunks that are mapped nowhere and could not be given back.
    pub(super) left_chunks: Mutex<Vec<Chunk>>,
    /// Whether a range may have lost its addresses (see [`Reservation::cycle`]).
    pub(super) has_lost: AtomicBool,
    /// Whether anything has ever slept.
    pub(super) has_slept: AtomicBool,
    /// How many places are pinned.
    pub(super) pinned: AtomicUsize,
    /// What other processes share with this one, and it with them.
    pub(super) imports: Mutex<Imports>,
    pub(super) exports: Mutex<Exports>,
}

impl Extents {
    pub(super) fn new(device: Arc<Device>, limit: Arc<Limit>) -> Extents {
        Extents {
            device,
            table: Mutex::default(),
            physical: Gauge::default(),
            pooled: Holding::default(),
            unpooled: Holding::default(),
            pooled_on_host: Gauge::default(),
            by_tag: Mutex::default(),
            limit,
            zeros: Mutex::default(),
            left_chunks: Mutex::default(),
            has_lost: AtomicBool::new(false),
            has_slept: AtomicBool::new(false),
            pinned: AtomicUsize::new(0),
            imports: Mutex::default(),
            exports: Mutex::default(),
        }
    }

    /// Reserves a range and backs it with new chunks. On failure nothing of it is left.
    pub fn build(&self, spec: &RunSpec) -> Result<u64> {
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        let peers = self.peers();
        let reservation = self.reserve_beside(&table, spec.bytes, spec.align)?;
        let address = reservation.address();
        let mut run = Run {
            extents: BTreeMap::new(),
            reservation,
            spec: spec.chunk,
            owner: spec.owner,
            tag: spec.tag,
            of_tag: self.gauge_of(spec.tag),
            cell: None,
            is_leaving: false,
        };
        let chunks = pieces(spec.bytes, spec.chunk_bytes);
        match self.bind(&mut run, address, chunks, &peers) {
            Ok(()) => {
                tracing::debug!(
                    "{address:#x}: {} bytes mapped in {} chunks",
                    spec.bytes,
                    run.extents.len()
                );
                table.runs.insert(address, run);
                Ok(address)
            }
            Err(error) => {
                // Nothing has used the range yet. What cannot be undone now stays in the table.
                if let Err(error) = self.dismantle(&mut run) {
                    run.is_leaving = true;
                    self.warn_of_leftovers(&error);
                    table.runs.insert(address, run);
                    table.left_runs.push(address);
                }
                Err(error)
            }
        }
    }

    /// Unmaps what [`Extents::build`] made and no work uses any more, releases its chunks and frees
    /// its addresses. After a failure it can be called again and carries on.
    pub fn retire(&self, address: u64) -> Result<()> {
        let _guard = self.device.enter()?;
        self.retire_from(&mut lock(&self.table), address)
    }

    fn retire_from(&self, table: &mut Table, address: u64) -> Result<()> {
        match table.runs.get_mut(&address) {
            Some(run) if run.owner != Owner::Pool => {
                run.is_leaving = true;
                self.dismantle(run)?;
            }
            _ => return Ok(()),
        }
        table.runs.remove(&address);
        tracing::debug!("{address:#x}: unmapped");
        Ok(())
    }

    /// Takes down what failed operations left behind.
    pub fn sweep(&self) {
        let mut table = lock(&self.table);
        let is_clean = table.left_runs.is_empty()
            && table.left_places.is_empty()
            && lock(&self.left_chunks).is_empty();
        if is_clean && !self.has_lost.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(_guard) = self.device.enter() {
            self.sweep_table(&mut table);
        }
    }

    /// [`Extents::sweep`]. Needs the device's context current.
    pub(super) fn sweep_table(&self, table: &mut Table) {
        if self.has_lost.swap(false, Ordering::Relaxed) {
            for run in table.runs.values_mut() {
                if run.reservation.regain().is_err() {
                    self.has_lost.store(true, Ordering::Relaxed);
                }
            }
        }
        let left = std::mem::take(&mut *lock(&self.left_chunks));
        self.give_up_chunks(left);
        for address in std::mem::take(&mut table.left_runs) {
            if self.retire_from(table, address).is_err() {
                table.left_runs.push(address);
            }
        }
        for place in std::mem::take(&mut table.left_places) {
            if self.vacate(table, &[place]).is_err() {
                table.left_places.push(place);
            }
        }
    }

    fn dismantle(&self, run: &mut Run) -> Result<()> {
        let places: Vec<u64> = run.extents.keys().copied().collect();
        self.unbind(run, &places)?;
        run.reservation.free()
    }

    /// The devices that must reach what is mapped.
    pub(super) fn peers(&self) -> Vec<i32> {
        self.device.active_peers().unwrap_or_else(|error| {
            self.warn_of_peers(&error);
            Vec::new()
        })
    }

    /// Lets a device that has come into use reach everything mapped here.
    pub fn admit_peer(&self, peer: i32) {
        if peer == self.device.ordinal() {
            return;
        }
        match self.device.has_active_peer(peer) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.warn_of_peers(&error),
        }
        for run in lock(&self.table).runs.values() {
            for mapping in run.extents.values().filter_map(|e| e.mapping.as_ref()) {
                if let Err(error) = mapping.allow(&[peer], run.spec.location) {
                    self.warn_of_peers(&error);
                }
            }
        }
        self.admit_peer_to_imports(peer);
    }

    pub(super) fn warn_of_leftovers(&self, error: &Error) {
        self.device.warnings().warn(Warning::GiveBack, || {
            format!("what a failed operation left could not be undone yet, it will be tried again: {error}")
        });
    }

    pub(super) fn warn_of_peers(&self, error: &Error) {
        self.device.warnings().warn(Warning::PeerAccess, || {
            format!(
                "other devices may not reach memory of device {}: {error}",
                self.device.ordinal()
            )
        });
    }

    /// Bytes of physical memory held.
    pub fn physical(&self) -> Reading {
        self.physical.read()
    }

    /// The part of [`Extents::physical`] behind ranges of pools.
    pub fn pooled(&self) -> Reading {
        self.pooled.read()
    }

    /// The chunks that this is in.
    pub fn pooled_chunks(&self) -> Reading {
        self.pooled.pieces()
    }

    /// The bytes of [`Extents::pooled`] in memory of the device, or in that of the host.
    pub fn pooled_at(&self, location: Location) -> u64 {
        let on_host = self.pooled_on_host.read().now;
        match location {
            Location::Device => self.pooled().now.saturating_sub(on_host),
            Location::HostNuma(_) => on_host,
        }
    }

    /// The part of [`Extents::physical`] behind blocks and segments with ranges of their own.
    pub fn unpooled(&self) -> Reading {
        self.unpooled.read()
    }

    /// The chunks that this is in.
    pub fn unpooled_chunks(&self) -> Reading {
        self.unpooled.pieces()
    }

    /// What backs memory of a tag: chunks that are at home in its ranges. A chunk that was given back
    /// and is still mapped elsewhere for running work is counted for no tag.
    pub fn of_tag(&self, tag: TagId) -> Reading {
        let by_tag = lock(&self.by_tag);
        by_tag
            .get(&tag)
            .map(|gauge| gauge.read())
            .unwrap_or_default()
    }

    /// The gauge that ranges of a tag share.
    pub(super) fn gauge_of(&self, tag: TagId) -> Arc<Gauge> {
        lock(&self.by_tag).entry(tag).or_default().clone()
    }

    /// Starts the peaks of these again.
    pub fn reset_peaks(&self) {
        self.physical.reset_peak();
        self.pooled.reset_peak();
        self.unpooled.reset_peak();
        for gauge in lock(&self.by_tag).values() {
            gauge.reset_peak();
        }
    }

    /// A chunk was made behind a range.
    pub(super) fn count_new(&self, run: &Run, bytes: u64) {
        self.physical.add(bytes);
        match run.owner {
            Owner::Pool => self.pooled.add(bytes),
            Owner::Block | Owner::Segment | Owner::Cell => self.unpooled.add(bytes),
        }
        if run.is_pools_on_host() {
            self.pooled_on_host.add(bytes);
        }
    }

    /// The last place that named a chunk, in this range, does so no more.
    pub(super) fn count_gone(&self, run: &Run, bytes: u64) {
        self.physical.sub(bytes);
        match run.owner {
            Owner::Pool => self.pooled.sub(bytes),
            Owner::Block | Owner::Segment | Owner::Cell => self.unpooled.sub(bytes),
        }
        if run.is_pools_on_host() {
            self.pooled_on_host.sub(bytes);
        }
    }

    /// The table as it is now: a line a place, none for the holes in pools' ranges.
    pub fn list(&self) -> Vec<ExtentInfo> {
        let table = lock(&self.table);
        let lines = |run: &Run| {
            let line = |(address, extent): (&u64, &Extent)| ExtentInfo {
                address: *address,
                bytes: extent.bytes,
                residency: extent.residency(),
                alias: extent.alias,
                owner: run.owner,
                tag: run.tag,
                location: run.spec.location,
            };
            run.extents.iter().map(line).collect::<Vec<_>>()
        };
        table.runs.values().flat_map(lines).collect()
    }
}

fn pieces(bytes: u64, chunk_bytes: u64) -> Vec<Backing> {
    let mut pieces = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let piece = chunk_bytes.min(left);
        pieces.push(Backing::New(piece));
        left -= piece;
    }
    pieces
}
