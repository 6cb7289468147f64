//! Managed memory: the old forms name a device by a number, the second forms a location.

use crate::abi::{LOCATION_DEVICE, Location};
use crate::codes::{self, Out, Result, put};
use crate::entry::driver;
use crate::managed::{self, CPU};
use std::ffi::c_void;

fn old_location(device: i32) -> Location {
    if device == CPU {
        Location::HOST
    } else {
        Location {
            kind: LOCATION_DEVICE,
            id: device,
        }
    }
}

/// Writes an attribute's words where they fit exactly.
fn write_attribute(
    sim: &crate::sim::Sim,
    to: *mut c_void,
    size: usize,
    which: i32,
    base: u64,
    count: u64,
) -> Result {
    if to.is_null() || size == 0 || size % 4 != 0 {
        return Err(codes::INVALID_VALUE);
    }
    let advice = sim.range_advice(base, count)?;
    let words = managed::attribute(&advice, which, size / 4)?;
    for (at, word) in words.into_iter().enumerate() {
        // SAFETY: the caller's buffer has size bytes, and there is a word for each four of them.
        unsafe { to.cast::<i32>().add(at).write_unaligned(word) };
    }
    Ok(())
}

driver! {
    fn cuMemAllocManaged(out: Out<u64>, size: usize, flags: u32) |sim| {
        if out.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let base = sim.alloc_managed(size as u64, flags)?;
        put(out, base)
    }

    fn cuMemAdvise(base: u64, count: usize, advice: i32, device: i32) |sim| {
        sim.current()?;
        sim.advise(base, count as u64, advice, old_location(device))
    }

    fn cuMemAdvise_v2(base: u64, count: usize, advice: i32, location: Location) |sim| {
        sim.current()?;
        // The second form answers 1 for a device that is not there, the old one 101.
        let known = location.kind != LOCATION_DEVICE || sim.check_device(location.id).is_ok();
        if !known {
            return Err(codes::INVALID_VALUE);
        }
        sim.advise(base, count as u64, advice, location)
    }

    fn cuMemPrefetchAsync(base: u64, count: usize, device: i32, stream: u64) |sim| {
        sim.prefetch(base, count as u64, old_location(device), stream)
    }

    fn cuMemPrefetchAsync_v2(base: u64, count: usize, location: Location, flags: u32, stream: u64) |sim| {
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        sim.prefetch(base, count as u64, location, stream)
    }

    fn cuMemRangeGetAttribute(data: *mut c_void, size: usize, which: i32, base: u64, count: usize) |sim| {
        sim.current()?;
        write_attribute(sim, data, size, which, base, count as u64)
    }

    fn cuMemRangeGetAttributes(
        data: *mut *mut c_void,
        sizes: *const usize,
        which: *const i32,
        attributes: usize,
        base: u64,
        count: usize,
    ) |sim| {
        if data.is_null() || sizes.is_null() || which.is_null() || attributes == 0 {
            return Err(codes::INVALID_VALUE);
        }
        for at in 0..attributes {
            // SAFETY: the caller passes as many of each as it says.
            let (to, size, which) = unsafe { (*data.add(at), *sizes.add(at), *which.add(at)) };
            write_attribute(sim, to, size, which, base, count as u64)?;
        }
        Ok(())
    }
}
