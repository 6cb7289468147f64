//! What a test steers the machine with: configuration, failures on demand, counts, the virtual clock, and the ends of a process.

mod common;
use common::*;

#[test]
fn nothing_works_before_initialisation() {
    let exe = std::env::current_exe().unwrap();
    if std::env::var("HBMSIM_TEST_FRESH").is_err() {
        let child = std::process::Command::new(exe)
            .args(["nothing_works_before_initialisation", "--exact"])
            .env("HBMSIM_TEST_FRESH", "1")
            .env("HBMALLOC_SIM", "devices=3,version=12020")
            .output()
            .unwrap();
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stdout)
        );
        return;
    }
    assert_eq!(try_new("cuMemAlloc_v2", &[64]).0, 3);
    assert_eq!(try_create(CHUNK, &DEVICE).0, 3);
    assert_eq!(new("cuDriverGetVersion", &[]), 12020);
    assert_eq!(call("cuInit", &[1]), 1);
    assert_eq!(
        in_child(|| call("cuInit", &[0])),
        0,
        "a child may start its own"
    );
    ok("cuInit", &[0]);
    assert_eq!(new("cuDeviceGetCount", &[]), 3);
    assert_eq!(try_new("cuMemAlloc_v2", &[64]).0, 201, "no context");
}

#[test]
fn a_bad_configuration_is_told() {
    let _m = Machine::bare("");
    for bad in [
        "devices=many",
        "nonsense=1",
        "memory=12XB",
        "fabric=maybe",
        "devices",
        "granularity=3MiB",
    ] {
        assert_eq!(
            call("hbmsim_configure", &[text(bad).as_ptr() as u64]),
            1,
            "{bad}"
        );
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "a_driver_with_a_bad_environment",
            "--exact",
            "--include-ignored",
        ])
        .env("HBMALLOC_SIM", "devices=many")
        .output()
        .unwrap();
    assert!(child.status.success());
    assert!(String::from_utf8_lossy(&child.stderr).contains("devices=many"));
}

#[test]
#[ignore = "run by a_bad_configuration_is_told with a bad environment"]
fn a_driver_with_a_bad_environment() {
    assert_eq!(call("cuInit", &[0]), 999);
}

#[test]
fn a_machine_without_devices() {
    let _m = Machine::bare("devices=0");
    assert_eq!(
        call("cuInit", &[0]),
        0,
        "initialised before; only a first cuInit tells"
    );
    assert_eq!(new("cuDeviceGetCount", &[]), 0);
    assert_eq!(try_new("cuDeviceGet", &[0]).0, 101);
}

fn fail(call_name: &str, nth: u64, code: u64, times: u64) -> i32 {
    call(
        "hbmsim_fail",
        &[text(call_name).as_ptr() as u64, nth, code, times],
    )
}

#[test]
fn the_nth_call_fails() {
    let _m = Machine::start("");
    assert_eq!(fail("cuMemCreate", 3, 2, 2), 0);
    let codes: Vec<i32> = (0..6).map(|_| try_create(CHUNK, &DEVICE).0).collect();
    assert_eq!(codes, [0, 0, 2, 2, 0, 0]);
    assert_eq!(
        fail("cuMemAlloc", 1, 700, 0),
        0,
        "a name without its version"
    );
    assert_eq!(
        (
            try_new("cuMemAlloc_v2", &[1]).0,
            try_new("cuMemAlloc_v2", &[1]).0
        ),
        (700, 700)
    );
    call("hbmsim_fail_clear", &[]);
    assert_eq!(try_new("cuMemAlloc_v2", &[1]).0, 0);
    assert_eq!(fail("*", 2, 999, 1), 0);
    assert_eq!(
        (
            call("cuCtxSynchronize", &[]),
            call("cuCtxSynchronize", &[]),
            call("cuCtxSynchronize", &[])
        ),
        (0, 999, 0)
    );
    assert_eq!(fail("cuNoSuchCall", 1, 2, 1), 1);
}

#[test]
fn failures_from_the_environment() {
    let _m = Machine::start("fail=cuMemCreate:2:2+cuMemMap:1:1");
    let (base, chunk) = (reserve(CHUNK), create(CHUNK));
    assert_eq!(try_create(CHUNK, &DEVICE).0, 2);
    assert_eq!((map(base, CHUNK, chunk), map(base, CHUNK, chunk)), (1, 0));
}

