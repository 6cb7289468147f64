//! Everything at rest: how much is in use, and whether all that is known agrees.

use super::pool::{ObjectPool, Usage};
use super::shelf::Lists;
use super::stock::{NONE, Stock};
use super::word::Holders;
use crate::core::space::Color;
use crate::core::sync::lock;
use crate::source::slab::Part;
use crate::sys::spin::SpinGuard;
use rustc_hash::FxHashMap;
use std::sync::atomic::Ordering;

impl ObjectPool {
    /// How much is in use, all counted at one moment.
    pub fn usage(&self) -> Usage {
        let shelves: Vec<_> = self.shelves.iter().collect();
        let mut stock = lock(&self.stock);
        self.adopt(&mut stock);
        let idle: u64 = shelves.iter().map(|lists| lists.idle).sum();
        let waiting: usize = shelves.iter().map(|lists| lists.len()).sum();
        let largest = shelves.iter().map(|lists| lists.largest()).max();
        Usage {
            used: stock.space.used() - idle,
            total: stock.total,
            largest: stock
                .space
                .largest(Color::NEUTRAL)
                .max(largest.unwrap_or(0)),
            objects: u64::from(stock.made) - stock.spare.len() as u64 - waiting as u64,
        }
    }

    /// Whether all that is known of objects and of memory agrees; what does not.
    pub fn check(&self) -> Result<(), String> {
        let pins = lock(&self.pins);
        let shelves: Vec<_> = self.shelves.iter().collect();
        let stock = lock(&self.stock);
        let mut found = self.check_records(&stock)?;
        check_shelves(&shelves, &mut found)?;
        let mut pinned: FxHashMap<u32, u32> = FxHashMap::default();
        for (object, count) in pins.iter() {
            let index = object.index().ok_or("a pin is on no object")?;
            *pinned.entry(index).or_default() += count;
        }
        for (index, known) in found {
            match known.holders.is_held() {
                true => {
                    let pins = pinned.remove(&index).unwrap_or(0);
                    if known.holders.pins != pins {
                        return Err(format!("object {index} has {pins} pins"));
                    }
                }
                false => return Err(format!("object {index} is nobody's and on no shelf")),
            }
        }
        match pinned.is_empty() {
            true => Ok(()),
            false => Err("pins are on what is no object".to_owned()),
        }
    }

    /// Records that have memory, each with a block of the space that is its alone.
    fn check_records(&self, stock: &Stock) -> Result<FxHashMap<u32, Known>, String> {
        let mut blocks: FxHashMap<u32, (u64, u64)> = (stock.space.used_pieces()?.into_iter())
            .map(|(piece, address, bytes)| (piece, (address, bytes)))
            .collect();
        if stock.total != stock.space.backed() {
            return Err(format!("{} bytes are told of", stock.total));
        }
        let parts = self.slab().map(|slab| slab.parts_from(0));
        let mut found = FxHashMap::default();
        let mut spare = 0;
        for index in 0..stock.made {
            let record = self.records.get(index).ok_or("a record was lost")?;
            let word = record.word.load(Ordering::Acquire);
            let holders = Holders::of(word, index)
                .ok_or_else(|| format!("what holds object {index} is damaged"))?;
            let piece = record.piece.load(Ordering::Relaxed);
            let memory = record.memory();
            if piece == NONE && memory == (0, 0) && !holders.is_held() {
                spare += 1;
                continue;
            }
            if blocks.remove(&piece) != Some(memory) {
                return Err(format!("object {index} is not where its memory is"));
            }
            if !parts
                .as_ref()
                .is_none_or(|parts| is_inside_one(parts, memory))
            {
                return Err(format!("object {index} is in no part of the slab"));
            }
            found.insert(
                index,
                Known {
                    holders,
                    bytes: memory.1,
                },
            );
        }
        let mut spares = stock.spare.clone();
        spares.sort_unstable();
        spares.dedup();
        let is_spare = |index: &u32| *index < stock.made && !found.contains_key(index);
        if spare != spares.len()
            || spares.len() != stock.spare.len()
            || !spares.iter().all(is_spare)
        {
            return Err("spare records are not those without memory".to_owned());
        }
        match blocks.is_empty() {
            true => Ok(found),
            false => Err("memory is in use by no object".to_owned()),
        }
    }
}

/// Parts lie by address.
fn is_inside_one(parts: &[Part], (address, bytes): (u64, u64)) -> bool {
    let behind = parts.partition_point(|part| part.address <= address);
    let part = behind.checked_sub(1).and_then(|last| parts.get(last));
    part.is_some_and(|part| address + bytes <= part.address + part.bytes)
}

struct Known {
    holders: Holders,
    bytes: u64,
}

/// Takes what is on shelves, once each, out of `found`.
fn check_shelves(
    shelves: &[SpinGuard<'_, Lists>],
    found: &mut FxHashMap<u32, Known>,
) -> Result<(), String> {
    for lists in shelves {
        let mut idle = 0;
        for (bytes, index) in lists.iter() {
            idle += bytes;
            let known = found.remove(&index);
            if known.is_none_or(|known| known.holders.is_held() || known.bytes != bytes) {
                return Err(format!(
                    "object {index} is on a shelf where it does not belong"
                ));
            }
        }
        if idle != lists.idle || !lists.is_consistent() {
            return Err(format!(
                "{idle} bytes wait on a shelf that tells of {}",
                lists.idle
            ));
        }
    }
    Ok(())
}
