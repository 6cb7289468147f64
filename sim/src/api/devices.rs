//! Devices and what they say of themselves.

use crate::abi::Uuid;
use crate::attributes;
use crate::codes::{self, Out, put};
use crate::entry::driver;
use std::ffi::c_char;

/// Copies a text with its terminator into a caller's buffer, cut where it does not fit.
fn write_text(to: *mut c_char, len: i32, text: &str) -> codes::Result {
    if to.is_null() || len <= 0 {
        return Err(codes::INVALID_VALUE);
    }
    let count = text.len().min(len as usize - 1);
    // SAFETY: the caller's buffer has len bytes, and count is less.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, count);
        to.add(count).write(0);
    }
    Ok(())
}

driver! {
    fn cuDeviceGetCount(count: Out<i32>) |sim| { put(count, sim.config.devices as i32) }

    fn cuDeviceGet(device: Out<i32>, ordinal: i32) |sim| {
        sim.check_device(ordinal)?;
        put(device, ordinal)
    }

    fn cuDeviceGetName(name: *mut c_char, len: i32, device: i32) |sim| {
        sim.check_device(device)?;
        write_text(name, len, &sim.config.name)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, which: i32, device: i32) |sim| {
        sim.check_device(device)?;
        let found = attributes::value(&sim.config, which, device);
        put(value, found.ok_or(codes::INVALID_VALUE)?)
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) |sim| {
        sim.check_device(device)?;
        put(bytes, sim.config.memory as usize)
    }

    fn cuDeviceGetUuid(uuid: Out<Uuid>, device: i32) |sim| {
        sim.check_device(device)?;
        put(uuid, uuid_of(device))
    }

    fn cuDeviceGetUuid_v2(uuid: Out<Uuid>, device: i32) |sim| {
        sim.check_device(device)?;
        put(uuid, uuid_of(device))
    }

    fn cuDeviceGetPCIBusId(text: *mut c_char, len: i32, device: i32) |sim| {
        sim.check_device(device)?;
        write_text(text, len, &format!("FFFF:{device:02X}:00.0"))
    }

    fn cuDeviceCanAccessPeer(able: Out<i32>, device: i32, peer: i32) |sim| {
        sim.check_device(device)?;
        sim.check_device(peer)?;
        put(able, (sim.config.peers && device != peer) as i32)
    }
}

/// Says what it is, and which device.
fn uuid_of(device: i32) -> Uuid {
    let mut bytes = *b"hbmalloc-sim-dev";
    bytes[15] = device as u8;
    Uuid { bytes }
}
