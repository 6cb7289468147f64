//! What a device can do, found out by doing it once: attributes are hints (fabric handles are
//! advertised by hosts that refuse to make one).

use super::chunk::{Chunk, ChunkSpec, Share};
use super::device::Device;
use super::mapping::Mapping;
use super::reservation::Reservation;
use super::stream_ordered::StreamPool;
use crate::config::value::Location;
use crate::error::{DriverCode, Error, Result, Status, Warning};
use crate::sys::linux;
use once_cell::sync::OnceCell;
use std::sync::Arc;

/// Present, or why not.
pub type Probe = std::result::Result<(), Error>;

const MANAGED_MEMORY: i32 = 83;
const CONCURRENT_MANAGED_ACCESS: i32 = 89;
const PAGEABLE_MEMORY_ACCESS: i32 = 88;
const PAGEABLE_USES_HOST_PAGE_TABLES: i32 = 100;
const VIRTUAL_MEMORY_MANAGEMENT: i32 = 102;
const POSIX_FD_HANDLES: i32 = 103;
const MEMORY_POOLS: i32 = 115;
const RDMA_WITH_VMM: i32 = 110;
const FABRIC_HANDLES: i32 = 128;
const HOST_NUMA_VMM: i32 = 141;

/// Answers that say "not here, not ever", as opposed to a failure that may pass.
const DEFINITE: [DriverCode; 4] = [
    DriverCode::NOT_SUPPORTED,
    DriverCode(800), // not permitted: fabric handles on a host without a fabric
    DriverCode(101), // invalid device
    DriverCode::INVALID_VALUE, // a driver that does not know the handle type
];

/// The answers so far; each is asked for at its first use.
#[derive(Default)]
pub struct Capabilities {
    vmm: OnceCell<Probe>,
    fd: OnceCell<Probe>,
    fabric: OnceCell<Probe>,
    rdma: OnceCell<Probe>,
    /// What can be exported, and be reached by network cards, both at once.
    together: OnceCell<Probe>,
    host_numa: OnceCell<Probe>,
    pools: OnceCell<Probe>,
    managed: OnceCell<Probe>,
    concurrent_managed: OnceCell<Probe>,
    context_events: OnceCell<Probe>,
    granularity: OnceCell<u64>,
}

impl Device {
    /// Virtual memory management. That a chunk can be made that has everything the device advertises is
    /// taken to show it, and each of these besides: the first block of a process waits for this.
    /// Whether the chunk can be mapped is left to that block. Where it is refused, a plain chunk is made,
    /// mapped and given access to. With HIP a full cycle is run, which shows what else it needs.
    pub fn vmm(self: &Arc<Self>) -> Result<Probe> {
        probe(&self.capabilities().vmm, || {
            self.wants(VIRTUAL_MEMORY_MANAGEMENT, "virtual memory management")?;
            if self.cuda().is_hip() {
                return self.findings().map(|_| ());
            }
            let advertised = self.advertised_chunk()?;
            match create_and_release(self, advertised) {
                Ok(()) => {
                    self.has_shown(advertised);
                    return Ok(());
                }
                Err(error) if error.status() == Status::OutOfMemory => return Err(error),
                Err(error) if is_definite(&error) => tracing::debug!("{error}"),
                Err(error) => self.warn(&error),
            }
            cycle(self, ChunkSpec::plain(Location::Device))
        })
    }

    fn advertised_chunk(&self) -> Result<ChunkSpec> {
        let advertises = |attribute| Ok(self.attribute(attribute)? != 0);
        let share = match self.wants_fabric() {
            Ok(()) => Share::Fabric,
            Err(error) if !is_definite(&error) => return Err(error),
            Err(_) if advertises(POSIX_FD_HANDLES)? => Share::Fd,
            Err(_) => Share::None,
        };
        Ok(ChunkSpec {
            share,
            rdma: advertises(RDMA_WITH_VMM)?,
            ..ChunkSpec::plain(Location::Device)
        })
    }

