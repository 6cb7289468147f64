//! Copies between a device and registered pages of the host that run beside the program, on a stream of
//! their own. The pages stay until the copies that use them are done.

use super::device::Device;
use super::fence::Fence;
use super::registered::Registered;
use super::stream::OwnedStream;
use crate::error::Result;
use std::sync::Arc;

/// A part of registered pages.
#[derive(Clone)]
pub struct HostPiece {
    /// The pages.
    pub part: Arc<Registered>,
    /// Where it begins in them, in bytes.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// Copies of one device, in the order in which they were asked for. Waits for them when dropped.
pub struct CopyQueue {
    device: Arc<Device>,
    stream: OwnedStream,
    /// The pages that copies since the last wait may use.
    used: Vec<Arc<Registered>>,
}

impl CopyQueue {
    /// A queue on `device`.
    pub fn create(device: &Arc<Device>) -> Result<CopyQueue> {
        Ok(CopyQueue {
            device: device.clone(),
            stream: OwnedStream::create(device)?,
            used: Vec::new(),
        })
    }

    fn keep(&mut self, part: &Arc<Registered>) {
        let is_last = |last: &Arc<Registered>| Arc::ptr_eq(last, part);
        if !self.used.last().is_some_and(is_last) {
            self.used.push(part.clone());
        }
    }

    /// Copies from `from` on the device to the host. Does not wait.
    pub fn save(&mut self, from: u64, to: &HostPiece) -> Result<()> {
        self.keep(&to.part);
        let _guard = self.device.enter()?;
        let host = to.part.at(to.offset, to.bytes);
        let stream = self.stream.stream().raw();
        // SAFETY: the piece lies in its pages, which are kept until the stream was waited for; the driver
        // checks the device's range.
        self.device
            .check(unsafe {
                (self.device.cuda()).copy_to_host(host, from, to.bytes as usize, stream)
            })
            .map_err(|error| error.bytes(to.bytes))
    }

    /// Copies from the host to `to` on the device. Does not wait.
    pub fn load(&mut self, from: &HostPiece, to: u64) -> Result<()> {
        self.keep(&from.part);
        let _guard = self.device.enter()?;
        let host = from.part.at(from.offset, from.bytes);
        let stream = self.stream.stream().raw();
        // SAFETY: as in `save`.
        self.device
            .check(unsafe {
                (self.device.cuda()).copy_to_device(to, host, from.bytes as usize, stream)
            })
            .map_err(|error| error.bytes(from.bytes))
    }

    /// Fills memory that was made anew with zeros where it may hold what it held before, which CUDA's
    /// never does. Does not wait.
    pub fn wipe(&mut self, address: u64, bytes: u64) -> Result<()> {
        match self.device.is_hip() {
            true => self.device.fill(address, 0, bytes, self.stream.stream()),
            false => Ok(()),
        }
    }

    /// What is done once the copies asked for so far are.
    pub fn mark(&self) -> Result<Fence> {
        Fence::behind_streams(&self.device, &[self.stream.stream()])
    }

    /// Waits for all copies.
    pub fn wait(&mut self) -> Result<()> {
        let _guard = self.device.enter()?;
        self.stream.stream().synchronize(&self.device)?;
        self.used.clear();
        Ok(())
    }
}

impl Drop for CopyQueue {
    fn drop(&mut self) {
        if self.used.is_empty() || self.wait().is_ok() {
            return;
        }
        // Nobody knows what a broken device still does with them.
        std::mem::forget(std::mem::take(&mut self.used));
    }
}
