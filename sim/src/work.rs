//! The engine: operations start when their stream, its order and their events allow, instant ones at once, the others on worker threads.
//! Workers are never joined: they only wait on a condition, so a process may exit or a test may hold a stream for ever.

use crate::config::Config;
use crate::cost;
use crate::entry::{self, Locked};
use crate::sim::Sim;
use crate::stream::{Action, Op};
use crate::{codes, transfer};
use std::time::Duration;

/// Host functions may block; copies behind them must not wait for ever.
const MOST_WORKERS: usize = 16;

impl Sim {
    /// Appends to a stream; the answer is the operation's number, to wait for.
    pub fn enqueue(&mut self, key: u64, action: Action, device_ns: u64) -> u64 {
        let after = self.implicit_order(key);
        let submitted_ns = cost::now();
        let Some(stream) = self.streams.map.get_mut(&key) else {
            return 0;
        };
        stream.submitted += 1;
        let seq = stream.submitted;
        self.streams.watches += usize::from(matches!(action, Action::Watch(_)));
        if stream.queue.is_empty() {
            self.streams.active.push(key);
        }
        stream.queue.push_back(Op {
            seq,
            after,
            action,
            device_ns,
            submitted_ns,
        });
        if stream.queue.len() == 1
            && self.advance(key)
            && self.streams.active.len() > usize::from(!self.is_idle(key))
        {
            self.pump();
        }
        seq
    }

    /// Lets every stream go as far as it can.
    pub fn pump(&mut self) {
        loop {
            let mut moved = false;
            let mut at = 0;
            while at < self.streams.active.len() {
                let key = self.streams.active[at];
                moved |= self.advance(key);
                if self.streams.active.get(at) == Some(&key) {
                    at += 1;
                }
            }
            if !moved {
                break;
            }
        }
    }

    /// Runs what needs no worker at the head of a stream; true when anything finished.
    fn advance(&mut self, key: u64) -> bool {
        let mut moved = false;
        while self.step(key) {
            moved = true;
        }
        if self
            .streams
            .map
            .get(&key)
            .is_none_or(|s| s.queue.is_empty())
        {
            self.streams.active.retain(|k| *k != key);
            self.streams.sweep(key);
        }
        if moved {
            self.notify_done();
        }
        moved
    }

    fn step(&mut self, key: u64) -> bool {
        let Some(stream) = self.streams.map.get(&key) else {
            return false;
        };
        let Some(head) = stream.queue.front() else {
            return false;
        };
        if stream.running {
            return false;
        }
        if self.resetting || self.contexts.error(stream.context).is_some() {
            self.finish(key);
            return true;
        }
        if stream.held
            || !head
                .after
                .iter()
                .all(|(k, seq)| self.streams.reached(*k, *seq))
        {
            return false;
        }
        match &head.action {
            Action::Wait(record) if !record.done() => false,
            Action::Watch(watch) if !self.has_come(watch, stream.device) => false,
            Action::Spin { stopped: false, .. } => false,
            Action::Copy { .. } | Action::Fill { .. } | Action::Host { .. } => {
                self.hand_out(key);
                false
            }
            _ => {
                self.finish(key);
                true
            }
        }
    }

    fn hand_out(&mut self, key: u64) {
        if let Some(stream) = self.streams.map.get_mut(&key) {
            stream.running = true;
        }
        self.streams.ready.push_back(key);
        self.call_worker();
    }

    fn call_worker(&mut self) {
        if self.idle_workers > 0 {
            entry::signal_work();
        } else if self.workers < MOST_WORKERS && start_worker() {
            self.workers += 1;
        }
    }

