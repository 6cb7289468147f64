//! Stream capture: what is given to a capturing stream becomes a graph's nodes, and calls that would disturb a capture are refused and spoil it, by the modes of the capture and of the calling thread.

use crate::codes::{self, Result};
use crate::context;
use crate::counters::Snapshot;
use crate::event::Captured;
use crate::sim::Sim;
use crate::stream::{Action, NON_BLOCKING};
use rustc_hash::FxHashMap;
use std::cell::Cell;

pub const GLOBAL: i32 = 0;
pub const THREAD_LOCAL: i32 = 1;
pub const RELAXED: i32 = 2;

pub const STATUS_NONE: i32 = 0;
pub const STATUS_ACTIVE: i32 = 1;
pub const STATUS_INVALIDATED: i32 = 2;

thread_local! {
    static MODE: Cell<i32> = const { Cell::new(GLOBAL) };
}

pub fn exchange_mode(mode: i32) -> i32 {
    MODE.with(|m| m.replace(mode))
}

#[derive(Clone)]
pub struct Node {
    pub kind: i32,
    pub action: Option<Action>,
    pub device_ns: u64,
    /// Pool memory of a memory node, given back with the graph.
    pub memory: u64,
}

pub const NODE_MEMCPY: i32 = 1;
pub const NODE_MEMSET: i32 = 2;
pub const NODE_HOST: i32 = 3;
pub const NODE_KERNEL: i32 = 0;
pub const NODE_MEMORY_OPERATION: i32 = 12;
pub const NODE_ALLOC: i32 = 10;
pub const NODE_FREE: i32 = 11;

pub struct Capture {
    pub mode: i32,
    pub thread: u64,
    /// The stream where it began.
    pub origin: u64,
    pub context: u64,
    pub invalid: bool,
    pub graph: u64,
    /// Per stream: how much of each stream's captured work it comes after, its own included.
    frontiers: FxHashMap<u64, FxHashMap<u64, u64>>,
    /// The last node each stream made.
    last: FxHashMap<u64, u64>,
}

#[derive(Default)]
pub struct Captures {
    map: FxHashMap<u64, Capture>,
    graphs: FxHashMap<u64, Vec<Node>>,
    execs: FxHashMap<u64, Vec<Node>>,
    /// How many graphs and executables have a memory node's allocation.
    memory: FxHashMap<u64, u64>,
    next: u64,
}

const FIRST_GRAPH: u64 = 0x5500_0000_0000;
const FIRST_EXEC: u64 = 0x5600_0000_0000;
const GRAPH_STEP: u64 = 1 << 24;

impl Captures {
    pub fn count(&self, out: &mut Snapshot) {
        let open = self.map.values().map(|c| c.graph).collect::<Vec<_>>();
        let closed = self.graphs.keys().filter(|g| !open.contains(g)).count();
        out.graphs = (closed + self.execs.len()) as u64;
        out.captures = self.map.len() as u64;
    }

    pub fn get(&self, id: u64) -> Option<&Capture> {
        self.map.get(&id)
    }

    /// Where the handle of a stream's last node lies, valid until the next node.
    pub fn last_node_place(&self, id: u64, stream: u64) -> Option<*const u64> {
        self.map
            .get(&id)?
            .last
            .get(&stream)
            .map(|node| node as *const u64)
    }

    /// Whether pool memory is a node of an open capture.
    pub fn allocated_in(&self, id: u64, base: u64) -> bool {
        let nodes = self.map.get(&id).and_then(|c| self.graphs.get(&c.graph));
        nodes.is_some_and(|nodes| nodes.iter().any(|n| n.memory == base))
    }

    pub fn graph(&self, handle: u64) -> Result<&Vec<Node>> {
        self.graphs.get(&handle).ok_or(codes::INVALID_VALUE)
    }

    pub fn node(&self, handle: u64) -> Result<&Node> {
        let graph = handle - handle % GRAPH_STEP;
        let at = (handle % GRAPH_STEP)
            .checked_sub(1)
            .ok_or(codes::INVALID_VALUE)?;
        self.graph(graph)?
            .get(at as usize)
            .ok_or(codes::INVALID_VALUE)
    }

    pub fn exec(&self, handle: u64) -> Result<&Vec<Node>> {
        self.execs.get(&handle).ok_or(codes::INVALID_VALUE)
    }

    pub fn instantiate(&mut self, graph: u64) -> Result<u64> {
        let nodes = self.graph(graph)?.clone();
        for node in nodes.iter().filter(|n| n.memory != 0) {
            *self.memory.entry(node.memory).or_insert(0) += 1;
        }
        self.next += 1;
        let handle = FIRST_EXEC + self.next * GRAPH_STEP;
        self.execs.insert(handle, nodes);
        Ok(handle)
    }
}

/// A node's handle: its graph and its place in it.
pub fn node_handle(graph: u64, at: usize) -> u64 {
    graph + at as u64 + 1
}

