//! Streams and events: order, holding back, what waits for what, and work whose memory goes away under it.

mod common;
use common::*;
use std::time::{Duration, Instant};

const NON_BLOCKING: u64 = 1;

fn pinned(len: u64) -> u64 {
    new("cuMemHostAlloc", &[len, 0])
}

fn fill(address: u64, value: u64, len: u64, stream: u64) {
    ok("cuMemsetD8Async", &[address, value, len, stream]);
}

fn byte(address: u64) -> u8 {
    // SAFETY: pinned memory of the test's own.
    unsafe { std::ptr::read_volatile(address as *const u8) }
}

fn query(stream: u64) -> i32 {
    call("cuStreamQuery", &[stream])
}

#[test]
fn work_runs_in_stream_order() {
    let _m = Machine::start("");
    let (a, out) = (stream(NON_BLOCKING), pinned(64));
    let memory = new("cuMemAlloc_v2", &[MIB]);
    for value in 0..200 {
        fill(memory, value, MIB, a);
    }
    ok("cuMemcpyDtoHAsync_v2", &[out, memory, 64, a]);
    ok("cuStreamSynchronize", &[a]);
    assert_eq!(byte(out + 63), 199);
    ok("cuMemFree_v2", &[memory]);
    ok("cuMemFreeHost", &[out]);
    ok("cuStreamDestroy_v2", &[a]);
    assert_clean();
}

#[test]
fn a_held_stream_does_nothing_until_released() {
    let _m = Machine::start("");
    let (a, b, out) = (stream(NON_BLOCKING), stream(NON_BLOCKING), pinned(64));
    let done = event();
    ok("hbmsim_hold", &[a]);
    fill(out, 1, 64, a);
    ok("cuEventRecord", &[done, a]);
    assert_eq!(
        (query(a), call("cuEventQuery", &[done]), query(b)),
        (600, 600, 0)
    );
    ok("cuStreamWaitEvent", &[b, done, 0]);
    fill(out, 2, 64, b);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((byte(out), query(b)), (0, 600));
    ok("hbmsim_release", &[a]);
    ok("cuStreamSynchronize", &[b]);
    assert_eq!(
        (byte(out), query(a), call("cuEventQuery", &[done])),
        (2, 0, 0)
    );
}

#[test]
fn the_legacy_stream_orders_blocking_streams_only() {
    let _m = Machine::start("");
    let (blocking, free, out) = (stream(0), stream(NON_BLOCKING), pinned(64));
    ok("hbmsim_hold", &[blocking]);
    fill(out, 1, 1, blocking);
    fill(out, 2, 1, 0);
    fill(out + 1, 3, 1, free);
    ok("cuStreamSynchronize", &[free]);
    assert_eq!(
        (byte(out), byte(out + 1), query(0), query(1)),
        (0, 3, 600, 600)
    );
    let other = stream(0);
    fill(out + 2, 4, 1, other);
    assert_eq!(
        query(other),
        600,
        "a blocking stream follows the legacy one"
    );
    ok("hbmsim_release", &[blocking]);
    ok("cuStreamSynchronize", &[0]);
    ok("cuStreamSynchronize", &[other]);
    assert_eq!((byte(out), byte(out + 2)), (2, 4));
}

#[test]
fn each_thread_has_its_default_stream() {
    let _m = Machine::start("");
    let mine = get("cuStreamGetId", &[2]);
    let context = get("cuCtxGetCurrent", &[]);
    let other = std::thread::spawn(move || {
        ok("cuCtxSetCurrent", &[context]);
        get("cuStreamGetId", &[2])
    });
    assert_ne!(mine, other.join().unwrap());
    assert_eq!(mine, get("cuStreamGetId", &[2]));
    assert_eq!(get("cuStreamGetId", &[0]), get("cuStreamGetId", &[1]));
}

#[test]
fn a_handle_comes_back_but_not_its_id() {
    let _m = Machine::start("");
    let first = stream(0);
    let id = get("cuStreamGetId", &[first]);
    ok("cuStreamDestroy_v2", &[first]);
    assert_eq!(query(first), 400);
    let second = stream(0);
    assert_eq!(first, second);
    assert_ne!(id, get("cuStreamGetId", &[second]));
}

