//! How a slab grows: a part after the other, populated at a pace and then pinned, and given up half-way where nobody wants
//! it any more.

use super::{Memory, Progress, Shared, State};
use crate::error::{Error, Result, Status};
use crate::gpu::Registered;
use crate::source::host::{self, PageKind, Wanted};
use crate::sys::pages::Pages;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is populated between two looks at whether to stop, at pace and for somebody who waits.
const STEP: u64 = 64 << 20;
const STEP_IN_HASTE: u64 = 512 << 20;
/// Growing leaves so much of the host's memory to others.
const SPARED: u64 = 1 << 30;
/// Threads that populate at pace; more take bandwidth from copies that run.
const THREADS_AT_PACE: u64 = 2;
/// So much lost time is made up for.
const MADE_UP: Duration = Duration::from_millis(100);

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

    /// Waits until `is_there` holds or growing has stopped. Parts are `needed` bytes long meanwhile, where that is more.
    pub(super) fn wait(
        &self,
        needed: u64,
        deadline: Option<Instant>,
        is_there: impl Fn(&State) -> bool,
    ) {
        let mut state = self.lock();
        state.waiting += 1;
        state.needed = state.needed.max(needed);
        self.changed.notify_all();
        while state.is_growing && !state.must_stop && !is_there(&state) {
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
        let mut pace = Pace::new(self.pace);
        loop {
            let mut state = self.lock();
            let missing = state.target.saturating_sub(state.ready);
            if missing == 0 || state.must_stop {
                break self.end(state);
            }
            // Who waits may need several, and wakes too late to say so again.
            let needed = match state.waiting {
                0 => std::mem::take(&mut state.needed),
                _ => state.needed,
            };
            drop(state);
            let part = self.part.max(needed);
            match self.add_part(part.min(missing), Some(&mut pace)) {
                Ok(()) => self.changed.notify_all(),
                Err(error) => {
                    state = self.lock();
                    state.failure = Some(error);
                    break self.end(state);
                }
            }
        }
    }

    /// Everything, with growing stopped where it is and no thread at it.
    pub(super) fn at_rest(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.is_growing {
            state.target = state.ready;
            state.failure = None;
            self.changed.notify_all();
            let waited = self.changed.wait_timeout(state, Duration::from_millis(50));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.target = state.ready;
        state.failure = None;
        state
    }

    pub(super) fn end(&self, mut state: MutexGuard<'_, State>) {
        state.is_growing = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Puts memory behind the next `bytes` of addresses, and pins them; at a pace if one is given. What nobody
    /// wants any more is given up half-way.
    pub(super) fn add_part(&self, bytes: u64, pace: Option<&mut Pace>) -> Result<()> {
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
        let populated = self
            .check_left(bytes, pace.is_some())
            .and_then(|()| match pace {
                Some(pace) => self.populate_at(&pages, pace),
                None => self
                    .populate(&pages, 0, bytes, host::THREADS)
                    .map(|()| true),
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

    fn wanted(&self, bytes: u64) -> Wanted<'_> {
        Wanted {
            operation: self.operation,
            bytes,
            pages: self
                .set_aside
                .map_or(PageKind::Ordinary, PageKind::SetAside),
            binding: self.binding.as_ref(),
            pinned: None,
        }
    }

    /// Whether there is memory for a part, and for what grows behind the program, some for others besides.
    fn check_left(&self, bytes: u64, is_behind: bool) -> Result<()> {
        if self.is_shared {
            return Ok(());
        }
        let root = Path::new("/");
        // What nodes had when it was opened is long gone.
        let binding = self.binding.as_ref().map(|binding| binding.anew(root));
        let wanted = Wanted {
            binding: binding.as_ref(),
            ..self.wanted(bytes)
        };
        if self.set_aside.is_some() {
            return host::check_nodes(root, &wanted, bytes);
        }
        let spared = if is_behind { SPARED } else { 0 };
        host::check_left(root, &wanted, bytes + spared)?;
        host::check_nodes(root, &wanted, bytes + spared)
    }

    fn populate(&self, pages: &Pages, begin: u64, bytes: u64, threads: u64) -> Result<()> {
        let wanted = self.wanted(pages.bytes());
        let part = (begin, bytes, host::step(&wanted));
        host::populate(pages, part, &self.processors, threads)
            .map_err(|error| host::short_of_pages(&wanted, bytes, error))
    }

    /// Whether all of it was populated; no where it was told to stop.
    fn populate_at(&self, pages: &Pages, pace: &mut Pace) -> Result<bool> {
        let mut done = 0;
        while done < pages.bytes() {
            let Some(has_haste) =
                self.wait_until(pace.due(STEP.min(pages.bytes() - done), Instant::now()))
            else {
                return Ok(false);
            };
            let (step, threads) = match has_haste {
                true => (STEP_IN_HASTE, host::THREADS),
                false => (STEP, THREADS_AT_PACE),
            };
            let step = step.min(pages.bytes() - done);
            self.populate(pages, done, step, threads)?;
            done += step;
            match has_haste {
                true => pace.begin_anew(),
                false => pace.done += step,
            }
        }
        Ok(true)
    }

    /// Whether somebody waits, then or before; nothing where growing is to stop.
    fn wait_until(&self, due: Instant) -> Option<bool> {
        let mut state = self.lock();
        loop {
            if state.must_stop || state.ready >= state.target {
                return None;
            }
            let early = due.saturating_duration_since(Instant::now());
            if state.waiting > 0 || early.is_zero() {
                return Some(state.waiting > 0);
            }
            let waited = self.changed.wait_timeout(state, early);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// So many bytes a second, from a beginning on.
pub(super) struct Pace {
    rate: u64,
    begun: Instant,
    done: u64,
}

impl Pace {
    fn new(rate: u64) -> Pace {
        Pace {
            rate,
            begun: Instant::now(),
            done: 0,
        }
    }

    fn begin_anew(&mut self) {
        *self = Pace::new(self.rate);
    }

    /// When `more` bytes may begin so that they are not done too early, at `now`.
    fn due(&mut self, more: u64, now: Instant) -> Instant {
        let seconds = (self.done + more) as f64 / self.rate as f64;
        // What is slower than that never comes.
        let due = self.begun + Duration::from_secs_f64(seconds.min(1e6));
        // Who was kept from it longer, by the driver say, would do the rest without any pace.
        let lost = now.saturating_duration_since(due).saturating_sub(MADE_UP);
        self.begun += lost;
        due + lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_not_made_up_for_without_end() {
        let mut pace = Pace::new(1 << 30);
        let (begun, second) = (pace.begun, Duration::from_secs(1));
        assert_eq!(pace.due(1 << 30, begun), begun + second);
        pace.done = 1 << 30;
        // Ten seconds late: a tenth of a second of them counts.
        let now = begun + second * 12;
        assert_eq!(pace.due(1 << 30, now), now - MADE_UP);
        pace.done += 1 << 30;
        assert_eq!(pace.due(1 << 30, now), now - MADE_UP + second);
    }
}
