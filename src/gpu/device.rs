//! A device: its primary context, and what is known of it.

use super::capability::Capabilities;
use super::capture::{Captures, RelaxedCapture};
use super::fence::IdleEvents;
use super::workarounds::Workarounds;
use crate::error::{DriverCode, Result, Warnings};
use crate::sys::cuda::{Cuda, Handle, Refusal};
use once_cell::sync::OnceCell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// A device whose primary context this library has retained, for good: contexts end with the process.
pub struct Device {
    cuda: Arc<Cuda>,
    ordinal: i32,
    handle: c_int,
    context: Context,
    name: String,
    total_memory: u64,
    warnings: Arc<Warnings>,
    capabilities: Capabilities,
    captures: Captures,
    idle_events: IdleEvents,
    workarounds: Workarounds,
    /// The host's that is nearest, once asked for.
    host_node: OnceCell<Option<u32>>,
}

/// The primary context, and how many have gone before it.
struct Context {
    handle: AtomicPtr<c_void>,
    left: AtomicU64,
}

impl Device {
    pub(super) fn open(cuda: Arc<Cuda>, ordinal: i32, warnings: Arc<Warnings>) -> Result<Device> {
        let check = |outcome: std::result::Result<(), Refusal>| {
            outcome.map_err(|refusal| cuda.error(refusal))
        };
        let mut handle: c_int = 0;
        let mut total: usize = 0;
        let name = Device::name_of(&cuda, ordinal)?;
        // SAFETY: both are valid out-pointers.
        unsafe {
            check(cuda.device_get(&mut handle, ordinal))?;
            check(cuda.device_total_memory(&mut total, handle))?;
        }
        let mut context: Handle = std::ptr::null_mut();
        // SAFETY: `context` is a valid out-pointer. Last, so that no later failure leaves it retained.
        check(unsafe { cuda.primary_context_retain(&mut context, handle) })?;
        Ok(Device {
            ordinal,
            handle,
            context: Context {
                handle: AtomicPtr::new(context),
                left: AtomicU64::new(0),
            },
            name,
            total_memory: total as u64,
            warnings,
            capabilities: Capabilities::default(),
            captures: Captures::default(),
            idle_events: IdleEvents::default(),
            workarounds: Workarounds::default(),
            host_node: OnceCell::new(),
            cuda,
        })
    }

    /// The name of a device that need not be in use.
    pub(super) fn name_of(cuda: &Cuda, ordinal: i32) -> Result<String> {
        let mut handle: c_int = 0;
        let mut name = [0 as c_char; 256];
        let mut outcome = || -> std::result::Result<(), Refusal> {
            // SAFETY: both are valid out-pointers, the name's of the size the driver is told.
            unsafe {
                cuda.device_get(&mut handle, ordinal)?;
                cuda.device_name(name.as_mut_ptr(), 255, handle)
            }
        };
        outcome().map_err(|refusal| cuda.error(refusal))?;
        // SAFETY: the driver ended the name with a zero byte within the 256 of the array.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        Ok(name.to_string_lossy().into_owned())
    }

    /// Its number among the visible devices.
    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its memory in bytes.
    pub fn total_memory(&self) -> u64 {
        self.total_memory
    }

    /// Where warnings about it are counted.
    pub fn warnings(&self) -> &Warnings {
        &self.warnings
    }

    /// What has been probed of it so far.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The captures known to be open on it.
    pub fn captures(&self) -> &Captures {
        &self.captures
    }

    pub(super) fn idle_events(&self) -> &IdleEvents {
        &self.idle_events
    }

    pub(super) fn workarounds(&self) -> &Workarounds {
        &self.workarounds
    }

    pub(super) fn cuda(&self) -> &Cuda {
        &self.cuda
    }

    pub(crate) fn context(&self) -> Handle {
        self.context.handle.load(Ordering::Relaxed)
    }

    /// How many contexts the device had before this one.
    pub(super) fn contexts_left(&self) -> u64 {
        self.context.left.load(Ordering::Relaxed)
    }

    /// The context is about to be reset, when no work of it is left: what was made in it is named no more.
    pub fn leave_context(&self) {
        self.drop_idle_events();
        self.context.left.fetch_add(1, Ordering::SeqCst);
    }

