//! Giving blocks out and taking them back, whoever asks.

use super::graphs::{Kept, Released};
use super::{DeviceEntry, Process, lifetime};
use crate::config::value::Location;
use crate::core::size::Align;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status, Warning};
use crate::extent::table::Owner;
use crate::gpu::{Stream, Uses};
use crate::registry::{AllocatorId, GraphPool, GraphUse, Record};
use crate::source::{Block, Freeing, Kind, LastUse, Naming, Request, Source};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a caller wants.
#[derive(Clone, Debug)]
pub struct Demand {
    /// From which kind of source.
    pub kind: Kind,
    /// On which device.
    pub device: i32,
    /// How many bytes, above zero.
    pub bytes: u64,
    /// With what alignment.
    pub align: Align,
    /// For use on which stream first.
    pub stream: Stream,
    /// Who divides it up. Torch keeps segments of captures itself, so only blocks are kept for them.
    pub owner: Owner,
    /// The work that may use it besides its own stream's, as far as is known beforehand.
    pub last_use: LastUse,
    /// Which allocator object gives it out, where one does.
    pub allocator: Option<AllocatorId>,
    /// Where it lives, where that is not left to the option `vmm_location`.
    pub location: Option<Location>,
    /// The tag of what will live in it; `tags::current()` where nothing else names one.
    pub tag: TagId,
}

impl Process {
    /// Gives out a block and returns its address.
    pub fn allocate(&self, demand: Demand) -> Result<u64> {
        if demand.bytes == 0 {
            return Err(Error::invalid("allocate", "a size of 0 bytes"));
        }
        let device = self.device(demand.device).map_err(|error| {
            match error.status() {
                // What the driver did not like when the device was opened has its own call's name.
                Status::InvalidArgument => error.during("allocate").bytes(demand.bytes),
                _ => error,
            }
        })?;
        if demand.kind == Kind::Pool {
            return self.allocate_pooled(&demand);
        }
        let location = self.located(&demand, device)?;
        let capturing = device.is_capturing(demand.stream)?;
        // What is in nobody's order says nothing of captures.
        let is_ordered = demand.last_use != LastUse::Everywhere;
        if !capturing {
            device.state().device.check_stream(demand.stream)?;
        }
        if !capturing && is_ordered {
            self.outside_captures(device)?;
        }
        let kind = match demand.kind {
            // The driver's pool gives out what work of one stream comes after, and of no other.
            Kind::Async if !is_ordered => Kind::Device,
            // A stream-ordered allocation on a capturing stream would become a node of the graph.
            Kind::Async if capturing => Kind::Vmm,
            kind => kind,
        };
        let request = Request {
            bytes: demand.bytes,
            align: demand.align,
            stream: demand.stream,
            capturing,
            owner: demand.owner,
            tag: demand.tag,
        };
        let graph = match demand.owner {
            Owner::Block if capturing && is_ordered => {
                let captures = device.state().device.captures();
                self.graphs
                    .of_capture(demand.device, demand.stream, captures)
            }
            _ => GraphUse::None,
        };
        let source = device.source_at(kind, location);
        let block = match self.reuse(graph, &source, &request) {
            Some(block) => block,
            None => device.allocate(&*source, &request)?,
        };
        let record = Record {
            block,
            source,
            device: demand.device,
            allocator: demand.allocator,
            last_use: match demand.last_use {
                LastUse::Streams | LastUse::Told if demand.stream.is_per_thread() => {
                    LastUse::Anywhere
                }
                last_use => last_use,
            },
            others: Uses::default(),
            graph,
            tag: demand.tag,
            counted_for: block.stream,
        };
        if let Err(record) = self.registry.insert(block.address, block.bytes, record) {
            // The driver gave out an address that is in use: keep the old holder safe and this
            // memory out of reach.
            drop(record);
            return Err(Error::new(Status::Internal, "allocate")
                .detail(format!("the driver gave out {:#x} twice", block.address)));
        }
        device.gave(kind, demand.tag, &block);
        Ok(block.address)
    }

