//! Memory of the host that the program asked for by itself, and whose it is: a wrong size, a second free and a free
//! of another kind are errors that change nothing.

use super::Process;
use super::lifetime::{self, HostStake};
use crate::error::{Error, Result, Status};
use crate::gpu::Device;
use crate::registry::AllocatorId;
use crate::source::host::{HostBlock, MOST_REGISTERED};
use crate::sys::heap::Heap;
use crate::sys::shm::Segment;
use rustc_hash::FxHashMap;
use std::ffi::c_uint;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which function gives memory out, and so which takes it back.
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
    /// As a descriptor says.
    Described,
    /// Pinned, for a program that asks CUDA's runtime.
    Runtime,
    /// As the descriptor of an allocator says.
    Allocator(AllocatorId),
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
            HostKind::Described => "hbm_alloc_host_ptr",
            HostKind::Runtime => "cudaHostAlloc",
            HostKind::Allocator(_) => "hbm_allocator_allocate",
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
            HostKind::Described => "hbm_free_host_ptr",
            HostKind::Runtime => "cudaFreeHost",
            HostKind::Allocator(_) => "hbm_allocator_deallocate",
        }
    }
}

/// How long a block is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSize {
    /// As asked for.
    pub requested: u64,
    /// In whole pages.
    pub bytes: u64,
}

pub(super) enum Memory {
    Heap(Heap),
    Block(HostBlock),
    /// Of the driver's own, which alone makes write-combined memory.
    Driver {
        device: Arc<Device>,
        address: u64,
    },
}

pub(super) struct Owned {
    pub memory: Memory,
    pub kind: HostKind,
    pub size: HostSize,
    pub is_pinned: bool,
    /// As asked for, of `cudaHostAlloc`'s.
    pub flags: c_uint,
    /// What it is a map of, if others share it: gone after it.
    pub segment: Option<Segment>,
    pub _stake: HostStake,
}

impl Owned {
    fn seams(&self) -> Vec<u64> {
        match &self.memory {
            Memory::Block(block) => block.seams(),
            Memory::Heap(_) | Memory::Driver { .. } => Vec::new(),
        }
    }

    fn give_back(self) -> std::result::Result<(), (Box<Owned>, Error)> {
        let outcome = match self.memory {
            Memory::Heap(heap) => {
                drop(heap);
                Ok(())
            }
            Memory::Block(block) => {
                (block.give_back()).map_err(|(block, error)| (Memory::Block(block), error))
            }
            Memory::Driver { device, address } => (device.free_pinned(address))
                .map_err(|error| (Memory::Driver { device, address }, error)),
        };
        outcome.map_err(|(memory, error)| (Box::new(Owned { memory, ..self }), error))
    }

    fn is_unbound(&self) -> bool {
        matches!(&self.memory, Memory::Block(block) if block.is_unbound())
    }

