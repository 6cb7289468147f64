//! Virtual memory management.

use crate::abi::*;
use crate::codes::{self, Out, put};
use crate::entry::driver;
use std::ffi::c_void;

const MOST_DESCS: usize = 1024;

driver! {
    fn cuMemAddressReserve(out: Out<u64>, size: usize, align: usize, hint: u64, flags: u64) |sim| {
        if flags != 0 || out.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let base = sim.reserve(size as u64, align as u64, hint)?;
        put(out, base)
    }

    fn cuMemAddressFree(base: u64, size: usize) |sim| { sim.free_address(base, size as u64) }

    fn cuMemCreate(out: Out<u64>, size: usize, prop: Option<&AllocationProp>, flags: u64) |sim| {
        let prop = prop.ok_or(codes::INVALID_VALUE)?;
        if flags != 0 || out.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let handle = sim.create_chunk(size as u64, prop)?;
        put(out, handle)
    }

    fn cuMemRelease(handle: u64) |sim| { sim.release_handle(handle) }

    fn cuMemMap(address: u64, size: usize, offset: usize, handle: u64, flags: u64) |sim| {
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        sim.map_chunk(address, size as u64, offset as u64, handle)
    }

    fn cuMemUnmap(address: u64, size: usize) |sim| { sim.unmap_range(address, size as u64) }

    fn cuMemSetAccess(address: u64, size: usize, descs: *const AccessDesc, count: usize) |sim| {
        if descs.is_null() || count == 0 || count > MOST_DESCS {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: the caller passes as many descriptors as it says.
        let descs = unsafe { std::slice::from_raw_parts(descs, count) };
        sim.set_access(address, size as u64, descs)
    }

    fn cuMemGetAccess(flags: Out<u64>, location: Option<&Location>, address: u64) |sim| {
        let location = location.ok_or(codes::INVALID_VALUE)?;
        let mapping = sim.mapping_at(address).ok_or(codes::INVALID_VALUE)?;
        put(flags, mapping.flags(location.kind, location.id) as u64)
    }

    fn cuMemGetAllocationGranularity(out: Out<usize>, prop: Option<&AllocationProp>, option: i32) |sim| {
        sim.check_vmm()?;
        if prop.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        if !(0..=1).contains(&option) {
            return Err(codes::INVALID_VALUE);
        }
        put(out, sim.config.granularity as usize)
    }

    fn cuMemGetAllocationPropertiesFromHandle(out: Out<AllocationProp>, handle: u64) |sim| {
        let (_, chunk) = sim.chunks.by_handle(handle)?;
        put(out, chunk.prop)
    }

    fn cuMemRetainAllocationHandle(out: Out<u64>, address: u64) |sim| {
        if out.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let handle = sim.retain_by_address(address)?;
        put(out, handle)
    }

    fn cuMemExportToShareableHandle(out: *mut c_void, handle: u64, kind: u32, flags: u64) |sim| {
        if out.is_null() || flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        match kind {
            HANDLE_POSIX_FD => {
                let fd = sim.export_fd(handle)?;
                // SAFETY: for this kind the caller passes a place for an int.
                unsafe { out.cast::<i32>().write_unaligned(fd) };
            }
            HANDLE_FABRIC => {
                let data = sim.export_fabric(handle)?;
                // SAFETY: for this kind the caller passes a place for 64 bytes.
                unsafe { out.cast::<[u8; 64]>().write_unaligned(data) };
            }
            _ => return Err(codes::INVALID_VALUE),
        }
        Ok(())
    }

    fn cuMemImportFromShareableHandle(out: Out<u64>, shared: *mut c_void, kind: u32) |sim| {
        if out.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let handle = match kind {
            HANDLE_POSIX_FD => sim.import_fd(shared as usize as i32, kind)?,
            HANDLE_FABRIC if shared.is_null() => return Err(codes::INVALID_VALUE),
            HANDLE_FABRIC => {
                // SAFETY: for this kind the caller passes 64 bytes.
                let data = unsafe { shared.cast::<[u8; 64]>().read_unaligned() };
                sim.import_fabric(&data)?
            }
            _ => return Err(codes::INVALID_VALUE),
        };
        put(out, handle)
    }
}
