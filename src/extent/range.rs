//! Ranges of pools: addresses reserved in advance, backed where and when the pool wants it. A chunk
//! moves to another address in two steps, so that running work is not disturbed: it is mapped there
//! as well, and unmapped where it was once the work that used that address is done.

use super::backing::Backing;
use super::table::{Extent, Extents, Owner, Run, Table};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::gpu::{ChunkSpec, Reservation};
use std::collections::BTreeMap;

/// So often the driver may name addresses that are a range's already.
const MOST_TAKEN: usize = 8;

/// What a pool's range is to be.
#[derive(Clone, Debug)]
pub struct RangeSpec {
    /// Its length, a multiple of the granularity.
    pub bytes: u64,
    /// Alignment of its address, a power of two.
    pub align: u64,
    /// The kind of chunks that back it.
    pub chunk: ChunkSpec,
    /// The tag of what lives in it.
    pub tag: TagId,
}

impl Extents {
    /// Reserves addresses for a pool, with nothing behind them.
    pub fn reserve(&self, spec: &RangeSpec) -> Result<u64> {
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        let reservation = self.reserve_beside(&table, spec.bytes, spec.align)?;
        let address = reservation.address();
        let run = Run {
            reservation,
            extents: BTreeMap::new(),
            spec: spec.chunk,
            owner: Owner::Pool,
            tag: spec.tag,
            of_tag: self.gauge_of(spec.tag),
            cell: None,
            is_leaving: false,
        };
        table.runs.insert(address, run);
        tracing::debug!("{address:#x}: {} bytes of addresses reserved", spec.bytes);
        Ok(address)
    }

    /// Backs the stretch of a pool's range that begins at `address`, where nothing may be, with new
    /// chunks of `sizes` (bytes, multiples of the granularity), one behind the other. All or
    /// nothing: on failure, as when memory has run out, everything is as before.
    pub fn back(&self, address: u64, sizes: &[u64]) -> Result<()> {
        const OPERATION: &str = "back addresses";
        let bytes = total(OPERATION, sizes.iter().copied())?;
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        table.hole(OPERATION, address, bytes)?;
        let backings = sizes.iter().map(|bytes| Backing::New(*bytes)).collect();
        self.fill(&mut table, address, bytes, backings)?;
        tracing::debug!("{address:#x}: {bytes} bytes in {} new chunks", sizes.len());
        Ok(())
    }

    /// Maps the chunks whose places begin at the addresses `from`, of any pool's ranges of this
    /// device with the same kind of chunks, one behind the other from `to` on, where nothing may be.
    /// The same bytes are then seen at both; the old places are aliases from here on, which may only
    /// be dropped. All or nothing.
    pub fn alias(&self, from: &[u64], to: u64) -> Result<()> {
        const OPERATION: &str = "map chunks elsewhere";
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        check_distinct(OPERATION, from)?;
        let mut chunks = Vec::with_capacity(from.len());
        let mut specs = Vec::with_capacity(from.len());
        for place in from {
            let (extent, spec) = table.home(OPERATION, *place)?;
            chunks.extend(extent.chunk.clone());
            specs.push(spec);
        }
        let bytes = total(OPERATION, chunks.iter().map(|chunk| chunk.bytes()))?;
        let run = table.hole(OPERATION, to, bytes)?;
        if let Some(at) = specs.iter().position(|spec| *spec != run.spec) {
            let detail = format!("the chunk at {:#x} is of another kind", from[at]);
            return Err(refused(OPERATION, detail));
        }
        let backings = chunks.into_iter().map(Backing::Moved).collect();
        self.fill(&mut table, to, bytes, backings)?;
        for place in from {
            table.set_alias(*place);
        }
        if let Some(run) = table.run_at(to) {
            run.of_tag.add(bytes);
        }
        tracing::debug!("{to:#x}: {bytes} bytes of {} moved chunks", from.len());
        Ok(())
    }

    /// Unmaps the aliases that begin at `places`: the caller vouches that no work uses these
    /// addresses any more. The chunks live on where they have moved to. An address where nothing is
    /// (any more) is fine, so that this can be called again after a failure.
    pub fn drop_aliases(&self, places: &[u64]) -> Result<()> {
        self.take_down("drop aliases", places, true).map(|_| ())
    }

