//! The last error of each thread, for callers who only get a status.

use super::{Error, Status};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

struct Last {
    text: CString,
    error: Error,
}

const NONE: &CStr = c"";

/// Remembers an error for the calling thread.
pub fn remember(error: Error) {
    let text = CString::new(error.to_string().replace('\0', " ")).unwrap_or_default();
    // Exit handlers may run after thread-local storage is gone; then there is nobody left to ask.
    let _ = LAST.try_with(|last| *last.borrow_mut() = Some(Last { text, error }));
}

/// The text of the thread's last error, valid until its next one; empty when there was none.
pub fn text() -> *const c_char {
    LAST.try_with(|last| {
        last.borrow()
            .as_ref()
            .map_or(NONE.as_ptr(), |last| last.text.as_ptr())
    })
    .unwrap_or(NONE.as_ptr())
}

/// The thread's last error itself, for who called one of our own entry points.
pub fn error() -> Error {
    LAST.try_with(|last| last.borrow().as_ref().map(|last| last.error.clone()))
        .ok()
        .flatten()
        .unwrap_or_else(|| {
            Error::new(Status::Internal, "call").detail("it failed and said nothing")
        })
}

/// The driver's code of the thread's last error; 0 where the driver was not the cause.
pub fn code() -> i32 {
    LAST.try_with(|last| {
        last.borrow()
            .as_ref()
            .and_then(|last| last.error.code())
            .map_or(0, |code| code.0)
    })
    .unwrap_or(0)
}

/// The status of the thread's last error.
pub fn status() -> Status {
    LAST.try_with(|last| {
        let last = last.borrow();
        last.as_ref().map_or(Status::Ok, |last| last.error.status())
    })
    .unwrap_or(Status::Ok)
}