    /// Why it may not be freed so.
    fn objection(
        &self,
        kind: HostKind,
        address: u64,
        bytes: Option<u64>,
        name: Option<&str>,
    ) -> Option<Error> {
        let invalid = |detail: String| Some(Error::invalid(kind.deallocator(), detail));
        if let (HostKind::Allocator(_), true) = (kind, self.kind != kind) {
            let what = format!("{address:#x} is no block of this allocator");
            return Some(Error::new(Status::NotOwned, kind.deallocator()).detail(what));
        }
        if self.kind != kind {
            let by = self.kind.allocator();
            let error = invalid(format!("{address:#x} was given out by {by}"))?;
            return Some(error.advice(format!("Free it by {}", self.kind.deallocator())));
        }
        if let Some(bytes) = bytes.filter(|bytes| *bytes != self.size.requested) {
            return invalid(format!(
                "{address:#x} has {} bytes, not {bytes}",
                self.size.requested
            ));
        }
        let other = |segment: &&Segment| name.is_some_and(|name| !segment.is_called(name));
        let segment = self.segment.as_ref().filter(other)?;
        invalid(format!("{address:#x} is of {}", segment.path().display()))
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
    /// Blocks that were to be on some nodes, and may be anywhere since the system refused.
    pub unbound: u64,
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

    /// The same, for who takes a lock of the host's memory, or is going to have some.
    pub fn host_stake(&self) -> Result<HostStake> {
        self.check_host_is_ours()?;
        Ok(HostStake::take())
    }

    /// Registers so many bytes of blocks to come at once, whole huge pages: so that a test has seams in less than what
    /// drivers cannot do.
    pub fn register_host_at_most(&self, bytes: u64) {
        let most = &self.host_blocks.most_registered;
        most.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn most_registered(&self) -> u64 {
        match self.host_blocks.most_registered.load(Ordering::Relaxed) {
            0 => MOST_REGISTERED,
            bytes => bytes,
        }
    }

    fn host_table(&self) -> MutexGuard<'_, FxHashMap<u64, Owned>> {
        (self.host_blocks.table.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn give_out(&self, owned: Owned) -> u64 {
        let address = match &owned.memory {
            Memory::Heap(heap) => heap.address(),
            Memory::Block(block) => block.address(),
            Memory::Driver { address, .. } => *address,
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
    ) -> Result<HostSize> {
        if lifetime::is_exiting() {
            return Ok(HostSize::default());
        }
        let _stake = self.host_stake()?;
        let owned = {
            let mut table = self.host_table();
            let found = (table.get(&address)).ok_or_else(|| {
                Error::new(Status::NotOwned, kind.deallocator()).detail(format!(
                    "{address:#x} is no block of the host, or was freed before"
                ))
            })?;
            if let Some(error) = found.objection(kind, address, bytes, name) {
                return Err(error);
            }
            table.remove(&address)
        };
        let Some(owned) = owned else {
            return Ok(HostSize::default());
        };
        self.host_seams().remove(&owned.seams());
        let size = owned.size;
        owned.give_back().map(|()| size).map_err(|(owned, error)| {
            self.host_seams().add(&owned.seams());
            // Nobody was given the address meanwhile: it is still mapped.
            self.host_table().insert(address, *owned);
            error.advice("It is still allocated: free it again")
        })
    }

    /// Where the registrations of the block at an address end, in bytes from there; it ends where the last does.
    pub fn host_block_seams(&self, operation: &'static str, address: u64) -> Result<Vec<u64>> {
        let _stake = self.host_stake()?;
        let table = self.host_table();
        let owned = (table.get(&address)).ok_or_else(|| {
            Error::new(Status::NotOwned, operation)
                .detail(format!("no block of the host begins at {address:#x}"))
        })?;
        let inner = owned.seams().into_iter().map(|seam| seam - address);
        Ok(inner.chain([owned.size.bytes]).collect())
    }

    /// An error for what is no block of that kind.
    pub fn check_host_block(&self, kind: HostKind, address: u64) -> Result<()> {
        let _stake = self.host_stake()?;
        match self.host_table().get(&address) {
            Some(owned) if owned.kind == kind => Ok(()),
            _ => Err(Error::new(Status::NotOwned, kind.deallocator())
                .detail(format!("{address:#x} is no block of this allocator"))),
        }
    }

    /// The flags of the block of that kind that `address` lies in, if there is one.
    pub fn host_flags(&self, kind: HostKind, address: u64) -> Option<c_uint> {
        let _stake = self.host_stake().ok()?;
        let table = self.host_table();
        let holds =
            |begin: u64, owned: &Owned| (begin..begin + owned.size.bytes).contains(&address);
        let found =
            (table.iter()).find(|(begin, owned)| owned.kind == kind && holds(**begin, owned));
        found.map(|(_, owned)| owned.flags)
    }

    /// What is given out.
    pub fn host_block_stats(&self) -> Result<HostBlockStats> {
        let _stake = self.host_stake()?;
        let mut stats = HostBlockStats::default();
        for owned in self.host_table().values() {
            stats.blocks += 1;
            stats.requested += owned.size.requested;
            stats.bytes += owned.size.bytes;
            stats.pinned += if owned.is_pinned { owned.size.bytes } else { 0 };
            stats.unbound += u64::from(owned.is_unbound());
        }
        self.slabs.add_to(&mut stats);
        Ok(stats)
    }
}
