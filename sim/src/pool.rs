//! Stream-ordered pools: freed memory goes to whoever the stream order lets have it, the rest goes back to the device at the next synchronise past the threshold.

use crate::abi::{
    ALLOCATION_PINNED, LOCATION_DEVICE, LOCATION_HOST, LOCATION_HOST_NUMA, PoolProps,
};
use crate::codes::{self, Result};
use crate::config::Config;
use crate::cost::{self, interpolate};
use crate::counters::Snapshot;
use crate::device_memory::poison;
use crate::entry::Locked;
use crate::pool_space::{Free, GRANULE, Space};
use crate::region::{self, Kind};
use crate::sim::Sim;
use crate::stream::Action;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

const ROUND: u64 = 512;
/// Address space of a pool, as a multiple of the device's memory.
const ROOM: u64 = 2;

pub struct Pool {
    /// None for host memory, which no device is charged for.
    device: Option<i32>,
    builtin: bool,
    destroyed: bool,
    space: Space,
    /// Start to bytes asked for.
    live: BTreeMap<u64, u64>,
    pub threshold: u64,
    /// Follow event dependencies, opportunistic, internal dependencies: kept and read back.
    reuse: [i32; 3],
    reserved_high: u64,
    used: u64,
    used_high: u64,
    max_size: u64,
    /// (location kind, id) to flags, as set.
    pub access: FxHashMap<(i32, i32), i32>,
}

#[derive(Default)]
pub struct Pools {
    map: FxHashMap<u64, Pool>,
    default: Vec<u64>,
    current: Vec<u64>,
    /// Which pool a live address is from.
    owner: FxHashMap<u64, u64>,
    next: u64,
}

const FIRST_HANDLE: u64 = 0x5400_0000_0000;

impl Pools {
    pub fn new(config: &Config) -> Pools {
        let mut pools = Pools::default();
        for device in 0..config.devices as i32 {
            let handle = pools.add(Some(device), true, 0);
            pools.default.push(handle);
        }
        pools.current = pools.default.clone();
        pools
    }

    fn add(&mut self, device: Option<i32>, builtin: bool, max_size: u64) -> u64 {
        self.next += 1;
        let handle = FIRST_HANDLE + self.next * 256;
        let pool = Pool {
            device,
            builtin,
            destroyed: false,
            space: Space::default(),
            live: BTreeMap::new(),
            threshold: 0,
            reuse: [1; 3],
            reserved_high: 0,
            used: 0,
            used_high: 0,
            max_size,
            access: FxHashMap::default(),
        };
        self.map.insert(handle, pool);
        handle
    }

    pub fn get(&self, handle: u64) -> Result<&Pool> {
        self.map
            .get(&handle)
            .filter(|p| !p.destroyed)
            .ok_or(codes::INVALID_VALUE)
    }

    pub fn get_mut(&mut self, handle: u64) -> Result<&mut Pool> {
        self.map
            .get_mut(&handle)
            .filter(|p| !p.destroyed)
            .ok_or(codes::INVALID_VALUE)
    }

    pub fn default_of(&self, device: i32) -> u64 {
        self.default[device as usize]
    }

    pub fn current_of(&self, device: i32) -> u64 {
        self.current[device as usize]
    }

    pub fn device_of(&self, handle: u64) -> Option<i32> {
        self.map.get(&handle).and_then(|p| p.device)
    }

    /// Whether a range inside a pool's address space is memory now.
    pub fn is_memory(&self, handle: u64, address: u64, end: u64) -> bool {
        self.map
            .get(&handle)
            .is_some_and(|p| p.space.is_memory(address, end))
    }

    pub fn set_current(&mut self, device: i32, handle: u64) -> Result {
        if self.get(handle)?.device != Some(device) {
            return Err(codes::INVALID_VALUE);
        }
        self.current[device as usize] = handle;
        Ok(())
    }

    pub fn owns(&self, address: u64) -> bool {
        self.owner.contains_key(&address)
    }

    /// (start, length) of the live allocation that holds an address.
    pub fn allocation_at(&self, handle: u64, address: u64) -> Option<(u64, u64)> {
        let (base, len) = self.map.get(&handle)?.live.range(..=address).next_back()?;
        (address - base < *len).then_some((*base, *len))
    }

    pub fn count(&self, out: &mut Snapshot) {
        for pool in self.map.values() {
            out.pools += u64::from(!pool.builtin && !pool.destroyed);
            out.async_reserved_bytes += pool.space.reserved();
            out.async_used_bytes += pool.used;
            out.async_allocs += pool.live.len() as u64;
        }
    }
}

