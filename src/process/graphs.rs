//! Memory of captured graphs. A replay writes wherever its capture did, so a block allocated during
//! a capture stays mapped, freed or not, until torch releases the graph's pool. Within the pool it may
//! serve again, in the order of its stream.

use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::gpu::capture::Captures;
use crate::gpu::{Stream, Uses};
use crate::registry::{Generation, GraphPool, GraphUse};
use crate::source::{Block, Request, Source};
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

/// A block its caller has freed while a graph may still use it.
pub(super) struct Kept {
    pub block: Block,
    pub source: Arc<dyn Source>,
    pub tag: TagId,
    /// Whether only its own stream used it, so that the same stream may use it again.
    pub single_stream: bool,
    /// What was named for it besides.
    pub others: Uses,
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

struct Pool {
    generation: u64,
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

/// A capture that was taken for one that failed, and may yet be told to have ended.
struct GivenUp {
    generation: Generation,
    thread: ThreadId,
    /// Whether it may have had memory.
    is_shown: bool,
}

#[derive(Default)]
struct State {
    tokens: u64,
    generations: u64,
    /// Captures whose end was not told; some may be over.
    open: Vec<Open>,
    pools: FxHashMap<GraphPool, Pool>,
    given_up: Vec<GivenUp>,
}

impl State {
    /// One more capture into a pool; the pool's generation.
    fn add_user(&mut self, pool: GraphPool) -> u64 {
        let generations = &mut self.generations;
        let entry = self.pools.entry(pool).or_insert_with(|| {
            *generations += 1;
            Pool {
                generation: *generations,
                users: 0,
                kept: Vec::new(),
            }
        });
        entry.users += 1;
        entry.generation
    }

    fn generation(&self, pool: GraphPool) -> Generation {
        Generation {
            pool,
            number: self.pools.get(&pool).map_or(0, |entry| entry.generation),
        }
    }

    /// Gives one use of a pool back; no if it has none.
    fn release(&mut self, pool: GraphPool, released: &mut Released) -> bool {
        let Some(entry) = self.pools.get_mut(&pool) else {
            return false;
        };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 {
            released.pools.push(self.generation(pool));
            if let Some(entry) = self.pools.remove(&pool) {
                released.blocks.extend(entry.kept);
            }
        }
        true
    }

    /// The end of a capture that was given up: its graph is a user of the pool again. An error where
    /// the graph's memory is lost.
    fn take_back(&mut self, given_up: GivenUp) -> Result<()> {
        let pool = given_up.generation.pool;
        let generation = self.add_user(pool);
        if given_up.is_shown && generation != given_up.generation.number {
            return Err(Error::new(Status::NotOwned, END)
                .detail(format!(
                    "the capture into {} was taken for one that failed, and its memory given back",
                    described(pool)
                ))
                .advice("Release its graph without launching it; tell of the end before the thread that began the capture allocates, or begins another"));
        }
        Ok(())
    }
}

const END: &str = "graph_end";

/// What graphs that are gone leave behind.
#[derive(Default)]
pub(super) struct Released {
    /// Freed blocks that may go now.
    pub blocks: Vec<Kept>,
    /// The pools that nobody uses any more.
    pub pools: Vec<Generation>,
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
        state.add_user(pool);
        state.open.push(Open {
            pool,
            thread: thread::current().id(),
            token,
            stream: None,
        });
    }

    /// The end of a capture into `pool` is told: of the latest that this thread began, else of the
    /// latest. Its number, if it was not given up. An error if none began, or if its memory is lost.
    pub fn end(&self, pool: GraphPool) -> Result<Option<u64>> {
        let here = thread::current().id();
        let mut state = lock(&self.0);
        for is_own in [true, false] {
            let fits = |of: GraphPool, thread| of == pool && (thread == here || !is_own);
            let open = &mut state.open;
            if let Some(index) = open.iter().rposition(|open| fits(open.pool, open.thread)) {
                return Ok(Some(open.remove(index).token));
            }
            let gone = &mut state.given_up;
            let place = gone
                .iter()
                .rposition(|gone| fits(gone.generation.pool, gone.thread));
            if let Some(index) = place {
                let given_up = gone.remove(index);
                return state.take_back(given_up).map(|()| None);
            }
        }
        Err(unknown(END, pool).advice("Tell of a capture before it begins, and of its end once"))
    }

    /// Whether this thread began a capture on `device` whose end was not told.
    pub fn began_here(&self, device: i32) -> bool {
        let here = thread::current().id();
        let began = |open: &Open| open.thread == here && open.pool.device == device;
        lock(&self.0).open.iter().any(began)
    }

    /// Tells `note` how many captures there are whose end was not told, while none can begin or end.
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

