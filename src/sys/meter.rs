//! How often the driver is called, and for how long. Questions that cost the driver next to nothing
//! are left out: counting them would cost as much as they do.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Answered from the calling thread's own state, in tens of nanoseconds.
const UNCOUNTED: [&str; 13] = [
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
    "cuStreamGetCtx",
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

/// Which calls are timed. Timing one costs two looks at the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Timing {
    /// None.
    Off = 0,
    /// Those that are counted.
    Counted = 1,
    /// The cheap questions too, which a simulated driver does not answer cheaply.
    All = 2,
}

/// Calls so far, and the time that their callers spent in them.
#[derive(Default)]
pub struct Meter {
    calls: AtomicU64,
    timed: AtomicU64,
    nanoseconds: AtomicU64,
    timing: AtomicU8,
}

impl Meter {
    /// Makes a call that is counted, or one that is not.
    #[inline]
    pub fn around<T>(&self, is_counted: bool, call: impl FnOnce() -> T) -> T {
        let least = if is_counted {
            self.calls.fetch_add(1, Ordering::Relaxed);
            Timing::Counted
        } else {
            Timing::All
        };
        if self.timing.load(Ordering::Relaxed) < least as u8 {
            return call();
        }
        let started = Instant::now();
        let answer = call();
        let nanoseconds = started.elapsed().as_nanos() as u64;
        self.timed.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        answer
    }

    /// How many calls there have been that are counted.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many calls were timed, and the time spent in them, over all threads.
    pub fn time(&self) -> (u64, Duration) {
        let nanoseconds = self.nanoseconds.load(Ordering::Relaxed);
        let timed = self.timed.load(Ordering::Relaxed);
        (timed, Duration::from_nanos(nanoseconds))
    }

    /// Which calls are timed from now on.
    pub fn set_timing(&self, timing: Timing) {
        self.timing.store(timing as u8, Ordering::Relaxed);
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
        meter.around(true, wait);
        meter.around(false, wait);
        assert_eq!((meter.calls(), meter.time()), (1, (0, Duration::ZERO)));
        meter.set_timing(Timing::Counted);
        assert_eq!(meter.around(true, || 7), 7);
        meter.around(true, wait);
        meter.around(false, wait);
        let (timed, time) = meter.time();
        assert!(timed == 2 && time >= Duration::from_millis(2), "{time:?}");
        meter.set_timing(Timing::All);
        meter.around(false, wait);
        assert!(meter.time().0 == 3 && meter.time().1 > time);
        meter.set_timing(Timing::Off);
        let before = meter.time();
        meter.around(true, wait);
        assert_eq!((meter.calls(), meter.time()), (4, before));
    }
}
