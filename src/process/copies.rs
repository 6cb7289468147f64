//! Copies of many pieces in one call, and where they are to be cut.

use super::Process;
use crate::core::seams::Seams;
use crate::error::Result;
use crate::gpu::{Stream, Way};
use crate::sys::pieces::Pieces;
use std::sync::{Arc, PoisonError, RwLock};

/// Where registrations of the host meet inside memory that looks like one. A copy takes what is there as it begins.
#[derive(Default)]
pub struct HostSeams(RwLock<Arc<Seams>>);

impl HostSeams {
    fn now(&self) -> Arc<Seams> {
        (self.0.read())
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Copies are cut there from now on.
    pub fn add(&self, addresses: &[u64]) {
        self.change(addresses, Seams::add);
    }

    /// No more.
    pub fn remove(&self, addresses: &[u64]) {
        self.change(addresses, Seams::remove);
    }

    fn change(&self, addresses: &[u64], change: impl FnOnce(&mut Seams, &[u64])) {
        if !addresses.is_empty() {
            let mut seams = self.0.write().unwrap_or_else(PoisonError::into_inner);
            change(Arc::make_mut(&mut seams), addresses);
        }
    }
}

impl Process {
    /// Where copies of the host's memory are cut.
    pub fn host_seams(&self) -> &HostSeams {
        &self.host_seams
    }

    /// Copies pieces between the host and a device in `stream`'s order. Does not wait.
    pub fn copy_batch(
        &self,
        way: Way,
        pieces: &Pieces<'_>,
        device: i32,
        stream: Stream,
    ) -> Result<()> {
        let device = &self.device(device)?.state().device;
        device.copy_pieces(
            way,
            pieces,
            &self.slabs.add_seams(self.host_seams.now()),
            stream,
        )
    }
}
