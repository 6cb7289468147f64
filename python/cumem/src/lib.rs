//! `cumem_allocator`, the native module of vLLM's sleep mode, over the libhbmalloc of the process.
//! torch calls [`my_malloc`] and [`my_free`]; Python takes memory away and brings it back at the same
//! addresses. The record of what is there is the library's: what Python's callbacks keep is theirs.

mod behind;
mod callbacks;
mod handle;
mod library;

use behind::Direction;
use handle::Handle;
use library::{Cell, Library};
use pyo3_ffi::{
    METH_NOARGS, METH_VARARGS, Py_DecRef, Py_IncRef, Py_None, PyBytes_AsString, PyCFunction,
    PyErr_SetString, PyEval_RestoreThread, PyEval_SaveThread, PyExc_ImportError,
    PyExc_RuntimeError, PyExc_TypeError, PyImport_ImportModule, PyMethodDef, PyMethodDefPointer,
    PyModule_AddStringConstant, PyModule_Create, PyModuleDef, PyModuleDef_HEAD_INIT, PyObject,
    PyObject_CallMethodObjArgs, PyObject_GetAttrString, PyTuple_GetItem, PyTuple_Size,
    PyUnicode_EncodeFSDefault, PyUnicode_FromString,
};
use std::ffi::{CStr, CString, c_int, c_ulonglong, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a C function here answers where the library is not in the process.
const NO_LIBRARY: c_int = -1;

/// Allocates for torch: addresses first, then the word to Python, then memory. NULL on failure, with
/// nothing left behind, in Python's record either; `hbm_last_error` says why.
///
/// # Safety
/// `stream` must be NULL or a live stream of the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn my_malloc(size: isize, device: c_int, stream: *mut c_void) -> *mut c_void {
    let Some(library) = Library::get().filter(|_| size > 0) else {
        return null_mut();
    };
    let mut cell = Cell::new();
    // SAFETY: `cell` is an hbm_cell_t with its size filled in; the stream is the caller's promise.
    if unsafe { (library.cell_reserve)(device, size, stream, &mut cell) } != 0 {
        return null_mut();
    }
    let told = callbacks::tell_of(&Handle::of(&cell));
    if told && map(library, &cell) == 0 {
        return cell.address as *mut c_void;
    }
    if told {
        callbacks::tell_end_of(cell.address, false);
    }
    // SAFETY: takes no pointers.
    unsafe { (library.cell_free)(cell.address) };
    null_mut()
}

/// Takes back what [`my_malloc`] gave, asleep or not, whatever the callback does. The other arguments
/// are not trusted.
#[unsafe(no_mangle)]
pub extern "C" fn my_free(
    address: *mut c_void,
    _size: isize,
    _device: c_int,
    _stream: *mut c_void,
) {
    let Some(library) = Library::get().filter(|_| !address.is_null()) else {
        return;
    };
    let address = address as u64;
    let mut cell = Cell::new();
    // SAFETY: `cell` is an hbm_cell_t with its size filled in.
    let known = unsafe { (library.cell_describe)(address, &mut cell) } == 0;
    if known {
        callbacks::tell_end_of(address, cell.is_mapped != 0);
    }
    // SAFETY: takes no pointers. What is no cell is reported there and left alone.
    unsafe { (library.cell_free)(address) };
}

/// Makes a device's primary context current on this thread, where it has none.
#[unsafe(no_mangle)]
pub extern "C" fn ensure_context(device: c_ulonglong) -> c_int {
    // SAFETY: takes no pointers.
    Library::get().map_or(NO_LIBRARY, |library| unsafe {
        (library.ensure_context)(device)
    })
}

/// Puts memory behind an address: `hbm_create_and_map`.
///
/// # Safety
/// `handle` must be valid for a write of 8 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn create_and_map(
    device: c_ulonglong,
    size: isize,
    d_mem: u64,
    handle: *mut u64,
) -> c_int {
    // SAFETY: passed on to the caller.
    Library::get().map_or(NO_LIBRARY, |library| unsafe {
        (library.create_and_map)(device, size, d_mem, handle)
    })
}

/// Takes the memory from behind an address: `hbm_unmap_and_release`.
///
/// # Safety
/// `handle` must be valid for a write of 8 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unmap_and_release(
    device: c_ulonglong,
    size: isize,
    d_mem: u64,
    handle: *mut u64,
) -> c_int {
    // SAFETY: passed on to the caller.
    Library::get().map_or(NO_LIBRARY, |library| unsafe {
        (library.unmap_and_release)(device, size, d_mem, handle)
    })
}

