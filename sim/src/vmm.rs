//! Virtual memory management: handles on physical chunks, and their places in reserved address ranges.
//! A chunk lives while a handle or a mapping names it, as in the driver.

use crate::abi::*;
use crate::codes::{self, Result};
use crate::config::Fabric;
use crate::cost::{self, interpolate};
use crate::counters::Snapshot;
use crate::entry::Locked;
use crate::physical::{self, Backing};
use crate::region::{self, Kind, Mapping, Region};
use crate::sim::Sim;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

pub struct Chunk {
    pub size: u64,
    pub prop: AllocationProp,
    backing: Backing,
    handles: u64,
    maps: u64,
    /// Made by another process, which is charged for it.
    foreign: bool,
    file: Option<(u64, u64)>,
}

impl Chunk {
    fn device(&self) -> Option<i32> {
        (self.prop.location.kind == LOCATION_DEVICE).then_some(self.prop.location.id)
    }
}

// SAFETY: the only pointer in it is the caller's win32 field, which is kept and never followed.
unsafe impl Send for Chunk {}

struct Handle {
    chunk: u64,
    references: u64,
}

#[derive(Default)]
pub struct Chunks {
    chunks: FxHashMap<u64, Chunk>,
    handles: FxHashMap<u64, Handle>,
    /// Files of chunks that may leave the process, by device and inode.
    files: FxHashMap<(u64, u64), u64>,
    next: u64,
}

const FIRST_HANDLE: u64 = 0x4d00_0000_0000;

impl Chunks {
    pub fn count(&self, out: &mut Snapshot) {
        out.handles = self.handles.len() as u64;
        for chunk in self.chunks.values() {
            out.chunks += 1;
            match chunk.device() {
                Some(_) => out.chunk_bytes += chunk.size,
                None => out.host_chunk_bytes += chunk.size,
            }
        }
    }

    pub fn by_handle(&self, handle: u64) -> Result<(u64, &Chunk)> {
        let key = self.handles.get(&handle).ok_or(codes::INVALID_VALUE)?.chunk;
        Ok((key, self.chunks.get(&key).ok_or(codes::INVALID_VALUE)?))
    }

    pub fn by_key(&self, key: u64) -> Option<&Chunk> {
        self.chunks.get(&key)
    }

    fn new_handle(&mut self, chunk: u64) -> u64 {
        self.next += 1;
        let handle = FIRST_HANDLE + self.next * 16;
        self.handles.insert(
            handle,
            Handle {
                chunk,
                references: 1,
            },
        );
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk.handles += 1;
        }
        handle
    }
}

impl Sim {
    pub fn check_vmm(&self) -> Result {
        if self.config.vmm {
            Ok(())
        } else {
            Err(codes::NOT_SUPPORTED)
        }
    }

    /// Checks what a chunk is asked to be; the answer is the device that is charged.
    pub fn check_prop(&self, prop: &AllocationProp) -> Result<Option<i32>> {
        if prop.kind != ALLOCATION_PINNED {
            return Err(codes::INVALID_VALUE);
        }
        match prop.location.kind {
            LOCATION_DEVICE => {
                self.check_device(prop.location.id)?;
                Ok(Some(prop.location.id))
            }
            LOCATION_HOST_NUMA if !self.config.host_numa => Err(codes::NOT_SUPPORTED),
            LOCATION_HOST_NUMA => {
                let known =
                    prop.location.id >= 0 && (prop.location.id as u32) < self.config.numa_nodes;
                if known {
                    Ok(None)
                } else {
                    Err(codes::INVALID_VALUE)
                }
            }
            _ => Err(codes::INVALID_VALUE),
        }
    }

    fn check_handle_types(&self, types: u32) -> Result {
        if types & !(HANDLE_POSIX_FD | HANDLE_FABRIC) != 0 {
            return Err(codes::NOT_SUPPORTED);
        }
        if types & HANDLE_FABRIC != 0 {
            match self.config.fabric {
                Fabric::Works => {}
                Fabric::Advertised => return Err(codes::NOT_PERMITTED),
                Fabric::None => return Err(codes::NOT_SUPPORTED),
            }
        }
        if types & HANDLE_POSIX_FD != 0 && !self.config.posix_fd {
            return Err(codes::NOT_SUPPORTED);
        }
        Ok(())
    }

