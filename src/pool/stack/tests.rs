//! Arenas over an upstream that counts, lays blocks out apart, and fails on demand.

mod streams;

use super::*;
use crate::core::sync::lock;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

#[derive(Default)]
struct Books {
    live: BTreeMap<u64, u64>,
    next: u64,
    calls: usize,
    /// Which call fails.
    fails_at: Option<usize>,
    /// The most bytes it has.
    room: u64,
    recorded: Vec<(u64, Stream)>,
    waited_for: Vec<Stream>,
    trims: Vec<u64>,
}

#[derive(Default)]
struct Fake {
    books: Mutex<Books>,
    any_stream: bool,
    /// It has no way to be told of streams.
    is_deaf: bool,
}

impl Fake {
    fn fails(&self) -> bool {
        let mut books = lock(&self.books);
        books.calls += 1;
        books.fails_at == Some(books.calls)
    }

    fn held(&self) -> u64 {
        lock(&self.books).live.values().sum()
    }
}

impl Upstream for Fake {
    fn device(&self) -> Option<i32> {
        Some(0)
    }

    fn is_by_stream(&self) -> bool {
        !self.any_stream
    }

    fn gives_back_at_once(&self) -> bool {
        true
    }

    fn allocate(&self, bytes: u64, _: Stream) -> Result<u64> {
        let fails = self.fails();
        let mut books = lock(&self.books);
        let held: u64 = books.live.values().sum();
        if fails || bytes > books.room.saturating_sub(held) {
            return Err(Error::new(Status::OutOfMemory, "upstream"));
        }
        // An odd multiple of 256, so that larger alignments need padding.
        let address = 0x1000_0000 + books.next;
        books.next += bytes.next_multiple_of(512) + 0x1_0100;
        books.live.insert(address, bytes);
        Ok(address)
    }

    fn deallocate(&self, address: u64, bytes: u64, _: Stream) -> (bool, Result<()>) {
        if self.fails() {
            return (false, Err(Error::new(Status::Driver, "upstream")));
        }
        assert_eq!(lock(&self.books).live.remove(&address), Some(bytes));
        (true, Ok(()))
    }

    fn record_stream(&self, address: u64, stream: Stream) -> Result<()> {
        if self.is_deaf {
            return Err(Error::new(Status::Unsupported, "upstream"));
        }
        lock(&self.books).recorded.push((address, stream));
        Ok(())
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        if self.fails() {
            return Err(Error::new(Status::Driver, "upstream"));
        }
        lock(&self.books).waited_for.push(stream);
        Ok(())
    }

    fn trim(&self, keep: u64) -> Result<u64> {
        lock(&self.books).trims.push(keep);
        Ok(11)
    }
}

const NUMBER: u64 = 77;
const OWN: Stream = Stream::LEGACY;

fn other_stream() -> Stream {
    Stream::from_raw(0x5000 as *mut std::ffi::c_void)
}

fn made() -> (Arena, Arc<Fake>) {
    let upstream = Arc::new(Fake::default());
    lock(&upstream.books).room = 1 << 40;
    let arena = Arena::new();
    arena.begin(NUMBER, upstream.clone());
    (arena, upstream)
}

fn take(arena: &Arena, bytes: u64) -> Result<u64> {
    match arena.allocate_at_once(NUMBER, bytes, OWN) {
        Some(address) => Ok(address),
        None => arena.allocate(NUMBER, bytes, stack::ALIGN, OWN),
    }
}

fn give(arena: &Arena, address: u64, bytes: Option<u64>) -> Result<()> {
    match arena.deallocate_at_once(NUMBER, address, bytes, OWN) {
        true => Ok(()),
        false => arena.deallocate(NUMBER, address, bytes, OWN).1,
    }
}

fn stats(arena: &Arena) -> ArenaStats {
    arena.audit().unwrap();
    arena.stats(NUMBER, "test").unwrap()
}

/// An arena with a region of so many bytes.
fn with_region(bytes: u64) -> (Arena, Arc<Fake>) {
    let (arena, upstream) = made();
    let block = take(&arena, bytes).unwrap();
    give(&arena, block, Some(bytes)).unwrap();
    arena.iter(NUMBER, OWN).unwrap();
    assert_eq!(stats(&arena).region, bytes.next_multiple_of(256));
    (arena, upstream)
}

fn status<T: std::fmt::Debug>(result: Result<T>) -> Status {
    result.unwrap_err().status()
}