    /// Takes a block of `allocator` back, or any block where none is named. Work already given to
    /// `used_on` may still use it. What is no block, or no longer one, is reported and left alone.
    pub fn deallocate(
        &self,
        address: u64,
        allocator: Option<AllocatorId>,
        used_on: Option<Stream>,
    ) -> Result<()> {
        if lifetime::has_forked() || lifetime::is_exiting() {
            return Ok(());
        }
        if self.free_pooled(address, allocator, used_on)? {
            return Ok(());
        }
        let ours = |record: &Record| allocator.is_none() || record.allocator == allocator;
        let naming = self.naming();
        let Some(mut record) = self.registry.remove_if(address, ours) else {
            return Err(self.reject(address));
        };
        let device = self.device(record.device)?;
        if let Some(stream) = used_on {
            self.note_last_use(&mut record, stream, &device.state().device);
        }
        let kind = record.source.kind();
        let is_everywhere = record.last_use == LastUse::Everywhere;
        if is_everywhere {
            record.last_use = LastUse::Anywhere;
        }
        // Memory that is no device's more than another's.
        let mut others = match kind {
            Kind::Pinned => self.driver()?.uses_around(),
            Kind::Managed if is_everywhere => self.driver()?.uses_of_all(),
            _ => Uses::default(),
        };
        others.leave_out_device(&device.state().device);
        record.others.join(others);
        device.took(kind, record.tag, record.counted_for, &record.block);
        let kept = Kept {
            block: record.block,
            source: record.source.clone(),
            tag: record.tag,
            single_stream: record.is_single_stream(),
            others: record.others,
        };
        match record.graph {
            GraphUse::None => give_back(kept, record.last_use, Some(naming)),
            GraphUse::Pool(generation) => match self.graphs.keep(generation, kept) {
                None => Ok(()),
                Some(kept) => give_back(kept, LastUse::Anywhere, Some(naming)),
            },
            GraphUse::Unknown => {
                self.warn_of_kept(kept.block.bytes);
                Ok(())
            }
        }
    }

    /// An error where `address` is a block of `allocator` that was asked for with another size.
    pub fn check_size(&self, address: u64, allocator: AllocatorId, bytes: u64) -> Result<()> {
        if lifetime::has_forked() || lifetime::is_exiting() {
            return Ok(());
        }
        let requested = self.pools.requested_of(address).or_else(|| {
            let of_block = |record: &mut Record| {
                (record.allocator == Some(allocator)).then_some(record.block.requested)
            };
            self.registry.with(address, of_block).flatten()
        });
        match requested {
            Some(is) if is != bytes => Err(Error::invalid(
                "hbm_allocator_deallocate_sized",
                format!("{address:#x} has {is} bytes, not {bytes}"),
            )),
            _ => Ok(()),
        }
    }

    /// The beginning and length of the block that `address` lies in.
    pub fn block_of(&self, address: u64) -> Option<(u64, u64)> {
        if lifetime::has_forked() {
            return None;
        }
        self.pools
            .block_around(address)
            .or_else(|| self.registry.range_of(address))
    }

    /// Whether a live block begins at `address`.
    pub fn has_block(&self, address: u64) -> bool {
        !lifetime::has_forked()
            && (self.pools.tag_of(address).is_some()
                || self.registry.with(address, |_| ()).is_some())
    }

    /// The tag of the block that begins at `address`.
    pub fn tag_of(&self, address: u64) -> Result<TagId> {
        lifetime::check_not_forked()?;
        self.pools
            .tag_of(address)
            .map(TagId::from_number)
            .or_else(|| self.registry.with(address, |record| record.tag))
            .or_else(|| self.cells.tag_of(address))
            .ok_or_else(|| not_owned("tag_of", address))
    }

    /// How many blocks are given out.
    pub fn live_blocks(&self) -> usize {
        self.registry.len() + self.pooled_blocks()
    }

    /// A capture whose blocks belong to a graph pool is about to begin on this thread.
    pub fn graph_begin(&self, pool: GraphPool) -> Result<()> {
        let device = self.device(pool.device)?;
        // In the capture nothing can be asked of the driver.
        if let Some(pool) = device.pool_in_use() {
            pool.settle_released();
        }
        let gpu = &device.state().device;
        let token = self.graphs.number();
        gpu.captures().begin(gpu, token);
        self.graphs.begin(pool, token);
        self.note_open_captures();
        self.graphs_settle(device)
    }

