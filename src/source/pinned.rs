//! Pinned memory of the host, which devices reach over the link at the address that the processor uses.
//! It takes nothing of any device, so no limit of one counts it. Making it costs the host some 400 us
//! a MiB, taking it back 90: keep it, as the pool does.

use super::{ALIGN, Block, Freeing, Held, Kind, Request, Source, check_align, rounded};
use crate::config::value::Location;
use crate::core::gauge::Holding;
use crate::error::{Error, Result, Status};
use crate::extent::DeviceState;
use crate::sys::linux;
use std::sync::Arc;

/// The source.
pub struct PinnedSource {
    state: Arc<DeviceState>,
    /// Bytes given out and not yet back with the driver.
    gauge: Arc<Holding>,
}

impl PinnedSource {
    /// A source that allocates in the context of `state`'s device.
    pub fn new(state: Arc<DeviceState>) -> PinnedSource {
        PinnedSource {
            state,
            gauge: Arc::default(),
        }
    }

    /// What the host could not hold is not tried: the system would swap and kill before it said no.
    fn check_possible(&self, request: &Request, bytes: u64) -> Result<()> {
        let total = linux::total_memory();
        if bytes <= total {
            return Ok(());
        }
        Err(Error::new(Status::OutOfMemory, "allocate")
            .bytes(request.bytes)
            .detail(format!("the host has {total} bytes")))
    }
}

impl Source for PinnedSource {
    fn kind(&self) -> Kind {
        Kind::Pinned
    }

    fn location(&self) -> Location {
        Location::HostNuma(self.state.device.host_node_to_name().unwrap_or(0))
    }

    fn allocate(&self, request: &Request) -> Result<Block> {
        check_align(request)?;
        let bytes = rounded(request, ALIGN)?;
        self.check_possible(request, bytes)?;
        self.state.deferral.drain();
        let address = self.state.device.allocate_pinned(bytes)?;
        debug_assert!(ALIGN.divides(address));
        self.gauge.add(bytes);
        Ok(Block {
            address,
            requested: request.bytes,
            bytes,
            stream: request.stream,
        })
    }

    fn deallocate(&self, block: &Block, freed: Freeing) -> Result<()> {
        let (state, gauge) = (self.state.clone(), self.gauge.clone());
        let Block { address, bytes, .. } = *block;
        let give_back = move || {
            state.device.free_pinned(address)?;
            gauge.sub(bytes);
            Ok(())
        };
        // Streams of other devices may use it, for which the driver's own wait at a free is not one.
        self.state.give_back_behind(block, freed, give_back)
    }

    fn trim(&self, _: u64) -> Result<()> {
        self.state.deferral.wait();
        Ok(())
    }

    fn held(&self) -> Held {
        self.gauge.read()
    }

    fn pieces(&self) -> Held {
        self.gauge.pieces()
    }

    fn reset_peak(&self) -> Result<()> {
        self.gauge.reset_peak();
        Ok(())
    }
}
