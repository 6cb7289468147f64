//! Which node of the host is nearest to a device. The system knows the devices on the bus; the driver is asked
//! where that says nothing of one, or -1. Neither may know, and then nothing is guessed.

use super::device::Device;
use super::driver::Driver;
use crate::error::{DriverCode, Result};
use crate::sys::cuda::{Cuda, Refusal};
use crate::sys::numa::{self, Topology};
use std::ffi::{CStr, c_char, c_int};
use std::path::Path;

/// The attribute that tells the nearest NUMA node of the host, -1 where there are none.
const HOST_NUMA_ID: c_int = 134;

impl Device {
    /// The node of the host with processors that is nearest to this device; none where nobody knows.
    pub fn nearest_host_node(&self) -> Result<Option<u32>> {
        let found = (self.host_node()).get_or_try_init(|| nearest(self.cuda(), self.handle()));
        found.copied()
    }

    /// The same for memory that the driver makes on no node but one that is named: where the nearest is unknown, the
    /// first with processors.
    pub fn host_node_to_name(&self) -> Result<i32> {
        let nearest = self.nearest_host_node()?;
        let first = || Topology::read(Path::new("/")).first_whole();
        Ok(nearest.or_else(first).unwrap_or(0) as i32)
    }
}

impl Driver {
    /// [`Device::nearest_host_node`] of a device that need not be in use, nor comes into it.
    pub fn nearest_host_node(&self, ordinal: i32) -> Result<Option<u32>> {
        self.slot(ordinal)?;
        let mut handle: c_int = 0;
        // SAFETY: a valid out-pointer.
        unsafe { self.cuda().device_get(&mut handle, ordinal) }
            .map_err(|refusal| self.cuda().error(refusal))?;
        nearest(self.cuda(), handle)
    }
}

fn nearest(cuda: &Cuda, device: c_int) -> Result<Option<u32>> {
    let root = Path::new("/");
    let of_bus = match bus_address(cuda, device) {
        Ok(address) => numa::of_bus_address(root, &address),
        // A driver that does not tell it.
        Err(refusal) if refusal.code.is_none() => None,
        Err(refusal) => return Err(cuda.error(refusal)),
    };
    nearest_of(of_bus, &Topology::read(root), || {
        known_to_driver(cuda, device)
    })
}

fn nearest_of(
    of_bus: Option<i32>,
    topology: &Topology,
    of_driver: impl FnOnce() -> Result<Option<i32>>,
) -> Result<Option<u32>> {
    match of_bus {
        Some(node) if node >= 0 => Ok(topology.nearest_whole(node)),
        _ => Ok(of_driver()?.and_then(|node| match topology.knows(node) {
            true => topology.nearest_whole(node),
            false => u32::try_from(node).ok(),
        })),
    }
}

fn bus_address(cuda: &Cuda, device: c_int) -> std::result::Result<String, Refusal> {
    let mut text = [0 as c_char; 64];
    // SAFETY: the text has a byte more than the driver is told.
    unsafe { cuda.device_bus_address(text.as_mut_ptr(), 63, device) }?;
    // SAFETY: the driver ended the text with a zero byte within it, and the last byte is one.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    Ok(text.to_string_lossy().into_owned())
}

/// None where the driver is too old to know.
fn known_to_driver(cuda: &Cuda, device: c_int) -> Result<Option<i32>> {
    let mut node: c_int = -1;
    // SAFETY: a valid out-pointer.
    match unsafe { cuda.device_attribute(&mut node, HOST_NUMA_ID, device) } {
        Ok(()) => Ok(Some(node)),
        Err(refusal) if refusal.code == Some(DriverCode::INVALID_VALUE) => Ok(None),
        Err(refusal) => Err(cuda.error(refusal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::faked::root;

    #[test]
    fn the_driver_is_asked_where_the_bus_says_nothing() {
        let folder = "sys/devices/system/node";
        let mut files = vec![(format!("{folder}/online"), "0-1")];
        for node in 0..2 {
            files.push((format!("{folder}/node{node}/cpulist"), "0"));
            files.push((
                format!("{folder}/node{node}/meminfo"),
                "Node MemTotal: 9 kB",
            ));
        }
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (path.as_str(), *text))
            .collect();
        let root = root(&files);
        let there = Topology::read(root.path());
        let nearest = |bus, driver| nearest_of(bus, &there, || Ok(driver)).unwrap();
        assert_eq!(nearest(Some(0), Some(1)), Some(0));
        assert_eq!(nearest(Some(-1), Some(1)), Some(1));
        assert_eq!(nearest(None, Some(1)), Some(1));
        assert_eq!(nearest(Some(-1), Some(-1)), None);
        assert_eq!(nearest(Some(-1), None), None);
    }
}
