//! The address map: every range that the simulated driver gave out, by its start. Ranges never overlap, since each is a mapping of its own.

use crate::abi::{ACCESS_NONE, ACCESS_READ_WRITE, AccessDesc};
use crate::codes::{OUT_OF_MEMORY, Result};
use crate::managed::Managed;
use std::collections::BTreeMap;
use std::sync::Once;

pub struct Mapping {
    pub len: u64,
    /// Key of the physical chunk, which outlives its handle while it is mapped.
    pub chunk: u64,
    /// (location kind, id, flags) of everyone who was given access.
    pub access: Vec<AccessDesc>,
    /// How often setting access was refused that should have worked.
    pub refused: u64,
}

impl Mapping {
    pub fn flags(&self, kind: i32, id: i32) -> i32 {
        let entry = self
            .access
            .iter()
            .find(|a| a.location.kind == kind && a.location.id == id);
        entry.map_or(ACCESS_NONE, |a| a.flags)
    }

    /// What the host mapping must allow so that whoever has access can use it.
    pub fn widest(&self) -> i32 {
        self.access
            .iter()
            .map(|a| a.flags)
            .max()
            .unwrap_or(ACCESS_NONE)
    }

    pub fn grantees(&self) -> u64 {
        self.access
            .iter()
            .filter(|a| a.flags != ACCESS_NONE)
            .count() as u64
    }
}

pub enum Kind {
    Reservation(BTreeMap<u64, Mapping>),
    Device { device: i32 },
    Managed(Managed),
    PoolSpace { pool: u64 },
    Pinned { flags: u32 },
}

pub struct Region {
    pub len: u64,
    /// What was asked for, where the mapping is larger.
    pub size: u64,
    pub context: u64,
    pub id: u64,
    pub kind: Kind,
}

#[derive(Default)]
pub struct Regions {
    map: BTreeMap<u64, Region>,
    next_id: u64,
}

impl Regions {
    pub fn insert(&mut self, base: u64, len: u64, size: u64, context: u64, kind: Kind) {
        self.next_id += 1;
        self.map.insert(
            base,
            Region {
                len,
                size,
                context,
                id: self.next_id,
                kind,
            },
        );
    }

    pub fn remove(&mut self, base: u64) -> Option<Region> {
        self.map.remove(&base)
    }

    pub fn get(&self, base: u64) -> Option<&Region> {
        self.map.get(&base)
    }

    /// The region an address lies in, with its start.
    pub fn find(&self, address: u64) -> Option<(u64, &Region)> {
        let (base, region) = self.map.range(..=address).next_back()?;
        (address - base < region.len).then_some((*base, region))
    }

    pub fn find_mut(&mut self, address: u64) -> Option<(u64, &mut Region)> {
        let (base, region) = self.map.range_mut(..=address).next_back()?;
        (address - base < region.len).then_some((*base, region))
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &Region)> {
        self.map.iter().map(|(base, region)| (*base, region))
    }

    pub fn clear(&mut self) {
        for (base, region) in std::mem::take(&mut self.map) {
            release_address(base, region.len);
        }
    }
}

/// Rounds to the host's pages, which may be larger than 4 KiB.
pub fn page_round(bytes: u64) -> Result<u64> {
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as u64;
    bytes.checked_next_multiple_of(page).ok_or(OUT_OF_MEMORY)
}

/// Address space with an alignment; `accessible` decides whether it is memory yet.
pub fn take_address(len: u64, align: u64, hint: u64, accessible: bool) -> Result<u64> {
    let protection = if accessible {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_NONE
    };
    let page = page_round(1)?;
    let slack = if align > page { align } else { 0 };
    let wanted = len.checked_add(slack).ok_or(OUT_OF_MEMORY)?;
    let hinted = hint != 0 && hint % align.max(page) == 0;
    if hinted {
        let base = map_anonymous(hint, len, protection)?;
        if base == hint {
            return Ok(base);
        }
        release_address(base, len);
    }
    let base = map_anonymous(0, wanted, protection)?;
    let aligned = base.next_multiple_of(align.max(1));
    if aligned > base {
        release_address(base, aligned - base);
    }
    let (end, used) = (base + wanted, aligned + len);
    if end > used {
        release_address(used, end - used);
    }
    Ok(aligned)
}

fn map_anonymous(hint: u64, len: u64, protection: i32) -> Result<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel picks a range that nobody has.
    let base = unsafe { libc::mmap(hint as *mut _, len as usize, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        Err(OUT_OF_MEMORY)
    } else {
        Ok(base as u64)
    }
}

pub fn release_address(base: u64, len: u64) {
    // SAFETY: callers pass ranges that take_address gave and that no table names any more.
    unsafe { libc::munmap(base as *mut _, len as usize) };
}

/// Puts part of a file at a fixed place, without access.
pub fn place(base: u64, len: u64, fd: i32, offset: u64) -> Result {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range lies inside a reservation of ours where nothing is mapped.
    let at = unsafe {
        libc::mmap(
            base as *mut _,
            len as usize,
            libc::PROT_NONE,
            flags,
            fd,
            offset as i64,
        )
    };
    if at == libc::MAP_FAILED {
        tell_of_refusal();
        Err(OUT_OF_MEMORY)
    } else {
        Ok(())
    }
}

/// The card would not have run out: the host's kernel has, most likely of mappings, which it counts.
fn tell_of_refusal() {
    static ONCE: Once = Once::new();
    let error = std::io::Error::last_os_error();
    ONCE.call_once(|| {
        eprintln!(
            "hbmalloc_sim: the host refuses to map more, see /proc/sys/vm/max_map_count: {error}"
        );
    });
}

/// Makes a range bare address space again.
pub fn vacate(base: u64, len: u64) -> Result {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range lies inside a reservation of ours; nothing queued uses it any more, or the fault was recorded.
    let at = unsafe { libc::mmap(base as *mut _, len as usize, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        Err(OUT_OF_MEMORY)
    } else {
        Ok(())
    }
}

pub fn protect(base: u64, len: u64, access: i32) -> Result {
    let protection = match access {
        ACCESS_NONE => libc::PROT_NONE,
        ACCESS_READ_WRITE => libc::PROT_READ | libc::PROT_WRITE,
        _ => libc::PROT_READ,
    };
    // SAFETY: the range is mapped by us.
    let answer = unsafe { libc::mprotect(base as *mut _, len as usize, protection) };
    if answer != 0 {
        Err(OUT_OF_MEMORY)
    } else {
        Ok(())
    }
}
