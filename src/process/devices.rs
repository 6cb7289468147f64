//! A device in use: its shared state and its sources.

use super::block_stats::ByOwner;
use super::placement;
use super::stats::Counters;
use crate::config::Settings;
use crate::config::table::Opt;
use crate::config::value::Location;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Result, Status};
use crate::extent::DeviceState;
use crate::gpu::{Device, Driver, Stream};
use crate::pool::backing::Backing;
use crate::pool::{DevicePool, Placing, Pools};
use crate::source::device::DeviceSource;
use crate::source::managed::{ManagedSource, Policy};
use crate::source::pinned::PinnedSource;
use crate::source::stream_ordered::{AsyncSource, PoolChoice};
use crate::source::vmm::VmmSource;
use crate::source::{Block, Held, Kind, Request, Source};
use once_cell::sync::OnceCell;
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};

/// A device in use.
pub struct DeviceEntry {
    state: Arc<DeviceState>,
    device: Arc<DeviceSource>,
    managed: Arc<ManagedSource>,
    stream_ordered: Arc<AsyncSource>,
    vmm: Arc<VmmSource>,
    pinned: Arc<PinnedSource>,
    placed: Mutex<FxHashMap<Location, Arc<VmmSource>>>,
    counters: [Counters; Kind::ALL.len()],
    by_owner: ByOwner,
    settings: Arc<Settings>,
    pool: OnceCell<Arc<DevicePool>>,
    /// Held by who sleeps or wakes memory of the device.
    residency: Mutex<()>,
    driver: Arc<Driver>,
}

/// What a source holds beside what it gave to the pool.
fn beside(all: Held, pooled: Held) -> Held {
    Held {
        now: all.now.saturating_sub(pooled.now),
        // What its own blocks came to at most is not known apart.
        peak: all.peak.saturating_sub(pooled.peak),
        added: all.added.saturating_sub(pooled.added),
    }
}

impl DeviceEntry {
    pub(super) fn new(
        driver: &Arc<Driver>,
        gpu: Arc<Device>,
        settings: Arc<Settings>,
    ) -> DeviceEntry {
        let kept = settings.clone();
        for opt in [
            Opt::AsyncPool,
            Opt::AsyncReleaseThreshold,
            Opt::VmmLocation,
            Opt::RocmChunkSize,
        ] {
            settings.fix(opt);
        }
        gpu.limit_chunks(match driver.limits_chunks() {
            true => settings.size(Opt::RocmChunkSize).of(gpu.total_memory()),
            false => 0,
        });
        let state = Arc::new(DeviceState::new(gpu));
        let pool = match settings.text(Opt::AsyncPool).as_str() {
            "own" => PoolChoice::Own(settings.size(Opt::AsyncReleaseThreshold)),
            _ => PoolChoice::DeviceDefault,
        };
        let location = settings.location(Opt::VmmLocation);
        DeviceEntry {
            device: Arc::new(DeviceSource::new(state.clone())),
            stream_ordered: Arc::new(AsyncSource::new(state.clone(), pool)),
            vmm: Arc::new(VmmSource::new(state.clone(), location)),
            pinned: Arc::new(PinnedSource::new(state.clone())),
            managed: Arc::new(ManagedSource::new(state.clone(), move |tag| Policy {
                placement: placement::of(&settings, tag),
                prefetch: settings.threshold(Opt::PrefetchThreshold),
                headroom: settings.size(Opt::ManagedHeadroom),
            })),
            placed: Mutex::default(),
            counters: Default::default(),
            by_owner: ByOwner::default(),
            pool: OnceCell::new(),
            residency: Mutex::default(),
            driver: driver.clone(),
            settings: kept,
            state,
        }
    }

    /// What its sources share.
    pub fn state(&self) -> &Arc<DeviceState> {
        &self.state
    }

    /// Whose turn it is to sleep or wake memory of the device.
    pub(super) fn residency_turn(&self) -> &Mutex<()> {
        &self.residency
    }

