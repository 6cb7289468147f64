//! Slabs and pools of objects that the program opened, by number.

use super::Process;
use super::host::HostBlockStats;
use super::host_making::{HostPlan, PORTABLE};
use super::lifetime::{self, HostStake};
use crate::core::seams::Seams;
use crate::error::{Error, Result, Status};
use crate::object::{Memory, ObjectPool};
use crate::source::host::PageKind;
use crate::source::slab::{Slab, SlabWanted};
use crate::sys::shm::{self, Segment};
use rustc_hash::FxHashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

/// What a slab is to be.
pub struct SlabSpec<'a> {
    /// Its length once it is grown.
    pub bytes: u64,
    /// What is there when opening it returns.
    pub first: u64,
    /// See [`SlabWanted::part`].
    pub part: u64,
    /// See [`SlabWanted::pace`].
    pub pace: u64,
    /// The node that it is to be on.
    pub node: Option<i32>,
    /// Whether the driver pins it.
    pub is_pinned: bool,
    /// Whether it is of huge pages that were set aside.
    pub is_set_aside: bool,
    /// The name that other processes attach to it by.
    pub name: Option<&'a str>,
}

/// A slab that is open.
pub struct OpenSlab {
    slab: Arc<Slab>,
    /// As asked for.
    requested: u64,
    is_pinned: bool,
    /// Gone after it.
    _segment: Option<Segment>,
    _stake: HostStake,
}

struct OpenPool {
    pool: Arc<ObjectPool>,
    /// The number of its slab, if it is on one.
    slab: Option<u64>,
    _stake: HostStake,
}

impl OpenSlab {
    /// The slab.
    pub fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }
}

#[derive(Default)]
struct Tables {
    slabs: FxHashMap<u64, Arc<OpenSlab>>,
    pools: FxHashMap<u64, OpenPool>,
}

impl Tables {
    /// The pool of objects on a slab.
    fn pool_on(&self, slab: u64) -> Option<&Arc<ObjectPool>> {
        let mut pools = self.pools.values();
        pools.find_map(|open| (open.slab == Some(slab)).then_some(&open.pool))
    }
}

/// What is open, by number.
#[derive(Default)]
pub struct Slabs {
    tables: RwLock<Tables>,
    last: AtomicU64,
    /// How often one was closed.
    closed: AtomicU64,
}

/// Those that may grow.
static GROWING: Mutex<Vec<Weak<Slab>>> = Mutex::new(Vec::new());

/// No slab's thread is in the driver any more.
pub(super) fn stop_growing() {
    let slabs = std::mem::take(&mut *GROWING.lock().unwrap_or_else(PoisonError::into_inner));
    for slab in slabs.iter().filter_map(Weak::upgrade) {
        slab.stop_growing();
    }
}

impl Slabs {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// With where parts of slabs meet. Few slabs have more than one, and objects lie in one part each.
    pub(super) fn add_seams(&self, mut seams: Arc<Seams>) -> Arc<Seams> {
        for open in self.read().slabs.values().filter(|open| open.is_pinned) {
            let parts = open.slab.parts_from(1);
            if !parts.is_empty() {
                let begins: Vec<u64> = parts.iter().map(|part| part.address).collect();
                Arc::make_mut(&mut seams).add(&begins);
            }
        }
        seams
    }

    pub(super) fn add_to(&self, stats: &mut HostBlockStats) {
        for open in self.read().slabs.values() {
            let ready = open.slab.progress().ready;
            stats.blocks += 1;
            // Of what it grows to, what is there.
            stats.requested += ready.min(open.requested);
            stats.bytes += ready;
            stats.unbound += u64::from(open.slab.is_unbound());
            stats.pinned += if open.is_pinned { ready } else { 0 };
        }
    }
}

fn unknown(operation: &'static str, what: &str, number: u64) -> Error {
    Error::new(Status::NotOwned, operation)
        .detail(format!("{number:#x} is no {what}, or was closed"))
}

impl Process {
    /// Opens a slab; its number.
    pub fn open_slab(&self, operation: &'static str, spec: &SlabSpec<'_>) -> Result<u64> {
        let stake = self.host_stake()?;
        check(operation, spec)?;
        let binding = match spec.node {
            Some(node) => self.binding(operation, &HostPlan::on_node(node, spec.is_pinned))?,
            None => None,
        };
        let pinned = match spec.is_pinned {
            true => Some((self.pinning_device()?, PORTABLE)),
            false => None,
        };
        let segment = match spec.name {
            Some(name) => {
                let whole = crate::source::host::whole(operation, spec.bytes)?;
                let folder = Path::new(shm::FOLDER);
                Some(Segment::create(operation, folder, name, whole)?)
            }
            None => None,
        };
        let wanted = SlabWanted {
            operation,
            bytes: spec.bytes,
            first: spec.first,
            part: spec.part,
            pace: spec.pace,
            pages: match (&segment, spec.is_set_aside) {
                (Some(segment), _) => PageKind::Shared(segment),
                (None, true) => PageKind::SetAside(2 << 20),
                (None, false) => PageKind::Ordinary,
            },
            binding,
            pinned,
        };
        let slab = Arc::new(Slab::open(wanted, &self.warnings)?);
        let mut growing = GROWING.lock().unwrap_or_else(PoisonError::into_inner);
        growing.retain(|slab| slab.strong_count() > 0);
        growing.push(Arc::downgrade(&slab));
        drop(growing);
        let number = self.slabs.number();
        let open = OpenSlab {
            slab,
            requested: spec.bytes,
            is_pinned: spec.is_pinned,
            _segment: segment,
            _stake: stake,
        };
        self.slabs.write().slabs.insert(number, Arc::new(open));
        Ok(number)
    }

