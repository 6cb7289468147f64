//! Statistics by tag and by stream: they add up to those of the device, to a model's, and to what the
//! simulator counts.

use super::{House, MIB};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::gpu::Stream;
use crate::gpu::stream::OwnedStream;
use crate::process::{BlockStats, Demand, Process};
use crate::selftest::check::{ensure, ensure_eq};
use crate::selftest::stress::random::Random;
use crate::selftest::stress::seed;
use crate::selftest::{Outcome, Stop};
use crate::source::Kind;
use crate::sys::cuda::Handle;
use std::collections::BTreeMap;
use std::sync::Mutex;

const THREADS: u64 = 6;
const STEPS: usize = 400;
const TAGS: [u16; 4] = [0, 60_001, 60_002, 60_003];

/// A block of the model.
struct Lent {
    address: u64,
    tag: u16,
    stream: Stream,
    requested: u64,
    bytes: u64,
}

/// Requested, allocated, blocks had, and of them given back.
type Counted = (u64, u64, u64, u64);

#[derive(Default)]
struct Model {
    live: Vec<Lent>,
    tags: BTreeMap<u16, Counted>,
    streams: BTreeMap<Stream, Counted>,
}

impl Model {
    fn lent(&mut self, lent: Lent) {
        for counted in self.of(&lent) {
            counted.0 += lent.requested;
            counted.1 += lent.bytes;
            counted.2 += 1;
        }
        self.live.push(lent);
    }

    fn take(&mut self, random: &mut Random) -> Option<u64> {
        let count = self.live.len();
        if count == 0 {
            return None;
        }
        let lent = self.live.swap_remove(random.below(count));
        for counted in self.of(&lent) {
            counted.0 -= lent.requested;
            counted.1 -= lent.bytes;
            counted.3 += 1;
        }
        Some(lent.address)
    }

    fn of(&mut self, lent: &Lent) -> [&mut Counted; 2] {
        [
            self.tags.entry(lent.tag).or_default(),
            self.streams.entry(lent.stream).or_default(),
        ]
    }
}

fn counted(stats: &BlockStats) -> Counted {
    (
        stats.requested,
        stats.allocated,
        stats.allocations,
        stats.deallocations,
    )
}

/// Threads allocate and free each other's blocks; what is counted by tag and by stream is what the
/// model counts, and adds up.
pub fn threads_at_random() -> Outcome {
    let house = House::plain()?;
    let kinds = house.kinds()?;
    let owned: Result<Vec<OwnedStream>, Stop> = (0..3).map(|_| house.machine.stream()).collect();
    let owned = owned?;
    let mut streams: Vec<Stream> = owned.iter().map(OwnedStream::stream).collect();
    streams.extend([Stream::LEGACY, Stream::from_raw(2 as Handle)]);
    let (model, seed) = (Mutex::new(Model::default()), seed()?);
    println!("owners: HBMALLOC_TEST_SEED={seed}");
    let work = |thread: u64| -> Outcome {
        let mut random = Random::new(seed.wrapping_add(thread << 32));
        for _ in 0..STEPS {
            if random.once_in(2) {
                let taken = lock(&model).take(&mut random);
                taken.map_or(Ok(()), |address| house.free(address))?;
                continue;
            }
            let (tag, stream) = (TAGS[random.below(4)], streams[random.below(5)]);
            let (kind, requested) = (kinds[random.below(kinds.len())], random.size(24));
            let address = house.process.allocate(Demand {
                tag: TagId::from_number(tag),
                ..house.demand(kind, requested, stream)
            })?;
            let (_, bytes) = house.process.block_of(address).ok_or("no block")?;
            lock(&model).lent(Lent {
                address,
                tag,
                stream,
                requested,
                bytes,
            });
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        let mut joined = threads.into_iter().map(|thread| thread.join());
        joined.try_for_each(|outcome| outcome.map_err(|_| Stop::from("a thread panicked"))?)
    })?;
    let mut model = model.into_inner().map_err(|_| "a thread panicked")?;
    agree(&house, &model)?;
    let mut random = Random::new(seed);
    while let Some(address) = model.take(&mut random) {
        house.free(address)?;
    }
    agree(&house, &model)?;
    for tag in TAGS {
        let stats = house.process.tag_stats(0, TagId::from_number(tag))?;
        ensure_eq!(stats.reserved, 0, "held under {tag} when all is freed");
    }
    house.finish()
}

