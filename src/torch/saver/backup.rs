//! What was saved to the host, shown to who reads it there. Memory on the host is in parts of 64 MiB, so longer stretches
//! are copied into one piece for that.

use crate::core::sync::lock;
use crate::error::Result;
use crate::observe;
use crate::residency::OnHost;
use std::any::Any;
use std::ffi::c_void;
use std::sync::{Mutex, Weak};

/// A stretch of a device's memory that was copied into one piece.
struct Shown {
    address: u64,
    copy: Vec<u8>,
    /// What it was copied from.
    of: Vec<Weak<dyn Any + Send + Sync>>,
}

static SHOWN: Mutex<Vec<Shown>> = Mutex::new(Vec::new());

fn is_there(shown: &Shown) -> bool {
    shown.of.iter().all(|saved| saved.strong_count() > 0)
}

/// Gives up copies of what is not saved any more.
pub(super) fn forget_gone() {
    lock(&SHOWN).retain(is_there);
}

/// Where the bytes of a stretch of a device's memory are in one piece; NULL where they are not on the host.
pub(super) fn find(address: u64, bytes: u64) -> Result<*mut u8> {
    let mut shown = lock(&SHOWN);
    shown.retain(is_there);
    let Some(found) = observe::process().on_host(address, bytes)? else {
        return Ok(std::ptr::null_mut());
    };
    if let Some(begin) = found.in_one_piece() {
        return Ok(begin as *mut u8);
    }
    let is_it = |shown: &&mut Shown| {
        let is_of = |saved: &Weak<dyn Any + Send + Sync>| {
            (found.saved.iter())
                .any(|other| std::ptr::addr_eq(saved.as_ptr(), std::sync::Arc::as_ptr(other)))
        };
        shown.address == address && shown.copy.len() as u64 == bytes && shown.of.iter().all(is_of)
    };
    if let Some(known) = shown.iter_mut().find(is_it) {
        return Ok(known.copy.as_mut_ptr());
    }
    let mut made = Shown {
        address,
        copy: gathered(&found),
        of: found.saved.iter().map(std::sync::Arc::downgrade).collect(),
    };
    let begin = made.copy.as_mut_ptr();
    shown.push(made);
    Ok(begin)
}

fn gathered(found: &OnHost) -> Vec<u8> {
    let mut copy = Vec::with_capacity(found.bytes() as usize);
    for (begin, bytes) in &found.pieces {
        let begin = *begin as *const c_void as *const u8;
        // SAFETY: pinned memory of the host, which `found` holds and nobody writes to while it is saved there.
        copy.extend_from_slice(unsafe { std::slice::from_raw_parts(begin, *bytes as usize) });
    }
    copy
}
