//! What of a device an operation is about: the places of its tags, and what of each has to be saved.

use crate::core::tags::TagId;
use crate::error::Result;
use crate::extent::DeviceState;
use crate::extent::residency::Place;
use crate::extent::table::{Owner, Residency};
use crate::gpu::Device;
use crate::pool::{DevicePool, Dozing, Pools};
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::Arc;

/// A device and its pool, if that is in use.
pub struct Site {
    /// The device.
    pub state: Arc<DeviceState>,
    /// Its pool.
    pub pool: Option<Arc<DevicePool>>,
    /// The devices whose work may use its memory, itself among them.
    pub users: Vec<Arc<Device>>,
}

/// The tags that an operation is about, in the order asked for; everything where none is named.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// The tags.
    pub tags: Option<Vec<TagId>>,
}

impl Choice {
    /// Whether memory of a tag is chosen.
    pub fn has(&self, tag: TagId) -> bool {
        match &self.tags {
            None => true,
            Some(tags) => tags.contains(&tag),
        }
    }

    fn rank(&self, tag: TagId) -> usize {
        let tags = self.tags.as_deref().unwrap_or_default();
        tags.iter().position(|other| *other == tag).unwrap_or(0)
    }

    pub(super) fn numbers(&self) -> impl Fn(u16) -> bool + '_ {
        |number| self.has(TagId::from_number(number))
    }
}

/// Stretches of segments in which whoever divides them up has nothing: first address and length, by address.
pub type Dead = [(u64, u64)];

/// A place and what of it is live.
pub(super) struct Item {
    pub place: Place,
    /// By address: first address and length of each stretch.
    pub live: Vec<(u64, u64)>,
}

/// The places of the tags, with what is live of each, in the order of the tags and then of addresses.
/// `dozing` is what the pool says of its own; places of pools that it does not name are left out.
pub(super) fn items(site: &Site, choice: &Choice, dozing: Vec<Dozing>, dead: &Dead) -> Vec<Item> {
    let mut of_pool: FxHashMap<u64, Dozing> = (dozing.into_iter())
        .map(|dozing| (dozing.address, dozing))
        .collect();
    let item = |place: Place| {
        let live = match place.owner {
            Owner::Pool => match of_pool.remove(&place.address) {
                Some(dozing) => dozing.live,
                // It stays in use, and is told of.
                None if place.is_pinned => Vec::new(),
                None => return None,
            },
            Owner::Segment | Owner::Cell => without(place.address, place.bytes, dead),
            Owner::Block => vec![(place.address, place.bytes)],
        };
        Some(Item { place, live })
    };
    let places = site.state.extents.places(|tag| choice.has(tag));
    let mut items: Vec<Item> = places.into_iter().filter_map(item).collect();
    items.sort_by_key(|item| {
        let tag = item.place.tag;
        (choice.rank(tag), tag.number(), item.place.address)
    });
    items
}

/// What is left of a stretch without those that are dead.
fn without(address: u64, bytes: u64, dead: &Dead) -> Vec<(u64, u64)> {
    let (mut live, mut at, end) = (Vec::new(), address, address + bytes);
    let first = dead.partition_point(|(begin, bytes)| begin + bytes <= address);
    for (begin, bytes) in dead[first..].iter().take_while(|(begin, _)| *begin < end) {
        if *begin > at {
            live.push((at, begin - at));
        }
        at = at.max(begin + bytes).min(end);
    }
    if at < end {
        live.push((at, end - at));
    }
    live
}

/// Takes the pool's memory of the tags out of use, but for places that are pinned.
pub(super) fn doze(pools: &Pools, site: &Site, choice: &Choice) -> Result<Vec<Dozing>> {
    let Some(pool) = &site.pool else {
        return Ok(Vec::new());
    };
    let places = site.state.extents.places(|tag| choice.has(tag));
    let pinned = places.iter().filter(|place| place.is_pinned);
    let pinned: FxHashSet<u64> = pinned.map(|place| place.address).collect();
    let stays = |address| pinned.contains(&address);
    pools.doze(pool, &choice.numbers(), &stays)
}

impl Item {
    /// Whether it has a chunk that can be taken.
    pub fn is_awake(&self) -> bool {
        self.place.residency == Residency::Mapped
    }

    /// Its live bytes.
    pub fn live_bytes(&self) -> u64 {
        self.live.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn what_is_dead_is_left_out() {
        let dead = [
            (0, 50),
            (90, 20),
            (150, 10),
            (160, 10),
            (195, 100),
            (400, 1),
        ];
        assert_eq!(without(100, 100, &dead), [(110, 40), (170, 25)]);
        assert_eq!(without(100, 100, &[]), [(100, 100)]);
        assert_eq!(without(100, 100, &[(100, 100)]), []);
        assert_eq!(without(300, 50, &dead), [(300, 50)]);
    }
}
