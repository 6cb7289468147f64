//! Streams and their capture.

use crate::capture::{
    self, NODE_MEMORY_OPERATION, STATUS_ACTIVE, STATUS_INVALIDATED, STATUS_NONE, refuse_unsafe,
};
use crate::codes::{self, Out, Result, put};
use crate::entry::{Locked, driver};
use crate::stream::{Action, NON_BLOCKING};
use crate::watch::Watch;

const LEAST_PRIORITY: i32 = 0;
const GREATEST_PRIORITY: i32 = -5;

fn create(sim: &mut Locked, out: Out<u64>, flags: u32, priority: i32) -> Result {
    let (context, device) = sim.current_device()?;
    if flags & !NON_BLOCKING != 0 || out.is_none() {
        return Err(codes::INVALID_VALUE);
    }
    let priority = priority.clamp(GREATEST_PRIORITY, LEAST_PRIORITY);
    let key = sim.streams.create(context, device, flags, priority, false);
    let handle = sim.stream(key)?.handle;
    put(out, handle)
}

/// From this version on a stream that captures may be asked for its context.
const ANSWERS_IN_CAPTURE: u32 = 12_050;

/// Status of the capture a stream takes part in, and its id.
fn capture_status(sim: &mut Locked, key: u64) -> Result<(i32, Option<u64>)> {
    let id = sim.stream(key)?.capture;
    Ok(match id.and_then(|id| sim.captures.get(id)) {
        None => (STATUS_NONE, None),
        Some(c) if c.invalid => (STATUS_INVALIDATED, id),
        Some(_) => (STATUS_ACTIVE, id),
    })
}

/// A stream that is asked about its progress; a capturing one has none.
fn settled(sim: &mut Locked, stream: u64) -> Result<(u64, u64)> {
    let key = sim.stream_key(stream)?;
    let context = sim.stream(key)?.context;
    sim.refuse_captured(key)?;
    refuse_unsafe(sim)?;
    sim.context_error(context)?;
    Ok((key, context))
}

/// What has to run before a stream is idle: for the legacy stream that is all blocking ones.
fn targets(sim: &Locked, key: u64) -> Result<Vec<(u64, u64)>> {
    let mut all = sim.implicit_order(key);
    let stream = sim.stream(key)?;
    if sim.contexts.legacy(stream.context) != Some(key) {
        all.clear();
    }
    all.push((key, stream.submitted));
    Ok(all)
}

