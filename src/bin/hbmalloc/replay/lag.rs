//! Work that comes after the allocations: with a lag of N, what a block's stream was given up to some
//! event has finished only N events later, so that memory freed meanwhile is still in use. On the
//! simulator the work names the block it uses, so that memory taken away too early is a fault.
//!
//! A call of the library may wait for such work, which would last for ever: nothing counts on while
//! it waits. So a second thread looks on, lets everything pass when a call has taken long, and counts
//! that as a forced wait.

use hbmalloc::error::{Error, Result, Status};
use hbmalloc::gpu::{Device, Gate, Stream};
use hbmalloc::selftest::simulator::Simulator;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A call that has waited for longer is let through. The driver's slowest take less.
const PATIENCE: Duration = Duration::from_millis(10);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Most waits that a stream has queued at a time: past about a thousand, the driver blocks the caller.
const MOST_QUEUED: u32 = 256;

/// What the two threads share.
struct Shared {
    gate: Gate,
    /// The thread that replays.
    caller: Caller,
    /// The number of the event whose call runs, from 1; 0 between calls.
    in_call: AtomicU32,
    forced: AtomicU64,
    is_over: AtomicBool,
}

pub struct Lag {
    events: u32,
    /// So many numbers apart are the waits of one stream.
    step: u32,
    /// Of each stream, the number that its last wait is for.
    last: Vec<u32>,
    simulator: Option<Simulator>,
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
}

/// Memory that work uses.
pub struct Range {
    pub address: u64,
    pub bytes: u64,
}

impl Lag {
    /// Work that is `events` behind, on so many streams of `device`.
    pub fn start(
        events: u32,
        streams: usize,
        device: &Arc<Device>,
        simulator: Option<Simulator>,
    ) -> Result<Lag> {
        let shared = Arc::new(Shared {
            gate: Gate::create(device)?,
            caller: Caller::this(),
            in_call: AtomicU32::new(0),
            forced: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let watched = shared.clone();
        let watcher = std::thread::Builder::new()
            .name("replay-watcher".to_owned())
            .spawn(move || watch(&watched))
            .map_err(|error| Error::new(Status::Internal, "replay").detail(error.to_string()))?;
        Ok(Lag {
            events,
            // The simulator has no limit, and its work is to name every block.
            step: match simulator {
                Some(_) => 1,
                None => (events / MOST_QUEUED).max(1),
            },
            last: vec![0; streams],
            simulator,
            shared,
            watcher: Some(watcher),
        })
    }

    /// The event `number`, from 1, is about to happen: work that is `events` older has finished.
    pub fn advance(&self, number: u32) {
        self.shared.gate.reach(number.saturating_sub(self.events));
    }

    /// Gives the stream with that index work which belongs to the event `number` and uses `range`.
    pub fn work(&mut self, number: u32, index: usize, stream: Stream, range: Range) -> Result<()> {
        if number >= self.last[index].saturating_add(self.step) {
            self.last[index] = number;
            self.shared.gate.hold(stream, number)?;
        }
        match self.simulator {
            None => Ok(()),
            Some(simulator) => match simulator.kernel(stream, range.address, range.bytes) {
                0 => Ok(()),
                code => Err(Error::new(Status::Internal, "replay").detail(format!(
                    "{:#x}+{:#x} is not memory that a kernel may use: {code}",
                    range.address, range.bytes
                ))),
            },
        }
    }

    /// A call of the library begins, for the event `number`.
    pub fn enter(&self, number: u32) {
        self.shared.in_call.store(number, Ordering::Release);
    }

    /// It has ended.
    pub fn leave(&self) {
        self.shared.in_call.store(0, Ordering::Release);
    }

    /// How often everything had to be let pass because a call waited.
    pub fn forced(&self) -> u64 {
        self.shared.forced.load(Ordering::Relaxed)
    }
}

impl Drop for Lag {
    /// Ends the watcher; the gate lets everything pass.
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

fn watch(shared: &Shared) {
    let (mut seen, mut since, mut released) = (0, Instant::now(), 0);
    let mut work = shared.caller.work();
    while !shared.is_over.load(Ordering::Acquire) {
        std::thread::sleep(LOOK_EVERY);
        let now = shared.in_call.load(Ordering::Acquire);
        if now == 0 || now != seen {
            (seen, since, work) = (now, Instant::now(), shared.caller.work());
        } else if !shared.caller.waits_since(work) {
            since = Instant::now();
        } else if now != released
            && since.elapsed() >= PATIENCE
            && now == shared.in_call.load(Ordering::Acquire)
        {
            // Nothing with a higher number is queued before that call returns.
            shared.gate.reach(now);
            shared.forced.fetch_add(1, Ordering::Relaxed);
            released = now;
        }
    }
}

/// A thread of this process, as the system sees it.
struct Caller(libc::pid_t);

impl Caller {
    fn this() -> Caller {
        // SAFETY: takes no pointers.
        Caller(unsafe { libc::syscall(libc::SYS_gettid) as libc::pid_t })
    }

    /// Its state's letter, and the time it has had on a processor, in the system's ticks.
    fn state(&self) -> Option<(char, u64)> {
        let path = format!("/proc/self/task/{}/stat", self.0);
        let text = std::fs::read_to_string(path).ok()?;
        // The name, in brackets, may hold spaces. The state follows it; times are 11 fields on.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let state = fields.first()?.chars().next()?;
        Some((state, ticks(11)? + ticks(12)?))
    }

    fn work(&self) -> u64 {
        self.state().map_or(0, |(_, work)| work)
    }

    /// Whether it sleeps, or has looked for its end all the time; not where it was only kept off the
    /// processor by others.
    fn waits_since(&self, work: u64) -> bool {
        match self.state() {
            Some(('S', _)) | None => true,
            Some((_, now)) => now > work,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_waits_and_one_that_works_has_worked() {
        let caller = Caller::this();
        let (state, work) = caller.state().unwrap();
        assert_eq!(state, 'R');
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(100) {
            std::hint::spin_loop();
        }
        assert!(caller.work() > work && caller.waits_since(work));
        assert!(!caller.waits_since(caller.work() + 1));
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(Caller::this()).unwrap();
            let _ = ended.recv();
        });
        let sleeper_seen = told.recv().unwrap();
        let started = Instant::now();
        while !sleeper_seen.waits_since(u64::MAX) {
            assert!(started.elapsed() < Duration::from_secs(10));
        }
        drop(end);
        sleeper.join().unwrap();
    }
}
