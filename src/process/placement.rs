//! Where memory of a tag lives: set for the tag by call, else by the option `placement`. A kind of
//! source that cannot place memory there refuses, rather than placing it elsewhere.

use super::{Demand, DeviceEntry, Process, lifetime, tags};
use crate::config::Settings;
use crate::config::value::{Location, Placement};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::gpu::Device;
use crate::source::Kind;
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};

/// What was set by call. Read when memory is made, by the pool when it sees a tag with a stream first;
/// not when a cached block is handed out.
static BY_CALL: Mutex<Option<FxHashMap<TagId, Placement>>> = Mutex::new(None);

/// Sets where memory of a tag is made from here on; none for what the option says.
pub fn place(tag: &str, placement: Option<Placement>) -> Result<()> {
    if lifetime::has_forked() {
        return Ok(());
    }
    let id = tags::table().intern(tag)?;
    let mut guard = lock(&BY_CALL);
    let by_call = guard.get_or_insert_default();
    match placement {
        Some(placement) => by_call.insert(id, placement),
        None => by_call.remove(&id),
    };
    Ok(())
}

/// Where memory of a tag is to be made, where that was said.
pub fn of(settings: &Settings, tag: TagId) -> Option<Placement> {
    let name = tags::table().name(tag)?;
    let by_call = lock(&BY_CALL)
        .as_ref()
        .and_then(|placed| placed.get(&tag).copied());
    by_call.or_else(|| settings.placement_of(name))
}

impl Process {
    /// The place of a block by its tag, where its allocator names none. The pool asks for itself, when
    /// it makes memory.
    pub(super) fn located(
        &self,
        demand: &Demand,
        device: &DeviceEntry,
    ) -> Result<Option<Location>> {
        if demand.location.is_some() || demand.tag.is_none() {
            return Ok(demand.location);
        }
        match (of(&self.settings, demand.tag), demand.kind) {
            (Some(Placement::Device), Kind::Vmm) => Ok(Some(Location::Device)),
            (Some(Placement::Host), Kind::Vmm) => on_host(&device.state().device).map(Some),
            // The managed source asks for each block by itself.
            (Some(Placement::Host), Kind::Managed | Kind::Pinned) => Ok(None),
            (Some(Placement::Host), kind) => Err(not_on_host(demand.tag, kind.name())),
            (Some(Placement::Device), Kind::Pinned) => Err(not_on_device(demand.tag, "pinned")),
            _ => Ok(None),
        }
    }
}

/// Where the pool makes memory of a tag that is said to be placed, if it is, where its memory is chunks.
pub(super) fn of_chunks(gpu: &Arc<Device>, placement: Option<Placement>) -> Result<Location> {
    match placement {
        Some(Placement::Host) => on_host(gpu),
        Some(Placement::Device | Placement::None) | None => Ok(Location::Device),
    }
}

/// The same where its memory is blocks of a source, which know by themselves where they are.
pub(super) fn of_segments(
    source: Kind,
    tag: TagId,
    placement: Option<Placement>,
) -> Result<Location> {
    let whose = || format!("the pool over {}", source.name());
    match (placement, source) {
        // The managed source asks for each segment by itself.
        (Some(Placement::Host), Kind::Managed | Kind::Pinned) => Ok(Location::Device),
        (Some(Placement::Host), _) => Err(not_on_host(tag, &whose())),
        (Some(Placement::Device), Kind::Pinned) => Err(not_on_device(tag, &whose())),
        _ => Ok(Location::Device),
    }
}

/// The node of the host that is nearest to a device.
fn on_host(gpu: &Arc<Device>) -> Result<Location> {
    gpu.host_numa()?
        .map_err(|error| error.advice("Here managed memory can be placed there"))?;
    Ok(Location::HostNuma(gpu.host_node_to_name()?))
}

fn not_on_host(tag: TagId, whose: &str) -> Error {
    refusal(tag, "host", whose, "device").advice(
        "Memory of vmm, managed and pinned, and of the pool over these, can be placed there",
    )
}

fn not_on_device(tag: TagId, whose: &str) -> Error {
    refusal(tag, "device", whose, "host")
        .advice("Memory of every other kind, and of the pool over it, is or can be placed there")
}

fn refusal(tag: TagId, place: &str, whose: &str, owner: &str) -> Error {
    let name = tags::table().name(tag).map_or("", |name| name);
    Error::new(Status::Unsupported, "allocate").detail(format!(
        "tag '{name}' is placed on the {place}, and memory of {whose} is the {owner}'s"
    ))
}