#[test]
fn calls_are_counted_and_logged() {
    let _m = Machine::start("");
    for _ in 0..5 {
        ok("cuMemFree_v2", &[0]);
    }
    let count = |name: &str| call64("hbmsim_calls", &[text(name).as_ptr() as u64]);
    assert_eq!(
        (count("cuMemFree"), count("cuMemFree_v2"), count("cuMemMap")),
        (5, 5, 0)
    );
    assert!(count("*") >= 7);
    let mut log = vec![0u8; 4096];
    let len = call64("hbmsim_call_log", &[log.as_mut_ptr() as u64, 4096]) as usize;
    let log = std::str::from_utf8(&log[..len]).unwrap();
    assert!(log.lines().any(|line| line == "cuMemFree_v2 5"), "{log}");
}

#[test]
fn the_clock_knows_what_calls_cost() {
    let _m = Machine::start("");
    let cost = |f: &dyn Fn()| {
        let before = call64("hbmsim_virtual_ns", &[]);
        f();
        call64("hbmsim_virtual_ns", &[]) - before
    };
    let (base, small) = (reserve(8 << 30), create(CHUNK));
    assert_eq!(cost(&|| assert_eq!(map(base, CHUNK, small), 0)), 600);
    assert_eq!(cost(&|| assert_eq!(grant(base, CHUNK, 0, 3), 0)), 24_000);
    assert_eq!(cost(&|| ok("cuMemUnmap", &[base, CHUNK])), 16_000);
    assert_eq!(cost(&|| ok("cuMemRelease", &[small])), 9_000);
    assert_eq!(
        cost(&|| assert_eq!(try_create(1 << 30, &DEVICE).0, 0)),
        14_000
    );
    let e = event();
    assert_eq!(cost(&|| ok("cuEventRecord", &[e, 0])), 256);
}

/// Access and unmapping cost by the mapping and by who has access, however many a call takes; creating and releasing by size.
#[test]
fn stitching_costs_what_it_costs_on_a_card() {
    let _m = Machine::start("memory=64GiB");
    let before = std::cell::Cell::new(0);
    let spent = || {
        let now = call64("hbmsim_virtual_ns", &[]);
        now - before.replace(now)
    };
    let sizes = [CHUNK, 256 * MIB, 1 << 30];
    let base = reserve(8 << 30);
    spent();
    let chunks = sizes.map(create);
    assert_eq!(spent(), 7_000 + 9_000 + 14_000, "create");
    let mut at = base;
    for (size, chunk) in sizes.iter().zip(chunks) {
        assert_eq!(map(at, *size, chunk), 0);
        at += size;
    }
    assert!((1_800..=2_100).contains(&spent()), "map");
    let whole = at - base;
    assert_eq!(grant(base, whole, 0, 3), 0);
    assert_eq!(spent(), 24_000 + 38_000 + 63_000, "access, in one call");
    assert_eq!(grant(base, whole, 1, 3), 0);
    assert_eq!(spent(), 24_000 + 38_000 + 63_000, "the same for a peer");
    ok("cuMemUnmap", &[base, whole]);
    assert_eq!(
        spent(),
        2 * (16_000 + 20_000 + 29_000),
        "unmap, in one call"
    );
    for (chunk, cost) in chunks.iter().zip([9_000, 69_000, 255_000]) {
        ok("cuMemRelease", &[*chunk]);
        assert_eq!(spent(), cost, "release");
    }
    let huge = reserve(8 << 40);
    assert!(spent() < 20_000, "8 TiB of addresses");
    ok("cuMemAddressFree", &[huge, 8 << 40]);
    assert!(spent() < 20_000, "and given back");
}