    /// The capture is over.
    pub fn graph_end(&self, pool: GraphPool) -> Result<()> {
        if lifetime::has_forked() || lifetime::is_exiting() {
            return Ok(());
        }
        let gpu = &self.device(pool.device)?.state().device;
        if let Some(token) = self.graphs.end(pool)? {
            gpu.captures().end(token);
        }
        self.note_open_captures();
        Ok(())
    }

    /// This thread allocates, and no capture has part in it.
    pub(super) fn outside_captures(&self, device: &DeviceEntry) -> Result<()> {
        device.state().device.captures().abandon_hidden();
        match self.slow.load(Ordering::Relaxed) > 1 {
            true => self.graphs_settle(device),
            false => Ok(()),
        }
    }

    /// Gives back the memory of captures that failed: torch tells neither of their end nor, since
    /// there is no graph, of its release. For when the calling thread begins a capture or allocates
    /// outside of one, which it does not do between the end of a capture and the word of it.
    fn graphs_settle(&self, device: &DeviceEntry) -> Result<()> {
        let gpu = &device.state().device;
        if !self.graphs.began_here(gpu.ordinal()) {
            return Ok(());
        }
        // Asking shows which are over.
        gpu.capture_open();
        let failed = self
            .graphs
            .retire_failed(gpu.ordinal(), |token| gpu.captures().is_told(token));
        self.note_open_captures();
        self.give_back_released(failed)
    }

    fn give_back_released(&self, released: Released) -> Result<()> {
        self.release_pooled(&released.pools);
        give_back_all(released.blocks)
    }

    /// A graph of the pool is gone; with the last, its freed blocks are given back.
    pub fn graph_release(&self, pool: GraphPool) -> Result<()> {
        if lifetime::has_forked() || lifetime::is_exiting() {
            return Ok(());
        }
        let released = self.graphs.release(pool)?;
        self.give_back_released(released)
    }

    fn reuse(&self, graph: GraphUse, source: &Arc<dyn Source>, request: &Request) -> Option<Block> {
        let GraphUse::Pool(generation) = graph else {
            return None;
        };
        let kept = self.graphs.reuse(generation, source, request)?;
        Some(Block {
            requested: request.bytes,
            ..kept.block
        })
    }

    pub(super) fn warn_of_kept(&self, bytes: u64) {
        self.warnings.warn(Warning::CaptureKept, || {
            format!(
                "a block of {bytes} bytes allocated in a stream capture is kept for good, since nothing tells when its graph is gone; hbmalloc.torch.install() sets the hooks that do, and C programs call hbm_graph_begin"
            )
        });
    }

    pub(super) fn reject(&self, address: u64) -> Error {
        self.rejected_frees.fetch_add(1, Ordering::Relaxed);
        let error = not_owned("deallocate", address);
        self.warnings
            .warn(Warning::RejectedFree, || error.to_string());
        error
    }
}

/// Once the driver is down at exit, memory is gone with it and a free has nothing left to do.
fn give_back(kept: Kept, last_use: LastUse, naming: Option<Naming>) -> Result<()> {
    let freed = Freeing {
        last_use,
        others: kept.others,
        naming,
    };
    match kept.source.deallocate(&kept.block, freed) {
        Err(error) if error.status() == Status::Shutdown => Ok(()),
        outcome => outcome,
    }
}

/// Gives back every one, whatever becomes of the others; the first failure is returned.
pub(super) fn give_back_all(blocks: Vec<Kept>) -> Result<()> {
    let mut outcome = Ok(());
    for kept in blocks {
        outcome = outcome.and(give_back(kept, LastUse::Anywhere, None));
    }
    outcome
}

pub(super) fn not_owned(operation: &'static str, address: u64) -> Error {
    Error::new(Status::NotOwned, operation)
        .detail(format!("{address:#x} is not the address of a live block"))
        .advice("It was freed already, or comes from another allocator")
}
