//! Descriptors: what memory an allocator, or a block of the host, is to be of.

use super::text_argument;
use crate::config::value::Location;
use crate::error::{Error, Result};
use crate::process::host_making::{HostPages, HostPlan};
use crate::source::Kind;
use crate::sys::policy::Policy;
use std::ffi::c_char;

/// The kinds of allocator.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_kind {
    /// Synchronous device memory: a free waits for all work of the device.
    HBM_KIND_DEVICE = 0,
    /// Managed memory.
    HBM_KIND_MANAGED = 1,
    /// The driver's stream-ordered pools.
    HBM_KIND_ASYNC = 2,
    /// Virtual memory management; at least one granule (2 MiB) a block.
    HBM_KIND_VMM = 3,
    /// The caching pool, which the option `backend` names unless it is set. It gets its memory from what
    /// the option `pool_source` names and keeps what is freed, for its own blocks, until hbm_trim or
    /// until memory is short. Blocks take multiples of 512 bytes and are aligned to 512; any other power
    /// of two on request.
    ///
    /// Streams: a freed block serves requests for its own stream again at once, with no driver call, as
    /// whatever uses it still comes before in that stream's order. Other streams get its memory once
    /// that work is done. Streams named besides, by hbm_allocator_record_stream or by a free on another
    /// stream than the block's own, hold it back until the work they have been given is done. No free
    /// waits; an allocation waits only where memory would otherwise have run out.
    ///
    /// Threads: any thread may allocate and free any block. A thread keeps some of what it frees for
    /// itself, by stream and tag, and then takes no lock; what it keeps goes to the others when it
    /// ends, by hbm_trim, and when memory is short.
    ///
    /// Captures: each allocation asks the driver whether its stream captures, which costs more than the
    /// rest of it; not in programs that promise by hbm_captures_told to tell of every capture.
    HBM_KIND_POOL = 4,
    /// Pinned memory of the host, which every device and the host use at the same address; devices
    /// reach it over the link. It takes nothing of the device's limit. A free waits for the streams
    /// that used the block. Making and freeing it is slow (about 0.4 and 0.1 s a GiB): the pool over
    /// it keeps it.
    HBM_KIND_PINNED = 5,
    /// Memory of the host's heap, of any alignment. This kind and those below are of no device, and need
    /// no driver unless they are pinned; streams mean nothing to them: a free of pinned memory waits for the
    /// devices' work. Blocks are zeros, and neither tagged nor limited.
    HBM_KIND_HEAP = 6,
    /// Memory of the host on nodes, not pinned: as hbm_alloc_numa_ptr.
    HBM_KIND_NUMA = 7,
    /// Pinned memory of the host on nodes: as hbm_alloc_pinned_numa_ptr.
    HBM_KIND_PINNED_NUMA = 8,
    /// Pinned memory of the host from huge pages that were set aside, on nodes if a policy is named.
    HBM_KIND_HUGEPAGE = 9,
    /// Pinned memory of the host under a name, on nodes if a policy is named: as hbm_alloc_shm_pinned_ptr, so one
    /// block at a time.
    HBM_KIND_SHM = 10,
}

/// How the nodes of host memory are meant.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_numa_policy {
    /// HBM_NUMA_BIND for the kinds that are on nodes, else no node.
    HBM_NUMA_DEFAULT = 0,
    /// Memory of these nodes and no other.
    HBM_NUMA_BIND = 1,
    /// Of one node, and of others once that has none left.
    HBM_NUMA_PREFERRED = 2,
    /// Of these nodes in turn, a page each.
    HBM_NUMA_INTERLEAVE = 3,
}

/// Where virtual-memory blocks live.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_location {
    /// As the option `vmm_location` says.
    HBM_LOCATION_DEFAULT = 0,
    /// In the memory of the device.
    HBM_LOCATION_DEVICE = 1,
    /// In host memory of the NUMA node `numa_node`, mapped for the device.
    HBM_LOCATION_HOST_NUMA = 2,
}

