//! Address space without memory behind it.

use super::device::Device;
use crate::error::Result;
use std::sync::Arc;

/// A reserved range of addresses, given back when dropped. Nothing may be mapped in it then.
pub struct Reservation {
    device: Arc<Device>,
    address: u64,
    bytes: u64,
    freed: bool,
    lent: bool,
}

impl Reservation {
    /// Reserves `bytes`, a multiple of the granularity, aligned to `align`, a power of two.
    pub fn new(device: &Arc<Device>, bytes: u64, align: u64) -> Result<Reservation> {
        let mut address = 0;
        // SAFETY: `address` is a valid out-pointer.
        device
            .check(unsafe {
                device
                    .cuda()
                    .vmm_reserve(&mut address, bytes as usize, align as usize, 0, 0)
            })
            .map_err(|error| error.bytes(bytes))?;
        Ok(Reservation {
            device: device.clone(),
            address,
            bytes,
            freed: false,
            lent: false,
        })
    }

    /// Part of a range that somebody else reserved, and frees.
    pub fn lent(device: &Arc<Device>, address: u64, bytes: u64) -> Reservation {
        Reservation {
            device: device.clone(),
            address,
            bytes,
            freed: false,
            lent: true,
        }
    }

    /// Whether the addresses are somebody else's.
    pub fn is_lent(&self) -> bool {
        self.lent
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the addresses back; on failure they are still held and can be freed again.
    pub fn free(&mut self) -> Result<()> {
        if !self.freed && !self.lent {
            // SAFETY: the range was reserved as a whole by `new`.
            self.device.check(unsafe {
                self.device
                    .cuda()
                    .vmm_free_address(self.address, self.bytes as usize)
            })?;
            self.freed = true;
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Err(error) = self.free() {
            tracing::debug!("{error}");
        }
    }
}
