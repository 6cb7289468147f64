//! The table of extents: for every reserved range, the chunks that back it piece by piece.
//!
//! Driver calls are made under the table's lock: the driver serialises mapping anyway, and so a
//! device that joins as a peer misses no extent.

use crate::core::gauge::{Gauge, Reading};
use crate::core::sync::lock;
use crate::error::{Error, Result, Warning};
use crate::gpu::{Chunk, ChunkSpec, Device, Fence, Mapping, Reservation};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Where the contents of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// In a chunk mapped at the extent's address.
    Mapped,
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
}

/// One piece of a range, backed by one chunk or none.
struct Extent {
    address: u64,
    bytes: u64,
    chunk: Option<Chunk>,
    mapping: Option<Mapping>,
}

impl Extent {
    fn residency(&self) -> Residency {
        match self.mapping {
            Some(_) => Residency::Mapped,
            None => Residency::Discarded,
        }
    }
}

/// A reserved range and its extents, which cover it without gaps.
struct Run {
    reservation: Reservation,
    extents: Vec<Extent>,
    spec: ChunkSpec,
    owner: Owner,
    tag: Option<Arc<str>>,
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
    /// Who decides about it.
    pub owner: Owner,
    /// The tag of what lives in it.
    pub tag: Option<Arc<str>>,
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
    /// Who decides about it.
    pub owner: Owner,
    /// Its tag.
    pub tag: Option<Arc<str>>,
}

/// The extents of one device.
pub struct Extents {
    device: Arc<Device>,
    runs: Mutex<BTreeMap<u64, Run>>,
    /// Bytes of physical memory held.
    physical: Gauge,
    /// Ranges that a failed build could not take down again; the next build or trim does.
    leftovers: Mutex<Vec<u64>>,
}

impl Extents {
    pub(super) fn new(device: Arc<Device>) -> Extents {
        Extents {
            device,
            runs: Mutex::default(),
            physical: Gauge::default(),
            leftovers: Mutex::default(),
        }
    }

    /// Reserves a range and backs it with new chunks. On failure nothing of it is left.
    pub fn build(&self, spec: &RunSpec) -> Result<u64> {
        let _guard = self.device.enter()?;
        self.sweep();
        let mut runs = lock(&self.runs);
        let peers = self.device.active_peers().unwrap_or_else(|error| {
            self.warn_of_peers(&error);
            Vec::new()
        });
        let reservation = Reservation::new(&self.device, spec.bytes, spec.align)?;
        let address = reservation.address();
        let mut run = Run {
            extents: pieces(address, spec.bytes, spec.chunk_bytes),
            reservation,
            spec: spec.chunk,
            owner: spec.owner,
            tag: spec.tag.clone(),
        };
        let backed = run.extents.iter_mut().try_for_each(|extent| {
            let chunk = Chunk::create(&self.device, extent.bytes, spec.chunk)?;
            self.rebind(extent, Some(chunk), &peers, &Fence::DONE)
        });
        match backed {
            Ok(()) => {
                tracing::debug!(
                    "{address:#x}: {} bytes mapped in {} chunks",
                    spec.bytes,
                    run.extents.len()
                );
                runs.insert(address, run);
                Ok(address)
            }
            Err(error) => {
                // Nothing has used the range yet. What cannot be undone now stays in the table.
                if self.dismantle(&mut run).is_err() {
                    runs.insert(address, run);
                    lock(&self.leftovers).push(address);
                }
                Err(error)
            }
        }
    }

    /// Unmaps a range that no work uses any more, releases its chunks and frees its addresses.
    /// After a failure it can be called again and carries on.
    pub fn retire(&self, address: u64) -> Result<()> {
        let _guard = self.device.enter()?;
        let mut runs = lock(&self.runs);
        let Some(run) = runs.get_mut(&address) else {
            return Ok(());
        };
        self.dismantle(run)?;
        runs.remove(&address);
        tracing::debug!("{address:#x}: unmapped");
        Ok(())
    }