    /// Gives up what this thread began on `device` that is not open any more, for when the thread does
    /// what it does not do before it tells of an end: these have failed. Returns what may go with them.
    pub fn retire_failed(&self, device: i32, is_open: impl Fn(u64) -> bool) -> Released {
        let here = thread::current().id();
        let mut state = lock(&self.0);
        let (open, failed) = std::mem::take(&mut state.open)
            .into_iter()
            .partition(|open| {
                open.thread != here || open.pool.device != device || is_open(open.token)
            });
        state.open = open;
        let failed: Vec<Open> = failed;
        let mut released = Released::default();
        for open in failed {
            let generation = state.generation(open.pool);
            state.release(open.pool, &mut released);
            state.given_up.push(GivenUp {
                generation,
                thread: here,
                is_shown: open.stream.is_some(),
            });
        }
        released
    }

    /// The graphs of a device are gone, all of them.
    pub fn release_all(&self, device: i32) -> Released {
        let mut state = lock(&self.0);
        let mut released = Released::default();
        state.open.retain(|open| open.pool.device != device);
        let pools = state.pools.keys().filter(|pool| pool.device == device);
        for pool in pools.copied().collect::<Vec<_>>() {
            while state.release(pool, &mut released) {}
        }
        released
    }

    /// To which graph a block belongs that is allocated on the capturing `stream` of `device`: that
    /// of the capture this stream showed, else of the one this thread began, else of the latest. One
    /// that is over has no part in it, though its end was not told.
    pub fn of_capture(&self, device: i32, stream: Stream, captures: &Captures) -> GraphUse {
        let thread = thread::current().id();
        let mut state = lock(&self.0);
        let here: Vec<usize> = (0..state.open.len())
            .rev()
            .filter(|index| {
                let open = &state.open[*index];
                open.pool.device == device && captures.is_told(open.token)
            })
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
        let pool = open.pool;
        GraphUse::Pool(state.generation(pool))
    }

    /// A block kept for the pool that can serve a later request of the same capture or of another
    /// into the same pool: torch replays the graphs of one pool in the order of their captures.
    pub fn reuse(
        &self,
        generation: Generation,
        source: &Arc<dyn Source>,
        request: &Request,
    ) -> Option<Kept> {
        let mut state = lock(&self.0);
        let entry = state.pools.get_mut(&generation.pool)?;
        let kept = match entry.generation == generation.number {
            true => &mut entry.kept,
            false => return None,
        };
        let (index, _) = kept
            .iter()
            .enumerate()
            .filter(|(_, kept)| kept.serves(source, request))
            .min_by_key(|(_, kept)| kept.block.bytes)?;
        Some(kept.swap_remove(index))
    }

    /// Names `stream` no more, since it is about to be destroyed.
    pub fn forget(&self, stream: Stream) {
        let mut state = lock(&self.0);
        for kept in state.pools.values_mut().flat_map(|pool| &mut pool.kept) {
            kept.others.forget(stream);
        }
    }

    /// Keeps a freed block until its pool is released; gives it back if that has happened.
    pub fn keep(&self, generation: Generation, mut kept: Kept) -> Option<Kept> {
        // By then the streams may be gone.
        kept.others.widen();
        match lock(&self.0).pools.get_mut(&generation.pool) {
            Some(entry) if entry.generation == generation.number => {
                entry.kept.push(kept);
                None
            }
            _ => Some(kept),
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

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: GraphPool = GraphPool {
        device: 0,
        id: (1, 2),
    };

    fn generation(pools: &GraphPools) -> Generation {
        lock(&pools.0).generation(POOL)
    }

    #[test]
    fn a_pool_lives_from_its_first_capture_to_its_last_release() {
        let pools = GraphPools::default();
        pools.begin(POOL, 1);
        let first = generation(&pools);
        pools.begin(POOL, 2);
        assert_eq!(pools.end(POOL).unwrap(), Some(2));
        assert_eq!(pools.end(POOL).unwrap(), Some(1));
        assert!(pools.release(POOL).unwrap().pools.is_empty());
        assert_eq!(generation(&pools), first);
        assert_eq!(pools.release(POOL).unwrap().pools, [first]);
        pools.begin(POOL, 3);
        assert_ne!(generation(&pools), first);
    }

    #[test]
    fn a_thread_ends_its_own_capture_first() {
        let pools = GraphPools::default();
        pools.begin(POOL, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| pools.begin(POOL, 2));
        });
        assert_eq!(pools.end(POOL).unwrap(), Some(1));
        assert_eq!(pools.end(POOL).unwrap(), Some(2));
        assert!(pools.end(POOL).is_err());
    }

    #[test]
    fn only_its_own_thread_gives_a_capture_up() {
        let pools = GraphPools::default();
        pools.begin(POOL, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(pools.retire_failed(0, |_| false).pools.is_empty()));
        });
        assert!(pools.retire_failed(1, |_| false).pools.is_empty());
        assert!(pools.retire_failed(0, |_| true).pools.is_empty());
        assert_eq!(pools.retire_failed(0, |_| false).pools.len(), 1);
        // It had no memory, so nothing is lost.
        assert_eq!(pools.end(POOL).unwrap(), None);
        assert!(pools.end(POOL).is_err());
    }
}
