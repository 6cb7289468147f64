//! One conformance suite for every source: what `trait Source` promises, asked of each kind in turn,
//! a line a source in the table below.

mod captures;
mod contents;
mod exhaustion;
mod peers;
mod threads;
mod work;

use super::machine::Machine;
use super::simulator::{Counters, Simulator};
use crate::config::value::{Location, Size, Threshold};
use crate::core::size::Align;
use crate::core::tags::TagId;
use crate::extent::DeviceState;
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::{Case, Outcome, Stop, Suite};
use crate::source::device::DeviceSource;
use crate::source::managed::{ManagedSource, Policy};
use crate::source::pinned::PinnedSource;
use crate::source::stream_ordered::{AsyncSource, PoolChoice};
use crate::source::vmm::VmmSource;
use crate::source::{ALIGN, Block, Kind, LastUse, Request, Source};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A kind of source, and how it differs from the others.
pub struct Subject {
    /// Its name in reports.
    pub name: &'static str,
    make: fn(&Arc<DeviceState>) -> Arc<dyn Source>,
    /// What sizes are rounded up to; none asks the driver for the granularity.
    grain: Option<u64>,
    /// Which of the simulator's counts is what it holds.
    held: fn(&Counters) -> u64,
}

/// Small enough that blocks are of many chunks.
const SMALL_CHUNK: u64 = 4 * MIB;

const fn subject(
    name: &'static str,
    make: fn(&Arc<DeviceState>) -> Arc<dyn Source>,
    grain: Option<u64>,
    held: fn(&Counters) -> u64,
) -> Subject {
    Subject {
        name,
        make,
        grain,
        held,
    }
}

/// What chunks are limited to where they must be: the option's default.
const LARGEST_CHUNK: u64 = 256 << 20;

/// Every source there is.
pub static SUBJECTS: [Subject; 8] = [
    subject("device", device, Some(512), |c| c.device_bytes),
    subject("managed", managed, Some(256), |c| c.managed_bytes),
    subject("async", pooled, Some(256), |c| c.async_reserved_bytes),
    subject("async_own", own_pool, Some(256), |c| c.async_reserved_bytes),
    subject("vmm", vmm, None, |c| c.chunk_bytes),
    subject("vmm_chunks", vmm_chunks, None, |c| c.chunk_bytes),
    subject("vmm_host", vmm_host, None, |c| c.host_chunk_bytes),
    subject("pinned", pinned, Some(256), |c| c.pinned_bytes),
];

fn device(state: &Arc<DeviceState>) -> Arc<dyn Source> {
    Arc::new(DeviceSource::new(state.clone()))
}

fn managed(state: &Arc<DeviceState>) -> Arc<dyn Source> {
    Arc::new(ManagedSource::new(state.clone(), |_| Policy {
        placement: None,
        prefetch: Threshold::Below(2 * GIB),
        headroom: Size::Bytes(GIB),
    }))
}

fn pooled(state: &Arc<DeviceState>) -> Arc<dyn Source> {
    Arc::new(AsyncSource::new(state.clone(), PoolChoice::DeviceDefault))
}

fn own_pool(state: &Arc<DeviceState>) -> Arc<dyn Source> {
    let choice = PoolChoice::Own(Size::Percent(100.0));
    Arc::new(AsyncSource::new(state.clone(), choice))
}

fn vmm(state: &Arc<DeviceState>) -> Arc<dyn Source> {
    Arc::new(VmmSource::new(state.clone(), Location::Device))
}

fn vmm_chunks(state: &Arc<DeviceState>) -> Arc<dyn Source> {
    state.device.limit_chunks(SMALL_CHUNK);
    vmm(state)
}

fn vmm_host(state: &Arc<DeviceState>) -> Arc<dyn Source> {
    Arc::new(VmmSource::new(state.clone(), Location::HostNuma(0)))
}

fn pinned(state: &Arc<DeviceState>) -> Arc<dyn Source> {
    Arc::new(PinnedSource::new(state.clone()))
}

/// The cases of one source: what is asked of each.
macro_rules! cases_of {
    ($name:literal, $subject:expr) => {
        cases_of!($name, $subject;
                contents::sizes,
                contents::alignments,
                contents::contents,
                exhaustion::beyond_the_device,
                exhaustion::out_of_memory_waits,
                work::busy_stream,
                work::busy_recorded_stream,
                work::busy_anywhere,
                work::many_frees,
                captures::free_in_capture,
                captures::free_on_capturing_stream,
                captures::free_beside_legacy_capture,
                captures::allocate_in_capture,
                threads::any_thread,
                threads::other_context,
                peers::admits_peers,
        )
    };
    ($name:literal, $subject:expr; $($file:ident::$case:ident,)*) => {
        &[$(Case {
            name: concat!($name, ": ", stringify!($case)),
            run: |_| run(&SUBJECTS[$subject], $file::$case),
        }),*]
    };
}

/// The suite of all sources.
pub const SUITE: Suite = Suite {
    name: "sources",
    about: "what every source promises, asked of each in turn",
    cases: &[
        cases_of!("device", 0),
        cases_of!("managed", 1),
        cases_of!("async", 2),
        cases_of!("async own pool", 3),
        cases_of!("vmm", 4),
        cases_of!("vmm in small chunks", 5),
        cases_of!("vmm on the host", 6),
        cases_of!("pinned", 7),
    ],
};

