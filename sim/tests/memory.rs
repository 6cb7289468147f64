//! Managed, pinned and stream-ordered memory, and what the driver knows of an address.

mod common;
use common::*;
use std::time::{Duration, Instant};

const ADVICE_READ_MOSTLY: u64 = 1;
const ADVICE_PREFERRED: u64 = 3;
const ADVICE_ACCESSED_BY: u64 = 5;

/// A location struct as it is passed: kind in the low half, number in the high one.
fn location(kind: u32, id: i32) -> u64 {
    kind as u64 | (id as u32 as u64) << 32
}

fn advise(base: u64, len: u64, advice: u64, kind: u32, id: i32) -> i32 {
    call("cuMemAdvise_v2", &[base, len, advice, location(kind, id)])
}

fn prefetch(base: u64, len: u64, kind: u32, id: i32, stream: u64) -> i32 {
    call(
        "cuMemPrefetchAsync_v2",
        &[base, len, location(kind, id), 0, stream],
    )
}

#[track_caller]
fn attribute<const N: usize>(base: u64, len: u64, which: u64) -> [i32; N] {
    let mut words = [9i32; N];
    let function = symbol("cuMemRangeGetAttribute");
    // SAFETY: the driver's signature.
    let function: extern "C" fn(*mut i32, usize, u64, u64, u64) -> i32 =
        unsafe { std::mem::transmute(function) };
    assert_eq!(function(words.as_mut_ptr(), N * 4, which, base, len), 0);
    words
}

#[test]
fn placement_reads_back() {
    let _m = Machine::start("");
    let a = stream(1);
    let base = new("cuMemAllocManaged", &[8 * MIB, 1]);
    assert_eq!(
        (attribute(base, 8 * MIB, 2), attribute(base, 8 * MIB, 4)),
        ([-2], [-2])
    );
    assert_eq!(advise(base, 4 * MIB, ADVICE_PREFERRED, 1, 1), 0);
    assert_eq!(advise(base, 8 * MIB, ADVICE_ACCESSED_BY, 2, 0), 0);
    assert_eq!(advise(base, 8 * MIB, ADVICE_ACCESSED_BY, 1, 0), 0);
    assert_eq!(advise(base, MIB, ADVICE_READ_MOSTLY, 1, 0), 0);
    assert_eq!(attribute(base, 4 * MIB, 2), [1]);
    assert_eq!(attribute(base, 8 * MIB, 2), [-2], "not the same everywhere");
    assert_eq!(attribute(base, 8 * MIB, 3), [0, -1, -2]);
    assert_eq!(
        (attribute(base, MIB, 1), attribute(base, 2 * MIB, 1)),
        ([1], [0])
    );
    assert_eq!(
        (attribute(base, MIB, 5), attribute(base, MIB, 6)),
        ([1], [1])
    );
    ok("hbmsim_hold", &[a]);
    assert_eq!(prefetch(base, 8 * MIB, 1, 0, a), 0);
    assert_eq!(attribute(base, 8 * MIB, 4), [-2], "not yet");
    ok("hbmsim_release", &[a]);
    ok("cuStreamSynchronize", &[a]);
    assert_eq!(
        (attribute(base, 8 * MIB, 4), attribute(base, 8 * MIB, 7)),
        ([0], [1])
    );
    assert_eq!(prefetch(base, 8 * MIB, 2, 0, a), 0);
    ok("cuStreamSynchronize", &[a]);
    assert_eq!(attribute(base, 8 * MIB, 4), [-1]);
    ok("cuMemFree_v2", &[base]);
    ok("cuStreamDestroy_v2", &[a]);
    assert_clean();
}

