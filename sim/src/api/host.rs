//! Pinned and registered host memory.

use crate::codes::{self, Out, put};
use crate::entry::driver;

driver! {
    fn cuMemHostAlloc(out: Out<u64>, size: usize, flags: u32) |sim| {
        if out.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let base = sim.alloc_pinned(size as u64, flags)?;
        put(out, base)
    }

    fn cuMemAllocHost_v2(out: Out<u64>, size: usize) |sim| {
        if out.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let base = sim.alloc_pinned(size as u64, 0)?;
        put(out, base)
    }

    fn cuMemFreeHost(base: u64) |sim| { sim.free_pinned(base) }

    fn cuMemHostRegister_v2(address: u64, size: usize, flags: u32) |sim| { sim.register(address, size as u64, flags) }

    fn cuMemHostUnregister(address: u64) |sim| { sim.unregister(address) }

    fn cuMemHostGetDevicePointer_v2(out: Out<u64>, address: u64, flags: u32) |sim| {
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        put(out, sim.device_pointer(address)?)
    }

    fn cuMemHostGetFlags(out: Out<u32>, address: u64) |sim| { put(out, sim.host_flags(address)?) }
}
