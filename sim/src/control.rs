//! What a test steers the simulated machine with: the `hbmsim_` functions of `include/hbmalloc_sim.h`.

use crate::abi::ACCESS_READ;
use crate::capture::NODE_KERNEL;
use crate::codes::{self, Result};
use crate::counters::Snapshot;
use crate::entry::{self, Locked};
use crate::physical::CAPS;
use crate::stream::Action;
use crate::{api, config, cost, inject};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;

/// A C string as text; none where it is null or not text.
///
/// # Safety
/// `text` is null or has a terminator.
unsafe fn text<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}

/// Runs a control function: no panic leaves it, and a forked child, where the lock may be held for ever, is refused.
fn guarded(body: impl FnOnce() -> Result) -> c_int {
    if entry::forked() {
        return codes::NOT_INITIALIZED;
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => codes::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => codes::UNKNOWN,
    }
}

/// Copies a text with its terminator, cut where it does not fit; the answer is the whole length.
///
/// # Safety
/// `to` is null or has `capacity` bytes.
unsafe fn copy_text(from: &str, to: *mut c_char, capacity: u64) -> u64 {
    if !to.is_null() && capacity > 0 {
        let count = from.len().min(capacity as usize - 1);
        // SAFETY: the caller's promise; count is less than the capacity.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr().cast(), to, count);
            to.add(count).write(0);
        }
    }
    from.len() as u64
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_configure(spec: *const c_char) -> c_int {
    guarded(|| {
        // SAFETY: the header asks for a string with a terminator.
        let spec = unsafe { text(spec) }.ok_or(codes::INVALID_VALUE)?;
        config::parse(spec).map_err(|message| {
            eprintln!("hbmalloc_sim: {message}");
            codes::INVALID_VALUE
        })?;
        config::set_spec(spec);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_reset() {
    guarded(entry::reset);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_fail(
    call: *const c_char,
    nth: u64,
    code: c_int,
    times: u64,
) -> c_int {
    guarded(|| {
        // SAFETY: the header asks for a string with a terminator.
        let call = unsafe { text(call) }.ok_or(codes::INVALID_VALUE)?;
        if inject::arm(call, nth, code, times) {
            Ok(())
        } else {
            Err(codes::INVALID_VALUE)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_fail_clear() {
    guarded(|| {
        inject::clear();
        Ok(())
    });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_oom_at(device: c_int, bytes: u64) -> c_int {
    guarded(|| {
        let cap = usize::try_from(device)
            .ok()
            .and_then(|d| CAPS.get(d))
            .ok_or(codes::INVALID_DEVICE)?;
        cap.store(bytes, Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_calls(call: *const c_char) -> u64 {
    // SAFETY: the header asks for a string with a terminator.
    unsafe { text(call) }.map_or(0, inject::count)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_call_log(buffer: *mut c_char, capacity: u64) -> u64 {
    // SAFETY: the header asks for a buffer of that capacity.
    unsafe { copy_text(&inject::log(), buffer, capacity) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_virtual_ns() -> u64 {
    cost::now()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_device_ns(stream: u64) -> u64 {
    let mut answer = 0;
    guarded(|| {
        let mut sim = on_device()?;
        let key = sim.stream_key(stream)?;
        answer = sim.stream(key)?.busy_ns;
        Ok(())
    });
    answer
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_counters(out: *mut c_void, struct_size: u64) -> c_int {
    guarded(|| {
        if out.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        let snapshot = Locked::take().snapshot();
        let size = (struct_size as usize).min(size_of::<Snapshot>());
        // SAFETY: the caller's struct has struct_size bytes, and no more are written.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const snapshot).cast::<u8>(), out.cast(), size)
        };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_physical(device: c_int, used: *mut u64, peak: *mut u64) -> c_int {
    guarded(|| {
        let sim = Locked::take();
        sim.check_device(device)?;
        let figures = (
            sim.physical.used(device as usize),
            sim.physical.peak(device as usize),
        );
        // SAFETY: each is null or a place for a number.
        unsafe {
            if !used.is_null() {
                used.write(figures.0);
            }
            if !peak.is_null() {
                peak.write(figures.1);
            }
        }
        Ok(())
    })
}

fn set_held(stream: u64, held: bool) -> c_int {
    guarded(|| {
        let mut sim = on_device()?;
        let key = sim.stream_key(stream)?;
        sim.stream_mut(key)?.held = held;
        sim.pump();
        sim.notify_done();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_hold(stream: u64) -> c_int {
    set_held(stream, true)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_release(stream: u64) -> c_int {
    set_held(stream, false)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_spin(stream: u64, base: u64, bytes: u64) -> c_int {
    kernel(stream, base, bytes, false)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_kernel(stream: u64, base: u64, bytes: u64) -> c_int {
    kernel(stream, base, bytes, true)
}

/// Where HIP is played, a thread always has a device.
fn on_device() -> codes::Result<Locked> {
    if Locked::take().config.hip.is_some() {
        api::enter_hip_device()?;
    }
    Ok(Locked::take())
}

fn kernel(stream: u64, base: u64, bytes: u64, stopped: bool) -> c_int {
    guarded(|| {
        let mut sim = on_device()?;
        let key = sim.stream_key(stream)?;
        let device = sim.stream(key)?.device;
        if bytes > 0 {
            sim.place_of(base, bytes, device, ACCESS_READ)?;
        }
        let action = Action::Spin {
            base,
            len: bytes,
            stopped,
        };
        sim.submit(key, NODE_KERNEL, action, cost::SHORTEST)?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_spin_stop(stream: u64) -> c_int {
    guarded(|| {
        let mut sim = on_device()?;
        let key = sim.stream_key(stream)?;
        for op in &mut sim.stream_mut(key)?.queue {
            if let Action::Spin { stopped, .. } = &mut op.action {
                *stopped = true;
            }
        }
        sim.pump();
        sim.notify_done();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_faults(buffer: *mut c_char, capacity: u64) -> u64 {
    let mut count = 0;
    guarded(|| {
        let sim = Locked::take();
        count = sim.faults.count;
        // SAFETY: the header asks for a buffer of that capacity, or null.
        unsafe { copy_text(&sim.faults.text(), buffer, capacity) };
        Ok(())
    });
    count
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_faults_clear() {
    guarded(|| {
        let mut sim = Locked::take();
        sim.faults.clear();
        sim.contexts.mend_all();
        Ok(())
    });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_deinit() {
    guarded(|| {
        let mut sim = Locked::take();
        sim.counters.leaks = sim.count_leaks();
        entry::deinitialize();
        Ok(())
    });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbmsim_symbol(name: *const c_char) -> *mut c_void {
    let found = catch_unwind(|| {
        // SAFETY: the header asks for a string with a terminator.
        unsafe { text(name) }.map_or(std::ptr::null_mut(), api::find_symbol)
    });
    found.unwrap_or(std::ptr::null_mut())
}
