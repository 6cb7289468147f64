//! Pages of the host that are pinned by registering them. Populated huge pages register in a fraction of
//! the time that the driver takes to allocate pinned memory.

use super::device::Device;
use crate::error::{DriverCode, Error, Result};
use crate::sys::pages::Pages;
use std::ffi::{c_uint, c_void};
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// Pinned for every context.
const PORTABLE: c_uint = 1;

/// A mapping that is registered as a whole: one copy may not cross from one of these into another.
/// Unregistered, and unmapped, when dropped; the driver then waits for work of the context.
pub struct Registered {
    device: Arc<Device>,
    pages: ManuallyDrop<Pages>,
}

impl Registered {
    /// Registers pages, populated ones fastest. On failure they are given back to the system.
    pub fn register(device: &Arc<Device>, pages: Pages) -> Result<Registered> {
        Registered::register_as(device, pages, PORTABLE)
    }

    /// The same with the driver's flags (`CU_MEMHOSTREGISTER_*`).
    pub fn register_as(device: &Arc<Device>, pages: Pages, flags: c_uint) -> Result<Registered> {
        Registered::try_register(device, pages, flags).map_err(|(_, error)| error)
    }

    /// The same; on failure the pages are the caller's again.
    pub fn try_register(
        device: &Arc<Device>,
        pages: Pages,
        flags: c_uint,
    ) -> std::result::Result<Registered, (Pages, Error)> {
        let _guard = match device.enter() {
            Ok(guard) => guard,
            Err(error) => return Err((pages, error)),
        };
        let (address, bytes) = (pages.address() as *mut c_void, pages.bytes());
        // SAFETY: the pages are mapped, and stay so until they have been unregistered.
        let answer = unsafe { device.cuda().host_register(address, bytes as usize, flags) };
        match device.check(answer) {
            Ok(()) => Ok(Registered {
                device: device.clone(),
                pages: ManuallyDrop::new(pages),
            }),
            Err(error) => Err((pages, error.bytes(bytes))),
        }
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.pages.address()
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.pages.bytes()
    }

    pub(super) fn at(&self, offset: u64, bytes: u64) -> *mut c_void {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes()),
            "a copy stays inside its pages"
        );
        (self.address() + offset) as *mut c_void
    }
}

impl Registered {
    /// Unregisters and unmaps the pages; on failure they are as they were.
    pub fn give_back(self) -> std::result::Result<(), (Registered, Error)> {
        self.into_pages().map(drop)
    }

    /// Unregisters the pages, which stay mapped; on failure they are as they were.
    pub fn into_pages(self) -> std::result::Result<Pages, (Registered, Error)> {
        if let Err(error) = self.unregister() {
            return Err((self, error));
        }
        let mut kept = ManuallyDrop::new(self);
        // SAFETY: taken once each, from what is not dropped.
        unsafe {
            std::ptr::drop_in_place(&mut kept.device);
            Ok(ManuallyDrop::take(&mut kept.pages))
        }
    }

    fn unregister(&self) -> Result<()> {
        let _guard = self.device.enter()?;
        let address = self.address() as *mut c_void;
        // SAFETY: registered by `register`, whose owner this is the last of.
        let done = unsafe { self.device.cuda().host_unregister(address) };
        match self.device.check(done) {
            // An earlier call did it, and told of another failure.
            Err(error) if error.code() == Some(DriverCode::NOT_REGISTERED) => Ok(()),
            answer => answer,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Pages that stay registered stay mapped: what is mapped there next could not be registered.
        if self.unregister().or_else(|_| self.unregister()).is_ok() {
            // SAFETY: nobody uses them from here on.
            unsafe { ManuallyDrop::drop(&mut self.pages) };
        }
    }
}