fn map(library: &Library, cell: &Cell) -> c_int {
    let handle = cell.handle_address as *mut u64;
    // SAFETY: the library keeps the 8 bytes until the cell is freed.
    unsafe {
        (library.create_and_map)(
            cell.device as c_ulonglong,
            cell.bytes as isize,
            cell.address,
            handle,
        )
    }
}

extern "C" fn py_init_module(_: *mut PyObject, arguments: *mut PyObject) -> *mut PyObject {
    // SAFETY: Python calls us with its lock held and a tuple of live objects.
    unsafe {
        let set = match PyTuple_Size(arguments) {
            0 => {
                callbacks::clear();
                true
            }
            2 => callbacks::set(PyTuple_GetItem(arguments, 0), PyTuple_GetItem(arguments, 1)),
            _ => false,
        };
        if !set {
            PyErr_SetString(
                PyExc_TypeError,
                c"Both arguments must be callables".as_ptr(),
            );
            return null_mut();
        }
        none()
    }
}

/// # Safety
/// Python's lock must be held.
unsafe fn none() -> *mut PyObject {
    // SAFETY: passed on to the caller.
    unsafe {
        Py_IncRef(Py_None());
        Py_None()
    }
}

/// Changes what is behind an address, without Python's lock, and answers the handle.
///
/// # Safety
/// Python's lock must be held and `arguments` be a tuple.
unsafe fn change(arguments: *mut PyObject, direction: Direction) -> *mut PyObject {
    // SAFETY: passed on to the caller. That the last item names places of handles is the promise of
    // whoever calls the Python function.
    unsafe {
        let Some(handle) = Handle::parse(arguments) else {
            return null_mut();
        };
        let thread = PyEval_SaveThread();
        let outcome = behind::change(&handle, direction);
        PyEval_RestoreThread(thread);
        match outcome {
            Ok(()) => handle.tuple(),
            Err(text) => {
                let text = [b"CUDA Error: ", text.as_bytes()].concat();
                let text = CString::new(text).unwrap_or_default();
                PyErr_SetString(PyExc_RuntimeError, text.as_ptr());
                null_mut()
            }
        }
    }
}

extern "C" fn py_create_and_map(_: *mut PyObject, arguments: *mut PyObject) -> *mut PyObject {
    // SAFETY: Python calls us with its lock held and a tuple.
    unsafe { change(arguments, Direction::Map) }
}

extern "C" fn py_unmap_and_release(_: *mut PyObject, arguments: *mut PyObject) -> *mut PyObject {
    // SAFETY: Python calls us with its lock held and a tuple.
    unsafe { change(arguments, Direction::Unmap) }
}

extern "C" fn py_forget_callbacks(_: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: Python calls us with its lock held.
    unsafe {
        callbacks::clear();
        none()
    }
}

struct Methods([PyMethodDef; 6]);
// SAFETY: Python reads the table only.
unsafe impl Sync for Methods {}

const fn method(
    name: &'static CStr,
    function: PyCFunction,
    flags: c_int,
    doc: &'static CStr,
) -> PyMethodDef {
    PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: PyMethodDefPointer {
            PyCFunction: function,
        },
        ml_flags: flags,
        ml_doc: doc.as_ptr(),
    }
}

const INIT_DOC: &CStr = c"init_module(malloc_callback, free_callback)\n\nSets who is told of cells; None, or no arguments, for nobody: the record is the library's own.";

static METHODS: Methods = Methods([
    method(c"init_module", py_init_module, METH_VARARGS, INIT_DOC),
    method(c"py_init_module", py_init_module, METH_VARARGS, INIT_DOC),
    method(
        c"python_create_and_map",
        py_create_and_map,
        METH_VARARGS,
        c"python_create_and_map(device, size, d_mem, p_memHandle) -> the same as a tuple\n\nPuts new memory behind an address.",
    ),
    method(
        c"python_unmap_and_release",
        py_unmap_and_release,
        METH_VARARGS,
        c"python_unmap_and_release(device, size, d_mem, p_memHandle) -> the same as a tuple\n\nTakes the memory from behind an address, once all work of the device has finished.",
    ),
    method(
        c"_forget_callbacks",
        py_forget_callbacks,
        METH_NOARGS,
        c"Run by atexit.",
    ),
    PyMethodDef::zeroed(),
]);

