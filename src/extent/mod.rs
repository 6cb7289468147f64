//! What backs an address. This is the one place that changes it, and the one place that decides
//! when memory that running work may still use is given back.

mod audit;
mod backing;
pub mod cell;
pub mod deferral;
mod guard;
pub mod range;
pub mod residency;
pub mod shared;
pub mod table;

use crate::config::value::Location;
use crate::core::limit::Limit;
use crate::core::size::Align;
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::gpu::{ChunkSpec, Device};
use deferral::Deferral;
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};
use table::Extents;

/// Everything of one device that its sources share.
pub struct DeviceState {
    /// The device.
    pub device: Arc<Device>,
    /// What backs its addresses.
    pub extents: Extents,
    /// What waits to be given back.
    pub deferral: Deferral,
    /// The memory of the device that is held, and the most that may be. Whoever makes memory there
    /// takes room here first; for chunks, [`Extents`] does.
    pub limit: Arc<Limit>,
    grains: Mutex<FxHashMap<Location, (ChunkSpec, Align)>>,
}

impl DeviceState {
    /// The state of a device that has given nothing out yet.
    pub fn new(device: Arc<Device>) -> DeviceState {
        let limit = Arc::new(Limit::new(format!("device {}", device.ordinal())));
        DeviceState {
            extents: Extents::new(device.clone(), limit.clone()),
            deferral: Deferral::new(device.clone()),
            limit,
            grains: Mutex::default(),
            device,
        }
    }

    /// The kind of chunks that works at `location`, and its granularity. Probed at the first use and
    /// kept, so that all chunks of a place are of one kind; a failure is not kept.
    pub fn grain(&self, location: Location) -> Result<(ChunkSpec, Align)> {
        let mut grains = lock(&self.grains);
        if let Some(grain) = grains.get(&location) {
            return Ok(*grain);
        }
        let grain = self.probe_grain(location)?;
        grains.insert(location, grain);
        Ok(grain)
    }

    fn probe_grain(&self, location: Location) -> Result<(ChunkSpec, Align)> {
        let device = &self.device;
        let probe = match location {
            Location::Device => device.vmm()?,
            Location::HostNuma(_) => device.host_numa()?,
        };
        probe.map_err(|error| error.advice("Use the device or async source here"))?;
        let spec = device.best_chunk(location)?;
        let bytes = spec.granularity(device)?;
        let align = Align::new(bytes).ok_or_else(|| {
            Error::new(Status::Unsupported, "cuMemGetAllocationGranularity")
                .detail(format!("a granularity of {bytes} bytes is no power of two"))
        })?;
        Ok((spec, align))
    }
}
