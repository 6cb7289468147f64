//! How much the largest block could hold, asked by convolutions under
//! `torch.backends.cudnn.benchmark`: a C++ virtual of torch's allocator object, `cacheInfo`, that
//! its pluggable allocator only refuses and has no hook for. The object's virtual table is copied
//! with our answer in that place, and the one object in use is given the copy. Everything is looked
//! up by name and compared before anything is written; an object that is not what we know is left
//! alone. The names and layouts are those of the Itanium C++ ABI.

use super::guarded;
use crate::core::sync::lock;
use crate::error::{Error, Result, Status, Warning, last};
use crate::observe;
use crate::sys::library::{self, Library};
use std::ffi::{CStr, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, Ordering};

/// `c10::cuda::CUDACachingAllocator::allocator`, an atomic pointer to the allocator in use.
const CURRENT: &CStr = c"_ZN3c104cuda20CUDACachingAllocator9allocatorE";
/// The virtual table of `torch::cuda::CUDAPluggableAllocator::CUDAPluggableAllocator`.
const TABLE: &CStr = c"_ZTVN5torch4cuda22CUDAPluggableAllocator22CUDAPluggableAllocatorE";
/// Its `cacheInfo(c10::DeviceIndex, size_t *)`.
const ASKED: &CStr =
    c"_ZN5torch4cuda22CUDAPluggableAllocator22CUDAPluggableAllocator9cacheInfoEaPm";

/// In front of a table's functions stand the way to the object's top and its type information.
const HEADER: usize = 2;

type Word = *mut c_void;

/// The copy of the table, by the address of its first function. Never freed: torch destroys its
/// allocator through it at the end of the process.
static COPY: Mutex<Option<usize>> = Mutex::new(None);

/// Replaces `cacheInfo` of torch's current allocator, which must be its pluggable one.
fn serve() -> Result<()> {
    let mut copy = lock(&COPY);
    let object = current_object()?;
    // SAFETY: an object with virtual functions begins with the address of its table's functions,
    // and torch's allocator has some in every release.
    let functions = unsafe { AtomicPtr::<Word>::from_ptr(object) };
    let found = functions.load(Ordering::Acquire);
    if *copy == Some(found as usize) {
        return Ok(());
    }
    let table = known_table()?;
    if !std::ptr::eq(found, table[HEADER..].as_ptr()) {
        return Err(unknown("the allocator in use is not torch's pluggable one"));
    }
    let answering = match *copy {
        Some(made) => made,
        None => Box::leak(with_our_answer(table)?)[HEADER..].as_ptr() as usize,
    };
    functions.store(answering as *mut Word, Ordering::Release);
    *copy = Some(answering);
    Ok(())
}

/// The allocator object in use, as the place of the address of its table.
fn current_object() -> Result<*mut *mut Word> {
    let current = symbol(c"libc10_cuda.so", CURRENT)?;
    // SAFETY: the symbol is a std::atomic<CUDAAllocator *>, which is laid out as a pointer.
    let object =
        unsafe { AtomicPtr::<*mut Word>::from_ptr(current.cast()) }.load(Ordering::Acquire);
    match object.is_null() {
        true => Err(unknown("torch has no allocator")),
        false => Ok(object),
    }
}

/// The table that every object of the class begins with, header included.
fn known_table() -> Result<&'static [Word]> {
    let table = symbol(c"libtorch_cuda.so", TABLE)?;
    let words = library::size_of_object(table as usize).unwrap_or(0) / size_of::<Word>();
    if words <= HEADER || words > 1 << 12 {
        return Err(unknown("the table's size is not known"));
    }
    // SAFETY: the symbol's own size says that many words lie there. They are constant once the
    // library is loaded, and torch's libraries are never unloaded.
    Ok(unsafe { std::slice::from_raw_parts(table.cast(), words) })
}

/// A copy of `table` in which `cacheInfo` is ours.
fn with_our_answer(table: &[Word]) -> Result<Box<[Word]>> {
    let asked = symbol(c"libtorch_cuda.so", ASKED)?;
    let mut places = (HEADER..table.len()).filter(|place| table[*place] == asked);
    let (Some(place), None) = (places.next(), places.next()) else {
        return Err(unknown("cacheInfo has no place in the table"));
    };
    let mut copy: Box<[Word]> = table.into();
    copy[place] = cache_info as *mut c_void;
    Ok(copy)
}

fn symbol(library: &'static CStr, name: &'static CStr) -> Result<*mut c_void> {
    Library::loaded(library)
        .and_then(|library| library.symbol(name))
        .ok_or_else(|| {
            let (library, name) = (library.to_string_lossy(), name.to_string_lossy());
            unknown(&format!("{library} or its symbol {name} is not there"))
        })
}

fn unknown(why: &str) -> Error {
    Error::new(Status::Unsupported, "cacheInfo").detail(why.to_owned())
}

/// `virtual void cacheInfo(c10::DeviceIndex device, size_t *largestBlock)`.
unsafe extern "C" fn cache_info(_: *mut c_void, device: i8, largest: *mut usize) {
    let room = guarded(|| observe::process().room(device.into())).unwrap_or_else(|error| {
        last::remember(error);
        0
    });
    if !largest.is_null() {
        // SAFETY: torch passes a valid pointer or, for us, none.
        unsafe { largest.write(room as usize) };
    }
}

/// Answers the question that convolutions ask under `torch.backends.cudnn.benchmark`, how large a
/// block could be, for the allocator that torch uses at the time of the call. HBM_UNSUPPORTED and one
/// warning where that is not torch's pluggable allocator as we know it; nothing is changed then.
/// Makes no driver call. Call it before torch first uses CUDA.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_torch_serve_cache_info() -> i32 {
    match guarded(serve) {
        Ok(()) => Status::Ok as i32,
        Err(error) => {
            observe::process().warnings().warn(Warning::CacheInfo, || {
                format!("torch.backends.cudnn.benchmark = True will not work with hbmalloc as torch's allocator, leave it False: {error}")
            });
            let status = error.status() as i32;
            last::remember(error);
            status
        }
    }
}
