//! A number in pinned host memory that streams wait for: work queued behind it runs once the host has
//! counted that far. For measuring and testing what an allocator does while work is on its way.

use super::device::Device;
use super::stream::Stream;
use crate::error::{Error, Result};
use std::ffi::{c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const PORTABLE: c_uint = 1;
const MAPPED: c_uint = 2;
const REACHED: c_uint = 0;

/// The driver compares cyclically, so numbers must not be further apart than this.
const LAST: u32 = i32::MAX as u32;

/// A number that only rises, and the streams that wait for it.
pub struct Gate {
    device: Arc<Device>,
    word: *mut c_void,
    /// The same for the device.
    address: u64,
    /// The highest number that a stream was told to wait for.
    awaited: AtomicU32,
}

// SAFETY: the word is only used atomically, and lives as long as the gate.
unsafe impl Send for Gate {}
// SAFETY: as above.
unsafe impl Sync for Gate {}

impl Gate {
    /// A gate that stands at 0.
    pub fn create(device: &Arc<Device>) -> Result<Gate> {
        let _guard = device.enter()?;
        let (mut word, mut address) = (std::ptr::null_mut(), 0);
        let cuda = device.cuda();
        // SAFETY: `word` is a valid out-pointer.
        device.check(unsafe {
            cuda.host_alloc(&mut word, size_of::<AtomicU32>(), PORTABLE | MAPPED)
        })?;
        let gate = |address| Gate {
            device: device.clone(),
            word,
            address,
            awaited: AtomicU32::new(0),
        };
        // SAFETY: `address` is a valid out-pointer, and `word` was just made.
        let outcome = unsafe { cuda.host_device_pointer(&mut address, word, 0) };
        let gate = gate(address);
        device.check(outcome)?;
        gate.count().store(0, Ordering::SeqCst);
        Ok(gate)
    }

    fn count(&self) -> &AtomicU32 {
        // SAFETY: page-aligned memory of the driver's, live until this is dropped, used only so.
        unsafe { &*self.word.cast::<AtomicU32>() }
    }

    /// Work given to `stream` from now on waits until `number` is reached.
    pub fn hold(&self, stream: Stream, number: u32) -> Result<()> {
        if number > LAST {
            return Err(Error::invalid("hold", format!("{number} is past {LAST}")));
        }
        let _guard = self.device.enter()?;
        self.awaited.fetch_max(number, Ordering::SeqCst);
        let cuda = self.device.cuda();
        // SAFETY: the word is live until this is dropped, which lets everyone pass and waits; the
        // caller vouches for the stream's handle.
        self.device
            .check(unsafe { cuda.stream_wait_value(stream.raw(), self.address, number, REACHED) })
    }

    /// Lets pass whoever waits for `number` or less. Any thread.
    pub fn reach(&self, number: u32) {
        self.count().fetch_max(number, Ordering::SeqCst);
    }
}

impl Drop for Gate {
    /// Lets everyone pass, and waits until they have.
    fn drop(&mut self) {
        self.reach(self.awaited.load(Ordering::SeqCst));
        let Ok(_guard) = self.device.enter() else {
            return;
        };
        // SAFETY: the word was made in `create` and this is its only owner; the driver waits for the
        // context's work before it takes the memory back.
        let _ = unsafe { self.device.cuda().host_free(self.word) };
    }
}
