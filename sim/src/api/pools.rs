//! Stream-ordered allocation.

use crate::abi::{AccessDesc, LOCATION_DEVICE, Location, PoolProps};
use crate::capture::{NODE_ALLOC, NODE_FREE, Node, refuse_unsafe};
use crate::codes::{self, Out, Result, put};
use crate::entry::{Locked, driver};
use std::ffi::c_void;

/// Pool memory for a stream; on a capturing one it becomes a memory node of the graph.
fn alloc(sim: &mut Locked, out: Out<u64>, size: usize, pool: Option<u64>, stream: u64) -> Result {
    sim.check_pools()?;
    let key = sim.stream_key(stream)?;
    let (context, device) = sim.stream(key).map(|s| (s.context, s.device))?;
    sim.context_error(context)?;
    if out.is_none() {
        return Err(codes::INVALID_VALUE);
    }
    if size == 0 {
        return put(out, 0);
    }
    sim.refuse_implicit(key)?;
    if sim.stream(key)?.capture.is_none() {
        refuse_unsafe(sim)?;
    }
    let pool = pool.unwrap_or_else(|| sim.pools.current_of(device));
    let base = sim.pool_alloc(pool, size as u64, key)?;
    if let Some(id) = sim.stream(key)?.capture {
        let node = Node {
            kind: NODE_ALLOC,
            action: None,
            device_ns: 0,
            memory: base,
        };
        if let Err(code) = sim.add_node(id, key, node) {
            let _ = sim.pool_free(base, 0);
            return Err(code);
        }
    }
    put(out, base)
}

/// The two widths of pool attributes: reuse policies are ints, the others 64 bits.
fn is_policy(which: i32) -> bool {
    (1..=3).contains(&which)
}

driver! {
    fn cuMemAllocAsync(out: Out<u64>, size: usize, stream: u64) |sim| { alloc(sim, out, size, None, stream) }

    fn cuMemAllocFromPoolAsync(out: Out<u64>, size: usize, pool: u64, stream: u64) |sim| {
        alloc(sim, out, size, Some(pool), stream)
    }

    fn cuMemFreeAsync(base: u64, stream: u64) |sim| {
        sim.check_pools()?;
        let key = sim.stream_key(stream)?;
        let context = sim.stream(key)?.context;
        sim.context_error(context)?;
        if base == 0 {
            return Ok(());
        }
        sim.refuse_implicit(key)?;
        if let Some(id) = sim.stream(key)?.capture {
            if !sim.captures.allocated_in(id, base) {
                return Err(codes::INVALID_VALUE);
            }
            return sim.add_node(id, key, Node { kind: NODE_FREE, action: None, device_ns: 0, memory: 0 });
        }
        refuse_unsafe(sim)?;
        if sim.pools.owns(base) { sim.pool_free(base, key) } else { sim.free_plain_behind(base, key) }
    }

    fn cuMemPoolCreate(out: Out<u64>, props: Option<&PoolProps>) |sim| {
        let props = props.ok_or(codes::INVALID_VALUE)?;
        let pool = sim.create_pool(props)?;
        put(out, pool)
    }

    fn cuMemPoolDestroy(pool: u64) |sim| { sim.destroy_pool(pool) }

    fn cuMemPoolTrimTo(pool: u64, keep: usize) |sim| {
        sim.pools.get(pool)?;
        sim.trim_pool(pool, keep as u64);
        Ok(())
    }

    fn cuMemPoolSetAttribute(pool: u64, which: i32, value: *const c_void) |sim| {
        if value.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: the caller passes an int for a policy and 64 bits for the others.
        let value = unsafe { if is_policy(which) { value.cast::<i32>().read_unaligned() as u64 } else { value.cast::<u64>().read_unaligned() } };
        sim.pools.get_mut(pool)?.set_attribute(which, value)
    }

    fn cuMemPoolGetAttribute(pool: u64, which: i32, value: *mut c_void) |sim| {
        if value.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        let answer = sim.pools.get(pool)?.attribute(which)?;
        // SAFETY: the caller passes room for an int for a policy and for 64 bits for the others.
        unsafe { if is_policy(which) { value.cast::<i32>().write_unaligned(answer as i32) } else { value.cast::<u64>().write_unaligned(answer) } };
        Ok(())
    }

    fn cuMemPoolSetAccess(pool: u64, descs: *const AccessDesc, count: usize) |sim| {
        if descs.is_null() || count == 0 {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: the caller passes as many descriptors as it says.
        let descs = unsafe { std::slice::from_raw_parts(descs, count) };
        for desc in descs {
            if desc.location.kind != LOCATION_DEVICE {
                return Err(codes::INVALID_VALUE);
            }
            sim.check_device(desc.location.id)?;
            sim.pools.get_mut(pool)?.access.insert((desc.location.kind, desc.location.id), desc.flags);
        }
        Ok(())
    }

    fn cuMemPoolGetAccess(flags: Out<i32>, pool: u64, location: Option<&Location>) |sim| {
        let location = location.ok_or(codes::INVALID_VALUE)?;
        let own = sim.pools.device_of(pool).unwrap_or(-1);
        let set = sim.pools.get(pool)?.access.get(&(location.kind, location.id)).copied();
        let home = location.kind == LOCATION_DEVICE && location.id == own;
        put(flags, set.unwrap_or(if home { crate::abi::ACCESS_READ_WRITE } else { crate::abi::ACCESS_NONE }))
    }

    fn cuDeviceGetDefaultMemPool(out: Out<u64>, device: i32) |sim| {
        sim.check_device(device)?;
        sim.check_pools()?;
        put(out, sim.pools.default_of(device))
    }

    fn cuDeviceGetMemPool(out: Out<u64>, device: i32) |sim| {
        sim.check_device(device)?;
        sim.check_pools()?;
        put(out, sim.pools.current_of(device))
    }

    fn cuDeviceSetMemPool(device: i32, pool: u64) |sim| {
        sim.check_device(device)?;
        sim.pools.set_current(device, pool)
    }
}
