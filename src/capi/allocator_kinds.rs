//! An allocator as its handle has it: the kinds behind one interface.

use super::descriptor::{Backing, backing, hbm_allocator_desc_t};
use super::text_argument;
use crate::core::size::Align;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::observe;
use crate::process::host::HostKind;
use crate::process::host_counts::HostCounts;
use crate::process::{AllocatorId, Demand, HostStake, Stats, tags};
use crate::source::{Kind, LastUse};
use std::sync::atomic::{AtomicU64, Ordering};

/// What an allocator is made of.
pub(super) struct Allocator {
    pub id: AllocatorId,
    pub backing: Backing,
    pub device: i32,
    pub tag: TagId,
    /// Blocks that are being allocated; of custom functions and memory of the host, those given out too. Of the others
    /// the process knows, whose resets take them.
    live: AtomicU64,
    /// Arenas over it; [`CLOSED`] once it is going.
    arenas: AtomicU64,
    /// Of memory of the host, which no device counts.
    counts: HostCounts,
    /// Of what has locks and memory that a forked child has not.
    stake: Option<HostStake>,
}

const CLOSED: u64 = u64::MAX;

impl Allocator {
    pub fn is_pool(&self) -> bool {
        matches!(
            self.backing,
            Backing::Device {
                kind: Kind::Pool,
                ..
            }
        )
    }

    pub fn is_arena(&self) -> bool {
        matches!(self.backing, Backing::Arena(_))
    }

    /// # Safety
    /// The texts of the descriptor must be NULL or C strings, its functions what it says.
    pub unsafe fn new(descriptor: &hbm_allocator_desc_t) -> Result<Allocator> {
        const OPERATION: &str = "hbm_allocator_create";
        // SAFETY: passed on to the caller.
        let backing = unsafe { backing(OPERATION, descriptor) }?;
        let tag = if descriptor.tag.is_null() {
            TagId::NONE
        } else {
            // SAFETY: passed on to the caller.
            tags::table().intern(unsafe { text_argument(OPERATION, "tag", descriptor.tag)? })?
        };
        Ok(Allocator {
            id: AllocatorId::new(),
            device: match &backing {
                Backing::Arena(place) => place.upstream().device,
                _ => descriptor.device,
            },
            stake: match backing {
                Backing::Arena(_) | Backing::Custom(_) => Some(observe::process().host_stake()?),
                Backing::Device { .. } | Backing::Host(_) => None,
            },
            backing,
            tag,
            live: AtomicU64::new(0),
            arenas: AtomicU64::new(0),
            counts: HostCounts::default(),
        })
    }

    /// An error in a child that may have been forked while another thread had its locks.
    pub fn check_is_ours(&self) -> Result<()> {
        match self.stake {
            Some(_) => observe::process().check_host_is_ours(),
            None => Ok(()),
        }
    }

    pub fn handle(&self) -> usize {
        match &self.backing {
            Backing::Arena(place) => place.handle(),
            _ => self.id.get() as usize,
        }
    }

