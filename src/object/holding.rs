//! Who holds objects: references, of which the maker has the first, pins, and views, which keep the memory of what is
//! no object any more. What nobody holds goes back on a shelf.

use super::pool::{Object, ObjectPool};
use super::record::Record;
use super::shelf::Lists;
use super::stock::NONE;
use super::word::{Holders, MOST};
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::sys::spin::SpinGuard;
use std::sync::atomic::Ordering;

impl ObjectPool {
    /// Drops the reference that each object's maker has. What nobody holds any more is free memory. Those that are no
    /// objects, or were freed before, are left alone, and the first of them is the error, after the others were freed.
    pub fn free(&self, operation: &'static str, objects: &[Object]) -> Result<()> {
        let mut lists = self.shelves.own();
        let mut bad: Option<(usize, Error)> = None;
        for (place, object) in objects.iter().enumerate() {
            let outcome = self.release(operation, *object, &mut lists, |holders| {
                match holders.is_owned {
                    true => Ok(Holders {
                        is_owned: false,
                        references: holders.references - 1,
                        ..holders
                    }),
                    false => Err("was freed before"),
                }
            });
            if let Err(error) = outcome {
                bad.get_or_insert((place, error));
            }
        }
        match bad {
            None => Ok(()),
            Some((_, error)) if objects.len() == 1 => Err(error),
            Some((place, error)) => Err(error.also(&format!(
                "it is number {place} of {}; the others that are objects are freed",
                objects.len()
            ))),
        }
    }

    /// One more reference.
    pub fn hold(&self, operation: &'static str, object: Object) -> Result<u32> {
        let (_, holders) = self.change(operation, object, |holders| match holders.references {
            _ if !holders.is_object() => Err("was freed, and is only seen"),
            MOST => Err("has as many references as can be counted"),
            references => Ok(Holders {
                references: references + 1,
                ..holders
            }),
        })?;
        Ok(holders.references)
    }

    /// Somebody sees each object's memory from here on, or none of them: it is nobody else's until [`ObjectPool::unview`].
    pub fn view(&self, operation: &'static str, objects: &[Object]) -> Result<()> {
        for (place, object) in objects.iter().enumerate() {
            let seen = self.change(operation, *object, |holders| match holders.views {
                _ if !holders.is_object() => Err("was freed, and is only seen"),
                MOST => Err("has as many views as can be counted"),
                views => Ok(Holders {
                    views: views + 1,
                    ..holders
                }),
            });
            if let Err(error) = seen {
                self.unview(operation, &objects[..place])?;
                return Err(error.also(&format!("it is number {place} of {}", objects.len())));
            }
        }
        Ok(())
    }

    /// One view of each object less; the first that has none is the error, after the others.
    pub fn unview(&self, operation: &'static str, objects: &[Object]) -> Result<()> {
        let mut lists = self.shelves.own();
        let mut outcome = Ok(());
        for object in objects {
            let gone = self.release(operation, *object, &mut lists, |holders| {
                match holders.views {
                    0 => Err("has no view"),
                    views => Ok(Holders {
                        views: views - 1,
                        ..holders
                    }),
                }
            });
            outcome = outcome.and(gone.map(drop));
        }
        outcome
    }

    /// One reference less; the last one, if nothing pins the object, frees it. How many are left.
    pub fn drop_reference(&self, operation: &'static str, object: Object) -> Result<u32> {
        let mut lists = self.shelves.own();
        self.release(operation, object, &mut lists, |holders| {
            match holders.references {
                0 => Err("has no reference"),
                references => Ok(Holders {
                    references: references - 1,
                    // The last one is its maker's.
                    is_owned: holders.is_owned && references > 1,
                    ..holders
                }),
            }
        })
        .map(|holders| holders.references)
    }

    /// Pins an object for `owner`, as often as it likes.
    pub fn pin(&self, operation: &'static str, object: Object, owner: u64) -> Result<u32> {
        let mut pins = lock(&self.pins);
        let (_, holders) = self.change(operation, object, |holders| match holders.pins {
            _ if !holders.is_object() => Err("was freed, and is only seen"),
            MOST => Err("has as many pins as can be counted"),
            pins => Ok(Holders {
                pins: pins + 1,
                ..holders
            }),
        })?;
        pins.add(object, owner);
        Ok(holders.pins)
    }

