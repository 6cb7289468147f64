//! Stream-ordered pools: freed memory goes to whoever the stream order lets have it, the rest goes back to the device at the next synchronise past the threshold.

use crate::abi::PoolProps;
use crate::codes::{self, Result};
use crate::config::Config;
use crate::cost::{self, interpolate};
use crate::counters::Snapshot;
use crate::device_memory::poison;
use crate::entry::Locked;
use crate::region::{self, Kind};
use crate::sim::Sim;
use crate::stream::{Action, Streams};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// A pool grows by at least this much.
const SEGMENT: u64 = 32 << 20;
const SEGMENT_ROUND: u64 = 2 << 20;
const ROUND: u64 = 512;

/// Free memory, usable by a stream once this point of another has passed.
#[derive(Clone, Copy)]
struct Free {
    len: u64,
    stream: u64,
    seq: u64,
}

pub struct Pool {
    device: i32,
    builtin: bool,
    destroyed: bool,
    segments: BTreeMap<u64, u64>,
    free: BTreeMap<u64, Free>,
    live: FxHashMap<u64, u64>,
    pub threshold: u64,
    /// Follow event dependencies, opportunistic, internal dependencies: kept and read back.
    pub reuse: [i32; 3],
    reserved: u64,
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
            let handle = pools.add(device, true, 0);
            pools.default.push(handle);
        }
        pools.current = pools.default.clone();
        pools
    }

    fn add(&mut self, device: i32, builtin: bool, max_size: u64) -> u64 {
        self.next += 1;
        let handle = FIRST_HANDLE + self.next * 256;
        let pool = Pool {
            device,
            builtin,
            destroyed: false,
            segments: BTreeMap::new(),
            free: BTreeMap::new(),
            live: FxHashMap::default(),
            threshold: 0,
            reuse: [1; 3],
            reserved: 0,
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

    pub fn device_of(&self, handle: u64) -> i32 {
        self.map.get(&handle).map_or(0, |p| p.device)
    }

    pub fn set_current(&mut self, device: i32, handle: u64) -> Result {
        if self.get(handle)?.device != device {
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
        let pool = self.map.get(&handle)?;
        let mut live = pool.live.iter().map(|(base, len)| (*base, *len));
        live.find(|(base, len)| address >= *base && address - base < *len)
    }

    pub fn count(&self, out: &mut Snapshot) {
        for pool in self.map.values() {
            out.pools += u64::from(!pool.builtin && !pool.destroyed);
            out.async_reserved_bytes += pool.reserved;
            out.async_used_bytes += pool.used;
            out.async_allocs += pool.live.len() as u64;
        }
    }
}

impl Free {
    fn done(&self, streams: &Streams) -> bool {
        streams.reached(self.stream, self.seq)
    }
}

impl Pool {
    /// The smallest free piece that a stream may have now.
    fn find(&self, size: u64, stream: u64, streams: &Streams) -> Option<u64> {
        let fits = self
            .free
            .iter()
            .filter(|(_, f)| f.len >= size && (f.stream == stream || f.done(streams)));
        fits.min_by_key(|(_, f)| f.len).map(|(base, _)| *base)
    }

    fn cut(&mut self, base: u64, size: u64) {
        if let Some(piece) = self.free.remove(&base) {
            if piece.len > size {
                self.free.insert(
                    base + size,
                    Free {
                        len: piece.len - size,
                        ..piece
                    },
                );
            }
        }
    }

    /// Puts a piece back and joins it with neighbours that may be used alike.
    fn put(&mut self, base: u64, piece: Free, streams: &Streams) {
        let (mut base, mut piece) = (base, piece);
        if let Some((before, other)) = self.free.range(..base).next_back().map(|(b, f)| (*b, *f)) {
            if before + other.len == base && !self.segments.contains_key(&base) {
                if let Some(joined) = join(other, piece, streams) {
                    self.free.remove(&before);
                    (base, piece) = (before, joined);
                }
            }
        }
        let next = base + piece.len;
        if let Some(other) = self.free.get(&next).copied() {
            if !self.segments.contains_key(&next) {
                if let Some(joined) = join(piece, other, streams) {
                    self.free.remove(&next);
                    piece = joined;
                }
            }
        }
        self.free.insert(base, piece);
    }

    /// Joins what could not be joined when it was freed.
    fn merge(&mut self, streams: &Streams) {
        for (base, piece) in std::mem::take(&mut self.free) {
            self.put(base, piece, streams);
        }
    }

    pub fn attribute(&self, which: i32) -> Result<u64> {
        match which {
            1..=3 => Ok(self.reuse[which as usize - 1] as u64),
            4 => Ok(self.threshold),
            5 => Ok(self.reserved),
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
            6 if value == 0 => self.reserved_high = self.reserved,
            8 if value == 0 => self.used_high = self.used,
            _ => return Err(codes::INVALID_VALUE),
        }
        Ok(())
    }

    fn take_live(&mut self, base: u64, size: u64) {
        self.live.insert(base, size);
        self.used += size;
        self.used_high = self.used_high.max(self.used);
    }
}

fn join(a: Free, b: Free, streams: &Streams) -> Option<Free> {
    let len = a.len + b.len;
    if a.done(streams) && b.done(streams) {
        return Some(Free { len, ..a });
    }
    (a.stream == b.stream).then(|| Free {
        len,
        stream: a.stream,
        seq: a.seq.max(b.seq),
    })
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
        let device = self.check_pool_props(props)?;
        Ok(self.pools.add(device, false, props.max_size as u64))
    }

    fn check_pool_props(&self, props: &PoolProps) -> Result<i32> {
        if props.kind != crate::abi::ALLOCATION_PINNED
            || props.location.kind != crate::abi::LOCATION_DEVICE
        {
            return Err(codes::INVALID_VALUE);
        }
        self.check_device(props.location.id)?;
        Ok(props.location.id)
    }

    pub fn pool_alloc(&mut self, handle: u64, size: u64, stream: u64) -> Result<u64> {
        let size = size
            .checked_next_multiple_of(ROUND)
            .ok_or(codes::OUT_OF_MEMORY)?;
        let pool = self
            .pools
            .map
            .get_mut(&handle)
            .filter(|p| !p.destroyed)
            .ok_or(codes::INVALID_VALUE)?;
        let mut found = pool.find(size, stream, &self.streams);
        if found.is_none() && pool.free.len() > 1 {
            pool.merge(&self.streams);
            found = pool.find(size, stream, &self.streams);
        }
        let base = match found {
            Some(base) => base,
            None => self.grow_pool(handle, size, stream)?,
        };
        let pool = self
            .pools
            .map
            .get_mut(&handle)
            .ok_or(codes::INVALID_VALUE)?;
        pool.cut(base, size);
        pool.take_live(base, size);
        self.pools.owner.insert(base, handle);
        Ok(base)
    }

    fn grow_pool(&mut self, handle: u64, size: u64, stream: u64) -> Result<u64> {
        let len = size
            .checked_next_multiple_of(SEGMENT_ROUND)
            .ok_or(codes::OUT_OF_MEMORY)?
            .max(SEGMENT);
        let pool = self.pools.get(handle)?;
        let device = pool.device;
        if pool.max_size > 0 && pool.reserved + len > pool.max_size {
            return Err(codes::OUT_OF_MEMORY);
        }
        self.pools_make_room(device, len);
        // Near the end of the card a smaller segment may still fit.
        let exact = size.next_multiple_of(SEGMENT_ROUND);
        let len = if self.physical.take(device, len).is_ok() {
            len
        } else {
            self.physical.take(device, exact).map(|()| exact)?
        };
        cost::charge(interpolate(cost::POOL_GROW, len));
        let base = region::take_address(len, SEGMENT_ROUND, 0, true)
            .inspect_err(|_| self.physical.give(device, len))?;
        if self.config.poison {
            poison(base, len);
        }
        self.regions
            .insert(base, len, len, 0, Kind::PoolSegment { pool: handle });
        let pool = self.pools.get_mut(handle)?;
        pool.segments.insert(base, len);
        pool.free.insert(
            base,
            Free {
                len,
                stream,
                seq: 0,
            },
        );
        pool.reserved += len;
        pool.reserved_high = pool.reserved_high.max(pool.reserved);
        Ok(base)
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
        let Some(len) = pool.live.remove(&base) else {
            return;
        };
        pool.used -= len;
        pool.put(base, Free { len, stream, seq }, &self.streams);
        if pool.destroyed && pool.live.is_empty() {
            self.trim_pool(handle, 0);
        }
    }

    /// Gives whole free segments back until the pool holds no more than it should keep.
    pub fn trim_pool(&mut self, handle: u64, keep: u64) {
        let Some(pool) = self.pools.map.get_mut(&handle) else {
            return;
        };
        if pool.reserved <= keep {
            return;
        }
        pool.merge(&self.streams);
        let segments: Vec<(u64, u64)> = pool
            .segments
            .iter()
            .map(|(base, len)| (*base, *len))
            .collect();
        for (base, len) in segments.into_iter().rev() {
            let whole = pool
                .free
                .get(&base)
                .is_some_and(|f| f.len == len && f.done(&self.streams));
            if !whole || pool.reserved - len < keep {
                continue;
            }
            pool.free.remove(&base);
            pool.segments.remove(&base);
            pool.reserved -= len;
            self.regions.remove(base);
            region::release_address(base, len);
            self.physical.give(pool.device, len);
            cost::charge(interpolate(cost::DEVICE_FREE, len));
        }
        if pool.destroyed && pool.segments.is_empty() {
            self.pools.map.remove(&handle);
        }
    }

    /// What a synchronise does to the pools of a device.
    pub fn pools_synchronized(&mut self, device: i32) {
        for handle in self.pools_of(device, |pool| {
            pool.reserved > pool.threshold && pool.reserved > pool.used
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
        for handle in self.pools_of(device, |pool| pool.reserved > pool.used) {
            self.trim_pool(handle, 0);
        }
    }

    fn pools_of(&self, device: i32, fits: impl Fn(&Pool) -> bool) -> Vec<u64> {
        let fitting = self
            .pools
            .map
            .iter()
            .filter(|(_, p)| p.device == device && fits(p));
        fitting.map(|(handle, _)| *handle).collect()
    }

    pub fn destroy_pool(&mut self, handle: u64) -> Result {
        let pool = self.pools.get_mut(handle)?;
        if pool.builtin {
            return Err(codes::INVALID_VALUE);
        }
        pool.destroyed = true;
        let (device, empty) = (pool.device, pool.live.is_empty());
        if self.pools.current[device as usize] == handle {
            self.pools.current[device as usize] = self.pools.default[device as usize];
        }
        if empty {
            self.trim_pool(handle, 0);
            if self
                .pools
                .map
                .get(&handle)
                .is_some_and(|p| p.segments.is_empty())
            {
                self.pools.map.remove(&handle);
            }
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