#[test]
fn managed_arguments_are_checked() {
    let _m = Machine::start("");
    assert_eq!(try_new("cuMemAllocManaged", &[0, 1]).0, 1);
    assert_eq!(try_new("cuMemAllocManaged", &[MIB, 4]).0, 1);
    let base = new("cuMemAllocManaged", &[MIB, 1]);
    assert_eq!(advise(base, 0, ADVICE_PREFERRED, 1, 0), 1);
    assert_eq!(advise(base, 2 * MIB, ADVICE_PREFERRED, 1, 0), 1);
    assert_eq!(
        advise(base, MIB, ADVICE_ACCESSED_BY, 3, 0),
        1,
        "device or host only"
    );
    assert_eq!(prefetch(base, MIB, 1, 9, 0), 101);
    let plain = new("cuMemAlloc_v2", &[MIB]);
    assert_eq!(advise(plain, MIB, ADVICE_PREFERRED, 1, 0), 1);
    let old = symbol("cuMemAdvise");
    // SAFETY: the driver's old signature.
    let old: extern "C" fn(u64, usize, i32, i32) -> i32 = unsafe { std::mem::transmute(old) };
    assert_eq!(old(base, 1 << 20, 3, -1), 0);
    assert_eq!(attribute(base, MIB, 2), [-1]);
}

#[test]
fn without_concurrent_access_a_gpu_cannot_be_advised() {
    let _m = Machine::start("concurrent_managed=0");
    let base = new("cuMemAllocManaged", &[MIB, 1]);
    assert_eq!(advise(base, MIB, ADVICE_PREFERRED, 1, 0), 101);
    assert_eq!(prefetch(base, MIB, 1, 0, 0), 101);
    assert_eq!(advise(base, MIB, ADVICE_ACCESSED_BY, 2, 0), 0);
}

#[test]
fn a_coherent_machine_takes_advice_on_any_memory() {
    let _m = Machine::start("coherent=1");
    let memory = vec![0u8; 1 << 20];
    assert_eq!(
        advise(memory.as_ptr() as u64, 1 << 20, ADVICE_PREFERRED, 1, 0),
        0
    );
    let mut value = 0i32;
    ok("cuDeviceGetAttribute", &[&raw mut value as u64, 100, 0]);
    assert_eq!(value, 1);
}

#[test]
fn freeing_pinned_memory_waits() {
    let _m = Machine::start("");
    let a = stream(1);
    let base = new("cuMemHostAlloc", &[4096, 0]);
    ok("hbmsim_spin", &[a, base, 64]);
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        ok("hbmsim_spin_stop", &[a]);
    });
    let begun = Instant::now();
    ok("cuMemFreeHost", &[base]);
    assert!(begun.elapsed() > Duration::from_millis(40));
    stopper.join().unwrap();
    assert_eq!(call("cuMemFreeHost", &[base]), 1);
    ok("cuStreamDestroy_v2", &[a]);
    assert_clean();
}

#[test]
fn one_copy_stays_in_one_registration() {
    let _m = Machine::start("");
    let a = stream(1);
    let buffer = vec![1u8; 4 << 20];
    let at = (buffer.as_ptr() as u64).next_multiple_of(4096);
    ok("cuMemHostRegister_v2", &[at, MIB, 0]);
    ok("cuMemHostRegister_v2", &[at + MIB, MIB, 0]);
    assert_eq!(call("cuMemHostRegister_v2", &[at + 4096, 4096, 0]), 712);
    assert_eq!(counters().registered_bytes, 2 * MIB);
    let memory = new("cuMemAlloc_v2", &[4 * MIB]);
    ok("cuMemcpyHtoDAsync_v2", &[memory, at, MIB, a]);
    assert_eq!(
        call("cuMemcpyHtoDAsync_v2", &[memory, at + MIB - 4096, 8192, a]),
        1
    );
    assert_eq!(get_device_pointer(at + 64), at + 64);
    assert_eq!(call("cuMemHostUnregister", &[at + 64]), 1);
    ok("cuMemHostUnregister", &[at]);
    assert_eq!(call("cuMemHostUnregister", &[at]), 713);
    ok("cuMemHostUnregister", &[at + MIB]);
    assert_eq!(
        call("cuMemHostRegister_v2", &[4096, 4096, 0]),
        1,
        "not memory"
    );
}

