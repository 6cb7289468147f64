//! Managed memory: host memory with the advice and the last prefetch location of each stretch, as `cuMemRangeGetAttribute` reads them back.

use crate::abi::*;
use crate::codes::{self, Result};
use crate::cost::{self, interpolate};
use crate::region::{self, Kind};
use crate::sim::Sim;
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advice {
    pub read_mostly: bool,
    pub preferred: Location,
    /// Bit n is device n.
    pub accessed_by: u64,
    pub accessed_by_host: bool,
    pub last_prefetch: Location,
}

const FRESH: Advice = Advice {
    read_mostly: false,
    preferred: Location::NONE,
    accessed_by: 0,
    accessed_by_host: false,
    last_prefetch: Location::NONE,
};

/// Advice of a managed allocation, by the start of each stretch; the first starts at the allocation.
pub struct Managed {
    stretches: BTreeMap<u64, Advice>,
}

impl Managed {
    fn new(base: u64) -> Managed {
        Managed {
            stretches: BTreeMap::from([(base, FRESH)]),
        }
    }

    fn split(&mut self, at: u64) {
        if let Some((start, advice)) = self
            .stretches
            .range(..=at)
            .next_back()
            .map(|(s, a)| (*s, *a))
        {
            if start != at {
                self.stretches.insert(at, advice);
            }
        }
    }

    fn change(&mut self, from: u64, to: u64, end: u64, change: impl Fn(&mut Advice)) {
        self.split(from);
        if to < end {
            self.split(to);
        }
        self.stretches
            .range_mut(from..to)
            .for_each(|(_, advice)| change(advice));
    }

    /// The advice of all stretches that a range touches.
    pub fn advice(&self, from: u64, to: u64) -> Vec<Advice> {
        let first = self
            .stretches
            .range(..=from)
            .next_back()
            .map_or(from, |(start, _)| *start);
        self.stretches
            .range(first..to)
            .map(|(_, advice)| *advice)
            .collect()
    }
}

pub const ATTACH_GLOBAL: u32 = 1;
pub const ATTACH_HOST: u32 = 2;

pub const SET_READ_MOSTLY: i32 = 1;
pub const UNSET_READ_MOSTLY: i32 = 2;
pub const SET_PREFERRED: i32 = 3;
pub const UNSET_PREFERRED: i32 = 4;
pub const SET_ACCESSED_BY: i32 = 5;
pub const UNSET_ACCESSED_BY: i32 = 6;

impl Sim {
    pub fn alloc_managed(&mut self, size: u64, flags: u32) -> Result<u64> {
        let (context, _) = self.current_device()?;
        if size == 0 || !(flags == ATTACH_GLOBAL || flags == ATTACH_HOST) {
            return Err(codes::INVALID_VALUE);
        }
        cost::charge(interpolate(cost::MANAGED_ALLOC, size));
        let len = region::page_round(size)?;
        let align = if size >= 2 << 20 { 2 << 20 } else { 1 };
        let base = region::take_address(len, align, 0, true)?;
        self.regions
            .insert(base, len, size, context, Kind::Managed(Managed::new(base)));
        self.counters.gave(size);
        Ok(base)
    }

    /// The page-rounded range inside one managed allocation; none is memory of the system, which a coherent machine takes as well.
    fn managed_range(&mut self, address: u64, count: u64) -> Result<Option<(u64, u64, u64)>> {
        let end = address
            .checked_add(count)
            .filter(|_| count > 0)
            .ok_or(codes::INVALID_VALUE)?;
        let page = region::page_round(1)?;
        match self.regions.find(address) {
            Some((base, region)) if matches!(region.kind, Kind::Managed(_)) => {
                let limit = base + region.len;
                if end > limit {
                    return Err(codes::INVALID_VALUE);
                }
                Ok(Some((
                    address - address % page,
                    end.next_multiple_of(page).min(limit),
                    limit,
                )))
            }
            None if self.config.coherent => Ok(None),
            _ => Err(codes::INVALID_VALUE),
        }
    }

    fn check_location(&self, location: Location) -> Result {
        match location.kind {
            LOCATION_DEVICE => {
                self.check_device(location.id)?;
                if self.config.concurrent_managed {
                    Ok(())
                } else {
                    Err(codes::INVALID_DEVICE)
                }
            }
            LOCATION_HOST | LOCATION_HOST_NUMA_CURRENT => Ok(()),
            LOCATION_HOST_NUMA => {
                let known = location.id >= 0 && (location.id as u32) < self.config.numa_nodes;
                if known {
                    Ok(())
                } else {
                    Err(codes::INVALID_VALUE)
                }
            }
            _ => Err(codes::INVALID_VALUE),
        }
    }

    pub fn advise(&mut self, address: u64, count: u64, advice: i32, location: Location) -> Result {
        let range = self.managed_range(address, count)?;
        if !(LOCATION_DEVICE..=LOCATION_HOST_NUMA_CURRENT).contains(&location.kind) {
            return Err(codes::INVALID_VALUE);
        }
        // The number means nothing to these three, but the kind is looked at.
        let kind_only = matches!(
            advice,
            SET_READ_MOSTLY | UNSET_READ_MOSTLY | UNSET_PREFERRED
        );
        if !kind_only {
            self.check_location(location)?;
        }
        let by = matches!(advice, SET_ACCESSED_BY | UNSET_ACCESSED_BY);
        if by && !matches!(location.kind, LOCATION_DEVICE | LOCATION_HOST) {
            return Err(codes::INVALID_VALUE);
        }
        if !(SET_READ_MOSTLY..=UNSET_ACCESSED_BY).contains(&advice) {
            return Err(codes::INVALID_VALUE);
        }
        let Some((from, to, end)) = range else {
            return Ok(());
        };
        // Seen on a machine with one node: preferring the node reads back as preferring the host.
        let on_host = location.kind >= LOCATION_HOST && !self.config.coherent;
        let location = if on_host { Location::HOST } else { location };
        if let Some((_, region)) = self.regions.find_mut(from) {
            if let Kind::Managed(managed) = &mut region.kind {
                managed.change(from, to, end, |entry| apply(entry, advice, location));
            }
        }
        Ok(())
    }

