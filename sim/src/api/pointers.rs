//! What the driver knows of an address.

use crate::abi::{ACCESS_NONE, HANDLE_FABRIC, HANDLE_POSIX_FD, LOCATION_DEVICE};
use crate::codes::{self, Result};
use crate::context::primary_handle;
use crate::entry::driver;
use crate::region::Kind;
use crate::sim::Sim;
use std::ffi::c_void;

const MEMORY_HOST: u64 = 1;
const MEMORY_DEVICE: u64 = 2;

const CONTEXT: i32 = 1;
const MEMORY_TYPE: i32 = 2;
const DEVICE_POINTER: i32 = 3;
const HOST_POINTER: i32 = 4;
const SYNC_MEMOPS: i32 = 6;
const BUFFER_ID: i32 = 7;
const IS_MANAGED: i32 = 8;
const DEVICE_ORDINAL: i32 = 9;
const LEGACY_IPC: i32 = 10;
const RANGE_START: i32 = 11;
const RANGE_SIZE: i32 = 12;
const MAPPED: i32 = 13;
const HANDLE_TYPES: i32 = 14;
const RDMA: i32 = 15;
const ACCESS_FLAGS: i32 = 16;
const MEMPOOL: i32 = 17;

/// One answer: its value and how many bytes of it the attribute has.
fn answer(value: u64, bytes: usize) -> Result<(u64, usize)> {
    Ok((value, bytes))
}

struct Facts {
    kind: u64,
    host: bool,
    managed: bool,
    legacy: bool,
    device: i32,
    context: u64,
    id: u64,
    pool: u64,
    /// Some device was given access.
    reachable: bool,
    handle_types: u32,
    rdma: bool,
    start: u64,
    size: u64,
}

fn facts(sim: &Sim, address: u64) -> Result<Facts> {
    let (start, size) = sim.allocation_range(address).ok_or(codes::INVALID_VALUE)?;
    let mut facts = Facts {
        kind: MEMORY_HOST,
        host: true,
        managed: false,
        legacy: false,
        device: 0,
        context: 0,
        id: 0,
        pool: 0,
        reachable: true,
        handle_types: 0,
        rdma: false,
        start,
        size,
    };
    let Some((_, region)) = sim.regions.find(address) else {
        facts.context = sim.host.find(address).map_or(0, |(_, entry)| entry.context);
        return Ok(facts);
    };
    facts.context = region.context;
    facts.id = region.id;
    match &region.kind {
        Kind::Pinned { .. } => {
            facts.device = sim.contexts.get(region.context).map_or(0, |c| c.device)
        }
        Kind::Managed(_) => {
            facts.kind = MEMORY_DEVICE;
            facts.managed = true;
            facts.device = sim.contexts.get(region.context).map_or(0, |c| c.device);
        }
        Kind::Device { device } => {
            facts.on_device(*device, true);
            facts.rdma = sim.config.rdma;
        }
        Kind::PoolSpace { pool } => {
            facts.on_device(sim.pools.device_of(*pool).unwrap_or(0), false);
            facts.context = 0;
            facts.pool = *pool;
        }
        Kind::Reservation(_) => describe_mapping(sim, address, &mut facts),
    }
    Ok(facts)
}

impl Facts {
    fn on_device(&mut self, device: i32, legacy: bool) {
        self.kind = MEMORY_DEVICE;
        self.host = false;
        self.device = device;
        self.legacy = legacy;
        if self.context == 0 {
            self.context = primary_handle(device);
        }
    }
}

fn describe_mapping(sim: &Sim, address: u64, facts: &mut Facts) {
    let Some(mapping) = sim.mapping_at(address) else {
        return;
    };
    facts.reachable = mapping.widest() != ACCESS_NONE;
    facts.host = false;
    facts.context = 0;
    let Some(chunk) = sim.chunks.by_key(mapping.chunk) else {
        return;
    };
    facts.handle_types = chunk.prop.handle_types & (HANDLE_POSIX_FD | HANDLE_FABRIC);
    facts.rdma = chunk.prop.rdma != 0;
    if chunk.prop.location.kind == LOCATION_DEVICE {
        facts.on_device(chunk.prop.location.id, false);
        facts.context = 0;
    }
}

fn value(sim: &Sim, facts: &Facts, address: u64, which: i32) -> Result<(u64, usize)> {
    match which {
        CONTEXT => answer(facts.context, 8),
        MEMORY_TYPE => answer(facts.kind, 4),
        DEVICE_POINTER if !facts.reachable => Err(codes::INVALID_VALUE),
        DEVICE_POINTER => answer(address, 8),
        HOST_POINTER if facts.host => answer(address, 8),
        HOST_POINTER => Err(codes::INVALID_VALUE),
        SYNC_MEMOPS => answer(facts.managed as u64, 4),
        BUFFER_ID => answer(facts.id, 8),
        IS_MANAGED => answer(facts.managed as u64, 4),
        DEVICE_ORDINAL => answer(facts.device as u64, 4),
        LEGACY_IPC => answer(facts.legacy as u64, 4),
        RANGE_START => answer(facts.start, 8),
        RANGE_SIZE => answer(facts.size, 8),
        MAPPED => answer(1, 4),
        HANDLE_TYPES => answer(facts.handle_types as u64, 8),
        RDMA => answer(facts.rdma as u64, 4),
        ACCESS_FLAGS => {
            let device = crate::context::top();
            let device = sim.contexts.get(device).map_or(0, |c| c.device);
            let flags = sim
                .mapping_at(address)
                .map_or(3, |m| m.flags(LOCATION_DEVICE, device));
            answer(flags as u64, 4)
        }
        MEMPOOL => answer(facts.pool, 8),
        _ => Err(codes::INVALID_VALUE),
    }
}

/// # Safety
/// `to` has room for the attribute.
unsafe fn write(to: *mut c_void, (value, bytes): (u64, usize)) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), to.cast(), bytes) };
}

/// The answer for an address that nobody knows.
fn nothing(which: i32) -> u64 {
    if which == DEVICE_ORDINAL {
        -2i32 as u32 as u64
    } else {
        0
    }
}

/// How many bytes an attribute has, known without an answer.
fn width(which: i32) -> usize {
    match which {
        CONTEXT | DEVICE_POINTER | HOST_POINTER | BUFFER_ID | RANGE_START | RANGE_SIZE
        | HANDLE_TYPES | MEMPOOL => 8,
        _ => 4,
    }
}

driver! {
    fn cuPointerGetAttribute(to: *mut c_void, which: i32, address: u64) |sim| {
        if to.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        let facts = facts(sim, address)?;
        let found = value(sim, &facts, address, which)?;
        // SAFETY: the caller passes room for the attribute it names.
        unsafe { write(to, found) };
        Ok(())
    }

    fn cuPointerGetAttributes(count: u32, which: *const i32, to: *mut *mut c_void, address: u64) |sim| {
        if which.is_null() || to.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        let facts = facts(sim, address).ok();
        for at in 0..count as usize {
            // SAFETY: the caller passes as many of each as it says.
            let (which, to) = unsafe { (*which.add(at), *to.add(at)) };
            if to.is_null() {
                return Err(codes::INVALID_VALUE);
            }
            // What does not apply is answered with zeros here, not with an error.
            let found = facts.as_ref().and_then(|facts| value(sim, facts, address, which).ok());
            // SAFETY: the caller passes room for the attribute it names.
            unsafe { write(to, found.unwrap_or((nothing(which), width(which)))) };
        }
        Ok(())
    }
}
