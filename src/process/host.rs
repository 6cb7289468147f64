//! Memory of the host that the program asked for by itself, and whose it is: a wrong size, a second free and a free
//! of another kind are errors that change nothing.

use super::Process;
use super::lifetime;
use crate::error::{Error, Result, Status};
use crate::gpu::Device;
use crate::source::host::{self, HostBlock, PageKind, Wanted};
use crate::sys::numa::Topology;
use crate::sys::shm::{self, Segment};
use rustc_hash::FxHashMap;
use std::ffi::c_uint;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The kinds, each with a function that allocates it and one that frees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// Pinned.
    Pinned,
    /// On a node, not pinned.
    Numa,
    /// Pinned, on a node.
    PinnedNuma,
    /// Pinned pages that were set aside.
    HugePinned,
    /// Pinned pages that were set aside, on a node.
    HugePinnedNuma,
    /// Pinned, named, and shared with other processes.
    SharedPinned,
}

impl HostKind {
    /// The function that allocates it, as errors name it.
    pub const fn allocator(self) -> &'static str {
        match self {
            HostKind::Pinned => "hbm_alloc_pinned_ptr",
            HostKind::Numa => "hbm_alloc_numa_ptr",
            HostKind::PinnedNuma => "hbm_alloc_pinned_numa_ptr",
            HostKind::HugePinned => "hbm_alloc_hugepage_pinned_ptr",
            HostKind::HugePinnedNuma => "hbm_alloc_hugepage_pinned_numa_ptr",
            HostKind::SharedPinned => "hbm_alloc_shm_pinned_ptr",
        }
    }

    /// The function that frees it.
    pub const fn deallocator(self) -> &'static str {
        match self {
            HostKind::Pinned => "hbm_free_pinned_ptr",
            HostKind::Numa => "hbm_free_numa_ptr",
            HostKind::PinnedNuma => "hbm_free_pinned_numa_ptr",
            HostKind::HugePinned => "hbm_free_hugepage_pinned_ptr",
            HostKind::HugePinnedNuma => "hbm_free_hugepage_pinned_numa_ptr",
            HostKind::SharedPinned => "hbm_free_shm_pinned_ptr",
        }
    }

    const fn is_pinned(self) -> bool {
        !matches!(self, HostKind::Numa)
    }

    const fn pages(self) -> PageKind<'static> {
        match self {
            HostKind::HugePinned | HostKind::HugePinnedNuma => PageKind::SetAside(2 << 20),
            _ => PageKind::Ordinary,
        }
    }
}

/// `cudaHostAllocPortable`, `cudaHostAllocMapped`; registering has the same.
pub(super) const PORTABLE: c_uint = 1;
const MAPPED: c_uint = 2;
/// `cudaHostAllocWriteCombined`; registering has none.
const WRITE_COMBINED: c_uint = 4;

enum Memory {
    Block(HostBlock),
    /// Of the driver's own, which alone makes write-combined memory.
    Driver {
        device: Arc<Device>,
        address: u64,
    },
}

struct Owned {
    memory: Memory,
    kind: HostKind,
    /// As asked for.
    requested: u64,
    /// In whole pages.
    bytes: u64,
    /// What it is a map of, if others share it: gone after it.
    segment: Option<Segment>,
}

impl Owned {
    fn seams(&self) -> Vec<u64> {
        match &self.memory {
            Memory::Block(block) => block.seams(),
            Memory::Driver { .. } => Vec::new(),
        }
    }

    fn give_back(self) -> std::result::Result<(), (Box<Owned>, Error)> {
        let outcome = match self.memory {
            Memory::Block(block) => {
                (block.give_back()).map_err(|(block, error)| (Memory::Block(block), error))
            }
            Memory::Driver { device, address } => (device.free_pinned(address))
                .map_err(|error| (Memory::Driver { device, address }, error)),
        };
        outcome.map_err(|(memory, error)| (Box::new(Owned { memory, ..self }), error))
    }
}