    pub fn create_chunk(&mut self, size: u64, prop: &AllocationProp) -> Result<u64> {
        self.check_vmm()?;
        let device = self.check_prop(prop)?;
        if size == 0 || size % self.config.granularity != 0 {
            return Err(codes::INVALID_VALUE);
        }
        self.check_handle_types(prop.handle_types)?;
        if prop.rdma != 0 && !self.config.rdma {
            return Err(codes::NOT_SUPPORTED);
        }
        if let Some(device) = device {
            self.physical.take(device, size)?;
        }
        cost::charge(interpolate(cost::CREATE, size));
        let backing = self
            .physical
            .backing(device, size, prop.handle_types != 0)
            .inspect_err(|_| {
                if let Some(device) = device {
                    self.physical.give(device, size);
                }
            })?;
        let file = if backing.own {
            file_identity(backing.fd.as_raw_fd())
        } else {
            None
        };
        Ok(self.add_chunk(Chunk {
            size,
            prop: *prop,
            backing,
            handles: 0,
            maps: 0,
            foreign: false,
            file,
        }))
    }

    fn add_chunk(&mut self, chunk: Chunk) -> u64 {
        self.chunks.next += 1;
        let key = self.chunks.next;
        if let Some(file) = chunk.file {
            self.chunks.files.insert(file, key);
        }
        self.chunks.chunks.insert(key, chunk);
        self.chunks.new_handle(key)
    }

    pub fn release_handle(&mut self, handle: u64) -> Result {
        let entry = self
            .chunks
            .handles
            .get_mut(&handle)
            .ok_or(codes::INVALID_VALUE)?;
        entry.references -= 1;
        let key = entry.chunk;
        if entry.references == 0 {
            self.chunks.handles.remove(&handle);
            if let Some(chunk) = self.chunks.chunks.get_mut(&key) {
                chunk.handles -= 1;
                cost::charge(interpolate(cost::RELEASE, chunk.size));
            }
            self.drop_chunk_if_unused(key);
        }
        Ok(())
    }

    fn drop_chunk_if_unused(&mut self, key: u64) {
        let unused = self
            .chunks
            .chunks
            .get(&key)
            .is_some_and(|c| c.handles == 0 && c.maps == 0);
        let Some(chunk) = (if unused {
            self.chunks.chunks.remove(&key)
        } else {
            None
        }) else {
            return;
        };
        if let Some(file) = chunk.file {
            self.chunks.files.remove(&file);
        }
        let device = chunk.device();
        if let (Some(device), false) = (device, chunk.foreign) {
            self.physical.give(device, chunk.size);
        }
        self.physical.drop_backing(device, chunk.backing);
    }

    pub fn reserve(&mut self, size: u64, align: u64, hint: u64) -> Result<u64> {
        self.check_vmm()?;
        let granularity = self.config.granularity;
        if size == 0 || size % granularity != 0 || (align != 0 && !align.is_power_of_two()) {
            return Err(codes::INVALID_VALUE);
        }
        cost::charge(interpolate(cost::RESERVE, size));
        let base = region::take_address(size, align.max(granularity), hint, false)?;
        self.regions
            .insert(base, size, size, 0, Kind::Reservation(BTreeMap::new()));
        Ok(base)
    }

    pub fn free_address(&mut self, base: u64, size: u64) -> Result {
        match self.regions.get(base) {
            Some(Region {
                len,
                kind: Kind::Reservation(mappings),
                ..
            }) if *len == size && mappings.is_empty() => {}
            _ => return Err(codes::INVALID_VALUE),
        }
        cost::charge(interpolate(cost::ADDRESS_FREE, size));
        self.regions.remove(base);
        region::release_address(base, size);
        Ok(())
    }

    pub fn map_chunk(&mut self, address: u64, size: u64, offset: u64, handle: u64) -> Result {
        let granularity = self.config.granularity;
        if size == 0 || offset != 0 || address % granularity != 0 {
            return Err(codes::INVALID_VALUE);
        }
        let (key, chunk) = self.chunks.by_handle(handle)?;
        if chunk.size != size {
            return Err(codes::INVALID_VALUE);
        }
        let (fd, file_offset) = (chunk.backing.fd.clone(), chunk.backing.offset);
        let mappings = self.reservation(address, size)?;
        let clashes = mappings
            .range(..address + size)
            .next_back()
            .is_some_and(|(at, m)| at + m.len > address);
        if clashes {
            return Err(codes::INVALID_VALUE);
        }
        region::place(address, size, fd.as_raw_fd(), file_offset)?;
        mappings.insert(
            address,
            Mapping {
                len: size,
                chunk: key,
                access: Vec::new(),
            },
        );
        if let Some(chunk) = self.chunks.chunks.get_mut(&key) {
            chunk.maps += 1;
        }
        cost::charge(interpolate(cost::MAP, size));
        Ok(())
    }

