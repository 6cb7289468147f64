//! Captures, and what is left to their graphs: replays use all memory that a capture had, until the
//! graph is released.

use super::run::{MARK, Run};
use super::step::Ask;
use crate::registry::GraphPool;
use crate::selftest::check::ensure;
use crate::selftest::machine::CAPTURE_GLOBAL;
use crate::selftest::{Outcome, Stop};

/// An open capture.
pub struct Capture {
    /// Of which stream.
    pub stream: usize,
    /// Into which pool.
    pub graph: u64,
}

fn graph_pool(id: u64) -> GraphPool {
    GraphPool {
        device: 0,
        id: (7, id),
    }
}

impl Run {
    pub(super) fn begin_capture(&mut self, stream: usize, graph: u64) -> Outcome {
        self.lanes.release(stream);
        let handle = self.lanes.stream(stream);
        self.lanes
            .patiently(|| self.process.graph_begin(graph_pool(graph)))?;
        self.machine.begin_capture(handle, CAPTURE_GLOBAL)?;
        self.captured[graph as usize] += 1;
        self.capture = Some(Capture { stream, graph });
        // The first thing in a capture is an allocation, or it would be taken for one that failed.
        self.allocate(&Ask {
            bytes: 3000,
            align: 256,
            stream,
            thread: 0,
            tag: 0,
            unordered: false,
            everywhere: false,
            segment: false,
        })?;
        Ok(())
    }

    pub(super) fn end_capture(&mut self) -> Outcome {
        let Some(capture) = self.capture.take() else {
            return Ok(());
        };
        self.machine
            .end_capture(self.lanes.stream(capture.stream))?;
        Ok(self.process.graph_end(graph_pool(capture.graph))?)
    }

    pub(super) fn replay(&mut self, graph: u64, stream: usize) -> Outcome {
        let ranges = self.model.graph_ranges(graph);
        if ranges.is_empty() {
            return Ok(());
        }
        let handle = self.lanes.stream(stream);
        let work = self.lanes.issue(stream, 0);
        self.model.replayed(graph, work);
        for ((begin, end), _) in ranges {
            for place in [begin, end - MARK] {
                let used = self.lanes.patiently(|| {
                    let device = &self.machine.device;
                    device.copy_on_device(self.scratch, place, MARK, handle)
                });
                used.map_err(|error| {
                    Stop::from(error).at(format_args!("a replay of {graph} at {place:#x}"))
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn release_graph(&mut self, graph: u64) -> Outcome {
        let open = (self.capture.as_ref()).filter(|capture| capture.graph == graph);
        let open = open.is_some() as u64;
        let process = &self.process;
        let released = self
            .lanes
            .patiently(|| process.graph_release(graph_pool(graph)));
        let users = &mut self.captured[graph as usize];
        if *users <= open {
            ensure!(
                released.is_err(),
                "a graph that is not there, or not ended, was released"
            );
            return Ok(());
        }
        released?;
        *users -= 1;
        if *users == 0 {
            self.model.released(graph);
        }
        Ok(())
    }
}
