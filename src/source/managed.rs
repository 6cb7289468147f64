//! Managed memory: one address for host and device. Placement follows advice given at allocation:
//! preferred location the device as long as the card has room, mapped for the host, and small blocks
//! moved to the device at once; or the host, mapped for the device, where the block's tag says so.

use super::{ALIGN, Block, Freeing, Held, Kind, Request, Source, check_align, rounded};
use crate::config::value::{Placement, Size, Threshold};
use crate::core::gauge::Holding;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Result, Warning};
use crate::extent::DeviceState;
use once_cell::sync::OnceCell;
use rustc_hash::FxHashSet;
use std::sync::{Arc, Mutex};

/// How managed blocks of a tag are placed; read at every allocation, so that options act at once.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Where they live, where that was said for the tag.
    pub placement: Option<Placement>,
    /// Which blocks are prefetched.
    pub prefetch: Threshold,
    /// Memory to leave free on the card.
    pub headroom: Size,
}

/// The source.
pub struct ManagedSource {
    state: Arc<DeviceState>,
    gauge: Arc<Holding>,
    policy: Box<dyn Fn(TagId) -> Policy + Send + Sync>,
    on_host: Mutex<OnHost>,
    /// The card's free memory at first use.
    free_at_first: OnceCell<u64>,
}

/// The blocks that were placed on the host, and so take nothing of the device.
#[derive(Default)]
struct OnHost {
    addresses: FxHashSet<u64>,
    bytes: u64,
}

impl ManagedSource {
    /// A source over `state`'s device that asks `policy` how to place each block.
    pub fn new(
        state: Arc<DeviceState>,
        policy: impl Fn(TagId) -> Policy + Send + Sync + 'static,
    ) -> ManagedSource {
        ManagedSource {
            state,
            gauge: Arc::default(),
            policy: Box::new(policy),
            on_host: Mutex::default(),
            free_at_first: OnceCell::new(),
        }
    }

    /// Advice and prefetch that fail cost speed, not correctness: warned of and carried on.
    fn place(&self, block: &Block, capturing: bool, free_at_first: u64, policy: Policy) {
        match policy.placement {
            Some(Placement::None) => {}
            Some(Placement::Host) => self.place_on_host(block),
            Some(Placement::Device) | None => {
                self.place_on_device(block, capturing, free_at_first, policy);
            }
        }
    }

    /// Without concurrent access the driver refuses advice and prefetch that name a device.
    fn device_can_be_named(&self) -> bool {
        match self.state.device.concurrent_managed_access() {
            Ok(probe) => probe.is_ok(),
            Err(error) => {
                self.warn(Warning::Advice, "concurrent access is unknown", &error);
                false
            }
        }
    }

    fn place_on_host(&self, block: &Block) {
        let device = &self.state.device;
        if let Err(error) = device.prefer_host(block.address, block.bytes) {
            self.warn(Warning::Advice, "preferred location not set", &error);
        }
        if self.device_can_be_named() {
            if let Err(error) = device.accessed_by_device(block.address, block.bytes) {
                self.warn(Warning::Advice, "access by the device not advised", &error);
            }
        }
    }

    fn place_on_device(&self, block: &Block, capturing: bool, free_at_first: u64, policy: Policy) {
        let device = &self.state.device;
        let concurrent = self.device_can_be_named();
        let room = free_at_first.saturating_sub(policy.headroom.of(device.total_memory()));
        if concurrent {
            self.prefer_device(block, room);
        }
        if let Err(error) = device.accessed_by_host(block.address, block.bytes) {
            self.warn(Warning::Advice, "access by the host not advised", &error);
        }
        // A prefetch on a capturing stream would become part of the graph.
        if concurrent && !capturing && policy.prefetch.covers(block.requested) {
            if let Err(error) = device.prefetch(block.address, block.requested, block.stream) {
                self.warn(Warning::Prefetch, "not prefetched", &error);
            }
        }
    }

    /// Memory that prefers a card which cannot hold it all is moved back and forth without end.
    fn prefer_device(&self, block: &Block, room: u64) {
        let device = &self.state.device;
        let placeable = self
            .gauge
            .read()
            .now
            .saturating_sub(lock(&self.on_host).bytes);
        if placeable > room {
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

    /// What a block that is given back took of the device's limit.
    fn charged(&self, address: u64, bytes: u64) -> u64 {
        let mut placed = lock(&self.on_host);
        if !placed.addresses.remove(&address) {
            return bytes;
        }
        placed.bytes -= bytes;
        0
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
        let policy = (self.policy)(request.tag);
        let on_host = policy.placement == Some(Placement::Host);
        let room = self.state.limit.hold(if on_host { 0 } else { bytes })?;
        let address = device.allocate_managed(bytes)?;
        room.keep();
        self.gauge.add(bytes);
        if on_host {
            let mut placed = lock(&self.on_host);
            placed.addresses.insert(address);
            placed.bytes += bytes;
        }
        let block = Block {
            address,
            requested: request.bytes,
            bytes,
            stream: request.stream,
        };
        self.place(&block, request.capturing, free_at_first, policy);
        Ok(block)
    }

    fn deallocate(&self, block: &Block, freed: Freeing) -> Result<()> {
        let (state, gauge) = (self.state.clone(), self.gauge.clone());
        let Block { address, bytes, .. } = *block;
        let charged = self.charged(address, bytes);
        let give_back = move || {
            state.device.free_plain(address)?;
            gauge.sub(bytes);
            state.limit.give(charged);
            Ok(())
        };
        // Pages of managed memory may be with the host, so the driver's own wait at a free is not
        // relied on: the streams that used the block are waited for.
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