    /// The mappings of the reservation that holds the whole range.
    fn reservation(&mut self, address: u64, size: u64) -> Result<&mut BTreeMap<u64, Mapping>> {
        let (base, region) = self.regions.find_mut(address).ok_or(codes::INVALID_VALUE)?;
        let end = address.checked_add(size).ok_or(codes::INVALID_VALUE)?;
        match &mut region.kind {
            Kind::Reservation(mappings) if end <= base + region.len => Ok(mappings),
            _ => Err(codes::INVALID_VALUE),
        }
    }

    /// Starts of the mappings that fill a range exactly, without a gap.
    fn whole_mappings(&mut self, address: u64, size: u64) -> Result<Vec<u64>> {
        let mappings = self.reservation(address, size)?;
        let (mut at, end) = (address, address + size);
        let mut starts = Vec::new();
        for (start, mapping) in mappings.range(address..end) {
            if *start != at {
                return Err(codes::INVALID_VALUE);
            }
            starts.push(*start);
            at += mapping.len;
        }
        if size == 0 || at != end {
            Err(codes::INVALID_VALUE)
        } else {
            Ok(starts)
        }
    }

    fn check_access(&self, desc: &AccessDesc, chunk: u64) -> Result {
        if !matches!(desc.flags, ACCESS_NONE | ACCESS_READ | ACCESS_READ_WRITE) {
            return Err(codes::INVALID_VALUE);
        }
        let home = self.chunks.by_key(chunk).map(|c| c.prop.location);
        match desc.location.kind {
            LOCATION_DEVICE => {
                self.check_device(desc.location.id)?;
                let own =
                    home.is_none_or(|h| h.kind != LOCATION_DEVICE || h.id == desc.location.id);
                if own || self.config.peers {
                    Ok(())
                } else {
                    Err(codes::INVALID_DEVICE)
                }
            }
            LOCATION_HOST | LOCATION_HOST_NUMA
                if home.is_some_and(|h| h.kind == LOCATION_HOST_NUMA) =>
            {
                Ok(())
            }
            _ => Err(codes::INVALID_VALUE),
        }
    }

    pub fn set_access(&mut self, address: u64, size: u64, descs: &[AccessDesc]) -> Result {
        let starts = self.whole_mappings(address, size)?;
        for start in &starts {
            let chunk = self.reservation(address, size)?[start].chunk;
            for desc in descs {
                self.check_access(desc, chunk)?;
            }
        }
        let mut widths = Vec::with_capacity(starts.len());
        let mappings = self.reservation(address, size)?;
        let mut nanoseconds = 0;
        for start in starts {
            let Some(mapping) = mappings.get_mut(&start) else {
                continue;
            };
            let before = mapping.widest();
            for desc in descs {
                mapping.access.retain(|a| a.location != desc.location);
                mapping.access.push(*desc);
            }
            nanoseconds += interpolate(cost::SET_ACCESS, mapping.len) * descs.len() as u64;
            widths.push((start, mapping.len, before, mapping.widest()));
        }
        cost::charge(nanoseconds);
        protect_runs(&widths)
    }

    /// Takes the mappings of a range away. What still used it has been dealt with.
    fn unmap(&mut self, address: u64, size: u64, starts: &[u64]) -> Result {
        region::vacate(address, size)?;
        let mappings = self.reservation(address, size)?;
        let removed: Vec<Mapping> = starts
            .iter()
            .filter_map(|start| mappings.remove(start))
            .collect();
        for mapping in removed {
            cost::charge(interpolate(cost::UNMAP, mapping.len) * mapping.grantees().max(1));
            if let Some(chunk) = self.chunks.chunks.get_mut(&mapping.chunk) {
                chunk.maps -= 1;
            }
            self.drop_chunk_if_unused(mapping.chunk);
        }
        Ok(())
    }

    pub fn retain_by_address(&mut self, address: u64) -> Result<u64> {
        let key = self.mapping_at(address).ok_or(codes::INVALID_VALUE)?.chunk;
        let found = self
            .chunks
            .handles
            .iter_mut()
            .find(|(_, entry)| entry.chunk == key);
        match found {
            Some((handle, entry)) => {
                entry.references += 1;
                Ok(*handle)
            }
            None => Ok(self.chunks.new_handle(key)),
        }
    }

    pub fn mapping_at(&self, address: u64) -> Option<&Mapping> {
        let (_, region) = self.regions.find(address)?;
        let Kind::Reservation(mappings) = &region.kind else {
            return None;
        };
        let (start, mapping) = mappings.range(..=address).next_back()?;
        (address - start < mapping.len).then_some(mapping)
    }

