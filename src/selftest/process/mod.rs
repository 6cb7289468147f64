//! What a process makes of the sources: records, statistics, streams that come and go, memory of
//! captured graphs, limits, and the placement of managed memory.

mod across;
mod activity;
mod contexts;
mod copies;
mod ends;
mod fences;
mod forgotten;
mod graphs;
mod managed;
mod owners;
mod pinned;
mod placed;
mod records;
mod shared;
mod statistics;
mod streams;

use super::machine::Machine;
use super::simulator::{Counters, Simulator};
use crate::core::tags::TagId;
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::process::{Demand, Process};
use crate::selftest::check::ensure_eq;
use crate::selftest::{Case, Outcome, Stop, Suite};
use crate::source::{ALIGN, Kind, LastUse};

const MIB: u64 = 1 << 20;

/// The kinds whose memory the table of extents shows, place by place.
const MAPPED: [Kind; 2] = [Kind::Vmm, Kind::Pool];

macro_rules! cases {
    ($($file:ident::$case:ident,)*) => {
        &[$(Case {
            name: concat!(stringify!($file), ": ", stringify!($case)),
            run: |_| $file::$case(),
        }),*]
    };
}

/// The suite of a process's own doings.
pub const SUITE: Suite = Suite {
    name: "process",
    about: "records, statistics, streams that go, memory of graphs, limits, placement",
    cases: &[cases![
        records::no_driver_before_use,
        records::wrong_frees,
        records::bad_requests,
        records::addresses_inside,
        statistics::statistics,
        statistics::peaks_and_totals,
        statistics::failures,
        statistics::limit,
        statistics::just_within,
        statistics::out_of_memory_text,
        statistics::out_of_memory_report,
        statistics::trim,
        owners::threads_at_random,
        owners::peaks,
        owners::peaks_over_threads,
        owners::streams_that_go,
        owners::over_other_sources,
        activity::hits_and_misses,
        activity::retries,
        activity::driver_calls,
        streams::record_stream,
        streams::forgotten_streams,
        streams::forgotten_in_capture,
        streams::per_thread_stream,
        streams::second_device,
        across::allocated,
        across::recorded,
        across::named_by_the_free,
        across::out_of_memory,
        across::trimmed,
        forgotten::before,
        forgotten::after,
        across::together,
        across::of_graphs,
        across::legacy_streams,
        across::captured,
        across::unknown_device,
        contexts::contexts_of_the_program,
        copies::over_seams,
        copies::seams_of_blocks,
        forgotten::during,
        fences::reuse,
        fences::bounds,
        fences::within_another,
        graphs::graph_memory,
        graphs::reuse,
        graphs::stays_in_place,
        graphs::shared_pool,
        graphs::release_unknown,
        graphs::freed_after_release,
        graphs::stream_gone_before,
        graphs::segments,
        graphs::unknown_capture,
        graphs::unknown_captures_apart,
        graphs::free_in_capture,
        graphs::two_captures,
        ends::not_told_yet,
        ends::not_told_yet_to_others,
        ends::told_elsewhere,
        ends::failed,
        ends::failed_before_another,
        ends::given_up_too_soon,
        ends::stream_captures_again,
        ends::told_too_late,
        ends::begun_beside_the_last_release,
        ends::legacy_beside_untold,
        streams::unrecorded_stream,
        managed::placement,
        managed::prefetch_options,
        managed::headroom,
        managed::in_capture,
        managed::coherent,
        managed::not_concurrent,
        managed::refused,
        managed::tags_placed,
        managed::tags_placed_on_coherent,
        managed::on_the_host_no_room_is_taken,
        managed::other_kinds_placed,
        pinned::one_address,
        pinned::limits,
        pinned::refused,
        pinned::placed,
        placed::blocks,
        placed::whole,
        placed::limits,
        placed::apart,
        placed::said_later,
        placed::nearest,
        placed::refused,
        shared::one_memory,
        shared::inside_a_block,
        shared::pinned_while_free,
        shared::others_are_moved,
        shared::awake,
        shared::what_cannot_be,
        shared::wrong_imports,
        shared::over_a_fabric,
        shared::beside_others,
        shared::refused_calls,
    ]],
};

