//! Takes steps on a pool and on the model beside it.

use super::crew::Crew;
use super::graphs::Capture;
use super::lanes::Lanes;
use super::model::{Block, Model};
use super::step::{GRAPHS, Setting, Step};
use crate::config::value::{Location, Size};
use crate::core::tags::TagId;
use crate::extent::table::Owner;
use crate::gpu::Stream;
use crate::process::{Demand, Process, tags};
use crate::selftest::machine::Machine;
use crate::selftest::simulator::Counters;
use crate::selftest::{Outcome, Stop};
use crate::source::{Kind, LastUse};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes of a mark.
pub(super) const MARK: u64 = 64;
/// Where the memory of the tag is that is placed on the host.
pub(super) const HOST: Location = Location::HostNuma(0);

/// A pool under test.
pub struct Run {
    pub(super) process: Arc<Process>,
    pub(super) base: Option<Counters>,
    pub(super) setting: Setting,
    pub(super) model: Model,
    pub(super) lanes: Lanes,
    pub(super) crew: Crew,
    pub(super) tags: Vec<TagId>,
    pub(super) capture: Option<Capture>,
    /// How often each graph pool was captured into and not released.
    pub(super) captured: [u64; GRAPHS as usize],
    /// The limit now, 0 for none; and the most the simulated driver gives, 0 for all.
    pub(super) limit: u64,
    pub(super) cap: u64,
    pub(super) marks: u64,
    /// Where replays copy to: a block that is none of the pool's, and what is held for it.
    pub(super) scratch: u64,
    pub(super) scratch_bytes: u64,
    pub(super) scratch_allocated: u64,
    /// Threads and heaps that have counted.
    pub(super) writers: BTreeSet<(Stream, u16, usize, Option<u64>)>,
    /// Goes last: it starts the simulated driver afresh.
    pub(super) machine: Machine,
}

impl Run {
    /// A fresh machine with nothing allocated.
    pub fn new(setting: Setting) -> std::result::Result<Run, Stop> {
        let spec = format!("devices=1,memory={},poison=1", setting.memory);
        let machine = Machine::open(&spec)?;
        machine.set_context(None)?;
        // A card's host has other uses for its memory.
        let source = match (setting.source, machine.sim) {
            ("pinned", None) => "device",
            (source, _) => source,
        };
        let host = setting.host
            && source == "vmm"
            && machine.sim.is_some()
            && machine.device.host_numa()?.is_ok();
        let setting = Setting {
            host,
            source,
            ..setting
        };
        let lean = if setting.tight { "tight" } else { "balanced" };
        let placement = if host { "model two=host" } else { "" };
        let options = [
            ("sim", spec.as_str()),
            ("pool_source", setting.source),
            ("waste", lean),
            ("placement", placement),
        ];
        let process = Arc::new(machine.process(&options)?);
        process.set_captures_told(setting.told);
        let lanes = Lanes::new(&machine)?;
        let tags = ["model one", "model two"].map(|name| tags::table().intern(name));
        let mut named = vec![TagId::NONE];
        for tag in tags {
            named.push(tag?);
        }
        let scratch = process.allocate(demand_of(Kind::Device, MARK))?;
        // Asked once by making a chunk, whatever the limit.
        let state = process.device(0)?.state();
        state.grain(Location::Device)?;
        if setting.host {
            state.grain(HOST)?;
        }
        let base = machine.sim.map(|sim| sim.counters());
        let mut run = Run {
            base,
            setting,
            model: Model::default(),
            lanes,
            crew: Crew::default(),
            tags: named,
            capture: None,
            captured: [0; GRAPHS as usize],
            limit: 0,
            cap: 0,
            marks: 0,
            scratch,
            scratch_bytes: process.stats(0, None)?.reserved,
            scratch_allocated: process.stats(0, None)?.allocated,
            writers: Default::default(),
            process,
            machine,
        };
        let limit = match run.machine.sim {
            // A card's memory is not filled.
            None => setting.memory,
            Some(_) => setting.limit,
        };
        run.set_limit(limit)?;
        Ok(run)
    }

