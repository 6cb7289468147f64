//! The caching pools as the process sees them: the short way for a block that is at hand, and the long
//! one that knows of devices, captures and limits.

use super::Whose;
use super::blocks::Demand;
use super::{DeviceEntry, Process, lifetime};
use crate::core::tags::TagId;
use crate::error::{Result, Status};
use crate::extent::table::Owner;
use crate::gpu::{Device, Stream};
use crate::pool::{Freed, GraphId, HeapKey, Named, Order};
use crate::registry::{AllocatorId, Generation, GraphUse};
use crate::source::{Kind, LastUse};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn key(demand: &Demand, graph: Option<GraphId>) -> HeapKey {
    HeapKey {
        device: demand.device,
        stream: demand.stream,
        order: match demand.last_use {
            LastUse::Everywhere => Order::EVERYWHERE,
            _ => order_of(demand.stream),
        },
        tag: demand.tag.number(),
        allocator: demand.allocator.map_or(0, AllocatorId::get),
        graph,
    }
}

fn pooled_graph(generation: Generation) -> GraphId {
    GraphId::Pool(generation.number)
}

#[inline]
fn order_of(stream: Stream) -> Order {
    match stream.is_per_thread() {
        true => Order::of_this_thread(),
        false => Order::STREAM,
    }
}

impl Process {
    /// A block of memory that is free in the stream's order, for callers whose frees are in that order too:
    /// no driver call, and no wait for work. None where there is none at hand, or where more has to be
    /// looked at; then ask [`Process::allocate`].
    #[inline]
    pub fn reuse_pooled(
        &self,
        device: i32,
        bytes: u64,
        stream: Stream,
        allocator: Option<AllocatorId>,
        tag: TagId,
    ) -> Option<u64> {
        // Untold captures may be open, or told ones are: the driver must be asked.
        if self.slow.load(Ordering::Relaxed) != 0 || lifetime::has_forked() || bytes == 0 {
            return None;
        }
        let key = HeapKey {
            device,
            stream,
            order: order_of(stream),
            tag: tag.number(),
            allocator: allocator.map_or(0, AllocatorId::get),
            graph: None,
        };
        self.pools.reuse(&key, bytes)
    }

    /// [`Process::reuse_pooled`] of memory that any work may use until it is freed ([`LastUse::Everywhere`]). What is at
    /// hand no work uses any more.
    #[inline]
    pub fn reuse_everywhere(&self, device: i32, bytes: u64, tag: TagId) -> Option<u64> {
        if lifetime::has_forked() || bytes == 0 {
            return None;
        }
        let key = HeapKey {
            device,
            stream: Stream::LEGACY,
            order: Order::EVERYWHERE,
            tag: tag.number(),
            allocator: 0,
            graph: None,
        };
        self.pools.reuse(&key, bytes)
    }

    pub(super) fn allocate_pooled(&self, demand: &Demand) -> Result<u64> {
        let device = self.device(demand.device)?;
        // What is in nobody's order says nothing of captures.
        let slow = match demand.last_use {
            LastUse::Everywhere => 0,
            _ => self.slow.load(Ordering::Relaxed),
        };
        let capturing = slow != 0 && device.is_capturing(demand.stream)?;
        if !capturing && slow > 1 {
            self.outside_captures(device)?;
        }
        let graph = match capturing {
            false => None,
            true => Some(self.graph_of(device, demand)?),
        };
        let is_unordered = matches!(
            demand.last_use,
            LastUse::Unknown | LastUse::Anywhere | LastUse::Everywhere
        );
        let key = key(demand, graph);
        let allocate = || {
            let pool = device.pool(&self.pools)?;
            self.pools
                .allocate(pool, &key, demand.bytes, demand.align, is_unordered)
        };
        allocate()
            .or_else(|error| match error.status() {
                // What other sources cache makes room too.
                Status::OutOfMemory if device.trim_sources(0).is_ok_and(|bytes| bytes > 0) => {
                    allocate()
                }
                _ => Err(error),
            })
            .map_err(|error| device.pool_out_of_memory(error, self.pools.location_of(&key)))
            .inspect_err(|error| device.counters(Kind::Pool).failed(error))
    }

    /// The graphs that may write to what is allocated on a capturing stream.
    fn graph_of(&self, device: &DeviceEntry, demand: &Demand) -> Result<GraphId> {
        if demand.owner == Owner::Segment {
            return Ok(GraphId::Segments);
        }
        let gpu = &device.state().device;
        let captures = gpu.captures();
        match self
            .graphs
            .of_capture(demand.device, demand.stream, captures)
        {
            GraphUse::Pool(generation) => Ok(pooled_graph(generation)),
            GraphUse::None | GraphUse::Unknown => {
                self.warn_of_kept(demand.bytes);
                let _guard = gpu.enter()?;
                gpu.capture_number(demand.stream).map(GraphId::Untold)
            }
        }
    }

    /// Takes a block of a pool back; no if it is none, or another allocator's.
    #[inline(always)]
    pub fn free_pooled(
        &self,
        address: u64,
        allocator: Option<AllocatorId>,
        used_on: Option<Stream>,
    ) -> Result<bool> {
        let allocator = allocator.map(AllocatorId::get);
        let freed = match used_on {
            None => self.pools.free(address, allocator, None)?,
            Some(stream) => {
                let uses = |home: &Arc<Device>| self.uses_of(stream, Whose::Current, home);
                let named = Named {
                    stream,
                    device: None,
                    uses: &uses,
                };
                self.pools.free(address, allocator, Some(named))?
            }
        };
        Ok(freed == Freed::Block)
    }

    /// Takes a pool's block back; no if there is none at `address`, or nothing is to be freed any more: then
    /// [`Process::deallocate`] says what it is.
    #[inline]
    pub fn free_at_once(&self, address: u64) -> bool {
        !lifetime::has_forked()
            && !lifetime::is_exiting()
            && matches!(self.free_pooled(address, None, None), Ok(true))
    }

    pub(super) fn release_pooled(&self, gone: &[Generation]) {
        for generation in gone {
            let graph = pooled_graph(*generation);
            self.pools.release_graph(generation.pool.device, graph);
        }
    }

    /// Says that torch, or the program, tells us of streams and captures, or that it does not.
    pub fn set_hooked(&self, hooked: bool) {
        self.hooked.store(hooked, Ordering::SeqCst);
        self.note_open_captures();
    }

    /// Says that the program tells of every capture, or no longer does.
    pub fn set_captures_told(&self, told: bool) {
        self.captures_told.store(told, Ordering::SeqCst);
        self.note_open_captures();
    }

    /// Sets whether blocks may be had without asking the driver whether their stream captures.
    pub(super) fn note_open_captures(&self) {
        let told = self.is_hooked() || self.captures_told.load(Ordering::SeqCst);
        let untold = u64::from(!told);
        self.graphs.count_open(|of_pools| {
            let open = of_pools as u64 + self.captures_open.load(Ordering::SeqCst);
            self.slow.store(2 * open + untold, Ordering::SeqCst);
        });
    }

    /// How many blocks of pools an allocator has given out.
    pub fn pooled_blocks_of(&self, allocator: AllocatorId) -> u64 {
        let pools = self
            .devices_in_use()
            .filter_map(|device| device.pool_in_use());
        pools.map(|pool| pool.live_of(allocator.get())).sum()
    }

    pub(super) fn pooled_blocks(&self) -> usize {
        let pools = self
            .devices_in_use()
            .filter_map(|device| device.pool_in_use());
        pools.map(|pool| pool.total().live()).sum::<u64>() as usize
    }
}