    /// Keeps what a chunk that could be made has shown; what is known already stays.
    fn has_shown(&self, spec: ChunkSpec) {
        let answers = self.capabilities();
        let share = match spec.share {
            Share::None => None,
            Share::Fd => Some(&answers.fd),
            Share::Fabric => Some(&answers.fabric),
        };
        let rdma = spec.rdma.then_some(&answers.rdma);
        let together = share.and(rdma).map(|_| &answers.together);
        for cell in [share, rdma, together].into_iter().flatten() {
            let _ = cell.set(Ok(()));
        }
    }

    /// Chunks that can be exported as POSIX file descriptors.
    pub fn posix_fd(self: &Arc<Self>) -> Result<Probe> {
        let spec = ChunkSpec {
            share: Share::Fd,
            ..ChunkSpec::plain(Location::Device)
        };
        probe(&self.capabilities().fd, || {
            self.wants(POSIX_FD_HANDLES, "POSIX file descriptor handles")?;
            create_and_release(self, spec)
        })
    }

    /// Chunks that can be exported as fabric handles.
    pub fn fabric(self: &Arc<Self>) -> Result<Probe> {
        let spec = ChunkSpec {
            share: Share::Fabric,
            ..ChunkSpec::plain(Location::Device)
        };
        probe(&self.capabilities().fabric, || {
            self.wants_fabric()?;
            create_and_release(self, spec)
        })
    }

    fn wants_fabric(&self) -> Result<()> {
        self.wants(FABRIC_HANDLES, "fabric handles")?;
        // The refusal of the driver takes longer than all else that is probed.
        if !self.cuda().library().is_simulator() && !linux::has_imex_channel() {
            return Err(Error::new(Status::Unsupported, "fabric handles")
                .detail("the process may use no IMEX channel"));
        }
        Ok(())
    }

    /// Chunks that network cards can reach.
    pub fn rdma(self: &Arc<Self>) -> Result<Probe> {
        let spec = ChunkSpec {
            rdma: true,
            ..ChunkSpec::plain(Location::Device)
        };
        probe(&self.capabilities().rdma, || {
            self.wants(RDMA_WITH_VMM, "GPUDirect RDMA with virtual memory")?;
            create_and_release(self, spec)
        })
    }

    /// Chunks in host memory, mapped for the device, tried on node 0.
    pub fn host_numa(self: &Arc<Self>) -> Result<Probe> {
        probe(&self.capabilities().host_numa, || {
            self.wants(HOST_NUMA_VMM, "virtual memory on host NUMA nodes")?;
            cycle(self, ChunkSpec::plain(Location::HostNuma(0)))
        })
    }

    /// Stream-ordered memory pools.
    pub fn memory_pools(self: &Arc<Self>) -> Result<Probe> {
        probe(&self.capabilities().pools, || {
            self.wants(MEMORY_POOLS, "stream-ordered memory pools")?;
            let pool = StreamPool::device_default(self)?;
            pool.reserved().map(|_| ())
        })
    }

    /// Managed memory of any kind.
    pub fn managed_memory(self: &Arc<Self>) -> Result<Probe> {
        probe(&self.capabilities().managed, || {
            self.wants(MANAGED_MEMORY, "managed memory")
        })
    }

    /// Managed memory that host and device may use at once, so that advice and prefetch are allowed.
    pub fn concurrent_managed_access(&self) -> Result<Probe> {
        probe(&self.capabilities().concurrent_managed, || {
            self.wants(CONCURRENT_MANAGED_ACCESS, "concurrent managed access")
        })
    }

    /// An event behind everything a context was given, without waiting for it.
    pub fn context_events(self: &Arc<Self>) -> Result<Probe> {
        probe(&self.capabilities().context_events, || {
            if self.cuda().has_context_record_event() {
                return Ok(());
            }
            Err(Error::new(Status::Unsupported, "cuCtxRecordEvent")
                .detail("the driver does not have it: an order point waits for the context"))
        })
    }

