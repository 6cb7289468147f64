//! Plain device memory, and freeing, which waits for everything the context was given: callers of `cudaFree` rely on it unknowingly.

use crate::codes::{self, Result};
use crate::cost::{self, interpolate};
use crate::entry::Locked;
use crate::physical::{POISON, POISON_BYTES};
use crate::region::{self, Kind};
use crate::sim::Sim;

const LARGE: u64 = 1 << 20;
const LARGE_ALIGN: u64 = 2 << 20;

impl Sim {
    pub fn alloc_plain(&mut self, size: u64) -> Result<u64> {
        let (context, device) = self.current_device()?;
        if size == 0 {
            return Err(codes::INVALID_VALUE);
        }
        self.pools_make_room(device, size);
        self.physical.take_plain(device, size)?;
        cost::charge(interpolate(cost::DEVICE_ALLOC, size));
        let align = if size > LARGE { LARGE_ALIGN } else { 1 };
        let taken = region::page_round(size)
            .and_then(|len| Ok((region::take_address(len, align, 0, true)?, len)));
        let (base, len) = taken.inspect_err(|_| self.physical.give_plain(device, size))?;
        if self.config.poison {
            poison(base, size);
        }
        self.regions
            .insert(base, len, size, context, Kind::Device { device });
        self.counters.gave(size);
        Ok(base)
    }

    pub fn drop_plain(&mut self, base: u64) {
        let Some(region) = self.regions.remove(base) else {
            return;
        };
        self.counters.took(region.size);
        match region.kind {
            Kind::Device { device } => {
                cost::charge(interpolate(cost::DEVICE_FREE, region.size));
                self.physical.give_plain(device, region.size);
            }
            _ => cost::charge(interpolate(cost::MANAGED_FREE, region.size)),
        }
        region::release_address(base, region.len);
    }

    /// A context takes its plain, managed and pinned memory along.
    pub fn drop_context_memory(&mut self, context: u64, _device: i32) {
        let owned = self.regions.iter().filter(|(_, r)| r.context == context);
        let plain = owned.filter(|(_, r)| {
            matches!(
                r.kind,
                Kind::Device { .. } | Kind::Managed(_) | Kind::Pinned { .. }
            )
        });
        for base in plain.map(|(base, _)| base).collect::<Vec<_>>() {
            self.drop_plain(base);
        }
        self.host.drop_context(context);
    }

    /// Frees plain memory in stream order, which the driver takes too.
    pub fn free_plain_behind(&mut self, base: u64, key: u64) -> Result {
        self.freeable(base)?;
        self.enqueue(key, crate::stream::Action::Free { base }, 0);
        Ok(())
    }

    /// Whether an address is the start of something `cuMemFree` takes.
    fn freeable(&self, base: u64) -> Result<u64> {
        match self.regions.get(base) {
            Some(region) if matches!(region.kind, Kind::Device { .. } | Kind::Managed(_)) => {
                Ok(region.id)
            }
            _ => Err(codes::INVALID_VALUE),
        }
    }
}

impl Locked {
    /// Needs no current context: the memory knows its own.
    pub fn free_plain(&mut self, base: u64) -> Result {
        if base == 0 {
            return Ok(());
        }
        if self.pools.owns(base) {
            return self.free_pool_now(base);
        }
        let id = self.freeable(base)?;
        let owner = self.regions.get(base).map_or(0, |r| r.context);
        self.synchronize_context(owner)?;
        if self.freeable(base)? != id {
            return Err(codes::INVALID_VALUE);
        }
        let len = self.regions.get(base).map_or(0, |r| r.len);
        self.fault_users(base, len, "cuMemFree");
        self.wait_until(|sim| !sim.streams.running_in(base, len));
        self.drop_plain(base);
        Ok(())
    }
}

pub fn poison(base: u64, size: u64) {
    // SAFETY: fresh memory of at least this size that nobody else has yet.
    unsafe { std::ptr::write_bytes(base as *mut u8, POISON, size.min(POISON_BYTES) as usize) };
}
