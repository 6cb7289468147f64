//! Which node of memory is near to a device.

use super::{export, write_out};
use crate::observe;

/// Writes the number of the node of host memory that is nearest to a device, for the functions that take a node.
/// It is the one that the system names for the device on the bus; where that has no processors, as the
/// memory of a device that is a node has none, the nearest that has. The device need not be in use and does not
/// come into it; the driver is opened. HBM_UNSUPPORTED, and -1 written, where neither the system nor the driver
/// knows: name a node then, or none.
///
/// # Safety
/// `node` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_nearest_numa_node(device: i32, node: *mut i32) -> i32 {
    export(|| {
        // SAFETY: passed on to the caller.
        unsafe { write_out("hbm_nearest_numa_node", node, -1) }?;
        let nearest = observe::process().nearest_node(device)?;
        // SAFETY: as above.
        unsafe { write_out("hbm_nearest_numa_node", node, nearest as i32) }
    })
}