#[test]
fn freeing_plain_memory_waits_and_unmapping_does_not() {
    let _m = Machine::start("");
    let a = stream(NON_BLOCKING);
    let memory = new("cuMemAlloc_v2", &[MIB]);
    let (base, chunk) = mapped(CHUNK);
    ok("hbmsim_spin", &[a, 0, 0]);
    ok("cuMemUnmap", &[base, CHUNK]);
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        ok("hbmsim_spin_stop", &[a]);
    });
    let begun = Instant::now();
    ok("cuMemFree_v2", &[memory]);
    assert!(begun.elapsed() > Duration::from_millis(40));
    stopper.join().unwrap();
    ok("cuMemRelease", &[chunk]);
    ok("cuMemAddressFree", &[base, CHUNK]);
    ok("cuStreamDestroy_v2", &[a]);
    assert_clean();
}

#[test]
fn unmapping_under_a_kernel_is_a_fault_that_sticks() {
    let _m = Machine::start("");
    let (a, b) = (stream(NON_BLOCKING), stream(NON_BLOCKING));
    let (base, chunk) = mapped(2 * CHUNK);
    ok("hbmsim_spin", &[a, base + CHUNK, 64]);
    assert_eq!(faults().0, 0);
    ok("cuMemUnmap", &[base, 2 * CHUNK]);
    let (count, message) = faults();
    assert_eq!(count, 1);
    assert!(
        message.contains("cuMemUnmap") && message.contains("kernel"),
        "{message}"
    );
    assert_eq!(
        (
            call("cuStreamSynchronize", &[a]),
            query(b),
            call("cuCtxSynchronize", &[])
        ),
        (700, 700, 700)
    );
    assert_eq!(try_new("cuMemAlloc_v2", &[64]).0, 700);
    assert_eq!(
        try_create(CHUNK, &DEVICE).0,
        0,
        "chunks belong to no context"
    );
    call("hbmsim_faults_clear", &[]);
    ok("cuCtxSynchronize", &[]);
    ok("cuMemRelease", &[chunk]);
}

/// Only the address counts: work at one address of a chunk is nothing to another address of it.
#[test]
fn an_alias_may_go_while_its_chunk_is_used_elsewhere() {
    let _m = Machine::start("");
    let (base, chunk) = (reserve(6 * CHUNK), create(2 * CHUNK));
    let places = [base, base + 2 * CHUNK, base + 4 * CHUNK];
    for place in places {
        assert_eq!(map(place, 2 * CHUNK, chunk), 0);
        assert_eq!(grant(place, 2 * CHUNK, 0, 3), 0);
    }
    let (kernel, copy) = (stream(1), stream(1));
    ok("hbmsim_spin", &[kernel, places[1] + CHUNK, 1]);
    ok("hbmsim_hold", &[copy]);
    ok("cuMemsetD8Async", &[places[1], 7, CHUNK, copy]);
    ok("cuMemUnmap", &[places[0], 2 * CHUNK]);
    assert_eq!(faults(), (0, String::new()));
    ok("cuMemUnmap", &[places[1], 2 * CHUNK]);
    let (count, message) = faults();
    assert_eq!(count, 2, "{message}");
    assert!(message.contains("used by a queued kernel"), "{message}");
    assert!(message.contains("used by a queued fill"), "{message}");
    call("hbmsim_faults_clear", &[]);
    ok("hbmsim_spin_stop", &[kernel]);
    ok("hbmsim_release", &[copy]);
    ok("cuMemUnmap", &[places[2], 2 * CHUNK]);
    ok("cuMemRelease", &[chunk]);
    ok("cuMemAddressFree", &[base, 6 * CHUNK]);
    for stream in [kernel, copy] {
        ok("cuStreamDestroy_v2", &[stream]);
    }
    assert_clean();
}

#[test]
fn a_queued_copy_whose_memory_went_is_a_fault() {
    let _m = Machine::start("");
    let a = stream(NON_BLOCKING);
    let (base, _) = mapped(CHUNK);
    let (other, _) = mapped(CHUNK);
    ok("hbmsim_hold", &[a]);
    ok("cuMemcpyDtoDAsync_v2", &[other, base, CHUNK, a]);
    ok("cuMemUnmap", &[other, CHUNK]);
    assert_eq!(faults().0, 1);
    ok("hbmsim_release", &[a]);
    assert_eq!(call("cuStreamSynchronize", &[a]), 700);
    call("hbmsim_reset", &[]);
    assert_eq!(faults().0, 0);
    ok("cuCtxSetCurrent", &[new("cuDevicePrimaryCtxRetain", &[0])]);
    ok("cuCtxSynchronize", &[]);
}

