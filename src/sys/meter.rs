//! How often the driver is called, and for how long. Questions that cost the driver next to nothing
//! are left out: counting them would cost as much as they do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Answered from the calling thread's own state, in tens of nanoseconds.
const UNCOUNTED: [&str; 12] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuCtxGetCurrent",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxSetCurrent",
    "cuCtxGetDevice",
    "cuStreamIsCapturing",
    "cuStreamGetId",
    "cuThreadExchangeStreamCaptureMode",
];

/// Whether calls of the driver's function `name` are counted.
pub const fn is_counted(name: &str) -> bool {
    let mut index = 0;
    while index < UNCOUNTED.len() {
        if is_same(name.as_bytes(), UNCOUNTED[index].as_bytes()) {
            return false;
        }
        index += 1;
    }
    true
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}

/// Calls so far, and the time that their callers spent in them.
#[derive(Default)]
pub struct Meter {
    calls: AtomicU64,
    nanoseconds: AtomicU64,
    is_timed: AtomicBool,
}

impl Meter {
    /// Makes a call, counted.
    #[inline]
    pub fn around<T>(&self, call: impl FnOnce() -> T) -> T {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if !self.is_timed.load(Ordering::Relaxed) {
            return call();
        }
        let started = Instant::now();
        let answer = call();
        let nanoseconds = started.elapsed().as_nanos() as u64;
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        answer
    }

    /// How many calls there have been.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Time spent in calls while they were timed, over all threads.
    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    /// Times calls from now on, or no longer. It costs each two looks at the clock.
    pub fn set_timed(&self, is_timed: bool) {
        self.is_timed.store(is_timed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cheap_questions_are_left_out() {
        assert!(!is_counted("cuCtxGetCurrent"));
        assert!(is_counted("cuCtxGetCurren") && is_counted("cuMemCreate"));
    }

    #[test]
    fn time_is_added_only_while_it_is_asked_for() {
        let meter = Meter::default();
        let wait = || std::thread::sleep(Duration::from_millis(2));
        meter.around(wait);
        assert_eq!((meter.calls(), meter.time()), (1, Duration::ZERO));
        meter.set_timed(true);
        assert_eq!(meter.around(|| 7), 7);
        meter.around(wait);
        meter.set_timed(false);
        let time = meter.time();
        meter.around(wait);
        assert!(time >= Duration::from_millis(2), "{time:?}");
        assert_eq!((meter.calls(), meter.time()), (4, time));
    }
}
