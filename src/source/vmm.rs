//! Memory by virtual memory management: every block is a range of addresses of its own, backed by
//! chunks that `extent` can take away and bring back. Uncached, a block costs tens of microseconds
//! and at least one granule; the pool builds on the same extents.

use super::{Block, Freeing, Held, Kind, LastUse, Request, Source, rounded};
use crate::config::value::Location;
use crate::core::size::Align;
use crate::error::{Error, Result, Status};
use crate::extent::DeviceState;
use crate::extent::deferral::Behind;
use crate::extent::table::RunSpec;
use std::sync::Arc;

/// The source.
pub struct VmmSource {
    state: Arc<DeviceState>,
    location: Location,
}

impl VmmSource {
    /// A source over `state`'s device with its memory at `location`, each block in chunks as long as the
    /// device may have them.
    pub fn new(state: Arc<DeviceState>, location: Location) -> VmmSource {
        VmmSource { state, location }
    }

    /// What no device could hold is not tried chunk by chunk until memory runs out. One chunk is the
    /// driver's to refuse.
    fn check_possible(&self, request: &Request, bytes: u64, chunk_bytes: u64) -> Result<()> {
        let total = self.state.device.total_memory();
        if bytes <= chunk_bytes || self.location != Location::Device || bytes <= total {
            return Ok(());
        }
        Err(Error::new(Status::OutOfMemory, "allocate")
            .bytes(request.bytes)
            .detail(format!("the device has {total} bytes")))
    }

    /// The length of the chunks behind a block.
    fn chunk_bytes(&self, bytes: u64, granularity: Align) -> u64 {
        self.state.device.fit_chunk(bytes, granularity)
    }

    fn build(&self, spec: &RunSpec) -> Result<u64> {
        match self.state.extents.build(spec) {
            Err(error) if error.status() == Status::OutOfMemory => {
                // Freeing blocks may still wait for their work: wait with them and try once more.
                match self.state.deferral.wait() {
                    0 => Err(error),
                    _ => self.state.extents.build(spec),
                }
            }
            outcome => outcome,
        }
    }
}

impl Source for VmmSource {
    fn kind(&self) -> Kind {
        Kind::Vmm
    }

    fn location(&self) -> Location {
        self.location
    }

    fn allocate(&self, request: &Request) -> Result<Block> {
        let (chunk, granularity) = self.state.grain(self.location)?;
        let bytes = rounded(request, granularity)?;
        let chunk_bytes = self.chunk_bytes(bytes, granularity);
        self.check_possible(request, bytes, chunk_bytes)?;
        self.state.deferral.drain();
        let address = self
            .build(&RunSpec {
                bytes,
                align: request.align.max(granularity).get(),
                chunk_bytes,
                chunk,
                owner: request.owner,
                tag: request.tag,
            })
            .map_err(|error| error.bytes(request.bytes))?;
        Ok(Block {
            address,
            requested: request.bytes,
            bytes,
            stream: request.stream,
        })
    }

    fn deallocate(&self, block: &Block, freed: Freeing) -> Result<()> {
        let (state, address) = (self.state.clone(), block.address);
        let give_back = move || state.extents.retire(address);
        // One order point at the next slow path serves every block freed until then, and unmaps
        // under no stream, also of those that were not recorded for the block.
        let at_once = matches!(freed.last_use, LastUse::Streams | LastUse::Anywhere);
        let fence = match at_once {
            true => self.state.fence(block, &freed, true),
            false => Ok(None),
        };
        let (behind, recorded) = match fence {
            Ok(Some(fence)) => (Behind::Fence(fence), Ok(())),
            Ok(None) => (self.state.everything(&freed), Ok(())),
            Err(error) => (self.state.everything(&freed), Err(error)),
        };
        self.state.deferral.push(behind, block.bytes, give_back);
        let captures_told = freed.last_use == LastUse::Told;
        drop(freed);
        self.state.deferral.drain_if_full(captures_told);
        recorded
    }

    fn trim(&self, _: u64) -> Result<()> {
        self.state.deferral.wait();
        self.state.extents.sweep();
        Ok(())
    }

    fn held(&self) -> Held {
        self.state.extents.unpooled()
    }

    fn pieces(&self) -> Held {
        self.state.extents.unpooled_chunks()
    }

    fn reset_peak(&self) -> Result<()> {
        self.state.extents.reset_peaks();
        Ok(())
    }
}