/// Refuses a call that may disturb an open capture, and spoils the captures it would disturb.
pub fn refuse_unsafe(sim: &mut Sim) -> Result {
    if sim.captures.map.is_empty() {
        return Ok(());
    }
    let mode = MODE.with(Cell::get);
    let thread = context::thread();
    let disturbed = |c: &Capture| match mode {
        RELAXED => false,
        THREAD_LOCAL => c.thread == thread && c.mode != RELAXED,
        _ => (c.thread == thread && c.mode != RELAXED) || c.mode == GLOBAL,
    };
    let mut refused = false;
    for capture in sim.captures.map.values_mut().filter(|c| disturbed(c)) {
        capture.invalid = true;
        refused = true;
    }
    if refused {
        Err(codes::STREAM_CAPTURE_UNSUPPORTED)
    } else {
        Ok(())
    }
}

impl Sim {
    pub fn begin_capture(&mut self, key: u64, mode: i32) -> Result {
        let stream = self.stream(key)?;
        if !(GLOBAL..=RELAXED).contains(&mode) {
            return Err(codes::INVALID_VALUE);
        }
        let context = stream.context;
        if stream.capture.is_some() {
            return Err(codes::ILLEGAL_STATE);
        }
        if self.contexts.legacy(context) == Some(key) {
            return Err(codes::STREAM_CAPTURE_UNSUPPORTED);
        }
        self.captures.next += 1;
        let id = self.captures.next;
        let graph = FIRST_GRAPH + id * GRAPH_STEP;
        self.captures.graphs.insert(graph, Vec::new());
        let capture = Capture {
            mode,
            thread: context::thread(),
            origin: key,
            context,
            invalid: false,
            graph,
            frontiers: FxHashMap::from_iter([(key, FxHashMap::default())]),
            last: FxHashMap::default(),
        };
        self.captures.map.insert(id, capture);
        self.stream_mut(key)?.capture = Some(id);
        Ok(())
    }

    /// Ends a capture; the answer is its graph.
    pub fn end_capture(&mut self, key: u64) -> Result<u64> {
        let id = self.stream(key)?.capture.ok_or(codes::ILLEGAL_STATE)?;
        let capture = self.captures.map.get(&id).ok_or(codes::ILLEGAL_STATE)?;
        if capture.origin != key {
            self.invalidate(id);
            return Err(codes::STREAM_CAPTURE_UNMATCHED);
        }
        let wrong_thread = capture.mode != RELAXED && capture.thread != context::thread();
        let unjoined = !capture.joined();
        let (invalid, graph) = (capture.invalid, capture.graph);
        self.captures.map.remove(&id);
        self.streams
            .map
            .values_mut()
            .filter(|s| s.capture == Some(id))
            .for_each(|s| s.capture = None);
        self.events.forget_capture(id);
        let failure = match (wrong_thread, invalid, unjoined) {
            (true, ..) => codes::STREAM_CAPTURE_WRONG_THREAD,
            (_, true, _) => codes::STREAM_CAPTURE_INVALIDATED,
            (_, _, true) => codes::STREAM_CAPTURE_UNJOINED,
            _ => return Ok(graph),
        };
        self.destroy_graph(graph)?;
        Err(failure)
    }

    pub fn invalidate(&mut self, id: u64) {
        if let Some(capture) = self.captures.map.get_mut(&id) {
            capture.invalid = true;
        }
    }

    /// Spoils the capture a stream takes part in and answers that the call is not possible there.
    pub fn refuse_captured(&mut self, key: u64) -> Result {
        match self.stream(key)?.capture {
            Some(id) => {
                self.invalidate(id);
                Err(codes::STREAM_CAPTURE_UNSUPPORTED)
            }
            None => self.refuse_implicit(key),
        }
    }

    /// The legacy stream would have to wait for a blocking stream that captures.
    pub fn refuse_implicit(&mut self, key: u64) -> Result {
        if self.captures.map.is_empty() {
            return Ok(());
        }
        let context = self.stream(key)?.context;
        if self.contexts.legacy(context) != Some(key) {
            return Ok(());
        }
        let blocking = self
            .streams
            .map
            .values()
            .filter(|s| s.context == context && s.flags & NON_BLOCKING == 0);
        let spoiled: Vec<u64> = blocking.filter_map(|s| s.capture).collect();
        if spoiled.is_empty() {
            return Ok(());
        }
        spoiled.into_iter().for_each(|id| self.invalidate(id));
        Err(codes::STREAM_CAPTURE_IMPLICIT)
    }

