//! The way into every exported call: life cycle, count, cost, injected failure, then the one lock over the tables.
//! A call that waits gives the lock back while it waits, and no panic leaves the library.

use crate::calls::{Call, Capture};
use crate::codes::{self, Code, Result};
use crate::sim::Sim;
use crate::watch::LOOK_AGAIN;
use crate::{capture, config, cost, inject};
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, Once};
use std::time::Duration;

static TABLES: LazyLock<Mutex<Sim>> = LazyLock::new(|| Mutex::new(Sim::default()));
/// Signalled when work has finished, for the calls that wait.
static DONE: Condvar = Condvar::new();
/// Signalled when work may start, for the workers.
static WORK: Condvar = Condvar::new();

const FRESH: u8 = 0;
const READY: u8 = 1;
const DEINITIALIZED: u8 = 2;
static PHASE: AtomicU8 = AtomicU8::new(FRESH);
/// In a child of a process that had initialised: the driver's state is not valid there, and its locks may be held for ever.
static FORKED: AtomicBool = AtomicBool::new(false);

pub struct Locked(Option<MutexGuard<'static, Sim>>);

impl Locked {
    pub fn take() -> Locked {
        Locked(Some(TABLES.lock().unwrap_or_else(|e| e.into_inner())))
    }

    /// Waits for the next completion, without the lock.
    pub fn wait_done(&mut self) {
        self.waiters += 1;
        if self.streams.watches == 0 {
            self.wait_on(&DONE);
        } else {
            self.wait_at_most(&DONE, LOOK_AGAIN);
            self.pump();
        }
        self.waiters -= 1;
    }

    /// Waits for work to be handed out, without the lock.
    pub fn wait_work(&mut self) {
        self.idle_workers += 1;
        self.wait_on(&WORK);
        self.idle_workers -= 1;
    }

    pub fn wait_until(&mut self, mut ready: impl FnMut(&mut Sim) -> bool) {
        while !ready(self) {
            self.wait_done();
        }
    }

    /// Runs something that takes long or calls back, without the lock.
    pub fn unlocked<T>(&mut self, f: impl FnOnce() -> T) -> T {
        self.0 = None;
        let answer = f();
        *self = Locked::take();
        answer
    }

    fn wait_on(&mut self, condition: &Condvar) {
        if let Some(guard) = self.0.take() {
            self.0 = Some(condition.wait(guard).unwrap_or_else(|e| e.into_inner()));
        }
    }

    fn wait_at_most(&mut self, condition: &Condvar, time: Duration) {
        if let Some(guard) = self.0.take() {
            let woken = condition.wait_timeout(guard, time);
            self.0 = Some(woken.unwrap_or_else(|e| e.into_inner()).0);
        }
    }
}

impl Deref for Locked {
    type Target = Sim;
    fn deref(&self) -> &Sim {
        self.0.as_ref().expect("the lock is held outside waits")
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Sim {
        self.0.as_mut().expect("the lock is held outside waits")
    }
}

pub fn signal_done() {
    DONE.notify_all();
}

pub fn signal_work() {
    WORK.notify_one();
}

/// Whether nobody has initialised the driver yet.
pub fn is_fresh() -> bool {
    PHASE.load(Ordering::Acquire) == FRESH
}

pub fn forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

extern "C" fn in_child() {
    if PHASE.load(Ordering::Relaxed) != FRESH {
        FORKED.store(true, Ordering::Relaxed);
    }
}

/// One exported call of an initialised driver.
pub fn run(call: Call, body: impl FnOnce(&mut Locked) -> Result) -> Code {
    guarded(|| {
        alive()?;
        admit(call)?;
        let mut sim = Locked::take();
        if sim.streams.watches > 0 {
            sim.pump();
        }
        if call.info().capture == Capture::Unsafe {
            capture::refuse_unsafe(&mut sim)?;
        }
        body(&mut sim)
    })
}

/// One exported call that needs no driver at all, so that it works in a forked child too.
pub fn run_anywhere(call: Call, body: impl FnOnce() -> Result) -> Code {
    guarded(|| {
        if PHASE.load(Ordering::Acquire) == DEINITIALIZED {
            return Err(codes::DEINITIALIZED);
        }
        if !forked() {
            admit(call)?;
        }
        body()
    })
}

/// One exported call that works before `cuInit`.
pub fn run_early(call: Call, body: impl FnOnce() -> Result) -> Code {
    guarded(|| {
        if forked() {
            return Err(codes::NOT_INITIALIZED);
        }
        if PHASE.load(Ordering::Acquire) == DEINITIALIZED {
            return Err(codes::DEINITIALIZED);
        }
        admit(call)?;
        body()
    })
}

fn guarded(body: impl FnOnce() -> Result) -> Code {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => codes::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => codes::UNKNOWN,
    }
}

fn alive() -> Result {
    if forked() {
        return Err(codes::NOT_INITIALIZED);
    }
    match PHASE.load(Ordering::Acquire) {
        READY => Ok(()),
        DEINITIALIZED => Err(codes::DEINITIALIZED),
        _ => Err(codes::NOT_INITIALIZED),
    }
}

fn admit(call: Call) -> Result {
    cost::charge(call.info().nanoseconds);
    inject::enter(call).map_or(Ok(()), Err)
}

/// What `cuInit` does: reads the configuration once.
pub fn initialize() -> Result {
    let mut sim = Locked::take();
    if PHASE.load(Ordering::Acquire) == READY {
        return Ok(());
    }
    configure(&mut sim)?;
    static HANDLER: Once = Once::new();
    // SAFETY: the handler only touches atomics, which a forked child may.
    HANDLER.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(in_child));
    });
    PHASE.store(READY, Ordering::Release);
    if sim.config.devices == 0 {
        Err(codes::NO_DEVICE)
    } else {
        Ok(())
    }
}

fn configure(sim: &mut Sim) -> Result {
    let config = config::current().map_err(|message| {
        eprintln!("hbmalloc_sim: {message}");
        codes::UNKNOWN
    })?;
    for (call, nth, code) in &config.fail {
        inject::arm(call, *nth, *code, 1);
    }
    sim.restart(config);
    Ok(())
}

/// Drops everything and starts again from the configuration; a driver that was initialised stays so.
pub fn reset() -> Result {
    if forked() {
        return Err(codes::NOT_INITIALIZED);
    }
    let mut sim = Locked::take();
    sim.resetting = true;
    sim.wait_idle();
    sim.tear_down();
    cost::reset();
    inject::clear();
    inject::reset_counts();
    let answer = configure(&mut sim);
    if PHASE.load(Ordering::Acquire) == DEINITIALIZED {
        PHASE.store(READY, Ordering::Release);
    }
    signal_done();
    answer
}

pub fn deinitialize() {
    PHASE.store(DEINITIALIZED, Ordering::Release);
}

macro_rules! driver {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) |$sim:ident| $body:block)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> i32 {
            crate::entry::run(
                crate::calls::Call::$name,
                move |$sim: &mut crate::entry::Locked| -> crate::codes::Result { $body },
            )
        }
    )*};
}
pub(crate) use driver;
