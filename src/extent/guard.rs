//! Zeros behind addresses whose memory sleeps, for programs that read where they should not: a chunk of
//! zeros is mapped over and over, for reading only where the driver can forbid more. It costs a mapping for
//! every 32 MiB, and one for every granule of what is left (some 24 us each), at the sleep and at the wake.

use super::table::{Extents, Run};
use crate::config::value::Location;
use crate::core::sync::lock;
use crate::error::{Error, Result};
use crate::gpu::{Chunk, ChunkSpec, Mapping, OwnedStream};
use std::sync::{Arc, Weak};

/// Fewer mappings, and still little beside what sleeps.
const LONG: u64 = 32 << 20;

/// The chunks of zeros of a device; given back with the last place that they are mapped at.
pub(super) struct Zeros {
    short: Chunk,
    long: Chunk,
}

/// Zeros behind one place.
pub(super) struct Guard {
    mappings: Vec<Mapping>,
    zeros: Arc<Zeros>,
}

impl Extents {
    /// Maps zeros behind places that have no chunk; others are left alone. On failure some have them.
    pub fn guard(&self, places: &[u64]) -> Result<()> {
        let _guard = self.device.enter()?;
        let mut table = lock(&self.table);
        for place in places {
            let Some(run) = table.run_at(*place) else {
                continue;
            };
            let is_bare = run.extents.get(place).is_some_and(|extent| {
                extent.chunk.is_none() && extent.mapping.is_none() && extent.guard.is_none()
            });
            if is_bare {
                self.guard_place(run, *place)?;
            }
        }
        Ok(())
    }

    fn guard_place(&self, run: &mut Run, place: u64) -> Result<()> {
        let Some(bytes) = run.extents.get(&place).map(|extent| extent.bytes) else {
            return Ok(());
        };
        let known = lock(&self.zeros).upgrade();
        let is_new = known.is_none();
        let zeros = match known {
            Some(zeros) => zeros,
            None => Arc::new(self.make_zeros(run.spec)?),
        };
        let mut guard = Guard {
            mappings: Vec::new(),
            zeros: zeros.clone(),
        };
        let outcome = guard.cover(self, place, bytes, &zeros, is_new);
        if let Some(extent) = run.extents.get_mut(&place) {
            extent.guard = Some(guard);
        }
        match outcome {
            Ok(()) => {
                if is_new {
                    *lock(&self.zeros) = Arc::downgrade(&zeros);
                }
                Ok(())
            }
            Err(error) => {
                // Zeros may still be on their way there. If nobody can say, they stay where they are.
                let settled = self.device.synchronize();
                if let Err(second) = settled.and_then(|()| self.strip(run, place)) {
                    self.warn_of_leftovers(&second);
                }
                Err(error)
            }
        }
    }

    fn make_zeros(&self, spec: ChunkSpec) -> Result<Zeros> {
        let plain = ChunkSpec::plain(Location::Device);
        let granule = spec.granularity(&self.device)?;
        Ok(Zeros {
            short: Chunk::create(&self.device, granule, plain)?,
            long: Chunk::create(&self.device, LONG.next_multiple_of(granule), plain)?,
        })
    }

    /// Gives chunks back that nothing is counted for. Those that cannot be are tried again by later operations.
    pub(super) fn give_up_chunks(&self, chunks: impl IntoIterator<Item = Chunk>) {
        let is_left = |chunk: &mut Chunk| chunk.release().is_err();
        let left = chunks
            .into_iter()
            .filter_map(|mut chunk| is_left(&mut chunk).then_some(chunk));
        lock(&self.left_chunks).extend(left);
    }

    /// Takes zeros away from behind a place.
    pub(super) fn strip(&self, run: &mut Run, place: u64) -> Result<()> {
        let Some(extent) = run.extents.get_mut(&place) else {
            return Ok(());
        };
        let Some(mut guard) = extent.guard.take() else {
            return Ok(());
        };
        match Mapping::unmap_all(std::mem::take(&mut guard.mappings)) {
            Ok(()) => {
                if let Some(zeros) = Arc::into_inner(guard.zeros) {
                    self.give_up_chunks([zeros.short, zeros.long]);
                }
                Ok(())
            }
            Err((mappings, error)) => {
                guard.mappings = mappings;
                extent.guard = Some(guard);
                Err(error)
            }
        }
    }
}

impl Guard {
    fn cover(
        &mut self,
        extents: &Extents,
        place: u64,
        bytes: u64,
        zeros: &Zeros,
        is_new: bool,
    ) -> Result<()> {
        let device = &extents.device;
        let (mut at, end) = (place, place + bytes);
        while at < end {
            let chunk = match end - at >= zeros.long.bytes() {
                true => &zeros.long,
                false => &zeros.short,
            };
            self.mappings.push(Mapping::new(device, at, chunk)?);
            at += chunk.bytes();
        }
        if is_new {
            self.clear(extents, zeros)?;
        }
        let allow = |peers: &[i32]| match Mapping::allow_reading(&self.mappings, peers) {
            // Drivers that know no memory that can only be read.
            Err(_) => Mapping::allow_all(&self.mappings, peers, Location::Device),
            done => done,
        };
        let peers = extents.peers();
        match allow(&peers) {
            // A peer that cannot reach zeros must not keep memory from sleeping.
            Err(error) if !peers.is_empty() => {
                allow(&[])?;
                extents.warn_of_peers(&error);
                Ok(())
            }
            done => done,
        }
    }

    /// Fills the chunks, which were just made, where they are mapped first.
    fn clear(&self, extents: &Extents, zeros: &Zeros) -> Result<()> {
        let device = &extents.device;
        Mapping::allow_all(&self.mappings, &[], Location::Device)?;
        let stream = OwnedStream::create(device)?;
        let mut is_cleared = [false, false];
        for mapping in &self.mappings {
            let is_long = usize::from(mapping.bytes() == zeros.long.bytes());
            if !is_cleared[is_long] {
                device.fill(mapping.address(), 0, mapping.bytes(), stream.stream())?;
                is_cleared[is_long] = true;
            }
        }
        stream.stream().synchronize(device)?;
        match is_cleared {
            [true, true] => Ok(()),
            // The other one is cleared at an address of its own.
            [is_short, _] => {
                self.clear_apart(extents, if is_short { &zeros.long } else { &zeros.short })
            }
        }
    }

    fn clear_apart(&self, extents: &Extents, chunk: &Chunk) -> Result<()> {
        let device = &extents.device;
        let mut range = crate::gpu::Reservation::new(device, chunk.bytes(), 0)?;
        let mapping = Mapping::new(device, range.address(), chunk)?;
        let cleared = mapping.allow(&[], Location::Device).and_then(|()| {
            let stream = OwnedStream::create(device)?;
            device.fill(mapping.address(), 0, mapping.bytes(), stream.stream())?;
            stream.stream().synchronize(device)
        });
        if let (Err(_), Err(error)) = (&cleared, device.synchronize()) {
            // The fill may still be on its way: what it writes to stays.
            std::mem::forget((mapping, range));
            return cleared.or(Err(error));
        }
        let unmapped = mapping
            .unmap()
            .map_err(|(_, error): (Mapping, Error)| error);
        cleared.and(unmapped).and_then(|()| range.free())
    }
}

/// Where the chunks of zeros of a device are known, while they are mapped anywhere.
pub(super) type KnownZeros = Weak<Zeros>;
