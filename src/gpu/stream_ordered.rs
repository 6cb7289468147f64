//! The driver's stream-ordered pools.

use super::device::{Device, undo};
use super::stream::Stream;
use crate::config::value::Location;
use crate::error::Result;
use crate::gpu::capture::RelaxedCapture;
use crate::gpu::chunk::mem_location;
use crate::sys::cuda::{AccessDesc, Handle, PoolProps};
use cuda_sys::driver::sys::{
    CUmemAccess_flags, CUmemAllocationHandleType, CUmemAllocationType, CUmemLocationType,
};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

const RELEASE_THRESHOLD: c_int = 4;
const RESERVED_CURRENT: c_int = 5;
const RESERVED_HIGH: c_int = 6;
const USED_CURRENT: c_int = 7;

/// A stream-ordered pool: the device's default one, or one of our own that Drop destroys.
pub struct StreamPool {
    device: Arc<Device>,
    handle: Handle,
    own: bool,
}

// SAFETY: a pool handle may be used from any thread.
unsafe impl Send for StreamPool {}
// SAFETY: the driver synchronises its own use of a pool.
unsafe impl Sync for StreamPool {}

impl StreamPool {
    /// The device's default pool, its settings left as they are.
    pub fn device_default(device: &Arc<Device>) -> Result<StreamPool> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid out-pointer.
        device.check(unsafe { device.cuda().default_pool(&mut handle, device.handle()) })?;
        Ok(StreamPool {
            device: device.clone(),
            handle,
            own: false,
        })
    }

    /// A pool of our own that keeps up to `release_threshold` free bytes over synchronisations.
    pub fn create(device: &Arc<Device>, release_threshold: u64) -> Result<StreamPool> {
        let properties = PoolProps {
            allocType: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            handleTypes: CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: mem_location(Location::Device, device),
            win32SecurityAttributes: std::ptr::null_mut(),
            maxSize: 0,
            usage: 0,
            reserved: [0; 54],
        };
        let _guard = device.enter()?;
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: both pointers are valid for the call.
        device.check(unsafe { device.cuda().pool_create(&mut handle, &properties) })?;
        let pool = StreamPool {
            device: device.clone(),
            handle,
            own: true,
        };
        pool.set_counter(RELEASE_THRESHOLD, release_threshold)?;
        Ok(pool)
    }

    /// Allocates in `stream`'s order.
    pub fn allocate(&self, bytes: u64, stream: Stream) -> Result<u64> {
        let _guard = self.device.enter()?;
        let mut address = 0;
        // SAFETY: `address` is a valid out-pointer; the caller vouches for the stream.
        self.device
            .check(unsafe {
                self.device.cuda().memory_alloc_from_pool(
                    &mut address,
                    bytes as usize,
                    self.handle,
                    stream.raw(),
                )
            })
            .map_err(|error| error.bytes(bytes))?;
        Ok(address)
    }

    /// Frees in `stream`'s order.
    pub fn free(&self, address: u64, stream: Stream) -> Result<()> {
        let _guard = self.device.enter()?;
        // SAFETY: the driver checks the address; the caller owns it and vouches for the stream.
        self.device
            .check(unsafe { self.device.cuda().memory_free_async(address, stream.raw()) })
    }

    /// Gives free memory back to the device until the pool holds at most `keep` bytes.
    pub fn trim(&self, keep: u64) -> Result<()> {
        let _guard = self.device.enter()?;
        // SAFETY: the pool is live.
        self.device
            .check(unsafe { self.device.cuda().pool_trim(self.handle, keep as usize) })
    }

    /// Bytes the pool holds now, and the most it has held.
    pub fn reserved(&self) -> Result<(u64, u64)> {
        Ok((
            self.counter(RESERVED_CURRENT)?,
            self.counter(RESERVED_HIGH)?,
        ))
    }

    /// Bytes of its blocks now.
    pub fn used(&self) -> Result<u64> {
        self.counter(USED_CURRENT)
    }

    /// Starts the most it has held again from what it holds now.
    pub fn reset_peak(&self) -> Result<()> {
        self.set_counter(RESERVED_HIGH, 0)
    }

    /// Lets `peers` read and write the pool's memory.
    pub fn allow(&self, peers: &[i32]) -> Result<()> {
        let access: Vec<AccessDesc> = peers
            .iter()
            .map(|peer| AccessDesc {
                location: crate::sys::cuda::MemLocation {
                    type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                    id: *peer,
                },
                flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
            })
            .collect();
        let _guard = self.device.enter()?;
        // SAFETY: the descriptors are valid for the call.
        self.device.check(unsafe {
            self.device
                .cuda()
                .pool_set_access(self.handle, access.as_ptr(), access.len())
        })
    }

    fn counter(&self, attribute: c_int) -> Result<u64> {
        // Asking breaks a capture too, unless the thread is relaxed.
        let _relaxed = RelaxedCapture::enter(self.device.cuda());
        let mut bytes = 0u64;
        let value = std::ptr::from_mut(&mut bytes).cast::<c_void>();
        // SAFETY: this attribute is a 64-bit integer.
        self.device.check(unsafe {
            self.device
                .cuda()
                .pool_attribute(self.handle, attribute, value)
        })?;
        Ok(bytes)
    }

    fn set_counter(&self, attribute: c_int, mut bytes: u64) -> Result<()> {
        let _guard = self.device.enter()?;
        let value = std::ptr::from_mut(&mut bytes).cast::<c_void>();
        // SAFETY: this attribute is a 64-bit integer.
        self.device.check(unsafe {
            self.device
                .cuda()
                .pool_set_attribute(self.handle, attribute, value)
        })
    }
}

impl Drop for StreamPool {
    fn drop(&mut self) {
        if self.own {
            // SAFETY: the pool is live and this is its only owner.
            undo(|| unsafe { self.device.cuda().pool_destroy(self.handle) });
        }
    }
}
