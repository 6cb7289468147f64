//! Virtual memory management: aliases, contents, faults, and everything that the driver refuses.

mod common;
use common::*;

#[test]
fn an_alias_reads_the_same_bytes() {
    let _m = Machine::start("");
    let (base, chunk) = (reserve(4 * CHUNK), create(CHUNK));
    for place in [base, base + 2 * CHUNK] {
        assert_eq!(map(place, CHUNK, chunk), 0);
        assert_eq!(grant(place, CHUNK, 0, 3), 0);
    }
    ok("cuMemsetD32_v2", &[base, 0xdead_beef, CHUNK / 4]);
    let bytes = read(base + 2 * CHUNK, CHUNK as usize);
    assert!(bytes.chunks(4).all(|word| word == [0xef, 0xbe, 0xad, 0xde]));
    ok("cuMemUnmap", &[base, CHUNK]);
    ok("cuMemUnmap", &[base + 2 * CHUNK, CHUNK]);
    ok("cuMemRelease", &[chunk]);
    ok("cuMemAddressFree", &[base, 4 * CHUNK]);
    assert_clean();
}

#[test]
fn contents_stay_with_the_chunk_and_go_with_it() {
    let _m = Machine::start("");
    let (base, chunk) = mapped(CHUNK);
    ok("cuMemsetD8_v2", &[base, 7, CHUNK]);
    ok("cuCtxSynchronize", &[]);
    ok("cuMemUnmap", &[base, CHUNK]);
    assert_eq!(map(base, CHUNK, chunk), 0);
    assert_eq!(grant(base, CHUNK, 0, 3), 0);
    assert_eq!(read(base + CHUNK - 1, 1), [7]);
    unmapped(base, chunk, CHUNK);
    let (base, chunk) = mapped(CHUNK);
    assert_ne!(read(base + CHUNK - 1, 1), [7]);
    unmapped(base, chunk, CHUNK);
    assert_clean();
}

#[test]
fn a_released_handle_lives_on_in_its_mapping() {
    let _m = Machine::start("");
    let (base, chunk) = mapped(CHUNK);
    ok("cuMemsetD8_v2", &[base, 9, CHUNK]);
    ok("cuMemRelease", &[chunk]);
    assert_eq!(call("cuMemRelease", &[chunk]), 1, "released twice");
    assert_eq!(counters().chunk_bytes, CHUNK);
    assert_eq!(read(base, 1), [9]);
    let again = new("cuMemRetainAllocationHandle", &[base + 4096]);
    ok("cuMemUnmap", &[base, CHUNK]);
    assert_eq!(counters().chunk_bytes, CHUNK);
    ok("cuMemRelease", &[again]);
    assert_eq!(counters().physical_bytes, 0);
    ok("cuMemAddressFree", &[base, CHUNK]);
    assert_clean();
}

fn dies_reading(address: u64) -> bool {
    // SAFETY: that it is not is what the child finds out.
    in_child(|| unsafe { i32::from(std::ptr::read_volatile(address as *const u8) == 255) })
        == 128 + libc::SIGSEGV
}

#[test]
fn memory_without_mapping_or_access_faults() {
    let _m = Machine::start("");
    let (base, chunk) = (reserve(2 * CHUNK), create(CHUNK));
    assert!(dies_reading(base));
    assert_eq!(map(base, CHUNK, chunk), 0);
    assert!(dies_reading(base));
    assert_eq!(grant(base, CHUNK, 0, 3), 0);
    assert!(!dies_reading(base));
    assert!(dies_reading(base + CHUNK));
    assert_eq!(grant(base, CHUNK, 0, 0), 0);
    assert!(dies_reading(base));
    ok("cuMemUnmap", &[base, CHUNK]);
    assert!(dies_reading(base));
}