    /// The slab of a number.
    pub fn slab(&self, operation: &'static str, number: u64) -> Result<Arc<OpenSlab>> {
        let _stake = self.host_stake()?;
        let found = self.slabs.read().slabs.get(&number).cloned();
        found.ok_or_else(|| unknown(operation, "slab", number))
    }

    /// Gives parts of a slab back from the end that no object is in, while `least` bytes stay; the bytes given back.
    pub fn shrink_slab(&self, operation: &'static str, number: u64, least: u64) -> Result<u64> {
        let open = self.slab(operation, number)?;
        let pool = self.slabs.read().pool_on(number).cloned();
        match pool {
            Some(pool) => pool.shrink(operation, least),
            None => open.slab().shrink_to(least),
        }
    }

    /// Gives a slab back; an error while a pool of objects is open on it, or where the driver refuses, and then it is open
    /// still.
    pub fn close_slab(&self, operation: &'static str, number: u64) -> Result<()> {
        if lifetime::is_exiting() {
            return Ok(());
        }
        let _stake = self.host_stake()?;
        let mut tables = self.slabs.write();
        if tables.pool_on(number).is_some() {
            return Err(Error::new(Status::Busy, operation)
                .detail("a pool of objects is open on the slab")
                .advice("Close the pool first"));
        }
        let closed = tables.slabs.remove(&number);
        drop(tables);
        let open = closed.ok_or_else(|| unknown(operation, "slab", number))?;
        open.slab.close().inspect_err(|_| {
            self.slabs.write().slabs.insert(number, open.clone());
        })
    }

    /// Opens a pool of objects on a slab, or on addresses alone; its number.
    pub fn open_objects(
        &self,
        operation: &'static str,
        slab: Option<u64>,
        align: u64,
    ) -> Result<u64> {
        let stake = self.host_stake()?;
        let mut tables = self.slabs.write();
        let memory = match slab {
            Some(number) => {
                let found = tables.slabs.get(&number);
                let open = found.ok_or_else(|| unknown(operation, "slab", number))?;
                if tables.pool_on(number).is_some() {
                    return Err(Error::new(Status::Busy, operation)
                        .detail("another pool of objects is open on the slab"));
                }
                Memory::Slab(open.slab.clone())
            }
            None => Memory::Addresses,
        };
        let pool = Arc::new(ObjectPool::new(operation, memory, align)?);
        let number = self.slabs.number();
        let open = OpenPool {
            pool,
            slab,
            _stake: stake,
        };
        tables.pools.insert(number, open);
        Ok(number)
    }

    /// The pool of objects of a number.
    pub fn objects(&self, operation: &'static str, number: u64) -> Result<Arc<ObjectPool>> {
        let _stake = self.host_stake()?;
        let found = self
            .slabs
            .read()
            .pools
            .get(&number)
            .map(|open| open.pool.clone());
        found.ok_or_else(|| unknown(operation, "pool of objects", number))
    }

    /// How often pools were closed: who remembers one asks again after that.
    pub fn objects_closed(&self) -> u64 {
        self.slabs.closed.load(Ordering::Acquire)
    }

    /// Closes a pool of objects, whatever of them is still held; the slab stays.
    pub fn close_objects(&self, operation: &'static str, number: u64) -> Result<()> {
        if lifetime::is_exiting() {
            return Ok(());
        }
        let _stake = self.host_stake()?;
        let closed = self.slabs.write().pools.remove(&number);
        let open = closed.ok_or_else(|| unknown(operation, "pool of objects", number))?;
        self.slabs.closed.fetch_add(1, Ordering::AcqRel);
        open.pool.close();
        Ok(())
    }
}

fn check(operation: &'static str, spec: &SlabSpec<'_>) -> Result<()> {
    let refuse = |detail: &str| Err(Error::invalid(operation, detail.to_owned()));
    if spec.bytes == 0 || spec.first > spec.bytes {
        return refuse("a slab has bytes, and no more of them at first than in all");
    }
    match spec.name {
        Some(_) if spec.is_set_aside => refuse("shared memory is not of huge pages set aside"),
        Some(_) if spec.first < spec.bytes => {
            refuse("shared memory is there from the start: it does not grow")
        }
        _ => Ok(()),
    }
}