    /// Captures with a stream in a context.
    pub fn captures_in(&self, context: u64) -> Vec<u64> {
        self.captures
            .map
            .iter()
            .filter(|(_, c)| c.context == context)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Gives an operation to a stream: into its queue, or into the graph it captures. The answer is the number to wait for.
    pub fn submit(
        &mut self,
        key: u64,
        kind: i32,
        action: Action,
        device_ns: u64,
    ) -> Result<Option<u64>> {
        self.refuse_implicit(key)?;
        let Some(id) = self.stream(key)?.capture else {
            return Ok(Some(self.enqueue(key, action, device_ns)));
        };
        self.add_node(
            id,
            key,
            Node {
                kind,
                action: Some(action),
                device_ns,
                memory: 0,
            },
        )?;
        Ok(None)
    }

    pub fn add_node(&mut self, id: u64, key: u64, node: Node) -> Result {
        let capture = self.captures.map.get_mut(&id).ok_or(codes::ILLEGAL_STATE)?;
        if capture.invalid {
            return Err(codes::STREAM_CAPTURE_INVALIDATED);
        }
        let nodes = self.captures.graphs.entry(capture.graph).or_default();
        if node.memory != 0 {
            *self.captures.memory.entry(node.memory).or_insert(0) += 1;
        }
        nodes.push(node);
        capture
            .last
            .insert(key, node_handle(capture.graph, nodes.len() - 1));
        *capture
            .frontiers
            .entry(key)
            .or_default()
            .entry(key)
            .or_insert(0) += 1;
        Ok(())
    }

    /// An event recorded on a capturing stream stands for the work captured there so far.
    pub fn record_captured(&mut self, id: u64, key: u64, event: u64) -> Result {
        let capture = self.captures.map.get(&id).ok_or(codes::ILLEGAL_STATE)?;
        if capture.invalid {
            return Err(codes::STREAM_CAPTURE_INVALIDATED);
        }
        let frontier = capture.frontiers.get(&key).cloned().unwrap_or_default();
        self.events.get_mut(event)?.captured = Captured::In(id, frontier);
        Ok(())
    }

    /// A wait that involves a capture: it draws the stream in, or crosses the boundary and is refused.
    pub fn wait_captured(&mut self, key: u64, event: u64) -> Result<bool> {
        let mine = self.stream(key)?.capture;
        let entry = self.events.get(event)?;
        let recorded = entry.record.is_some();
        let (id, frontier) = match (mine, entry.captured.clone()) {
            (_, Captured::Ended) => return Err(codes::INVALID_VALUE),
            (None, Captured::No) => return Ok(false),
            (Some(id), Captured::No) => {
                if !recorded {
                    return Ok(true);
                }
                self.invalidate(id);
                return Err(codes::STREAM_CAPTURE_ISOLATION);
            }
            (Some(id), Captured::In(other, _)) if id != other => {
                self.invalidate(id);
                self.invalidate(other);
                return Err(codes::STREAM_CAPTURE_MERGE);
            }
            (_, Captured::In(id, frontier)) => (id, frontier),
        };
        self.refuse_implicit(key)?;
        let capture = self.captures.map.get_mut(&id).ok_or(codes::ILLEGAL_STATE)?;
        if capture.invalid {
            return Err(codes::STREAM_CAPTURE_INVALIDATED);
        }
        let own = capture.frontiers.entry(key).or_default();
        for (stream, count) in frontier {
            let entry = own.entry(stream).or_insert(0);
            *entry = (*entry).max(count);
        }
        self.stream_mut(key)?.capture = Some(id);
        Ok(true)
    }

    pub fn launch_graph(&mut self, exec: u64, key: u64) -> Result {
        let nodes = self.captures.exec(exec)?.clone();
        self.refuse_implicit(key)?;
        for node in nodes {
            match (self.stream(key)?.capture, node.action.clone()) {
                (Some(id), _) => self.add_node(id, key, Node { memory: 0, ..node })?,
                (None, Some(action)) => {
                    self.enqueue(key, action, node.device_ns);
                }
                (None, None) => {}
            }
        }
        Ok(())
    }

    pub fn destroy_graph(&mut self, handle: u64) -> Result {
        let removed = self.captures.graphs.remove(&handle);
        self.drop_nodes(removed.ok_or(codes::INVALID_VALUE)?);
        Ok(())
    }

    pub fn destroy_exec(&mut self, handle: u64) -> Result {
        let removed = self.captures.execs.remove(&handle);
        self.drop_nodes(removed.ok_or(codes::INVALID_VALUE)?);
        Ok(())
    }

    /// Memory nodes give their memory back with the last graph or executable that has them.
    fn drop_nodes(&mut self, nodes: Vec<Node>) {
        for node in nodes.into_iter().filter(|n| n.memory != 0) {
            let Some(count) = self.captures.memory.get_mut(&node.memory) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.captures.memory.remove(&node.memory);
                let _ = self.pool_free(node.memory, 0);
            }
        }
    }
}

impl Capture {
    /// Whether the stream it began on comes after all work of the others.
    fn joined(&self) -> bool {
        let Some(origin) = self.frontiers.get(&self.origin) else {
            return true;
        };
        self.frontiers.iter().all(|(stream, own)| {
            let done = own.get(stream).copied().unwrap_or(0);
            origin.get(stream).copied().unwrap_or(0) >= done
        })
    }
}