    /// Takes one pin of `owner`'s away; the last pin of what nobody refers to frees it. How many are left.
    pub fn unpin(&self, operation: &'static str, object: Object, owner: u64) -> Result<u32> {
        let mut pins = lock(&self.pins);
        if !pins.remove(object, owner) {
            return Err(Error::new(Status::NotOwned, operation)
                .detail(format!("{owner:#x} has no pin on {}", self.named(object)))
                .advice("Unpin with the owner that pinned it, once for each pin"));
        }
        let mut lists = self.shelves.own();
        self.release(operation, object, &mut lists, |holders| {
            match holders.pins {
                0 => Err("has no pin"),
                pins => Ok(Holders {
                    pins: pins - 1,
                    ..holders
                }),
            }
        })
        .map(|holders| holders.pins)
    }

    /// Takes all of an owner's pins away; how many they were.
    pub fn unpin_all(&self, operation: &'static str, owner: u64) -> Result<usize> {
        let objects = lock(&self.pins).of(owner);
        let mut gone = 0;
        for object in objects {
            match self.unpin(operation, object, owner) {
                Ok(_) => gone += 1,
                // Its owner was faster.
                Err(error) if error.status() == Status::NotOwned => {}
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }

    /// Who holds an object: references, pins, views.
    pub fn holders(&self, operation: &'static str, object: Object) -> Result<(u32, u32, u32)> {
        let (_, _, holders) = self.look(operation, object)?;
        Ok((holders.references, holders.pins, holders.views))
    }

    /// An object's record, its word and who holds it.
    #[inline]
    fn look(&self, operation: &'static str, object: Object) -> Result<(&Record, u64, Holders)> {
        let found = (object.index()).and_then(|index| Some((index, self.records.get(index)?)));
        let Some((index, record)) = found else {
            return Err(self.unknown(operation, object, "is none"));
        };
        let word = record.word.load(Ordering::Acquire);
        let holders = Holders::of(word, index).ok_or_else(|| damaged(operation, index))?;
        let is_ours = object.pool() == self.number;
        match is_ours && holders.uses == object.uses() && holders.is_held() {
            true => Ok((record, word, holders)),
            false => Err(self.unknown(operation, object, "is none, or no longer")),
        }
    }

    /// Changes who holds an object, and says who does then.
    #[inline]
    fn change(
        &self,
        operation: &'static str,
        object: Object,
        step: impl Fn(Holders) -> std::result::Result<Holders, &'static str>,
    ) -> Result<(&Record, Holders)> {
        loop {
            let (record, word, now) = self.look(operation, object)?;
            let mut next = step(now).map_err(|why| self.unknown(operation, object, why))?;
            if !next.is_held() {
                next = Holders::nobody(now.uses.wrapping_add(1));
            }
            let new = next.word(object.index().unwrap_or(0));
            let swapped =
                (record.word).compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed);
            if swapped.is_ok() {
                return Ok((record, next));
            }
        }
    }

    /// The same where nobody may hold it then: its memory goes on the shelf.
    #[inline]
    fn release(
        &self,
        operation: &'static str,
        object: Object,
        lists: &mut SpinGuard<'_, Lists>,
        step: impl Fn(Holders) -> std::result::Result<Holders, &'static str>,
    ) -> Result<Holders> {
        let (record, next) = self.change(operation, object, step)?;
        if let (false, Some(number)) = (next.is_held(), object.index()) {
            let most = self.most_idle.load(Ordering::Relaxed);
            if !lists.put(number, record.memory().1, most) {
                lock(&self.stock).put_back(&self.records, [number]);
            }
        }
        Ok(next)
    }

    fn named(&self, object: Object) -> String {
        let memory = object.index().and_then(|index| self.records.get(index));
        match memory.filter(|record| record.piece.load(Ordering::Relaxed) != NONE) {
            Some(record) => format!("object {:#x} at {:#x}", object.get(), record.memory().0),
            None => format!("object {:#x}", object.get()),
        }
    }

    #[cold]
    fn unknown(&self, operation: &'static str, object: Object, why: &str) -> Error {
        Error::new(Status::NotOwned, operation).detail(format!("{} {why}", self.named(object)))
    }
}

#[cold]
fn damaged(operation: &'static str, index: u32) -> Error {
    Error::new(Status::Internal, operation)
        .detail(format!("what is known of object record {index} is damaged"))
        .advice("Something wrote over memory of the process; nothing was changed")
}
