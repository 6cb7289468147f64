//! What Python knows a cell by: a tuple of device, size, address, and where the driver's handle of its
//! memory is shown, or with ROCm a list of such places, each with the length of its chunk.

use crate::library::Cell;
use pyo3_ffi::{
    Py_DecRef, Py_IncRef, PyErr_Occurred, PyErr_SetString, PyExc_TypeError, PyList_Check,
    PyList_GetItem, PyList_New, PyList_SetItem, PyList_Size, PyLong_AsUnsignedLongLong,
    PyLong_FromUnsignedLongLong, PyNumber_Index, PyObject, PyTuple_Check, PyTuple_GetItem,
    PyTuple_New, PyTuple_SetItem, PyTuple_Size,
};
use std::ffi::CStr;
use std::ptr::null_mut;

/// Where handles are shown.
#[derive(Clone)]
pub enum Shown {
    /// The one handle.
    One(u64),
    /// Those of chunks one behind the other, and how long these are.
    Chunks(Vec<(u64, u64)>),
}

/// A cell as Python knows it.
#[derive(Clone)]
pub struct Handle {
    pub device: u64,
    pub bytes: u64,
    pub address: u64,
    pub shown: Shown,
}

impl Handle {
    /// That of a cell of the library's.
    pub fn of(cell: &Cell) -> Handle {
        let chunks = |each: u64| {
            let offsets = (0..cell.bytes).step_by(each as usize).zip(0..);
            let places = offsets.map(|(offset, index)| {
                (
                    cell.handle_address + 8 * index,
                    each.min(cell.bytes - offset),
                )
            });
            Shown::Chunks(places.collect())
        };
        Handle {
            device: cell.device as u64,
            bytes: cell.bytes,
            address: cell.address,
            shown: match cell.chunk_bytes {
                0 => Shown::One(cell.handle_address),
                each => chunks(each),
            },
        }
    }

    /// A new tuple of it; NULL with an exception set.
    ///
    /// # Safety
    /// Python's lock must be held.
    pub unsafe fn tuple(&self) -> *mut PyObject {
        // SAFETY: passed on to the caller.
        unsafe {
            let shown = match &self.shown {
                Shown::One(place) => number(*place),
                Shown::Chunks(places) => list(places),
            };
            tuple_of([
                number(self.device),
                number(self.bytes),
                number(self.address),
                shown,
            ])
        }
    }

    /// What a function's arguments say; none with an exception set.
    ///
    /// # Safety
    /// Python's lock must be held and `arguments` be a tuple.
    pub unsafe fn parse(arguments: *mut PyObject) -> Option<Handle> {
        // SAFETY: passed on to the caller; items are borrowed from the tuple.
        unsafe {
            if PyTuple_Size(arguments) != 4 {
                return wrong_type(c"Expected a tuple of size 4");
            }
            let item = |index| PyTuple_GetItem(arguments, index);
            let last = item(3);
            Some(Handle {
                device: read(item(0))?,
                bytes: read(item(1))?,
                address: read(item(2))?,
                shown: match PyList_Check(last) != 0 {
                    true => Shown::Chunks(read_list(last)?),
                    false => Shown::One(read(last)?),
                },
            })
        }
    }
}

/// # Safety
/// Python's lock must be held.
unsafe fn number(value: u64) -> *mut PyObject {
    // SAFETY: passed on to the caller.
    unsafe { PyLong_FromUnsignedLongLong(value) }
}

/// Takes over the items, of which a NULL is an exception that is set.
///
/// # Safety
/// Python's lock must be held and the items be NULL or references of the caller's.
unsafe fn tuple_of<const COUNT: usize>(items: [*mut PyObject; COUNT]) -> *mut PyObject {
    // SAFETY: passed on to the caller; a tuple takes over what is put into it.
    unsafe {
        let tuple = match items.iter().any(|item| item.is_null()) {
            true => null_mut(),
            false => PyTuple_New(COUNT as isize),
        };
        for (index, item) in items.into_iter().enumerate() {
            match tuple.is_null() {
                true => Py_DecRef(item),
                false => _ = PyTuple_SetItem(tuple, index as isize, item),
            }
        }
        tuple
    }
}

/// # Safety
/// Python's lock must be held.
unsafe fn list(places: &[(u64, u64)]) -> *mut PyObject {
    // SAFETY: passed on to the caller; a list takes over what is put into it.
    unsafe {
        let list = PyList_New(places.len() as isize);
        if list.is_null() {
            return list;
        }
        for (index, (place, bytes)) in places.iter().enumerate() {
            let pair = tuple_of([number(*place), number(*bytes)]);
            if pair.is_null() {
                Py_DecRef(list);
                return null_mut();
            }
            PyList_SetItem(list, index as isize, pair);
        }
        list
    }
}

/// # Safety
/// Python's lock must be held and `object` be live.
unsafe fn read(object: *mut PyObject) -> Option<u64> {
    // SAFETY: passed on to the caller.
    unsafe {
        let whole = PyNumber_Index(object);
        if whole.is_null() {
            return None;
        }
        let value = PyLong_AsUnsignedLongLong(whole);
        Py_DecRef(whole);
        PyErr_Occurred().is_null().then_some(value)
    }
}

/// # Safety
/// Python's lock must be held and `object` be a list.
unsafe fn read_list(object: *mut PyObject) -> Option<Vec<(u64, u64)>> {
    let mut places = Vec::new();
    // SAFETY: passed on to the caller. An item's own conversion to a number may change the list, so that its
    // length is asked each time and the pair is counted meanwhile.
    unsafe {
        while (places.len() as isize) < PyList_Size(object) {
            let pair = PyList_GetItem(object, places.len() as isize);
            if PyTuple_Check(pair) == 0 || PyTuple_Size(pair) != 2 {
                return wrong_type(c"Expected a list of (cell, size)");
            }
            Py_IncRef(pair);
            let place = read(PyTuple_GetItem(pair, 0));
            let bytes = place.and_then(|_| read(PyTuple_GetItem(pair, 1)));
            Py_DecRef(pair);
            places.push((place?, bytes?));
        }
    }
    Some(places)
}

/// # Safety
/// Python's lock must be held.
unsafe fn wrong_type<T>(text: &CStr) -> Option<T> {
    // SAFETY: passed on to the caller.
    unsafe { PyErr_SetString(PyExc_TypeError, text.as_ptr()) };
    None
}