    /// Takes the first operation off a stream and lets its time pass on the device's clock.
    fn finish(&mut self, key: u64) {
        let Some(stream) = self.streams.map.get_mut(&key) else {
            return;
        };
        stream.running = false;
        let Some(op) = stream.queue.pop_front() else {
            return;
        };
        stream.completed = op.seq;
        let mut start = stream.clock_ns.max(op.submitted_ns);
        if let Action::Wait(record) = &op.action {
            start = start.max(record.time());
        }
        stream.clock_ns = start + op.device_ns;
        stream.busy_ns += op.device_ns;
        self.streams.device_ns += op.device_ns;
        match op.action {
            Action::Record(record) => record.part_done(start),
            Action::Watch(_) => self.streams.watches -= 1,
            Action::Marker {
                base,
                len,
                place: Some(place),
            } => self.prefetched(base, len, place),
            Action::Free { base } => self.drop_plain(base),
            _ => {}
        }
    }
}

impl Sim {
    /// Work that still uses a range which is about to go: on a card that is a fault.
    pub fn fault_users(&mut self, base: u64, len: u64, call: &str) {
        let mut found = Vec::new();
        for stream in self
            .streams
            .active
            .iter()
            .filter_map(|key| self.streams.map.get(key))
        {
            for op in stream
                .queue
                .iter()
                .filter(|op| op.action.touches(base, len))
            {
                let what = op.action.name();
                let message = format!(
                    "{call}: {base:#x}+{len:#x} is used by a queued {what} on stream {}",
                    stream.id
                );
                found.push((stream.context, message));
            }
        }
        let broken = !found.is_empty();
        for (context, message) in found {
            self.fault(context, message);
        }
        if broken {
            self.pump();
            self.notify_done();
        }
    }
}

fn start_worker() -> bool {
    let builder = std::thread::Builder::new().name("hbmsim-worker".into());
    builder.spawn(work).is_ok()
}

fn work() {
    block_signals();
    let mut sim = Locked::take();
    loop {
        match sim.streams.ready.pop_front() {
            Some(key) => run_one(&mut sim, key),
            None => sim.wait_work(),
        }
    }
}

/// The program's signals are for the program's threads.
fn block_signals() {
    // SAFETY: the set is filled before it is used; only this thread's mask changes.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        for fatal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
            libc::sigdelset(&mut set, fatal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

fn run_one(sim: &mut Locked, key: u64) {
    if !sim.streams.ready.is_empty() {
        sim.call_worker();
    }
    let Some(stream) = sim.streams.map.get(&key) else {
        return;
    };
    let (context, device) = (stream.context, stream.device);
    let Some(action) = stream.queue.front().map(|op| op.action.clone()) else {
        return;
    };
    let skipped = sim.resetting || sim.contexts.error(context).is_some();
    if !skipped {
        let answer = match sim.still_valid(&action, device) {
            Ok(()) => execute(sim, &action),
            Err(message) => Err(message),
        };
        if let Err(message) = answer {
            sim.fault(context, message);
        }
    }
    sim.finish(key);
    sim.pump();
    sim.notify_done();
}

fn execute(sim: &mut Locked, action: &Action) -> Result<(), String> {
    let delay = delay(&sim.config);
    sim.unlocked(|| {
        if let Some(delay) = delay {
            std::thread::sleep(delay);
        }
        transfer::execute(action)
    })
}

fn delay(config: &Config) -> Option<Duration> {
    (config.delay_us > 0).then(|| Duration::from_micros(config.delay_us))
}

impl Locked {
    /// Waits until an operation has run; a broken context ends the wait with its error.
    pub fn wait_for(&mut self, key: u64, seq: u64) -> codes::Result {
        let context = self.streams.map.get(&key).map_or(0, |s| s.context);
        self.wait_until(|sim| {
            sim.streams.reached(key, seq) || sim.contexts.error(context).is_some()
        });
        self.context_error(context)
    }

    /// Waits for everything that was given to some streams so far.
    pub fn wait_all(&mut self, context: u64, targets: &[(u64, u64)]) -> codes::Result {
        self.wait_until(|sim| {
            sim.contexts.error(context).is_some()
                || targets
                    .iter()
                    .all(|(key, seq)| sim.streams.reached(*key, *seq))
        });
        self.context_error(context)
    }

    /// Waits for all work of a context, as freeing plain memory does.
    pub fn synchronize_context(&mut self, context: u64) -> codes::Result {
        let targets = self.streams.pending(|s| s.context == context);
        self.wait_all(context, &targets)
    }
}
