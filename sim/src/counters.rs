//! What is alive, counted by the simulator itself, independently of anybody's statistics.

use crate::region::Kind;
use crate::sim::Sim;

/// Totals that no table holds.
#[derive(Default)]
pub struct Counters {
    pub leaks: u64,
    memory: u64,
    peak_memory: u64,
}

impl Counters {
    /// The program was given memory of some form.
    pub fn gave(&mut self, bytes: u64) {
        self.memory += bytes;
        self.peak_memory = self.peak_memory.max(self.memory);
    }

    /// It gave that back.
    pub fn took(&mut self, bytes: u64) {
        self.memory -= bytes;
    }
}

/// Mirrors `struct hbmsim_counters`; fields are only appended.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Snapshot {
    pub struct_size: u64,
    pub chunks: u64,
    pub chunk_bytes: u64,
    pub mappings: u64,
    pub mapped_bytes: u64,
    pub reservations: u64,
    pub reserved_address_bytes: u64,
    pub device_allocs: u64,
    pub device_bytes: u64,
    pub managed_allocs: u64,
    pub managed_bytes: u64,
    pub async_reserved_bytes: u64,
    pub async_used_bytes: u64,
    pub async_allocs: u64,
    pub pools: u64,
    pub pinned_allocs: u64,
    pub pinned_bytes: u64,
    pub registered: u64,
    pub registered_bytes: u64,
    pub events: u64,
    pub streams: u64,
    pub graphs: u64,
    pub captures: u64,
    pub contexts: u64,
    pub physical_bytes: u64,
    pub peak_physical_bytes: u64,
    pub host_chunk_bytes: u64,
    pub faults: u64,
    pub leaks: u64,
    pub queued: u64,
    pub device_ns: u64,
    pub handles: u64,
    pub memory_bytes: u64,
    pub peak_memory_bytes: u64,
}

impl Sim {
    pub fn snapshot(&self) -> Snapshot {
        let mut out = Snapshot {
            struct_size: size_of::<Snapshot>() as u64,
            ..Snapshot::default()
        };
        self.chunks.count(&mut out);
        for (_, region) in self.regions.iter() {
            match &region.kind {
                Kind::Reservation(mappings) => {
                    out.reservations += 1;
                    out.reserved_address_bytes += region.len;
                    out.mappings += mappings.len() as u64;
                    out.mapped_bytes += mappings.values().map(|m| m.len).sum::<u64>();
                }
                Kind::Device { .. } => {
                    out.device_allocs += 1;
                    out.device_bytes += region.size;
                }
                Kind::Managed(_) => {
                    out.managed_allocs += 1;
                    out.managed_bytes += region.size;
                }
                Kind::Pinned { .. } => {
                    out.pinned_allocs += 1;
                    out.pinned_bytes += region.size;
                }
                Kind::PoolSpace { .. } => {}
            }
        }
        self.pools.count(&mut out);
        self.host.count(&mut out);
        self.streams.count(&mut out);
        out.events = self.events.len();
        self.captures.count(&mut out);
        out.contexts = self.contexts.active();
        out.physical_bytes = self.physical.used_total();
        out.peak_physical_bytes = self.physical.peak_total();
        out.faults = self.faults.count;
        out.leaks = self.counters.leaks;
        out.memory_bytes = self.counters.memory;
        out.peak_memory_bytes = self.counters.peak_memory;
        out
    }

    /// Live objects that a tidy program would have given back.
    pub fn count_leaks(&self) -> u64 {
        let s = self.snapshot();
        let memory = s.handles
            + s.mappings
            + s.reservations
            + s.device_allocs
            + s.managed_allocs
            + s.async_allocs;
        memory + s.pools + s.pinned_allocs + s.registered + s.events + s.streams + s.graphs
    }
}
