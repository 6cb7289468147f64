//! Chunks on their way to other processes and from them: as file descriptors, and as fabric handles that name a process and its descriptor.
//! A chunk is a part of its device's file until it leaves, when it gets a file of its own: one descriptor a chunk would run out.

use crate::abi::*;
use crate::chunk::Chunk;
use crate::codes::{self, Result};
use crate::config::Fabric;
use crate::entry::Locked;
use crate::physical::{self, Backing};
use crate::region::{self, Kind};
use crate::sim::Sim;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

impl Locked {
    pub fn export_fd(&mut self, handle: u64) -> Result<RawFd> {
        let file = self.own_file(handle, HANDLE_POSIX_FD)?;
        // SAFETY: duplicating an open descriptor.
        let fd = unsafe { libc::fcntl(file, libc::F_DUPFD_CLOEXEC, 3) };
        if fd < 0 {
            Err(codes::OUT_OF_MEMORY)
        } else {
            Ok(fd)
        }
    }

    pub fn export_fabric(&mut self, handle: u64) -> Result<[u8; 64]> {
        let file = self.own_file(handle, HANDLE_FABRIC)?;
        let mut data = [0; 64];
        data[..4].copy_from_slice(&std::process::id().to_le_bytes());
        data[4..8].copy_from_slice(&file.to_le_bytes());
        Ok(data)
    }

    /// The chunk's own file, made if need be, if it was created for that way out. Work under way on the chunk is let finish first.
    fn own_file(&mut self, handle: u64, kind: u32) -> Result<RawFd> {
        loop {
            let (key, chunk) = self.chunks.by_handle(handle)?;
            if chunk.prop.handle_types & kind == 0 {
                return Err(codes::INVALID_VALUE);
            }
            if chunk.backing.own {
                return Ok(chunk.backing.fd.as_raw_fd());
            }
            let places = self.places_of(key);
            let used = |(base, len, _): &(u64, u64, i32)| self.streams.running_in(*base, *len);
            if !places.iter().any(used) {
                return self.move_to_own_file(key, &places);
            }
            self.wait_done();
        }
    }
}

impl Sim {
    /// Where a chunk is mapped: start, length and the widest access.
    fn places_of(&self, key: u64) -> Vec<(u64, u64, i32)> {
        let mut places = Vec::new();
        for (_, region) in self.regions.iter() {
            if let Kind::Reservation(mappings) = &region.kind {
                let of_chunk = mappings.iter().filter(|(_, m)| m.chunk == key);
                places.extend(of_chunk.map(|(base, m)| (*base, m.len, m.widest())));
            }
        }
        places
    }

    fn move_to_own_file(&mut self, key: u64, places: &[(u64, u64, i32)]) -> Result<RawFd> {
        let chunk = self.chunks.by_key(key).ok_or(codes::INVALID_VALUE)?;
        let device = chunk.device();
        let own = physical::own_backing(device, chunk.size)?;
        physical::copy_contents(&chunk.backing, &own)?;
        let fd = own.fd.as_raw_fd();
        for (base, len, access) in places {
            region::place(*base, *len, fd, 0)?;
            region::protect(*base, *len, *access)?;
        }
        let file = file_identity(fd).ok_or(codes::UNKNOWN)?;
        self.chunks.files.insert(file, key);
        let chunk = self.chunks.get_mut(key).ok_or(codes::INVALID_VALUE)?;
        chunk.file = Some(file);
        let before = std::mem::replace(&mut chunk.backing, own);
        self.physical.drop_backing(device, before);
        Ok(fd)
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
            _descriptor: None,
            places: Vec::new(),
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

pub fn file_identity(fd: RawFd) -> Option<(u64, u64)> {
    stat(fd).map(|s| (s.st_dev, s.st_ino))
}

fn file_size(fd: RawFd) -> Option<u64> {
    stat(fd).map(|s| s.st_size as u64).filter(|size| *size > 0)
}
