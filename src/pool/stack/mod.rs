//! The stack arena: blocks that go in the reverse order of their coming, in one region had from another
//! allocator. What does not fit comes from there as a block of its own, and between two steps the
//! region is had anew, as long as the largest need so far. Never asks upstream for anything with its
//! lock held: upstream may be functions of the caller that come back here.
//!
//! The region is used in the order of one stream. Requests for another get blocks of their own; where
//! work of another stream was named for a block of the region, upstream is told of it for the region as a
//! whole, and nothing more is put there until it was given back and had anew.

mod state;
#[cfg(test)]
mod tests;

pub use state::ArenaStats;

use crate::core::size::Align;
use crate::core::stack::{self, Refusal};
use crate::error::{Error, Result, Status};
use crate::gpu::Stream;
use crate::sys::biased::{BiasedLock, Inside};
use state::{Region, Spill, State};
use std::sync::Arc;

/// What an arena is over.
pub trait Upstream: Send + Sync {
    /// Whether streams mean anything to it.
    fn is_by_stream(&self) -> bool;

    /// The device whose reset takes what it gave.
    fn device(&self) -> Option<i32>;

    /// Whether what is freed is given back at once, so that its trim does not count it.
    fn gives_back_at_once(&self) -> bool;

    /// A block at a multiple of [`stack::ALIGN`].
    fn allocate(&self, bytes: u64, stream: Stream) -> Result<u64>;

    /// Takes back what it gave; whether the block is gone, and how that went.
    fn deallocate(&self, address: u64, bytes: u64, used_on: Stream) -> (bool, Result<()>);

    /// Work of a stream uses the block. [`Status::Unsupported`] of what cannot be told.
    fn record_stream(&self, address: u64, stream: Stream) -> Result<()>;

    /// Waits until a stream has done what it was given.
    fn synchronize(&self, stream: Stream) -> Result<()>;

    /// Gives back what it caches, down to `keep` bytes; the bytes.
    fn trim(&self, keep: u64) -> Result<u64>;
}

/// A place for an arena, which another has after it: what looks at it late sees by the number that it
/// is not the same.
pub struct Arena(BiasedLock<State>);

const ALLOCATE: &str = "hbm_allocator_allocate";
const DEALLOCATE: &str = "hbm_allocator_deallocate";
const ITER: &str = "hbm_arena_iter";
const DESTROY: &str = "hbm_allocator_destroy";

/// A call is on its way to upstream, so that the arena stays.
struct Passing<'a> {
    arena: &'a Arena,
    upstream: Arc<dyn Upstream>,
    moves: bool,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let mut state = self.arena.0.lock();
        state.passing -= 1;
        state.is_moving &= !self.moves;
    }
}

