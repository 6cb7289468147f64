//! The streams of a test, which stand still and go on as it says, and the work given to them by
//! number: so that it can be told for certain that some work has not run.
//!
//! An allocator that has run out of memory waits for work. Whoever held it up would wait for ever,
//! so a watchman lets all streams go on when a call takes long.

use super::step::{OWNED, STREAMS, THREADS};
use crate::core::sync::lock;
use crate::error::Result;
use crate::gpu::stream::OwnedStream;
use crate::gpu::{Gate, Stream};
use crate::selftest::Stop;
use crate::selftest::machine::Machine;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a call may take before all streams go on.
const PATIENCE: Duration = Duration::from_millis(25);

/// Some work: the stream it was given to, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// The stream, as no other ever is called.
    pub lane: u64,
    number: u64,
}

struct Hold {
    gate: Gate,
    number: u32,
    is_on: bool,
}

#[derive(Default)]
struct Holds {
    holds: Vec<Hold>,
    busy_since: Option<Instant>,
    is_over: bool,
}

impl Holds {
    fn release(&mut self, stream: usize) {
        let hold = &mut self.holds[stream];
        if std::mem::take(&mut hold.is_on) {
            hold.gate.reach(hold.number);
        }
    }

    fn release_all(&mut self) {
        (0..self.holds.len()).for_each(|stream| self.release(stream));
    }
}

#[derive(Clone, Copy)]
struct Lane {
    id: u64,
    issued: u64,
    /// How much had been given when it was held.
    before: u64,
}

/// The streams.
pub struct Lanes {
    streams: Vec<OwnedStream>,
    lanes: Vec<Lane>,
    next: u64,
    holds: Arc<Mutex<Holds>>,
    watchman: Option<JoinHandle<()>>,
}

impl Lanes {
    /// Streams of `machine`, none of them held.
    pub fn new(machine: &Machine) -> std::result::Result<Lanes, Stop> {
        let mut streams = Vec::new();
        let mut holds = Vec::new();
        for _ in 0..OWNED {
            streams.push(machine.stream()?);
            holds.push(Hold {
                gate: Gate::create(&machine.device)?,
                number: 0,
                is_on: false,
            });
        }
        let count = STREAMS + THREADS;
        let lane = |id| Lane {
            id,
            issued: 0,
            before: 0,
        };
        let holds = Arc::new(Mutex::new(Holds {
            holds,
            ..Holds::default()
        }));
        let watched = holds.clone();
        Ok(Lanes {
            streams,
            lanes: (0..count as u64).map(lane).collect(),
            next: count as u64,
            holds,
            watchman: Some(std::thread::spawn(move || watch(&watched))),
        })
    }

    /// The handle of a stream.
    pub fn stream(&self, stream: usize) -> Stream {
        match self.streams.get(stream) {
            Some(owned) => owned.stream(),
            None if stream == OWNED => Stream::LEGACY,
            None => Stream::from_raw(2 as _),
        }
    }

    fn place(stream: usize, thread: usize) -> usize {
        match stream > OWNED {
            true => stream + thread,
            false => stream,
        }
    }

    /// What a stream, as `thread` means it, is called.
    pub fn id(&self, stream: usize, thread: usize) -> u64 {
        self.lanes[Lanes::place(stream, thread)].id
    }

    /// Work is given to a stream.
    pub fn issue(&mut self, stream: usize, thread: usize) -> Work {
        let lane = &mut self.lanes[Lanes::place(stream, thread)];
        lane.issued += 1;
        Work {
            lane: lane.id,
            number: lane.issued,
        }
    }

    /// Whether work has certainly not run yet.
    pub fn is_waiting(&self, work: Work) -> bool {
        let holds = lock(&self.holds);
        let held = |index: usize| holds.holds.get(index).is_some_and(|hold| hold.is_on);
        self.lanes
            .iter()
            .enumerate()
            .any(|(index, lane)| lane.id == work.lane && held(index) && work.number > lane.before)
    }

    /// Whether a stream stands still.
    pub fn is_held(&self, stream: usize) -> bool {
        (lock(&self.holds).holds.get(stream)).is_some_and(|hold| hold.is_on)
    }

    /// Work given from now on does not run until the stream is released.
    pub fn hold(&mut self, stream: usize) -> Result<()> {
        let mut holds = lock(&self.holds);
        let hold = &mut holds.holds[stream];
        if !hold.is_on {
            hold.number += 1;
            hold.gate.hold(self.streams[stream].stream(), hold.number)?;
            hold.is_on = true;
            self.lanes[stream].before = self.lanes[stream].issued;
        }
        Ok(())
    }

    /// Lets a stream go on.
    pub fn release(&self, stream: usize) {
        lock(&self.holds).release(stream);
    }

    /// Lets all go on.
    pub fn release_all(&self) {
        lock(&self.holds).release_all();
    }

    /// Another stream takes the place of one, which the library was told to forget.
    pub fn replace(&mut self, stream: usize, other: OwnedStream) {
        self.release(stream);
        self.streams[stream] = other;
        self.rename(stream);
    }

    /// A thread has ended, and its own stream with it.
    pub fn thread_ended(&mut self, thread: usize) {
        self.rename(Lanes::place(OWNED + 1, thread));
    }

    fn rename(&mut self, place: usize) {
        self.lanes[place].id = self.next;
        self.next += 1;
    }

    /// Makes a call that may wait for work.
    pub fn patiently<R>(&self, call: impl FnOnce() -> R) -> R {
        lock(&self.holds).busy_since = Some(Instant::now());
        let answer = call();
        lock(&self.holds).busy_since = None;
        answer
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        {
            let mut holds = lock(&self.holds);
            holds.release_all();
            holds.is_over = true;
        }
        if let Some(watchman) = self.watchman.take() {
            let _ = watchman.join();
        }
    }
}

fn watch(holds: &Mutex<Holds>) {
    loop {
        {
            let mut holds = lock(holds);
            if holds.is_over {
                return;
            }
            if (holds.busy_since).is_some_and(|since| since.elapsed() > PATIENCE) {
                holds.release_all();
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
