//! What a caching pool does at full size, where a search through all mappings would show: huge ranges, tens of thousands of mappings, chunks of many GiB.

mod common;
use common::*;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
const COUNT: u64 = 10_000;

/// The time that something took, told and held to a bound far above what it needs.
fn timed(what: &str, most: Duration, act: impl FnOnce()) {
    let start = Instant::now();
    act();
    let took = start.elapsed();
    println!("{what}: {took:?}");
    assert!(took < most, "{what} took {took:?}");
}

/// Some twenty times what each step takes; a search through all mappings at each would take longer still.
const LONG: Duration = Duration::from_secs(10);

#[test]
fn ten_thousand_mappings() {
    let _m = Machine::start("memory=64GiB");
    let (near, far) = (reserve(COUNT * CHUNK), reserve(2 * COUNT * CHUNK));
    let place = |at: u64| near + at * CHUNK;
    // Backwards and with a hole behind each, so that the host's kernel cannot join them.
    let other = |at: u64| far + 2 * (COUNT - 1 - at) * CHUNK;
    let mut chunks = Vec::new();
    timed("create", LONG, || {
        chunks.extend((0..COUNT).map(|_| create(CHUNK)))
    });
    timed("map", LONG, || {
        for (at, chunk) in chunks.iter().enumerate() {
            assert_eq!(map(place(at as u64), CHUNK, *chunk), 0);
        }
    });
    timed("access, one call", LONG, || {
        assert_eq!(grant(near, COUNT * CHUNK, 0, 3), 0)
    });
    timed("aliases with access", LONG, || {
        for (at, chunk) in chunks.iter().enumerate() {
            assert_eq!(map(other(at as u64), CHUNK, *chunk), 0);
            assert_eq!(grant(other(at as u64), CHUNK, 0, 3), 0);
        }
    });
    assert_eq!(counters().mappings, 2 * COUNT);
    assert_eq!(counters().chunk_bytes, COUNT * CHUNK);
    timed("unmap each", LONG, || {
        for at in 0..COUNT {
            ok("cuMemUnmap", &[place(at), CHUNK]);
        }
    });
    timed("release", LONG, || {
        for chunk in &chunks {
            ok("cuMemRelease", &[*chunk]);
        }
    });
    timed("unmap the aliases", LONG, || {
        for at in 0..COUNT {
            ok("cuMemUnmap", &[other(at), CHUNK]);
        }
    });
    ok("cuMemAddressFree", &[near, COUNT * CHUNK]);
    ok("cuMemAddressFree", &[far, 2 * COUNT * CHUNK]);
    assert_clean();
}

#[test]
fn huge_ranges_and_chunks() {
    let _m = Machine::start("memory=140GiB");
    let size = 8 << 40;
    let mut ranges = Vec::new();
    timed("four ranges of 8 TiB", LONG, || {
        ranges.extend((0..4).map(|_| reserve(size)))
    });
    timed("chunks of many GiB", LONG, || {
        for range in &ranges {
            let chunk = create(32 * GIB);
            let end = range + size - 32 * GIB;
            for place in [*range, end] {
                assert_eq!(map(place, 32 * GIB, chunk), 0);
                assert_eq!(grant(place, 32 * GIB, 0, 3), 0);
            }
            ok("cuMemsetD8_v2", &[end + 31 * GIB, 7, 4096]);
            assert_eq!(read(range + 31 * GIB + 4095, 1), [7]);
            for place in [*range, end] {
                ok("cuMemUnmap", &[place, 32 * GIB]);
            }
            ok("cuMemRelease", &[chunk]);
        }
    });
    for range in ranges {
        ok("cuMemAddressFree", &[range, size]);
    }
    assert_clean();
}
