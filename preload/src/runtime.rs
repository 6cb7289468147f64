//! The program's own runtime: looked for once a function is needed, among what is loaded by then.

use hbmalloc::sys::library::Library;
use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// A function of the runtime, found when it is first called.
pub struct Function {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Function {
    pub const fn new(name: &'static CStr) -> Function {
        Function {
            name,
            address: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Its address; none where no runtime that has it is loaded.
    #[inline]
    pub fn address(&self) -> Option<*mut c_void> {
        let known = self.address.load(Ordering::Relaxed);
        if !known.is_null() {
            return Some(known);
        }
        let found = find(self.name)?;
        self.address.store(found, Ordering::Relaxed);
        Some(found)
    }
}

/// The runtime that was loaded first, once for all: each has a current device and a last error for every thread, so its
/// functions belong together. What others load later, a plug-in say, is over the same contexts.
fn first() -> Option<&'static Library> {
    static FIRST: AtomicPtr<Library> = AtomicPtr::new(std::ptr::null_mut());
    let known = FIRST.load(Ordering::Acquire);
    // SAFETY: NULL, or put there below, and never taken down.
    if let Some(known) = unsafe { known.as_ref() } {
        return Some(known);
    }
    let found = Library::loaded_from(FILE).into_iter().next()?;
    // No lock: who holds the loader's may come here.
    let found = Box::into_raw(Box::new(found));
    let null = std::ptr::null_mut();
    let kept = match FIRST.compare_exchange(null, found, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => found,
        Err(faster) => faster,
    };
    // SAFETY: as above.
    unsafe { kept.as_ref() }
}

const FILE: &str = "libcudart";

/// A runtime that was opened with RTLD_LOCAL is behind nobody in the loader's order, so it is asked by itself. What the
/// first one lacks, who calls it has from another.
fn find(name: &CStr) -> Option<*mut c_void> {
    let of_others = || {
        let others = Library::loaded_from(FILE).into_iter();
        { others }.find_map(|other| other.symbol(name))
    };
    // SAFETY: a C string; what lies behind this library in the loader's order is not this library.
    let next = || unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (first().and_then(|first| first.symbol(name)))
        .or_else(of_others)
        .or_else(|| {
            let next = next();
            (!next.is_null()).then_some(next)
        })
}

/// Calls a function of the program's runtime.
macro_rules! runtime {
    ($name:ident($($argument:ident: $kind:ty),*)) => {{
        static FUNCTION: $crate::runtime::Function = $crate::runtime::Function::new(
            // SAFETY: the text ends with a zero, and has none before it.
            unsafe { std::ffi::CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) },
        );
        match FUNCTION.address() {
            None => $crate::answer::NO_RUNTIME,
            Some(address) => {
                type Real = unsafe extern "C" fn($($kind),*) -> std::ffi::c_int;
                // SAFETY: the runtime's function of that name has this signature, in all versions that are looked for.
                let real: Real = unsafe { std::mem::transmute(address) };
                // SAFETY: the arguments are the program's own, or valid for what is asked here.
                unsafe { real($($argument),*) }
            }
        }
    }};
}
pub(crate) use runtime;

/// The device that the calling thread uses.
pub fn current_device() -> Result<c_int, c_int> {
    let mut device: c_int = 0;
    let out: *mut c_int = &mut device;
    match runtime!(cudaGetDevice(out: *mut c_int)) {
        0 => Ok(device),
        code => Err(code),
    }
}

thread_local! {
    static IS_READY: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// What the runtime's own functions do besides: its context is there and current, for calls of the driver that the
/// program makes next.
pub fn make_ready() -> c_int {
    if IS_READY.try_with(std::cell::Cell::get).unwrap_or(true) {
        return 0;
    }
    let nothing: *mut c_void = std::ptr::null_mut();
    let answered = runtime!(cudaFree(nothing: *mut c_void));
    let _ = IS_READY.try_with(|ready| ready.set(answered == 0));
    answered
}

/// The context is another one.
pub fn forget_ready() {
    let _ = IS_READY.try_with(|ready| ready.set(false));
}