    /// Whether the device reaches pageable host memory through the host's page tables, as a
    /// coherent machine's does.
    pub fn is_coherent(&self) -> Result<bool> {
        Ok(self.attribute(PAGEABLE_MEMORY_ACCESS)? != 0
            && self.attribute(PAGEABLE_USES_HOST_PAGE_TABLES)? != 0)
    }

    /// Granularity of chunks in device memory.
    pub fn granularity(&self) -> Result<u64> {
        self.capabilities()
            .granularity
            .get_or_try_init(|| ChunkSpec::plain(Location::Device).granularity(self))
            .copied()
    }

    /// The best kind of chunk at `location`: as widely usable as was probed to work.
    pub fn best_chunk(self: &Arc<Self>, location: Location) -> Result<ChunkSpec> {
        let mut spec = ChunkSpec::plain(location);
        if location == Location::Device {
            spec.share = if self.works(self.fabric())? {
                Share::Fabric
            } else if self.works(self.posix_fd())? {
                Share::Fd
            } else {
                Share::None
            };
            spec.rdma = self.works(self.rdma())?;
            if spec.rdma && spec.share != Share::None {
                spec.rdma = self.works(self.together(spec))?;
            }
        }
        Ok(spec)
    }

    /// Chunks that can be exported as `spec` says and that network cards can reach.
    fn together(self: &Arc<Self>, spec: ChunkSpec) -> Result<Probe> {
        probe(&self.capabilities().together, || {
            create_and_release(self, spec)
        })
    }

    /// Whether an extra can be had. Asking that failed is a no for now; that memory has run out is
    /// not for an extra to decide.
    fn works(&self, probe: Result<Probe>) -> Result<bool> {
        match probe {
            Ok(probe) => Ok(probe.is_ok()),
            Err(error) if error.status() == Status::OutOfMemory => Err(error),
            Err(error) => {
                self.warn(&error);
                Ok(false)
            }
        }
    }

    fn warn(&self, error: &Error) {
        self.warnings().warn(Warning::Probe, || {
            format!("chunks may be made plainer, since asking for more failed: {error}")
        });
    }

    fn wants(&self, attribute: i32, what: &'static str) -> Result<()> {
        if self.attribute(attribute)? != 0 {
            return Ok(());
        }
        Err(Error::new(Status::Unsupported, what)
            .detail(format!("device {} does not offer it", self.ordinal())))
    }
}

/// Runs `attempt` once and keeps what it says for good; a failure that may pass is returned and
/// asked again.
fn probe(cell: &OnceCell<Probe>, attempt: impl FnOnce() -> Result<()>) -> Result<Probe> {
    cell.get_or_try_init(|| match attempt() {
        Ok(()) => Ok(Ok(())),
        Err(error) if is_definite(&error) => Ok(Err(error)),
        Err(error) => Err(error),
    })
    .cloned()
}

fn is_definite(error: &Error) -> bool {
    match error.code() {
        Some(code) => DEFINITE.contains(&code),
        None => error.status() == Status::Unsupported,
    }
}

fn create_and_release(device: &Arc<Device>, spec: ChunkSpec) -> Result<()> {
    let _guard = device.enter()?;
    let mut chunk = Chunk::create(device, spec.granularity(device)?, spec)?;
    chunk.release()
}

fn cycle(device: &Arc<Device>, spec: ChunkSpec) -> Result<()> {
    let _guard = device.enter()?;
    let bytes = spec.granularity(device)?;
    let mut reservation = Reservation::new(device, bytes, bytes)?;
    let mut chunk = Chunk::create(device, bytes, spec)?;
    let mapping = Mapping::new(device, reservation.address(), &chunk)?;
    let allowed = mapping.allow(&[], spec.location);
    // Nothing has used the range, so it may go at once, whatever came of it.
    mapping
        .unmap()
        .or_else(|(mapping, _)| mapping.unmap())
        .map_err(|(_, error)| error)?;
    allowed?;
    chunk.release()?;
    reservation.free()
}