fn get_device_pointer(address: u64) -> u64 {
    new("cuMemHostGetDevicePointer_v2", &[address, 0])
}

fn pool_attribute(pool: u64, which: u64) -> u64 {
    get("cuMemPoolGetAttribute", &[pool, which])
}

const RESERVED: u64 = 5;
const USED: u64 = 7;
const THRESHOLD: u64 = 4;

#[test]
fn a_pool_keeps_what_its_threshold_says() {
    let _m = Machine::start("");
    let a = stream(1);
    let pool = new("cuDeviceGetDefaultMemPool", &[0]);
    let (x, y) = (
        new("cuMemAllocAsync", &[1000, a]),
        new("cuMemAllocAsync", &[33 * MIB, a]),
    );
    assert_eq!(
        (pool_attribute(pool, RESERVED), pool_attribute(pool, USED)),
        (64 * MIB, 33 * MIB + 1000)
    );
    ok("cuMemFreeAsync", &[x, a]);
    ok("cuMemFreeAsync", &[y, a]);
    assert_eq!(
        (pool_attribute(pool, RESERVED), pool_attribute(pool, USED)),
        (64 * MIB, 0)
    );
    ok("cuStreamSynchronize", &[a]);
    assert_eq!(pool_attribute(pool, RESERVED), 0);
    let keep = u64::MAX;
    ok(
        "cuMemPoolSetAttribute",
        &[pool, THRESHOLD, &raw const keep as u64],
    );
    let z = new("cuMemAllocAsync", &[100 * MIB, a]);
    ok("cuMemFreeAsync", &[z, a]);
    ok("cuStreamSynchronize", &[a]);
    assert_eq!(pool_attribute(pool, RESERVED), 128 * MIB);
    assert_eq!(counters().async_reserved_bytes, 128 * MIB);
    ok("cuMemPoolTrimTo", &[pool, 64 * MIB]);
    assert_eq!(pool_attribute(pool, RESERVED), 64 * MIB);
    ok("cuMemPoolTrimTo", &[pool, 0]);
    ok("cuStreamDestroy_v2", &[a]);
    assert_clean();
}

#[test]
fn pool_memory_is_reused_where_the_order_allows() {
    let _m = Machine::start("");
    let (a, b) = (stream(1), stream(1));
    let x = new("cuMemAllocAsync", &[MIB, a]);
    ok("hbmsim_spin", &[a, x, MIB]);
    ok("cuMemFreeAsync", &[x, a]);
    let same = new("cuMemAllocAsync", &[MIB, a]);
    assert_eq!(same, x, "behind its own work");
    ok("cuMemFreeAsync", &[same, a]);
    let other = new("cuMemAllocAsync", &[MIB, b]);
    assert_ne!(other, x, "the work is not done");
    ok("hbmsim_spin_stop", &[a]);
    ok("cuMemFreeAsync", &[other, b]);
    let later = new("cuMemAllocAsync", &[2 * MIB, b]);
    assert!(later <= x.max(other));
    assert_eq!(call("cuMemFreeAsync", &[later + 512, b]), 1);
    ok("cuMemFreeAsync", &[later, b]);
    assert_eq!(call("cuMemFreeAsync", &[later, b]), 1, "freed twice");
}

#[repr(C)]
struct PoolProps {
    kind: i32,
    handles: u32,
    location: [i32; 2],
    win32: u64,
    max_size: u64,
    usage: u16,
    rest: [u8; 54],
}