driver! {
    fn cuStreamCreate(out: Out<u64>, flags: u32) |sim| { create(sim, out, flags, 0) }

    fn cuStreamCreateWithPriority(out: Out<u64>, flags: u32, priority: i32) |sim| { create(sim, out, flags, priority) }

    fn cuStreamDestroy_v2(stream: u64) |sim| {
        let key = sim.streams.by_handle(stream)?;
        if let Some(id) = sim.stream(key)?.capture {
            sim.invalidate(id);
        }
        let context = sim.stream(key)?.context;
        sim.streams.destroy(key);
        sim.pump();
        sim.context_error(context)
    }

    fn cuStreamQuery(stream: u64) |sim| {
        let (key, _) = settled(sim, stream)?;
        let ready = targets(sim, key)?.iter().all(|(k, seq)| sim.streams.reached(*k, *seq));
        if ready { Ok(()) } else { Err(codes::NOT_READY) }
    }

    fn cuStreamSynchronize(stream: u64) |sim| {
        let (key, context) = settled(sim, stream)?;
        let device = sim.stream(key)?.device;
        let targets = targets(sim, key)?;
        sim.wait_all(context, &targets)?;
        sim.pools_synchronized(device);
        Ok(())
    }

    fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) |sim| {
        if flags > 1 {
            return Err(codes::INVALID_VALUE);
        }
        let key = sim.stream_key(stream)?;
        let context = sim.stream(key)?.context;
        sim.context_error(context)?;
        if sim.wait_captured(key, event)? {
            return Ok(());
        }
        sim.refuse_implicit(key)?;
        let Some(record) = sim.events.get(event)?.record.clone() else { return Ok(()) };
        if !record.done() {
            sim.enqueue(key, Action::Wait(record), 0);
        }
        Ok(())
    }

    fn cuStreamWaitValue32_v2(stream: u64, address: u64, value: u32, flags: u32) |sim| {
        let key = sim.stream_key(stream)?;
        let (context, device) = (sim.stream(key)?.context, sim.stream(key)?.device);
        sim.context_error(context)?;
        let watch = Watch::new(address, value, flags)?;
        sim.check_watch(&watch, device)?;
        sim.submit(key, NODE_MEMORY_OPERATION, Action::Watch(watch), 0)?;
        Ok(())
    }

    fn cuStreamGetId(stream: u64, out: Out<u64>) |sim| {
        let key = sim.stream_key(stream)?;
        put(out, sim.stream(key)?.id)
    }

    fn cuStreamGetCtx(stream: u64, out: Out<u64>) |sim| {
        let key = sim.stream_key(stream)?;
        if let Some(id) = sim.stream(key)?.capture.filter(|_| sim.config.version < ANSWERS_IN_CAPTURE) {
            // That it does harm is not known of every such driver; a caller must not ask.
            sim.invalidate(id);
            return Err(codes::STREAM_CAPTURE_UNSUPPORTED);
        }
        put(out, sim.stream(key)?.context)
    }

    fn cuStreamGetFlags(stream: u64, out: Out<u32>) |sim| {
        let key = sim.stream_key(stream)?;
        put(out, sim.stream(key)?.flags)
    }

    fn cuStreamGetPriority(stream: u64, out: Out<i32>) |sim| {
        let key = sim.stream_key(stream)?;
        put(out, sim.stream(key)?.priority)
    }

    fn cuStreamIsCapturing(stream: u64, out: Out<i32>) |sim| {
        let key = sim.stream_key(stream)?;
        implicit_question(sim, key)?;
        let (status, _) = capture_status(sim, key)?;
        put(out, status)
    }

    fn cuStreamGetCaptureInfo_v2(
        stream: u64,
        status: Out<i32>,
        id: Out<u64>,
        graph: Out<u64>,
        nodes: Out<*const u64>,
        count: Out<usize>,
    ) |sim| {
        let key = sim.stream_key(stream)?;
        implicit_question(sim, key)?;
        let (now, capture) = capture_status(sim, key)?;
        put(status, now)?;
        let Some(capture) = capture.filter(|_| now == STATUS_ACTIVE) else { return Ok(()) };
        if let Some(id) = id {
            id.write(capture);
        }
        if let Some(graph) = graph {
            graph.write(sim.captures.get(capture).map_or(0, |c| c.graph));
        }
        let last = sim.captures.last_node_place(capture, key);
        if let Some(nodes) = nodes {
            nodes.write(last.map_or(std::ptr::null(), |place| place));
        }
        if let Some(count) = count {
            count.write(usize::from(last.is_some()));
        }
        Ok(())
    }

    fn cuStreamBeginCapture_v2(stream: u64, mode: i32) |sim| {
        let key = sim.stream_key(stream)?;
        let context = sim.stream(key)?.context;
        sim.context_error(context)?;
        sim.begin_capture(key, mode)
    }

    fn cuStreamEndCapture(stream: u64, graph: Out<u64>) |sim| {
        let key = sim.stream_key(stream)?;
        match sim.end_capture(key) {
            Ok(handle) => put(graph, handle),
            Err(code) => {
                let _ = put(graph, 0);
                Err(code)
            }
        }
    }

    fn cuThreadExchangeStreamCaptureMode(mode: Option<&mut i32>) |_sim| {
        let mode = mode.ok_or(codes::INVALID_VALUE)?;
        if !(capture::GLOBAL..=capture::RELAXED).contains(mode) {
            return Err(codes::INVALID_VALUE);
        }
        *mode = capture::exchange_mode(*mode);
        Ok(())
    }
}

/// Asking the legacy stream while a blocking one captures is refused, without harm to the capture.
fn implicit_question(sim: &mut Locked, key: u64) -> Result {
    let context = sim.stream(key)?.context;
    sim.context_error(context)?;
    if sim.contexts.legacy(context) != Some(key) {
        return Ok(());
    }
    let capturing = |s: &crate::stream::Stream| {
        s.context == context && s.flags & NON_BLOCKING == 0 && s.capture.is_some()
    };
    if sim.streams.map.values().any(capturing) {
        Err(codes::STREAM_CAPTURE_IMPLICIT)
    } else {
        Ok(())
    }
}
