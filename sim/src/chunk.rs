//! Physical chunks and the handles on them. A chunk lives while a handle or a mapping names it, as in the driver.

use crate::abi::*;
use crate::codes::{self, Result};
use crate::config::Fabric;
use crate::cost::{self, interpolate};
use crate::counters::Snapshot;
use crate::physical::Backing;
use crate::sharing;
use crate::sim::Sim;
use rustc_hash::FxHashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub struct Chunk {
    pub size: u64,
    pub prop: AllocationProp,
    pub backing: Backing,
    pub handles: u64,
    pub maps: u64,
    /// Made by another process, which is charged for it.
    pub foreign: bool,
    /// Device and inode of a file of its own, once it may leave the process.
    pub file: Option<(u64, u64)>,
    /// What a handle of some versions of HIP holds of the process.
    pub _descriptor: Option<OwnedFd>,
    /// The ids of the reservations where it has been mapped, noted where HIP holds memory for them.
    pub places: Vec<u64>,
}

/// One of the process's file descriptors, which HIP says to be memory when there are no more.
fn descriptor() -> Result<OwnedFd> {
    // SAFETY: takes no pointers.
    match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) } {
        -1 => Err(codes::OUT_OF_MEMORY),
        // SAFETY: the descriptor was just made, and this is its only owner.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

impl Chunk {
    pub fn device(&self) -> Option<i32> {
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
    pub files: FxHashMap<(u64, u64), u64>,
    /// Memory that is taken though nothing names it: of what reservation, of what device, how much.
    pub held: Vec<(u64, i32, u64)>,
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

    pub fn new_handle(&mut self, chunk: u64) -> u64 {
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
        let quirks = &self.config.quirks;
        if quirks.create_limit != 0 && size > quirks.create_limit {
            return Err(codes::OUT_OF_MEMORY);
        }
        let descriptor = quirks.fds.then(descriptor).transpose()?;
        self.check_handle_types(prop.handle_types)?;
        if prop.rdma != 0 && !self.config.rdma {
            return Err(codes::NOT_SUPPORTED);
        }
        if let Some(device) = device {
            self.physical.take(device, size)?;
        }
        cost::charge(interpolate(cost::CREATE, size));
        // The processor may write to host memory at any time, so its file cannot change later.
        let own = prop.handle_types != 0 && device.is_none();
        let backing = self.physical.backing(device, size, own).inspect_err(|_| {
            if let Some(device) = device {
                self.physical.give(device, size);
            }
        })?;
        self.counters.gave(size);
        let file = if backing.own {
            sharing::file_identity(backing.fd.as_raw_fd())
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
            _descriptor: descriptor,
            places: Vec::new(),
        }))
    }

    pub fn add_chunk(&mut self, chunk: Chunk) -> u64 {
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
                match self.last_place(&chunk.places) {
                    Some(place) => self.chunks.held.push((place, device, chunk.size)),
                    None => self.physical.give(device, chunk.size),
                }
            }
        }
        self.physical.drop_backing(device, chunk.backing);
    }

    /// The last of some reservations that is still there.
    fn last_place(&self, places: &[u64]) -> Option<u64> {
        let lives = |id: &&u64| self.regions.iter().any(|(_, region)| region.id == **id);
        places.iter().rev().find(lives).copied()
    }

    /// Gives back what was held for a reservation.
    pub fn let_go(&mut self, place: u64) {
        let held = std::mem::take(&mut self.chunks.held);
        for (of, device, bytes) in held {
            match of == place {
                true => self.physical.give(device, bytes),
                false => self.chunks.held.push((of, device, bytes)),
            }
        }
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
}