#[test]
fn a_pool_of_ones_own_ends_with_its_last_block() {
    let _m = Machine::start("");
    let a = stream(1);
    let props = PoolProps {
        kind: 1,
        handles: 0,
        location: [1, 0],
        win32: 0,
        max_size: 64 * MIB,
        usage: 0,
        rest: [0; 54],
    };
    let pool = new("cuMemPoolCreate", &[&raw const props as u64]);
    assert_eq!(
        try_new("cuMemAllocFromPoolAsync", &[128 * MIB, pool, a]).0,
        2
    );
    let x = new("cuMemAllocFromPoolAsync", &[MIB, pool, a]);
    ok("cuMemsetD8Async", &[x, 1, MIB, a]);
    ok("cuMemPoolDestroy", &[pool]);
    assert_eq!(counters().physical_bytes, 32 * MIB);
    ok("cuMemFreeAsync", &[x, a]);
    ok("cuStreamSynchronize", &[a]);
    assert_eq!(counters().physical_bytes, 0);
    ok("cuStreamDestroy_v2", &[a]);
    assert_clean();
}

#[test]
fn pools_give_way_before_memory_runs_out() {
    let _m = Machine::start("memory=256MiB");
    let a = stream(1);
    let pool = new("cuDeviceGetDefaultMemPool", &[0]);
    let keep = u64::MAX;
    ok(
        "cuMemPoolSetAttribute",
        &[pool, THRESHOLD, &raw const keep as u64],
    );
    let x = new("cuMemAllocAsync", &[200 * MIB, a]);
    assert_eq!(try_new("cuMemAllocAsync", &[100 * MIB, a]).0, 2);
    ok("cuMemFreeAsync", &[x, a]);
    ok("cuStreamSynchronize", &[a]);
    let plain = new("cuMemAlloc_v2", &[200 * MIB]);
    ok("cuMemFree_v2", &[plain]);
}

#[test]
fn pointers_are_known() {
    let _m = Machine::start("");
    let a = stream(1);
    let pooled = new("cuMemAllocAsync", &[1000, a]);
    let (base, _) = mapped(2 * CHUNK);
    let things = [
        (new("cuMemAlloc_v2", &[1000]), 2, 0, 1000),
        (new("cuMemAllocManaged", &[1000, 1]), 2, 1, 1000),
        (new("cuMemHostAlloc", &[1000, 0]), 1, 0, 1000),
        (pooled, 2, 0, 1000),
        (base, 2, 0, 2 * CHUNK),
    ];
    for (start, kind, managed, size) in things {
        let one = |which| new("cuPointerGetAttribute", &[which, start + 100]);
        assert_eq!(
            (one(2), one(8), one(9), one(11), one(12)),
            (kind, managed, 0, start, size)
        );
    }
    let stray = 0u64;
    assert_eq!(
        try_new("cuPointerGetAttribute", &[2, &raw const stray as u64]).0,
        1
    );
}

#[test]
fn memory_of_every_form_is_added_up_and_its_peak_kept() {
    let _m = Machine::start("");
    let counted = || (counters().memory_bytes, counters().peak_memory_bytes);
    let a = stream(1);
    let plain = new("cuMemAlloc_v2", &[1000]);
    let managed = new("cuMemAllocManaged", &[3 * MIB, 1]);
    let pinned = new("cuMemHostAlloc", &[5000, 0]);
    assert_eq!(counted(), (3 * MIB + 6000, 3 * MIB + 6000));
    let pooled = new("cuMemAllocAsync", &[MIB, a]);
    assert_eq!(counted().0, 35 * MIB + 6000, "a pool grows by 32 MiB");
    let chunk = create(2 * MIB);
    assert_eq!(counted().0, 37 * MIB + 6000);
    ok("cuMemRelease", &[chunk]);
    ok("cuMemFreeAsync", &[pooled, a]);
    ok("cuStreamSynchronize", &[a]);
    ok("cuMemFreeHost", &[pinned]);
    ok("cuMemFree_v2", &[managed]);
    ok("cuMemFree_v2", &[plain]);
    assert_eq!(counted(), (0, 37 * MIB + 6000));
    ok("cuStreamDestroy_v2", &[a]);
    assert_clean();
}
