//! Synchronous device memory, as `cudaMalloc` and `cudaFree` give and take it.

use super::device::Device;
use crate::error::Result;

impl Device {
    /// Allocates `bytes` above zero, aligned to at least 256.
    pub fn allocate_plain(&self, bytes: u64) -> Result<u64> {
        let _guard = self.enter()?;
        let mut address = 0;
        // SAFETY: `address` is a valid out-pointer.
        self.check(unsafe { self.cuda().memory_alloc(&mut address, bytes as usize) })
            .map_err(|error| error.bytes(bytes))?;
        Ok(address)
    }

    /// Frees synchronous or managed memory. The driver waits for all work of the device first.
    pub fn free_plain(&self, address: u64) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the driver checks the address; the caller owns it.
        self.check(unsafe { self.cuda().memory_free(address) })
    }
}
