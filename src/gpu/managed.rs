//! Managed memory: one address for host and device, pages that move, and advice on where they live.

use super::device::Device;
use super::stream::Stream;
use crate::error::Result;
use crate::sys::cuda::MemLocation;
use cuda_sys::driver::sys::CUmemLocationType;
use std::ffi::{c_int, c_uint};

const ATTACH_GLOBAL: c_uint = 1;
const SET_PREFERRED_LOCATION: c_int = 3;
const SET_ACCESSED_BY: c_int = 5;

const PAGEABLE_MEMORY_ACCESS: c_int = 88;

const HOST: MemLocation = MemLocation {
    type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_HOST,
    id: 0,
};

impl Device {
    /// Allocates managed memory attached to every stream.
    pub fn allocate_managed(&self, bytes: u64) -> Result<u64> {
        let _guard = self.enter()?;
        let mut address = 0;
        // SAFETY: `address` is a valid out-pointer.
        self.check(unsafe {
            self.cuda()
                .memory_alloc_managed(&mut address, bytes as usize, ATTACH_GLOBAL)
        })
        .map_err(|error| error.bytes(bytes))?;
        Ok(address)
    }

    /// Advises that the range should live on this device.
    pub fn prefer_device(&self, address: u64, bytes: u64) -> Result<()> {
        self.advise(address, bytes, SET_PREFERRED_LOCATION, self.as_location())
    }

    /// Advises that the range should live in host memory, on a coherent machine near this device.
    pub fn prefer_host(&self, address: u64, bytes: u64) -> Result<()> {
        let host = |location| self.advise(address, bytes, SET_PREFERRED_LOCATION, location);
        // A card that is not coherent takes the advice of a node and does not keep it (seen on an
        // H200, driver 580).
        if self.attribute(PAGEABLE_MEMORY_ACCESS)? == 0 {
            return host(HOST);
        }
        let Some(nearest) = self.nearest_host_node()? else {
            return host(HOST);
        };
        let node = MemLocation {
            type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_HOST_NUMA,
            id: nearest as c_int,
        };
        // A machine without NUMA, or a driver that knows no nodes here, still knows the host.
        host(node).or_else(|_| host(HOST))
    }

    /// Advises that this device will reach the range, so that its mapping is kept.
    pub fn accessed_by_device(&self, address: u64, bytes: u64) -> Result<()> {
        self.advise(address, bytes, SET_ACCESSED_BY, self.as_location())
    }

    /// Advises that the host will reach the range, so that its mapping is kept.
    pub fn accessed_by_host(&self, address: u64, bytes: u64) -> Result<()> {
        self.advise(address, bytes, SET_ACCESSED_BY, HOST)
    }

    /// Moves the range to this device in `stream`'s order.
    pub fn prefetch(&self, address: u64, bytes: u64, stream: Stream) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the range is a live managed allocation; the caller vouches for the stream.
        self.check(unsafe {
            self.cuda().memory_prefetch(
                address,
                bytes as usize,
                self.as_location(),
                0,
                stream.raw(),
            )
        })
    }

    fn advise(&self, address: u64, bytes: u64, advice: c_int, to: MemLocation) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the range is a live managed allocation.
        self.check(unsafe {
            self.cuda()
                .memory_advise(address, bytes as usize, advice, to)
        })
    }

    fn as_location(&self) -> MemLocation {
        MemLocation {
            type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: self.handle(),
        }
    }
}
