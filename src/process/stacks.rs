//! The stack arenas that programs made, which are told of streams and devices' contexts that go.

use super::Process;
use crate::core::sync::lock;
use crate::gpu::Stream;
use crate::pool::stack::Arena;
use std::sync::Mutex;

/// Arenas, each with the number that says whose its place is.
#[derive(Default)]
pub(super) struct Stacks(Mutex<Vec<(&'static Arena, u64)>>);

impl Process {
    /// The arena of that number is told of streams from here on.
    pub fn add_stack(&self, arena: &'static Arena, number: u64) {
        lock(&self.stacks.0).push((arena, number));
    }

    /// It is no more.
    pub fn drop_stack(&self, number: u64) {
        lock(&self.stacks.0).retain(|(_, known)| *known != number);
    }

    /// What arenas have of a device goes with its reset.
    pub(super) fn leave_in_stacks(&self, device: i32) {
        let arenas = lock(&self.stacks.0).clone();
        for (arena, number) in arenas {
            arena.leave_device(number, device);
        }
    }

    /// Has arenas name a stream no more.
    pub(super) fn forget_in_stacks(&self, stream: Stream) {
        if stream.is_implicit() {
            return;
        }
        let arenas = lock(&self.stacks.0).clone();
        for (arena, number) in arenas {
            arena.forget_stream(number, stream);
        }
    }
}
