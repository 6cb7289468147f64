//! Managed memory: one address for host and device. Placement follows advice given at allocation:
//! preferred location the device as long as the card has room, mapped for the host, and small blocks
//! moved to the device at once.

use super::{ALIGN, Block, Held, Kind, LastUse, Request, Source, check_align, rounded};
use crate::config::value::{Size, Threshold};
use crate::core::gauge::Gauge;
use crate::error::{Result, Warning};
use crate::extent::DeviceState;
use crate::extent::deferral::Behind;
use once_cell::sync::OnceCell;
use std::sync::Arc;

/// How managed blocks are placed; read at every allocation, so that options act at once.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Which blocks are prefetched.
    pub prefetch: Threshold,
    /// Memory to leave free on the card.
    pub headroom: Size,
}

/// The source.
pub struct ManagedSource {
    state: Arc<DeviceState>,
    gauge: Arc<Gauge>,
    placement: Box<dyn Fn() -> Placement + Send + Sync>,
    /// The card's free memory at first use.
    free_at_first: OnceCell<u64>,
}

impl ManagedSource {
    /// A source over `state`'s device that asks `placement` how to place each block.
    pub fn new(
        state: Arc<DeviceState>,
        placement: impl Fn() -> Placement + Send + Sync + 'static,
    ) -> ManagedSource {
        ManagedSource {
            state,
            gauge: Arc::default(),
            placement: Box::new(placement),
            free_at_first: OnceCell::new(),
        }
    }

    /// Advice and prefetch that fail cost speed, not correctness: warned of and carried on.
    fn place(&self, block: &Block, capturing: bool, free_at_first: u64, placement: Placement) {
        let device = &self.state.device;
        // Without concurrent access the driver refuses advice and prefetch that name a device.
        let concurrent = match device.concurrent_managed_access() {
            Ok(probe) => probe.is_ok(),
            Err(error) => {
                self.warn(Warning::Advice, "concurrent access is unknown", &error);
                false
            }
        };
        let room = free_at_first.saturating_sub(placement.headroom.of(device.total_memory()));
        if concurrent {
            self.prefer_device(block, room);
        }
        if let Err(error) = device.accessed_by_host(block.address, block.bytes) {
            self.warn(Warning::Advice, "access by the host not advised", &error);
        }
        // A prefetch on a capturing stream would become part of the graph.
        if concurrent && !capturing && placement.prefetch.covers(block.requested) {
            if let Err(error) = device.prefetch(block.address, block.requested, block.stream) {
                self.warn(Warning::Prefetch, "not prefetched", &error);
            }
        }
    }

    /// Memory that prefers a card which cannot hold it all is moved back and forth without end.
    fn prefer_device(&self, block: &Block, room: u64) {
        let device = &self.state.device;
        if self.gauge.read().now > room {
            device.warnings().warn(Warning::ManagedBeyondCard, || {
                format!(
                    "live managed memory exceeds the {room} bytes that device {} has room for; what goes beyond does not prefer the device",
                    device.ordinal()
                )
            });
        } else if let Err(error) = device.prefer_device(block.address, block.bytes) {
            self.warn(Warning::Advice, "preferred location not set", &error);
        }
    }

    fn warn(&self, kind: Warning, what: &str, error: &crate::error::Error) {
        self.state
            .device
            .warnings()
            .warn(kind, || format!("managed memory: {what}: {error}"));
    }

    fn free_at_first(&self) -> Result<u64> {
        self.free_at_first
            .get_or_try_init(|| self.state.device.memory_info().map(|(free, _)| free))
            .copied()
    }
}

impl Source for ManagedSource {
    fn kind(&self) -> Kind {
        Kind::Managed
    }

    fn allocate(&self, request: &Request) -> Result<Block> {
        check_align(request)?;
        let device = &self.state.device;
        device
            .managed_memory()?
            .map_err(|error| error.advice("Use the device or vmm source on this device"))?;
        let bytes = rounded(request, ALIGN)?;
        self.state.deferral.drain();
        let free_at_first = self.free_at_first()?;
        let room = self.state.limit.hold(bytes)?;
        let address = device.allocate_managed(bytes)?;
        room.keep();
        self.gauge.add(bytes);
        let block = Block {
            address,
            requested: request.bytes,
            bytes,
            stream: request.stream,
        };
        self.place(&block, request.capturing, free_at_first, (self.placement)());
        Ok(block)
    }

    fn deallocate(&self, block: &Block, last_use: LastUse) -> Result<()> {
        let (state, gauge) = (self.state.clone(), self.gauge.clone());
        let Block { address, bytes, .. } = *block;
        let give_back = move || {
            state.device.free_plain(address)?;
            gauge.sub(bytes);
            state.limit.give(bytes);
            Ok(())
        };
        // Pages of managed memory may be with the host, so the driver's own wait at a free is not
        // relied on: the streams that used the block are waited for.
        let waited = self
            .state
            .fence(block, &last_use, true)
            .and_then(|fence| match fence {
                Some(fence) => fence.wait().map(|()| true),
                None => Ok(false),
            });
        match waited {
            Ok(true) => self.state.give_back_now(bytes, give_back),
            waits => {
                self.state
                    .deferral
                    .push(Behind::Everything, bytes, give_back);
                waits.map(|_| ())
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

    fn reset_peak(&self) -> Result<()> {
        self.gauge.reset_peak();
        Ok(())
    }
}
