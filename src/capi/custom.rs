//! Allocators that are functions of the caller. What they gave out is recorded, so that a wrong size, a second
//! free and a foreign address never reach them.

use super::descriptor::hbm_custom_t;
use super::read_struct;
use crate::core::size::Align;
use crate::core::stack::{ALIGN, MOST};
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::gpu::Stream;
use crate::process::Stats;
use crate::process::host::HostSize;
use crate::process::host_counts::HostCounts;
use rustc_hash::FxHashMap;
use std::ffi::c_void;
use std::sync::Mutex;

type Allocate =
    unsafe extern "C" fn(*mut c_void, usize, usize, *mut c_void, *mut *mut c_void) -> i32;
type Deallocate = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, *mut c_void) -> i32;
type Trim = unsafe extern "C" fn(*mut c_void, u64, *mut u64) -> i32;

/// The functions, and what they gave out.
pub(super) struct Custom {
    context: *mut c_void,
    allocate: Allocate,
    deallocate: Deallocate,
    trim: Option<Trim>,
    /// The bytes that were asked for, by address.
    live: Mutex<FxHashMap<u64, u64>>,
    counts: HostCounts,
}

// SAFETY: the context is only passed to the functions, which are said to be callable from any thread.
unsafe impl Send for Custom {}
// SAFETY: as above, by several threads at once.
unsafe impl Sync for Custom {}

const ALLOCATE: &str = "the allocate function of a custom allocator";
const DEALLOCATE: &str = "the deallocate function of a custom allocator";
const TRIM: &str = "the trim function of a custom allocator";

/// What a function of the caller answered.
fn answer(operation: &'static str, status: i32) -> Result<()> {
    let known = Status::ALL.iter().find(|one| **one as i32 == status);
    match known {
        Some(Status::Ok) => Ok(()),
        Some(known) => Err(Error::new(*known, operation)),
        None => Err(Error::new(Status::Internal, operation)
            .detail(format!("it returned {status}, which is no hbm_status"))),
    }
}

impl Custom {
    /// # Safety
    /// `functions` must be NULL or point to a filled-in struct, of functions that do what it says.
    pub unsafe fn new(operation: &'static str, functions: *const hbm_custom_t) -> Result<Custom> {
        if functions.is_null() {
            return Err(Error::invalid(
                operation,
                "functions is NULL, with kind custom",
            ));
        }
        // SAFETY: passed on to the caller.
        let functions = unsafe { read_struct(operation, functions, &[])? };
        let (Some(allocate), Some(deallocate)) = (functions.allocate, functions.deallocate) else {
            let what = "a custom allocator without a function to allocate or to deallocate";
            return Err(Error::invalid(operation, what));
        };
        Ok(Custom {
            context: functions.context,
            allocate,
            deallocate,
            trim: functions.trim,
            live: Mutex::default(),
            counts: HostCounts::default(),
        })
    }

    pub fn allocate(&self, bytes: u64, align: Align, stream: Stream) -> Result<u64> {
        let made = self.make(bytes, align.max(ALIGN), stream);
        let size = |address| {
            (
                address,
                HostSize {
                    requested: bytes,
                    bytes,
                },
            )
        };
        self.counts.note_made(bytes, made.map(size))
    }

    fn make(&self, bytes: u64, align: Align, stream: Stream) -> Result<u64> {
        if bytes == 0 || bytes > MOST {
            let what = format!("a size of {bytes} bytes");
            return Err(Error::invalid("hbm_allocator_allocate", what));
        }
        let (size, multiple) = (bytes as usize, align.get() as usize);
        let mut out = std::ptr::null_mut();
        // SAFETY: the maker of the allocator vouches for the function; `out` is valid for a write.
        let status =
            unsafe { (self.allocate)(self.context, size, multiple, stream.raw(), &mut out) };
        answer(ALLOCATE, status).map_err(|error| error.bytes(bytes))?;
        let broken = |what: String| Err(Error::new(Status::Internal, ALLOCATE).detail(what));
        let address = out as usize as u64;
        if address == 0 {
            return broken("it returned HBM_OK and no address".to_owned());
        }
        let mut live = lock(&self.live);
        if live.contains_key(&address) {
            return broken(format!(
                "it gave {address:#x} out, which is given out already"
            ));
        }
        let is_recorded = align.divides(address) && live.try_reserve(1).is_ok();
        if is_recorded {
            live.insert(address, bytes);
            return Ok(address);
        }
        drop(live);
        // SAFETY: the maker of the allocator vouches for the function, which gave this address out.
        let _ = unsafe { (self.deallocate)(self.context, out, size, stream.raw()) };
        match align.divides(address) {
            true => Err(Error::new(Status::OutOfMemory, "hbm_allocator_allocate").bytes(bytes)),
            false => broken(format!(
                "it gave {address:#x} out, which is no multiple of {multiple}"
            )),
        }
    }

    /// Whether the block is gone now, and how it went.
    pub fn deallocate(
        &self,
        address: u64,
        bytes: Option<u64>,
        used_on: Stream,
    ) -> (bool, Result<()>) {
        let requested = match self.remove(address, bytes) {
            Ok(requested) => requested,
            Err(error) => return (false, Err(error)),
        };
        let (block, size) = (address as usize as *mut c_void, requested as usize);
        // SAFETY: the maker of the allocator vouches for the function, which gave this block out.
        let status = unsafe { (self.deallocate)(self.context, block, size, used_on.raw()) };
        if let Err(error) = answer(DEALLOCATE, status) {
            lock(&self.live).entry(address).or_insert(requested);
            return (
                false,
                Err(error.advice("It is still allocated: free it again")),
            );
        }
        self.counts.note_freed(HostSize {
            requested,
            bytes: requested,
        });
        (true, Ok(()))
    }

    fn remove(&self, address: u64, bytes: Option<u64>) -> Result<u64> {
        const OPERATION: &str = "hbm_allocator_deallocate";
        let mut live = lock(&self.live);
        let is = *(live.get(&address)).ok_or_else(|| not_owned(OPERATION, address))?;
        if let Some(told) = bytes.filter(|told| *told != is) {
            let what = format!("{address:#x} has {is} bytes, not {told}");
            return Err(Error::invalid(OPERATION, what));
        }
        live.remove(&address);
        Ok(is)
    }

    /// An error: the functions cannot be told.
    pub fn record_stream(&self, address: u64) -> Result<()> {
        const OPERATION: &str = "hbm_allocator_record_stream";
        match lock(&self.live).contains_key(&address) {
            true => Err(Error::new(Status::Unsupported, OPERATION)
                .detail("custom allocators have no function to be told of a further stream")
                .advice("Deallocate on the stream of the allocation, once it waits for the other")),
            false => Err(not_owned(OPERATION, address)),
        }
    }

    pub fn trim(&self, keep: u64) -> Result<u64> {
        let mut released = 0;
        match self.trim {
            None => Ok(0),
            Some(trim) => {
                // SAFETY: the maker of the allocator vouches for the function.
                answer(TRIM, unsafe { trim(self.context, keep, &mut released) })?;
                Ok(released)
            }
        }
    }

    pub fn stats(&self, warnings: u64) -> Stats {
        self.counts.read(warnings)
    }
}

fn not_owned(operation: &'static str, address: u64) -> Error {
    Error::new(Status::NotOwned, operation).detail(format!(
        "{address:#x} is no block of this allocator, or was freed already"
    ))
}