#[test]
fn defect_1_rounding_of_every_block_counts_to_the_need() {
    let (arena, upstream) = made();
    let step = || {
        (0..100)
            .map(|_| take(&arena, 1).unwrap())
            .collect::<Vec<_>>()
    };
    let clear = |blocks: Vec<u64>| {
        let last_first = blocks.into_iter().rev();
        last_first.for_each(|block| give(&arena, block, Some(1)).unwrap());
    };
    clear(step());
    assert_eq!(stats(&arena).largest_need, 100 * 256);
    arena.iter(NUMBER, OWN).unwrap();
    let spills = stats(&arena).spilled.added;
    clear(step());
    assert_eq!(
        stats(&arena).spilled.added,
        spills,
        "the region had room for all"
    );
    assert_eq!(upstream.held(), 100 * 256);
}

#[test]
fn defect_2_what_does_not_fit_spills_and_the_region_grows() {
    let (arena, upstream) = with_region(1000);
    let first = take(&arena, 1000).unwrap();
    let second = take(&arena, 5000).unwrap();
    assert_eq!(stats(&arena).spilled.now, 1);
    assert_eq!(status(arena.iter(NUMBER, OWN)), Status::Busy);
    give(&arena, first, Some(1000)).unwrap();
    // What is spilled lives on.
    arena.iter(NUMBER, OWN).unwrap();
    assert_eq!(stats(&arena).region, 1024 + 5120);
    give(&arena, second, Some(5000)).unwrap();
    assert_eq!(upstream.held(), 1024 + 5120);
}

#[test]
fn defect_3_a_wrong_size_is_refused_even_where_it_ends_at_the_top() {
    let (arena, _) = with_region(4096);
    let first = take(&arena, 256).unwrap();
    let second = take(&arena, 256).unwrap();
    assert_eq!(
        status(give(&arena, first, Some(512))),
        Status::InvalidArgument
    );
    assert_eq!(
        status(give(&arena, second, Some(255))),
        Status::InvalidArgument
    );
    assert_eq!(stats(&arena).blocks.now, 2);
    give(&arena, second, Some(256)).unwrap();
    give(&arena, first, Some(256)).unwrap();
}

#[test]
fn defect_4_a_foreign_block_that_ends_where_the_region_begins_is_foreign() {
    let (arena, _) = with_region(4096);
    let first = take(&arena, 256).unwrap();
    for bytes in [Some(256), None] {
        assert_eq!(status(give(&arena, first - 256, bytes)), Status::NotOwned);
    }
    assert_eq!(take(&arena, 256).unwrap(), first + 256);
}

#[test]
fn defect_5_sizes_of_nothing_and_below_are_refused() {
    let (arena, upstream) = with_region(4096);
    let first = take(&arena, 256).unwrap();
    let calls = lock(&upstream.books).calls;
    for bytes in [0, u64::MAX, u64::MAX - 255, 1 << 63, (1 << 63) + 256] {
        assert_eq!(status(take(&arena, bytes)), Status::InvalidArgument);
    }
    let large = Align::new(1 << 63).unwrap();
    assert_eq!(
        status(arena.allocate(NUMBER, 1000, large, OWN)),
        Status::InvalidArgument
    );
    assert_eq!(lock(&upstream.books).calls, calls);
    let after = stats(&arena);
    assert_eq!(
        (after.allocated.now, after.blocks.now, after.failed),
        (256, 1, 6)
    );
    assert_eq!(take(&arena, 1).unwrap(), first + 256);
}

#[test]
fn defect_6_trim_goes_upstream_and_a_wrong_order_is_an_error() {
    let (arena, upstream) = with_region(4096);
    let blocks = [take(&arena, 1).unwrap(), take(&arena, 1).unwrap()];
    assert_eq!(
        status(give(&arena, blocks[0], Some(1))),
        Status::InvalidArgument
    );
    assert_eq!(arena.trim(NUMBER, 5).unwrap(), 11, "the region is in use");
    give(&arena, blocks[1], None).unwrap();
    give(&arena, blocks[0], None).unwrap();
    assert_eq!(status(give(&arena, blocks[0], None)), Status::NotOwned);
    assert_eq!(arena.trim(NUMBER, 4096).unwrap(), 11, "as much may stay");
    assert_eq!(stats(&arena).region, 4096);
    assert_eq!(arena.trim(NUMBER, 4095).unwrap(), 4096 + 11);
    assert_eq!((upstream.held(), stats(&arena).reserved.now), (0, 0));
    assert_eq!(lock(&upstream.books).trims, [5, 4096, 4095]);
    arena.iter(NUMBER, OWN).unwrap();
    assert_eq!(stats(&arena).region, 4096);
}