    /// The pool, made at its first use.
    pub(super) fn pool(&self, pools: &Pools) -> Result<&Arc<DevicePool>> {
        self.pool.get_or_try_init(|| {
            self.settings.fix(Opt::PoolSource);
            let over = self.settings.text(Opt::PoolSource);
            let over = match Kind::from_name(&over).unwrap_or(Kind::Vmm) {
                Kind::Vmm | Kind::Pool => self.chunks_or_device()?,
                kind => kind,
            };
            let backing = match over {
                Kind::Vmm => Backing::Chunks,
                kind => Backing::segments(self.source(kind)),
            };
            let settings = self.settings.clone();
            let is_tight = Box::new(move || settings.text(Opt::Waste) == "tight");
            let placing = self.placing(over);
            let driver = self.driver.clone();
            let none_captures = Box::new(move || driver.none_captures());
            let state = self.state.clone();
            Ok(pools.device(state, backing, is_tight, placing, none_captures))
        })
    }

    fn chunks_or_device(&self) -> Result<Kind> {
        match self.state.grain(Location::Device) {
            Ok(_) => Ok(Kind::Vmm),
            Err(error) if error.status() == Status::Unsupported => {
                tracing::warn!(
                    "the pool takes memory of the device source and cannot move it: {error}"
                );
                Ok(Kind::Device)
            }
            Err(error) => Err(error),
        }
    }

    /// Where the pool over a source is to make memory of a tag.
    fn placing(&self, over: Kind) -> Placing {
        let (settings, gpu) = (self.settings.clone(), self.state.device.clone());
        Box::new(move |tag| {
            let tag = TagId::from_number(tag);
            let placement = match tag.is_none() {
                true => None,
                false => placement::of(&settings, tag),
            };
            match over {
                Kind::Vmm => placement::of_chunks(&gpu, placement),
                over => placement::of_segments(over, tag, placement),
            }
        })
    }

    /// The pool, if it is in use.
    pub(super) fn pool_in_use(&self) -> Option<&Arc<DevicePool>> {
        self.pool.get()
    }

    /// What a kind holds from the device.
    pub(super) fn held(&self, kind: Kind) -> Held {
        let segments = self.pool_in_use().and_then(|pool| pool.segments());
        match (kind, segments) {
            (Kind::Pool, None) => self.state.extents.pooled(),
            (Kind::Pool, Some((_, held))) => held.read(),
            (kind, Some((of, pooled))) if kind == of => {
                beside(self.source(kind).held(), pooled.read())
            }
            (kind, _) => self.source(kind).held(),
        }
    }

    /// In how many pieces the driver gave it; none where that is not known.
    pub(super) fn pieces(&self, kind: Kind) -> Held {
        let segments = self.pool_in_use().and_then(|pool| pool.segments());
        match (kind, segments) {
            (Kind::Pool, None) => self.state.extents.pooled_chunks(),
            (Kind::Pool, Some((_, held))) => held.pieces(),
            (kind, Some((of, pooled))) if kind == of => {
                beside(self.source(kind).pieces(), pooled.pieces())
            }
            (kind, _) => self.source(kind).pieces(),
        }
    }

    /// The source of a kind; for the pool, the one it is over.
    pub fn source(&self, kind: Kind) -> Arc<dyn Source> {
        match kind {
            Kind::Device => self.device.clone(),
            Kind::Managed => self.managed.clone(),
            Kind::Async => self.stream_ordered.clone(),
            Kind::Vmm | Kind::Pool => self.vmm.clone(),
            Kind::Pinned => self.pinned.clone(),
        }
    }

