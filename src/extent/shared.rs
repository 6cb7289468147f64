//! Chunks that processes share: those of ours that are exported, and those of others that are mapped here.
//! What comes from elsewhere is kept apart from what is ours: it counts nowhere and never sleeps or moves,
//! and whoever imported it says when it goes.

use super::table::{Extent, Extents, Table};
use crate::config::value::Location;
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::gpu::{Chunk, Device, FabricHandle, Mapping, Reservation, Share};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

const IMPORT: &str = "import";

/// Of more exports those that are over are forgotten.
const MANY: usize = 1024;

/// By what another process comes to a chunk.
#[derive(Debug)]
pub enum Handle<F> {
    /// A file descriptor, which holds the chunk's memory while it is open.
    Fd(F),
    /// A handle that is good on every host of an NVLink domain.
    Fabric(FabricHandle),
}

/// A chunk to be had by another process, and a place in it.
#[derive(Debug)]
pub struct Shared<F> {
    /// What stands for the chunk.
    pub handle: Handle<F>,
    /// Its length.
    pub chunk_bytes: u64,
    /// How far in it the place lies.
    pub offset: u64,
    /// The device, as the process that exported it counts them.
    pub device: i32,
    /// The number of the export in its process; 0 of one that was received.
    pub serial: u64,
}

impl<F: AsFd> Shared<F> {
    /// The same, its descriptor lent.
    pub fn lend(&self) -> Shared<BorrowedFd<'_>> {
        Shared {
            handle: match &self.handle {
                Handle::Fd(fd) => Handle::Fd(fd.as_fd()),
                Handle::Fabric(handle) => Handle::Fabric(*handle),
            },
            chunk_bytes: self.chunk_bytes,
            offset: self.offset,
            device: self.device,
            serial: self.serial,
        }
    }
}

/// Chunks of another process, mapped as a whole, one behind the other.
struct Import {
    /// What was given out: an address in the first.
    address: u64,
    // Before the chunks and the range that they are in.
    mappings: Vec<Mapping>,
    chunks: Vec<Chunk>,
    reservation: Reservation,
}

impl Import {
    /// Takes it down as far as it goes; can be called again after a failure.
    fn take_down(&mut self) -> Result<()> {
        let mappings = std::mem::take(&mut self.mappings);
        Mapping::unmap_all(mappings).map_err(|(mappings, error)| {
            self.mappings = mappings;
            error
        })?;
        self.chunks.iter_mut().try_for_each(Chunk::release)?;
        self.reservation.free()
    }
}

/// The places that exports pin, by their numbers. An extent names those that pin it, since another one may have
/// come to be in its place.
#[derive(Default)]
pub(super) struct Exports(BTreeMap<u64, u64>);

/// What other processes share with this one.
#[derive(Default)]
pub(super) struct Imports {
    /// By first address of their mappings.
    live: BTreeMap<u64, Import>,
    /// Of imports that failed, what could not be undone; the next one tries again.
    left: Vec<Import>,
}

impl Table {
    /// The extent at a place, if an export pins it.
    fn exported(&mut self, serial: u64, place: u64) -> Option<&mut Extent> {
        let extent = self.run_at(place)?.extents.get_mut(&place)?;
        extent.exports.contains(&serial).then_some(extent)
    }
}

impl Imports {
    fn base_of(&self, address: u64) -> Option<u64> {
        let (base, import) = self.live.range(..=address).next_back()?;
        (import.address == address).then_some(*base)
    }
}

impl Extents {
    /// Exports the chunk that an address lies in as number `serial` of the process, and pins it until
    /// [`Extents::close_export`].
    pub fn export(&self, address: u64, serial: u64) -> Result<Shared<OwnedFd>> {
        const OPERATION: &str = "export";
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        let is_there = |(place, bytes): (u64, u64)| address - place < bytes;
        let run = table.run_at(address);
        let found = run.and_then(|run| {
            let (place, extent) = run.extents.range_mut(..=address).next_back()?;
            is_there((*place, extent.bytes)).then_some((*place, extent, run.spec))
        });
        let Some((place, extent, spec)) = found else {
            return Err(Error::new(Status::NotOwned, OPERATION)
                .detail(format!("nothing is behind {address:#x}")));
        };
        let chunk = match (&extent.chunk, &extent.mapping) {
            (Some(chunk), Some(_)) if !extent.alias => chunk,
            _ => {
                return Err(Error::invalid(
                    OPERATION,
                    format!("memory at {address:#x} sleeps, so there is nothing to share"),
                )
                .advice("Wake it first"));
            }
        };
        let pins = (extent.pins.checked_add(1))
            .ok_or_else(|| Error::new(Status::Busy, OPERATION).detail("it is pinned too often"))?;
        let handle = match spec.share {
            Share::Fd => Handle::Fd(chunk.export_fd()?),
            Share::Fabric => Handle::Fabric(chunk.export_fabric()?),
            Share::None => {
                return Err(Error::new(Status::Unsupported, OPERATION)
                    .detail(format!(
                        "memory at {address:#x} was made so that no other process can have it"
                    ))
                    .advice("Memory of the device can be exported where the driver can; the host's cannot"));
            }
        };
        let chunk_bytes = chunk.bytes();
        self.set_pins(extent, pins);
        extent.exports.push(serial);
        let exports = &mut lock(&self.exports).0;
        exports.insert(serial, place);
        if exports.len() > MANY {
            // Those of memory that was freed need no close.
            exports.retain(|serial, place| table.exported(*serial, *place).is_some());
        }
        tracing::debug!("{place:#x}: {chunk_bytes} bytes exported");
        Ok(Shared {
            handle,
            chunk_bytes,
            offset: address - place,
            device: self.device.ordinal(),
            serial,
        })
    }

