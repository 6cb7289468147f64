//! Physical memory: who holds how much of each device, and the files that stand for it.
//! One sparse memfd a device serves all chunks, since one descriptor a chunk would run out; a chunk that leaves the process gets its own.

use crate::codes::{OUT_OF_MEMORY, Result};
use crate::config::Config;
use rustc_hash::FxHashMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Large enough never to wrap: offsets that were used go back to a list by size.
const FILE_BYTES: i64 = 1 << 52;
const SMALL_BLOCK: u64 = 2 << 20;
const SMALL_LIMIT: u64 = 1 << 20;
const SMALL_ROUND: u64 = 512;
pub const MAX_DEVICES: usize = 32;

/// Out-of-memory caps set by a test; they outlive `cuInit`. Zero means none.
pub static CAPS: [AtomicU64; MAX_DEVICES] = [const { AtomicU64::new(0) }; MAX_DEVICES];

#[derive(Default)]
struct Device {
    total: u64,
    used: u64,
    peak: u64,
    /// Bytes of allocations below `SMALL_LIMIT`, which share blocks.
    small: u64,
}

#[derive(Default)]
struct File {
    fd: Option<Arc<OwnedFd>>,
    end: u64,
    free: FxHashMap<u64, Vec<u64>>,
}

/// A stretch of a file that holds a chunk's bytes.
pub struct Backing {
    pub fd: Arc<OwnedFd>,
    pub offset: u64,
    pub len: u64,
    /// The chunk's own file rather than a part of the device's.
    pub own: bool,
}

#[derive(Default)]
pub struct Physical {
    devices: Vec<Device>,
    /// One a device, and the last for host memory.
    files: Vec<File>,
    poison: bool,
    /// What is released stays as it is, for the next chunk of the size.
    keeps_bytes: bool,
}

impl Physical {
    pub fn new(config: &Config) -> Physical {
        let devices = (0..config.devices).map(|_| Device {
            total: config.memory,
            ..Device::default()
        });
        let files = (0..=config.devices).map(|_| File::default());
        Physical {
            devices: devices.collect(),
            files: files.collect(),
            poison: config.poison,
            keeps_bytes: config.quirks.stale,
        }
    }

    pub fn close(&mut self) {
        self.files.clear();
        self.devices.clear();
    }

    /// (free, total) as the driver would report them.
    pub fn info(&self, device: i32) -> (u64, u64) {
        let entry = &self.devices[device as usize];
        (self.limit(device).saturating_sub(entry.used), entry.total)
    }

    fn limit(&self, device: i32) -> u64 {
        let total = self.devices[device as usize].total;
        match CAPS[device as usize].load(Relaxed) {
            0 => total,
            cap => cap.min(total),
        }
    }

    /// Counts bytes of a device, or answers out of memory.
    pub fn take(&mut self, device: i32, bytes: u64) -> Result {
        let limit = self.limit(device);
        let entry = &mut self.devices[device as usize];
        match entry.used.checked_add(bytes) {
            Some(used) if used <= limit => entry.used = used,
            _ => return Err(OUT_OF_MEMORY),
        }
        entry.peak = entry.peak.max(entry.used);
        Ok(())
    }

    pub fn give(&mut self, device: i32, bytes: u64) {
        let entry = &mut self.devices[device as usize];
        entry.used = entry.used.saturating_sub(bytes);
    }

    /// Counts a plain allocation: small ones share blocks, large ones are rounded up.
    pub fn take_plain(&mut self, device: i32, bytes: u64) -> Result {
        if bytes > SMALL_LIMIT {
            return self.take(device, plain_bytes(bytes)?);
        }
        let before = self.devices[device as usize].small;
        let after = before + bytes.next_multiple_of(SMALL_ROUND);
        self.take(device, blocks(after) - blocks(before))?;
        self.devices[device as usize].small = after;
        Ok(())
    }

    pub fn give_plain(&mut self, device: i32, bytes: u64) {
        if bytes > SMALL_LIMIT {
            return self.give(device, plain_bytes(bytes).unwrap_or(0));
        }
        let before = self.devices[device as usize].small;
        let after = before.saturating_sub(bytes.next_multiple_of(SMALL_ROUND));
        self.devices[device as usize].small = after;
        self.give(device, blocks(before) - blocks(after));
    }

    pub fn used(&self, device: usize) -> u64 {
        self.devices.get(device).map_or(0, |d| d.used)
    }

    pub fn used_total(&self) -> u64 {
        self.devices.iter().map(|d| d.used).sum()
    }

    pub fn peak_total(&self) -> u64 {
        self.devices.iter().map(|d| d.peak).sum()
    }

    pub fn peak(&self, device: usize) -> u64 {
        self.devices.get(device).map_or(0, |d| d.peak)
    }

