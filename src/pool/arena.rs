//! Addresses that heaps share or have to themselves, and what divides them up. Small blocks have an
//! arena a heap, so that they never stand in the way of large ones; large blocks share one arena a
//! tag, where memory goes from stream to stream at the same address.

use super::heap::{GraphId, HeapKey};
use crate::config::value::Location;
use crate::core::size::Align;
use crate::core::space::{Color, Epoch, Fit, Space};
use crate::core::sync::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// From so many units on (1 MiB) a block is large.
pub const LARGE_UNITS: u64 = 2048;

/// Where the memory of an arena is made, and of what it is a multiple.
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    /// Where; only for memory that moves between addresses.
    pub location: Location,
    /// A multiple of what the driver asks for there.
    pub granularity: Align,
}

/// An arena.
pub struct Arena {
    /// What is where.
    pub space: Mutex<Space>,
    /// The tag of what lives in it.
    pub tag: u16,
    /// Whether it is for large blocks.
    pub is_large: bool,
    /// Where its memory is; other arenas' may move here only if it is there too.
    pub ground: Ground,
    /// The graphs whose replays may write to it.
    graph: Option<GraphId>,
    /// When they went; [`Epoch::MAX`] until then.
    released: AtomicU64,
    colors: Mutex<Colors>,
}

/// The heap of each colour from 1 on; colour 0 is nobody's.
#[derive(Default)]
struct Colors {
    heaps: Vec<u16>,
    /// Colours that no heap has any more.
    spare: Vec<Color>,
}

impl Arena {
    pub(super) fn new(key: &HeapKey, is_large: bool, ground: Ground, fit: Fit) -> Arena {
        let HeapKey { tag, graph, .. } = *key;
        Arena {
            space: Mutex::new(Space::new(ground.granularity, fit)),
            tag,
            is_large,
            ground,
            graph,
            released: AtomicU64::new(match graph {
                None | Some(GraphId::Segments) => 0,
                Some(_) => Epoch::MAX,
            }),
            colors: Mutex::default(),
        }
    }

    pub(super) fn add_color(&self, heap: u16) -> Color {
        let mut colors = lock(&self.colors);
        match colors.spare.pop() {
            Some(color) => {
                colors.heaps[usize::from(color.0) - 1] = heap;
                color
            }
            None => {
                colors.heaps.push(heap);
                Color(colors.heaps.len() as u16)
            }
        }
    }

    /// A heap is no more that had a colour, of which nothing is left; whether it was the last.
    pub(super) fn drop_color(&self, color: Color) -> bool {
        let mut colors = lock(&self.colors);
        colors.spare.push(color);
        colors.spare.len() == colors.heaps.len()
    }

    /// The heap of a colour.
    pub(super) fn heap_of(&self, color: Color) -> Option<u16> {
        let index = usize::from(color.0).checked_sub(1)?;
        lock(&self.colors).heaps.get(index).copied()
    }

    /// Whether memory may leave it: a graph's memory stays until the graph is gone.
    pub(super) fn is_open(&self) -> bool {
        self.released.load(Ordering::Acquire) != Epoch::MAX
    }

    /// Whether work that was seen done until `epoch` is all that may use what was freed until then:
    /// replays given before the graph was gone are seen by nobody who looked earlier.
    pub(super) fn is_open_at(&self, epoch: Epoch) -> bool {
        let released = self.released.load(Ordering::Acquire);
        released == 0 || released < epoch
    }

    pub(super) fn graph(&self) -> Option<GraphId> {
        self.graph
    }

    /// The graphs are gone since `epoch`.
    pub(super) fn release(&self, epoch: Epoch) {
        let closed = Epoch::MAX;
        let _ =
            (self.released).compare_exchange(closed, epoch, Ordering::AcqRel, Ordering::Acquire);
    }
}