    /// One more arena is over it.
    pub fn add_arena(&self, operation: &'static str) -> Result<()> {
        let add = |count: u64| (count != CLOSED).then_some(count + 1);
        (self
            .arenas
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add))
        .map(drop)
        .map_err(|_| Error::invalid(operation, "the upstream is being destroyed"))
    }

    pub fn drop_arena(&self) {
        self.arenas.fetch_sub(1, Ordering::AcqRel);
    }

    /// No arena may come over it any more.
    fn close(&self) -> Result<()> {
        (self
            .arenas
            .compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire))
        .map(drop)
        .map_err(|count| match count {
            CLOSED => busy("another call is destroying it".to_owned()),
            count => busy(format!("{count} arenas are over it")),
        })
    }

    /// Whether the process knows its blocks.
    fn is_recorded(&self) -> bool {
        matches!(self.backing, Backing::Device { .. })
    }

    fn check_unused(&self) -> Result<()> {
        // In this order: what is being allocated is recorded before it is counted no more.
        let counted = self.live.load(Ordering::Acquire);
        let recorded = match &self.backing {
            Backing::Device { .. } if self.is_pool() => {
                observe::process().pooled_blocks_of(self.id)
            }
            Backing::Device { .. } => observe::process().source_blocks_of(self.id),
            _ => 0,
        };
        match counted + recorded {
            0 => Ok(()),
            live => Err(busy(format!("{live} of its blocks are not deallocated"))),
        }
    }

    /// No block of it and no arena over it may come any more; an error where there is one. Asks nobody: the
    /// caller holds the lock of the table. The region of an arena is still to be given back.
    pub fn begin_destroy(&self) -> Result<()> {
        self.close()?;
        let unused = match self.backing {
            Backing::Arena(_) => Ok(()),
            _ => self.check_unused(),
        };
        unused.inspect_err(|_| self.reopen())
    }

    /// It stays after all.
    pub fn reopen(&self) {
        self.arenas.store(0, Ordering::Release);
    }

    /// Whether streams mean anything to it.
    pub fn is_by_stream(&self) -> bool {
        match &self.backing {
            Backing::Device { .. } | Backing::Custom(_) => true,
            Backing::Host(_) => false,
            Backing::Arena(place) => place.upstream().is_by_stream(),
        }
    }

    /// The device whose reset takes its blocks; of custom functions none is known.
    pub fn device_of_blocks(&self) -> Option<i32> {
        match &self.backing {
            Backing::Device { .. } => Some(self.device),
            Backing::Host(_) | Backing::Custom(_) => None,
            Backing::Arena(place) => place.upstream().device_of_blocks(),
        }
    }

    /// Whether what it takes back goes on at once, so that a trim does not find it.
    pub fn gives_back_at_once(&self) -> bool {
        match &self.backing {
            Backing::Device { kind, .. } => {
                matches!(kind, Kind::Device | Kind::Managed | Kind::Pinned)
            }
            Backing::Host(_) | Backing::Custom(_) => true,
            Backing::Arena(_) => false,
        }
    }

    fn allocate(&self, bytes: u64, align: Align, stream: Stream) -> Result<u64> {
        let (kind, location) = match &self.backing {
            Backing::Device { kind, location } => (*kind, *location),
            Backing::Host(plan) => {
                let kind = HostKind::Allocator(self.id);
                let made = observe::process().allocate_host_aligned(kind, bytes, align.get(), plan);
                return self.counts.note_made(bytes, made);
            }
            Backing::Arena(place) => return place.allocate(bytes, align, stream),
            Backing::Custom(custom) => return custom.allocate(bytes, align, stream),
        };
        observe::process().allocate(Demand {
            kind,
            device: self.device,
            bytes,
            align,
            stream,
            owner: Owner::Block,
            last_use: LastUse::Streams,
            allocator: Some(self.id),
            location,
            tag: self.tag.or_else(tags::current),
        })
    }

    /// A block is about to be allocated, so that it stays.
    pub fn expect_block(&self) {
        self.live.fetch_add(1, Ordering::AcqRel);
    }

    /// Allocates a block that is counted.
    pub fn allocate_expected(&self, bytes: u64, align: Align, stream: Stream) -> Result<u64> {
        let made = self.allocate(bytes, align, stream);
        if made.is_err() || self.is_recorded() {
            self.live.fetch_sub(1, Ordering::AcqRel);
        }
        made
    }

    /// Takes a block back, of `bytes` where that is told. Whether the block is gone now, and how it went.
    pub fn deallocate(
        &self,
        address: u64,
        bytes: Option<u64>,
        used_on: Stream,
    ) -> (bool, Result<()>) {
        let process = observe::process();
        let (is_gone, outcome) = match &self.backing {
            Backing::Device { .. } => {
                let is_size =
                    bytes.map_or(Ok(()), |bytes| process.check_size(address, self.id, bytes));
                if is_size.is_err() {
                    return (false, is_size);
                }
                let outcome = process.deallocate(address, Some(self.id), Some(used_on));
                let is_gone = !matches!(&outcome, Err(error) if error.status() == Status::NotOwned);
                (is_gone, outcome)
            }
            Backing::Host(_) => {
                let freed = process.free_host(HostKind::Allocator(self.id), address, bytes, None);
                (
                    freed.is_ok(),
                    freed.map(|freed| self.counts.note_freed(freed)),
                )
            }
            Backing::Arena(place) => {
                return place.deallocate(address, bytes, used_on);
            }
            Backing::Custom(custom) => custom.deallocate(address, bytes, used_on),
        };
        if is_gone && !self.is_recorded() {
            self.live.fetch_sub(1, Ordering::AcqRel);
        }
        (is_gone, outcome)
    }

    pub fn record_stream(&self, address: u64, stream: Stream) -> Result<()> {
        let process = observe::process();
        match &self.backing {
            Backing::Device { .. } => process.record_stream(address, stream),
            // A free waits for all work that could use it.
            Backing::Host(_) => process.check_host_block(HostKind::Allocator(self.id), address),
            Backing::Arena(place) => place.record_stream(address, stream),
            Backing::Custom(custom) => custom.record_stream(address),
        }
    }

    pub fn trim(&self, keep: u64) -> Result<u64> {
        match &self.backing {
            Backing::Device { .. } => observe::process().trim(self.device, keep),
            Backing::Host(_) => Ok(0),
            Backing::Arena(place) => place.trim(keep),
            Backing::Custom(custom) => custom.trim(keep),
        }
    }

    pub fn stats(&self) -> Result<Stats> {
        let process = observe::process();
        let warnings = process.warnings().total();
        match &self.backing {
            Backing::Device { kind, .. } => process.stats(self.device, Some(*kind)),
            Backing::Host(_) => Ok(self.counts.read(warnings)),
            Backing::Arena(place) => place.stats(),
            Backing::Custom(custom) => Ok(custom.stats(warnings)),
        }
    }
}

fn busy(what: String) -> Error {
    Error::new(Status::Busy, "hbm_allocator_destroy").detail(what)
}
