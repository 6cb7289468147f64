//! Events.

use crate::capture::refuse_unsafe;
use crate::codes::{self, Out, Result, put};
use crate::entry::{Locked, driver};
use crate::event::{Captured, DISABLE_TIMING, EVENT_FLAGS, Record};
use std::sync::Arc;

/// What an event stands for, for a call that asks the host's side of it.
fn recording(sim: &mut Locked, event: u64) -> Result<(u64, Option<Arc<Record>>)> {
    let entry = sim.events.get(event)?;
    let (context, record) = (entry.context, entry.record.clone());
    match entry.captured {
        Captured::No => {}
        Captured::Ended => return Err(codes::INVALID_VALUE),
        Captured::In(id, _) => {
            sim.invalidate(id);
            return Err(codes::CAPTURED_EVENT);
        }
    }
    sim.context_error(context)?;
    Ok((context, record))
}

fn elapsed(sim: &mut Locked, out: Out<f32>, start: u64, end: u64) -> Result {
    let timed = |sim: &mut Locked, event| {
        if sim.events.get(event)?.flags & DISABLE_TIMING != 0 {
            return Err(codes::INVALID_HANDLE);
        }
        recording(sim, event)?.1.ok_or(codes::INVALID_HANDLE)
    };
    let (start, end) = (timed(sim, start)?, timed(sim, end)?);
    if !start.done() || !end.done() {
        return Err(codes::NOT_READY);
    }
    put(out, (end.time() as f64 - start.time() as f64) as f32 / 1e6)
}

driver! {
    fn cuEventCreate(out: Out<u64>, flags: u32) |sim| {
        let context = sim.current()?;
        if flags & !EVENT_FLAGS != 0 || out.is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let handle = sim.events.create(context, flags);
        put(out, handle)
    }

    fn cuEventDestroy_v2(event: u64) |sim| {
        let context = sim.events.get(event)?.context;
        sim.events.destroy(event)?;
        sim.context_error(context)
    }

    fn cuEventRecord(event: u64, stream: u64) |sim| {
        let key = sim.stream_key(stream)?;
        let (context, capture) = sim.stream(key).map(|s| (s.context, s.capture))?;
        sim.context_error(context)?;
        if sim.events.get(event)?.context != context {
            return Err(codes::INVALID_HANDLE);
        }
        sim.refuse_implicit(key)?;
        if let Some(id) = capture {
            return sim.record_captured(id, key, event);
        }
        let record = sim.record_behind(&[key]);
        let entry = sim.events.get_mut(event)?;
        entry.record = Some(record);
        entry.captured = Captured::No;
        Ok(())
    }

    fn cuEventQuery(event: u64) |sim| {
        let (_, record) = recording(sim, event)?;
        refuse_unsafe(sim)?;
        if record.is_none_or(|r| r.done()) { Ok(()) } else { Err(codes::NOT_READY) }
    }

    fn cuEventSynchronize(event: u64) |sim| {
        let (context, record) = recording(sim, event)?;
        refuse_unsafe(sim)?;
        let Some(record) = record else { return Ok(()) };
        sim.wait_until(|sim| record.done() || sim.contexts.error(context).is_some());
        sim.context_error(context)?;
        if let Some(device) = sim.contexts.get(context).map(|c| c.device) {
            sim.pools_synchronized(device);
        }
        Ok(())
    }

    fn cuEventElapsedTime(out: Out<f32>, start: u64, end: u64) |sim| { elapsed(sim, out, start, end) }

    fn cuEventElapsedTime_v2(out: Out<f32>, start: u64, end: u64) |sim| { elapsed(sim, out, start, end) }
}
