//! DLPack capsules for Python. They are made here since a function that ctypes makes a callback of may not run while an
//! exception is under way, which is when capsules and tensors go too.

use super::{export, read_struct};
use crate::error::{Error, Result, Status};
use crate::sys::library::Library;
use once_cell::sync::OnceCell;
use std::ffi::{CStr, c_char, c_int, c_void};

/// Memory of the host that is to be seen as a tensor.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_python_tensor_t {
    /// sizeof(hbm_python_tensor_t) as the program was compiled.
    pub struct_size: usize,
    /// Its first element.
    pub data: *mut c_void,
    /// A PyObject that keeps the memory; the tensor has a reference to it.
    pub owner: *mut c_void,
    /// Its lengths; elements lie in C's order.
    pub shape: *const i64,
    /// How many those are, at most 64.
    pub dimensions: i32,
    /// DLPack's code of the element's kind.
    pub code: u8,
    /// The element's bits.
    pub bits: u8,
    /// How many of those an element has.
    pub lanes: u16,
    /// 1 for the capsule of DLPack 1.x, "dltensor_versioned"; 0 for "dltensor".
    pub is_versioned: i32,
    /// 1 for memory that may not be written to; of a versioned one only.
    pub is_read_only: i32,
}

const OPERATION: &str = "hbm_python_tensor";
const PLAIN: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";
/// The newest DLPack whose promises are kept.
const VERSION: [u32; 2] = [1, 1];
const READ_ONLY: u64 = 1;
/// kDLCPU, and the only one.
const CPU: [i32; 2] = [1, 0];

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: [i32; 2],
    dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    offset: u64,
}

type Delete = unsafe extern "C" fn(*mut c_void);

/// DLManagedTensor.
#[repr(C)]
struct Plain {
    tensor: Tensor,
    context: *mut c_void,
    delete: Option<Delete>,
}

/// DLManagedTensorVersioned.
#[repr(C)]
struct Versioned {
    version: [u32; 2],
    context: *mut c_void,
    delete: Option<Delete>,
    flags: u64,
    tensor: Tensor,
}

/// What a consumer gets the first field of, and gives back.
#[repr(C)]
struct Held<M> {
    managed: M,
    owner: *mut c_void,
    /// What shape and strides point to.
    lengths: Box<[i64]>,
}

macro_rules! python {
    ($($field:ident = $symbol:literal ($($ty:ty),*) $(-> $out:ty)?;)*) => {
        struct Python { $( $field: unsafe extern "C" fn($($ty),*) $(-> $out)?, )* }

        impl Python {
            fn find() -> Option<Python> {
                let program = Library::of_program()?;
                // SAFETY: functions of Python's stable interface, with these signatures.
                Some(Python { $( $field: unsafe {
                    std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) $(-> $out)?>(
                        program.symbol($symbol)?,
                    )
                }, )* })
            }
        }
    };
}

python! {
    is_initialized = c"Py_IsInitialized"() -> c_int;
    lock = c"PyGILState_Ensure"() -> c_int;
    unlock = c"PyGILState_Release"(c_int);
    take = c"Py_IncRef"(*mut c_void);
    drop = c"Py_DecRef"(*mut c_void);
    fetch = c"PyErr_Fetch"(*mut *mut c_void, *mut *mut c_void, *mut *mut c_void);
    restore = c"PyErr_Restore"(*mut c_void, *mut c_void, *mut c_void);
    capsule = c"PyCapsule_New"(*mut c_void, *const c_char, unsafe extern "C" fn(*mut c_void)) -> *mut c_void;
    is_capsule = c"PyCapsule_IsValid"(*mut c_void, *const c_char) -> c_int;
    pointer = c"PyCapsule_GetPointer"(*mut c_void, *const c_char) -> *mut c_void;
}

impl Python {
    fn here() -> Option<&'static Python> {
        static PYTHON: OnceCell<Python> = OnceCell::new();
        PYTHON.get_or_try_init(|| Python::find().ok_or(())).ok()
    }

    /// Drops a reference, on any thread; an exception that is under way stays so. Once Python has ended, the process
    /// gives back what it holds.
    unsafe fn release(&self, object: *mut c_void) {
        // SAFETY: Python runs, so its lock can be had; whoever made the tensor had a reference taken, which this is.
        unsafe {
            if (self.is_initialized)() == 0 {
                return;
            }
            let state = (self.lock)();
            let mut error = [std::ptr::null_mut(); 3];
            let [kind, value, trace] = &mut error;
            (self.fetch)(kind, value, trace);
            (self.drop)(object);
            let [kind, value, trace] = error;
            (self.restore)(kind, value, trace);
            (self.unlock)(state);
        }
    }
}

/// Called by the consumer, once, from wherever it is.
unsafe extern "C" fn delete<M>(managed: *mut c_void) {
    if managed.is_null() {
        return;
    }
    // SAFETY: made by `make`, and its first field, which is all that the consumer knows.
    let held = unsafe { Box::from_raw(managed.cast::<Held<M>>()) };
    if let Some(python) = Python::here() {
        // SAFETY: the reference that `make` took.
        unsafe { python.release(held.owner) };
    }
}