    /// The source of a kind whose memory is at `location`, where one is named. A place other than
    /// the option's is served by a source of its own over the same extents.
    pub(super) fn source_at(&self, kind: Kind, location: Option<Location>) -> Arc<dyn Source> {
        match location {
            Some(place) if kind == Kind::Vmm && place != self.vmm.location() => lock(&self.placed)
                .entry(place)
                .or_insert_with(|| Arc::new(VmmSource::new(self.state.clone(), place)))
                .clone(),
            _ => self.source(kind),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Bytes that the pool holds of the host's memory, and that are in no block.
    pub(super) fn cached_on_host(&self) -> u64 {
        let Some(pool) = self.pool_in_use() else {
            return 0;
        };
        match pool.segments() {
            Some((Kind::Pinned, held)) => (held.read().now).saturating_sub(pool.total().allocated),
            _ => pool.cached_on_host(),
        }
    }

    pub(super) fn counters(&self, kind: Kind) -> &Counters {
        &self.counters[kind as usize]
    }

    pub(super) fn by_owner(&self) -> &ByOwner {
        &self.by_owner
    }

    /// A block of a source was given out.
    pub(super) fn gave(&self, kind: Kind, tag: TagId, block: &Block) {
        self.counters(kind).gave(block);
        self.by_owner.count(kind, tag, block.stream, block, true);
    }

    /// A block that was given out for `stream` was taken back.
    pub(super) fn took(&self, kind: Kind, tag: TagId, stream: Stream, block: &Block) {
        self.counters(kind).took(block);
        self.by_owner.count(kind, tag, stream, block, false);
    }

    /// Whether a stream is capturing.
    pub(super) fn is_capturing(&self, stream: Stream) -> Result<bool> {
        let _guard = self.state.device.enter()?;
        self.state.device.is_capturing(stream)
    }

    /// Allocates from a source; when memory has run out, once more after everything that can be
    /// given back has been.
    pub(super) fn allocate(&self, source: &dyn Source, request: &Request) -> Result<Block> {
        let outcome = match source.allocate(request) {
            Err(error) if error.status() == Status::OutOfMemory => {
                self.counters(source.kind()).retried();
                // That memory has run out is what the caller needs to know, whatever else fails.
                let _ = self.trim_at(0, Some(source.location()));
                source
                    .allocate(request)
                    .map_err(|error| self.out_of_memory(error, source.location()))
            }
            outcome => outcome,
        };
        outcome.inspect_err(|error| self.counters(source.kind()).failed(error))
    }

    /// Gives back what is cached or waits, down to `keep` bytes a source.
    pub(super) fn trim(&self, keep: u64) -> Result<u64> {
        self.trim_at(keep, None)
    }

    /// [`DeviceEntry::trim`] of what the pool holds at one place only, where one is named.
    pub(super) fn trim_at(&self, keep: u64, location: Option<Location>) -> Result<u64> {
        if self.state.device.capture_open() {
            return Ok(0);
        }
        let before = self.held_by_all();
        if let Some(pool) = self.pool_in_use() {
            pool.trim(keep, location)?;
        }
        self.trim_sources(keep)?;
        self.state.device.drop_idle_events();
        Ok(before.saturating_sub(self.held_by_all()))
    }

    /// Gives back what the sources cache, beside the pool; the bytes.
    pub(super) fn trim_sources(&self, keep: u64) -> Result<u64> {
        let limit = &self.state.limit;
        let (held, used) = (self.held_by_all(), limit.used());
        for kind in Kind::SOURCES {
            self.source(kind).trim(keep)?;
        }
        // The driver's pool gives back by itself whenever work is waited for; that was not counted yet.
        let less = used.saturating_sub(limit.used());
        Ok(held.saturating_sub(self.held_by_all()).max(less))
    }

    pub(super) fn held_by_all(&self) -> u64 {
        Kind::ALL.into_iter().map(|kind| self.held(kind).now).sum()
    }

    /// Counts to the limit what is held by a pool of the driver.
    pub(super) fn recharge(&self) {
        self.stream_ordered.recharge();
    }

    pub(super) fn admit_peer(&self, peer: i32) {
        self.state.extents.admit_peer(peer);
        self.stream_ordered.admit_peers();
    }
}