#[test]
fn symbols_follow_version_and_configuration() {
    let has = |name: &str| call64("hbmsim_symbol", &[text(name).as_ptr() as u64]) != 0;
    let m = Machine::start("version=12020,missing=cuMemAdvise_v2+cuMemCreate");
    assert!(has("cuMemMap") && has("cuMemAdvise") && has("hbmsim_counters"));
    assert!(
        !has("cuCtxRecordEvent") && !has("cuMemAdvise_v2") && !has("cuMemCreate") && !has("malloc")
    );
    let proc_address = |name: &str, version: u64| {
        let (mut found, mut status) = (0u64, 9i32);
        let name = text(name);
        ok(
            "cuGetProcAddress_v2",
            &[
                name.as_ptr() as u64,
                &raw mut found as u64,
                version,
                0,
                &raw mut status as u64,
            ],
        );
        (found, status)
    };
    assert_eq!(proc_address("cuCtxRecordEvent", 13000), (0, 1));
    assert_eq!(
        proc_address("cuMemAlloc", 12020),
        (symbol("cuMemAlloc_v2") as u64, 0)
    );
    assert_eq!(
        proc_address("cuMemAdvise", 12020),
        (symbol("cuMemAdvise") as u64, 0)
    );
    drop(m);
    let _m = Machine::start("");
    assert!(has("cuCtxRecordEvent"));
    assert_eq!(
        proc_address("cuMemAdvise", 12020),
        (symbol("cuMemAdvise_v2") as u64, 0)
    );
    assert_eq!(proc_address("cuCtxRecordEvent", 12020), (0, 2));
}

#[test]
fn a_forked_child_has_no_driver() {
    let _m = Machine::start("");
    let (base, chunk) = mapped(CHUNK);
    let code = in_child(|| {
        let codes = [
            call("cuInit", &[0]),
            call("cuMemRelease", &[chunk]),
            call("cuMemUnmap", &[base, CHUNK]),
            try_new("cuMemAlloc_v2", &[1]).0,
            call("hbmsim_hold", &[0]),
        ];
        call("hbmsim_reset", &[]);
        i32::from(codes != [3; 5])
    });
    assert_eq!(code, 0);
    unmapped(base, chunk, CHUNK);
    assert_clean();
}

#[test]
fn after_the_end_every_call_says_so() {
    let _m = Machine::start("");
    let chunk = create(CHUNK);
    call("hbmsim_deinit", &[]);
    assert_eq!(
        (
            call("cuMemRelease", &[chunk]),
            call("cuInit", &[0]),
            call("cuCtxSynchronize", &[])
        ),
        (4, 4, 4)
    );
    assert_eq!(counters().leaks, 1);
    call("hbmsim_reset", &[]);
    ok("cuInit", &[0]);
    assert_clean();
}

#[test]
fn a_process_may_exit_with_work_waiting() {
    let _m = Machine::start("");
    if std::env::var("HBMSIM_TEST_EXITS").is_err() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["a_process_may_exit_with_work_waiting", "--exact"])
            .env("HBMSIM_TEST_EXITS", "1")
            .status()
            .unwrap();
        assert!(child.success());
        return;
    }
    let a = stream(1);
    let memory = new("cuMemAlloc_v2", &[MIB]);
    ok("hbmsim_hold", &[a]);
    ok("cuMemsetD8Async", &[memory, 1, MIB, a]);
    let waiting = std::thread::spawn(move || call("cuStreamSynchronize", &[a]));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!waiting.is_finished());
    std::process::exit(0);
}

#[test]
fn contexts_stack_up() {
    let _m = Machine::start("devices=2");
    let first = new("cuCtxGetCurrent", &[]);
    let second = new("cuDevicePrimaryCtxRetain", &[1]);
    ok("cuCtxPushCurrent_v2", &[second]);
    assert_eq!(new("cuCtxGetDevice", &[]), 1);
    assert_eq!(new("cuCtxPopCurrent_v2", &[]), second);
    assert_eq!(new("cuCtxGetCurrent", &[]), first);
    let (mut flags, mut active) = (0u32, 0i32);
    ok(
        "cuDevicePrimaryCtxGetState",
        &[1, &raw mut flags as u64, &raw mut active as u64],
    );
    assert_eq!(active, 1);
    ok("cuDevicePrimaryCtxRelease_v2", &[1]);
    assert_eq!(call("cuCtxPushCurrent_v2", &[second]), 201);
    assert_eq!(call("cuDevicePrimaryCtxRelease_v2", &[1]), 201);
}