    /// Takes down what failed builds left behind.
    pub fn sweep(&self) {
        let left = std::mem::take(&mut *lock(&self.leftovers));
        for address in left {
            if self.retire(address).is_err() {
                lock(&self.leftovers).push(address);
            }
        }
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
        for run in lock(&self.runs).values() {
            let mappings = run.extents.iter().filter_map(|e| e.mapping.as_ref());
            for mapping in mappings {
                if let Err(error) = mapping.allow(&[peer], run.spec.location) {
                    self.warn_of_peers(&error);
                }
            }
        }
    }

    fn warn_of_peers(&self, error: &Error) {
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

    /// Starts the peak of [`Extents::physical`] again.
    pub fn reset_peak(&self) {
        self.physical.reset_peak();
    }

    /// The table as it is now.
    pub fn list(&self) -> Vec<ExtentInfo> {
        let runs = lock(&self.runs);
        runs.values()
            .flat_map(|run| {
                run.extents.iter().map(|extent| ExtentInfo {
                    address: extent.address,
                    bytes: extent.bytes,
                    residency: extent.residency(),
                    owner: run.owner,
                    tag: run.tag.clone(),
                })
            })
            .collect()
    }

    /// Finds whatever contradicts itself in the table.
    pub fn audit(&self) -> std::result::Result<(), String> {
        let runs = lock(&self.runs);
        let mut held = 0;
        let mut end_before = 0;
        for (address, run) in runs.iter() {
            if *address < end_before {
                return Err(format!("the range at {address:#x} overlaps the one before"));
            }
            let mut next = *address;
            for extent in &run.extents {
                if extent.address != next {
                    return Err(format!("a gap or overlap at {next:#x}"));
                }
                if extent.mapping.is_some() && extent.chunk.is_none() {
                    return Err(format!("{next:#x} is mapped without a chunk"));
                }
                held += extent.chunk.as_ref().map_or(0, Chunk::bytes);
                next += extent.bytes;
            }
            end_before = address + run.reservation.bytes();
            if next != end_before {
                return Err(format!("the range at {address:#x} is not covered"));
            }
        }
        let counted = self.physical().now;
        if held != counted {
            return Err(format!("{held} bytes in chunks, {counted} counted"));
        }
        Ok(())
    }

    /// Changes what backs an extent: to `backing`, or to nothing. `after` must be done: what the
    /// extent held may be used until then.
    fn rebind(
        &self,
        extent: &mut Extent,
        backing: Option<Chunk>,
        peers: &[i32],
        after: &Fence,
    ) -> Result<()> {
        debug_assert!(
            after.is_done().unwrap_or(true),
            "rebound under running work"
        );
        if let Some(mapping) = extent.mapping.take() {
            if let Err((mapping, error)) = mapping.unmap() {
                extent.mapping = Some(mapping);
                return Err(error);
            }
        }
        if let Some(old) = &mut extent.chunk {
            old.release()?;
            self.physical.sub(old.bytes());
            extent.chunk = None;
        }
        let Some(chunk) = backing else {
            return Ok(());
        };
        self.physical.add(chunk.bytes());
        let chunk = extent.chunk.insert(chunk);
        let mapping = Mapping::new(&self.device, extent.address, chunk)?;
        let location = chunk.spec().location;
        let mapping = extent.mapping.insert(mapping);
        match mapping.allow(peers, location) {
            // A peer that cannot reach the memory must not keep its own device from it.
            Err(error) if !peers.is_empty() => {
                mapping.allow(&[], location)?;
                self.warn_of_peers(&error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn dismantle(&self, run: &mut Run) -> Result<()> {
        for extent in &mut run.extents {
            self.rebind(extent, None, &[], &Fence::DONE)?;
        }
        run.reservation.free()
    }
}

fn pieces(address: u64, bytes: u64, chunk_bytes: u64) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut offset = 0;
    while offset < bytes {
        let piece = chunk_bytes.min(bytes - offset);
        extents.push(Extent {
            address: address + offset,
            bytes: piece,
            chunk: None,
            mapping: None,
        });
        offset += piece;
    }
    extents
}
