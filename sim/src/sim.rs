//! All tables of the simulated machine, under one lock. The files beside this one add the verbs of one concept each.

use crate::capture::Captures;
use crate::chunk::Chunks;
use crate::codes::{self, Code, Result};
use crate::config::Config;
use crate::context::Contexts;
use crate::counters::Counters;
use crate::entry::{self, Locked};
use crate::event::Events;
use crate::faults::Faults;
use crate::host::HostMemory;
use crate::physical::Physical;
use crate::pool::Pools;
use crate::region::Regions;
use crate::stream::Streams;

#[derive(Default)]
pub struct Sim {
    pub config: Config,
    pub physical: Physical,
    pub regions: Regions,
    pub chunks: Chunks,
    pub contexts: Contexts,
    pub streams: Streams,
    pub events: Events,
    pub captures: Captures,
    pub pools: Pools,
    pub host: HostMemory,
    pub faults: Faults,
    pub counters: Counters,
    /// Threads inside a call that waits for a completion.
    pub waiters: usize,
    /// Workers that wait for something to do.
    pub idle_workers: usize,
    pub workers: usize,
    /// Work is dropped instead of run, since everything is about to go.
    pub resetting: bool,
}

impl Sim {
    pub fn new(config: Config) -> Sim {
        let mut sim = Sim {
            physical: Physical::new(&config),
            ..Sim::default()
        };
        sim.pools = Pools::new(&config);
        sim.contexts = Contexts::new(config.devices);
        sim.config = config;
        sim
    }

    /// A new machine in place of the old one. Threads that wait keep their count, and numbers are not given out twice.
    pub fn restart(&mut self, config: Config) {
        let mut fresh = Sim::new(config);
        fresh.streams.continue_from(&self.streams);
        fresh.waiters = self.waiters;
        fresh.idle_workers = self.idle_workers;
        fresh.workers = self.workers;
        *self = fresh;
    }

    pub fn check_device(&self, device: i32) -> Result {
        let known = device >= 0 && (device as u32) < self.config.devices;
        if known {
            Ok(())
        } else {
            Err(codes::INVALID_DEVICE)
        }
    }

    /// Wakes the calls that wait, when there are any.
    pub fn notify_done(&self) {
        if self.waiters > 0 {
            entry::signal_done();
        }
    }

    /// Gives back all address space; what was counted is counted down with the tables.
    pub fn tear_down(&mut self) {
        self.regions.clear();
        self.physical.close();
    }

    /// The sticky error of a context, which every later call that uses the context answers.
    pub fn context_error(&self, context: u64) -> Result {
        self.contexts.error(context).map_or(Ok(()), Err::<(), Code>)
    }
}

impl Locked {
    /// Waits until no worker is inside an operation.
    pub fn wait_idle(&mut self) {
        self.wait_until(|sim| !sim.streams.any_running());
    }
}
