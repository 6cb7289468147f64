//! Who pins which objects, so that nobody takes another's pin away, and all that one had can go with it.

use super::pool::Object;
use rustc_hash::FxHashMap;

/// Pins by object and owner.
#[derive(Default)]
pub struct Pins {
    by_object: FxHashMap<Object, Vec<(u64, u32)>>,
}

impl Pins {
    /// One more of `owner`'s on an object.
    pub fn add(&mut self, object: Object, owner: u64) {
        let owners = self.by_object.entry(object).or_default();
        match owners.iter_mut().find(|(other, _)| *other == owner) {
            Some((_, count)) => *count += 1,
            None => owners.push((owner, 1)),
        }
    }

    /// One less; no if it has none.
    pub fn remove(&mut self, object: Object, owner: u64) -> bool {
        let Some(owners) = self.by_object.get_mut(&object) else {
            return false;
        };
        let Some(at) = owners.iter().position(|(other, _)| *other == owner) else {
            return false;
        };
        owners[at].1 -= 1;
        if owners[at].1 == 0 {
            owners.swap_remove(at);
        }
        if owners.is_empty() {
            self.by_object.remove(&object);
        }
        true
    }

    /// What an owner has pinned, an object as often as it did.
    pub fn of(&self, owner: u64) -> Vec<Object> {
        let mut found = Vec::new();
        for (object, owners) in &self.by_object {
            let mine = owners.iter().find(|(other, _)| *other == owner);
            let count = mine.map_or(0, |(_, count)| *count as usize);
            found.extend(std::iter::repeat_n(*object, count));
        }
        found
    }

    /// Each object and how many pins it has.
    pub fn iter(&self) -> impl Iterator<Item = (Object, u32)> + '_ {
        let total = |owners: &Vec<(u64, u32)>| owners.iter().map(|(_, count)| count).sum();
        (self.by_object.iter()).map(move |(object, owners)| (*object, total(owners)))
    }
}
