//! What backs an address. This is the one place that changes it, and the one place that decides
//! when memory that running work may still use is given back.

pub mod deferral;
pub mod table;

use crate::gpu::Device;
use deferral::Deferral;
use std::sync::Arc;
use table::Extents;

/// Everything of one device that its sources share.
pub struct DeviceState {
    /// The device.
    pub device: Arc<Device>,
    /// What backs its addresses.
    pub extents: Extents,
    /// What waits to be given back.
    pub deferral: Deferral,
}

impl DeviceState {
    /// The state of a device that has given nothing out yet.
    pub fn new(device: Arc<Device>) -> DeviceState {
        DeviceState {
            extents: Extents::new(device.clone()),
            deferral: Deferral::new(device.clone()),
            device,
        }
    }
}
