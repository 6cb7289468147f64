//! Work that lasts as long as a case wants: a host function that waits in its stream until it is let
//! go. So order is seen without looking at clocks, alike on a card and on the simulated driver.

use super::calls::Calls;
use super::guards::Stream;
use crate::core::sync::lock;
use crate::selftest::Stop;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// After this it opens by itself: a case that waits for its own gate fails instead of hanging.
const LONGEST: Duration = Duration::from_secs(10);

/// Long enough for a call to have begun to wait.
pub const A_MOMENT: Duration = Duration::from_millis(40);

#[derive(Default)]
struct State {
    is_open: Mutex<bool>,
    changed: Condvar,
    passed: AtomicBool,
}

impl State {
    fn open(&self) {
        *lock(&self.is_open) = true;
        self.changed.notify_all();
    }
}

/// Holds its stream until it is opened or dropped.
pub struct Gate(Arc<State>);

impl Gate {
    /// Puts a closed gate at the end of `stream`, which may not be capturing.
    pub fn close(calls: Calls, stream: &Stream) -> Result<Gate, Stop> {
        let state = Arc::new(State::default());
        let data = Arc::into_raw(state.clone());
        // SAFETY: `wait` takes the reference that `data` is, and the driver calls it once.
        let answer = unsafe { calls.host_function(stream, wait, data as *mut c_void) };
        if answer != 0 {
            // SAFETY: the driver refused, so nobody else takes this reference.
            drop(unsafe { Arc::from_raw(data) });
            return Err(Stop::Failed(format!(
                "preparing: cuLaunchHostFunc answered {answer}"
            )));
        }
        Ok(Gate(state))
    }

    /// Lets the stream go on.
    pub fn open(&self) {
        self.0.open();
    }

    /// Lets it go on from another thread in a moment.
    pub fn open_soon(&self) {
        let state = self.0.clone();
        std::thread::spawn(move || {
            std::thread::sleep(A_MOMENT);
            state.open();
        });
    }

    /// Whether the stream has come past it.
    pub fn is_passed(&self) -> bool {
        self.0.passed.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

extern "C" fn wait(data: *mut c_void) {
    // SAFETY: `close` gave this reference for the one call of this function.
    let state = unsafe { Arc::from_raw(data as *const State) };
    let closed = lock(&state.is_open);
    drop(
        state
            .changed
            .wait_timeout_while(closed, LONGEST, |is_open| !*is_open),
    );
    state.passed.store(true, Ordering::SeqCst);
}
