//! Synchronous device memory, with `cudaMalloc`'s and `cudaFree`'s behaviour: the free waits for all
//! work of the device, so every block is as safe as the driver's own.

use super::{Block, Freeing, Held, Kind, Request, Source, check_align, rounded};
use crate::core::gauge::Holding;
use crate::core::size::Align;
use crate::error::Result;
use crate::extent::DeviceState;
use crate::source::ALIGN;
use std::sync::Arc;

/// The source.
pub struct DeviceSource {
    state: Arc<DeviceState>,
    /// Bytes given out and not yet back with the driver.
    gauge: Arc<Holding>,
}

/// The driver places plain allocations at multiples of this.
const DRIVER_ALIGN: Align = Align::new(512).expect("a power of two");

impl DeviceSource {
    /// A source over `state`'s device.
    pub fn new(state: Arc<DeviceState>) -> DeviceSource {
        DeviceSource {
            state,
            gauge: Arc::default(),
        }
    }
}

impl Source for DeviceSource {
    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn allocate(&self, request: &Request) -> Result<Block> {
        check_align(request)?;
        let bytes = rounded(request, DRIVER_ALIGN)?;
        self.state.deferral.drain();
        let room = self.state.limit.hold(bytes)?;
        let address = self.state.device.allocate_plain(bytes)?;
        debug_assert!(ALIGN.divides(address));
        room.keep();
        self.gauge.add(bytes);
        Ok(Block {
            address,
            requested: request.bytes,
            bytes,
            stream: request.stream,
        })
    }

    fn deallocate(&self, block: &Block, mut freed: Freeing) -> Result<()> {
        let (state, gauge) = (self.state.clone(), self.gauge.clone());
        let Block { address, bytes, .. } = *block;
        let give_back = move || {
            state.device.free_plain(address)?;
            gauge.sub(bytes);
            state.limit.give(bytes);
            Ok(())
        };
        // The driver waits for the device's own work.
        freed.others.leave_out_device(&self.state.device);
        if !freed.others.is_empty() {
            return self.state.give_back_behind(block, freed, give_back);
        }
        match self.state.is_captured(block, &freed) {
            Ok(false) => {
                drop(freed);
                self.state.give_back_now(bytes, give_back)
            }
            queued => {
                let behind = self.state.everything(&freed);
                self.state.deferral.push(behind, bytes, give_back);
                queued.map(|_| ())
            }
        }
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
