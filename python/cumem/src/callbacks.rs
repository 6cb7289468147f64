//! The two functions of Python that keep somebody's record of the cells. Python's lock is taken for
//! them alone, and not where there are none. An exception of theirs ends here: the allocator's caller
//! is C++ that knows nothing of Python.

use crate::handle::Handle;
use pyo3_ffi::{
    Py_DecRef, Py_IncRef, Py_IsInitialized, Py_IsNone, PyCallable_Check, PyErr_Clear,
    PyErr_ExceptionMatches, PyErr_Occurred, PyErr_SetString, PyErr_WriteUnraisable, PyExc_KeyError,
    PyExc_TypeError, PyGILState_Ensure, PyGILState_Release, PyGILState_STATE,
    PyLong_FromUnsignedLongLong, PyObject, PyObject_CallObject, PyTuple_Check, PyTuple_New,
    PyTuple_SetItem, PyTuple_Size,
};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A function of Python, or none. Changed and taken with Python's lock held.
struct Callback(AtomicPtr<PyObject>);

static MALLOC: Callback = Callback(AtomicPtr::new(null_mut()));
static FREE: Callback = Callback(AtomicPtr::new(null_mut()));

/// Python's lock, held while this lives.
struct Gil(PyGILState_STATE);

impl Gil {
    fn take() -> Gil {
        // SAFETY: the interpreter is initialised, as whoever calls this has seen.
        Gil(unsafe { PyGILState_Ensure() })
    }
}

impl Drop for Gil {
    fn drop(&mut self) {
        // SAFETY: taken by `take` on this thread.
        unsafe { PyGILState_Release(self.0) }
    }
}

impl Callback {
    /// Whether there is one, and an interpreter to run it.
    fn is_set(&self) -> bool {
        // SAFETY: may be asked at any time.
        !self.0.load(Ordering::Acquire).is_null() && unsafe { Py_IsInitialized() } != 0
    }

    /// # Safety
    /// Python's lock must be held, and `function` be NULL or live.
    unsafe fn set(&self, function: *mut PyObject) {
        // SAFETY: passed on to the caller; what was kept was counted by us.
        unsafe {
            Py_IncRef(function);
            Py_DecRef(self.0.swap(function, Ordering::AcqRel));
        }
    }

    /// Calls it with `argument`, which is used up. A new reference, or NULL with an exception set;
    /// NULL without one where there is no callback any more.
    ///
    /// # Safety
    /// Python's lock must be held.
    unsafe fn call(&self, argument: *mut PyObject) -> *mut PyObject {
        // SAFETY: passed on to the caller. The function is counted while it runs, since it may set
        // another one; the tuple takes over `argument`.
        unsafe {
            let function = self.0.load(Ordering::Acquire);
            if function.is_null() || argument.is_null() {
                Py_DecRef(argument);
                return null_mut();
            }
            let arguments = PyTuple_New(1);
            if arguments.is_null() {
                Py_DecRef(argument);
                return null_mut();
            }
            PyTuple_SetItem(arguments, 0, argument);
            Py_IncRef(function);
            let result = PyObject_CallObject(function, arguments);
            Py_DecRef(arguments);
            Py_DecRef(function);
            result
        }
    }

    /// # Safety
    /// Python's lock must be held.
    unsafe fn report(&self) {
        // SAFETY: passed on to the caller; a NULL object is allowed.
        unsafe {
            if !PyErr_Occurred().is_null() {
                PyErr_WriteUnraisable(self.0.load(Ordering::Acquire));
            }
        }
    }
}

/// Sets both, each a function or None; the answer is whether they are that.
///
/// # Safety
/// Python's lock must be held and both be live objects.
pub unsafe fn set(malloc: *mut PyObject, free: *mut PyObject) -> bool {
    // SAFETY: passed on to the caller.
    unsafe {
        let fits = |function| Py_IsNone(function) != 0 || PyCallable_Check(function) != 0;
        if !fits(malloc) || !fits(free) {
            return false;
        }
        let some = |function| match Py_IsNone(function) != 0 {
            true => null_mut(),
            false => function,
        };
        MALLOC.set(some(malloc));
        FREE.set(some(free));
    }
    true
}

/// Forgets both.
///
/// # Safety
/// Python's lock must be held.
pub unsafe fn clear() {
    // SAFETY: passed on to the caller.
    unsafe {
        MALLOC.set(null_mut());
        FREE.set(null_mut());
    }
}

/// Tells of a cell that is about to get memory; false where the function raised, which is reported.
pub fn tell_of(handle: &Handle) -> bool {
    if !MALLOC.is_set() {
        return true;
    }
    let _gil = Gil::take();
    // SAFETY: the lock is held.
    unsafe {
        let result = MALLOC.call(handle.tuple());
        let raised = !PyErr_Occurred().is_null();
        MALLOC.report();
        Py_DecRef(result);
        !raised
    }
}

/// Tells that the cell at `address` is no more. `has_memory` is whether it had any. Whatever the
/// function does, the cell can go: our own record says all that is needed.
pub fn tell_end_of(address: u64, has_memory: bool) {
    if !FREE.is_set() {
        return;
    }
    let _gil = Gil::take();
    // SAFETY: the lock is held.
    unsafe {
        let result = FREE.call(PyLong_FromUnsignedLongLong(address));
        if result.is_null() {
            // vLLM's class forgets cells that it took the memory from, and does not know them here.
            let forgotten = !has_memory
                && !PyErr_Occurred().is_null()
                && PyErr_ExceptionMatches(PyExc_KeyError) != 0;
            if forgotten {
                PyErr_Clear();
            }
        } else if PyTuple_Check(result) == 0 || PyTuple_Size(result) != 4 {
            PyErr_SetString(PyExc_TypeError, c"Expected a tuple of size 4".as_ptr());
        }
        FREE.report();
        Py_DecRef(result);
    }
}