fn agree(house: &House, model: &Model) -> Outcome {
    house.machine.synchronize()?;
    // Nothing waits for work any more, so all that is held is some tag's.
    house.process.trim_all()?;
    let (mut by_tag, mut by_stream) = (BlockStats::default(), BlockStats::default());
    for tag in TAGS {
        let stats = house.process.tag_stats(0, TagId::from_number(tag))?;
        let wanted = model.tags.get(&tag).copied().unwrap_or_default();
        ensure_eq!(counted(&stats), wanted, "blocks under {tag}");
        ensure!(stats.allocated <= stats.reserved, "{tag}: {stats:?}");
        add(&mut by_tag, &stats);
    }
    let mut streams = house.process.streams(0)?;
    streams.retain(|stream| model.streams.contains_key(stream));
    ensure_eq!(
        streams.len(),
        model.streams.len(),
        "streams that are counted"
    );
    for stream in streams {
        let stats = house.process.stream_stats(0, stream)?;
        ensure_eq!(
            counted(&stats),
            model.streams[&stream],
            "blocks of {stream:?}"
        );
        add(&mut by_stream, &stats);
    }
    let total = house.process.stats(0, None)?;
    for (name, sum) in [("tags", &by_tag), ("streams", &by_stream)] {
        ensure_eq!(
            (
                counted(sum),
                sum.total_requested,
                sum.total_allocated,
                sum.peak_allocated >= total.allocated
            ),
            (
                (
                    total.requested,
                    total.allocated,
                    total.allocations,
                    total.deallocations
                ),
                total.total_requested,
                total.total_allocated,
                true
            ),
            "the sum over {name}"
        );
    }
    // What the driver's own pool caches has no tag.
    let stream_ordered = house.process.stats(0, Some(Kind::Async))?;
    let untagged = stream_ordered.reserved - stream_ordered.allocated;
    ensure_eq!(by_tag.reserved + untagged, total.reserved, "held by tags");
    if let Some(sim) = house.machine.sim {
        let counters = sim.counters();
        let held = counters.chunk_bytes
            + counters.host_chunk_bytes
            + counters.device_bytes
            + counters.managed_bytes
            + counters.pinned_bytes
            + counters.async_reserved_bytes;
        ensure_eq!(total.reserved, held, "held by the simulator's own count");
    }
    Ok(())
}

fn add(sum: &mut BlockStats, stats: &BlockStats) {
    sum.requested += stats.requested;
    sum.allocated += stats.allocated;
    sum.reserved += stats.reserved;
    sum.peak_allocated += stats.peak_allocated;
    sum.allocations += stats.allocations;
    sum.deallocations += stats.deallocations;
    sum.total_requested += stats.total_requested;
    sum.total_allocated += stats.total_allocated;
}

fn tagged(house: &House, kind: Kind, tag: u16, mib: u64, stream: Stream) -> Result<u64, Stop> {
    Ok(house.process.allocate(Demand {
        tag: TagId::from_number(tag),
        ..house.demand(kind, mib * MIB, stream)
    })?)
}

/// Peaks by tag and by stream are apart, and begin again when they are reset.
pub fn peaks() -> Outcome {
    let house = House::plain()?;
    for kind in house.kinds()? {
        let stream = house.machine.stream()?;
        let (weights, cache) = (TAGS[1], TAGS[2]);
        let of = |tag: u16| house.process.tag_stats(0, TagId::from_number(tag));
        let before = (of(weights)?, of(cache)?);
        let kept = tagged(&house, kind, weights, 4, Stream::LEGACY)?;
        let gone = tagged(&house, kind, cache, 16, stream.stream())?;
        house.free(gone)?;
        let peak = |stats: BlockStats| (stats.peak_requested >> 20, stats.peak_blocks);
        ensure_eq!(peak(of(weights)?), (4, 1), "{kind:?}, weights");
        ensure_eq!(peak(of(cache)?), (16, 1), "{kind:?}, cache");
        let on_stream = house.process.stream_stats(0, stream.stream())?;
        ensure_eq!(peak(on_stream), (16, 1), "{kind:?}, stream");
        ensure!(of(cache)?.peak_reserved >= 16 * MIB, "{kind:?}, cache");
        ensure_eq!(of(cache)?.requested, 0, "{kind:?}, cache, requested");
        ensure_eq!(
            of(weights)?.total_requested - before.0.total_requested,
            4 * MIB,
            "{kind:?}, weights, total"
        );
        house.free(kept)?;
        house.machine.synchronize()?;
        house.process.trim_all()?;
        house.process.reset_peaks(0)?;
        for tag in [weights, cache] {
            let stats = of(tag)?;
            let left = (
                stats.peak_requested,
                stats.peak_allocated,
                stats.peak_reserved,
                stats.peak_blocks,
            );
            ensure_eq!(left, (0, 0, 0, 0), "{kind:?}, {tag}, after a reset");
        }
        house.process.forget_stream(0, stream.stream())?;
    }
    house.finish()
}

