//! The driver's stream-ordered pools: allocation and free take their place in a stream's order and
//! cost about half a microsecond.
//!
//! On a capturing stream the driver would make the allocation a node of the graph, whose memory the
//! graph owns; such requests are not for this source (see `process`, which sends them to vmm).

use super::{ALIGN, Block, Freeing, Held, Kind, Request, Source, check_align, rounded};
use crate::config::value::Size;
use crate::core::sync::lock;
use crate::error::{Error, Result, Status, Warning};
use crate::extent::DeviceState;
use crate::extent::deferral::Behind;
use crate::gpu::stream_ordered::StreamPool;
use crate::gpu::{Fence, Stream, Uses};
use once_cell::sync::OnceCell;
use std::sync::{Arc, Mutex};

/// Which pool to use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PoolChoice {
    /// The device's default pool, its settings untouched.
    DeviceDefault,
    /// One of our own, with this release threshold.
    Own(Size),
}

/// The source.
pub struct AsyncSource {
    state: Arc<DeviceState>,
    choice: PoolChoice,
    pool: OnceCell<Arc<StreamPool>>,
    /// Peers the pool has been opened to.
    peers: Mutex<Vec<i32>>,
    /// What of the pool is counted to the device's limit. Held while blocks are allocated under one.
    charged: Mutex<u64>,
    /// What the driver last said the pool holds, for when it does not say.
    last_held: Mutex<Held>,
}

impl AsyncSource {
    /// A source over `state`'s device; the pool is made at the first allocation.
    pub fn new(state: Arc<DeviceState>, choice: PoolChoice) -> AsyncSource {
        AsyncSource {
            state,
            choice,
            pool: OnceCell::new(),
            peers: Mutex::default(),
            charged: Mutex::default(),
            last_held: Mutex::default(),
        }
    }

    fn pool(&self) -> Result<&Arc<StreamPool>> {
        self.pool.get_or_try_init(|| {
            let device = &self.state.device;
            device
                .memory_pools()?
                .map_err(|error| error.advice("Use the device or vmm source on this device"))?;
            Ok(Arc::new(match self.choice {
                PoolChoice::DeviceDefault => StreamPool::device_default(device)?,
                PoolChoice::Own(threshold) => {
                    StreamPool::create(device, threshold.of(device.total_memory()))?
                }
            }))
        })
    }

    /// Counts what the pool holds now to the device's limit. The driver lets it grow and shrink by
    /// itself.
    pub fn recharge(&self) {
        if let Some(pool) = self.pool.get() {
            if let Err(error) = self.charge(pool, &mut lock(&self.charged)) {
                tracing::debug!("what the stream-ordered pool holds is unknown: {error}");
            }
        }
    }

    /// Counts what the pool holds; whether that is more than at the last time.
    fn charge(&self, pool: &StreamPool, charged: &mut u64) -> Result<bool> {
        let (held, _) = pool.reserved()?;
        let before = std::mem::replace(charged, held);
        if held > before {
            self.state.limit.take_anyway(held - before);
        } else {
            self.state.limit.give(before - held);
        }
        Ok(held > before)
    }

    /// Allocates where a limit is set: not if the pool would have to grow beyond it, as far as can
    /// be told beforehand, and not for good if it has.
    fn allocate_within(&self, pool: &Arc<StreamPool>, bytes: u64, stream: Stream) -> Result<u64> {
        let limit = &self.state.limit;
        let mut charged = lock(&self.charged);
        self.charge(pool, &mut charged)?;
        let idle = charged.saturating_sub(pool.used()?);
        let room = limit
            .hold(bytes.saturating_sub(idle))
            .map_err(|error| error.bytes(bytes))?;
        let address = pool.allocate(bytes, stream)?;
        drop(room);
        let outcome = match self.charge(pool, &mut charged) {
            Ok(true) if limit.excess() > 0 => Err(limit.exceeded(limit.used(), bytes)),
            outcome => outcome.map(|_| address),
        };
        outcome.inspect_err(|_| {
            let pool = pool.clone();
            if pool.free(address, stream).is_err() {
                let free = move || pool.free(address, Stream::LEGACY);
                let behind = Behind::Everything(Uses::everything(&self.state.device));
                self.state.deferral.push(behind, bytes, free);
            }
        })
    }

