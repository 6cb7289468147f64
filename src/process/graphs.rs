//! Memory of captured graphs. A replay writes wherever its capture did, so a block allocated during
//! a capture stays mapped, freed or not, until torch releases the graph's pool. Within the pool it may
//! serve again, in the order of its stream.

use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::gpu::Stream;
use crate::gpu::capture::Captures;
use crate::registry::{GraphPool, GraphUse};
use crate::source::{Block, Request, Source};
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

/// A block its caller has freed while a graph may still use it.
pub(super) struct Kept {
    pub block: Block,
    pub source: Arc<dyn Source>,
    pub tag: TagId,
    /// Whether only its own stream used it, so that the same stream may use it again.
    pub single_stream: bool,
}

impl Kept {
    /// Whether the block can serve a request without wasting more than an eighth of it, or a granule.
    fn serves(&self, source: &Arc<dyn Source>, request: &Request) -> bool {
        const GRANULE: u64 = 2 << 20;
        let most = request
            .bytes
            .saturating_add((request.bytes / 8).max(GRANULE));
        self.single_stream
            && Arc::ptr_eq(&self.source, source)
            && self.tag == request.tag
            && self.block.stream == request.stream
            && request.align.divides(self.block.address)
            && (request.bytes..=most).contains(&self.block.bytes)
    }
}

#[derive(Default)]
struct Pool {
    /// How many captures began into the pool whose graphs are not released yet.
    users: u64,
    kept: Vec<Kept>,
}

struct Open {
    pool: GraphPool,
    thread: ThreadId,
    /// What the device's captures call it.
    token: u64,
    /// The stream that was first seen capturing for it.
    stream: Option<Stream>,
}

#[derive(Default)]
struct State {
    tokens: u64,
    open: Vec<Open>,
    pools: FxHashMap<GraphPool, Pool>,
    /// How many captures into a pool were given up and may yet be told to have ended.
    given_up: FxHashMap<GraphPool, u64>,
}

impl State {
    /// Gives one use of a pool back; no if it has none.
    fn release(&mut self, pool: GraphPool, released: &mut Released) -> bool {
        let Some(entry) = self.pools.get_mut(&pool) else {
            return false;
        };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 {
            if let Some(entry) = self.pools.remove(&pool) {
                released.blocks.extend(entry.kept);
            }
            released.pools.push(pool);
        }
        true
    }

    /// Whether a capture was given up that ends well after all.
    fn take_back(&mut self, pool: GraphPool) -> bool {
        let Some(count) = self.given_up.get_mut(&pool) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            self.given_up.remove(&pool);
        }
        true
    }
}

/// What graphs that are gone leave behind.
#[derive(Default)]
pub(super) struct Released {
    /// Freed blocks that may go now.
    pub blocks: Vec<Kept>,
    /// The pools that nobody uses any more.
    pub pools: Vec<GraphPool>,
}

/// The graph pools of the process.
#[derive(Default)]
pub(super) struct GraphPools(Mutex<State>);

impl GraphPools {
    /// A number for a capture that is about to begin.
    pub fn number(&self) -> u64 {
        let mut state = lock(&self.0);
        state.tokens += 1;
        state.tokens
    }

    /// The capture `token` into `pool` begins on the calling thread. It must be known as open
    /// already, or it is taken for one that failed.
    pub fn begin(&self, pool: GraphPool, token: u64) {
        let mut state = lock(&self.0);
        state.pools.entry(pool).or_default().users += 1;
        state.open.push(Open {
            pool,
            thread: std::thread::current().id(),
            token,
            stream: None,
        });
    }

    /// The capture ends; its number, if it was still thought open. One that was given up ends well
    /// after all, so its graph is a user of the pool again. An error if none began.
    pub fn end(&self, pool: GraphPool) -> Result<Option<u64>> {
        let mut state = lock(&self.0);
        match state.open.iter().rposition(|open| open.pool == pool) {
            Some(index) => Ok(Some(state.open.remove(index).token)),
            None if state.take_back(pool) => {
                state.pools.entry(pool).or_default().users += 1;
                Ok(None)
            }
            None => Err(unknown("graph_end", pool)
                .advice("Tell of a capture before it begins, and of its end once")),
        }
    }