impl Arena {
    /// A place for one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Arena {
        Arena(BiasedLock::new(State::nobodys()))
    }

    /// An arena without a region is here from now on. `number` is above 0, and no other arena's.
    pub fn begin(&self, number: u64, upstream: Arc<dyn Upstream>) {
        *self.0.lock() = State::new(number, upstream);
    }

    /// A block in the region at a multiple of [`stack::ALIGN`], if that takes neither waiting nor anybody else.
    #[inline(always)]
    pub fn allocate_at_once(&self, number: u64, bytes: u64, stream: Stream) -> Option<u64> {
        // 0 is beyond the most by then.
        if bytes.wrapping_sub(1) >= stack::MOST {
            return None;
        }
        let mut state = self.0.enter()?;
        match state.number == number && state.serves_at_once(stream) {
            true => state.push_at_once(bytes),
            false => None,
        }
    }

    /// Takes the last block of the region back, if that takes neither waiting nor anybody else.
    #[inline(always)]
    pub fn deallocate_at_once(
        &self,
        number: u64,
        address: u64,
        bytes: Option<u64>,
        used_on: Stream,
    ) -> bool {
        let Some(mut state) = self.0.enter() else {
            return false;
        };
        state.number == number
            && state.serves_at_once(used_on)
            && state.stack.pop_unpadded(address, bytes)
    }

    fn state(&self, number: u64, operation: &'static str) -> Result<Inside<'_, State>> {
        let state = self.0.lock();
        match state.number == number {
            true => Ok(state),
            false => Err(Error::invalid(operation, "the arena was destroyed")),
        }
    }

    fn pass(&self, state: &mut State, operation: &'static str, moves: bool) -> Result<Passing<'_>> {
        let Some(upstream) = state.upstream.clone() else {
            return Err(Error::new(Status::Internal, operation).detail("an arena over nothing"));
        };
        if moves && state.is_moving {
            return Err(Error::new(Status::Busy, operation)
                .detail("another call is changing the arena's region"));
        }
        state.passing += 1;
        state.is_moving |= moves;
        Ok(Passing {
            arena: self,
            upstream,
            moves,
        })
    }

    /// Gives out a block.
    pub fn allocate(&self, number: u64, bytes: u64, align: Align, stream: Stream) -> Result<u64> {
        let what = match bytes {
            0 => "a size of 0 bytes".to_owned(),
            _ => format!(
                "{bytes} bytes at a multiple of {} are more than there is",
                align.get()
            ),
        };
        let whole = bytes.checked_add(align.get().saturating_sub(stack::ALIGN.get()));
        let (Some(whole), Some(need), 1..) = (
            whole.filter(|whole| *whole <= stack::MOST),
            stack::need(bytes, align),
            bytes,
        ) else {
            let error = Error::invalid(ALLOCATE, what);
            self.state(number, ALLOCATE)?.note_failed(&error);
            return Err(error);
        };
        let passing = {
            let mut state = self.state(number, ALLOCATE)?;
            if let Some(address) = state.push(bytes, align, stream) {
                return Ok(address);
            }
            self.pass(&mut state, ALLOCATE, false)?
        };
        let made = (passing.upstream.allocate(whole, stream))
            .and_then(|base| self.spill(&passing, base, whole, (bytes, need, align), stream));
        made.inspect_err(|error| self.0.lock().note_failed(error))
    }

    /// Records what upstream gave for a request.
    fn spill(
        &self,
        passing: &Passing,
        base: u64,
        whole: u64,
        (requested, need, align): (u64, u64, Align),
        stream: Stream,
    ) -> Result<u64> {
        let address = align.round_up(base).unwrap_or(base);
        let spill = Spill {
            base,
            bytes: whole,
            requested,
            need,
        };
        {
            let mut state = self.0.lock();
            if state.spilled.contains_key(&address) {
                return Err(Error::new(Status::Internal, ALLOCATE)
                    .detail(format!("upstream gave {address:#x} out twice")));
            }
            if state.spilled.try_reserve(1).is_ok() {
                state.spill(address, spill);
                return Ok(address);
            }
        }
        let _ = passing.upstream.deallocate(base, whole, stream);
        Err(Error::new(Status::OutOfMemory, ALLOCATE)
            .bytes(requested)
            .detail("the host has no memory for the record of a block"))
    }

    /// Takes a block back, of `bytes` where that is told. Whether it is gone now, and how that went.
    pub fn deallocate(
        &self,
        number: u64,
        address: u64,
        bytes: Option<u64>,
        used_on: Stream,
    ) -> (bool, Result<()>) {
        let (passing, spill) = match self.begin_deallocate(number, address, bytes, used_on) {
            Ok(Some((passing, Some(spill)))) => (passing, spill),
            Ok(Some((passing, None))) => {
                let popped = (self.record_region(&passing, number, used_on))
                    .or_else(|error| match error.status() {
                        Status::Unsupported => passing.upstream.synchronize(used_on),
                        _ => Err(error),
                    })
                    .and_then(|()| pop(&mut *self.state(number, DEALLOCATE)?, address, bytes));
                return (popped.is_ok(), popped);
            }
            Ok(None) => return (true, Ok(())),
            Err(error) => return (false, Err(error)),
        };
        let (is_gone, outcome) = (passing.upstream).deallocate(spill.base, spill.bytes, used_on);
        let mut state = self.0.lock();
        match is_gone {
            true => state.note_returned(spill.bytes),
            false => state.take_spill_back(address, spill),
        }
        drop(state);
        (is_gone, outcome)
    }

    /// The part of it that upstream is not asked for; None if that was all.
    fn begin_deallocate(
        &self,
        number: u64,
        address: u64,
        bytes: Option<u64>,
        used_on: Stream,
    ) -> Result<Option<(Passing<'_>, Option<Spill>)>> {
        let mut state = self.state(number, DEALLOCATE)?;
        if let Some(spill) = state.spilled.get(&address).copied() {
            check_size(address, spill.requested, bytes)?;
            let passing = self.pass(&mut state, DEALLOCATE, false)?;
            state.unspill(address);
            return Ok(Some((passing, Some(spill))));
        }
        check(&state, address, bytes)?;
        if state.is_of(used_on) {
            pop(&mut state, address, bytes)?;
            return Ok(None);
        }
        let passing = self.pass(&mut state, DEALLOCATE, false)?;
        Ok(Some((passing, None)))
    }

    /// Has upstream keep the region from others until work of that stream is done, too, and puts nothing
    /// more into it.
    fn record_region(&self, passing: &Passing, number: u64, stream: Stream) -> Result<()> {
        let region = self.state(number, DEALLOCATE)?.region;
        if let Some(region) = region {
            passing.upstream.record_stream(region.base, stream)?;
            let mut state = self.0.lock();
            if state.region.is_some_and(|now| now.base == region.base) {
                state.close();
            }
        }
        Ok(())
    }

    /// Work of a stream uses a block.
    pub fn record_stream(&self, number: u64, address: u64, stream: Stream) -> Result<()> {
        const OPERATION: &str = "hbm_allocator_record_stream";
        let (passing, spill) = {
            let mut state = self.state(number, OPERATION)?;
            let spill = state.spilled.get(&address).copied();
            if spill.is_none() && state.stack.check(address, None) == Err(Refusal::Foreign) {
                return Err(not_owned(OPERATION, address));
            }
            if spill.is_none() && state.is_of(stream) {
                return Ok(());
            }
            (self.pass(&mut state, OPERATION, false)?, spill)
        };
        match spill {
            Some(spill) => passing.upstream.record_stream(spill.base, stream),
            None => self.record_region(&passing, number, stream),
        }
    }

    /// A stream is to be named no more, and what has its handle later is another one.
    pub fn forget_stream(&self, number: u64, stream: Stream) {
        if let Ok(mut state) = self.state(number, "hbm_stream_forget") {
            state.forget_stream(stream);
        }
    }

    /// What came from a device goes with its reset: nobody is asked for it again.
    pub fn leave_device(&self, number: u64, device: i32) {
        let Ok(mut state) = self.state(number, "reset") else {
            return;
        };
        let upstream = state.upstream.as_ref();
        if upstream.and_then(|upstream| upstream.device()) == Some(device) {
            state.lose_all();
        }
    }

    /// Between two steps, with no block in the region: makes that as long as the largest need so far, for
    /// use on `stream`. The old region goes back before the new one is had, so that there are never
    /// both; where the new one cannot be had, one of the old length is, if it can, and the error returned.
    pub fn iter(&self, number: u64, stream: Stream) -> Result<()> {
        let (passing, old, wanted) = {
            let mut state = self.state(number, ITER)?;
            check_empty(&state, ITER)?;
            let wanted = state.largest_need;
            let suits = |region: Region| region.bytes >= wanted && state.serves(stream);
            if wanted == 0 || state.region.is_some_and(suits) {
                return Ok(());
            }
            let passing = self.pass(&mut state, ITER, true)?;
            (passing, state.lift(), wanted)
        };
        if let Some(old) = old {
            self.give_back(&passing, old)?;
        }
        let have = |bytes: u64| {
            let base = passing.upstream.allocate(bytes, stream)?;
            let mut state = self.0.lock();
            state.note_reserved(bytes);
            state.install(Region::new(base, bytes, stream));
            Ok::<(), Error>(())
        };
        let Err(error) = have(wanted) else {
            return Ok(());
        };
        self.0.lock().note_failed(&error);
        Err(match old.filter(|old| old.bytes < wanted) {
            None => error.also("the arena has no region"),
            Some(old) => match have(old.bytes) {
                Ok(()) => error.also(&format!("the arena's region has {} bytes as before", old.bytes)),
                Err(_) => error.also(&format!(
                    "the arena has no region, since the {} bytes of the old one could not be had again either",
                    old.bytes
                )),
            },
        })
    }

    /// Gives a region that was lifted to upstream; where it does not take it, the region stays.
    fn give_back(&self, passing: &Passing, region: Region) -> Result<()> {
        let upstream = &passing.upstream;
        let (is_gone, outcome) = upstream.deallocate(region.base, region.bytes, region.stream);
        let mut state = self.0.lock();
        match is_gone {
            true => state.note_returned(region.bytes),
            false => state.install(region),
        }
        outcome
    }

    /// Gives the region back if it has more than `keep` bytes and no block lies in it, then has upstream
    /// trim; all that was given back.
    pub fn trim(&self, number: u64, keep: u64) -> Result<u64> {
        const OPERATION: &str = "hbm_allocator_trim";
        let (passing, region) = {
            let mut state = self.state(number, OPERATION)?;
            let is_idle = state.stack.is_empty() && !state.is_moving;
            let goes = is_idle && state.region.is_some_and(|region| region.bytes > keep);
            let passing = self.pass(&mut state, OPERATION, goes)?;
            (passing, if goes { state.lift() } else { None })
        };
        let mut given_back = 0;
        if let Some(region) = region {
            self.give_back(&passing, region)?;
            if passing.upstream.gives_back_at_once() {
                given_back = region.bytes;
            }
        }
        Ok(given_back + passing.upstream.trim(keep)?)
    }

    /// What it did.
    pub fn stats(&self, number: u64, operation: &'static str) -> Result<ArenaStats> {
        Ok(self.state(number, operation)?.stats())
    }

    /// Finds what contradicts itself, while no call is under way.
    pub fn audit(&self) -> std::result::Result<(), String> {
        self.0.lock().audit()
    }

    /// The arena is no more, if none of its blocks is given out and the region is taken back.
    pub fn end(&self, number: u64) -> Result<()> {
        let (passing, region) = {
            let mut state = self.state(number, DESTROY)?;
            check_unused(&state)?;
            (self.pass(&mut state, DESTROY, true)?, state.lift())
        };
        if let Some(region) = region {
            self.give_back(&passing, region)?;
        }
        drop(passing);
        let mut state = self.state(number, DESTROY)?;
        check_unused(&state)?;
        let last = std::mem::replace(&mut *state, State::nobodys());
        drop(state);
        drop(last);
        Ok(())
    }
}

fn check_empty(state: &State, operation: &'static str) -> Result<()> {
    match state.stack.len() {
        0 => Ok(()),
        live => Err(Error::new(Status::Busy, operation)
            .detail(format!("{live} blocks of the region are not deallocated"))),
    }
}

fn check_unused(state: &State) -> Result<()> {
    let busy = |what| Err(Error::new(Status::Busy, DESTROY).detail(what));
    match (state.live(), state.passing) {
        (0, 0) => Ok(()),
        (0, _) => busy("calls on it are under way".to_owned()),
        (live, _) => busy(format!("{live} of its blocks are not deallocated")),
    }
}

fn check(state: &State, address: u64, bytes: Option<u64>) -> Result<()> {
    (state.stack)
        .check(address, bytes)
        .map_err(|refusal| refused(address, bytes, refusal))
}

fn pop(state: &mut State, address: u64, bytes: Option<u64>) -> Result<()> {
    (state.stack)
        .pop(address, bytes)
        .map_err(|refusal| refused(address, bytes, refusal))
}

fn check_size(address: u64, is: u64, bytes: Option<u64>) -> Result<()> {
    match bytes {
        Some(told) if told != is => Err(wrong_size(address, is, told)),
        _ => Ok(()),
    }
}

fn wrong_size(address: u64, is: u64, told: u64) -> Error {
    Error::invalid(
        DEALLOCATE,
        format!("{address:#x} has {is} bytes, not {told}"),
    )
}

fn not_owned(operation: &'static str, address: u64) -> Error {
    Error::new(Status::NotOwned, operation).detail(format!(
        "{address:#x} is no block of this arena, or was freed already"
    ))
}

fn refused(address: u64, bytes: Option<u64>, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Foreign => not_owned(DEALLOCATE, address),
        Refusal::OtherSize(is) => wrong_size(address, is, bytes.unwrap_or(is)),
        Refusal::Below(above) => {
            let what = format!("{address:#x} is below {above} other blocks of the arena's region");
            Error::invalid(DEALLOCATE, what).advice("Deallocate the last block first")
        }
    }
}