/// What allocator to make. Zero it, fill in `struct_size`, then what differs from zero.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_allocator_desc_t {
    /// sizeof(hbm_allocator_desc_t) as the program was compiled.
    pub struct_size: usize,
    /// An hbm_kind.
    pub kind: i32,
    /// The device's ordinal.
    pub device: i32,
    /// A tag for its blocks, of 1 to 255 bytes; or NULL: that of the allocating thread. Copied.
    pub tag: *const c_char,
    /// An hbm_location; only for HBM_KIND_VMM.
    pub location: i32,
    /// The NUMA node of HBM_LOCATION_HOST_NUMA, and of memory of the host where `numa_nodes` is 0.
    pub numa_node: i32,
    /// An hbm_numa_policy. This and what follows only for HBM_KIND_HEAP and the kinds behind it.
    pub numa_policy: i32,
    /// Those of cudaHostAlloc, for what is pinned: 1 portable (always so), 2 mapped.
    pub host_flags: u32,
    /// Several nodes at once, bit i for node i; 0 for `numa_node` alone.
    pub numa_nodes: u64,
    /// The length of the huge pages: 2 MiB (also where it is 0) or 1 GiB. Only for HBM_KIND_HUGEPAGE.
    pub page_bytes: u64,
    /// The name, as for shm_open; copied. Only for HBM_KIND_SHM.
    pub shm_name: *const c_char,
    /// Not 0: what another process, or this one, has under the name, rather than made anew.
    pub shm_attach: i32,
    /// Not 0: HBM_KIND_HUGEPAGE and HBM_KIND_SHM without pinning, so that no driver is needed.
    pub unpinned: i32,
}

/// What `hbm_allocator_desc_t` was in earlier versions: up to and with `tag`, and `numa_node`.
pub(super) const OLDER_SIZES: &[usize] = &[
    std::mem::offset_of!(hbm_allocator_desc_t, location),
    std::mem::offset_of!(hbm_allocator_desc_t, numa_policy),
];

/// Where an allocator has its memory.
pub(super) enum Backing {
    /// A source of a device.
    Device {
        kind: Kind,
        location: Option<Location>,
    },
    /// The host.
    Host(HostPlan),
}

/// What a descriptor says of where memory is.
///
/// # Safety
/// The name must be NULL or a C string.
pub(super) unsafe fn backing(
    operation: &'static str,
    descriptor: &hbm_allocator_desc_t,
) -> Result<Backing> {
    if let Some(kind) = Kind::from_number(descriptor.kind) {
        let is_of_host = descriptor.numa_policy != 0
            || descriptor.host_flags != 0
            || descriptor.numa_nodes != 0
            || descriptor.page_bytes != 0
            || !descriptor.shm_name.is_null()
            || descriptor.shm_attach != 0
            || descriptor.unpinned != 0;
        if is_of_host {
            let what = format!("fields for memory of the host, with kind {}", kind.name());
            return Err(Error::invalid(operation, what).advice(KINDS));
        }
        let location = location(operation, kind, descriptor)?;
        return Ok(Backing::Device { kind, location });
    }
    // SAFETY: passed on to the caller.
    unsafe { host_plan(operation, descriptor) }.map(Backing::Host)
}

const KINDS: &str = "Kinds: 0 device, 1 managed, 2 async, 3 vmm, 4 pool, 5 pinned; of the host: 6 heap, 7 numa, 8 pinned_numa, 9 hugepage, 10 shm";

fn location(
    operation: &'static str,
    kind: Kind,
    descriptor: &hbm_allocator_desc_t,
) -> Result<Option<Location>> {
    match descriptor.location {
        0 => Ok(None),
        _ if kind != Kind::Vmm => Err(Error::invalid(operation, "only vmm takes a location")),
        1 => Ok(Some(Location::Device)),
        2 if descriptor.numa_node >= 0 => Ok(Some(Location::HostNuma(descriptor.numa_node))),
        other => Err(Error::invalid(
            operation,
            format!(
                "location {other} with NUMA node {} is none",
                descriptor.numa_node
            ),
        )),
    }
}