#[test]
fn larger_alignments_are_kept_and_undone_in_the_region_and_beside_it() {
    let align = Align::new(4096).unwrap();
    let (arena, upstream) = made();
    for step in 0..2 {
        let first = take(&arena, 100).unwrap();
        let second = arena.allocate(NUMBER, 100, align, OWN).unwrap();
        assert!(align.divides(second));
        assert_eq!(stats(&arena).spilled.now, if step == 0 { 2 } else { 0 });
        assert_eq!(stats(&arena).largest_need, 256 + 256 + 4096 - 256);
        give(&arena, second, Some(100)).unwrap();
        give(&arena, first, Some(100)).unwrap();
        assert_eq!(stats(&arena).allocated.now, 0);
        arena.iter(NUMBER, OWN).unwrap();
    }
    arena.end(NUMBER).unwrap();
    assert_eq!(upstream.held(), 0);
}

#[test]
fn where_the_larger_region_cannot_be_had_the_old_length_is() {
    let (arena, upstream) = with_region(4096);
    let blocks = [take(&arena, 4096).unwrap(), take(&arena, 4096).unwrap()];
    blocks
        .into_iter()
        .rev()
        .for_each(|block| give(&arena, block, None).unwrap());
    lock(&upstream.books).room = 5000;
    let error = arena.iter(NUMBER, OWN).unwrap_err();
    assert_eq!(error.status(), Status::OutOfMemory);
    assert!(
        error
            .to_string()
            .contains("region has 4096 bytes as before"),
        "{error}"
    );
    assert_eq!(stats(&arena).region, 4096);
    lock(&upstream.books).room = 10;
    let error = arena.iter(NUMBER, OWN).unwrap_err();
    assert!(error.to_string().contains("no region"), "{error}");
    assert_eq!((stats(&arena).region, upstream.held()), (0, 0));
    lock(&upstream.books).room = 8192;
    arena.iter(NUMBER, OWN).unwrap();
    assert_eq!(stats(&arena).region, 8192);
}

#[test]
fn a_device_takes_all_that_came_from_it() {
    let (arena, upstream) = with_region(4096);
    let (inside, _beside) = (take(&arena, 100).unwrap(), take(&arena, 8192).unwrap());
    arena.leave_device(NUMBER, 1);
    assert_eq!(stats(&arena).pieces.now, 2);
    arena.leave_device(NUMBER, 0);
    let now = stats(&arena);
    assert!(now.blocks.now == 0 && now.reserved.now == 0 && now.region == 0);
    // It is not asked for what it has not any more.
    assert_eq!(lock(&upstream.books).live.len(), 2);
    give(&arena, inside, None).unwrap_err();
    arena.end(NUMBER).unwrap();
}

/// Allocations, frees, a region that grows, a trim and the end, with each call to upstream failing in turn.
#[test]
fn a_failure_of_any_call_to_upstream_leaves_true_books() {
    for fails_at in 1..40 {
        let (arena, upstream) = made();
        lock(&upstream.books).fails_at = Some(fails_at);
        for step in 0..3 {
            let sizes = [100, 5000 * (step + 1), 1];
            let blocks = sizes.map(|bytes| take(&arena, bytes).ok());
            for (block, bytes) in blocks.into_iter().zip(sizes).rev() {
                let Some(block) = block else { continue };
                while give(&arena, block, Some(bytes)).is_err() {
                    assert!(stats(&arena).blocks.now > 0);
                }
            }
            let _ = arena.iter(NUMBER, OWN);
            assert_eq!(
                stats(&arena).reserved.now,
                upstream.held(),
                "call {fails_at}"
            );
        }
        let _ = arena.trim(NUMBER, 0);
        while arena.end(NUMBER).is_err() {
            assert_eq!(
                stats(&arena).reserved.now,
                upstream.held(),
                "call {fails_at}"
            );
        }
        assert_eq!(upstream.held(), 0, "call {fails_at}");
        assert_eq!(status(arena.stats(NUMBER, "test")), Status::InvalidArgument);
        arena.begin(NUMBER + 1, upstream.clone());
        assert_eq!(
            arena.stats(NUMBER + 1, "test").unwrap(),
            ArenaStats::default()
        );
    }
}

