//! Chunks mapped at addresses. The driver takes back only what one map call gave, so chunks are
//! mapped and unmapped whole; neighbours are reached, and unmapped, by one call for all of them. HIP wants
//! a call for each mapping, and where it takes one for several, not all versions mean all of them.

use super::chunk::{Chunk, mem_location};
use super::device::Device;
use crate::config::value::Location;
use crate::error::{Error, Result, Status};
use crate::sys::cuda::{AccessDesc, MemLocation};
use cuda_sys::driver::sys::{CUmemAccess_flags, CUmemLocationType};
use std::sync::Arc;

/// A chunk mapped at an address. Not unmapped by Drop, since only whoever knows that no work uses
/// the range any more may do that: `extent` does.
pub struct Mapping {
    device: Arc<Device>,
    address: u64,
    bytes: u64,
}

impl Mapping {
    /// Maps `chunk` as a whole at `address`, inside a reservation. No device has access yet.
    pub fn new(device: &Arc<Device>, address: u64, chunk: &Chunk) -> Result<Mapping> {
        // SAFETY: the driver checks that the range is reserved and free.
        device
            .check(unsafe {
                device
                    .cuda()
                    .vmm_map(address, chunk.bytes() as usize, 0, chunk.handle(), 0)
            })
            .map_err(|error| error.bytes(chunk.bytes()))?;
        Ok(Mapping {
            device: device.clone(),
            address,
            bytes: chunk.bytes(),
        })
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lets the owning device, `peers`, and for host memory the host, read and write the range.
    pub fn allow(&self, peers: &[i32], location: Location) -> Result<()> {
        Mapping::allow_all([self], peers, location)
    }

    /// [`Mapping::allow`] of neighbours in the order of their addresses, in one reservation, by one
    /// call but with HIP. On failure some may have got it.
    pub fn allow_all<'a>(
        mappings: impl IntoIterator<Item = &'a Mapping>,
        peers: &[i32],
        location: Location,
    ) -> Result<()> {
        let mappings: Vec<&Mapping> = mappings.into_iter().collect();
        let Some((device, address, bytes)) = span(mappings.iter().copied())? else {
            return Ok(());
        };
        let mut access = vec![read_write(device_location(device.ordinal()))];
        access.extend(peers.iter().map(|peer| read_write(device_location(*peer))));
        if let Location::HostNuma(_) = location {
            access.push(read_write(mem_location(location, device)));
        }
        if device.is_hip() {
            return mappings
                .iter()
                .try_for_each(|one| allow_span(device, one.address, one.bytes, &access));
        }
        allow_span(device, address, bytes, &access)
    }

    /// Lets the owning device and `peers` read neighbours in the order of their addresses, and not write.
    pub fn allow_reading(mappings: &[Mapping], peers: &[i32]) -> Result<()> {
        let Some((device, address, bytes)) = span(mappings)? else {
            return Ok(());
        };
        let ordinals = std::iter::once(device.ordinal()).chain(peers.iter().copied());
        let read = |ordinal| AccessDesc {
            location: device_location(ordinal),
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
        };
        let access: Vec<AccessDesc> = ordinals.map(read).collect();
        // SAFETY: the descriptors are valid for the call; the range is one of whole mappings.
        device
            .check(unsafe {
                device
                    .cuda()
                    .vmm_set_access(address, bytes as usize, access.as_ptr(), access.len())
            })
            .map_err(|error| error.bytes(bytes))
    }

    /// Unmaps the range, which no work may use any more; on failure the mapping comes back.
    pub fn unmap(self) -> std::result::Result<(), (Mapping, Error)> {
        unmap_span(span([&self])).map_err(|error| (self, error))
    }

    /// [`Mapping::unmap`] of neighbours in the order of their addresses, in one reservation, by one
    /// call but with HIP; on failure those that are still mapped come back.
    pub fn unmap_all(mappings: Vec<Mapping>) -> std::result::Result<(), (Vec<Mapping>, Error)> {
        if mappings.first().is_some_and(|one| one.device.is_hip()) {
            return unmap_each(mappings);
        }
        unmap_span(span(&mappings)).map_err(|error| (mappings, error))
    }
}

fn unmap_each(mappings: Vec<Mapping>) -> std::result::Result<(), (Vec<Mapping>, Error)> {
    let mut left = mappings.into_iter();
    while let Some(mapping) = left.next() {
        if let Err((mapping, error)) = mapping.unmap() {
            return Err(([mapping].into_iter().chain(left).collect(), error));
        }
    }
    Ok(())
}

fn allow_span(device: &Device, address: u64, bytes: u64, access: &[AccessDesc]) -> Result<()> {
    device
        .insist(|| {
            // SAFETY: the descriptors are valid for the call; the range is one of whole mappings.
            device.check(unsafe {
                device
                    .cuda()
                    .vmm_set_access(address, bytes as usize, access.as_ptr(), access.len())
            })
        })
        .map_err(|error| error.bytes(bytes))
}

fn unmap_span(span: Result<Option<(&Device, u64, u64)>>) -> Result<()> {
    let Some((device, address, bytes)) = span? else {
        return Ok(());
    };
    // SAFETY: the range is exactly what `new` mapped, one mapping behind the other.
    device
        .check(unsafe { device.cuda().vmm_unmap(address, bytes as usize) })
        .map_err(|error| error.bytes(bytes))
}

/// Device, first address and length of mappings that lie one behind the other.
fn span<'a>(
    mappings: impl IntoIterator<Item = &'a Mapping>,
) -> Result<Option<(&'a Device, u64, u64)>> {
    let mut found: Option<(&Device, u64, u64)> = None;
    for mapping in mappings {
        found = match found {
            None => Some((&mapping.device, mapping.address, mapping.bytes)),
            Some((device, address, bytes)) if address + bytes == mapping.address => {
                Some((device, address, bytes + mapping.bytes))
            }
            Some(_) => {
                let apart = format!("the mapping at {:#x} is no neighbour", mapping.address);
                return Err(Error::new(Status::Internal, "mappings").detail(apart));
            }
        };
    }
    Ok(found)
}

fn device_location(ordinal: i32) -> MemLocation {
    MemLocation {
        type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
        id: ordinal,
    }
}

fn read_write(location: MemLocation) -> AccessDesc {
    AccessDesc {
        location,
        flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    }
}
