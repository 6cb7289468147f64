//! Attributes of devices: HIP has numbers of its own, and not all of them.

/// The driver's number and HIP's, of what this library asks for.
const NUMBERS: &[(i32, i32)] = &[
    (MANAGED_MEMORY, 24),
    (CONCURRENT_MANAGED_ACCESS, 9),
    (PAGEABLE_MEMORY_ACCESS, 65),
    (PAGEABLE_USES_HOST_PAGE_TABLES, 66),
    (VIRTUAL_MEMORY_MANAGEMENT, 89),
    // HIP has none of its own; where chunks can be made, one that can be exported is tried.
    (POSIX_FD_HANDLES, 89),
    (RDMA_WITH_VMM, 94),
    (MEMORY_POOLS, 88),
    (HOST_NUMA_ID, 92),
];

const MANAGED_MEMORY: i32 = 83;
const PAGEABLE_MEMORY_ACCESS: i32 = 88;
const CONCURRENT_MANAGED_ACCESS: i32 = 89;
const PAGEABLE_USES_HOST_PAGE_TABLES: i32 = 100;
const VIRTUAL_MEMORY_MANAGEMENT: i32 = 102;
const POSIX_FD_HANDLES: i32 = 103;
const RDMA_WITH_VMM: i32 = 110;
const MEMORY_POOLS: i32 = 115;
const HOST_NUMA_ID: i32 = 134;

/// HIP's number for the driver's attribute; none for what HIP devices do not tell.
pub fn in_hip(attribute: i32) -> Option<i32> {
    let (_, hip) = NUMBERS.iter().find(|(cuda, _)| *cuda == attribute)?;
    Some(*hip)
}