#[test]
fn addresses_are_checked_at_the_call() {
    let _m = Machine::start("");
    let (a, out) = (stream(NON_BLOCKING), pinned(4096));
    let bare = reserve(CHUNK);
    let memory = new("cuMemAlloc_v2", &[4096]);
    assert_eq!(call("cuMemcpyHtoDAsync_v2", &[bare, out, 64, a]), 1);
    assert_eq!(
        call("cuMemsetD8Async", &[memory + 4090, 0, 64, a]),
        1,
        "past the end"
    );
    ok("cuMemFree_v2", &[memory]);
    assert_eq!(call("cuMemsetD8Async", &[memory, 0, 64, a]), 1, "freed");
    assert_eq!(call("cuMemFree_v2", &[memory]), 1, "freed twice");
    assert_eq!(faults().0, 0);
}

#[test]
fn an_order_point_covers_every_stream_of_the_context() {
    let _m = Machine::start("");
    let context = get("cuCtxGetCurrent", &[]);
    let (a, b, point) = (stream(NON_BLOCKING), stream(0), event());
    ok("cuCtxRecordEvent", &[context, point]);
    ok("cuEventQuery", &[point]);
    ok("hbmsim_spin", &[a, 0, 0]);
    ok("hbmsim_spin", &[b, 0, 0]);
    ok("cuCtxRecordEvent", &[context, point]);
    assert_eq!(call("cuEventQuery", &[point]), 600);
    ok("hbmsim_spin_stop", &[a]);
    assert_eq!(call("cuEventQuery", &[point]), 600);
    ok("hbmsim_spin_stop", &[b]);
    ok("cuEventQuery", &[point]);
}

#[test]
fn an_order_point_during_capture_spoils_it() {
    let _m = Machine::start("");
    let context = get("cuCtxGetCurrent", &[]);
    let (a, point) = (stream(NON_BLOCKING), event());
    ok("cuStreamBeginCapture_v2", &[a, 2]);
    assert_eq!(call("cuCtxRecordEvent", &[context, point]), 900);
    let mut graph = 0u64;
    assert_eq!(call("cuStreamEndCapture", &[a, &raw mut graph as u64]), 901);
}

#[test]
fn small_pageable_sources_are_staged_and_large_copies_wait() {
    let _m = Machine::start("");
    let a = stream(NON_BLOCKING);
    let memory = new("cuMemAlloc_v2", &[4 * MIB]);
    let mut source = vec![1u8; 4096];
    ok("hbmsim_hold", &[a]);
    ok(
        "cuMemcpyHtoDAsync_v2",
        &[memory, source.as_ptr() as u64, 4096, a],
    );
    source.fill(2);
    ok("hbmsim_release", &[a]);
    ok("cuStreamSynchronize", &[a]);
    assert_eq!(read(memory, 1), [1]);
    let large = vec![3u8; 4 << 20];
    ok(
        "cuMemcpyHtoDAsync_v2",
        &[memory, large.as_ptr() as u64, 4 * MIB, a],
    );
    ok("cuStreamQuery", &[a]);
    assert_eq!(read(memory + 4 * MIB - 1, 1), [3]);
}

extern "C" fn set_flag(data: *mut std::ffi::c_void) {
    std::thread::sleep(Duration::from_millis(20));
    // SAFETY: the test's own flag, alive until it has synchronised.
    unsafe {
        (*(data as *const std::sync::atomic::AtomicBool))
            .store(true, std::sync::atomic::Ordering::Release)
    };
}

#[test]
fn a_host_function_runs_in_order() {
    let _m = Machine::start("");
    let a = stream(NON_BLOCKING);
    let flag = std::sync::atomic::AtomicBool::new(false);
    ok(
        "cuLaunchHostFunc",
        &[a, set_flag as *const () as u64, &raw const flag as u64],
    );
    assert_eq!(query(a), 600);
    ok("cuStreamSynchronize", &[a]);
    assert!(flag.load(std::sync::atomic::Ordering::Acquire));
}

