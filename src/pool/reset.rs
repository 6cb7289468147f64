//! What a pool forgets when the context of its device is reset: blocks, streams and graphs are gone with it.

use super::heap::GraphId;
use super::pools::Pools;
use super::word::Word;
use crate::core::sync::lock;
use crate::gpu::{Device, Stream};
use std::collections::BTreeSet;

impl Pools {
    /// The addresses of a device's live blocks.
    pub fn blocks_of(&self, device: i32) -> BTreeSet<u64> {
        let is_live = |address: &u64| {
            let found = self.radix.find(*address);
            found.is_some_and(|entry| Word(entry.state()).is_live())
        };
        let mut blocks = BTreeSet::new();
        for heap in self.all_heaps() {
            if heap.key.device != device {
                continue;
            }
            for (arena, _) in heap.arenas() {
                let used = lock(&arena.space).used_blocks();
                blocks.extend(used.into_iter().filter(is_live));
            }
        }
        blocks
    }

    /// The streams of a device that blocks are asked for on, but those that every device has. Forgotten ones may be gone.
    pub fn streams_of(&self, device: i32) -> Vec<Stream> {
        let of_device = |key: &super::HeapKey| key.device == device && !key.stream.is_implicit();
        (self.all_heaps().iter())
            .filter(|heap| of_device(&heap.key) && !heap.is_retired())
            .map(|heap| heap.key.stream)
            .collect()
    }

    /// No graph of a device is left.
    pub fn release_graphs_of(&self, device: i32) {
        let mut graphs: Vec<GraphId> = (self.all_heaps().iter())
            .filter(|heap| heap.key.device == device)
            .filter_map(|heap| heap.key.graph)
            .collect();
        graphs.dedup();
        for graph in graphs {
            self.release_graph(device, graph);
        }
    }

    /// All work of a device is done: what of it was named for blocks is not looked for.
    pub fn leave_out_device(&self, device: &Device) {
        for uses in lock(&self.uses).values_mut() {
            uses.leave_out_device(device);
        }
        for heap in self.all_heaps() {
            lock(&heap.pending).leave_out_device(device);
        }
    }
}