    /// A place for a chunk's bytes. `device` none is host memory.
    pub fn backing(&mut self, device: Option<i32>, len: u64, own: bool) -> Result<Backing> {
        let slot = device.map_or(self.files.len() - 1, |d| d as usize);
        let backing = if own {
            own_backing(device, len)?
        } else {
            let file = &mut self.files[slot];
            let fd = match &file.fd {
                Some(fd) => fd.clone(),
                None => file
                    .fd
                    .insert(Arc::new(memfd(&file_name(device), FILE_BYTES)?))
                    .clone(),
            };
            let reused = file.free.get_mut(&len).and_then(Vec::pop);
            let offset = reused.unwrap_or_else(|| {
                file.end += len;
                file.end - len
            });
            Backing {
                fd,
                offset,
                len,
                own: false,
            }
        };
        if self.poison {
            poison_file(&backing);
        }
        Ok(backing)
    }

    /// The bytes are gone, and the host's pages with them.
    pub fn drop_backing(&mut self, device: Option<i32>, backing: Backing) {
        if backing.own {
            return;
        }
        if !self.keeps_bytes {
            punch(&backing);
        }
        let slot = device.map_or(self.files.len() - 1, |d| d as usize);
        self.files[slot]
            .free
            .entry(backing.len)
            .or_default()
            .push(backing.offset);
    }
}

/// Gives the host's pages of a stretch back.
fn punch(backing: &Backing) {
    // SAFETY: the descriptor is open as long as the backing lives; the range is the chunk's own.
    unsafe {
        libc::fallocate(
            backing.fd.as_raw_fd(),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            backing.offset as i64,
            backing.len as i64,
        )
    };
}

/// A file of a chunk's own.
pub fn own_backing(device: Option<i32>, len: u64) -> Result<Backing> {
    Ok(Backing {
        fd: Arc::new(memfd(&file_name(device), len as i64)?),
        offset: 0,
        len,
        own: true,
    })
}

/// Bytes copied at a time.
const PART: u64 = 1 << 20;

/// Copies what was ever written to one backing into a fresh one of the same length.
pub fn copy_contents(from: &Backing, to: &Backing) -> Result {
    let mut part = vec![0u8; PART as usize];
    let end = from.offset + from.len;
    let mut at = from.offset;
    while let Some(written) = seek(from, at, libc::SEEK_DATA).filter(|written| *written < end) {
        at = written;
        let hole = seek(from, at, libc::SEEK_HOLE).unwrap_or(end).min(end);
        while at < hole {
            let most = PART.min(hole - at) as usize;
            let place = (at - from.offset) as i64;
            // SAFETY: the buffer has so many bytes, and both descriptors are open.
            let moved = unsafe {
                let (source, target) = (from.fd.as_raw_fd(), to.fd.as_raw_fd());
                let read = libc::pread(source, part.as_mut_ptr().cast(), most, at as i64).max(0);
                libc::pwrite(target, part.as_ptr().cast(), read as usize, place)
            };
            if moved <= 0 {
                return Err(OUT_OF_MEMORY);
            }
            at += moved as u64;
        }
    }
    Ok(())
}

/// Where data or a hole begins at or behind a place of a file.
fn seek(backing: &Backing, at: u64, what: i32) -> Option<u64> {
    // SAFETY: the descriptor is open, and nobody uses its position.
    let found = unsafe { libc::lseek(backing.fd.as_raw_fd(), at as i64, what) };
    u64::try_from(found).ok()
}

/// What the driver takes from the card for a plain allocation above the small ones.
fn plain_bytes(bytes: u64) -> Result<u64> {
    bytes
        .checked_next_multiple_of(SMALL_BLOCK)
        .ok_or(OUT_OF_MEMORY)
}

fn blocks(small: u64) -> u64 {
    small.next_multiple_of(SMALL_BLOCK)
}

const FILE_PREFIX: &str = "hbmsim-chunk-";

fn file_name(device: Option<i32>) -> String {
    format!("{FILE_PREFIX}{}", device.unwrap_or(-1))
}

/// The device of a chunk that another process made, from the name of its file.
pub fn device_of_file(fd: RawFd) -> Option<i32> {
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let text = link.to_str()?;
    let rest = &text[text.find(FILE_PREFIX)? + FILE_PREFIX.len()..];
    rest.split(' ').next()?.parse().ok()
}

fn memfd(name: &str, bytes: i64) -> Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| OUT_OF_MEMORY)?;
    // SAFETY: plain system calls on a name with a terminator and on the descriptor they gave.
    unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(OUT_OF_MEMORY);
        }
        let fd = OwnedFd::from_raw_fd(fd);
        if libc::ftruncate(fd.as_raw_fd(), bytes) != 0 {
            return Err(OUT_OF_MEMORY);
        }
        Ok(fd)
    }
}

/// Shows readers of fresh memory that it is not zero, without touching every page of a large chunk.
fn poison_file(backing: &Backing) {
    let garbage = vec![POISON; POISON_BYTES.min(backing.len) as usize];
    // SAFETY: writes inside the chunk's own range of an open file.
    unsafe {
        libc::pwrite(
            backing.fd.as_raw_fd(),
            garbage.as_ptr().cast(),
            garbage.len(),
            backing.offset as i64,
        )
    };
}

pub const POISON: u8 = 0xA5;
pub const POISON_BYTES: u64 = 64 << 10;
