//! The nodes of memory that a program names for its memory of the host.

use super::Process;
use crate::error::{Error, Result, Status};
use crate::sys::numa::Topology;
use std::path::Path;

impl Process {
    /// The node with processors that is nearest to a device, which need not be in use; an error where nobody knows.
    pub fn nearest_node(&self, ordinal: i32) -> Result<u32> {
        let nearest = self.driver()?.nearest_host_node(ordinal)?;
        nearest.ok_or_else(|| {
            let detail = format!(
                "neither the system (numa_node in /sys/bus/pci/devices) nor the driver says which node is nearest to device {ordinal}"
            );
            let there = Topology::read(Path::new("/")).with_memory();
            Error::new(Status::Unsupported, "hbm_nearest_numa_node")
                .detail(detail)
                .advice(format!("Name a node by its number, or none. {there}"))
        })
    }
}
