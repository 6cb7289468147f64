//! Virtual memory management: reserved address ranges, and the places of chunks in them.

use crate::abi::*;
use crate::codes::{self, Result};
use crate::cost::{self, interpolate};
use crate::entry::Locked;
use crate::region::{self, Kind, Mapping, Region};
use crate::sim::Sim;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

impl Sim {
    pub fn reserve(&mut self, size: u64, align: u64, hint: u64) -> Result<u64> {
        self.check_vmm()?;
        let granularity = self.config.granularity;
        if size == 0 || size % granularity != 0 || (align != 0 && !align.is_power_of_two()) {
            return Err(codes::INVALID_VALUE);
        }
        if self.config.quirks.align && align != 0 {
            return Err(codes::OUT_OF_MEMORY);
        }
        cost::charge(interpolate(cost::RESERVE, size));
        let base = region::take_address(size, align.max(granularity), hint, false)?;
        self.regions
            .insert(base, size, size, 0, Kind::Reservation(BTreeMap::new()));
        Ok(base)
    }

    pub fn free_address(&mut self, base: u64, size: u64) -> Result {
        let id = match self.regions.get(base) {
            Some(Region {
                len,
                kind: Kind::Reservation(mappings),
                id,
                ..
            }) if *len == size && mappings.is_empty() => *id,
            _ => return Err(codes::INVALID_VALUE),
        };
        cost::charge(interpolate(cost::ADDRESS_FREE, size));
        self.regions.remove(base);
        self.let_go(id);
        region::release_address(base, size);
        Ok(())
    }

