//! Memory of the host under the names that LMCache's `mem_alloc` gives it.

use super::descriptor::{OLDER_SIZES, hbm_allocator_desc_t, host_plan};
use super::{export, read_struct, text_argument, write_list, write_struct};
use crate::observe;
use crate::process::host::HostKind;
use crate::process::host_making::{HostPages, HostPlan};
use crate::sys::policy::Policy;
use std::ffi::{c_char, c_int, c_uint};

/// What of the host was given out by the functions below, and by allocators of its kinds, and not yet taken back.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_host_blocks_t {
    /// sizeof(hbm_host_blocks_t) as the program was compiled.
    pub struct_size: usize,
    /// How many blocks.
    pub blocks: u64,
    /// Their bytes as asked for.
    pub requested: u64,
    /// Bytes of their pages.
    pub bytes: u64,
    /// Those of them that are pinned.
    pub pinned: u64,
    /// Blocks that were to be on some nodes and may be anywhere, since the system refused to bind them.
    pub unbound: u64,
}

fn allocate(kind: HostKind, size: usize, plan: HostPlan) -> usize {
    let mut address = 0;
    export(|| {
        address = observe::process().allocate_host(kind, size as u64, &plan)?;
        Ok(())
    });
    address as usize
}

/// The pages of 2 MiB that are set aside, pinned.
fn huge(nodes: Option<(Policy, Vec<i32>)>, flags: c_uint) -> HostPlan {
    HostPlan {
        pages: HostPages::SetAside(2 << 20),
        nodes,
        is_pinned: true,
        flags,
    }
}

fn free(kind: HostKind, address: usize, size: Option<usize>) -> c_int {
    let size = size.map(|size| size as u64);
    export(|| {
        let freed = observe::process().free_host(kind, address as u64, size, None);
        freed.map(|_| ())
    })
}

/// Pinned memory of the host: `size` bytes of zeros, populated by a few threads with huge pages and then
/// registered, portable always. `flags` are those of cudaHostAlloc: 1 portable, 2 mapped, 4 write-combined (which the
/// driver allocates itself, not zeroed); others are an error. Aligned to 2 MiB from 2 MiB on, to 4 KiB below, and of whole
/// such pages. One copy may not cross from one block into another. 0 on failure, see hbm_last_error. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_alloc_pinned_ptr(size: usize, flags: c_uint) -> usize {
    let plan = HostPlan {
        is_pinned: true,
        flags,
        ..HostPlan::default()
    };
    allocate(HostKind::Pinned, size, plan)
}

/// Gives back what hbm_alloc_pinned_ptr gave; waits for the devices' work. HBM_NOT_OWNED for what is none, or no
/// longer, HBM_INVALID_ARGUMENT for what another function gave; nothing has changed then.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_free_pinned_ptr(address: usize) -> c_int {
    free(HostKind::Pinned, address, None)
}

/// Memory of the host, not pinned, on a node: bound to it, or, where the system refuses that with EPERM as many
/// containers do, wherever it comes from, with one warning and counted as unbound; with the option numa_policy=strict
/// that is HBM_UNSUPPORTED. A node that is not there or has no memory is an error that names those that are;
/// -1 is no node. No driver is needed. Otherwise as hbm_alloc_pinned_ptr.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_alloc_numa_ptr(size: usize, node: c_int) -> usize {
    allocate(HostKind::Numa, size, HostPlan::on_node(node, false))
}

/// Gives back what hbm_alloc_numa_ptr gave; `size` must be the one asked for. As hbm_free_pinned_ptr.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_free_numa_ptr(address: usize, size: usize) -> c_int {
    free(HostKind::Numa, address, Some(size))
}

/// Pinned memory of the host on a node: as hbm_alloc_numa_ptr and hbm_alloc_pinned_ptr.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_alloc_pinned_numa_ptr(size: usize, node: c_int) -> usize {
    allocate(HostKind::PinnedNuma, size, HostPlan::on_node(node, true))
}

/// Gives back what hbm_alloc_pinned_numa_ptr gave; `size` must be the one asked for. As hbm_free_pinned_ptr.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_free_pinned_numa_ptr(address: usize, size: usize) -> c_int {
    free(HostKind::PinnedNuma, address, Some(size))
}

/// Pinned memory from huge pages of 2 MiB that the administrator has set aside, `size` rounded up to them; too few
/// of them are an error that says how many are free. `flags` as of hbm_alloc_pinned_ptr, but not write-combined.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_alloc_hugepage_pinned_ptr(size: usize, flags: c_uint) -> usize {
    allocate(HostKind::HugePinned, size, huge(None, flags))
}

/// Gives back what hbm_alloc_hugepage_pinned_ptr gave; `size` must be the one asked for. As hbm_free_pinned_ptr.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_free_hugepage_pinned_ptr(address: usize, size: usize) -> c_int {
    free(HostKind::HugePinned, address, Some(size))
}

/// As hbm_alloc_hugepage_pinned_ptr, on a node as of hbm_alloc_numa_ptr.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_alloc_hugepage_pinned_numa_ptr(size: usize, node: c_int) -> usize {
    let nodes = Some((Policy::Bind, vec![node]));
    allocate(HostKind::HugePinnedNuma, size, huge(nodes, 0))
}

