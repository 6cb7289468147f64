//! Extents lose their chunks and get new ones at the same address: the two halves of sleep and wake.
//! What was in a chunk is the business of whoever takes it away, who may leave with the extent what it was
//! saved to.

use super::backing::{Neighbours, charged, unmap};
use super::table::{Extent, Extents, Owner, Residency, Run, Table};
use crate::config::value::Location;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::gpu::{Chunk, Mapping};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What the contents of an extent were saved to. Given up with the extent.
#[derive(Clone)]
pub struct Backup {
    /// Where that is.
    pub at: Residency,
    /// The bytes, as who saved them knows them.
    pub contents: Arc<dyn Any + Send + Sync>,
}

/// A place that can sleep or does.
#[derive(Clone)]
pub struct Place {
    /// Its first address.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// Who decides about it.
    pub owner: Owner,
    /// Its tag.
    pub tag: TagId,
    /// Where its contents are.
    pub residency: Residency,
    /// Whether its chunk must stay.
    pub is_pinned: bool,
    /// Whether zeros are mapped there while it sleeps.
    pub is_guarded: bool,
    /// What it was last saved to, if that is kept.
    pub backup: Option<Backup>,
}

impl Extents {
    /// The places at home in memory of the device whose tag is `wanted`, by address.
    pub fn places(&self, wanted: impl Fn(TagId) -> bool) -> Vec<Place> {
        let table = lock(&self.table);
        let of_device = |run: &&Run| {
            run.spec.location == Location::Device
                && wanted(run.tag)
                && !run.is_leaving
                && !run.is_callers_own()
        };
        let places = |run: &Run| {
            let (owner, tag) = (run.owner, run.tag);
            let at_home = run
                .extents
                .iter()
                .filter(|(address, extent)| !extent.alias && !table.left_places.contains(address));
            let place = |(address, extent): (&u64, &Extent)| Place {
                address: *address,
                bytes: extent.bytes,
                owner,
                tag,
                residency: extent.residency(),
                is_pinned: extent.pins > 0,
                is_guarded: extent.guard.is_some(),
                backup: extent.backup.clone(),
            };
            at_home.map(place).collect::<Vec<_>>()
        };
        (table.runs.values().filter(of_device))
            .flat_map(places)
            .collect()
    }

    /// Bytes of places of pools, or of the others, that sleep.
    pub fn asleep(&self, of_pools: bool) -> u64 {
        if !self.has_slept.load(Ordering::Relaxed) {
            return 0;
        }
        let table = lock(&self.table);
        let runs = (table.runs.values()).filter(|run| (run.owner == Owner::Pool) == of_pools);
        let extents = runs.flat_map(|run| run.extents.values());
        let asleep = extents.filter(|extent| extent.chunk.is_none());
        asleep.map(|extent| extent.bytes).sum()
    }

    /// Whether an address lies in a range of this device.
    pub fn has(&self, address: u64) -> bool {
        lock(&self.table).run_at(address).is_some()
    }

    /// Takes the chunks from places that no work uses any more, and leaves each with what its contents
    /// were saved to; the bytes given back. What is no place, has no chunk or is pinned is left alone. A
    /// failure ends nothing but the place it concerns: what is unmapped and could not be released
    /// has its contents still, and [`Extents::restore`] maps it again.
    pub fn evict(&self, places: Vec<(u64, Option<Backup>)>) -> Result<u64> {
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.has_slept.store(true, Ordering::Relaxed);
        let (mut freed, mut failed) = (0, None);
        let mut places = places;
        places.sort_unstable_by_key(|(address, _)| *address);
        let mut left = &mut places[..];
        while let Some(first) = left.first() {
            let Some(run) = table.run_at(first.0) else {
                left = &mut left[1..];
                continue;
            };
            let end = run.reservation.address() + run.reservation.bytes();
            let (here, beyond) = left.split_at_mut(left.partition_point(|place| place.0 < end));
            left = beyond;
            self.evict_from(run, here, &mut freed, &mut failed);
        }
        failed.map_or(Ok(freed), Err)
    }