#[test]
fn sizes_and_alignments_are_checked() {
    let _m = Machine::start("");
    for size in [0, 4096, CHUNK + 4096] {
        assert_eq!(try_create(size, &DEVICE).0, 1);
        assert_eq!(try_new("cuMemAddressReserve", &[size, 0, 0, 0]).0, 1);
    }
    assert_eq!(try_new("cuMemAddressReserve", &[CHUNK, 3, 0, 0]).0, 1);
    assert_eq!(
        new("cuMemAddressReserve", &[CHUNK, 1 << 30, 0, 0]) % (1 << 30),
        0
    );
    assert_eq!(
        try_create(
            CHUNK,
            &Prop {
                location: [1, 9],
                ..DEVICE
            }
        )
        .0,
        101
    );
    let (base, chunk) = (reserve(8 * CHUNK), create(2 * CHUNK));
    assert_eq!(call("cuMemMap", &[base, CHUNK, 0, chunk, 0]), 801, "a part");
    assert_eq!(
        call("cuMemMap", &[base, CHUNK, CHUNK, chunk, 0]),
        801,
        "an offset"
    );
    assert_eq!(map(base + 4096, 2 * CHUNK, chunk), 1, "unaligned");
    assert_eq!(map(base + 7 * CHUNK, 2 * CHUNK, chunk), 1, "past the end");
    assert_eq!(map(base, 2 * CHUNK, chunk), 0);
    assert_eq!(map(base + CHUNK, 2 * CHUNK, chunk), 1, "overlap");
    assert_eq!(grant(base, CHUNK, 0, 3), 1, "access to a part");
    assert_eq!(grant(base, 3 * CHUNK, 0, 3), 1, "access past the end");
    assert_eq!(grant(base, 2 * CHUNK, 0, 2), 1, "flags");
    assert_eq!(call("cuMemUnmap", &[base, CHUNK]), 1, "unmapping a part");
    assert_eq!(call("cuMemAddressFree", &[base, 8 * CHUNK]), 1, "mapped");
    ok("cuMemUnmap", &[base, 2 * CHUNK]);
    assert_eq!(call("cuMemUnmap", &[base, 2 * CHUNK]), 1, "unmapped twice");
    assert_eq!(call("cuMemAddressFree", &[base, 4 * CHUNK]), 1, "a part");
    ok("cuMemAddressFree", &[base, 8 * CHUNK]);
    assert_eq!(
        call("cuMemAddressFree", &[base, 8 * CHUNK]),
        1,
        "freed twice"
    );
}

#[test]
fn one_call_serves_many_neighbours() {
    let _m = Machine::start("");
    let base = reserve(64 * CHUNK);
    let chunks: Vec<u64> = (0..64).map(|_| create(CHUNK)).collect();
    for (at, chunk) in chunks.iter().enumerate() {
        assert_eq!(map(base + at as u64 * CHUNK, CHUNK, *chunk), 0);
    }
    let before = call64("hbmsim_virtual_ns", &[]);
    assert_eq!(grant(base, 64 * CHUNK, 0, 3), 0);
    assert_eq!(call64("hbmsim_virtual_ns", &[]) - before, 64 * 24_000);
    ok("cuMemsetD8_v2", &[base, 5, 64 * CHUNK]);
    assert_eq!(read(base + 63 * CHUNK, 1), [5]);
    ok("cuMemUnmap", &[base, 64 * CHUNK]);
    chunks
        .iter()
        .for_each(|chunk| ok("cuMemRelease", &[*chunk]));
    ok("cuMemAddressFree", &[base, 64 * CHUNK]);
    assert_clean();
}

#[test]
fn without_strictness_gaps_pass_as_on_a_card() {
    let _m = Machine::start("strict=0");
    let base = reserve(8 * CHUNK);
    let chunk = create(CHUNK);
    assert_eq!(map(base, CHUNK, chunk), 0);
    assert_eq!(map(base + 2 * CHUNK, CHUNK, chunk), 0);
    assert_eq!(grant(base, 3 * CHUNK, 0, 3), 0);
    ok("cuMemUnmap", &[base, 8 * CHUNK]);
    ok("cuMemUnmap", &[base, 8 * CHUNK]);
    assert_eq!(counters().mappings, 0);
}

#[test]
fn a_device_runs_out_of_memory() {
    let _m = Machine::start("memory=64MiB");
    let big = create(62 * MIB);
    assert_eq!(try_create(4 * MIB, &DEVICE).0, 2);
    let last = create(2 * MIB);
    assert_eq!(try_new("cuMemAlloc_v2", &[1]).0, 2);
    assert_eq!(
        try_create(
            2 * MIB,
            &Prop {
                location: [1, 1],
                ..DEVICE
            }
        )
        .0,
        0,
        "the other device has its own"
    );
    ok("cuMemRelease", &[last]);
    let small = new("cuMemAlloc_v2", &[1]);
    assert_eq!(try_create(2 * MIB, &DEVICE).0, 2);
    ok("cuMemFree_v2", &[small]);
    ok("cuMemRelease", &[big]);
    ok("hbmsim_oom_at", &[0, 8 * MIB]);
    assert_eq!(try_create(10 * MIB, &DEVICE).0, 2);
    ok("cuMemRelease", &[create(8 * MIB)]);
}