    /// Tells `note` how many captures are thought open, while none can begin or end.
    pub fn count_open(&self, note: impl FnOnce(usize)) {
        let state = lock(&self.0);
        note(state.open.len());
    }

    /// One graph of the pool is gone; what may go with the last. An error where every use of it is
    /// a capture that has not ended, and where there is none.
    pub fn release(&self, pool: GraphPool) -> Result<Released> {
        const OPERATION: &str = "graph_release";
        let mut state = lock(&self.0);
        let open = state.open.iter().filter(|open| open.pool == pool).count() as u64;
        let users = state.pools.get(&pool).map_or(0, |entry| entry.users);
        if 0 < open && users <= open {
            return Err(Error::new(Status::Busy, OPERATION)
                .detail(format!(
                    "the capture into {} has not ended",
                    described(pool)
                ))
                .advice("Tell of its end first, also of one that failed"));
        }
        let mut released = Released::default();
        match state.release(pool, &mut released) {
            true => Ok(released),
            false => Err(unknown(OPERATION, pool).advice("Release each capture once")),
        }
    }

    /// Forgets captures of `device` that are not open though nobody ended them, and returns what may
    /// go with them.
    pub fn retire_failed(&self, device: i32, is_open: impl Fn(u64) -> bool) -> Released {
        let mut state = lock(&self.0);
        let (open, failed) = std::mem::take(&mut state.open)
            .into_iter()
            .partition(|open| open.pool.device != device || is_open(open.token));
        state.open = open;
        let failed: Vec<Open> = failed;
        let mut released = Released::default();
        for open in &failed {
            state.release(open.pool, &mut released);
            *state.given_up.entry(open.pool).or_default() += 1;
        }
        released
    }

    /// To which graph a block belongs that is allocated on the capturing `stream` of `device`: that
    /// of the capture this stream showed, else of the one this thread began, else of the latest.
    pub fn of_capture(&self, device: i32, stream: Stream, captures: &Captures) -> GraphUse {
        let thread = std::thread::current().id();
        let mut state = lock(&self.0);
        let here: Vec<usize> = (0..state.open.len())
            .rev()
            .filter(|index| state.open[*index].pool.device == device)
            .collect();
        let find = |wanted: &dyn Fn(&Open) -> bool| {
            here.iter()
                .copied()
                .find(|index| wanted(&state.open[*index]))
        };
        let found = find(&|open| open.stream == Some(stream))
            .or_else(|| find(&|open| open.thread == thread))
            .or_else(|| here.first().copied());
        let Some(index) = found else {
            return GraphUse::Unknown;
        };
        let open = &mut state.open[index];
        if open.stream.is_none() {
            open.stream = Some(stream);
            captures.show(open.token, stream);
        }
        GraphUse::Pool(open.pool)
    }

    /// A block kept for the pool that can serve a later request of the same capture or of another
    /// into the same pool: torch replays the graphs of one pool in the order of their captures.
    pub fn reuse(
        &self,
        pool: GraphPool,
        source: &Arc<dyn Source>,
        request: &Request,
    ) -> Option<Kept> {
        let mut state = lock(&self.0);
        let kept = &mut state.pools.get_mut(&pool)?.kept;
        let (index, _) = kept
            .iter()
            .enumerate()
            .filter(|(_, kept)| kept.serves(source, request))
            .min_by_key(|(_, kept)| kept.block.bytes)?;
        Some(kept.swap_remove(index))
    }

    /// Keeps a freed block until its pool is released; gives it back if that has happened.
    pub fn keep(&self, pool: GraphPool, kept: Kept) -> Option<Kept> {
        match lock(&self.0).pools.get_mut(&pool) {
            Some(entry) => {
                entry.kept.push(kept);
                None
            }
            None => Some(kept),
        }
    }
}

fn described(pool: GraphPool) -> String {
    let (high, low) = pool.id;
    format!("graph pool ({high}, {low}) of device {}", pool.device)
}

fn unknown(operation: &'static str, pool: GraphPool) -> Error {
    Error::invalid(
        operation,
        format!("no capture into {} is known", described(pool)),
    )
}