/// Gives back what hbm_alloc_hugepage_pinned_numa_ptr gave; `size` must be the one asked for. As hbm_free_pinned_ptr.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_free_hugepage_pinned_numa_ptr(address: usize, size: usize) -> c_int {
    free(HostKind::HugePinnedNuma, address, Some(size))
}

unsafe fn share(operation: &'static str, size: usize, name: *const c_char, is_new: bool) -> usize {
    let mut address = 0;
    export(|| {
        // SAFETY: passed on to the caller.
        let name = unsafe { text_argument(operation, "name", name) }?;
        let plan = HostPlan {
            pages: HostPages::Shared {
                name: name.to_owned(),
                is_new,
            },
            is_pinned: true,
            ..HostPlan::default()
        };
        let kind = HostKind::SharedPinned;
        address = observe::process().allocate_host(kind, size as u64, &plan)?;
        Ok(())
    });
    address as usize
}

/// Pinned memory that other processes of the user can have too, under a name as of shm_open, mode 0600 (and the sticky bit): zeros, otherwise as
/// hbm_alloc_pinned_ptr. What a process that ended left under the name goes; HBM_BUSY where one that lives has it.
/// /dev/shm must have as many bytes left. The name goes with its maker's hbm_free_shm_pinned_ptr or exit; who is attached keeps
/// the memory. 0 on failure.
///
/// # Safety
/// `name` must be NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_alloc_shm_pinned_ptr(size: usize, name: *const c_char) -> usize {
    // SAFETY: passed on to the caller.
    unsafe { share("hbm_alloc_shm_pinned_ptr", size, name, true) }
}

/// The memory of that name that another process, or this one, made by hbm_alloc_shm_pinned_ptr and still has, at least
/// `size` bytes of it, pinned here too; contents are as they are. hbm_free_shm_pinned_ptr gives it up. 0 on failure.
///
/// # Safety
/// `name` must be NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_attach_shm_pinned_ptr(size: usize, name: *const c_char) -> usize {
    // SAFETY: passed on to the caller.
    unsafe { share("hbm_attach_shm_pinned_ptr", size, name, false) }
}

/// Gives back what the two functions above gave; `size` and `name` must be those asked for. The name goes too, if it was
/// made here. As hbm_free_pinned_ptr.
///
/// # Safety
/// `name` must be NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_free_shm_pinned_ptr(
    address: usize,
    size: usize,
    name: *const c_char,
) -> c_int {
    export(|| {
        // SAFETY: passed on to the caller.
        let name = unsafe { text_argument("hbm_free_shm_pinned_ptr", "name", name) }?;
        let (kind, size) = (HostKind::SharedPinned, Some(size as u64));
        let freed = observe::process().free_host(kind, address as u64, size, Some(name));
        freed.map(|_| ())
    })
}

/// Memory of the host as a descriptor of HBM_KIND_HEAP or a kind behind it says: policies over several nodes, huge pages
/// of 1 GiB, names without pinning. 0 on failure.
///
/// # Safety
/// `descriptor` must point to a filled-in descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_alloc_host_ptr(
    size: usize,
    descriptor: *const hbm_allocator_desc_t,
) -> usize {
    const OPERATION: &str = "hbm_alloc_host_ptr";
    let mut address = 0;
    export(|| {
        // SAFETY: passed on to the caller.
        let descriptor = unsafe { read_struct(OPERATION, descriptor, OLDER_SIZES)? };
        // SAFETY: as above.
        let plan = unsafe { host_plan(OPERATION, &descriptor)? };
        address = observe::process().allocate_host(HostKind::Described, size as u64, &plan)?;
        Ok(())
    });
    address as usize
}

/// Gives back what hbm_alloc_host_ptr gave; `size` must be the one asked for. As hbm_free_pinned_ptr.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_free_host_ptr(address: usize, size: usize) -> c_int {
    free(HostKind::Described, address, Some(size))
}

/// Writes where the registrations of a block end, as bytes from `address`, at which it begins, and how many they are: one
/// unless it is pinned and above 256 GiB, which drivers register in parts. One copy may not cross from one into the next;
/// hbm_memcpy_batch cuts there. At most `capacity` are written. HBM_NOT_OWNED for what is no block of the functions above,
/// or of an allocator of the host's kinds.
///
/// # Safety
/// `ends` must have room for `capacity` numbers or be NULL with capacity 0, `count` be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_host_seams(
    address: usize,
    ends: *mut u64,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    const OPERATION: &str = "hbm_host_seams";
    export(|| {
        let found = observe::process().host_block_seams(OPERATION, address as u64)?;
        // SAFETY: passed on to the caller.
        unsafe { write_list(OPERATION, &found, ends, capacity, count) }
    })
}

/// Writes what the functions above, and allocators of the host's kinds, gave out and did not take back yet.
///
/// # Safety
/// `out` must point to a struct whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_host_blocks(out: *mut hbm_host_blocks_t) -> c_int {
    export(|| {
        let stats = observe::process().host_block_stats()?;
        let stats = hbm_host_blocks_t {
            struct_size: size_of::<hbm_host_blocks_t>(),
            blocks: stats.blocks,
            requested: stats.requested,
            bytes: stats.bytes,
            pinned: stats.pinned,
            unbound: stats.unbound,
        };
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_host_blocks", out, &stats) }
    })
}
