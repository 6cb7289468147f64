//! Which free chunks may leave their addresses: not those that are pinned, since other processes or network
//! cards know them, whatever became of the blocks there.

use super::arena::Arena;
use super::device::DevicePool;
use super::policy::Candidate;
use crate::core::space::{Color, Epoch, FreePlace};
use crate::core::sync::lock;
use std::sync::Arc;

impl DevicePool {
    /// The free places of an arena whose chunks may be moved or given back.
    pub(super) fn movable_places(&self, arena: &Arena) -> Vec<FreePlace> {
        let mut places = lock(&arena.space).free_places();
        places.retain(|place| !self.state.extents.is_pinned(place.address));
        places
    }

    /// Takes a place as it was seen free, if nobody has used it since, nor pinned it: from when it is taken on
    /// there is no block in it for whose sake anybody could.
    pub(super) fn take_place(
        &self,
        arena: &Arena,
        address: u64,
        color: Color,
        epoch: Epoch,
    ) -> bool {
        if !lock(&arena.space).take_place(address, color, epoch) {
            return false;
        }
        let is_pinned = self.state.extents.is_pinned(address);
        if is_pinned {
            lock(&arena.space).give_back_place(address);
        }
        !is_pinned
    }

    /// [`DevicePool::take_place`] of a candidate.
    pub(super) fn take(&self, arenas: &[Arc<Arena>], place: &Candidate) -> bool {
        let arena = &arenas[place.arena];
        self.take_place(arena, place.address, place.color, place.epoch)
    }
}
