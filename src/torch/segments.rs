//! Segment functions bound to a tag. torch calls a MemPool's allocator with a size, a device and a
//! stream, and nothing else; so that a pool's segments know their tag, each tagged pool gets an
//! allocation function of its own out of a fixed supply.

use super::entry::{segment_or_null, vmm_segment_free};
use super::{allocate_segment, guarded};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status, last};
use crate::process::{check_not_forked, tags};
use crate::source::Kind;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Mutex;

/// More tags than programs use; asking for the same tag and source again gives the same function.
const SLOTS: usize = 64;

/// The source and the tag of each function given out.
type Binding = (Option<Kind>, TagId);

static BOUND: Mutex<Vec<Binding>> = Mutex::new(Vec::new());

type SegmentMalloc = extern "C" fn(usize, c_int, *mut c_void) -> *mut c_void;

extern "C" fn bound_segment_malloc<const SLOT: usize>(
    size: usize,
    device: c_int,
    stream: *mut c_void,
) -> *mut c_void {
    segment_or_null(guarded(|| {
        check_not_forked()?;
        let (kind, tag) = lock(&BOUND)
            .get(SLOT)
            .copied()
            .ok_or_else(|| Error::new(Status::Internal, "bound_segment_malloc"))?;
        allocate_segment(kind, size, device, stream, tag)
    }))
}

macro_rules! functions {
    ($($slot:literal)*) => { [$(bound_segment_malloc::<$slot>),*] };
}

static FUNCTIONS: [SegmentMalloc; SLOTS] = functions!(
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
    32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
);

fn bind(kind: Option<Kind>, tag: TagId) -> Result<SegmentMalloc> {
    let mut bound = lock(&BOUND);
    let known = bound.iter().position(|bound| *bound == (kind, tag));
    let slot = match known {
        Some(slot) => slot,
        None if bound.len() < SLOTS => {
            bound.push((kind, tag));
            bound.len() - 1
        }
        None => {
            return Err(Error::new(Status::Busy, "hbm_torch_segment_functions")
                .detail(format!("{SLOTS} tags are in use, which is all there are")));
        }
    };
    Ok(FUNCTIONS[slot])
}

/// Writes a pair of functions for one MemPool: segments come from `kind` (an hbm_kind, or -1 for
/// the option `backend`, and where that names the pool, what the pool is over) and carry `tag` (1 to
/// 255 bytes), or where it is NULL the tag of the thread that allocates one. Makes no driver call.
///
/// # Safety
/// `tag` must be NULL or a C string, both out-pointers valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_torch_segment_functions(
    kind: i32,
    tag: *const c_char,
    malloc_function: *mut *mut c_void,
    free_function: *mut *mut c_void,
) -> i32 {
    let outcome = guarded(|| {
        check_not_forked()?;
        if malloc_function.is_null() || free_function.is_null() {
            return Err(Error::invalid(
                "hbm_torch_segment_functions",
                "a pointer is NULL",
            ));
        }
        let kind = match kind {
            -1 => None,
            number => Some(Kind::from_number(number).ok_or_else(|| {
                Error::invalid(
                    "hbm_torch_segment_functions",
                    format!("kind {number} is none"),
                )
            })?),
        };
        // SAFETY: passed on to the caller.
        let tag = (!tag.is_null()).then(|| unsafe { CStr::from_ptr(tag) }.to_string_lossy());
        let tag = tag.map_or(Ok(TagId::NONE), |tag| tags::table().intern(&tag))?;
        let function = bind(kind, tag)?;
        // SAFETY: passed on to the caller.
        unsafe {
            malloc_function.write(function as *mut c_void);
            // Frees go by our record, so one function serves every source.
            free_function.write(vmm_segment_free as *mut c_void);
        }
        Ok(())
    });
    match outcome {
        Ok(()) => Status::Ok as i32,
        Err(error) => {
            let status = error.status() as i32;
            last::remember(error);
            status
        }
    }
}