/// Runs one case on a machine and a source of its own, and looks at what it left.
pub fn run(subject: &'static Subject, case: fn(&Bench) -> Outcome) -> Outcome {
    let machine = Arc::new(Machine::open("devices=2,poison=1")?);
    let bench = Bench::new(&machine, subject);
    bench.probe()?;
    case(&bench)?;
    bench.finish()
}

/// A source on a machine.
pub struct Bench {
    /// The machine.
    pub machine: Arc<Machine>,
    /// What is known of the source.
    pub subject: &'static Subject,
    /// What it shares with others of its device: nothing here.
    pub state: Arc<DeviceState>,
    /// The source.
    pub source: Arc<dyn Source>,
    /// What the simulator counted before the source was made.
    base: Option<Counters>,
}

impl Bench {
    /// A source of its own on a machine.
    pub fn new(machine: &Arc<Machine>, subject: &'static Subject) -> Bench {
        if machine.driver.limits_chunks() {
            machine.device.limit_chunks(LARGEST_CHUNK);
        }
        let state = Arc::new(DeviceState::new(machine.device.clone()));
        Bench {
            source: (subject.make)(&state),
            base: machine.sim.map(|sim| sim.counters()),
            machine: machine.clone(),
            subject,
            state,
        }
    }

    /// Whether freeing a block waits for its work, as `cudaFree` does.
    pub fn waits(&self) -> bool {
        matches!(self.kind(), Kind::Device | Kind::Managed | Kind::Pinned)
    }

    /// Whether its memory goes beyond the device's.
    pub fn is_endless(&self) -> bool {
        ["managed", "vmm_host", "pinned"].contains(&self.subject.name)
    }

    /// Whether blocks come from the driver's pools.
    pub fn is_pooled(&self) -> bool {
        self.kind() == Kind::Async
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.source.kind()
    }

    /// The simulated driver, or the end of the case.
    pub fn sim(&self) -> Result<Simulator, Stop> {
        self.machine.sim.ok_or_else(Stop::needs_simulator)
    }

    /// What sizes are rounded up to.
    pub fn grain(&self) -> Result<Align, Stop> {
        let bytes = match self.subject.grain {
            Some(bytes) => bytes,
            None => self.machine.device.granularity()?,
        };
        Align::new(bytes).ok_or_else(|| format!("granularity {bytes}").into())
    }

    /// Skips the case where the machine cannot serve the source at all.
    fn probe(&self) -> Outcome {
        let device = &self.machine.device;
        let probe = match (self.subject.name, self.kind()) {
            (_, Kind::Async) => device.memory_pools()?,
            ("vmm_host", _) => device.host_numa()?,
            (_, Kind::Vmm | Kind::Pool) => device.vmm()?,
            (_, Kind::Managed) => device.managed_memory()?,
            (_, Kind::Device | Kind::Pinned) => Ok(()),
        };
        probe.map_err(|error| Stop::Skipped(error.to_string()))
    }

    /// A request as most cases make it.
    pub fn request(&self, bytes: u64, stream: Stream) -> Request {
        Request {
            bytes,
            align: ALIGN,
            stream,
            capturing: false,
            owner: Owner::Block,
            tag: TagId::NONE,
        }
    }

    /// Allocates, and looks at what came.
    pub fn allocate(&self, bytes: u64, stream: Stream) -> Result<Block, Stop> {
        let block = self
            .source
            .allocate(&self.request(bytes, stream))
            .map_err(|error| Stop::from(error).at(format_args!("{bytes} bytes")))?;
        ensure_eq!(block.requested, bytes, "the size asked for");
        ensure!(block.bytes >= bytes, "{bytes} bytes got {}", block.bytes);
        ensure!(
            ALIGN.divides(block.address),
            "{:#x} for {bytes} bytes",
            block.address
        );
        self.check()?;
        Ok(block)
    }

    /// Frees a block whose own stream's work may use it.
    pub fn free(&self, block: &Block) -> Outcome {
        self.source.deallocate(block, LastUse::Streams.into())?;
        self.check()
    }

    /// What must hold at any time.
    pub fn check(&self) -> Outcome {
        self.state.extents.audit()?;
        let Some(sim) = self.machine.sim else {
            return Ok(());
        };
        let held = self.source.held().now;
        ensure_eq!(held, (self.subject.held)(&sim.counters()), "bytes held");
        let faults = sim.faults();
        ensure!(faults.is_empty(), "{}", faults.join("; "));
        Ok(())
    }

    /// The source once idle: everything given back, nothing left.
    pub fn finish(&self) -> Outcome {
        self.machine.synchronize()?;
        self.source.trim(0)?;
        self.machine.device.drop_idle_events();
        self.check()?;
        ensure_eq!(self.state.deferral.entries(), 0, "waiting frees");
        ensure_eq!(self.state.deferral.bytes(), 0, "bytes waiting");
        ensure_eq!(self.source.held().now, 0, "bytes held after trim");
        if let (Some(sim), Some(base)) = (self.machine.sim, &self.base) {
            let mut left = sim.counters().memory();
            // The source's own pool goes with the source.
            left[10] = base.memory()[10];
            ensure_eq!(left, base.memory(), "memory, addresses and events alive");
        }
        Ok(())
    }

    /// A stream of the machine.
    pub fn stream(&self) -> Result<OwnedStream, Stop> {
        self.machine.stream()
    }
}
