//! Limits on what is held of each device.

use super::{export, write_out};
use crate::config::value::Size;
use crate::error::{Error, Result};
use crate::observe;

/// What stands for every device.
const EVERY_DEVICE: i32 = -1;

/// Sets the most bytes that the library holds of a device's memory, by all kinds together, cached or in
/// blocks; 0 for no limit, which is how it begins. -1 is every device, and forgets what was set for
/// one. May be changed at any time, and set before there is a driver: makes no driver call then, and
/// a device that there is not shows later.
///
/// Requests that would pass the limit are HBM_OUT_OF_MEMORY, after what is cached was given back.
/// Setting it below what is held gives back what is cached and waits for the work on freed blocks;
/// blocks stay, and whatever needs more memory of the device fails until less is held. Memory of
/// the host takes nothing of the limit. The driver's stream-ordered pool grows as it sees fit: it is
/// asked after each block, and a block that made it pass the limit is taken back.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_set_limit(device: i32, bytes: u64) -> i32 {
    export(|| set(device, Size::Bytes(bytes)))
}

/// [`hbm_set_limit`] as a share of the device's memory, above 0; 1 for no limit.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_set_limit_fraction(device: i32, fraction: f64) -> i32 {
    export(|| {
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(Error::invalid(
                "hbm_set_limit_fraction",
                format!("{fraction} is not above 0 and at most 1"),
            ));
        }
        set(device, Size::Percent(fraction * 100.0))
    })
}

fn set(device: i32, limit: Size) -> Result<()> {
    match device {
        EVERY_DEVICE => observe::process().set_limits(limit),
        device => observe::process().set_limit(device, limit),
    }
}

/// Writes the limit of a device to `*bytes`; 0 where there is none. Starts the driver where the limit
/// is a share of a device's memory that is not in use yet.
///
/// # Safety
/// `bytes` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_get_limit(device: i32, bytes: *mut u64) -> i32 {
    export(|| {
        let limit = observe::process().limit(device)?.unwrap_or(0);
        // SAFETY: passed on to the caller.
        unsafe { write_out("hbm_get_limit", bytes, limit) }
    })
}