    /// Where memory of a tag must be, by its number here.
    pub(super) fn place_of(&self, tag: usize) -> Location {
        match self.setting.host && tag + 1 == self.tags.len() {
            true => HOST,
            false => Location::Device,
        }
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    pub(super) fn captures(&self, stream: usize) -> bool {
        (self.capture.as_ref()).is_some_and(|capture| capture.stream == stream)
    }

    /// Takes one step; what it says of the model is checked, the figures are not.
    pub fn take(&mut self, step: &Step) -> Outcome {
        match *step {
            Step::Allocate(ask) => self.allocate(&ask).map(|_| ()),
            Step::Burst { ask, count, away } => self.burst(&ask, count, away),
            Step::Free {
                index,
                thread,
                used_on,
            } => match self.model.at(index) {
                Some(address) => self.free(address, thread, used_on),
                None => Ok(()),
            },
            Step::FreeAll { stream, thread } => {
                let of_stream = |block: &Block| block.stream == stream;
                self.free_those(thread, of_stream)
            }
            Step::FreeWild {
                index,
                thread,
                offset,
            } => self.free_wild(index, thread, offset),
            Step::Work {
                index,
                stream,
                thread,
            } => self.work(index, stream, thread),
            Step::Record {
                index,
                stream,
                thread,
            } => self.record(index, stream, thread),
            Step::Hold { stream } if !self.captures(stream) => Ok(self.lanes.hold(stream)?),
            Step::Release { stream } => {
                self.lanes.release(stream);
                Ok(())
            }
            Step::Synchronize if !self.is_capturing() => {
                self.lanes.release_all();
                self.machine.synchronize()
            }
            Step::ReplaceStream { stream } if !self.captures(stream) => self.replace(stream),
            Step::ReplaceThread => {
                self.lanes.thread_ended(1);
                self.crew.end()
            }
            Step::BeginCapture { stream, graph } if !self.is_capturing() => {
                self.begin_capture(stream, graph)
            }
            Step::EndCapture => self.end_capture(),
            Step::Replay { graph, stream } if !self.is_capturing() => self.replay(graph, stream),
            Step::ReleaseGraph { graph } => self.release_graph(graph),
            Step::Trim { keep } => self.trim(keep),
            Step::Limit { bytes } => self.set_limit(bytes),
            Step::Shrink { bytes } => {
                if let Some(sim) = self.machine.sim {
                    self.cap = bytes;
                    sim.out_of_memory_at(0, bytes);
                }
                Ok(())
            }
            Step::Lean { tight } => {
                let lean = if tight { "tight" } else { "balanced" };
                self.process.settings().set("waste", lean)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn replace(&mut self, stream: usize) -> Outcome {
        let handle = self.lanes.stream(stream);
        let process = self.process.clone();
        let lanes = &self.lanes;
        lanes.patiently(|| process.forget_stream(0, handle))?;
        let other = self.machine.stream()?;
        self.lanes.replace(stream, other);
        Ok(())
    }

    fn trim(&mut self, keep: u64) -> Outcome {
        self.lanes.patiently(|| self.process.trim(0, keep))?;
        match keep == 0 && !self.is_capturing() && self.setting.source == "vmm" {
            true => self.nothing_needless(),
            false => Ok(()),
        }
    }

    fn set_limit(&mut self, bytes: u64) -> Outcome {
        let process = &self.process;
        self.lanes
            .patiently(|| process.set_limit(0, Size::Bytes(bytes)))?;
        self.limit = bytes;
        Ok(())
    }

    /// Everything is given back, and nothing is left.
    pub fn finish(mut self) -> Outcome {
        self.end_capture()?;
        self.lanes.release_all();
        let mut thread = 0;
        while let Some(address) = self.model.at(thread) {
            self.free(address, thread % 2, None)?;
            thread += 1;
        }
        for graph in 0..GRAPHS {
            while self.captured[graph as usize] > 0 {
                self.release_graph(graph)?;
            }
        }
        self.crew.end()?;
        self.machine.synchronize()?;
        self.trim(0)?;
        self.check()?;
        self.nothing_left()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.lanes.release_all();
        if let Some(sim) = self.machine.sim {
            sim.out_of_memory_at(0, 0);
        }
    }
}

pub(super) fn demand_of(kind: Kind, bytes: u64) -> Demand {
    Demand {
        kind,
        device: 0,
        bytes,
        align: crate::source::ALIGN,
        stream: Stream::LEGACY,
        owner: Owner::Block,
        last_use: LastUse::Streams,
        allocator: None,
        location: None,
        tag: TagId::NONE,
    }
}
