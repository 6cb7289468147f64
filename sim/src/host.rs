//! Host memory that the driver knows: allocated pinned, or the program's own and registered. One copy may not cross from one registration into the next.

use crate::codes::{self, Result};
use crate::cost::{self, interpolate};
use crate::counters::Snapshot;
use crate::entry::Locked;
use crate::region::{self, Kind};
use crate::sim::Sim;
use crate::transfer::Place;
use std::collections::BTreeMap;

pub struct Registered {
    pub len: u64,
    pub flags: u32,
    pub context: u64,
}

#[derive(Default)]
pub struct HostMemory {
    registered: BTreeMap<u64, Registered>,
}

/// Portable, device map, write combined.
const ALLOC_FLAGS: u32 = 7;
/// Portable, device map, I/O memory, read only.
const REGISTER_FLAGS: u32 = 15;

impl HostMemory {
    pub fn find(&self, address: u64) -> Option<(u64, &Registered)> {
        let (base, entry) = self.registered.range(..=address).next_back()?;
        (address - base < entry.len).then_some((*base, entry))
    }

    pub fn place_of(&self, address: u64, end: u64) -> Result<Place> {
        match self.find(address) {
            Some((base, entry)) if end <= base + entry.len => Ok(Place::Pinned),
            Some(_) => Err(codes::INVALID_VALUE),
            None => Ok(Place::Pageable),
        }
    }

    pub fn count(&self, out: &mut Snapshot) {
        out.registered = self.registered.len() as u64;
        out.registered_bytes = self.registered.values().map(|r| r.len).sum();
    }

    pub fn drop_context(&mut self, context: u64) {
        self.registered.retain(|_, entry| entry.context != context);
    }
}

impl Sim {
    pub fn alloc_pinned(&mut self, size: u64, flags: u32) -> Result<u64> {
        let context = self.current()?;
        if flags & !ALLOC_FLAGS != 0 {
            return Err(codes::INVALID_VALUE);
        }
        if size == 0 {
            return Ok(0);
        }
        cost::charge(interpolate(cost::HOST_ALLOC, size));
        let len = region::page_round(size)?;
        let base = region::take_address(len, 1, 0, true)?;
        self.regions
            .insert(base, len, size, context, Kind::Pinned { flags });
        self.counters.gave(size);
        Ok(base)
    }

    pub fn register(&mut self, address: u64, size: u64, flags: u32) -> Result {
        let context = self.current()?;
        let end = address.checked_add(size).ok_or(codes::INVALID_VALUE)?;
        if address == 0 || size == 0 || flags & !REGISTER_FLAGS != 0 {
            return Err(codes::INVALID_VALUE);
        }
        let before = self.host.registered.range(..end).next_back();
        if before.is_some_and(|(base, entry)| base + entry.len > address) {
            return Err(codes::HOST_MEMORY_ALREADY_REGISTERED);
        }
        if self.regions.find(address).is_some() || !is_memory(address, end) {
            return Err(codes::INVALID_VALUE);
        }
        cost::charge(interpolate(cost::REGISTER, size));
        self.host.registered.insert(
            address,
            Registered {
                len: size,
                flags,
                context,
            },
        );
        Ok(())
    }

    pub fn device_pointer(&self, address: u64) -> Result<u64> {
        let pinned = matches!(self.regions.find(address), Some((_, r)) if matches!(r.kind, Kind::Pinned { .. }));
        if pinned || self.host.find(address).is_some() {
            Ok(address)
        } else {
            Err(codes::INVALID_VALUE)
        }
    }

    pub fn host_flags(&self, address: u64) -> Result<u32> {
        if let Some((_, region)) = self.regions.find(address) {
            if let Kind::Pinned { flags } = region.kind {
                return Ok(flags);
            }
        }
        self.host
            .find(address)
            .map(|(_, entry)| entry.flags)
            .ok_or(codes::INVALID_VALUE)
    }
}

impl Locked {
    pub fn free_pinned(&mut self, base: u64) -> Result {
        if base == 0 {
            return Ok(());
        }
        let pinned = |sim: &Sim| match sim.regions.get(base) {
            Some(region) if matches!(region.kind, Kind::Pinned { .. }) => {
                Ok((region.id, region.len, region.context))
            }
            _ => Err(codes::INVALID_VALUE),
        };
        let (id, len, context) = pinned(self)?;
        self.synchronize_context(context)?;
        if pinned(self)?.0 != id {
            return Err(codes::INVALID_VALUE);
        }
        self.fault_users(base, len, "cuMemFreeHost");
        self.wait_until(|sim| !sim.streams.running_in(base, len));
        cost::charge(interpolate(cost::HOST_FREE, len));
        if let Some(region) = self.regions.remove(base) {
            self.counters.took(region.size);
            region::release_address(base, len);
        }
        Ok(())
    }

    pub fn unregister(&mut self, address: u64) -> Result {
        self.current()?;
        let known = |sim: &Sim| match sim.host.find(address) {
            Some((base, entry)) if base == address => Ok((entry.len, entry.context)),
            Some(_) => Err(codes::INVALID_VALUE),
            None => Err(codes::HOST_MEMORY_NOT_REGISTERED),
        };
        let (len, context) = known(self)?;
        self.synchronize_context(context)?;
        known(self)?;
        self.fault_users(address, len, "cuMemHostUnregister");
        self.wait_until(|sim| !sim.streams.running_in(address, len));
        cost::charge(interpolate(cost::UNREGISTER, len));
        self.host.registered.remove(&address);
        Ok(())
    }
}

/// Whether a whole range is mapped in this process.
fn is_memory(address: u64, end: u64) -> bool {
    let Ok(page) = region::page_round(1) else {
        return false;
    };
    const AT_ONCE: u64 = 1 << 16;
    let mut seen = vec![0u8; AT_ONCE as usize];
    let mut at = address - address % page;
    while at < end {
        let len = (end - at).min(AT_ONCE * page);
        // SAFETY: the vector has a byte for each page asked about.
        if unsafe { libc::mincore(at as *mut _, len as usize, seen.as_mut_ptr().cast()) } != 0 {
            return false;
        }
        at += len;
    }
    true
}
