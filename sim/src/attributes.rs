//! Device attributes by the driver's numbers: those of one H200 with driver 580, but for what the configuration decides.

use crate::config::{Config, Fabric};

/// Attribute n is at place n - 1.
#[rustfmt::skip]
const CARD: [i32; 145] = [
    1024, 1024, 1024, 64, 2147483647, 65535, 65535, 49152, 65536, 32,
    2147483647, 65536, 1980000, 512, 1, 132, 0, 0, 1, 0,
    131072, 131072, 65536, 16384, 16384, 16384, 32768, 32768, 2048, 512,
    1, 1, 0, 6, 0, 3201000, 6016, 62914560, 2048, 3,
    1, 32768, 2048, 1, 32768, 32768, 8192, 8192, 32768, 0,
    32, 32768, 32768, 2046, 32768, 131072, 65536, 16384, 16384, 16384,
    32768, 2048, 32768, 32768, 2048, 32768, 32768, 2046, 268435456, 131072,
    65000, 2097120, 32768, 32768, 9, 0, 32768, 1, 1, 1,
    233472, 65536, 1, 0, 0, 0, 2, 0, 1, 1,
    1, 0, 0, 0, 1, 1, 232448, 0, 1, 0,
    0, 1, 1, 0, 0, 32, 1, 39321600, 134217728, 1,
    1024, 1, 1, 1, 1, 1, 1, 100, 9, 1,
    1, 1, 1, 1, 1, 4, 1, 1, 1, 0,
    -1, 0, 0, 0, 0, 0, 0, 0, 590680286, 415174878,
    1, 1, 0, 1, 1,
];

/// An attribute's value; none past the ones that this driver knows.
pub fn value(config: &Config, which: i32, device: i32) -> Option<i32> {
    let known = *CARD.get(usize::try_from(which).ok()?.checked_sub(1)?)?;
    let exports = config.vmm && config.posix_fd;
    Some(match which {
        // PCI bus and device.
        33 => device,
        34 => 0,
        // Pageable memory access, the host's page tables, direct access from the host.
        88 | 100 | 101 => config.coherent as i32,
        89 => config.concurrent_managed as i32,
        // Virtual memory management, and its POSIX file handles.
        102 => config.vmm as i32,
        103 => exports as i32,
        // GPUDirect RDMA: with virtual memory management, and at all.
        110 => (config.rdma && config.vmm) as i32,
        116 => config.rdma as i32,
        115 => config.pools as i32,
        // Handle types of pools: file handles, and fabric.
        119 if !config.pools => 0,
        119 => {
            let fabric = if config.fabric == Fabric::None { 0 } else { 8 };
            (config.posix_fd as i32) + fabric
        }
        128 => (config.fabric != Fabric::None) as i32,
        // Whether the card is a NUMA node of its own, and which.
        130 => config.coherent as i32,
        131 if config.coherent => config.numa_nodes as i32 + device,
        132 => config.multicast as i32,
        // The domain of its address on the bus: one that no machine has.
        50 => 0xFFFF,
        // The nearest host node.
        134 if !config.node_known => -1,
        134 => device % config.numa_nodes as i32,
        141 => (config.host_numa && config.vmm) as i32,
        142 => (config.host_numa && config.pools) as i32,
        145 => (config.host_numa && config.vmm && config.version >= 13_000) as i32,
        _ => known,
    })
}