impl Pool {
    pub fn attribute(&self, which: i32) -> Result<u64> {
        match which {
            1..=3 => Ok(self.reuse[which as usize - 1] as u64),
            4 => Ok(self.threshold),
            5 => Ok(self.space.reserved()),
            6 => Ok(self.reserved_high),
            7 => Ok(self.used),
            8 => Ok(self.used_high),
            _ => Err(codes::INVALID_VALUE),
        }
    }

    pub fn set_attribute(&mut self, which: i32, value: u64) -> Result {
        match which {
            1..=3 => self.reuse[which as usize - 1] = value as i32,
            4 => self.threshold = value,
            6 if value == 0 => self.reserved_high = self.space.reserved(),
            8 if value == 0 => self.used_high = self.used,
            _ => return Err(codes::INVALID_VALUE),
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.space.reserved() > self.used
    }
}

/// What a block takes in its pool.
fn rounded(bytes: u64) -> Result<u64> {
    bytes
        .max(1)
        .checked_next_multiple_of(ROUND)
        .ok_or(codes::OUT_OF_MEMORY)
}

impl Sim {
    pub fn check_pools(&self) -> Result {
        if self.config.pools {
            Ok(())
        } else {
            Err(codes::NOT_SUPPORTED)
        }
    }

    pub fn create_pool(&mut self, props: &PoolProps) -> Result<u64> {
        self.check_pools()?;
        if props.kind != ALLOCATION_PINNED {
            return Err(codes::INVALID_VALUE);
        }
        let id = props.location.id;
        let device = match props.location.kind {
            LOCATION_DEVICE => {
                self.check_device(id).map_err(|_| codes::INVALID_VALUE)?;
                Some(id)
            }
            LOCATION_HOST => None,
            LOCATION_HOST_NUMA if id >= 0 && (id as u32) < self.config.numa_nodes => None,
            _ => return Err(codes::INVALID_VALUE),
        };
        Ok(self.pools.add(device, false, props.max_size as u64))
    }

    pub fn pool_alloc(&mut self, handle: u64, size: u64, stream: u64) -> Result<u64> {
        let len = rounded(size)?;
        let pool = self
            .pools
            .map
            .get_mut(&handle)
            .filter(|p| !p.destroyed)
            .ok_or(codes::INVALID_VALUE)?;
        let mut found = pool.space.take(len, stream, &self.streams);
        if found.is_none() {
            pool.space.merge(&self.streams);
            found = pool.space.take(len, stream, &self.streams);
        }
        let base = match found {
            Some(base) => base,
            None => self.grow_pool(handle, len, stream)?,
        };
        let pool = self.pools.get_mut(handle)?;
        pool.live.insert(base, size);
        pool.used += size;
        pool.used_high = pool.used_high.max(pool.used);
        self.pools.owner.insert(base, handle);
        Ok(base)
    }

    fn grow_pool(&mut self, handle: u64, len: u64, stream: u64) -> Result<u64> {
        self.give_pool_room(handle)?;
        let pool = self.pools.get(handle)?;
        let device = pool.device;
        let (first, count) = pool
            .space
            .growth(len, stream, &self.streams)
            .ok_or(codes::OUT_OF_MEMORY)?;
        let more = count * GRANULE;
        if pool.max_size > 0 && pool.space.reserved() + more > pool.max_size {
            return Err(codes::OUT_OF_MEMORY);
        }
        if let Some(device) = device {
            self.pools_make_room(device, more);
            self.physical.take(device, more)?;
        }
        cost::charge(interpolate(cost::POOL_GROW, more));
        let pool = self
            .pools
            .map
            .get_mut(&handle)
            .ok_or(codes::INVALID_VALUE)?;
        let committed = pool.space.commit(first, count, stream, &self.streams);
        let at = committed.inspect_err(|_| {
            if let Some(device) = device {
                self.physical.give(device, more);
            }
        })?;
        self.counters.gave(more);
        if self.config.poison {
            poison(at, more);
        }
        pool.reserved_high = pool.reserved_high.max(pool.space.reserved());
        pool.space
            .take(len, stream, &self.streams)
            .ok_or(codes::OUT_OF_MEMORY)
    }

    /// A pool takes its address space when it first needs memory.
    fn give_pool_room(&mut self, handle: u64) -> Result {
        if self.pools.get(handle)?.space.len > 0 {
            return Ok(());
        }
        let len = self.config.memory.max(GRANULE).next_multiple_of(GRANULE) * ROOM;
        let base = region::take_address(len, GRANULE, 0, false)?;
        self.regions
            .insert(base, len, len, 0, Kind::PoolSpace { pool: handle });
        self.pools.get_mut(handle)?.space = Space::new(base, len);
        Ok(())
    }

