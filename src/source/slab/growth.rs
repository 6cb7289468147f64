//! How a slab grows: a part after the other, populated at a pace and then pinned, and given up half-way where nobody wants
//! it any more.

use super::{Memory, Progress, Shared, State};
use crate::error::{Error, Result, Status};
use crate::gpu::Registered;
use crate::source::host::{self, PageKind, Wanted};
use crate::sys::pages::Pages;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is populated between two looks at whether to stop, at pace and for somebody who waits.
const STEP: u64 = 64 << 20;
const STEP_IN_HASTE: u64 = 512 << 20;
/// Threads that populate at pace; more take bandwidth from copies that run.
const THREADS_AT_PACE: u64 = 2;

impl State {
    pub(super) fn progress(&self) -> Progress {
        Progress {
            ready: self.ready,
            target: self.target,
            parts: self.parts.len(),
            is_growing: self.is_growing,
            failure: self.failure.clone(),
        }
    }

    pub(super) fn give_to_rest(&mut self, pages: Pages) {
        self.rest = Some(match self.rest.take() {
            Some(rest) => pages.join(rest),
            None => pages,
        });
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `is_there` holds or growing has stopped.
    pub(super) fn wait(&self, deadline: Option<Instant>, is_there: impl Fn(&State) -> bool) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.is_growing && !is_there(&state) {
            let left = deadline.map_or(Duration::from_secs(1), |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting -= 1;
    }

    pub(super) fn grow_unless_it_panics(&self) {
        if catch_unwind(AssertUnwindSafe(|| self.grow())).is_err() {
            let mut state = self.lock();
            state.failure =
                Some(Error::new(Status::Internal, "grow a slab").detail("a panic was caught"));
            self.end(state);
        }
    }

    fn grow(&self) {
        loop {
            let mut state = self.lock();
            let missing = state.target.saturating_sub(state.ready);
            if missing == 0 || state.must_stop {
                break self.end(state);
            }
            drop(state);
            match self.add_part(self.part.min(missing), Some(self.pace)) {
                Ok(()) => self.changed.notify_all(),
                Err(error) => {
                    state = self.lock();
                    state.failure = Some(error);
                    break self.end(state);
                }
            }
        }
    }

    fn end(&self, mut state: MutexGuard<'_, State>) {
        state.is_growing = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Puts memory behind the next `bytes` of addresses, and pins them; at a pace if one is given. What nobody
    /// wants any more is given up half-way.
    pub(super) fn add_part(&self, bytes: u64, pace: Option<u64>) -> Result<()> {
        let Some(rest) = self.lock().rest.take() else {
            return Ok(());
        };
        let (pages, rest) = match bytes < rest.bytes() {
            true => {
                let (pages, rest) = rest.split_at(bytes);
                (pages, Some(rest))
            }
            false => (rest, None),
        };
        self.lock().rest = rest;
        let populated = self.check_left(bytes).and_then(|()| match pace {
            Some(pace) => self.populate_at(&pages, pace),
            None => {
                host::populate(&pages, 0, bytes, &self.processors, host::THREADS).map(|()| true)
            }
        });
        let memory = match (populated, &self.pinned) {
            (Ok(true), None) => Ok(Memory::Plain(pages)),
            (Ok(true), Some((device, flags))) => Registered::try_register(device, pages, *flags)
                .map(Memory::Pinned)
                .map_err(|(pages, error)| (pages, Some(error))),
            (Ok(false), _) => Err((pages, None)),
            (Err(error), _) => Err((pages, Some(error))),
        };
        let mut state = self.lock();
        match memory {
            Ok(memory) => {
                state.ready += memory.place().bytes;
                state.parts.push(memory);
                Ok(())
            }
            Err((pages, error)) => {
                pages.empty();
                state.give_to_rest(pages);
                let ready = state.ready;
                error.map_or(Ok(()), |error| {
                    Err(error.also(&format!("{ready} bytes of the slab are there")))
                })
            }
        }
    }

    fn check_left(&self, bytes: u64) -> Result<()> {
        if self.is_set_aside {
            return Ok(());
        }
        let wanted = Wanted {
            operation: self.operation,
            bytes,
            pages: PageKind::Ordinary,
            node: self.node.as_ref(),
            pinned: None,
            most_registered: host::MOST_REGISTERED,
        };
        host::check_left(&wanted, bytes)
    }

    /// Whether all of it was populated; no where it was told to stop.
    fn populate_at(&self, pages: &Pages, pace: u64) -> Result<bool> {
        let (begun, mut done, mut in_haste) = (Instant::now(), 0, 0);
        while done < pages.bytes() {
            let due = begun + Duration::from_secs_f64((done - in_haste) as f64 / pace as f64);
            let has_haste = {
                let mut state = self.lock();
                loop {
                    if state.must_stop || state.ready >= state.target {
                        return Ok(false);
                    }
                    let early = due.saturating_duration_since(Instant::now());
                    if state.waiting > 0 || early.is_zero() {
                        break state.waiting > 0;
                    }
                    let waited = self.changed.wait_timeout(state, early);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            };
            let (step, threads) = match has_haste {
                true => (STEP_IN_HASTE, host::THREADS),
                false => (STEP, THREADS_AT_PACE),
            };
            let step = step.min(pages.bytes() - done);
            host::populate(pages, done, step, &self.processors, threads)?;
            done += step;
            in_haste += if has_haste { step } else { 0 };
        }
        Ok(true)
    }
}
