//! Physical chunks and the handles on them. A chunk lives while a handle or a mapping names it, as in the driver.

use crate::abi::*;
use crate::codes::{self, Result};
use crate::config::Fabric;
use crate::cost::{self, interpolate};
use crate::counters::Snapshot;
use crate::physical::{self, Backing};
use crate::sim::Sim;
use rustc_hash::FxHashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

pub struct Chunk {
    pub size: u64,
    pub prop: AllocationProp,
    pub backing: Backing,
    handles: u64,
    pub maps: u64,
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

    pub fn get_mut(&mut self, key: u64) -> Option<&mut Chunk> {
        self.chunks.get_mut(&key)
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
            // From 13.0 on.
            LOCATION_HOST if self.config.version >= 13_000 && self.config.host_numa => Ok(None),
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
        if types & HANDLE_WINDOWS != 0 {
            return Err(codes::INVALID_VALUE);
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
        if self.config.rocm != 0 && size > self.config.rocm {
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
        self.counters.gave(size);
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

    pub fn drop_chunk_if_unused(&mut self, key: u64) {
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
        if !chunk.foreign {
            self.counters.took(chunk.size);
            if let Some(device) = device {
                self.physical.give(device, chunk.size);
            }
        }
        self.physical.drop_backing(device, chunk.backing);
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
        let file = file_identity(fd).ok_or(codes::UNKNOWN)?;
        if let Some(key) = self.chunks.files.get(&file).copied() {
            return Ok(self.chunks.new_handle(key));
        }
        let device = physical::device_of_file(fd).ok_or(codes::UNKNOWN)?;
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
