//! Any sequence of bytes is a sequence of steps on the pool (`src/selftest/pool/step.rs`). The driver is
//! that of `HBMALLOC_DRIVER`, which must be the simulated one.
#![no_main]

use hbmalloc::selftest::Stop;
use hbmalloc::selftest::pool::run;
use libfuzzer_sys::fuzz_target;

/// Longer ones show nothing that shorter ones do not, and take longer.
const MOST: usize = 8 * 200;

fuzz_target!(|bytes: &[u8]| {
    if let Err(Stop::Failed(why)) = run(&bytes[..bytes.len().min(MOST)]) {
        panic!("{why}");
    }
});