/// What was given out, by address.
#[derive(Default)]
pub struct HostBlocks {
    table: Mutex<FxHashMap<u64, Owned>>,
    /// As many bytes as are registered at once where that is not the usual number.
    most_registered: AtomicU64,
}

/// What of the host is given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostBlockStats {
    /// How many blocks.
    pub blocks: u64,
    /// Their bytes as asked for.
    pub requested: u64,
    /// Bytes of their pages.
    pub bytes: u64,
    /// Those of them that are pinned.
    pub pinned: u64,
}

impl Process {
    /// Its pages are not there in a child, which may map others at their addresses. Comes before the lock.
    pub fn check_host_is_ours(&self) -> Result<()> {
        lifetime::check_not_forked()?;
        match lifetime::has_lost_host_memory() {
            false => Ok(()),
            true => Err(Error::new(Status::Forked, "memory of the host")
                .detail(
                    "the process was forked from one that had some, which the child does not have",
                )
                .advice("Start a new program in the child (exec, or Python's spawn)")),
        }
    }

    /// Registers so many bytes of blocks to come at once, whole huge pages: so that a test has seams in less than what
    /// drivers cannot do.
    pub fn register_host_at_most(&self, bytes: u64) {
        let most = &self.host_blocks.most_registered;
        most.store(bytes, Ordering::Relaxed);
    }

    fn most_registered(&self) -> u64 {
        match self.host_blocks.most_registered.load(Ordering::Relaxed) {
            0 => host::MOST_REGISTERED,
            bytes => bytes,
        }
    }