    /// Undoes the pin of one [`Extents::export`]; whether there was one. The pins of others stay, also where they
    /// have come to have the same address.
    pub fn close_export(&self, serial: u64) -> bool {
        let mut table = lock(&self.table);
        let place = lock(&self.exports).0.remove(&serial);
        let Some(extent) = place.and_then(|place| table.exported(serial, place)) else {
            return false;
        };
        extent.exports.retain(|other| *other != serial);
        self.set_pins(extent, extent.pins.saturating_sub(1));
        true
    }

    /// Maps a chunk that was exported, here or in another process; the address that its place has here.
    pub fn import(&self, shared: &Shared<BorrowedFd<'_>>) -> Result<u64> {
        self.import_all([Ok(shared.lend())])
    }

    /// Maps chunks that were exported one behind the other; the address that the place in the first has here.
    /// Each is taken in, and its descriptor closed, before the next is asked for.
    pub fn import_all<F: AsFd>(
        &self,
        parts: impl IntoIterator<Item = Result<Shared<F>>>,
    ) -> Result<u64> {
        let _guard = self.device.enter()?;
        let granularity = self.device.granularity()?;
        let (mut chunks, mut first) = (Vec::new(), None);
        for part in parts {
            let part = part?;
            check_lengths(&part.lend(), first.is_none(), granularity)?;
            first.get_or_insert(part.offset);
            let chunk = self.take_in(&part.lend());
            chunks.push(chunk.map_err(|error| not_as_exported(error, part.chunk_bytes))?);
        }
        let Some(offset) = first else {
            return Err(Error::invalid(IMPORT, "there is no chunk to import"));
        };
        let bytes = chunks.iter().map(Chunk::bytes).sum();
        let mut imports = lock(&self.imports);
        imports.left.retain_mut(|left| left.take_down().is_err());
        let reservation = Reservation::new(&self.device, bytes, granularity)?;
        let base = reservation.address();
        let mut import = Import {
            address: base + offset,
            mappings: Vec::with_capacity(chunks.len()),
            chunks,
            reservation,
        };
        if let Err(error) = self.map(&mut import) {
            if let Err(error) = import.take_down() {
                self.warn_of_leftovers(&error);
                imports.left.push(import);
            }
            return Err(error);
        }
        let address = import.address;
        imports.live.insert(base, import);
        tracing::debug!("{base:#x}: {bytes} bytes imported");
        Ok(address)
    }

    fn take_in(&self, shared: &Shared<BorrowedFd<'_>>) -> Result<Chunk> {
        let device: &Arc<Device> = &self.device;
        match &shared.handle {
            Handle::Fd(fd) => Chunk::import_fd(device, *fd, shared.chunk_bytes),
            Handle::Fabric(handle) => Chunk::import_fabric(device, *handle, shared.chunk_bytes),
        }
    }

    fn map(&self, import: &mut Import) -> Result<()> {
        let mut at = import.reservation.address();
        for chunk in &import.chunks {
            let mapping = Mapping::new(&self.device, at, chunk)
                .map_err(|error| not_as_exported(error, chunk.bytes()))?;
            import.mappings.push(mapping);
            at += chunk.bytes();
        }
        let peers = self.peers();
        let allowed = match Mapping::allow_all(&import.mappings, &peers, Location::Device) {
            Err(error) if !peers.is_empty() => {
                Mapping::allow_all(&import.mappings, &[], Location::Device)
                    .map(|()| self.warn_of_peers(&error))
            }
            outcome => outcome,
        };
        allowed.map_err(|error| {
            error.advice(format!(
                "Import it on the device that has it, or on one that reaches it; that was device {}",
                self.device.ordinal()
            ))
        })
    }

    pub(super) fn admit_peer_to_imports(&self, peer: i32) {
        let imports = lock(&self.imports);
        for mapping in (imports.live.values()).flat_map(|import| &import.mappings) {
            if let Err(error) = mapping.allow(&[peer], Location::Device) {
                self.warn_of_peers(&error);
            }
        }
    }

    /// Whether [`Extents::import`] gave out an address that is not closed yet.
    pub fn has_import(&self, address: u64) -> bool {
        lock(&self.imports).base_of(address).is_some()
    }

    /// Unmaps what was imported at an address; the caller vouches that no work uses it any more. After a
    /// failure it can be called again. Says whether anything was there.
    pub fn close_import(&self, address: u64) -> Result<bool> {
        let _guard = self.device.enter()?;
        let mut imports = lock(&self.imports);
        let Some(base) = imports.base_of(address) else {
            return Ok(false);
        };
        if let Some(import) = imports.live.get_mut(&base) {
            import.take_down()?;
        }
        imports.live.remove(&base);
        tracing::debug!("{base:#x}: no longer imported");
        Ok(true)
    }
}

/// Only of the first chunk may something be left out.
fn check_lengths(part: &Shared<BorrowedFd<'_>>, is_first: bool, granularity: u64) -> Result<()> {
    let (bytes, offset) = (part.chunk_bytes, part.offset);
    let is_whole = offset == 0 || (is_first && offset < bytes);
    if bytes == 0 || bytes % granularity != 0 || !is_whole {
        return Err(Error::invalid(
            IMPORT,
            format!(
                "offset {offset} in a chunk of {bytes} bytes, of which chunks have a multiple of {granularity}"
            ),
        ));
    }
    Ok(())
}

/// What the driver says of a handle or a length that are not those of an export is not much.
fn not_as_exported(error: Error, bytes: u64) -> Error {
    if error.code().is_none() || error.status() == Status::OutOfMemory {
        return error;
    }
    error
        .also(&format!("the chunk was said to have {bytes} bytes"))
        .advice("Handle and length must be as hbm_export gave them; a file descriptor serves its own machine only")
}
