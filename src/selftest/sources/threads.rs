//! Callers with no context, with another device's, and what they find afterwards.

use super::Bench;
use crate::gpu::Device;
use crate::selftest::check::ensure_eq;
use crate::selftest::{Outcome, Stop};

/// A thread that has never met the driver allocates, another frees.
pub fn any_thread(bench: &Bench) -> Outcome {
    let owner = bench.stream()?;
    let stream = owner.stream();
    let on_new_thread = |work: &(dyn Fn() -> Outcome + Sync)| {
        std::thread::scope(|scope| scope.spawn(work).join())
            .map_err(|_| Stop::Failed("a thread panicked".to_owned()))?
    };
    let block = std::sync::Mutex::new(None);
    on_new_thread(&|| {
        let allocated = unchanged(bench, None, || bench.allocate(5 << 20, stream))?;
        *crate::core::sync::lock(&block) = Some(allocated);
        Ok(())
    })?;
    let block = crate::core::sync::lock(&block)
        .take()
        .ok_or("no block".to_owned())?;
    on_new_thread(&|| unchanged(bench, None, || bench.free(&block)))?;
    on_new_thread(&|| unchanged(bench, None, || Ok(bench.source.trim(0)?)))
}

/// A thread that has another device current.
pub fn other_context(bench: &Bench) -> Outcome {
    if bench.machine.driver.device_count() < 2 {
        return Err(Stop::Skipped("needs two devices".to_owned()));
    }
    let other = bench.machine.driver.device(1)?;
    let stream = bench.stream()?;
    let cycle = || {
        let with_other = Some(&**other);
        let block = unchanged(bench, with_other, || {
            bench.allocate(5 << 20, stream.stream())
        })?;
        unchanged(bench, with_other, || bench.free(&block))?;
        unchanged(bench, with_other, || Ok(bench.source.trim(0)?))
    };
    let outcome = cycle();
    bench.machine.set_context(None)?;
    outcome
}

/// Runs `call` with `device` current on the thread, which must find its context and its capture mode
/// as they were.
fn unchanged<T>(
    bench: &Bench,
    device: Option<&Device>,
    call: impl FnOnce() -> Result<T, Stop>,
) -> Result<T, Stop> {
    bench.machine.set_context(device)?;
    let before = bench.machine.thread_state();
    let answer = call()?;
    ensure_eq!(
        bench.machine.thread_state(),
        before,
        "context and capture mode of the thread"
    );
    Ok(answer)
}