/// Where several threads hold blocks of a tag at once, its peak is seen to within 1 MiB each.
pub fn peaks_over_threads() -> Outcome {
    let house = House::plain()?;
    const EACH: u64 = 24;
    let barrier = std::sync::Barrier::new(4);
    let hold = |tag: u16| -> Outcome {
        let blocks: Result<Vec<u64>, Stop> = (0..EACH)
            .map(|_| tagged(&house, Kind::Pool, tag, 1, Stream::LEGACY))
            .collect();
        barrier.wait();
        blocks?.into_iter().try_for_each(|block| house.free(block))
    };
    std::thread::scope(|scope| {
        let hold = &hold;
        let tags = [TAGS[1], TAGS[1], TAGS[1], TAGS[2]];
        let threads: Vec<_> = tags.map(|tag| scope.spawn(move || hold(tag))).into();
        let mut joined = threads.into_iter().map(|thread| thread.join());
        joined.try_for_each(|outcome| outcome.map_err(|_| Stop::from("a thread panicked"))?)
    })?;
    let near = |stats: BlockStats, most: u64| {
        let most = most * MIB;
        (most - 4 * MIB..=most).contains(&stats.peak_allocated)
    };
    let of = |tag: u16| house.process.tag_stats(0, TagId::from_number(tag));
    ensure!(near(of(TAGS[1])?, 3 * EACH), "{:?}", of(TAGS[1])?);
    ensure!(near(of(TAGS[2])?, EACH), "{:?}", of(TAGS[2])?);
    let all = house.process.stream_stats(0, Stream::LEGACY)?;
    ensure!(near(all, 4 * EACH), "{all:?}");
    house.finish()
}

/// A stream that is gone keeps its counts, and what is freed afterwards is counted for it.
pub fn streams_that_go() -> Outcome {
    let house = House::plain()?;
    for kind in house.kinds()? {
        let stream = house.machine.stream()?;
        let handle = stream.stream();
        let before = house.process.stream_stats(0, handle)?;
        let block = tagged(&house, kind, 0, 3, handle)?;
        let legacy = house.process.stream_stats(0, Stream::LEGACY)?;
        house.process.forget_stream(0, handle)?;
        house.machine.synchronize()?;
        drop(stream);
        house.free(block)?;
        let after = house.process.stream_stats(0, handle)?;
        ensure_eq!(
            (after.allocations, after.deallocations, after.requested),
            (before.allocations + 1, before.deallocations + 1, 0),
            "{kind:?}"
        );
        let now = house.process.stream_stats(0, Stream::LEGACY)?;
        ensure_eq!(now, legacy, "{kind:?}: the legacy stream");
    }
    house.finish()
}

/// Over a source whose memory cannot move, what the pool holds is known by tag too.
pub fn over_other_sources() -> Outcome {
    for source in ["device", "managed", "pinned"] {
        let spec = "devices=1,poison=1";
        let house = House::open(spec, &[("pool_source", source)])?;
        let kind = Kind::from_name(source).ok_or("no kind")?;
        if !house.has(kind)? {
            continue;
        }
        let of = |tag: u16| -> Result<u64, Stop> { reserved(&house.process, tag) };
        let pooled = tagged(&house, Kind::Pool, TAGS[1], 3, Stream::LEGACY)?;
        let plain = tagged(&house, kind, TAGS[2], 2, Stream::LEGACY)?;
        let total = house.process.stats(0, None)?.reserved;
        ensure_eq!(of(TAGS[1])? + of(TAGS[2])?, total, "over {source}");
        let segments = house.process.stats(0, Some(Kind::Pool))?.segments;
        ensure_eq!(segments, 1, "segments of the pool over {source}");
        let beside = house.process.stats(0, Some(kind))?.segments;
        ensure_eq!(beside, 1, "segments beside the pool over {source}");
        house.free(pooled)?;
        house.free(plain)?;
        house.machine.synchronize()?;
        house.process.trim_all()?;
        ensure_eq!(of(TAGS[1])? + of(TAGS[2])?, 0, "over {source}, at the end");
        house.finish()?;
    }
    Ok(())
}

fn reserved(process: &Process, tag: u16) -> Result<u64, Stop> {
    Ok(process.tag_stats(0, TagId::from_number(tag))?.reserved)
}