    /// Unmaps and releases the chunks whose places begin at `places`: the caller vouches that no
    /// work uses these addresses any more. An address where nothing is (any more) is fine, so that
    /// this can be called again after a failure. Returns the bytes given back to the driver: those
    /// of a chunk that still has an alias go with that.
    pub fn unback(&self, places: &[u64]) -> Result<u64> {
        self.take_down("give back chunks", places, false)
    }

    /// Frees the addresses of a pool's range; refused while anything is mapped there. After a
    /// failure it can be called again.
    pub fn release(&self, range: u64) -> Result<()> {
        const OPERATION: &str = "free addresses";
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        match table.runs.get_mut(&range) {
            None => return Ok(()),
            Some(run) if run.owner != Owner::Pool => return Err(not_a_pools(OPERATION, range)),
            Some(run) => {
                if let Some(place) = run.extents.keys().next() {
                    let detail = format!("{place:#x} is still backed");
                    return Err(refused(OPERATION, detail));
                }
                run.reservation.free()?;
            }
        }
        table.runs.remove(&range);
        tracing::debug!("{range:#x}: addresses freed");
        Ok(())
    }

    /// Binds a hole; what cannot be undone after a failure is tried again by later operations.
    pub(super) fn fill(
        &self,
        table: &mut Table,
        address: u64,
        bytes: u64,
        backings: Vec<Backing>,
    ) -> Result<()> {
        let peers = self.peers();
        let Some(run) = table.run_at(address) else {
            return Ok(());
        };
        run.reservation.regain()?;
        let outcome = self.bind(run, address, backings, &peers);
        let made = run.extents.range_mut(address..address + bytes);
        if outcome.is_ok() {
            made.for_each(|(_, extent)| extent.alias = false);
            return Ok(());
        }
        let made: Vec<u64> = made.map(|(place, _)| *place).collect();
        let undone = (self.unbind(run, &made)).and_then(|_| self.let_go_of_held(run));
        if let Err(error) = undone {
            self.warn_of_leftovers(&error);
            let stuck = made
                .into_iter()
                .filter(|place| run.extents.contains_key(place));
            let stuck: Vec<u64> = stuck.collect();
            table.left_places.extend(stuck);
        }
        outcome
    }

    /// Those of `places` that are mapped. After a failure of [`Extents::unback`] these can be used as
    /// before; the others cannot, and what is left of them goes with a later operation.
    pub fn still_mapped(&self, places: &[u64]) -> Vec<u64> {
        let mut table = lock(&self.table);
        let mut is_mapped = |place: &u64| {
            let run = table.run_at(*place);
            let extent = run.and_then(|run| run.extents.get(place));
            extent.is_some_and(|extent| extent.mapping.is_some())
        };
        places
            .iter()
            .copied()
            .filter(|place| is_mapped(place))
            .collect()
    }

    fn take_down(&self, operation: &'static str, places: &[u64], alias: bool) -> Result<u64> {
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        self.sweep_table(&mut table);
        for place in places {
            table.check_place(operation, *place, alias)?;
        }
        let outcome = self.vacate(&mut table, places);
        if outcome.is_err() {
            table.leave_unmapped(places);
        }
        outcome
    }
}

impl Extents {
    /// Addresses that no range of the table has, not even one that lost its own for a while.
    pub(super) fn reserve_beside(
        &self,
        table: &Table,
        bytes: u64,
        align: u64,
    ) -> Result<Reservation> {
        // Kept until there is one, so that the driver names others.
        let mut taken = Vec::new();
        loop {
            let reservation = Reservation::new(&self.device, bytes, align)?;
            match table.is_taken(reservation.address(), reservation.bytes()) {
                true if taken.len() < MOST_TAKEN => taken.push(reservation),
                true => {
                    return Err(Error::new(Status::Busy, "reserve addresses")
                        .bytes(bytes)
                        .detail("the driver names those of memory that sleeps, which lost them")
                        .advice("Wake what sleeps, then try again"));
                }
                false => return Ok(reservation),
            }
        }
    }
}

