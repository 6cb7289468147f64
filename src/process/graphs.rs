//! Memory of captured graphs. A replay writes wherever its capture did, so a block allocated during
//! a capture stays mapped, freed or not, until torch releases the graph's pool.

use crate::core::sync::lock;
use crate::registry::{GraphPool, GraphUse};
use crate::source::{Block, Source};
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

/// A block its caller has freed while a graph may still use it.
pub(super) struct Kept {
    pub block: Block,
    pub source: Arc<dyn Source>,
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
}

#[derive(Default)]
struct State {
    open: Vec<Open>,
    pools: FxHashMap<GraphPool, Pool>,
}

/// The graph pools of the process.
#[derive(Default)]
pub(super) struct GraphPools(Mutex<State>);

impl GraphPools {
    /// A capture into `pool` begins on the calling thread.
    pub fn begin(&self, pool: GraphPool) {
        let mut state = lock(&self.0);
        state.pools.entry(pool).or_default().users += 1;
        state.open.push(Open {
            pool,
            thread: std::thread::current().id(),
        });
    }

    /// The capture ends; whether it had begun.
    pub fn end(&self, pool: GraphPool) -> bool {
        let mut state = lock(&self.0);
        let found = state.open.iter().rposition(|open| open.pool == pool);
        if let Some(index) = found {
            state.open.remove(index);
        }
        found.is_some()
    }

    /// One graph of the pool is gone; with the last, the blocks that may go now.
    pub fn release(&self, pool: GraphPool) -> Vec<Kept> {
        let mut state = lock(&self.0);
        let Some(entry) = state.pools.get_mut(&pool) else {
            return Vec::new();
        };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return Vec::new();
        }
        state
            .pools
            .remove(&pool)
            .map_or(Vec::new(), |entry| entry.kept)
    }

    /// To which graph a block belongs that is allocated on a capturing stream of `device`: that of
    /// the capture this thread began, else the latest one open there.
    pub fn of_capture(&self, device: i32) -> GraphUse {
        let thread = std::thread::current().id();
        let state = lock(&self.0);
        let here = || {
            state
                .open
                .iter()
                .rev()
                .filter(|open| open.pool.device == device)
        };
        here()
            .find(|open| open.thread == thread)
            .or_else(|| here().next())
            .map_or(GraphUse::Unknown, |open| GraphUse::Pool(open.pool))
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
