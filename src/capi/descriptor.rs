//! Descriptors: what memory an allocator, or a block of the host, is to be of.

use super::allocator::hbm_allocator_t;
use super::arena::Place;
use super::custom::Custom;
use super::text_argument;
use crate::config::value::Location;
use crate::error::{Error, Result};
use crate::process::host_making::{HostPages, HostPlan};
use crate::source::Kind;
use crate::sys::policy::Policy;
use std::ffi::{c_char, c_void};

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
    /// A stack over another allocator, the descriptor's `upstream`: a block begins where the last one ended, and only
    /// the last one is deallocated, in some 4 nanoseconds each and with no driver call. Blocks begin at multiples
    /// of 256, of any larger power of two on request, and take multiples of 256. What is freed comes again with what
    /// was written to it.
    ///
    /// Region: blocks lie in one block of the upstream, the region, of which there is none at first. What does not
    /// fit is spilled: a block of the upstream's own, which may be deallocated in any order. hbm_arena_iter,
    /// between two steps of a program, makes the region as long as the largest need so far: all blocks given
    /// out at one time, with what rounding takes.
    ///
    /// Order: what lies in the region is deallocated in the reverse order of its allocation; anything else is
    /// HBM_INVALID_ARGUMENT and changes nothing.
    ///
    /// Streams: the region is used in the order of the stream that hbm_arena_iter was given. Requests for other
    /// streams are spilled. Where a block of the region is deallocated on another stream, or one is recorded for it,
    /// the upstream is told for the whole region, and nothing more is put into that before hbm_arena_iter has it
    /// anew; so name the stream of the allocation. Where the upstream is memory of the host streams mean nothing. A
    /// captured graph writes to the addresses that it was captured with: while it lives, let the region
    /// stay, with no hbm_arena_iter after a larger need and no trim.
    ///
    /// Threads: any thread may use it. One that has it to itself takes no lock.
    HBM_KIND_ARENA = 11,
    /// Functions of the caller, the descriptor's `functions`.
    HBM_KIND_CUSTOM = 12,
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
    /// What an arena is over, of any kind, an arena too; it cannot be destroyed before the arena (HBM_BUSY). Only for
    /// HBM_KIND_ARENA, which has the device and the tag of its upstream.
    pub upstream: *mut hbm_allocator_t,
    /// The functions that give memory out and take it back; copied. Only for HBM_KIND_CUSTOM, whose `device` is what
    /// hbm_allocator_device says, and may be any number.
    pub functions: *const hbm_custom_t,
}

/// Functions of the caller that an allocator is made of. They return an hbm_status, may be called from any thread and by
/// several at once, may call the library, also on the allocator they are of (no lock of ours is held), and must not
/// throw C++ exceptions nor jump out: that ends the process. After fork, in the child, none is called.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_custom_t {
    /// sizeof(hbm_custom_t) as the program was compiled.
    pub struct_size: usize,
    /// The first argument of each.
    pub context: *mut c_void,
    /// Gives out `bytes` above 0 at a multiple of `alignment` (a power of two of at least 256), for use on `stream`. NULL
    /// together with HBM_OK, an address that is no such multiple (it is given to `deallocate`) and one that is given
    /// out already are HBM_INTERNAL for the caller.
    pub allocate: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            bytes: usize,
            alignment: usize,
            stream: *mut c_void,
            out: *mut *mut c_void,
        ) -> i32,
    >,
    /// Takes back what `allocate` gave, of as many bytes as were asked for; `stream` is that of the deallocation. The
    /// block is still allocated if it does not return HBM_OK.
    pub deallocate: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            address: *mut c_void,
            bytes: usize,
            stream: *mut c_void,
        ) -> i32,
    >,
    /// Gives back what it caches, down to `keep` bytes, and writes how many bytes those were. NULL: nothing is cached.
    pub trim:
        Option<unsafe extern "C" fn(context: *mut c_void, keep: u64, released: *mut u64) -> i32>,
}

/// What `hbm_allocator_desc_t` was in earlier versions: up to and with `tag`, `numa_node`, and `unpinned`.
pub(super) const OLDER_SIZES: &[usize] = &[
    std::mem::offset_of!(hbm_allocator_desc_t, location),
    std::mem::offset_of!(hbm_allocator_desc_t, numa_policy),
    std::mem::offset_of!(hbm_allocator_desc_t, upstream),
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
    /// A stack over another allocator.
    Arena(Place),
    /// Functions of the caller.
    Custom(Custom),
}

/// What a descriptor says of where memory is.
///
/// # Safety
/// The name must be NULL or a C string, the functions NULL or a filled-in struct.
pub(super) unsafe fn backing(
    operation: &'static str,
    descriptor: &hbm_allocator_desc_t,
) -> Result<Backing> {
    const ARENA: i32 = hbm_kind::HBM_KIND_ARENA as i32;
    const CUSTOM: i32 = hbm_kind::HBM_KIND_CUSTOM as i32;
    let invalid = |what: String| Err(Error::invalid(operation, what).advice(KINDS));
    if descriptor.kind != ARENA && !descriptor.upstream.is_null() {
        return invalid("only an arena has an upstream".to_owned());
    }
    if descriptor.kind != CUSTOM && !descriptor.functions.is_null() {
        return invalid("only custom takes functions".to_owned());
    }
    if matches!(descriptor.kind, ARENA | CUSTOM) {
        let is_placed = !descriptor.tag.is_null() || descriptor.location != 0;
        if is_placed || says_of_host(descriptor) {
            return invalid(
                "arena and custom take no tag, no location, no fields of the host".to_owned(),
            );
        }
    }
    match descriptor.kind {
        ARENA => return Place::take(operation, descriptor.upstream).map(Backing::Arena),
        CUSTOM => {
            // SAFETY: passed on to the caller.
            let custom = unsafe { Custom::new(operation, descriptor.functions) };
            return custom.map(Backing::Custom);
        }
        _ => {}
    }
    if let Some(kind) = Kind::from_number(descriptor.kind) {
        if says_of_host(descriptor) {
            let what = format!("fields for memory of the host, with kind {}", kind.name());
            return invalid(what);
        }
        let location = location(operation, kind, descriptor)?;
        return Ok(Backing::Device { kind, location });
    }
    // SAFETY: passed on to the caller.
    unsafe { host_plan(operation, descriptor) }.map(Backing::Host)
}

fn says_of_host(descriptor: &hbm_allocator_desc_t) -> bool {
    descriptor.numa_policy != 0
        || descriptor.host_flags != 0
        || descriptor.numa_nodes != 0
        || descriptor.page_bytes != 0
        || !descriptor.shm_name.is_null()
        || descriptor.shm_attach != 0
        || descriptor.unpinned != 0
}

const KINDS: &str = "Kinds: 0 device, 1 managed, 2 async, 3 vmm, 4 pool, 5 pinned; of the host: 6 heap, 7 numa, 8 pinned_numa, 9 hugepage, 10 shm; 11 arena, 12 custom";

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
