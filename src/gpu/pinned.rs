//! Pinned memory of the host, mapped for every device at the processor's own address.

use super::device::Device;
use crate::error::{Error, Result, Status};
use std::ffi::{c_uint, c_void};

/// Pinned for every context, and mapped for devices.
const PORTABLE_MAPPED: c_uint = 1 | 2;

impl Device {
    /// Allocates `bytes` above zero of pinned memory; the address is the device's and the host's.
    pub fn allocate_pinned(&self, bytes: u64) -> Result<u64> {
        self.allocate_pinned_as(bytes, 0)
    }

    /// The same with further flags of the driver's (`CU_MEMHOSTALLOC_*`).
    pub fn allocate_pinned_as(&self, bytes: u64, flags: c_uint) -> Result<u64> {
        let _guard = self.enter()?;
        let mut host: *mut c_void = std::ptr::null_mut();
        // SAFETY: `host` is a valid out-pointer.
        self.check(unsafe {
            self.cuda()
                .host_alloc(&mut host, bytes as usize, PORTABLE_MAPPED | flags)
        })
        .map_err(|error| error.bytes(bytes))?;
        self.check_same(host)
            .inspect_err(|_| {
                // SAFETY: nobody has seen the memory that was just allocated.
                let freed = self.check(unsafe { self.cuda().host_free(host) });
                if let Err(error) = freed {
                    tracing::warn!("{bytes} bytes of pinned memory are lost: {error}");
                }
            })
            .map_err(|error| error.bytes(bytes))?;
        Ok(host as u64)
    }

    /// Under unified addressing the device knows host memory by the same address. Where it does not,
    /// kernels could not use what is given out.
    fn check_same(&self, host: *mut c_void) -> Result<()> {
        let mut seen = 0;
        // SAFETY: `seen` is a valid out-pointer; the driver checks the address.
        self.check(unsafe { self.cuda().host_device_pointer(&mut seen, host, 0) })?;
        if seen == host as u64 {
            return Ok(());
        }
        Err(Error::new(Status::Unsupported, "cuMemHostGetDevicePointer")
            .detail(format!(
                "device {} knows host memory at {host:p} as {seen:#x}",
                self.ordinal()
            ))
            .advice("Pinned memory needs unified addressing: use managed memory here"))
    }

    /// Frees pinned memory, which no work may use any more. The driver waits for the context's work.
    pub fn free_pinned(&self, address: u64) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the driver checks the address; the caller owns it.
        self.check(unsafe { self.cuda().host_free(address as *mut c_void) })
    }
}