#[test]
fn host_memory_can_back_a_chunk() {
    let _m = Machine::start("");
    let (code, chunk) = try_create(
        CHUNK,
        &Prop {
            location: [3, 0],
            ..DEVICE
        },
    );
    assert_eq!(code, 0);
    assert_eq!(counters().physical_bytes, 0);
    assert_eq!(counters().host_chunk_bytes, CHUNK);
    let base = reserve(CHUNK);
    assert_eq!(map(base, CHUNK, chunk), 0);
    let descs = [[1, 0, 3], [3, 0, 3]];
    ok("cuMemSetAccess", &[base, CHUNK, descs.as_ptr() as u64, 2]);
    ok("cuMemsetD8_v2", &[base, 3, CHUNK]);
    assert_eq!(read(base, 2), [3, 3]);
    unmapped(base, chunk, CHUNK);
    assert_eq!(
        try_create(
            CHUNK,
            &Prop {
                location: [3, 7],
                ..DEVICE
            }
        )
        .0,
        1
    );
    assert_clean();
}

#[test]
fn peers_need_access_of_their_own() {
    let _m = Machine::start("devices=2");
    let (base, chunk) = mapped(CHUNK);
    ok(
        "cuCtxPushCurrent_v2",
        &[new("cuDevicePrimaryCtxRetain", &[1])],
    );
    let other = stream(1);
    assert_eq!(call("cuMemsetD8Async", &[base, 1, 64, other]), 1);
    assert_eq!(grant(base, CHUNK, 1, 3), 0);
    ok("cuMemsetD8Async", &[base, 1, 64, other]);
    ok("cuStreamSynchronize", &[other]);
    let location = [1, 1];
    let mut flags = 0u64;
    ok(
        "cuMemGetAccess",
        &[&raw mut flags as u64, location.as_ptr() as u64, base],
    );
    assert_eq!(flags, 3);
    ok("cuStreamDestroy_v2", &[other]);
    unmapped(base, chunk, CHUNK);
    let _ = call("cuCtxPopCurrent_v2", &[0]);
}

#[test]
fn fabric_is_refused_where_it_is_only_advertised() {
    let attribute = || {
        let mut value = 0i32;
        ok("cuDeviceGetAttribute", &[&raw mut value as u64, 128, 0]);
        value
    };
    let fabric = Prop {
        handles: 8,
        ..DEVICE
    };
    let m = Machine::start("");
    assert_eq!((attribute(), try_create(CHUNK, &fabric).0), (1, 800));
    drop(m);
    let m = Machine::start("fabric=none");
    assert_eq!((attribute(), try_create(CHUNK, &fabric).0), (0, 801));
    drop(m);
    let _m = Machine::start("fabric=works");
    let (code, chunk) = try_create(CHUNK, &fabric);
    assert_eq!((attribute(), code), (1, 0));
    let mut data = [0u8; 64];
    ok(
        "cuMemExportToShareableHandle",
        &[data.as_mut_ptr() as u64, chunk, 8, 0],
    );
    let copy = new(
        "cuMemImportFromShareableHandle",
        &[data.as_mut_ptr() as u64, 8],
    );
    ok("cuMemRelease", &[copy]);
    ok("cuMemRelease", &[chunk]);
    assert_clean();
}

const CHILD: &str = "HBMSIM_TEST_IMPORTS_FD";

#[test]
fn another_process_maps_an_exported_chunk() {
    if let Ok(fd) = std::env::var(CHILD) {
        return import_and_check(fd.parse().unwrap());
    }
    let _m = Machine::start("");
    let (code, chunk) = try_create(
        CHUNK,
        &Prop {
            handles: 1,
            ..DEVICE
        },
    );
    assert_eq!(code, 0);
    let base = reserve(CHUNK);
    assert_eq!(map(base, CHUNK, chunk), 0);
    assert_eq!(grant(base, CHUNK, 0, 3), 0);
    ok("cuMemsetD8_v2", &[base, 0x5c, CHUNK]);
    ok("cuCtxSynchronize", &[]);
    let mut fd = -1i32;
    ok(
        "cuMemExportToShareableHandle",
        &[&raw mut fd as u64, chunk, 1, 0],
    );
    let own = new("cuMemImportFromShareableHandle", &[fd as u64, 1]);
    assert_eq!(counters().chunks, 1, "the same chunk");
    ok("cuMemRelease", &[own]);
    // SAFETY: the descriptor is ours; the child has to inherit it.
    unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    let test = "another_process_maps_an_exported_chunk";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact"])
        .env(CHILD, fd.to_string())
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stdout)
    );
    assert_eq!(read(base + 64, 1), [0x77], "what the child wrote");
    // SAFETY: ours to close.
    unsafe { libc::close(fd) };
    unmapped(base, chunk, CHUNK);
    assert_clean();
}

