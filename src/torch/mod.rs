//! PyTorch's pluggable allocator: entry points with its signatures, its hooks, and failures raised
//! as its exceptions.

mod cache_info;
mod entry;
mod hooks;
mod raise;
pub mod saver;
mod segments;

pub use cache_info::*;
pub use entry::*;
pub use hooks::*;
pub use segments::*;

use entry::segment_or_null;

use crate::core::tags::TagId;
use crate::error::{Error, Result, Status, Warning, last};
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::observe;
use crate::process::{Demand, Process, tags};
use crate::source::{ALIGN, Kind, LastUse};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs the body of an export, with a panic turned into an error. In the many exports the compiler
/// would call it, which a pair on the short way notices.
#[inline(always)]
fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(Error::new(Status::Internal, "export").detail("a panic was caught; please report it"))
    })
}

/// Runs the body of a hook: torch offers no way to report its failure, so it is remembered for
/// `hbm_last_error` and logged.
fn hook(body: impl FnOnce() -> Result<()>) {
    if let Err(error) = guarded(body) {
        tracing::debug!("{error}");
        last::remember(error);
    }
}

/// A block for one tensor. `None` names the source that the option `backend` does.
fn allocate_block(
    kind: Option<Kind>,
    size: usize,
    device: i32,
    stream: *mut c_void,
) -> Result<*mut c_void> {
    let process = observe::process();
    // torch asks for 0 bytes too, takes NULL for it and never frees that.
    if size == 0 {
        return Ok(std::ptr::null_mut());
    }
    let kind = match kind {
        Some(kind) => kind,
        None => process.default_kind()?,
    };
    let tag = tags::current();
    let is_hooked = process.is_hooked();
    if kind == Kind::Pool && is_hooked {
        let stream = Stream::from_raw(stream);
        if let Some(address) = process.reuse_pooled(device, size as u64, stream, None, tag) {
            return Ok(address as *mut c_void);
        }
    }
    let last_use = if is_hooked {
        LastUse::Told
    } else {
        warn_of_missing_hooks(process);
        LastUse::Unknown
    };
    allocate(kind, size, device, stream, Owner::Block, last_use, tag)
}

/// Where torch calls us, it should tell of streams and captures. Other programs that use these entry
/// points have their blocks given back behind all work, and want for nothing.
fn warn_of_missing_hooks(process: &Process) {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    if !raise::is_torch_known() {
        // Asking the loader takes tens of microseconds, and torch may be loaded later.
        let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        if !calls.is_power_of_two() || !raise::is_torch_here() {
            return;
        }
    }
    process.warnings().warn(Warning::PlainLoad, || {
        "torch loaded the allocator without its hooks, so record_stream and graph pools are unknown here and every free waits behind all work; use hbmalloc.torch.install() instead".to_owned()
    });
}

/// A segment that torch divides up itself. It frees one without saying on which streams its parts
/// were used. No tag stands for that of the thread.
fn allocate_segment(
    kind: Option<Kind>,
    size: usize,
    device: i32,
    stream: *mut c_void,
    tag: TagId,
) -> Result<*mut c_void> {
    if size == 0 {
        return Ok(std::ptr::null_mut());
    }
    let kind = match kind {
        Some(kind) => kind,
        None => observe::process().default_segment_kind()?,
    };
    let last_use = LastUse::Anywhere;
    let tag = tag.or_else(tags::current);
    allocate(kind, size, device, stream, Owner::Segment, last_use, tag)
}

fn allocate(
    kind: Kind,
    size: usize,
    device: i32,
    stream: *mut c_void,
    owner: Owner,
    last_use: LastUse,
    tag: TagId,
) -> Result<*mut c_void> {
    let address = observe::process().allocate(Demand {
        kind,
        device,
        bytes: size as u64,
        align: ALIGN,
        stream: Stream::from_raw(stream),
        owner,
        last_use,
        allocator: None,
        location: None,
        tag,
    })?;
    Ok(address as *mut c_void)
}

/// Our own record says where the block came from; what torch passes along is not needed.
fn deallocate(address: *mut c_void) {
    if !address.is_null() {
        hook(|| observe::process().deallocate(address as u64, None, None));
    }
}