    fn host_table(&self) -> MutexGuard<'_, FxHashMap<u64, Owned>> {
        (self.host_blocks.table.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory of the host, on a node if one is named; `flags` are those of `cudaHostAlloc`. The driver is opened for
    /// what is pinned.
    pub fn allocate_host(
        &self,
        kind: HostKind,
        bytes: u64,
        node: Option<i32>,
        flags: c_uint,
    ) -> Result<u64> {
        let operation = kind.allocator();
        self.check_host_is_ours()?;
        lifetime::watch_host_memory();
        check_flags(kind, flags)?;
        if bytes == 0 {
            return Err(Error::invalid(operation, "a size of 0 bytes"));
        }
        let topology = node.map(|_| Topology::read(Path::new("/")));
        let node = match (&topology, node) {
            (Some(topology), Some(number)) => Some(topology.node(operation, number)?),
            _ => None,
        };
        let device = match kind.is_pinned() {
            true => Some(self.pinning_device()?),
            false => None,
        };
        if let Some(device) = device.as_ref().filter(|_| flags & WRITE_COMBINED != 0) {
            let address = device.allocate_pinned_as(bytes, flags)?;
            let device = device.clone();
            let memory = Memory::Driver { device, address };
            return Ok(self.give_out(kind, memory, address, (bytes, bytes), None));
        }
        let block = HostBlock::make(
            &Wanted {
                operation,
                bytes,
                pages: kind.pages(),
                node,
                pinned: (device.as_ref()).map(|device| (device, flags | PORTABLE)),
                most_registered: self.most_registered(),
            },
            &self.warnings,
        )?;
        let (address, held) = (block.address(), block.bytes());
        Ok(self.give_out(kind, Memory::Block(block), address, (bytes, held), None))
    }

    /// Pinned memory under a name: made anew, or what another process, or this one, has under it.
    pub fn share_host(&self, bytes: u64, name: &str, is_new: bool) -> Result<u64> {
        let (kind, folder) = (HostKind::SharedPinned, Path::new(shm::FOLDER));
        self.check_host_is_ours()?;
        lifetime::watch_host_memory();
        let operation = match is_new {
            true => kind.allocator(),
            false => "hbm_attach_shm_pinned_ptr",
        };
        let whole = host::whole(operation, bytes)?;
        let device = self.pinning_device()?;
        let segment = match is_new {
            true => Segment::create(operation, folder, name, whole)?,
            false => Segment::attach(operation, folder, name, whole)?,
        };
        let block = HostBlock::make(
            &Wanted {
                operation,
                bytes,
                pages: PageKind::Shared(&segment),
                node: None,
                pinned: Some((&device, PORTABLE)),
                most_registered: self.most_registered(),
            },
            &self.warnings,
        )?;
        let address = block.address();
        let sizes = (bytes, block.bytes());
        Ok(self.give_out(kind, Memory::Block(block), address, sizes, Some(segment)))
    }

    fn give_out(
        &self,
        kind: HostKind,
        memory: Memory,
        address: u64,
        (requested, bytes): (u64, u64),
        segment: Option<Segment>,
    ) -> u64 {
        let owned = Owned {
            memory,
            kind,
            requested,
            bytes,
            segment,
        };
        self.host_seams().add(&owned.seams());
        self.host_table().insert(address, owned);
        address
    }

    /// Gives back what was given out, of that kind; a size and a name that are told must be those that were asked
    /// for. Unpinning waits for the devices' work.
    pub fn free_host(
        &self,
        kind: HostKind,
        address: u64,
        bytes: Option<u64>,
        name: Option<&str>,
    ) -> Result<()> {
        let operation = kind.deallocator();
        if lifetime::is_exiting() {
            return Ok(());
        }
        self.check_host_is_ours()?;
        let owned = {
            let mut table = self.host_table();
            let Some(found) = table.get(&address) else {
                return Err(Error::new(Status::NotOwned, operation).detail(format!(
                    "{address:#x} is no block of the host, or was freed before"
                )));
            };
            if found.kind != kind {
                return Err(Error::invalid(
                    operation,
                    format!("{address:#x} was given out by {}", found.kind.allocator()),
                )
                .advice(format!("Free it by {}", found.kind.deallocator())));
            }
            if bytes.is_some_and(|bytes| bytes != found.requested) {
                let detail = format!(
                    "{address:#x} has {} bytes, not {}",
                    found.requested,
                    bytes.unwrap_or(0)
                );
                return Err(Error::invalid(operation, detail));
            }
            let other = |segment: &&Segment| name.is_some_and(|name| !segment.is_called(name));
            if let Some(segment) = found.segment.as_ref().filter(other) {
                let detail = format!("{address:#x} is of {}", segment.path().display());
                return Err(Error::invalid(operation, detail));
            }
            table.remove(&address)
        };
        let Some(owned) = owned else {
            return Ok(());
        };
        self.host_seams().remove(&owned.seams());
        owned.give_back().map_err(|(owned, error)| {
            self.host_seams().add(&owned.seams());
            // Nobody was given the address meanwhile: it is still mapped.
            self.host_table().insert(address, *owned);
            error.advice("It is still allocated: free it again")
        })
    }

    /// What is given out.
    pub fn host_block_stats(&self) -> Result<HostBlockStats> {
        self.check_host_is_ours()?;
        let mut stats = HostBlockStats::default();
        for owned in self.host_table().values() {
            stats.blocks += 1;
            stats.requested += owned.requested;
            stats.bytes += owned.bytes;
            stats.pinned += if owned.kind.is_pinned() {
                owned.bytes
            } else {
                0
            };
        }
        self.slabs.add_to(&mut stats);
        Ok(stats)
    }

    /// The device whose driver pins: any will do, since what is pinned is so for all.
    pub(super) fn pinning_device(&self) -> Result<Arc<Device>> {
        let device = match self.devices_in_use().next() {
            Some(device) => device,
            None => self.device(0)?,
        };
        Ok(device.state().device.clone())
    }
}

fn check_flags(kind: HostKind, flags: c_uint) -> Result<()> {
    let known = match kind.pages() {
        PageKind::Ordinary => PORTABLE | MAPPED | WRITE_COMBINED,
        _ => PORTABLE | MAPPED,
    };
    if flags & !known == 0 {
        return Ok(());
    }
    Err(
        Error::invalid(kind.allocator(), format!("flags {flags:#x}")).advice(format!(
            "Those of cudaHostAlloc are known: 1 portable, 2 mapped{}",
            if known & WRITE_COMBINED != 0 {
                ", 4 write-combined"
            } else {
                ""
            }
        )),
    )
}
