//! What a capture becomes: nodes of a graph, streams drawn in by events, and ends that are refused.

use super::calls::Calls;
use super::cases;
use super::guards::{
    BLOCKING, CHUNK, Capture, Event, Executable, GLOBAL, Graph, LEGACY, MIB, NON_BLOCKING, Owned,
    PER_THREAD, Pinned, RELAXED, Stream, need,
};
use super::steps::Steps;
use super::transfers::read_back;
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = cases![
    "capture: status" => status,
    "capture: becomes a graph" => becomes_a_graph,
    "capture: stream-ordered memory becomes nodes" => memory_nodes,
    "capture: memory from outside" => memory_from_outside,
    "capture: fork and join" => fork_and_join,
    "capture: joined stream" => joined_stream,
    "capture: events captured before" => stale_event,
    "capture: begin and end that are refused" => refused,
    "capture: ended by another thread" => other_thread,
];

/// Kinds of nodes.
const COPY: i32 = 1;
const FILL: i32 = 2;
const ALLOC: i32 = 10;
const FREE: i32 = 11;

fn captures(calls: Calls, stream: &Stream) -> String {
    let mut status = -7;
    let answer = calls.is_capturing(stream, &mut status);
    if answer == 0 {
        status.to_string()
    } else {
        format!("refused {answer}")
    }
}

fn status(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (free, blocking) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, BLOCKING)?,
    );
    steps.is("before", captures(calls, &free), 0);
    let capture = Capture::begin(calls, &free, RELAXED)?;
    steps.is("during", captures(calls, &free), 1);
    steps.is("another stream", captures(calls, &blocking), 0);
    steps.is(
        "legacy beside a non-blocking stream",
        captures(calls, &LEGACY),
        0,
    );
    steps.is("per thread", captures(calls, &PER_THREAD), 0);
    let (end, _graph) = capture.end();
    steps.is("end", end, 0);
    steps.is("after", captures(calls, &free), 0);
    let capture = Capture::begin(calls, &blocking, RELAXED)?;
    steps.is(
        "legacy beside a blocking stream",
        captures(calls, &LEGACY),
        "refused 906",
    );
    steps.is("goes on", captures(calls, &blocking), 1);
    steps.is("record on it", calls.stream_query(&free), 0);
    let (end, _graph) = capture.end();
    steps.is("end again", end, 0);
    Ok(())
}

fn becomes_a_graph(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let plain = Owned::plain(calls, CHUNK)?;
    let (at, mut pinned) = (plain.number(), Pinned::new(calls, 4096)?);
    need("cuMemsetD8Async", calls.fill(at, 0, CHUNK, &stream))?;
    let capture = Capture::begin(calls, &stream, GLOBAL)?;
    steps.is("fill", calls.fill(at, 7, 64, &stream), 0);
    steps.is("copy", calls.copy_on_device(at + MIB, at, 64, &stream), 0);
    let (end, graph) = capture.end();
    steps.is("end", end, 0);
    let graph = graph.ok_or("no graph came")?;
    let mut count = 0;
    steps.is("count", calls.graph_node_count(&graph, &mut count), 0);
    steps.is("nodes", count, 2);
    steps.is(
        "kinds",
        format!("{:?}", calls.node_kinds(&graph)),
        format!("Ok({:?})", [COPY, FILL]),
    );
    steps.is(
        "nothing ran yet",
        read_back(calls, &mut pinned, at + MIB, &stream),
        "0x0 everywhere",
    );
    let mut executable = 0;
    steps.is("instantiate", calls.instantiate(&mut executable, &graph), 0);
    let executable = Executable::own(calls, executable);
    steps.is("destroy the graph", graph.destroy(), 0);
    steps.is("launch", calls.launch(&executable, &stream), 0);
    steps.is(
        "it ran",
        read_back(calls, &mut pinned, at + MIB, &stream),
        "0x7 everywhere",
    );
    steps.is("destroy", executable.destroy(), 0);
    Ok(())
}

fn memory_nodes(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let mut block = 0;
    let capture = Capture::begin(calls, &stream, GLOBAL)?;
    steps.is("alloc", calls.alloc_async(&mut block, 4096, &stream), 0);
    steps.holds("has an address", block != 0);
    steps.is("fill", calls.fill(block, 1, 64, &stream), 0);
    steps.is("free", calls.free_async(block, &stream), 0);
    let (end, graph) = capture.end();
    steps.is("end", end, 0);
    let graph = graph.ok_or("no graph came")?;
    let kinds = calls.node_kinds(&graph);
    steps.is(
        "kinds",
        format!("{kinds:?}"),
        format!("Ok({:?})", [FILL, ALLOC, FREE]),
    );
    steps.is("destroy", graph.destroy(), 0);
    Ok(())
}