struct Definition(std::cell::UnsafeCell<PyModuleDef>);
// SAFETY: changed by Python alone, with its lock held.
unsafe impl Sync for Definition {}

static DEFINITION: Definition = Definition(std::cell::UnsafeCell::new(PyModuleDef {
    m_base: PyModuleDef_HEAD_INIT,
    m_name: c"cumem_allocator".as_ptr(),
    m_doc: c"vLLM's native module for sleep mode, over libhbmalloc.".as_ptr(),
    m_size: -1,
    m_methods: METHODS.0.as_ptr() as *mut PyMethodDef,
    m_slots: null_mut(),
    m_traverse: None,
    m_clear: None,
    m_free: None,
}));

/// Asks the package `hbmalloc` which file it uses, so that it is loaded, and finds that. Where there is
/// no such package, what is loaded under the library's name will do.
///
/// # Safety
/// Python's lock must be held.
unsafe fn find_library() -> Result<&'static Library, String> {
    // SAFETY: passed on to the caller; every object is checked before it is used, and let go.
    unsafe {
        let path = path_of_package();
        if path.is_none() {
            pyo3_ffi::PyErr_Clear();
        }
        Library::find(path.as_deref())
    }
}

/// # Safety
/// Python's lock must be held. May leave an exception set.
unsafe fn path_of_package() -> Option<CString> {
    // SAFETY: passed on to the caller; the text is copied before what holds it goes.
    unsafe {
        let package = PyImport_ImportModule(c"hbmalloc._library".as_ptr());
        if package.is_null() {
            return None;
        }
        let call = |name: &CStr| {
            let name = PyUnicode_FromString(name.as_ptr());
            let result = PyObject_CallMethodObjArgs(package, name, null_mut::<PyObject>());
            Py_DecRef(name);
            result
        };
        let library = call(c"library");
        let path = match library.is_null() {
            true => null_mut(),
            false => call(c"get_library_path"),
        };
        Py_DecRef(library);
        Py_DecRef(package);
        if path.is_null() {
            return None;
        }
        let bytes = PyUnicode_EncodeFSDefault(path);
        let text = match bytes.is_null() {
            true => null_mut(),
            false => PyBytes_AsString(bytes),
        };
        let copied = (!text.is_null()).then(|| CStr::from_ptr(text).to_owned());
        Py_DecRef(bytes);
        Py_DecRef(path);
        copied
    }
}

/// Lets go of the callbacks before the interpreter ends, after whatever was registered later: torch
/// frees segments once Python can run nothing any more.
///
/// # Safety
/// Python's lock must be held and `module` be live.
unsafe fn forget_at_exit(module: *mut PyObject) -> bool {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::AcqRel) {
        return true;
    }
    // SAFETY: passed on to the caller; NULL objects stand for exceptions and are passed over.
    unsafe {
        let atexit = PyImport_ImportModule(c"atexit".as_ptr());
        let forget = PyObject_GetAttrString(module, c"_forget_callbacks".as_ptr());
        let register = PyUnicode_FromString(c"register".as_ptr());
        let mut registered = null_mut();
        if !atexit.is_null() && !forget.is_null() && !register.is_null() {
            registered =
                PyObject_CallMethodObjArgs(atexit, register, forget, null_mut::<PyObject>());
        }
        let done = !registered.is_null();
        for object in [registered, register, forget, atexit] {
            Py_DecRef(object);
        }
        done
    }
}

/// What Python calls to make the module.
///
/// # Safety
/// For Python to call.
#[allow(non_snake_case)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PyInit_cumem_allocator() -> *mut PyObject {
    // SAFETY: Python calls us with its lock held.
    unsafe {
        if let Err(text) = find_library() {
            let text = CString::new(format!("cumem_allocator: {text}")).unwrap_or_default();
            PyErr_SetString(PyExc_ImportError, text.as_ptr());
            return null_mut();
        }
        let module = PyModule_Create(DEFINITION.0.get());
        if module.is_null() {
            return module;
        }
        let version = c"__version__".as_ptr();
        let text = concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast();
        if PyModule_AddStringConstant(module, version, text) != 0 || !forget_at_exit(module) {
            Py_DecRef(module);
            return null_mut();
        }
        module
    }
}
