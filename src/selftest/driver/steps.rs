//! The steps of a case: what the driver answered beside what a card answers. A wrong answer is kept
//! and the case goes on, so that one run tells all.

use super::calls::Calls;
use super::differences;
use super::guards::{Pool, need};
use crate::selftest::{Context, Outcome, Stop};
use std::fmt::Display;

/// What a driver may keep for itself in the course of a case: code and queues at first use. The
/// simulated driver keeps nothing.
const KEPT_BY_A_CARD: u64 = 192 << 20;

/// A case of this suite.
pub type Body = fn(&mut Steps) -> Outcome;

/// The steps so far.
pub struct Steps<'a> {
    context: &'a Context,
    case: &'static str,
    wrong: Vec<String>,
    count: usize,
}

/// Runs a case in the first device's primary context; its memory must be free again at the end.
pub fn run(context: &Context, case: &'static str, body: Body) -> Outcome {
    if let (true, Some(why)) = (context.driver.is_hip(), differences::not_of_hip(case)) {
        return Err(Stop::skip(why));
    }
    let calls = Calls::new(&context.cuda);
    let _current = Current::enter(calls)?;
    let mut steps = Steps {
        context,
        case,
        wrong: Vec::new(),
        count: 0,
    };
    let before = free_memory(calls)?;
    body(&mut steps)?;
    let after = free_memory(calls)?;
    let lost = before.saturating_sub(after);
    context.observe(&format!("bytes not free again = {lost}"));
    if lost
        > if context.is_simulated() {
            0
        } else {
            KEPT_BY_A_CARD
        }
    {
        steps
            .wrong
            .push(format!("{lost} bytes of device memory are not free again"));
    }
    if steps.wrong.is_empty() {
        return Ok(());
    }
    let (wrong, all) = (steps.wrong.len(), steps.count);
    Err(Stop::Failed(format!(
        "{wrong} of {all} steps: {}",
        steps.wrong.join("; ")
    )))
}

impl<'a> Steps<'a> {
    pub fn calls(&self) -> Calls<'a> {
        Calls::new(&self.context.cuda)
    }

    pub fn context(&self) -> &'a Context {
        self.context
    }

    pub fn version(&self) -> i32 {
        self.context.driver.version()
    }

    /// Whether managed memory can be advised and prefetched for the device.
    pub fn is_concurrent(&self) -> bool {
        self.offers(CONCURRENT_MANAGED)
    }

    /// Whether the first device has what an attribute says.
    pub fn offers(&self, attribute: i32) -> bool {
        let mut offered = 0;
        self.calls().attribute(&mut offered, attribute, 0) == 0 && offered != 0
    }

    /// A card answers `expected` at this step.
    pub fn is(&mut self, step: &str, actual: impl Display, expected: impl Display) {
        let actual = self.note(step, actual);
        let expected = self.expected(step, expected.to_string());
        if actual != expected {
            self.wrong
                .push(format!("{step} = {actual}, expected {expected}"));
        }
    }

    /// What this driver should answer where a card answers `by_card`.
    fn expected(&mut self, step: &str, by_card: String) -> String {
        match differences::of(self.case, step) {
            Some(known) if self.context.is_simulated() => {
                self.context.observe(&format!(
                    "{step}: a card answers {by_card}, and {}",
                    known.why
                ));
                known.simulated.to_owned()
            }
            _ => by_card,
        }
    }

    /// Machines differ at this step, within these codes.
    pub fn is_one_of(&mut self, step: &str, actual: i32, expected: &[i32]) {
        let shown = self.note(step, actual);
        if !expected.contains(&actual) {
            self.wrong
                .push(format!("{step} = {shown}, expected one of {expected:?}"));
        }
    }

    /// Something that must hold on every driver.
    pub fn holds(&mut self, step: &str, is_so: bool) {
        self.is(step, is_so, true);
    }

    /// Something to compare drivers by, which nobody relies on.
    pub fn saw(&mut self, step: &str, actual: impl Display) {
        self.note(step, actual);
    }

    fn note(&mut self, step: &str, actual: impl Display) -> String {
        self.count += 1;
        let actual = actual.to_string();
        self.context.observe(&format!("{step} = {actual}"));
        actual
    }
}

/// The first device's primary context on the calling thread's stack.
pub struct Current<'a> {
    calls: Calls<'a>,
    handle: usize,
}

impl<'a> Current<'a> {
    pub fn enter(calls: Calls<'a>) -> Result<Current<'a>, Stop> {
        let mut handle = 0;
        need(
            "cuDevicePrimaryCtxRetain",
            calls.primary_retain(&mut handle, 0),
        )?;
        let entered = need("cuCtxPushCurrent", calls.push(handle));
        if entered.is_err() {
            calls.primary_release(0);
        }
        entered.map(|()| Current { calls, handle })
    }

    pub fn handle(&self) -> usize {
        self.handle
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        self.calls.pop(&mut 0);
        self.calls.primary_release(0);
    }
}

/// Free device memory when no work runs and the default pool keeps nothing.
fn free_memory(calls: Calls) -> Result<u64, Stop> {
    need("cuCtxSynchronize", calls.synchronize())?;
    let mut active = 0;
    if calls.attribute(&mut active, MEMORY_POOLS, 0) == 0 && active != 0 {
        calls.pool_trim(&Pool::default(calls)?, 0);
    }
    let (mut free, mut total) = (0, 0);
    need("cuMemGetInfo", calls.memory_info(&mut free, &mut total))?;
    Ok(free as u64)
}

const CONCURRENT_MANAGED: i32 = 89;
pub const FILE_HANDLES: i32 = 103;
pub const RDMA: i32 = 110;
pub const HOST_NODES: i32 = 141;
const MEMORY_POOLS: i32 = 115;