/// Called as a capsule goes. One that was consumed has another name by then.
unsafe extern "C" fn capsule_goes(capsule: *mut c_void) {
    let Some(python) = Python::here() else { return };
    let is_named = |name: &CStr| {
        // SAFETY: the capsule is alive while its destructor runs, under Python's lock.
        unsafe { (python.is_capsule)(capsule, name.as_ptr()) != 0 }
    };
    // SAFETY: what a capsule of that name points to was made by `make` and is nobody else's.
    unsafe {
        if is_named(PLAIN) {
            delete::<Plain>((python.pointer)(capsule, PLAIN.as_ptr()));
        } else if is_named(VERSIONED) {
            delete::<Versioned>((python.pointer)(capsule, VERSIONED.as_ptr()));
        }
    }
}

fn tensor(of: &hbm_python_tensor_t, lengths: &mut [i64]) -> Tensor {
    let (shape, strides) = lengths.split_at_mut(lengths.len() / 2);
    Tensor {
        data: of.data,
        device: CPU,
        dimensions: of.dimensions,
        code: of.code,
        bits: of.bits,
        lanes: of.lanes,
        shape: shape.as_mut_ptr(),
        strides: strides.as_mut_ptr(),
        offset: 0,
    }
}

/// The lengths and, behind them, the strides in elements.
fn lengths(shape: &[i64]) -> Result<Box<[i64]>> {
    let mut all = [shape, shape].concat();
    let mut stride = 1i64;
    for index in (0..shape.len()).rev() {
        all[shape.len() + index] = stride;
        stride = (shape[index] >= 0)
            .then(|| stride.checked_mul(shape[index].max(1)))
            .flatten()
            .ok_or_else(|| Error::invalid(OPERATION, format!("the shape {shape:?}")))?;
    }
    Ok(all.into_boxed_slice())
}

/// # Safety
/// As of `hbm_python_tensor`, with a descriptor that was read.
unsafe fn make(python: &Python, of: &hbm_python_tensor_t, shape: &[i64]) -> Result<*mut c_void> {
    let mut lengths = lengths(shape)?;
    let (tensor, context, owner) = (tensor(of, &mut lengths), std::ptr::null_mut(), of.owner);
    let (managed, name, free): (_, _, Delete) = if of.is_versioned != 0 {
        let held = Held {
            managed: Versioned {
                version: VERSION,
                context,
                delete: Some(delete::<Versioned>),
                flags: if of.is_read_only != 0 { READ_ONLY } else { 0 },
                tensor,
            },
            owner,
            lengths,
        };
        let managed = Box::into_raw(Box::new(held)).cast();
        (managed, VERSIONED, delete::<Versioned>)
    } else {
        let held = Held {
            managed: Plain {
                tensor,
                context,
                delete: Some(delete::<Plain>),
            },
            owner,
            lengths,
        };
        (Box::into_raw(Box::new(held)).cast(), PLAIN, delete::<Plain>)
    };
    // SAFETY: the caller holds Python's lock and passed an object; the name is static.
    unsafe {
        (python.take)(owner);
        let capsule = (python.capsule)(managed, name.as_ptr(), capsule_goes);
        if capsule.is_null() {
            free(managed);
            return Err(Error::new(Status::OutOfMemory, OPERATION)
                .detail("Python made no capsule, and has its own exception of it"));
        }
        Ok(capsule)
    }
}

/// For Python packages: a new capsule (a PyObject) for `__dlpack__` of what keeps memory of the host. Whoever takes the
/// tensor gives it back with the function that it names, from any thread; a capsule that nobody took does so as it goes. NULL on failure,
/// HBM_UNSUPPORTED where there is no Python in the process.
///
/// # Safety
/// The calling thread must hold Python's global lock; `descriptor` must be NULL or point to a descriptor whose pointers are good.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_python_tensor(descriptor: *const hbm_python_tensor_t) -> *mut c_void {
    let mut capsule = std::ptr::null_mut();
    export(|| {
        // SAFETY: passed on to the caller.
        let of = unsafe { read_struct(OPERATION, descriptor, &[]) }?;
        let is_whole = (0..=64).contains(&of.dimensions)
            && !(of.owner.is_null() || of.dimensions > 0 && of.shape.is_null());
        if !is_whole {
            return Err(Error::invalid(OPERATION, "no owner, or no shape"));
        }
        let python = Python::here().ok_or_else(|| {
            Error::new(Status::Unsupported, OPERATION).detail("there is no Python in the process")
        })?;
        let shape = match of.dimensions {
            0 => &[],
            // SAFETY: passed on to the caller.
            count => unsafe { std::slice::from_raw_parts(of.shape, count as usize) },
        };
        // SAFETY: passed on to the caller.
        capsule = unsafe { make(python, &of, shape) }?;
        Ok(())
    });
    capsule
}