    /// Opens the pool to a device that came into use; memory already given out is reached too.
    pub fn admit_peers(&self) {
        let Some(pool) = self.pool.get() else {
            return;
        };
        let device = &self.state.device;
        let mut admitted = lock(&self.peers);
        let outcome = device.active_peers().and_then(|mut new| {
            new.retain(|peer| !admitted.contains(peer));
            if !new.is_empty() {
                pool.allow(&new)?;
                admitted.extend(new);
            }
            Ok(())
        });
        if let Err(error) = outcome {
            device.warnings().warn(Warning::PeerAccess, || {
                format!(
                    "devices that came into use cannot reach the stream-ordered pool of device {}: {error}",
                    device.ordinal()
                )
            });
        }
    }
}

impl Source for AsyncSource {
    fn kind(&self) -> Kind {
        Kind::Async
    }

    fn allocate(&self, request: &Request) -> Result<Block> {
        check_align(request)?;
        if request.capturing {
            return Err(Error::new(Status::Capturing, "cuMemAllocFromPoolAsync")
                .bytes(request.bytes)
                .detail("on a capturing stream the block would belong to the graph"));
        }
        let bytes = rounded(request, ALIGN)?;
        let is_first = self.pool.get().is_none();
        let pool = self.pool()?;
        if is_first {
            self.admit_peers();
        }
        self.state.deferral.drain();
        let address = match self.state.limit.get() {
            Some(_) => self.allocate_within(pool, bytes, request.stream)?,
            None => pool.allocate(bytes, request.stream)?,
        };
        Ok(Block {
            address,
            requested: request.bytes,
            bytes,
            stream: request.stream,
        })
    }

    fn deallocate(&self, block: &Block, freed: Freeing) -> Result<()> {
        let pool = self.pool()?.clone();
        let Block {
            address,
            bytes,
            stream,
            ..
        } = *block;
        let device = self.state.device.clone();
        let free_behind = move |fence: &Fence, stream: Stream| {
            let _guard = device.enter()?;
            fence.holds_back(stream)?;
            pool.free(address, stream)
        };
        let done = self
            .state
            .fence(block, &freed, false)
            .and_then(|fence| match fence {
                Some(fence) => free_behind(&fence, stream).map(|()| true),
                None => Ok(false),
            });
        if let Ok(true) = done {
            return Ok(());
        }
        // The free takes its place in a stream's order, so the fence need not have been reached.
        self.state
            .deferral
            .push_ordered(self.state.everything(&freed), bytes, stream, free_behind);
        done.map(|_| ())
    }

    fn trim(&self, keep: u64) -> Result<()> {
        self.state.deferral.wait();
        match self.pool.get() {
            Some(pool) => {
                // The driver gives back only what it has seen freed by work that is done, and an
                // event that was waited for does not show it that.
                let trimmed = match self.state.device.synchronize() {
                    Err(error) if error.status() == Status::Capturing => Ok(()),
                    waited => waited.and_then(|()| pool.trim(keep)),
                };
                self.recharge();
                trimmed
            }
            None => Ok(()),
        }
    }

    fn held(&self) -> Held {
        let mut last = lock(&self.last_held);
        if let Some(Ok((now, peak))) = self.pool.get().map(|pool| pool.reserved()) {
            let grown = now.saturating_sub(last.now);
            *last = Held {
                now,
                peak,
                added: last.added + grown,
            };
        }
        *last
    }

    fn reset_peak(&self) -> Result<()> {
        match self.pool.get() {
            Some(pool) => pool.reset_peak(),
            None => Ok(()),
        }
    }
}