    /// After that: the driver gives a context that was reset to whoever retains it again.
    pub fn retain_again(&self) -> Result<()> {
        // Other threads may have put some there.
        self.idle_events.forget();
        let mut context: Handle = std::ptr::null_mut();
        // SAFETY: `context` is a valid out-pointer.
        self.check(unsafe { self.cuda.primary_context_retain(&mut context, self.handle) })?;
        self.context.handle.store(context, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn handle(&self) -> c_int {
        self.handle
    }

    pub(super) fn check(&self, outcome: std::result::Result<(), Refusal>) -> Result<()> {
        outcome.map_err(|refusal| self.cuda.error(refusal))
    }

    /// An attribute by the driver's number; 0 where the driver is too old to know it.
    pub fn attribute(&self, attribute: c_int) -> Result<i32> {
        let mut value: c_int = 0;
        // SAFETY: `value` is a valid out-pointer.
        match unsafe {
            self.cuda
                .device_attribute(&mut value, attribute, self.handle)
        } {
            Ok(()) => Ok(value),
            Err(refusal) if refusal.code == Some(DriverCode::INVALID_VALUE) => Ok(0),
            Err(refusal) => Err(self.cuda.error(refusal)),
        }
    }

    pub(super) fn host_node(&self) -> &OnceCell<Option<u32>> {
        &self.host_node
    }

    fn is_current(&self) -> bool {
        let mut current: Handle = std::ptr::null_mut();
        // SAFETY: `current` is a valid out-pointer.
        unsafe { self.cuda.context_current(&mut current) }.is_ok() && current == self.context()
    }

    /// Makes this device's primary context current on the calling thread, and capture rules relaxed,
    /// until the guard is dropped. The thread's own context and mode come back then.
    pub fn enter(&self) -> Result<ContextGuard<'_>> {
        let mut current: Handle = std::ptr::null_mut();
        // SAFETY: `current` is a valid out-pointer.
        self.check(unsafe { self.cuda.context_current(&mut current) })?;
        let pushed = current != self.context();
        if pushed {
            // SAFETY: the context is retained for the life of the process.
            self.check(unsafe { self.cuda.context_push(self.context()) })?;
        }
        Ok(ContextGuard {
            relaxed: Some(RelaxedCapture::enter(&self.cuda)),
            device: self,
            pushed,
        })
    }

    /// Makes this device's primary context current on the calling thread for good, where none is.
    pub fn ensure_current(&self) -> Result<()> {
        let mut current: Handle = std::ptr::null_mut();
        // SAFETY: `current` is a valid out-pointer.
        self.check(unsafe { self.cuda.context_current(&mut current) })?;
        match current.is_null() {
            // SAFETY: the context is retained for the life of the process.
            true => self.check(unsafe { self.cuda.context_push(self.context()) }),
            false => Ok(()),
        }
    }

    /// Waits for all work of the device. Refused while a capture is known to be open there, which
    /// it would break.
    pub fn synchronize(&self) -> Result<()> {
        self.outside_captures(|| self.wait_for_context())
    }

    pub(super) fn wait_for_context(&self) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: takes no pointers.
        self.check(unsafe { self.cuda.context_synchronize() })
    }

    /// Free and total bytes of the device's memory.
    pub fn memory_info(&self) -> Result<(u64, u64)> {
        let _guard = self.enter()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: both are valid out-pointers.
        self.check(unsafe { self.cuda.memory_info(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// Whether `peer`, another ordinal, can reach this device's memory and has an active context.
    pub fn has_active_peer(&self, peer: i32) -> Result<bool> {
        let (mut handle, mut can, mut active) = (0 as c_int, 0 as c_int, 0 as c_int);
        let mut flags: c_uint = 0;
        // SAFETY: every pointer is a valid out-pointer.
        unsafe {
            self.check(self.cuda.device_get(&mut handle, peer))?;
            self.check(
                self.cuda
                    .primary_context_state(handle, &mut flags, &mut active),
            )?;
            if active == 0 {
                return Ok(false);
            }
            self.check(
                self.cuda
                    .device_can_access_peer(&mut can, handle, self.handle),
            )?;
        }
        Ok(can != 0)
    }

    /// How many devices the driver shows.
    pub(super) fn device_count(&self) -> Result<i32> {
        let mut count: c_int = 0;
        // SAFETY: `count` is a valid out-pointer.
        self.check(unsafe { self.cuda.device_count(&mut count) })?;
        Ok(count)
    }

    /// The ordinals of the other devices that can reach this one's memory and are in use.
    pub fn active_peers(&self) -> Result<Vec<i32>> {
        let count = self.device_count()?;
        let mut peers = Vec::new();
        for peer in (0..count).filter(|peer| *peer != self.ordinal) {
            if self.has_active_peer(peer)? {
                peers.push(peer);
            }
        }
        Ok(peers)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.drop_idle_events();
    }
}

/// Undoes something in a Drop, which can tell nobody that it failed: once more if it did, so that a
/// failure that passes leaves nothing behind.
pub(super) fn undo(mut attempt: impl FnMut() -> std::result::Result<(), Refusal>) {
    if attempt().is_err() {
        let _ = attempt();
    }
}

/// The context of a device is current on this thread while this lives.
pub struct ContextGuard<'a> {
    relaxed: Option<RelaxedCapture<'a>>,
    device: &'a Device,
    pushed: bool,
}

impl Drop for ContextGuard<'_> {
    fn drop(&mut self) {
        self.relaxed = None;
        if self.pushed {
            let mut popped: Handle = std::ptr::null_mut();
            // SAFETY: `popped` is a valid out-pointer, and what is popped is what `enter` pushed.
            let refused = unsafe { self.device.cuda.context_pop(&mut popped) }.is_err();
            // A pop may report an earlier failure of the device after all, so only what is still
            // there is popped again.
            if refused && self.device.is_current() {
                // SAFETY: as above.
                let _ = unsafe { self.device.cuda.context_pop(&mut popped) };
            }
        }
    }
}
