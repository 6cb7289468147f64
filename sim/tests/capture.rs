//! Stream capture: what becomes a node, what spoils a capture, and replay.

mod common;
use common::*;

const GLOBAL: u64 = 0;
const THREAD_LOCAL: u64 = 1;
const RELAXED: u64 = 2;

fn status(stream: u64) -> i32 {
    get("cuStreamIsCapturing", &[stream]) as i32
}

fn end(stream: u64) -> (i32, u64) {
    let mut graph = 0u64;
    (
        call("cuStreamEndCapture", &[stream, &raw mut graph as u64]),
        graph,
    )
}

fn exchange(mode: i32) -> i32 {
    let mut mode = mode;
    ok("cuThreadExchangeStreamCaptureMode", &[&raw mut mode as u64]);
    mode
}

fn kinds(graph: u64) -> Vec<i32> {
    let mut count = 0u64;
    ok("cuGraphGetNodes", &[graph, 0, &raw mut count as u64]);
    let mut nodes = vec![0u64; count as usize];
    ok(
        "cuGraphGetNodes",
        &[graph, nodes.as_mut_ptr() as u64, &raw mut count as u64],
    );
    nodes
        .iter()
        .map(|node| get("cuGraphNodeGetType", &[*node]) as i32)
        .collect()
}

#[test]
fn captured_work_runs_at_launch() {
    let _m = Machine::start("");
    let a = stream(1);
    let memory = new("cuMemAlloc_v2", &[4096]);
    ok("cuMemsetD8_v2", &[memory, 1, 4096]);
    ok("cuStreamBeginCapture_v2", &[a, GLOBAL]);
    ok("cuMemsetD8Async", &[memory, 2, 4096, a]);
    ok("cuMemcpyDtoDAsync_v2", &[memory + 2048, memory, 64, a]);
    assert_eq!(status(a), 1);
    let (code, graph) = end(a);
    assert_eq!((code, status(a)), (0, 0));
    assert_eq!(read(memory, 1), [1], "nothing ran yet");
    assert_eq!(kinds(graph), [2, 1]);
    let exec = new("cuGraphInstantiateWithFlags", &[graph, 0]);
    for _ in 0..3 {
        ok("cuMemsetD8_v2", &[memory, 1, 4096]);
        ok("cuCtxSynchronize", &[]);
        ok("cuGraphLaunch", &[exec, a]);
        ok("cuStreamSynchronize", &[a]);
        assert_eq!(read(memory, 1), [2]);
    }
    ok("cuGraphExecDestroy", &[exec]);
    ok("cuGraphDestroy", &[graph]);
    ok("cuMemFree_v2", &[memory]);
    ok("cuStreamDestroy_v2", &[a]);
    assert_clean();
}

#[test]
fn pool_memory_becomes_a_memory_node() {
    let _m = Machine::start("");
    let a = stream(1);
    ok("cuStreamBeginCapture_v2", &[a, GLOBAL]);
    let block = new("cuMemAllocAsync", &[4096, a]);
    ok("cuMemsetD8Async", &[block, 1, 4096, a]);
    ok("cuMemFreeAsync", &[block, a]);
    let (code, graph) = end(a);
    assert_eq!((code, kinds(graph)), (0, vec![10, 2, 11]));
    assert_eq!(counters().async_allocs, 1);
    ok("cuGraphDestroy", &[graph]);
    ok("cuStreamDestroy_v2", &[a]);
    ok("cuCtxSynchronize", &[]);
    assert_clean();
}

/// Calls that a capture in global mode forbids, with what they need.
fn unsafe_calls() -> Vec<(&'static str, Vec<u64>)> {
    let out = Box::leak(Box::new([0u64; 2]));
    let other = stream(1);
    let memory = new("cuMemAlloc_v2", &[4096]);
    let done = event();
    vec![
        ("cuMemAlloc_v2", vec![&raw mut out[0] as u64, 4096]),
        ("cuMemFree_v2", vec![memory]),
        ("cuMemAllocManaged", vec![&raw mut out[0] as u64, 4096, 1]),
        ("cuMemHostAlloc", vec![&raw mut out[0] as u64, 4096, 0]),
        ("cuEventQuery", vec![done]),
        ("cuEventSynchronize", vec![done]),
        ("cuStreamQuery", vec![other]),
        ("cuStreamSynchronize", vec![other]),
        ("cuMemAllocAsync", vec![&raw mut out[0] as u64, 4096, other]),
    ]
}