    pub fn export_fd(&mut self, handle: u64) -> Result<RawFd> {
        let (_, chunk) = self.chunks.by_handle(handle)?;
        if chunk.prop.handle_types & HANDLE_POSIX_FD == 0 {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: duplicating an open descriptor.
        let fd = unsafe { libc::fcntl(chunk.backing.fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
        if fd < 0 {
            Err(codes::OUT_OF_MEMORY)
        } else {
            Ok(fd)
        }
    }

    pub fn export_fabric(&mut self, handle: u64) -> Result<[u8; 64]> {
        let (_, chunk) = self.chunks.by_handle(handle)?;
        if chunk.prop.handle_types & HANDLE_FABRIC == 0 {
            return Err(codes::INVALID_VALUE);
        }
        let mut data = [0; 64];
        data[..4].copy_from_slice(&std::process::id().to_le_bytes());
        data[4..8].copy_from_slice(&chunk.backing.fd.as_raw_fd().to_le_bytes());
        Ok(data)
    }

    /// Takes a chunk in by its file; the caller keeps its own descriptor.
    pub fn import_fd(&mut self, fd: RawFd, types: u32) -> Result<u64> {
        self.check_vmm()?;
        let file = file_identity(fd).ok_or(codes::INVALID_VALUE)?;
        if let Some(key) = self.chunks.files.get(&file).copied() {
            return Ok(self.chunks.new_handle(key));
        }
        let device = physical::device_of_file(fd).ok_or(codes::INVALID_VALUE)?;
        let location = if device < 0 {
            Location {
                kind: LOCATION_HOST_NUMA,
                id: 0,
            }
        } else {
            Location::device(device)
        };
        if device >= 0 {
            self.check_device(device)?;
        }
        let size = file_size(fd).ok_or(codes::INVALID_VALUE)?;
        // SAFETY: duplicating the caller's open descriptor gives one of our own.
        let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if own < 0 {
            return Err(codes::OUT_OF_MEMORY);
        }
        // SAFETY: just made, and nobody else has it.
        let own = Arc::new(unsafe { OwnedFd::from_raw_fd(own) });
        let prop = imported_prop(location, types);
        let backing = Backing {
            fd: own,
            offset: 0,
            len: size,
            own: true,
        };
        Ok(self.add_chunk(Chunk {
            size,
            prop,
            backing,
            handles: 0,
            maps: 0,
            foreign: true,
            file: Some(file),
        }))
    }
}

impl Sim {
    /// A fabric handle names the exporting process and its file.
    pub fn import_fabric(&mut self, data: &[u8; 64]) -> Result<u64> {
        if self.config.fabric != Fabric::Works {
            return Err(codes::NOT_SUPPORTED);
        }
        let word =
            |at: usize| u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
        let path = format!("/proc/{}/fd/{}", word(0), word(4));
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|_| codes::INVALID_VALUE)?;
        self.import_fd(file.as_raw_fd(), HANDLE_FABRIC)
    }
}

impl Locked {
    /// Unmaps whole mappings. Work that still uses them would fault on a card: that is recorded, and a copy under way is let finish first.
    pub fn unmap_range(&mut self, address: u64, size: u64) -> Result {
        let starts = self.whole_mappings(address, size)?;
        self.fault_users(address, size, "cuMemUnmap");
        self.wait_until(|sim| !sim.streams.running_in(address, size));
        self.unmap(address, size, &starts)
    }
}

fn imported_prop(location: Location, handle_types: u32) -> AllocationProp {
    AllocationProp {
        kind: ALLOCATION_PINNED,
        handle_types,
        location,
        win32: std::ptr::null_mut(),
        compression: 0,
        rdma: 0,
        usage: 0,
        reserved: [0; 4],
    }
}

/// Changes the host's protection, one call a run of neighbours that end up alike.
fn protect_runs(widths: &[(u64, u64, i32, i32)]) -> Result {
    let mut at = 0;
    while at < widths.len() {
        let (start, mut len, before, after) = widths[at];
        at += 1;
        while at < widths.len() && widths[at].3 == after && widths[at].2 == before {
            len += widths[at].1;
            at += 1;
        }
        if before != after {
            region::protect(start, len, after)?;
        }
    }
    Ok(())
}

fn stat(fd: RawFd) -> Option<libc::stat> {
    let mut out = std::mem::MaybeUninit::uninit();
    // SAFETY: fstat fills the struct when it answers 0, and only then is it read.
    unsafe { (libc::fstat(fd, out.as_mut_ptr()) == 0).then(|| out.assume_init()) }
}

fn file_identity(fd: RawFd) -> Option<(u64, u64)> {
    stat(fd).map(|s| (s.st_dev, s.st_ino))
}

fn file_size(fd: RawFd) -> Option<u64> {
    stat(fd).map(|s| s.st_size as u64).filter(|size| *size > 0)
}
