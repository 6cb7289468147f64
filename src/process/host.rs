//! Memory of the host that the program asked for by itself, and whose it is: a wrong size, a second free and a free
//! of another kind are errors that change nothing.

use super::Process;
use super::lifetime;
use crate::error::{Error, Result, Status};
use crate::gpu::Device;
use crate::source::host::{HostBlock, PageKind, Wanted};
use crate::sys::numa::Topology;
use rustc_hash::FxHashMap;
use std::ffi::c_uint;
use std::path::Path;
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
        }
    }

    const fn is_pinned(self) -> bool {
        !matches!(self, HostKind::Numa)
    }

    const fn pages(self) -> PageKind {
        match self {
            HostKind::HugePinned | HostKind::HugePinnedNuma => PageKind::SetAside(2 << 20),
            _ => PageKind::Ordinary,
        }
    }
}

/// `cudaHostAllocPortable`, `cudaHostAllocMapped`; registering has the same.
const PORTABLE: c_uint = 1;
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
}

impl Owned {
    fn give_back(self) -> std::result::Result<(), (Owned, Error)> {
        let Owned {
            memory,
            kind,
            requested,
            bytes,
        } = self;
        let outcome = match memory {
            Memory::Block(block) => {
                (block.give_back()).map_err(|(block, error)| (Memory::Block(block), error))
            }
            Memory::Driver { device, address } => (device.free_pinned(address))
                .map_err(|error| (Memory::Driver { device, address }, error)),
        };
        outcome.map_err(|(memory, error)| {
            let owned = Owned {
                memory,
                kind,
                requested,
                bytes,
            };
            (owned, error)
        })
    }
}

/// What was given out, by address.
#[derive(Default)]
pub struct HostBlocks {
    table: Mutex<FxHashMap<u64, Owned>>,
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
        lifetime::check_not_forked()?;
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
        let (address, memory, held) = match &device {
            Some(device) if flags & WRITE_COMBINED != 0 => {
                let address = device.allocate_pinned_as(bytes, flags)?;
                let device = device.clone();
                (address, Memory::Driver { device, address }, bytes)
            }
            _ => {
                let wanted = Wanted {
                    operation,
                    bytes,
                    pages: kind.pages(),
                    node,
                    pinned: (device.as_ref()).map(|device| (device, flags | PORTABLE)),
                };
                let block = HostBlock::make(&wanted, &self.warnings)?;
                let (address, held) = (block.address(), block.bytes());
                (address, Memory::Block(block), held)
            }
        };
        let owned = Owned {
            memory,
            kind,
            requested: bytes,
            bytes: held,
        };
        self.host_table().insert(address, owned);
        Ok(address)
    }

    /// Gives back what [`Process::allocate_host`] gave out, of that kind; a size that is told must be the one that was
    /// asked for. Unpinning waits for the devices' work.
    pub fn free_host(&self, kind: HostKind, address: u64, bytes: Option<u64>) -> Result<()> {
        let operation = kind.deallocator();
        lifetime::check_not_forked()?;
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
            table.remove(&address)
        };
        let Some(owned) = owned else {
            return Ok(());
        };
        owned.give_back().map_err(|(owned, error)| {
            // Nobody was given the address meanwhile: it is still mapped.
            self.host_table().insert(address, owned);
            error.advice("It is still allocated: free it again")
        })
    }

    /// What is given out.
    pub fn host_block_stats(&self) -> HostBlockStats {
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
        stats
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
        PageKind::SetAside(_) => PORTABLE | MAPPED,
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