#[test]
fn unsafe_calls_spoil_a_global_capture_and_not_a_relaxed_one() {
    let _m = Machine::start("");
    let a = stream(1);
    for (name, args) in unsafe_calls() {
        for mode in [GLOBAL, THREAD_LOCAL] {
            ok("cuStreamBeginCapture_v2", &[a, mode]);
            assert_eq!(call(name, &args), 900, "{name}");
            assert_eq!((status(a), end(a).0), (2, 901), "{name}");
        }
    }
    for (name, args) in unsafe_calls() {
        ok("cuStreamBeginCapture_v2", &[a, RELAXED]);
        ok(name, &args);
        assert_eq!(end(a).0, 0, "{name}");
    }
    for (name, args) in unsafe_calls() {
        ok("cuStreamBeginCapture_v2", &[a, GLOBAL]);
        assert_eq!(exchange(RELAXED as i32), 0);
        ok(name, &args);
        assert_eq!(exchange(GLOBAL as i32), RELAXED as i32);
        assert_eq!(end(a).0, 0, "{name}");
    }
}

#[test]
fn another_thread_spoils_a_global_capture_only() {
    let _m = Machine::start("");
    let a = stream(1);
    let context = get("cuCtxGetCurrent", &[]);
    for (mode, code, ended) in [(GLOBAL, 900, 901), (THREAD_LOCAL, 0, 0), (RELAXED, 0, 0)] {
        ok("cuStreamBeginCapture_v2", &[a, mode]);
        let other = std::thread::spawn(move || {
            ok("cuCtxSetCurrent", &[context]);
            try_new("cuMemAlloc_v2", &[4096]).0
        });
        assert_eq!(other.join().unwrap(), code);
        assert_eq!(end(a).0, ended);
    }
}

#[test]
fn chunks_may_be_made_and_mapped_during_capture() {
    let _m = Machine::start("");
    let a = stream(1);
    ok("cuStreamBeginCapture_v2", &[a, GLOBAL]);
    let (base, chunk) = mapped(CHUNK);
    unmapped(base, chunk, CHUNK);
    assert_eq!((status(a), end(a).0), (1, 0));
}

#[test]
fn events_draw_streams_into_a_capture() {
    let _m = Machine::start("");
    let (a, b, fork, join) = (stream(1), stream(1), event(), event());
    let memory = new("cuMemAlloc_v2", &[4096]);
    ok("cuStreamBeginCapture_v2", &[a, GLOBAL]);
    ok("cuEventRecord", &[fork, a]);
    ok("cuStreamWaitEvent", &[b, fork, 0]);
    assert_eq!(status(b), 1);
    assert_eq!(end(b).0, 903, "not where it began");
    assert_eq!(end(a).0, 901);
    ok("cuStreamBeginCapture_v2", &[a, GLOBAL]);
    ok("cuEventRecord", &[fork, a]);
    ok("cuStreamWaitEvent", &[b, fork, 0]);
    ok("cuMemsetD8Async", &[memory, 2, 4096, b]);
    assert_eq!(end(a).0, 904, "not joined");
    assert_eq!(status(b), 0);
    ok("cuStreamBeginCapture_v2", &[a, GLOBAL]);
    ok("cuEventRecord", &[fork, a]);
    ok("cuStreamWaitEvent", &[b, fork, 0]);
    ok("cuMemsetD8Async", &[memory, 2, 4096, b]);
    ok("cuEventRecord", &[join, b]);
    ok("cuStreamWaitEvent", &[a, join, 0]);
    let (code, graph) = end(a);
    assert_eq!((code, kinds(graph)), (0, vec![2]));
    assert_eq!(
        call("cuEventQuery", &[fork]),
        1,
        "recorded in a capture that has ended"
    );
    ok("cuEventRecord", &[fork, a]);
    ok("cuEventSynchronize", &[fork]);
}

#[test]
fn captures_keep_to_themselves() {
    let _m = Machine::start("");
    let (a, b, outside, mine) = (stream(1), stream(1), event(), event());
    ok("cuEventRecord", &[outside, b]);
    ok("cuStreamBeginCapture_v2", &[a, GLOBAL]);
    assert_eq!(call("cuStreamWaitEvent", &[a, outside, 0]), 905);
    assert_eq!(end(a).0, 901);
    ok("cuStreamBeginCapture_v2", &[a, GLOBAL]);
    ok("cuEventRecord", &[mine, a]);
    assert_eq!(call("cuEventQuery", &[mine]), 907);
    assert_eq!(end(a).0, 901);
    let blocking = stream(0);
    let memory = new("cuMemAlloc_v2", &[64]);
    ok("cuStreamBeginCapture_v2", &[blocking, RELAXED]);
    assert_eq!(
        call("cuMemsetD8Async", &[memory, 0, 64, 0]),
        906,
        "the legacy stream would have to wait"
    );
    assert_eq!(end(blocking).0, 901);
    assert_eq!(end(a).0, 401, "none is open");
}