    fn evict_from(
        &self,
        run: &mut Run,
        places: &mut [(u64, Option<Backup>)],
        freed: &mut u64,
        failed: &mut Option<Error>,
    ) {
        let may_go = |place: &u64| {
            let extent = run.extents.get(place);
            extent.is_some_and(|extent| !extent.alias && extent.pins == 0)
        };
        let going: Vec<u64> = (places.iter().map(|(address, _)| *address))
            .filter(may_go)
            .collect();
        let begin = Instant::now();
        for neighbours in Neighbours::of(run, &going) {
            if let Err(error) = unmap(run, neighbours) {
                failed.get_or_insert(error);
            }
        }
        let unmapped = Instant::now();
        for (address, backup) in places {
            let is_unmapped = |extent: &&mut Extent| extent.mapping.is_none();
            let Some(extent) = run.extents.get_mut(address).filter(is_unmapped) else {
                continue;
            };
            if let Some(backup) = backup.take() {
                extent.backup = Some(backup);
            }
            match self.drop_chunk(run, *address) {
                Ok(bytes) => *freed += bytes,
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        if let Err(error) = self.let_go_of_held(run) {
            failed.get_or_insert(error);
        }
        tracing::trace!(
            "{} places unmapped in {:?}, given back in {:?}",
            going.len(),
            unmapped - begin,
            unmapped.elapsed()
        );
    }

    /// Where a device holds released memory as long as its addresses are held, those of a range that sleeps as a
    /// whole are given back for a moment.
    pub(super) fn let_go_of_held(&self, run: &mut Run) -> Result<()> {
        let is_asleep = |extent: &Extent| extent.chunk.is_none() && extent.guard.is_none();
        if !self.device.findings()?.holds_memory || !run.extents.values().all(is_asleep) {
            return Ok(());
        }
        run.reservation.cycle().inspect_err(|_| {
            self.has_lost.store(true, Ordering::Relaxed);
        })
    }

    /// Takes the chunk from a place where it is mapped no more, and leaves the place.
    fn drop_chunk(&self, run: &mut Run, place: u64) -> Result<u64> {
        let Some(extent) = run.extents.get_mut(&place) else {
            return Ok(0);
        };
        let Some(chunk) = extent.chunk.as_mut() else {
            return Ok(0);
        };
        let mut freed = 0;
        // One that is mapped elsewhere for running work goes with the last place that names it.
        if let Some(chunk) = Arc::get_mut(chunk) {
            chunk.release()?;
            freed = chunk.bytes();
        }
        extent.chunk = None;
        run.of_tag.sub(extent.bytes);
        run.show_handle(place);
        if freed > 0 {
            self.count_gone(run, freed);
            self.limit.give(charged(run.spec, freed));
        }
        Ok(freed)
    }

    /// Puts chunks behind places that have none, at their addresses, by new chunks whose contents are
    /// undefined: to others they sleep until [`Extents::set_filled`]. All or nothing: on failure those made are
    /// gone again.
    pub fn restore(&self, places: &[u64]) -> Result<()> {
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        let peers = self.peers();
        let mut sorted = places.to_vec();
        sorted.sort_unstable();
        let mut made = Vec::new();
        let outcome = self.restore_all(&mut table, &sorted, &peers, &mut made);
        if outcome.is_err() {
            for place in made {
                self.undo_restore(&mut table, place);
            }
        }
        outcome
    }

    fn restore_all(
        &self,
        table: &mut Table,
        places: &[u64],
        peers: &[i32],
        made: &mut Vec<u64>,
    ) -> Result<()> {
        let mut left = places;
        while let Some(first) = left.first() {
            let Some(run) = table.run_at(*first) else {
                left = &left[1..];
                continue;
            };
            let end = run.reservation.address() + run.reservation.bytes();
            let (here, beyond) = left.split_at(left.partition_point(|place| *place < end));
            left = beyond;
            run.reservation.regain()?;
            let mut missing = Vec::new();
            for place in here {
                if self.make_chunk(run, *place, made)? {
                    missing.push(*place);
                }
            }
            for place in &missing {
                if let Some(extent) = run.extents.get_mut(place) {
                    if let (Some(chunk), None) = (&extent.chunk, &extent.mapping) {
                        extent.mapping = Some(Mapping::new(&self.device, *place, chunk)?);
                    }
                }
            }
            for neighbours in Neighbours::of(run, &missing) {
                if let [first, .., last] | [first @ last] = neighbours {
                    let end = last + run.extents.get(last).map_or(0, |extent| extent.bytes);
                    self.grant(run, *first, end, peers)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a place is not mapped; then it has a chunk now.
    fn make_chunk(&self, run: &mut Run, place: u64, made: &mut Vec<u64>) -> Result<bool> {
        let Some(extent) = run.extents.get(&place) else {
            return Ok(false);
        };
        if extent.mapping.is_some() && !extent.is_unfilled {
            return Ok(false);
        }
        self.strip(run, place)?;
        let Some(extent) = run.extents.get_mut(&place) else {
            return Ok(false);
        };
        // From here on a failure takes it down again.
        made.push(place);
        extent.is_unfilled = true;
        if extent.chunk.is_none() {
            let bytes = extent.bytes;
            let room = self.limit.hold(charged(run.spec, bytes))?;
            extent.chunk = Some(Arc::new(Chunk::create(&self.device, bytes, run.spec)?));
            room.keep();
            run.of_tag.add(bytes);
            run.show_handle(place);
            self.count_new(run, bytes);
        }
        Ok(true)
    }

    fn undo_restore(&self, table: &mut Table, place: u64) {
        let Some(run) = table.run_at(place) else {
            return;
        };
        let is_mapped = (run.extents.get(&place)).is_some_and(|extent| extent.mapping.is_some());
        let unmapped = match is_mapped {
            true => unmap(run, &[place]),
            false => Ok(()),
        };
        let undone = unmapped
            .and_then(|()| self.drop_chunk(run, place))
            .and_then(|_| self.let_go_of_held(run));
        if let Err(error) = undone {
            self.warn_of_leftovers(&error);
        }
    }

    /// Places that were restored hold what they are to hold.
    pub fn set_filled(&self, places: &[u64]) {
        let mut table = lock(&self.table);
        for place in places {
            let extent = (table.run_at(*place)).and_then(|run| run.extents.get_mut(place));
            if let Some(extent) = extent {
                extent.is_unfilled = false;
            }
        }
    }

    /// Drops what awake places were saved to.
    pub fn drop_backups(&self, places: &[u64]) {
        let mut dropped = Vec::new();
        let mut table = lock(&self.table);
        for place in places {
            let extent = (table.run_at(*place)).and_then(|run| run.extents.get_mut(place));
            dropped.extend(extent.and_then(|extent| extent.backup.take()));
        }
        drop(table);
    }

    /// Keeps the chunks at the places that `[address, address + bytes)` touches where they are, until as
    /// many calls of [`Extents::unpin`]; an error where nothing is mapped.
    pub fn pin(&self, address: u64, bytes: u64) -> Result<()> {
        self.change_pins("pin", address, bytes, |pins| pins.checked_add(1))
    }

    /// Undoes one [`Extents::pin`] of the same range.
    pub fn unpin(&self, address: u64, bytes: u64) -> Result<()> {
        self.change_pins("unpin", address, bytes, |pins| pins.checked_sub(1))
    }

    /// Whether the chunk of a place must stay where it is. Costs next to nothing while nothing is pinned.
    pub fn is_pinned(&self, place: u64) -> bool {
        if self.pinned.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut table = lock(&self.table);
        let extent = (table.run_at(place)).and_then(|run| run.extents.get(&place));
        extent.is_some_and(|extent| extent.pins > 0)
    }

    pub(super) fn set_pins(&self, extent: &mut Extent, pins: u32) {
        match (extent.pins > 0, pins > 0) {
            (false, true) => _ = self.pinned.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.pinned.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
        extent.pins = pins;
    }

    pub(super) fn change_pins(
        &self,
        operation: &'static str,
        address: u64,
        bytes: u64,
        change: impl Fn(u32) -> Option<u32>,
    ) -> Result<()> {
        let refused = |why: &str| {
            Error::new(Status::InvalidArgument, operation)
                .detail(format!("{bytes} bytes at {address:#x}: {why}"))
        };
        let end = (address.checked_add(bytes).filter(|_| bytes > 0))
            .ok_or_else(|| refused("no range of memory"))?;
        let mut table = lock(&self.table);
        let run = (table.run_at(address)).ok_or_else(|| refused("in no range of ours"))?;
        let first = run.extents.range(..=address).next_back();
        let first = first.map_or(address, |(place, _)| *place);
        let touched = || run.extents.range(first..end);
        let mut next = first;
        for (place, extent) in touched() {
            if extent.mapping.is_none() || extent.alias || *place != next {
                return Err(refused("not all of it is mapped"));
            }
            change(extent.pins).ok_or_else(|| refused("it is not pinned"))?;
            next = place + extent.bytes;
        }
        if next < end {
            return Err(refused("not all of it is mapped"));
        }
        for (_, extent) in run.extents.range_mut(first..end) {
            self.set_pins(extent, change(extent.pins).unwrap_or(extent.pins));
        }
        Ok(())
    }
}
