//! Copies and fills: where their bytes lie, what is refused at the call, what is found out when the work runs, and the moving itself.
//! Bytes are moved by the kernel, which answers an error where the worker would be killed.

use crate::abi::{ACCESS_READ, ACCESS_READ_WRITE, LOCATION_DEVICE};
use crate::codes::{self, Result};
use crate::cost;
use crate::region::{Kind, Mapping};
use crate::sim::Sim;
use crate::stream::Action;
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Device(i32),
    Managed,
    Pinned,
    Pageable,
}

impl Place {
    pub fn on_host(self) -> bool {
        matches!(self, Place::Pinned | Place::Pageable)
    }
}

impl Sim {
    /// Where a range lies, if work of a device may use all of it.
    pub fn place_of(&self, address: u64, len: u64, device: i32, access: i32) -> Result<Place> {
        let end = address.checked_add(len).ok_or(codes::INVALID_VALUE)?;
        let Some((base, region)) = self.regions.find(address) else {
            return self.host.place_of(address, end);
        };
        let inside = end <= base + region.len;
        match &region.kind {
            _ if !inside => Err(codes::INVALID_VALUE),
            Kind::Reservation(mappings) => {
                self.mapped_place(mappings, address, end, device, access)
            }
            Kind::Device { device } => Ok(Place::Device(*device)),
            Kind::PoolSpace { pool } if !self.pools.is_memory(*pool, address, end) => {
                Err(codes::INVALID_VALUE)
            }
            Kind::PoolSpace { pool } => Ok(self
                .pools
                .device_of(*pool)
                .map_or(Place::Pinned, Place::Device)),
            Kind::Managed(_) => Ok(Place::Managed),
            Kind::Pinned { .. } => Ok(Place::Pinned),
        }
    }

    fn mapped_place(
        &self,
        mappings: &BTreeMap<u64, Mapping>,
        address: u64,
        end: u64,
        device: i32,
        access: i32,
    ) -> Result<Place> {
        let first = mappings
            .range(..=address)
            .next_back()
            .ok_or(codes::INVALID_VALUE)?;
        let mut at = address;
        for (start, mapping) in mappings.range(*first.0..end.max(address + 1)) {
            let granted = mapping.flags(LOCATION_DEVICE, device);
            if *start > at || start + mapping.len <= at || granted & access != access {
                return Err(codes::INVALID_VALUE);
            }
            at = start + mapping.len;
        }
        if at < end {
            return Err(codes::INVALID_VALUE);
        }
        let home = self.chunks.by_key(first.1.chunk).map(|c| c.prop.location);
        Ok(home
            .filter(|h| h.kind == LOCATION_DEVICE)
            .map_or(Place::Pinned, |h| Place::Device(h.id)))
    }

    /// Whether a range lies in several chunks of the host's memory: a card fills no more than one at a time, and copies as it should.
    pub fn crosses_host_chunks(&self, address: u64, len: u64) -> bool {
        let Some((_, region)) = self.regions.find(address) else {
            return false;
        };
        let Kind::Reservation(mappings) = &region.kind else {
            return false;
        };
        let first = mappings.range(..=address).next_back();
        first.is_some_and(|(start, mapping)| {
            let home = self.chunks.by_key(mapping.chunk).map(|c| c.prop.location);
            let on_device = home.is_some_and(|home| home.kind == LOCATION_DEVICE);
            !on_device && start + mapping.len < address + len
        })
    }

    /// Looks again when the operation's turn has come: what it uses may be gone.
    pub fn still_valid(&self, action: &Action, device: i32) -> std::result::Result<(), String> {
        let wrong = |what: &str, at: u64, len: u64| {
            format!("{}: {what} {at:#x}+{len:#x} is not mapped", action.name())
        };
        if let Action::Copy {
            dst,
            src,
            len,
            staged,
        } = action
        {
            if staged.is_none() && self.place_of(*src, *len, device, ACCESS_READ).is_err() {
                return Err(wrong("source", *src, *len));
            }
            if self
                .place_of(*dst, *len, device, ACCESS_READ_WRITE)
                .is_err()
            {
                return Err(wrong("destination", *dst, *len));
            }
        }
        if let Action::Fill { dst, len, .. } = action {
            if self
                .place_of(*dst, *len, device, ACCESS_READ_WRITE)
                .is_err()
            {
                return Err(wrong("destination", *dst, *len));
            }
        }
        Ok(())
    }
}

/// What a copy takes on the device.
pub fn copy_ns(dst: Place, src: Place, len: u64) -> u64 {
    let rate = match (dst, src) {
        (Place::Device(a), Place::Device(b)) if a == b => cost::ON_CARD,
        (Place::Device(_), Place::Device(_)) => cost::PEER_LINK,
        (_, Place::Pageable) => cost::PAGEABLE_IN,
        (Place::Pageable, _) => cost::PAGEABLE_OUT,
        _ => cost::LINK,
    };
    cost::transfer(len, rate)
}

pub fn execute(action: &Action) -> std::result::Result<(), String> {
    match action {
        Action::Copy {
            dst,
            src,
            len,
            staged,
        } => {
            let from = staged.as_ref().map_or(*src, |bytes| bytes.as_ptr() as u64);
            if move_bytes(*dst, from, *len) {
                return Ok(());
            }
            Err(format!(
                "copy: {len:#x} bytes from {src:#x} to {dst:#x}: an address is not valid"
            ))
        }
        Action::Fill {
            dst,
            value,
            width,
            len,
        } => {
            if fill(*dst, *value, *width, *len) {
                return Ok(());
            }
            Err(format!(
                "fill: {len:#x} bytes at {dst:#x}: an address is not valid"
            ))
        }
        Action::Host { function, data } => {
            function(*data as *mut _);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Bytes a call of the kernel moves at most.
const PART: u64 = 1 << 30;

/// Copies between any two ranges of this process; false where one is not memory.
pub fn move_bytes(dst: u64, src: u64, len: u64) -> bool {
    let mut done = 0;
    while done < len {
        let part = (len - done).min(PART) as usize;
        let local = libc::iovec {
            iov_base: (dst + done) as *mut _,
            iov_len: part,
        };
        let remote = libc::iovec {
            iov_base: (src + done) as *mut _,
            iov_len: part,
        };
        // SAFETY: the kernel checks both ranges and answers an error instead of a fault.
        let moved = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        match moved {
            moved if moved > 0 => done += moved as u64,
            -1 if not_allowed() => {
                // SAFETY: the tables say that both ranges are mapped, and unmapping waits for a running copy.
                unsafe { std::ptr::copy((src + done) as *const u8, (dst + done) as *mut u8, part) };
                done += part as u64;
            }
            _ => return false,
        }
    }
    true
}

/// Some sandboxes forbid the call itself.
fn not_allowed() -> bool {
    let error = std::io::Error::last_os_error().raw_os_error();
    matches!(error, Some(libc::ENOSYS | libc::EPERM))
}

/// Bytes of a fill's pattern that are written at a time; a multiple of every width.
const PATTERN: u64 = 256 << 10;

/// False where the range is not memory.
fn fill(dst: u64, value: u32, width: u8, len: u64) -> bool {
    let one = &value.to_le_bytes()[..width as usize];
    let pattern = one.repeat(PATTERN.min(len) as usize / width as usize);
    let part = pattern.len() as u64;
    let moved = |at: u64| move_bytes(dst + at, pattern.as_ptr() as u64, part.min(len - at));
    (0..len).step_by(part as usize).all(moved)
}
