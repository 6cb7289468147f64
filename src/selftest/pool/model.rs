//! What must be true of a pool's blocks, by the caller's own account.

use super::lanes::{Lanes, Work};
use crate::core::radix::UNIT;
use crate::gpu::Stream;
use std::collections::BTreeMap;

/// A block given out.
#[derive(Clone, Debug)]
pub struct Block {
    /// Where.
    pub address: u64,
    /// Bytes asked for.
    pub requested: u64,
    /// For which stream, and as which thread means it.
    pub stream: usize,
    /// See `stream`.
    pub thread: usize,
    /// The handle it was asked for by.
    pub handle: Stream,
    /// The name of that stream.
    pub lane: u64,
    /// The tag's number.
    pub tag: u16,
    /// Whether work of streams that are not told of may use it.
    pub unordered: bool,
    /// Of which graph's capture, and whether that keeps it.
    pub graph: Option<u64>,
    /// What it holds at some places.
    pub mark: Option<u8>,
    /// Work that uses it.
    pub works: Vec<Work>,
}

impl Block {
    /// Bytes that belong to it.
    pub fn bytes(&self) -> u64 {
        self.requested.div_ceil(UNIT) * UNIT
    }

    /// Its end.
    pub fn end(&self) -> u64 {
        self.address + self.bytes()
    }
}

/// Memory that was freed while work may use it, or that a graph's replays write to.
struct Range {
    begin: u64,
    end: u64,
}

impl Range {
    fn of(block: &Block) -> Range {
        Range {
            begin: block.address,
            end: block.end(),
        }
    }

    fn meets(&self, block: &Block) -> bool {
        self.begin < block.end() && block.address < self.end
    }
}

/// What may still be used.
struct Freed {
    range: Range,
    works: Vec<Work>,
    /// Whose replays the works are. Graphs of one pool are replayed in the order of their captures,
    /// so a capture into it may have the memory.
    replays_of: Option<u64>,
}

/// The account.
#[derive(Default)]
pub struct Model {
    /// Live blocks by address.
    pub live: BTreeMap<u64, Block>,
    freed: Vec<Freed>,
    graphs: Vec<(u64, Range)>,
    /// Blocks ever given out.
    pub given: u64,
    /// Blocks ever taken back.
    pub taken: u64,
    /// The most bytes asked for at a time, of live blocks.
    pub peak_requested: u64,
}

impl Model {
    /// A block is given out.
    pub fn gave(&mut self, block: Block, lanes: &Lanes) -> Result<(), String> {
        let begin = self.live.range(..block.end()).next_back();
        if let Some((_, other)) = begin.filter(|(_, other)| other.end() > block.address) {
            return Err(format!("{block:x?} overlaps {other:x?}"));
        }
        self.freed
            .retain(|freed| freed.works.iter().any(|work| lanes.is_waiting(*work)));
        for freed in self.freed.iter().filter(|freed| freed.range.meets(&block)) {
            let Freed { range, works, .. } = freed;
            let early =
                (works.iter()).find(|work| work.lane != block.lane && lanes.is_waiting(**work));
            let in_order = freed.replays_of.is_some() && freed.replays_of == block.graph;
            if let Some(work) = early.filter(|_| !in_order) {
                return Err(format!(
                    "{block:x?} was given out while {work:?} may still use {:#x}..{:#x}",
                    range.begin, range.end
                ));
            }
        }
        let of_others = (self.graphs.iter())
            .find(|(graph, range)| Some(*graph) != block.graph && range.meets(&block));
        if let Some((graph, range)) = of_others {
            return Err(format!(
                "{block:x?} lies in {:#x}..{:#x}, which replays of graph {graph} write to",
                range.begin, range.end
            ));
        }
        if let Some(graph) = block.graph {
            self.graphs.push((graph, Range::of(&block)));
        }
        self.given += 1;
        self.live.insert(block.address, block);
        self.peak_requested = self.peak_requested.max(self.requested(|_| true));
        Ok(())
    }

    /// A block is taken back.
    pub fn takes(&mut self, address: u64) -> Option<Block> {
        let block = self.live.remove(&address)?;
        self.freed.push(Freed {
            range: Range::of(&block),
            works: block.works.clone(),
            replays_of: None,
        });
        self.taken += 1;
        Some(block)
    }

    /// Work is given that uses all memory of a graph.
    pub fn replayed(&mut self, graph: u64, work: Work) {
        for (range, _) in self.graph_ranges(graph) {
            let (begin, end) = range;
            self.freed.push(Freed {
                range: Range { begin, end },
                works: vec![work],
                replays_of: Some(graph),
            });
        }
    }

    /// The memory of a graph: beginning and end, and the graph's number.
    pub fn graph_ranges(&self, graph: u64) -> Vec<((u64, u64), u64)> {
        let of = self.graphs.iter().filter(|(other, _)| *other == graph);
        of.map(|(graph, range)| ((range.begin, range.end), *graph))
            .collect()
    }

    /// A graph is gone.
    pub fn released(&mut self, graph: u64) {
        self.graphs.retain(|(other, _)| *other != graph);
        // A pool of the same number is another one from here on.
        for freed in &mut self.freed {
            freed.replays_of = freed.replays_of.filter(|of| *of != graph);
        }
    }

    /// Whether live blocks or graphs need something of `begin..end`.
    pub fn needs(&self, begin: u64, end: u64) -> bool {
        let last = self.live.range(..end).next_back();
        last.is_some_and(|(_, block)| block.end() > begin)
            || (self.graphs.iter()).any(|(_, range)| range.begin < end && begin < range.end)
    }

    /// Bytes asked for by those live blocks.
    pub fn requested(&self, wanted: impl Fn(&Block) -> bool) -> u64 {
        let chosen = self.live.values().filter(|block| wanted(block));
        chosen.map(|block| block.requested).sum()
    }

    /// Bytes of those live blocks.
    pub fn allocated(&self, wanted: impl Fn(&Block) -> bool) -> u64 {
        let chosen = self.live.values().filter(|block| wanted(block));
        chosen.map(Block::bytes).sum()
    }

    /// A live block by a number of any size.
    pub fn at(&self, index: usize) -> Option<u64> {
        let at = index.checked_rem(self.live.len())?;
        self.live.keys().nth(at).copied()
    }
}