#[test]
fn an_arena_in_use_does_not_end() {
    let (arena, _) = with_region(1000);
    let block = take(&arena, 1).unwrap();
    assert_eq!(status(arena.end(NUMBER)), Status::Busy);
    give(&arena, block, None).unwrap();
    arena.end(NUMBER).unwrap();
    assert_eq!(status(take(&arena, 1)), Status::InvalidArgument);
    assert_eq!(status(give(&arena, block, None)), Status::InvalidArgument);
    assert_eq!(status(arena.end(NUMBER)), Status::InvalidArgument);
}

#[test]
fn threads_that_share_an_arena_never_share_a_block() {
    let upstream = Arc::new(Fake {
        any_stream: true,
        ..Fake::default()
    });
    lock(&upstream.books).room = 1 << 40;
    let arena = Arena::new();
    arena.begin(NUMBER, upstream.clone());
    let held = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (arena, held) = (&arena, &held);
            scope.spawn(move || {
                let mut own = Vec::new();
                for step in 0..3000u64 {
                    let bytes = 1 + (step * 7 + thread * 131) % 900;
                    let block = take(arena, bytes).unwrap();
                    assert_eq!(lock(held).insert(block, bytes), None);
                    own.push((block, bytes));
                    // Others' blocks may lie on it: then it stays for later.
                    own.retain(|(block, bytes)| {
                        lock(held).remove(block);
                        let stays = give(arena, *block, Some(*bytes)).is_err();
                        if stays {
                            lock(held).insert(*block, *bytes);
                        }
                        stays
                    });
                    if step % 100 == 0 {
                        let _ = arena.iter(NUMBER, OWN);
                    }
                }
                own
            });
        }
    });
    stats(&arena);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn agrees_with_a_shadow(
        steps in proptest::collection::vec((0u8..12, 1u64..3000, 0u32..12, 0usize..8), 1..150),
        room in 4000u64..60_000,
    ) {
        let (arena, upstream) = made();
        lock(&upstream.books).room = room;
        let mut live: Vec<(u64, u64, u64)> = Vec::new();
        for (step, bytes, bits, which) in steps {
            match step {
                0..=4 => {
                    let align = Align::new(1 << bits).unwrap();
                    let made = match step {
                        0..=2 => take(&arena, bytes).map(|address| (address, 256)),
                        _ => arena.allocate(NUMBER, bytes, align, OWN).map(|address| (address, align.get().max(256))),
                    };
                    if let Ok((address, align)) = made {
                        prop_assert_eq!(address % align, 0);
                        let apart = |other: &(u64, u64, u64)| address + bytes <= other.0 || other.0 + other.1 <= address;
                        prop_assert!(live.iter().all(apart), "{:?}", live);
                        let within = lock(&upstream.books).live.iter()
                            .any(|(base, length)| *base <= address && address + bytes <= base + length);
                        prop_assert!(within);
                        live.push((address, bytes, align));
                    }
                }
                5..=8 => if let Some((address, bytes, _)) = live.pop() {
                    prop_assert!(give(&arena, address, Some(bytes + 1)).is_err());
                    prop_assert!(give(&arena, address, Some(bytes)).is_ok());
                    prop_assert!(give(&arena, address, Some(bytes)).is_err());
                },
                9 => if !live.is_empty() {
                    let at = which % live.len();
                    // In the middle: taken back if it is spilled, left alone if it lies in the region.
                    if give(&arena, live[at].0, None).is_ok() {
                        live.remove(at);
                    }
                },
                10 => { let _ = arena.iter(NUMBER, OWN); }
                _ => { let _ = arena.trim(NUMBER, bytes); }
            }
            let now = stats(&arena);
            prop_assert_eq!(now.blocks.now as usize, live.len());
            prop_assert_eq!(now.requested.now, live.iter().map(|block| block.1).sum::<u64>());
            prop_assert_eq!(now.reserved.now, upstream.held());
        }
        for (address, bytes, _) in live.into_iter().rev() {
            give(&arena, address, Some(bytes)).unwrap();
        }
        arena.end(NUMBER).unwrap();
        prop_assert_eq!(upstream.held(), 0);
    }
}
