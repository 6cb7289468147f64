//! A buffer that bytes of the device pass through on their way to somewhere that the device cannot copy to.

use super::copying::{CopyQueue, HostPiece};
use super::device::Device;
use super::fence::Fence;
use super::registered::Registered;
use crate::error::Result;
use crate::sys::pages::Pages;
use std::sync::Arc;

/// Pinned memory that copies fill or empty; looked at only while none does.
pub struct Staging {
    piece: HostPiece,
    busy: Fence,
}

impl Staging {
    /// A buffer of `bytes`, a multiple of the huge page.
    pub fn create(device: &Arc<Device>, bytes: u64) -> Result<Staging> {
        let pages = Pages::map(bytes)?;
        pages.populate()?;
        let part = Arc::new(Registered::register(device, pages)?);
        Ok(Staging {
            piece: HostPiece {
                part,
                offset: 0,
                bytes,
            },
            busy: Fence::DONE,
        })
    }

    fn part(&self, offset: u64, bytes: u64) -> HostPiece {
        HostPiece {
            part: self.piece.part.clone(),
            offset,
            bytes,
        }
    }

    /// Fills `bytes` at `offset` from `from` on the device, behind the queue's copies so far. Does not wait.
    pub fn fill(
        &mut self,
        queue: &mut CopyQueue,
        offset: u64,
        from: u64,
        bytes: u64,
    ) -> Result<()> {
        queue.save(from, &self.part(offset, bytes))?;
        self.follow(queue)
    }

    /// Copies its first `bytes` to `to` on the device. Does not wait.
    pub fn empty(&mut self, queue: &mut CopyQueue, to: u64, bytes: u64) -> Result<()> {
        queue.load(&self.part(0, bytes), to)?;
        self.follow(queue)
    }

    fn follow(&mut self, queue: &mut CopyQueue) -> Result<()> {
        match queue.mark() {
            Ok(fence) => self.busy = fence,
            Err(error) => {
                queue.wait()?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Its bytes, once the copies are done that were asked for.
    pub fn bytes(&mut self) -> Result<&mut [u8]> {
        self.busy.wait()?;
        self.busy = Fence::DONE;
        let (begin, bytes) = (self.piece.part.address(), self.piece.bytes);
        // SAFETY: the pages are mapped while the part lives, which nobody else knows; the copies that used
        // them are done, and none is asked for while the slice borrows `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(begin as *mut u8, bytes as usize) })
    }
}