#[test]
fn device_time_follows_the_link() {
    let _m = Machine::start("");
    let (a, from, to) = (stream(NON_BLOCKING), event(), event());
    let (host, memory) = (pinned(64 * MIB), new("cuMemAlloc_v2", &[64 * MIB]));
    ok("cuEventRecord", &[from, a]);
    ok("cuMemcpyHtoDAsync_v2", &[memory, host, 64 * MIB, a]);
    ok("cuEventRecord", &[to, a]);
    ok("cuEventSynchronize", &[to]);
    let mut ms = 0f32;
    ok("cuEventElapsedTime", &[&raw mut ms as u64, from, to]);
    let rate = (64 * MIB) as f64 / (ms as f64 / 1e3) / 1e9;
    assert!((50.0..56.0).contains(&rate), "{rate} GB/s");
    assert!(call64("hbmsim_device_ns", &[a]) > 1_000_000);
}

#[test]
fn a_million_events_are_feasible() {
    let _m = Machine::start("");
    let (a, b, e) = (stream(NON_BLOCKING), stream(NON_BLOCKING), event());
    let names = ["cuEventRecord", "cuStreamWaitEvent", "cuEventQuery"].map(symbol);
    // SAFETY: these take at most three integers.
    let [record, wait, query] = names.map(|f| unsafe {
        std::mem::transmute::<*mut std::ffi::c_void, extern "C" fn(u64, u64, u64) -> i32>(f)
    });
    let begun = Instant::now();
    for _ in 0..100_000 {
        assert_eq!(record(e, a, 0) | wait(b, e, 0) | query(e, 0, 0), 0);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_stream_waits_for_a_word_in_memory() {
    let _m = Machine::start("");
    let (a, b, word) = (stream(NON_BLOCKING), stream(NON_BLOCKING), pinned(64));
    let (memory, done) = (new("cuMemAlloc_v2", &[MIB]), event());
    let write = |value: u32| {
        // SAFETY: pinned memory of the test's own.
        unsafe { std::ptr::write_volatile(word as *mut u32, value) }
    };
    ok("cuStreamWaitValue32_v2", &[a, word, 2, 0]);
    ok("hbmsim_kernel", &[a, memory, MIB]);
    ok("cuEventRecord", &[done, a]);
    ok("cuStreamWaitValue32_v2", &[a, word, 4, 0]);
    assert_eq!((query(a), call("cuEventQuery", &[done])), (600, 600));
    write(1);
    assert_eq!(call("cuEventQuery", &[done]), 600);
    write(3);
    assert_eq!((call("cuEventQuery", &[done]), query(a)), (0, 600));
    let started = Instant::now();
    let soon = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        // SAFETY: as above; the test waits for this thread.
        unsafe { std::ptr::write_volatile(word as *mut u32, 9) }
    });
    ok("cuStreamSynchronize", &[a]);
    assert!(started.elapsed() >= Duration::from_millis(19));
    soon.join().unwrap();
    assert_eq!(query(b), 0);
    assert_eq!(call("cuStreamWaitValue32_v2", &[a, word + 2, 1, 0]), 1);
    assert_eq!(call("cuStreamWaitValue32_v2", &[a, word, 1, 7]), 1);
    assert_eq!(call("cuStreamWaitValue32_v2", &[a, 4096, 1, 0]), 1);
    let nothing = reserve(2 * MIB);
    assert_eq!(call("hbmsim_kernel", &[a, nothing, 1]), 1);
    ok("cuMemAddressFree", &[nothing, 2 * MIB]);
    assert_eq!(faults().0, 0);
    ok("cuMemFree_v2", &[memory]);
    ok("cuMemFreeHost", &[word]);
    ok("cuEventDestroy_v2", &[done]);
    for stream in [a, b] {
        ok("cuStreamDestroy_v2", &[stream]);
    }
    assert_clean();
}

#[test]
fn a_kernel_behind_a_word_uses_its_range_until_then() {
    let _m = Machine::start("");
    let (a, word) = (stream(NON_BLOCKING), pinned(64));
    let (base, _) = mapped(2 * MIB);
    ok("cuStreamWaitValue32_v2", &[a, word, 1, 0]);
    ok("hbmsim_kernel", &[a, base, 2 * MIB]);
    ok("cuMemUnmap", &[base, 2 * MIB]);
    let (count, text) = faults();
    assert_eq!(count, 1, "{text}");
    assert!(text.contains("queued kernel"), "{text}");
}
