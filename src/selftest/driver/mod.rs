//! What the driver itself answers, call by call: the same cases on the simulated driver and on a
//! card, so that what is built and tested on the one holds on the other.

use super::{Case, Context, Outcome, Suite};
use std::ffi::c_int;

/// The suite of the driver's own answers.
pub const SUITE: Suite = Suite {
    name: "driver",
    about: "the driver's answers, alike on the simulated driver and on a card",
    cases: &[&[Case {
        name: "device count",
        run: device_count,
    }]],
};

fn device_count(context: &Context) -> Outcome {
    let mut count: c_int = 0;
    // SAFETY: `count` is a valid out-pointer.
    unsafe { context.cuda.device_count(&mut count) }
        .map_err(|refusal| context.cuda.error(refusal))?;
    if count as usize == context.driver.device_count() {
        Ok(())
    } else {
        Err(format!(
            "{count} devices, and {} at first",
            context.driver.device_count()
        )
        .into())
    }
}