    pub fn map_chunk(&mut self, address: u64, size: u64, offset: u64, handle: u64) -> Result {
        let granularity = self.config.granularity;
        if size == 0 || address % granularity != 0 {
            return Err(codes::INVALID_VALUE);
        }
        let (key, chunk) = self.chunks.by_handle(handle)?;
        // A handle cannot be mapped in part.
        if offset != 0 || chunk.size != size {
            return Err(codes::NOT_SUPPORTED);
        }
        let (fd, file_offset) = (chunk.backing.fd.clone(), chunk.backing.offset);
        let (large, holds) = (self.config.quirks.large, self.config.quirks.holds);
        let place = self.regions.find(address).map(|(_, region)| region.id);
        let mappings = self.reservation(address, size)?;
        let clashes = mappings
            .range(..address + size)
            .next_back()
            .is_some_and(|(at, m)| at + m.len > address);
        if clashes {
            return Err(codes::INVALID_VALUE);
        }
        place_usable(large, address, size, fd.as_raw_fd(), file_offset)?;
        mappings.insert(
            address,
            Mapping {
                len: size,
                chunk: key,
                access: Vec::new(),
                refused: 0,
            },
        );
        if let Some(chunk) = self.chunks.get_mut(key) {
            chunk.maps += 1;
            chunk.places.extend(place.filter(|_| holds));
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

    /// Starts of the mappings inside a range, none of which may be cut by its ends. A gap is refused, unless the driver's laxness is wanted.
    fn whole_mappings(&mut self, address: u64, size: u64) -> Result<Vec<u64>> {
        let (strict, one) = (self.config.strict, self.config.quirks.whole);
        let mappings = self.reservation(address, size)?;
        let end = address + size;
        let before = mappings.range(..address).next_back();
        if size == 0 || before.is_some_and(|(start, m)| start + m.len > address) {
            return Err(codes::INVALID_VALUE);
        }
        let (mut starts, mut covered) = (Vec::new(), 0);
        for (start, mapping) in mappings.range(address..end) {
            if start + mapping.len > end {
                return Err(codes::INVALID_VALUE);
            }
            starts.push(*start);
            covered += mapping.len;
        }
        if strict && covered != size || one && (starts.len() != 1 || covered != size) {
            return Err(codes::INVALID_VALUE);
        }
        Ok(starts)
    }

    /// Whether the ends of a range lie on mappings; the driver asks no more of what is between.
    fn ends_mapped(&self, address: u64, size: u64) -> Result {
        let mapped = |at| self.mapping_at(at).map(|_| ()).ok_or(codes::INVALID_VALUE);
        mapped(address)?;
        mapped(address + size - 1)
    }

    fn check_access(&self, desc: &AccessDesc, chunk: u64) -> Result {
        if !matches!(desc.flags, ACCESS_NONE | ACCESS_READ | ACCESS_READ_WRITE) {
            return Err(codes::INVALID_VALUE);
        }
        let home = self.chunks.by_key(chunk).map(|c| c.prop.location);
        match desc.location.kind {
            LOCATION_DEVICE => {
                self.check_device(desc.location.id)
                    .map_err(|_| codes::INVALID_VALUE)?;
                let own =
                    home.is_none_or(|h| h.kind != LOCATION_DEVICE || h.id == desc.location.id);
                if own || self.config.peers {
                    Ok(())
                } else {
                    Err(codes::INVALID_DEVICE)
                }
            }
            LOCATION_HOST | LOCATION_HOST_NUMA => match home {
                Some(home) if home.kind != LOCATION_DEVICE => Ok(()),
                _ => Err(codes::NOT_SUPPORTED),
            },
            _ => Err(codes::INVALID_VALUE),
        }
    }

    pub fn set_access(&mut self, address: u64, size: u64, descs: &[AccessDesc]) -> Result {
        let starts = self.whole_mappings(address, size)?;
        self.ends_mapped(address, size)?;
        for start in &starts {
            let chunk = self.reservation(address, size)?[start].chunk;
            for desc in descs {
                self.check_access(desc, chunk)?;
            }
        }
        let failures = self.config.quirks.access_fails;
        let mut widths = Vec::with_capacity(starts.len());
        let mappings = self.reservation(address, size)?;
        for mapping in starts.iter().filter_map(|start| mappings.get(start)) {
            if mapping.refused < failures {
                for start in &starts {
                    mappings
                        .entry(*start)
                        .and_modify(|mapping| mapping.refused += 1);
                }
                return Err(codes::INVALID_VALUE);
            }
        }
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
            if let Some(chunk) = self.chunks.get_mut(mapping.chunk) {
                chunk.maps -= 1;
            }
            self.drop_chunk_if_unused(mapping.chunk);
        }
        Ok(())
    }

    pub fn mapping_at(&self, address: u64) -> Option<&Mapping> {
        let (_, region) = self.regions.find(address)?;
        let Kind::Reservation(mappings) = &region.kind else {
            return None;
        };
        let (start, mapping) = mappings.range(..=address).next_back()?;
        (address - start < mapping.len).then_some(mapping)
    }
}

impl Locked {
    /// Unmaps whole mappings. Work that still uses them would fault on a card: that is recorded, and a copy under way is let finish first.
    pub fn unmap_range(&mut self, address: u64, size: u64) -> Result {
        self.whole_mappings(address, size)?;
        self.fault_users(address, size, "cuMemUnmap");
        self.wait_until(|sim| !sim.streams.running_in(address, size));
        let starts = self.whole_mappings(address, size)?;
        self.unmap(address, size, &starts)
    }
}

/// Maps a chunk's bytes. What is beyond the size that can be used comes to lie over its beginning.
fn place_usable(large: u64, address: u64, size: u64, fd: i32, offset: u64) -> Result {
    let step = match large {
        0 => size,
        large => large.min(size),
    };
    let mut at = 0;
    while at < size {
        region::place(address + at, step.min(size - at), fd, offset)?;
        at += step;
    }
    Ok(())
}

/// Changes the host's protection, one call a run of neighbours that end up alike.
fn protect_runs(widths: &[(u64, u64, i32, i32)]) -> Result {
    let mut at = 0;
    while at < widths.len() {
        let (start, mut len, before, after) = widths[at];
        at += 1;
        while at < widths.len()
            && (widths[at].0, widths[at].2, widths[at].3) == (start + len, before, after)
        {
            len += widths[at].1;
            at += 1;
        }
        if before != after {
            region::protect(start, len, after)?;
        }
    }
    Ok(())
}