/// The memory of the host that a descriptor of one of its kinds says.
///
/// # Safety
/// The name must be NULL or a C string.
pub(super) unsafe fn host_plan(
    operation: &'static str,
    descriptor: &hbm_allocator_desc_t,
) -> Result<HostPlan> {
    const HEAP: i32 = hbm_kind::HBM_KIND_HEAP as i32;
    const NUMA: i32 = hbm_kind::HBM_KIND_NUMA as i32;
    const PINNED_NUMA: i32 = hbm_kind::HBM_KIND_PINNED_NUMA as i32;
    const HUGEPAGE: i32 = hbm_kind::HBM_KIND_HUGEPAGE as i32;
    const SHM: i32 = hbm_kind::HBM_KIND_SHM as i32;
    let kind = descriptor.kind;
    let invalid = |what: String| Err(Error::invalid(operation, what).advice(KINDS));
    let pages = match kind {
        HEAP => HostPages::Heap,
        NUMA | PINNED_NUMA => HostPages::Ordinary,
        HUGEPAGE => HostPages::SetAside(page_bytes(operation, descriptor.page_bytes)?),
        SHM => HostPages::Shared {
            // SAFETY: passed on to the caller.
            name: unsafe { text_argument(operation, "shm_name", descriptor.shm_name)? }.to_owned(),
            is_new: descriptor.shm_attach == 0,
        },
        other => return invalid(format!("kind {other} is none of the host's")),
    };
    if kind != HUGEPAGE && descriptor.page_bytes != 0 {
        return invalid("only hugepage takes a length of pages".to_owned());
    }
    if kind != SHM && (!descriptor.shm_name.is_null() || descriptor.shm_attach != 0) {
        return invalid("only shm takes a name".to_owned());
    }
    if kind != SHM && kind != HUGEPAGE && descriptor.unpinned != 0 {
        return invalid("only hugepage and shm are pinned or not".to_owned());
    }
    if !descriptor.tag.is_null() || descriptor.location != 0 {
        return invalid("memory of the host takes no tag and no location".to_owned());
    }
    let plan = HostPlan {
        nodes: nodes(operation, descriptor, matches!(kind, NUMA | PINNED_NUMA))?,
        is_pinned: kind == PINNED_NUMA || (pages.can_be_either() && descriptor.unpinned == 0),
        flags: descriptor.host_flags,
        pages,
    };
    plan.check(operation)?;
    Ok(plan)
}

fn page_bytes(operation: &'static str, bytes: u64) -> Result<u64> {
    match bytes {
        0 => Ok(2 << 20),
        bytes if bytes == 2 << 20 || bytes == 1 << 30 => Ok(bytes),
        other => Err(
            Error::invalid(operation, format!("huge pages of {other} bytes"))
                .advice("They are of 2097152 (2 MiB) or 1073741824 (1 GiB)"),
        ),
    }
}

/// The nodes that are named and how they are meant; a kind that is on nodes needs no policy.
fn nodes(
    operation: &'static str,
    descriptor: &hbm_allocator_desc_t,
    is_on_nodes: bool,
) -> Result<Option<(Policy, Vec<i32>)>> {
    let policy = match descriptor.numa_policy {
        0 if is_on_nodes => Policy::Bind,
        0 if descriptor.numa_nodes == 0 && descriptor.numa_node == 0 => return Ok(None),
        0 => {
            return Err(Error::invalid(operation, "nodes are named, and no policy")
                .advice("Set numa_policy: 1 bind, 2 preferred, 3 interleave"));
        }
        1 => Policy::Bind,
        2 => Policy::Preferred,
        3 => Policy::Interleave,
        other => {
            return Err(
                Error::invalid(operation, format!("the policy {other} is none"))
                    .advice("Policies: 0 default, 1 bind, 2 preferred, 3 interleave"),
            );
        }
    };
    let several = (0..64).filter(|node| descriptor.numa_nodes & (1 << node) != 0);
    Ok(Some((
        policy,
        match descriptor.numa_nodes {
            0 => vec![descriptor.numa_node],
            _ => several.collect(),
        },
    )))
}
