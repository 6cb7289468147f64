//! Moving bytes and filling memory, in a stream's order. The sources need none of it; the self-test,
//! the demo and the replay do, to show that memory given out is memory. What touches a slice of the
//! host has finished when the call returns, so that a borrow is enough.

use super::device::Device;
use super::stream::Stream;
use crate::error::Result;
use std::ffi::c_void;

impl Device {
    /// Fills `bytes` from `address` with `byte`, in `stream`'s order. Does not wait.
    pub fn fill(&self, address: u64, byte: u8, bytes: u64, stream: Stream) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the driver checks the range; the caller owns it and vouches for the stream.
        self.check(unsafe {
            self.cuda()
                .fill_bytes(address, byte, bytes as usize, stream.raw())
        })
        .map_err(|error| error.bytes(bytes))
    }

    /// Copies `bytes` from `from` to `to`, both of the device, in `stream`'s order. Does not wait.
    pub fn copy_on_device(&self, to: u64, from: u64, bytes: u64, stream: Stream) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the driver checks both ranges; the caller owns them and vouches for the stream.
        self.check(unsafe {
            self.cuda()
                .copy_on_device(to, from, bytes as usize, stream.raw())
        })
        .map_err(|error| error.bytes(bytes))
    }

    /// Copies `from` to `to` on the device behind `stream`'s work, and waits for it.
    pub fn copy_from_host(&self, to: u64, from: &[u8], stream: Stream) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: `from` is readable, and borrowed until the stream has been waited for below; the
        // driver checks `to`, which the caller owns.
        self.check(unsafe {
            self.cuda()
                .copy_to_device(to, from.as_ptr().cast::<c_void>(), from.len(), stream.raw())
        })
        .map_err(|error| error.bytes(from.len() as u64))?;
        stream.synchronize(self)
    }

    /// Copies from `from` on the device into `to` behind `stream`'s work, and waits for it.
    pub fn copy_to_host(&self, to: &mut [u8], from: u64, stream: Stream) -> Result<()> {
        let _guard = self.enter()?;
        let bytes = to.len();
        // SAFETY: `to` is writable, and borrowed until the stream has been waited for below; the
        // driver checks `from`, which the caller owns.
        self.check(unsafe {
            self.cuda()
                .copy_to_host(to.as_mut_ptr().cast::<c_void>(), from, bytes, stream.raw())
        })
        .map_err(|error| error.bytes(bytes as u64))?;
        stream.synchronize(self)
    }
}