/// A process on a machine.
pub struct House {
    /// The process.
    pub process: Process,
    /// The machine.
    pub machine: Machine,
    base: Option<Counters>,
}

impl House {
    /// A process with some options set, on a machine started afresh as `spec` says.
    pub fn open(spec: &str, options: &[(&str, &str)]) -> Result<House, Stop> {
        let machine = Machine::open(spec)?;
        let mut all = vec![("sim", spec)];
        all.extend(options);
        Ok(House {
            process: machine.process(&all)?,
            base: machine.sim.map(|sim| sim.counters()),
            machine,
        })
    }

    /// The usual one.
    pub fn plain() -> Result<House, Stop> {
        House::open("devices=2,poison=1", &[])
    }

    /// The simulated driver, or the end of the case.
    pub fn sim(&self) -> Result<Simulator, Stop> {
        self.machine.sim.ok_or_else(Stop::needs_simulator)
    }

    /// A demand as most cases make it.
    pub fn demand(&self, kind: Kind, bytes: u64, stream: Stream) -> Demand {
        Demand {
            kind,
            device: 0,
            bytes,
            align: ALIGN,
            stream,
            owner: Owner::Block,
            last_use: LastUse::Streams,
            allocator: None,
            location: None,
            tag: TagId::NONE,
        }
    }

    /// Allocates a block.
    pub fn allocate(&self, kind: Kind, bytes: u64, stream: Stream) -> Result<u64, Stop> {
        Ok(self.process.allocate(self.demand(kind, bytes, stream))?)
    }

    /// Frees a block.
    pub fn free(&self, address: u64) -> Outcome {
        Ok(self.process.deallocate(address, None, None)?)
    }

    /// Whether the kind can be had on this machine.
    pub fn has(&self, kind: Kind) -> Result<bool, Stop> {
        let device = &self.machine.device;
        Ok(match kind {
            Kind::Device | Kind::Pinned => true,
            Kind::Managed => device.managed_memory()?.is_ok(),
            Kind::Async => device.memory_pools()?.is_ok(),
            Kind::Vmm | Kind::Pool => device.vmm()?.is_ok(),
        })
    }

    /// The kinds that can be had.
    pub fn kinds(&self) -> Result<Vec<Kind>, Stop> {
        let mut kinds = Vec::new();
        for kind in Kind::ALL {
            if self.has(kind)? {
                kinds.push(kind);
            }
        }
        Ok(kinds)
    }

    /// Those of some kinds that can be had.
    pub fn those_of(&self, kinds: &[Kind]) -> Result<Vec<Kind>, Stop> {
        let mut had = self.kinds()?;
        had.retain(|kind| kinds.contains(kind));
        Ok(had)
    }

    /// Whether physical memory lies behind an address of one of `MAPPED`.
    pub fn is_mapped(&self, address: u64) -> Result<bool, Stop> {
        let extents = &self.process.device(0)?.state().extents;
        let mut list = extents.list().into_iter();
        Ok(list.any(|extent| (extent.address..extent.address + extent.bytes).contains(&address)))
    }

    /// Everything was freed: nothing may be left.
    pub fn finish(&self) -> Outcome {
        self.machine.synchronize()?;
        self.process.trim_all()?;
        let device = self.process.device(0)?;
        device.state().extents.audit()?;
        ensure_eq!(self.process.live_blocks(), 0, "blocks recorded");
        let stats = self.process.stats(0, None)?;
        let left = (
            stats.requested,
            stats.allocated,
            stats.reserved,
            stats.pending_frees,
        );
        ensure_eq!(
            left,
            (0, 0, 0, 0),
            "requested, allocated, reserved, pending"
        );
        if let (Some(sim), Some(base)) = (self.machine.sim, &self.base) {
            ensure_eq!(
                sim.counters().memory(),
                base.memory(),
                "alive in the driver"
            );
            ensure_eq!(sim.faults(), Vec::<String>::new(), "faults");
        }
        Ok(())
    }
}
