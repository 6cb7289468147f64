//! Plain device memory.

use crate::codes::{self, Out, put};
use crate::entry::driver;
use crate::region::Kind;

driver! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) |sim| {
        let (_, device) = sim.current_device()?;
        let (left, all) = sim.physical.info(device);
        put(free, left as usize)?;
        put(total, all as usize)
    }

    fn cuMemAlloc_v2(out: Out<u64>, size: usize) |sim| {
        if out.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let base = sim.alloc_plain(size as u64)?;
        put(out, base)
    }

    fn cuMemFree_v2(base: u64) |sim| { sim.free_plain(base) }

    fn cuMemGetAddressRange_v2(base: Out<u64>, size: Out<usize>, address: u64) |sim| {
        sim.current()?;
        let (start, len) = sim.allocation_range(address).ok_or(codes::NOT_FOUND)?;
        if let Some(base) = base {
            base.write(start);
        }
        if let Some(size) = size {
            size.write(len as usize);
        }
        Ok(())
    }
}

impl crate::sim::Sim {
    /// Start and size of the allocation that holds an address.
    pub fn allocation_range(&self, address: u64) -> Option<(u64, u64)> {
        let Some((base, region)) = self.regions.find(address) else {
            return self
                .host
                .find(address)
                .map(|(base, entry)| (base, entry.len));
        };
        match &region.kind {
            Kind::PoolSpace { pool } => self.pools.allocation_at(*pool, address),
            Kind::Reservation(mappings) => {
                let (start, mapping) = mappings.range(..=address).next_back()?;
                (address - start < mapping.len).then_some((*start, mapping.len))
            }
            _ => Some((base, region.size)),
        }
    }
}