fn memory_from_outside(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let mut block = 0;
    need(
        "cuMemAllocAsync",
        calls.alloc_async(&mut block, 4096, &stream),
    )?;
    let plain = Owned::plain(calls, CHUNK)?;
    let capture = Capture::begin(calls, &stream, RELAXED)?;
    steps.is("free", calls.free_async(block, &stream), 1);
    steps.is(
        "free of plain memory",
        calls.free_async(plain.number(), &stream),
        1,
    );
    steps.is("goes on", captures(calls, &stream), 1);
    let (end, graph) = capture.end();
    steps.is("end", end, 0);
    let graph = graph.ok_or("no graph came")?;
    steps.is("kinds", format!("{:?}", calls.node_kinds(&graph)), "Ok([])");
    steps.is("free after", calls.free_async(block, &stream), 0);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    Ok(())
}

/// Captures on `from`, draws `into` in, lets it work and joins it again as wanted; the end and how
/// many nodes.
fn fork(
    calls: Calls,
    from: &Stream,
    into: &Stream,
    at: Option<u64>,
    join: bool,
) -> Result<String, Stop> {
    let (there, back) = (Event::new(calls)?, Event::new(calls)?);
    let mut stream_end = 0;
    need("begin", calls.begin_capture(from, GLOBAL))?;
    let mut answers = vec![
        calls.record(&there, from),
        calls.wait_event(into, &there, 0),
    ];
    if let Some(at) = at {
        answers.push(calls.fill(at, 1, 64, into));
    }
    if join {
        answers.extend([calls.record(&back, into), calls.wait_event(from, &back, 0)]);
    }
    let end = calls.end_capture(from, &mut stream_end);
    let graph = (stream_end != 0).then(|| Graph::own(calls, stream_end));
    let nodes = graph.map(|graph| {
        let mut count = 99;
        calls.graph_node_count(&graph, &mut count);
        count
    });
    Ok(format!("{answers:?}, end {end}, nodes {nodes:?}"))
}

fn fork_and_join(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (from, into) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, NON_BLOCKING)?,
    );
    let plain = Owned::plain(calls, CHUNK)?;
    let at = Some(plain.number());
    steps.is(
        "without work",
        fork(calls, &from, &into, None, false)?,
        "[0, 0], end 0, nodes Some(0)",
    );
    steps.is(
        "with work, not joined",
        fork(calls, &from, &into, at, false)?,
        "[0, 0, 0], end 904, nodes None",
    );
    steps.is("the other is free again", captures(calls, &into), 0);
    steps.is(
        "joined",
        fork(calls, &from, &into, at, true)?,
        "[0, 0, 0, 0, 0], end 0, nodes Some(1)",
    );
    steps.is("synchronize", calls.synchronize(), 0);
    Ok(())
}

fn joined_stream(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (from, into) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, NON_BLOCKING)?,
    );
    let event = Event::new(calls)?;
    let capture = Capture::begin(calls, &from, GLOBAL)?;
    steps.is("record", calls.record(&event, &from), 0);
    steps.is("wait", calls.wait_event(&into, &event, 0), 0);
    steps.is("captures too", captures(calls, &into), 1);
    let mut graph = 0;
    steps.is("ended there", calls.end_capture(&into, &mut graph), 903);
    let (end, _graph) = capture.end();
    steps.is("end", end, 901);
    steps.is("the other is free again", captures(calls, &into), 0);
    Ok(())
}

fn stale_event(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let event = Event::new(calls)?;
    let capture = Capture::begin(calls, &stream, GLOBAL)?;
    steps.is("record", calls.record(&event, &stream), 0);
    let (end, _graph) = capture.end();
    steps.is("end", end, 0);
    steps.is("query", calls.event_query(&event), 1);
    steps.is("synchronize", calls.event_synchronize(&event), 1);
    steps.is("wait", calls.wait_event(&stream, &event, 0), 1);
    steps.is("record anew", calls.record(&event, &stream), 0);
    steps.is("synchronize anew", calls.event_synchronize(&event), 0);
    Ok(())
}

fn refused(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let mut graph = 0;
    steps.is(
        "end without begin",
        calls.end_capture(&stream, &mut graph),
        401,
    );
    steps.is("mode 7", calls.begin_capture(&stream, 7), 1);
    steps.is("legacy", calls.begin_capture(&LEGACY, GLOBAL), 900);
    let mine = PER_THREAD;
    let capture = Capture::begin(calls, &mine, RELAXED)?;
    let (end, _graph) = capture.end();
    steps.is("end of the thread's stream", end, 0);
    steps.is("nothing captures", captures(calls, &stream), 0);
    Ok(())
}

fn other_thread(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    for (name, mode, expected) in [
        ("global", GLOBAL, (908, 401)),
        ("relaxed", RELAXED, (0, 401)),
    ] {
        let mut handle = 0;
        need("begin", calls.begin_capture(&stream, mode))?;
        let there = std::thread::scope(|scope| {
            let other = scope.spawn(|| calls.end_capture(&stream, &mut handle));
            other.join().unwrap_or(-7)
        });
        let graph = (handle != 0).then(|| Graph::own(calls, handle));
        steps.is(name, there, expected.0);
        steps.holds(
            &format!("{name}, a graph came"),
            graph.is_some() == (expected.0 == 0),
        );
        let mut none = 0;
        steps.is(
            &format!("{name}, ended again"),
            calls.end_capture(&stream, &mut none),
            expected.1,
        );
    }
    Ok(())
}
