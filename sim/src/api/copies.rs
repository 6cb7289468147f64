//! Copies and fills. Pageable memory makes an asynchronous copy wait, or be staged when it is small, as in the driver.

use crate::abi::{ACCESS_READ, ACCESS_READ_WRITE};
use crate::capture::{NODE_HOST, NODE_MEMCPY, NODE_MEMSET};
use crate::codes::{self, Result};
use crate::cost;
use crate::entry::{Locked, driver};
use crate::stream::{Action, HostFunction};
use crate::transfer::{Place, copy_ns, move_bytes};
use std::ffi::c_void;
use std::sync::Arc;

/// A pageable source up to this size is copied away at the call.
const STAGED: u64 = 1 << 20;

/// What the name of a call says of its ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Any,
    ToHost,
    ToDevice,
    OnDevice,
}

fn check_direction(direction: Direction, dst: Place, src: Place) -> Result {
    let host_dst = matches!(direction, Direction::ToHost);
    let host_src = matches!(direction, Direction::ToDevice);
    // A pageable address where the call takes a device pointer is one that the driver does not know.
    let unknown_dst = dst == Place::Pageable && !host_dst && direction != Direction::Any;
    let unknown_src = src == Place::Pageable && !host_src && direction != Direction::Any;
    if unknown_dst || unknown_src {
        Err(codes::INVALID_VALUE)
    } else {
        Ok(())
    }
}

fn copy(
    sim: &mut Locked,
    dst: u64,
    src: u64,
    len: usize,
    stream: u64,
    direction: Direction,
    wait: bool,
) -> Result {
    let len = len as u64;
    let key = sim.stream_key(stream)?;
    let (context, device) = sim.stream(key).map(|s| (s.context, s.device))?;
    sim.context_error(context)?;
    if len == 0 {
        return Ok(());
    }
    if dst == 0 || src == 0 {
        return Err(codes::INVALID_VALUE);
    }
    let to = sim.place_of(dst, len, device, ACCESS_READ_WRITE)?;
    let from = sim.place_of(src, len, device, ACCESS_READ)?;
    check_direction(direction, to, from)?;
    let captured = sim.stream(key)?.capture.is_some();
    let pageable = !captured && (to == Place::Pageable || from == Place::Pageable);
    let staged = if pageable && from == Place::Pageable && to != Place::Pageable && len <= STAGED {
        Some(stage(src, len)?)
    } else {
        None
    };
    let must_wait = if wait {
        to.on_host() || from.on_host()
    } else {
        pageable && staged.is_none()
    };
    let action = Action::Copy {
        dst,
        src,
        len,
        staged,
    };
    let seq = sim.submit(key, NODE_MEMCPY, action, copy_ns(to, from, len))?;
    match seq {
        Some(seq) if must_wait => sim.wait_for(key, seq),
        _ => Ok(()),
    }
}

fn stage(src: u64, len: u64) -> Result<Arc<[u8]>> {
    let mut bytes = vec![0u8; len as usize];
    if move_bytes(bytes.as_mut_ptr() as u64, src, len) {
        Ok(bytes.into())
    } else {
        Err(codes::INVALID_VALUE)
    }
}

fn fill(sim: &mut Locked, dst: u64, value: u32, width: u8, count: usize, stream: u64) -> Result {
    let key = sim.stream_key(stream)?;
    let (context, device) = sim.stream(key).map(|s| (s.context, s.device))?;
    sim.context_error(context)?;
    let len = (count as u64)
        .checked_mul(width as u64)
        .ok_or(codes::INVALID_VALUE)?;
    if dst % width as u64 != 0 {
        return Err(codes::INVALID_VALUE);
    }
    if len == 0 {
        return Ok(());
    }
    if sim.place_of(dst, len, device, ACCESS_READ_WRITE)? == Place::Pageable
        || sim.crosses_host_chunks(dst, len)
    {
        return Err(codes::INVALID_VALUE);
    }
    let action = Action::Fill {
        dst,
        value,
        width,
        len,
    };
    sim.submit(key, NODE_MEMSET, action, cost::transfer(len, cost::FILL))?;
    Ok(())
}

driver! {
    fn cuMemcpy(dst: u64, src: u64, len: usize) |sim| { copy(sim, dst, src, len, 0, Direction::Any, true) }
    fn cuMemcpyAsync(dst: u64, src: u64, len: usize, stream: u64) |sim| { copy(sim, dst, src, len, stream, Direction::Any, false) }
    fn cuMemcpyDtoH_v2(dst: u64, src: u64, len: usize) |sim| { copy(sim, dst, src, len, 0, Direction::ToHost, true) }
    fn cuMemcpyHtoD_v2(dst: u64, src: u64, len: usize) |sim| { copy(sim, dst, src, len, 0, Direction::ToDevice, true) }
    fn cuMemcpyDtoD_v2(dst: u64, src: u64, len: usize) |sim| { copy(sim, dst, src, len, 0, Direction::OnDevice, true) }
    fn cuMemcpyDtoHAsync_v2(dst: u64, src: u64, len: usize, stream: u64) |sim| {
        copy(sim, dst, src, len, stream, Direction::ToHost, false)
    }
    fn cuMemcpyHtoDAsync_v2(dst: u64, src: u64, len: usize, stream: u64) |sim| {
        copy(sim, dst, src, len, stream, Direction::ToDevice, false)
    }
    fn cuMemcpyDtoDAsync_v2(dst: u64, src: u64, len: usize, stream: u64) |sim| {
        copy(sim, dst, src, len, stream, Direction::OnDevice, false)
    }
    fn cuMemcpyPeerAsync(dst: u64, dst_context: u64, src: u64, src_context: u64, len: usize, stream: u64) |sim| {
        if sim.contexts.get(dst_context).is_none() || sim.contexts.get(src_context).is_none() {
            return Err(codes::INVALID_CONTEXT);
        }
        copy(sim, dst, src, len, stream, Direction::OnDevice, false)
    }

    fn cuMemsetD8_v2(dst: u64, value: u8, count: usize) |sim| { fill(sim, dst, value as u32, 1, count, 0) }
    fn cuMemsetD16_v2(dst: u64, value: u16, count: usize) |sim| { fill(sim, dst, value as u32, 2, count, 0) }
    fn cuMemsetD32_v2(dst: u64, value: u32, count: usize) |sim| { fill(sim, dst, value, 4, count, 0) }
    fn cuMemsetD8Async(dst: u64, value: u8, count: usize, stream: u64) |sim| { fill(sim, dst, value as u32, 1, count, stream) }
    fn cuMemsetD16Async(dst: u64, value: u16, count: usize, stream: u64) |sim| { fill(sim, dst, value as u32, 2, count, stream) }
    fn cuMemsetD32Async(dst: u64, value: u32, count: usize, stream: u64) |sim| { fill(sim, dst, value, 4, count, stream) }

    fn cuLaunchHostFunc(stream: u64, function: Option<HostFunction>, data: *mut c_void) |sim| {
        let function = function.ok_or(codes::INVALID_VALUE)?;
        let key = sim.stream_key(stream)?;
        let context = sim.stream(key)?.context;
        sim.context_error(context)?;
        sim.submit(key, NODE_HOST, Action::Host { function, data: data as usize }, cost::SHORTEST)?;
        Ok(())
    }
}
