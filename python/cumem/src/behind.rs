//! What is behind an address comes and goes as Python's functions ask, for one place of a handle or for
//! those of several chunks.

use crate::handle::{Handle, Shown};
use crate::library::{Cell, Library};
use std::ffi::{c_int, c_ulonglong};

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Memory comes.
    Map,
    /// It goes.
    Unmap,
}

/// Addresses and where the handle of the chunk behind them is to be shown.
#[derive(Clone, Copy)]
struct Stretch {
    address: u64,
    bytes: u64,
    shown: u64,
}

impl Stretch {
    /// Whether a cell begins there.
    fn is_known(&self, library: &Library) -> bool {
        let mut cell = Cell::new();
        // SAFETY: `cell` is an hbm_cell_t with its size filled in.
        unsafe { (library.cell_describe)(self.address, &mut cell) == 0 }
    }
}

/// Puts memory behind a handle's addresses, all or nothing, or takes it, as far as it goes. The text of
/// the first failure.
///
/// # Safety
/// The places named must be valid for writes of 8 bytes each.
pub unsafe fn change(handle: &Handle, direction: Direction) -> Result<(), String> {
    let library = Library::get().ok_or("libhbmalloc is not loaded")?;
    let mut stretches = stretches(library, handle)?;
    if direction == Direction::Unmap && stretches.iter().any(|one| one.is_known(library)) {
        // What a call that failed has taken already is no failure of this one.
        stretches.retain(|one| one.is_known(library));
    }
    let mut failed = None;
    for (done, stretch) in stretches.iter().enumerate() {
        // SAFETY: passed on to the caller.
        let Err(text) = (unsafe { change_one(library, handle.device, *stretch, direction) }) else {
            continue;
        };
        failed.get_or_insert(text);
        if direction == Direction::Map {
            for made in &stretches[..done] {
                // SAFETY: passed on to the caller. What cannot be taken back stays, and can be unmapped by its
                // handle.
                let _ = unsafe { change_one(library, handle.device, *made, Direction::Unmap) };
            }
            break;
        }
    }
    failed.map_or(Ok(()), Err)
}

/// A cell of the library's is one stretch, whose other handles the library shows by itself; of addresses that
/// the caller reserved each chunk is one.
fn stretches(library: &Library, handle: &Handle) -> Result<Vec<Stretch>, String> {
    let whole = |shown| Stretch {
        address: handle.address,
        bytes: handle.bytes,
        shown,
    };
    let places = match &handle.shown {
        Shown::One(place) => return Ok(vec![whole(*place)]),
        Shown::Chunks(places) => places,
    };
    let total = places
        .iter()
        .try_fold(0u64, |sum, (_, bytes)| sum.checked_add(*bytes));
    let Some((first, _)) = places.first().filter(|_| total == Some(handle.bytes)) else {
        let bytes = handle.bytes;
        return Err(format!(
            "the chunks of the list do not come to {bytes} bytes"
        ));
    };
    let mut cell = Cell::new();
    // SAFETY: `cell` is an hbm_cell_t with its size filled in.
    let is_known = unsafe { (library.cell_describe)(handle.address, &mut cell) } == 0;
    if is_known && cell.is_callers == 0 {
        return Ok(vec![whole(*first)]);
    }
    let mut next = handle.address;
    let chunks = places.iter().map(|(shown, bytes)| {
        let address = next;
        next = next.wrapping_add(*bytes);
        Stretch {
            address,
            bytes: *bytes,
            shown: *shown,
        }
    });
    Ok(chunks.collect())
}

/// # Safety
/// The place named must be valid for a write of 8 bytes.
unsafe fn change_one(
    library: &Library,
    device: c_ulonglong,
    stretch: Stretch,
    direction: Direction,
) -> Result<(), String> {
    let bytes = isize::try_from(stretch.bytes).map_err(|_| "no such size")?;
    let act = match direction {
        Direction::Map => library.create_and_map,
        Direction::Unmap => library.unmap_and_release,
    };
    // SAFETY: passed on to the caller.
    let status: c_int = unsafe { act(device, bytes, stretch.address, stretch.shown as *mut u64) };
    match status {
        0 => Ok(()),
        _ => Err(library.last_error().to_string_lossy().into_owned()),
    }
}
