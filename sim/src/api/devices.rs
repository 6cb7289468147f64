//! Devices and what they say of themselves.

use crate::abi::Uuid;
use crate::codes::{self, Out, put};
use crate::config::Config;
use crate::config::Fabric;
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

/// Attributes by the driver's numbers. What is not listed answers 0, as an unsupported feature does.
fn attribute(config: &Config, which: i32, device: i32) -> codes::Result<i32> {
    let flag = |value: bool| Ok(value as i32);
    match which {
        1 => Ok(1024),                        // threads a block
        8 => Ok(227 << 10),                   // shared memory a block
        10 => Ok(32),                         // warp
        13 => Ok(1_980_000),                  // clock in kHz
        14 => Ok(512),                        // texture alignment
        15 | 19 | 31 | 37 | 40 | 41 => Ok(1), // overlap, map host memory, concurrent kernels, unified addressing, async engines...
        16 => Ok(132),                        // multiprocessors
        33 => Ok(device),                     // PCI bus
        34 => Ok(0),                          // PCI device
        36 => Ok(3_201_000),                  // memory clock in kHz
        38 => Ok(50 << 20),                   // L2 cache
        39 => Ok(2048),                       // threads a multiprocessor
        50 => Ok(0),                          // PCI domain
        75 => Ok(9),                          // compute capability
        76 => Ok(0),
        78 => Ok(1),                                         // stream priorities
        83 => Ok(1),                                         // managed memory
        88 | 100 => flag(config.coherent), // pageable memory access, and by the host's page tables
        89 => flag(config.concurrent_managed), // concurrent managed access
        91 => Ok(1),                       // host pointer for registered memory
        99 => Ok(1),                       // host registration
        101 => flag(config.coherent),      // direct managed access from the host
        102 => flag(config.vmm),           // virtual memory management
        103 => flag(config.vmm && config.posix_fd), // POSIX file handles
        110 => flag(config.rdma),          // GPUDirect RDMA
        115 => flag(config.pools),         // stream-ordered pools
        116 => flag(config.rdma && config.vmm), // GPUDirect RDMA with virtual memory management
        119 => Ok((config.pools && config.posix_fd) as i32), // handle types of pools
        128 => flag(config.fabric != Fabric::None), // fabric handles
        130 => Ok(if config.coherent {
            device % config.numa_nodes as i32
        } else {
            -1
        }), // device's NUMA node
        132 => flag(config.multicast),
        134 => Ok(if config.numa_nodes > 0 { 0 } else { -1 }), // nearest host node
        141 => flag(config.host_numa && config.vmm), // host memory with virtual memory management
        ..=0 => Err(codes::INVALID_VALUE),
        _ => Ok(0),
    }
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
        put(value, attribute(&sim.config, which, device)?)
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
        write_text(text, len, &format!("0000:{device:02X}:00.0"))
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