impl Table {
    /// Places that are mapped no more and yet hold a chunk are tried again by later operations.
    pub(super) fn leave_unmapped(&mut self, places: &[u64]) {
        for place in places {
            let run = self.run_at(*place);
            let extent = run.and_then(|run| run.extents.get(place));
            let is_left = extent.is_some_and(|extent| {
                extent.mapping.is_none() && (extent.chunk.is_some() || extent.guard.is_some())
            });
            if is_left && !self.left_places.contains(place) {
                self.left_places.push(*place);
            }
        }
    }

    /// A pool's range that holds a whole stretch, nothing of which is backed.
    fn hole(&mut self, operation: &'static str, address: u64, bytes: u64) -> Result<&mut Run> {
        let end = address.checked_add(bytes);
        let run = self.run_at(address).filter(|run| run.owner == Owner::Pool);
        let run = run.ok_or_else(|| not_a_pools(operation, address))?;
        let last = run.reservation.address() + run.reservation.bytes();
        let Some(end) = end.filter(|end| *end <= last) else {
            let detail = format!("{bytes} bytes from {address:#x} reach past the range");
            return Err(refused(operation, detail));
        };
        match run.extents.range(..end).next_back() {
            Some((place, extent)) if place + extent.bytes > address => {
                let detail = format!("{place:#x} is backed by {} bytes", extent.bytes);
                Err(refused(operation, detail))
            }
            _ => Ok(run),
        }
    }

    /// The place that begins at an address, where its chunk is at home, and the kind of that.
    fn home(&mut self, operation: &'static str, place: u64) -> Result<(&Extent, ChunkSpec)> {
        let run = self.run_at(place).filter(|run| run.owner == Owner::Pool);
        let run = run.ok_or_else(|| not_a_pools(operation, place))?;
        match run.extents.get(&place) {
            Some(extent) if extent.mapping.is_some() && !extent.alias => Ok((extent, run.spec)),
            Some(_) => {
                let detail = format!("the chunk at {place:#x} has moved or is about to go");
                Err(refused(operation, detail))
            }
            None => Err(refused(operation, format!("no chunk begins at {place:#x}"))),
        }
    }

    /// Whether a place may be taken down: it is an alias or not as `alias` says, or it is not there.
    fn check_place(&mut self, operation: &'static str, place: u64, alias: bool) -> Result<()> {
        let Some(run) = self.run_at(place) else {
            return Ok(());
        };
        if run.owner != Owner::Pool {
            return Err(not_a_pools(operation, place));
        }
        let Some((begin, extent)) = run.extents.range(..=place).next_back() else {
            return Ok(());
        };
        let detail = match place - begin {
            0 if extent.alias == alias => return Ok(()),
            0 if alias => format!("the chunk at {place:#x} is at home there"),
            0 => format!("the chunk at {place:#x} has moved"),
            inside if inside < extent.bytes => format!("{place:#x} is inside a chunk"),
            _ => return Ok(()),
        };
        Err(refused(operation, detail))
    }

    /// The chunk at a place has moved to another.
    fn set_alias(&mut self, place: u64) {
        let Some(run) = self.run_at(place) else {
            return;
        };
        if let Some(extent) = run.extents.get_mut(&place).filter(|extent| !extent.alias) {
            extent.alias = true;
            run.of_tag.sub(extent.bytes);
        }
    }
}

fn total(operation: &'static str, sizes: impl Iterator<Item = u64>) -> Result<u64> {
    let mut sum = 0u64;
    for bytes in sizes {
        let next = sum.checked_add(bytes).filter(|_| bytes > 0);
        sum = next.ok_or_else(|| refused(operation, format!("a chunk of {bytes} bytes")))?;
    }
    Ok(sum)
}

fn check_distinct(operation: &'static str, places: &[u64]) -> Result<()> {
    let mut sorted = places.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(refused(operation, format!("{:#x} is named twice", pair[0]))),
        None => Ok(()),
    }
}

fn refused(operation: &'static str, detail: String) -> Error {
    Error::new(Status::InvalidArgument, operation).detail(detail)
}

fn not_a_pools(operation: &'static str, address: u64) -> Error {
    refused(operation, format!("{address:#x} is in no range of a pool"))
}