/// What could leave the process takes no descriptor until it does: a program has some thousand at most.
#[test]
fn a_chunk_that_may_be_exported_needs_no_descriptor() {
    let _m = Machine::start("memory=64GiB");
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let shareable = Prop {
        handles: 1,
        ..DEVICE
    };
    let first = try_create(CHUNK, &shareable).1;
    let before = open();
    let chunks: Vec<u64> = (0..3000)
        .map(|_| {
            let (code, chunk) = try_create(CHUNK, &shareable);
            assert_eq!(code, 0);
            chunk
        })
        .collect();
    assert!(open() < before + 50, "{} descriptors", open());
    for chunk in chunks {
        ok("cuMemRelease", &[chunk]);
    }
    ok("cuMemRelease", &[first]);
    assert_clean();
}

/// Bytes, aliases and work under way are there after a chunk has left as before.
#[test]
fn exporting_changes_nothing_for_the_exporter() {
    let _m = Machine::start("delay_us=20000");
    let (code, chunk) = try_create(
        3 * CHUNK,
        &Prop {
            handles: 1,
            ..DEVICE
        },
    );
    assert_eq!(code, 0);
    let base = reserve(8 * CHUNK);
    let other = base + 4 * CHUNK;
    for place in [base, other] {
        assert_eq!(map(place, 3 * CHUNK, chunk), 0);
        assert_eq!(grant(place, 3 * CHUNK, 0, 3), 0);
    }
    ok("cuMemsetD8_v2", &[base, 1, 100]);
    ok("cuMemsetD8_v2", &[base + 2 * CHUNK, 2, CHUNK]);
    let busy = stream(1);
    ok("cuMemsetD8Async", &[other + CHUNK, 3, CHUNK, busy]);
    let mut fd = -1i32;
    ok(
        "cuMemExportToShareableHandle",
        &[&raw mut fd as u64, chunk, 1, 0],
    );
    ok("cuStreamSynchronize", &[busy]);
    for place in [base, other] {
        assert_eq!(read(place, 1), [1]);
        assert_eq!(read(place + 100, 1), [0]);
        assert_eq!(read(place + CHUNK, 1), [3]);
        assert_eq!(read(place + 2 * CHUNK - 1, 1), [3]);
        assert_eq!(read(place + 3 * CHUNK - 1, 1), [2]);
    }
    ok("cuMemsetD8_v2", &[base + 7, 9, 1]);
    assert_eq!(read(other + 7, 1), [9]);
    // Again, and in: one chunk all the while.
    let mut again = -1i32;
    ok(
        "cuMemExportToShareableHandle",
        &[&raw mut again as u64, chunk, 1, 0],
    );
    let own = new("cuMemImportFromShareableHandle", &[again as u64, 1]);
    assert_eq!(
        (counters().chunks, counters().chunk_bytes),
        (1, 3 * CHUNK),
        "the same chunk"
    );
    for handle in [own, chunk] {
        ok("cuMemRelease", &[handle]);
    }
    for fd in [fd, again] {
        // SAFETY: ours to close.
        unsafe { libc::close(fd) };
    }
    for place in [base, other] {
        ok("cuMemUnmap", &[place, 3 * CHUNK]);
    }
    ok("cuMemAddressFree", &[base, 8 * CHUNK]);
    ok("cuStreamDestroy_v2", &[busy]);
    assert_clean();
}

fn import_and_check(fd: i32) {
    let _m = Machine::start("");
    let chunk = new("cuMemImportFromShareableHandle", &[fd as u64, 1]);
    assert_eq!(counters().physical_bytes, 0, "the exporter is charged");
    let base = reserve(CHUNK);
    assert_eq!(map(base, CHUNK, chunk), 0);
    assert_eq!(grant(base, CHUNK, 0, 3), 0);
    assert_eq!(read(base, 1), [0x5c]);
    ok("cuMemsetD8_v2", &[base + 64, 0x77, 1]);
    ok("cuCtxSynchronize", &[]);
    unmapped(base, chunk, CHUNK);
}

#[test]
fn a_huge_reservation_costs_nothing() {
    let _m = Machine::start("");
    let base = reserve(1 << 46);
    let chunk = create(CHUNK);
    let high = base + (1 << 46) - CHUNK;
    assert_eq!(map(high, CHUNK, chunk), 0);
    assert_eq!(grant(high, CHUNK, 0, 3), 0);
    ok("cuMemsetD8_v2", &[high, 1, CHUNK]);
    ok("cuCtxSynchronize", &[]);
    ok("cuMemUnmap", &[high, CHUNK]);
    ok("cuMemRelease", &[chunk]);
    ok("cuMemAddressFree", &[base, 1 << 46]);
    assert_clean();
}