    pub fn prefetch(
        &mut self,
        address: u64,
        count: u64,
        location: Location,
        stream: u64,
    ) -> Result {
        let key = self.stream_key(stream)?;
        self.refuse_captured(key)?;
        let range = self.managed_range(address, count)?;
        self.check_location(location)?;
        let (base, len) = range.map_or((address, count), |(from, to, _)| (from, to - from));
        let place = normal(location);
        let action = crate::stream::Action::Marker {
            base,
            len,
            place: Some(place),
        };
        self.enqueue(key, action, interpolate(cost::PREFETCH, count));
        Ok(())
    }

    /// A prefetch has run.
    pub fn prefetched(&mut self, base: u64, len: u64, place: Location) {
        if let Some((start, region)) = self.regions.find_mut(base) {
            let end = start + region.len;
            if let Kind::Managed(managed) = &mut region.kind {
                managed.change(base, (base + len).min(end), end, |entry| {
                    entry.last_prefetch = place
                });
            }
        }
    }

    pub fn range_advice(&self, address: u64, count: u64) -> Result<Vec<Advice>> {
        let end = address
            .checked_add(count)
            .filter(|_| count > 0)
            .ok_or(codes::INVALID_VALUE)?;
        match self.regions.find(address) {
            Some((base, region)) if end <= base + region.len => match &region.kind {
                Kind::Managed(managed) => Ok(managed.advice(address, end)),
                _ => Err(codes::INVALID_VALUE),
            },
            None if self.config.coherent => Ok(vec![FRESH]),
            _ => Err(codes::INVALID_VALUE),
        }
    }
}

/// Host locations carry no number.
fn normal(location: Location) -> Location {
    match location.kind {
        LOCATION_HOST => Location::HOST,
        LOCATION_HOST_NUMA_CURRENT => Location {
            kind: LOCATION_HOST_NUMA,
            id: 0,
        },
        _ => location,
    }
}

fn apply(entry: &mut Advice, advice: i32, location: Location) {
    let bit = if location.kind == LOCATION_DEVICE {
        1 << location.id
    } else {
        0
    };
    match advice {
        SET_READ_MOSTLY => entry.read_mostly = true,
        UNSET_READ_MOSTLY => entry.read_mostly = false,
        SET_PREFERRED => entry.preferred = normal(location),
        UNSET_PREFERRED => entry.preferred = Location::NONE,
        SET_ACCESSED_BY if bit != 0 => entry.accessed_by |= bit,
        SET_ACCESSED_BY => entry.accessed_by_host = true,
        _ if bit != 0 => entry.accessed_by &= !bit,
        _ => entry.accessed_by_host = false,
    }
}

pub const CPU: i32 = -1;
pub const INVALID: i32 = -2;

/// The device number that the old attributes answer: -1 the host, -2 none or not the same everywhere.
fn device_number(location: Location) -> i32 {
    match location.kind {
        LOCATION_DEVICE => location.id,
        LOCATION_HOST | LOCATION_HOST_NUMA => CPU,
        _ => INVALID,
    }
}

fn same<T: PartialEq>(values: impl Iterator<Item = T>, otherwise: T) -> T {
    let mut values = values;
    let Some(first) = values.next() else {
        return otherwise;
    };
    if values.all(|v| v == first) {
        first
    } else {
        otherwise
    }
}

/// The value of an attribute over a range, as 32-bit words; accessed-by fills what room there is.
pub fn attribute(advice: &[Advice], which: i32, words: usize) -> Result<Vec<i32>> {
    let preferred = || same(advice.iter().map(|a| a.preferred), Location::NONE);
    let prefetched = || same(advice.iter().map(|a| a.last_prefetch), Location::NONE);
    let one = match which {
        1 => advice.iter().all(|a| a.read_mostly) as i32,
        2 => device_number(preferred()),
        3 => return accessed_by(advice, words),
        4 => device_number(prefetched()),
        5 => kind_number(preferred()),
        6 => number(preferred()),
        7 => kind_number(prefetched()),
        8 => number(prefetched()),
        _ => return Err(codes::INVALID_VALUE),
    };
    if words == 1 {
        Ok(vec![one])
    } else {
        Err(codes::INVALID_VALUE)
    }
}

/// No location is type 0.
fn kind_number(location: Location) -> i32 {
    location.kind
}

fn number(location: Location) -> i32 {
    match location.kind {
        LOCATION_DEVICE | LOCATION_HOST_NUMA => location.id,
        LOCATION_HOST => CPU,
        _ => INVALID,
    }
}

fn accessed_by(advice: &[Advice], words: usize) -> Result<Vec<i32>> {
    if words == 0 {
        return Err(codes::INVALID_VALUE);
    }
    let mask = advice.iter().fold(u64::MAX, |mask, a| mask & a.accessed_by);
    let host = advice.iter().all(|a| a.accessed_by_host);
    let devices = (0..63).filter(|d| mask >> d & 1 == 1);
    let mut out: Vec<i32> = devices.chain(host.then_some(CPU)).take(words).collect();
    out.resize(words, INVALID);
    Ok(out)
}