    /// The memory may be had again behind this point of the stream.
    pub fn pool_free(&mut self, base: u64, key: u64) -> Result {
        let handle = self.pools.owner.remove(&base).ok_or(codes::INVALID_VALUE)?;
        let seq = if self.is_idle(key) && self.implicit_order(key).is_empty() {
            0
        } else {
            self.enqueue(
                key,
                Action::Marker {
                    base: 0,
                    len: 0,
                    place: None,
                },
                0,
            )
        };
        self.return_to_pool(handle, base, key, seq);
        Ok(())
    }

    fn return_to_pool(&mut self, handle: u64, base: u64, stream: u64, seq: u64) {
        let Some(pool) = self.pools.map.get_mut(&handle) else {
            return;
        };
        let Some(size) = pool.live.remove(&base) else {
            return;
        };
        pool.used -= size;
        let len = rounded(size).unwrap_or(ROUND);
        pool.space
            .put(base, Free { len, stream, seq }, &self.streams);
        if pool.destroyed && pool.live.is_empty() {
            self.trim_pool(handle, 0);
        }
    }

    /// Gives free memory back until the pool holds no more than it should keep.
    pub fn trim_pool(&mut self, handle: u64, keep: u64) {
        let Some(pool) = self.pools.map.get_mut(&handle) else {
            return;
        };
        if pool.space.reserved() <= keep {
            return self.forget_pool(handle);
        }
        let gone = pool.space.shrink(keep, &self.streams);
        let given = gone.len() as u64 * GRANULE;
        self.counters.took(given);
        if let Some(device) = pool.device {
            self.physical.give(device, given);
        }
        if given > 0 {
            cost::charge(interpolate(cost::DEVICE_FREE, given));
        }
        for base in gone {
            self.fault_users(base, GRANULE, "the pool's trim");
        }
        self.forget_pool(handle);
    }

    /// A destroyed pool goes when its last memory has gone.
    fn forget_pool(&mut self, handle: u64) {
        let gone = self
            .pools
            .map
            .get(&handle)
            .is_some_and(|p| p.destroyed && p.live.is_empty() && p.space.reserved() == 0);
        let Some(pool) = (if gone {
            self.pools.map.remove(&handle)
        } else {
            None
        }) else {
            return;
        };
        if pool.space.len > 0 {
            self.regions.remove(pool.space.base);
            region::release_address(pool.space.base, pool.space.len);
        }
    }

    /// What a synchronise does to the pools of a device.
    pub fn pools_synchronized(&mut self, device: i32) {
        for handle in self.pools_of(device, |pool| {
            pool.space.reserved() > pool.threshold && pool.is_idle()
        }) {
            let keep = self.pools.map.get(&handle).map_or(0, |p| p.threshold);
            self.trim_pool(handle, keep);
        }
    }

    /// Before out of memory, pools give back what nobody uses.
    pub fn pools_make_room(&mut self, device: i32, bytes: u64) {
        if self.physical.info(device).0 >= bytes {
            return;
        }
        for handle in self.pools_of(device, Pool::is_idle) {
            self.trim_pool(handle, 0);
        }
    }

    fn pools_of(&self, device: i32, fits: impl Fn(&Pool) -> bool) -> Vec<u64> {
        let fitting = self
            .pools
            .map
            .iter()
            .filter(|(_, p)| p.device == Some(device) && fits(p));
        fitting.map(|(handle, _)| *handle).collect()
    }

    pub fn destroy_pool(&mut self, handle: u64) -> Result {
        let pool = self.pools.get_mut(handle)?;
        if pool.builtin {
            return Err(codes::INVALID_VALUE);
        }
        pool.destroyed = true;
        pool.threshold = 0;
        let empty = pool.live.is_empty();
        for device in 0..self.pools.current.len() {
            if self.pools.current[device] == handle {
                self.pools.current[device] = self.pools.default[device];
            }
        }
        if empty {
            self.trim_pool(handle, 0);
        }
        Ok(())
    }
}

impl Locked {
    /// `cuMemFree` of pool memory: no wait, the caller says that all use has ended.
    pub fn free_pool_now(&mut self, base: u64) -> Result {
        let handle = self.pools.owner.remove(&base).ok_or(codes::INVALID_VALUE)?;
        self.return_to_pool(handle, base, 0, 0);
        Ok(())
    }
}
