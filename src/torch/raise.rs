//! Raising C++ exceptions that torch understands, without a C++ compiler or library at build time:
//! everything is looked up in what the process has loaded. torch does not check for NULL, so a
//! failed allocation that returned would become a tensor at address 0.
//!
//! The calls and layouts are those of the Itanium C++ ABI (exception handling, and the layout of
//! `std::string` in libstdc++'s "cxx11" ABI).

use crate::error::{Error, Status, last};
use crate::process::has_forked;
use crate::sys::library::Library;
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::transmute;
use std::sync::atomic::{AtomicBool, Ordering};

/// Remembers the error; raises it where torch is in the process, else returns NULL.
pub(super) fn raise_or_null(error: Error) -> *mut c_void {
    let thrown = prepare(&error);
    last::remember(error);
    match thrown {
        None => std::ptr::null_mut(),
        // SAFETY: `prepare` made a complete exception object with its type and destructor. Nothing
        // in this frame or its callers within this library has a destructor left to run.
        Some(thrown) => unsafe { (thrown.throw)(thrown.object, thrown.type_info, thrown.destroy) },
    }
}

/// An exception ready to be thrown. Plain addresses only: nothing to drop when it flies.
#[derive(Clone, Copy)]
struct Thrown {
    throw: Throw,
    object: *mut c_void,
    type_info: *mut c_void,
    destroy: *mut c_void,
}

/// More than any `c10::Error` takes (its size is torch's own affair; about 200 bytes in 2.x).
const OBJECT_BYTES: usize = 1024;

/// libc10's presence is what tells a torch process from others.
const TORCH: &CStr = c"libc10.so";

static IS_HERE: AtomicBool = AtomicBool::new(false);

/// Whether torch was seen in the process before; asks nobody.
pub(super) fn is_torch_known() -> bool {
    IS_HERE.load(Ordering::Relaxed)
}

/// Whether torch is in the process. A forked child knows what its parent has asked, and does not ask:
/// another thread may have left the loader halfway through something.
pub(super) fn is_torch_here() -> bool {
    if is_torch_known() {
        return true;
    }
    let is_here = !has_forked() && Library::loaded(TORCH).is_some();
    if is_here {
        IS_HERE.store(true, Ordering::Relaxed);
    }
    is_here
}

fn prepare(error: &Error) -> Option<Thrown> {
    if !is_torch_here() {
        return None;
    }
    let c10 = Library::loaded(TORCH)?;
    let cpp = Cpp::find()?;
    let text = message(error);
    if error.status() == Status::OutOfMemory {
        if let Some(thrown) = out_of_memory(&cpp, &c10, &text) {
            return Some(thrown);
        }
    }
    runtime_error(&cpp, &text)
}

fn message(error: &Error) -> CString {
    // torch's own text begins so, and programs look for it.
    let text = match error.status() {
        Status::OutOfMemory => format!("CUDA out of memory. hbmalloc: {error}"),
        _ => format!("hbmalloc: {error}"),
    };
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

type Throw = unsafe extern "C-unwind" fn(*mut c_void, *mut c_void, *mut c_void) -> !;
// Constructors and `new` may throw themselves, for want of memory: that flies on to the caller.
type New = unsafe extern "C-unwind" fn(usize) -> *mut c_void;
type Delete = unsafe extern "C" fn(*mut c_void);

/// The parts of the C++ runtime that are needed.
struct Cpp {
    library: Library,
    allocate: New,
    throw: Throw,
    new: New,
    delete: Delete,
}

impl Cpp {
    fn find() -> Option<Cpp> {
        let library = Library::loaded(c"libstdc++.so.6")?;
        // SAFETY: these names have these signatures in the Itanium C++ ABI.
        unsafe {
            Some(Cpp {
                allocate: transmute::<*mut c_void, New>(
                    library.symbol(c"__cxa_allocate_exception")?,
                ),
                throw: transmute::<*mut c_void, Throw>(library.symbol(c"__cxa_throw")?),
                new: transmute::<*mut c_void, New>(library.symbol(c"_Znwm")?),
                delete: transmute::<*mut c_void, Delete>(library.symbol(c"_ZdlPv")?),
                library,
            })
        }
    }
}

fn runtime_error(cpp: &Cpp, text: &CStr) -> Option<Thrown> {
    type Construct = unsafe extern "C-unwind" fn(*mut c_void, *const c_char);
    let construct = cpp.library.symbol(c"_ZNSt13runtime_errorC1EPKc")?;
    let type_info = cpp.library.symbol(c"_ZTISt13runtime_error")?;
    let destroy = cpp.library.symbol(c"_ZNSt13runtime_errorD1Ev")?;
    // SAFETY: the constructor of std::runtime_error from a C string, on memory of enough bytes.
    unsafe {
        let construct: Construct = transmute(construct);
        let object = (cpp.allocate)(OBJECT_BYTES);
        construct(object, text.as_ptr());
        Some(Thrown {
            throw: cpp.throw,
            object,
            type_info,
            destroy,
        })
    }
}

/// `c10::SourceLocation`.
#[repr(C)]
struct SourceLocation {
    function: *const c_char,
    file: *const c_char,
    line: u32,
}

/// `std::string` of libstdc++: short texts inside the object, others on the heap.
#[repr(C)]
struct CppString {
    data: *mut u8,
    len: usize,
    local: [u8; 16],
}

fn out_of_memory(cpp: &Cpp, c10: &Library, text: &CStr) -> Option<Thrown> {
    type Construct = unsafe extern "C-unwind" fn(*mut c_void, SourceLocation, *mut CppString);
    let construct = c10.symbol(
        c"_ZN3c105ErrorC1ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
    )?;
    // Weak symbols, emitted by whichever libraries throw or catch the class.
    let find = |name: &CStr| {
        [
            c"libtorch_cuda.so",
            c"libtorch_python.so",
            c"libc10_cuda.so",
            c"libc10.so",
        ]
        .into_iter()
        .filter_map(Library::loaded)
        .find_map(|library| library.symbol(name))
    };
    let type_info = find(c"_ZTIN3c1016OutOfMemoryErrorE")?;
    let vtable = find(c"_ZTVN3c1016OutOfMemoryErrorE")?.cast::<*mut c_void>();
    let bytes = text.to_bytes();
    if bytes.len() < 16 {
        // Such a text would have to live inside the string object; ours are longer.
        return None;
    }
    // SAFETY: the object has room for a c10::Error; c10::OutOfMemoryError adds nothing to it but its
    // virtual table, whose functions begin two words in, the complete destructor first. The string
    // is built and destroyed as its class does: the callee may take its buffer and leave it empty.
    unsafe {
        let construct: Construct = transmute(construct);
        let data = (cpp.new)(bytes.len() + 1).cast::<u8>();
        data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        data.add(bytes.len()).write(0);
        let mut string = CppString {
            data,
            len: bytes.len(),
            local: [0; 16],
        };
        string.local[..8].copy_from_slice(&bytes.len().to_ne_bytes());
        let object = (cpp.allocate)(OBJECT_BYTES);
        object.cast::<u8>().write_bytes(0, OBJECT_BYTES);
        let location = SourceLocation {
            function: c"allocate".as_ptr(),
            file: c"hbmalloc".as_ptr(),
            line: 0,
        };
        construct(object, location, &mut string);
        if string.data != string.local.as_mut_ptr() {
            (cpp.delete)(string.data.cast());
        }
        let functions = vtable.add(2);
        object.cast::<*mut *mut c_void>().write(functions);
        Some(Thrown {
            throw: cpp.throw,
            object,
            type_info,
            destroy: functions.read(),
        })
    }
}
