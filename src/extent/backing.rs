//! What backs an address is changed here and nowhere else: places are given chunks, and lose them.

use super::table::{Extent, Extents, Owner, Run, Table};
use crate::config::value::Location;
use crate::error::{Error, Result};
use crate::gpu::{Chunk, ChunkSpec, Mapping};
use std::sync::Arc;

/// What a place is to be backed by.
pub(super) enum Backing {
    /// A new chunk of so many bytes.
    New(u64),
    /// One that is mapped elsewhere too.
    Moved(Arc<Chunk>),
}

impl Extents {
    /// Backs a stretch where nothing is, from `address` on, by one chunk behind the other, and gives
    /// access to all of it. On failure the places made so far are in `run`. Needs the device's
    /// context current.
    pub(super) fn bind(
        &self,
        run: &mut Run,
        address: u64,
        backings: Vec<Backing>,
        peers: &[i32],
    ) -> Result<()> {
        let new = backings.iter().map(|backing| match backing {
            Backing::New(bytes) => charged(run.spec, *bytes),
            Backing::Moved(_) => 0,
        });
        let mut room = self.limit.hold(new.sum())?;
        // First all the memory, since that is what may be lacking.
        let mut end = address;
        for backing in backings {
            let alias = matches!(backing, Backing::Moved(_));
            let chunk = match backing {
                Backing::Moved(chunk) => chunk,
                Backing::New(bytes) => {
                    let chunk = Chunk::create(&self.device, bytes, run.spec)?;
                    room.keep_part(charged(run.spec, bytes));
                    self.count_new(run, bytes);
                    run.of_tag.add(bytes);
                    Arc::new(chunk)
                }
            };
            let extent = Extent {
                bytes: chunk.bytes(),
                chunk: Some(chunk),
                mapping: None,
                // Its home is where it was until all is done.
                alias,
                backup: None,
                pins: 0,
                exports: Vec::new(),
                is_unfilled: false,
                guard: None,
            };
            let bytes = extent.bytes;
            run.extents.insert(end, extent);
            end += bytes;
        }
        for (place, extent) in run.extents.range_mut(address..end) {
            if let Some(chunk) = &extent.chunk {
                extent.mapping = Some(Mapping::new(&self.device, *place, chunk)?);
            }
        }
        self.grant(run, address, end, peers)?;
        (run.extents.range(address..end)).for_each(|(place, _)| run.show_handle(*place));
        Ok(())
    }

    pub(super) fn grant(&self, run: &Run, address: u64, end: u64, peers: &[i32]) -> Result<()> {
        let extents = || run.extents.range(address..end);
        let mappings = || extents().filter_map(|(_, extent)| extent.mapping.as_ref());
        let location = run.spec.location;
        match Mapping::allow_all(mappings(), peers, location) {
            // A peer that cannot reach the memory must not keep its own device from it.
            Err(error) if !peers.is_empty() => {
                Mapping::allow_all(mappings(), &[], location)?;
                self.warn_of_peers(&error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Takes from `places`, which are in the order of their addresses and no work uses any more,
    /// what backs them, and releases chunks that no other place names. The answer is the bytes given
    /// back. A failure ends nothing but the place it concerns, which can be tried again. Needs the
    /// device's context current.
    pub(super) fn unbind(&self, run: &mut Run, places: &[u64]) -> Result<u64> {
        let (mut freed, mut failed) = (0, None);
        for place in places {
            if let Err(error) = self.strip(run, *place) {
                failed.get_or_insert(error);
            }
        }
        for neighbours in Neighbours::of(run, places) {
            if let Err(error) = unmap(run, neighbours) {
                failed.get_or_insert(error);
            }
        }
        for place in places {
            match self.give_up(run, *place) {
                Ok(bytes) => freed += bytes,
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(freed), Err)
    }

    /// Takes the chunk from a place where it is mapped no more.
    fn give_up(&self, run: &mut Run, place: u64) -> Result<u64> {
        let Some(extent) = run.extents.get_mut(&place) else {
            return Ok(0);
        };
        if extent.mapping.is_some() || extent.guard.is_some() {
            return Ok(0);
        }
        let mut freed = 0;
        // Under the table's lock: nobody else can come to name it meanwhile.
        if let Some(chunk) = extent.chunk.as_mut().and_then(Arc::get_mut) {
            chunk.release()?;
            freed = chunk.bytes();
        }
        if extent.chunk.take().is_some() && !extent.alias {
            run.of_tag.sub(extent.bytes);
        }
        self.set_pins(extent, 0);
        extent.exports.clear();
        if freed > 0 {
            self.count_gone(run, freed);
            self.limit.give(charged(run.spec, freed));
        }
        if run.owner == Owner::Pool {
            run.extents.remove(&place);
        }
        run.show_handle(place);
        Ok(freed)
    }

    /// [`Extents::unbind`] of places of any ranges; what is no place has none to lose.
    pub(super) fn vacate(&self, table: &mut Table, places: &[u64]) -> Result<u64> {
        let mut sorted = places.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let (mut freed, mut failed) = (0, None);
        let mut left = &sorted[..];
        while let Some(first) = left.first() {
            let Some(run) = table.run_at(*first) else {
                left = &left[1..];
                continue;
            };
            let end = run.reservation.address() + run.reservation.bytes();
            let (here, beyond) = left.split_at(left.partition_point(|place| *place < end));
            left = beyond;
            let unbound = self.unbind(run, here);
            let let_go = match run.owner {
                // Its addresses go by themselves once nothing is there.
                Owner::Pool => Ok(()),
                _ => self.let_go_of_held(run),
            };
            match unbound.and_then(|bytes| let_go.map(|()| bytes)) {
                Ok(bytes) => freed += bytes,
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(freed), Err)
    }
}

/// What a chunk takes of the device's limit: memory of the host takes none.
pub(super) fn charged(spec: ChunkSpec, bytes: u64) -> u64 {
    match spec.location {
        Location::Device => bytes,
        Location::HostNuma(_) => 0,
    }
}

/// Unmaps neighbours by one call; on failure they are as before.
pub(super) fn unmap(run: &mut Run, places: &[u64]) -> Result<()> {
    let take = |place: &u64| run.extents.get_mut(place)?.mapping.take();
    let mappings = places.iter().filter_map(take).collect();
    Mapping::unmap_all(mappings).map_err(|(mappings, error): (Vec<Mapping>, Error)| {
        for mapping in mappings {
            if let Some(extent) = run.extents.get_mut(&mapping.address()) {
                extent.mapping = Some(mapping);
            }
        }
        error
    })
}

/// The stretches of a list of places that lie one behind the other, all of them mapped.
pub(super) struct Neighbours;

impl Neighbours {
    pub(super) fn of<'a>(run: &Run, places: &'a [u64]) -> Vec<&'a [u64]> {
        let mapped_end = |place: u64| {
            let extent = run.extents.get(&place)?;
            extent.mapping.as_ref().map(|_| place + extent.bytes)
        };
        let mut stretches = Vec::new();
        let mut at = 0;
        while at < places.len() {
            let begin = at;
            let mut end = mapped_end(places[at]);
            at += 1;
            while end.is_some() && at < places.len() && end == Some(places[at]) {
                end = mapped_end(places[at]);
                if end.is_none() {
                    break;
                }
                at += 1;
            }
            if mapped_end(places[begin]).is_some() {
                stretches.push(&places[begin..at]);
            }
        }
        stretches
    }
}
