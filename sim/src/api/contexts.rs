//! Contexts, and order points over a whole one.

use crate::codes::{self, Out, put};
use crate::context;
use crate::cost;
use crate::entry::driver;
use crate::event::Captured;
use crate::stream::Action;

driver! {
    fn cuDevicePrimaryCtxRetain(out: Out<u64>, device: i32) |sim| {
        sim.check_device(device)?;
        let handle = sim.retain_primary(device);
        put(out, handle)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: i32) |sim| {
        sim.check_device(device)?;
        let handle = context::primary_handle(device);
        let entry = sim.contexts.get_mut(handle).ok_or(codes::INVALID_CONTEXT)?;
        if entry.references > 1 {
            entry.references -= 1;
            return Ok(());
        }
        let _ = sim.synchronize_context(handle);
        sim.drop_context(handle);
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) |sim| {
        sim.check_device(device)?;
        let state = sim.contexts.get(context::primary_handle(device)).is_some();
        put(flags, sim.contexts.primary_flags(device))?;
        put(active, state as i32)
    }

    fn cuDevicePrimaryCtxReset_v2(device: i32) |sim| {
        sim.check_device(device)?;
        let handle = context::primary_handle(device);
        let _ = sim.synchronize_context(handle);
        sim.drop_context(handle);
        Ok(())
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) |sim| {
        sim.check_device(device)?;
        sim.contexts.set_primary_flags(device, flags);
        Ok(())
    }

    fn cuCtxCreate_v2(out: Out<u64>, flags: u32, device: i32) |sim| {
        sim.check_device(device)?;
        let handle = sim.create_context(device, flags);
        context::push(handle)?;
        put(out, handle)
    }

    fn cuCtxDestroy_v2(handle: u64) |sim| {
        if sim.contexts.get(handle).is_none() {
            return Err(codes::INVALID_CONTEXT);
        }
        let _ = sim.synchronize_context(handle);
        sim.drop_context(handle);
        if context::top() == handle {
            context::pop()?;
        }
        Ok(())
    }

    fn cuCtxGetCurrent(out: Out<u64>) |_sim| { put(out, context::top()) }

    fn cuCtxSetCurrent(handle: u64) |sim| {
        if handle != 0 && sim.contexts.get(handle).is_none() {
            return Err(codes::INVALID_CONTEXT);
        }
        context::set(handle)
    }

    fn cuCtxPushCurrent_v2(handle: u64) |sim| {
        if handle == 0 {
            return Err(codes::INVALID_VALUE);
        }
        if sim.contexts.get(handle).is_none() {
            return Err(codes::INVALID_CONTEXT);
        }
        context::push(handle)
    }

    fn cuCtxPopCurrent_v2(out: Out<u64>) |_sim| {
        let handle = context::pop()?;
        if let Some(out) = out {
            out.write(handle);
        }
        Ok(())
    }

    fn cuCtxGetDevice(out: Out<i32>) |sim| {
        let top = context::top();
        if top == 0 {
            return Err(codes::INVALID_CONTEXT);
        }
        // A primary context that was released still knows its device.
        let device = sim.contexts.get(top).map(|c| c.device).or_else(|| context::primary_device(top));
        put(out, device.ok_or(codes::CONTEXT_IS_DESTROYED)?)
    }

    fn cuCtxGetFlags(out: Out<u32>) |sim| {
        let context = sim.current()?;
        put(out, sim.contexts.get(context).map_or(0, |c| c.flags))
    }

    fn cuCtxGetApiVersion(_handle: u64, out: Out<u32>) |_sim| { put(out, 3020) }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) |sim| {
        sim.current()?;
        if let Some(least) = least {
            least.write(0);
        }
        if let Some(greatest) = greatest {
            greatest.write(-5);
        }
        Ok(())
    }

    fn cuCtxSynchronize() |sim| {
        let (context, device) = sim.current_device()?;
        spoil_captures(sim, context)?;
        sim.synchronize_context(context)?;
        sim.pools_synchronized(device);
        Ok(())
    }

    fn cuCtxGetId(handle: u64, out: Out<u64>) |sim| {
        let handle = if handle == 0 { sim.current()? } else { handle };
        put(out, sim.contexts.get(handle).ok_or(codes::CONTEXT_IS_DESTROYED)?.id)
    }

    fn cuCtxEnablePeerAccess(peer: u64, flags: u32) |sim| {
        let (context, device) = sim.current_device()?;
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        let other = sim.contexts.get(peer).ok_or(codes::INVALID_CONTEXT)?.device;
        if !sim.config.peers || other == device {
            return Err(codes::PEER_ACCESS_UNSUPPORTED);
        }
        let entry = sim.contexts.get_mut(context).ok_or(codes::INVALID_CONTEXT)?;
        if entry.peers.insert(peer) { Ok(()) } else { Err(codes::PEER_ACCESS_ALREADY_ENABLED) }
    }

    fn cuCtxDisablePeerAccess(peer: u64) |sim| {
        let context = sim.current()?;
        let entry = sim.contexts.get_mut(context).ok_or(codes::INVALID_CONTEXT)?;
        if entry.peers.remove(&peer) { Ok(()) } else { Err(codes::PEER_ACCESS_NOT_ENABLED) }
    }

    fn cuCtxRecordEvent(handle: u64, event: u64) |sim| {
        let context = context_or_current(sim, handle)?;
        spoil_captures(sim, context)?;
        if sim.events.get(event)?.context != context {
            return Err(codes::INVALID_HANDLE);
        }
        let busy = sim.streams.pending(|s| s.context == context);
        if !busy.is_empty() {
            cost::charge(cost::CONTEXT_RECORD_BUSY);
        }
        let keys: Vec<u64> = busy.into_iter().map(|(key, _)| key).collect();
        let record = sim.record_behind(&keys);
        let entry = sim.events.get_mut(event)?;
        entry.record = Some(record);
        entry.captured = Captured::No;
        Ok(())
    }

    fn cuCtxWaitEvent(handle: u64, event: u64) |sim| {
        let context = context_or_current(sim, handle)?;
        spoil_captures(sim, context)?;
        let Some(record) = sim.events.get(event)?.record.clone() else { return Ok(()) };
        if record.done() {
            return Ok(());
        }
        let keys: Vec<u64> = sim.streams.map.iter().filter(|(_, s)| s.context == context && !s.destroyed).map(|(k, _)| *k).collect();
        for key in keys {
            sim.enqueue(key, Action::Wait(record.clone()), 0);
        }
        Ok(())
    }
}

fn context_or_current(sim: &crate::sim::Sim, handle: u64) -> codes::Result<u64> {
    if handle == 0 {
        return sim.current();
    }
    if sim.contexts.get(handle).is_none() {
        return Err(codes::CONTEXT_IS_DESTROYED);
    }
    sim.context_error(handle)?;
    Ok(handle)
}

/// A call that covers all streams of a context cannot be part of a capture, and ends those under way, relaxed ones too.
fn spoil_captures(sim: &mut crate::sim::Sim, context: u64) -> codes::Result {
    let open = sim.captures_in(context);
    if open.is_empty() {
        return Ok(());
    }
    open.into_iter().for_each(|id| sim.invalidate(id));
    Err(codes::STREAM_CAPTURE_UNSUPPORTED)
}
