//! Where memory of a tag lives: set for the tag by call, else by the option `placement`. A kind of
//! source that cannot place memory there refuses, rather than placing it elsewhere.

use super::{Demand, DeviceEntry, Process, lifetime, tags};
use crate::config::Settings;
use crate::config::table::Opt;
use crate::config::value::{Location, Placement};
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::source::Kind;
use rustc_hash::FxHashMap;
use std::sync::Mutex;

/// What was set by call. Read when memory is made, not when a cached block is handed out.
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
    /// The place of a block by its tag, where its allocator names none.
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
            (Some(Placement::Host), Kind::Vmm) => {
                let gpu = &device.state().device;
                gpu.host_numa()?
                    .map_err(|error| error.advice("Here managed memory can be placed there"))?;
                Ok(Some(Location::HostNuma(gpu.nearest_host_node()?)))
            }
            // The managed source asks for each block by itself.
            (Some(Placement::Host), Kind::Managed) => Ok(None),
            (Some(Placement::Host), Kind::Pool) if self.pool_is_managed() => Ok(None),
            (Some(Placement::Host), kind) => Err(refusal(demand.tag, kind)),
            _ => Ok(None),
        }
    }

    /// Whether the pool is over managed memory, which has a place for each segment, and so for each tag.
    fn pool_is_managed(&self) -> bool {
        Kind::from_name(&self.settings.text(Opt::PoolSource)) == Some(Kind::Managed)
    }
}

fn refusal(tag: TagId, kind: Kind) -> Error {
    let name = tags::table().name(tag).map_or("", |name| name);
    Error::new(Status::Unsupported, "allocate")
        .detail(format!(
            "tag '{name}' is placed on the host, and memory of {} is the device's",
            kind.name()
        ))
        .advice(
            "Memory of managed and vmm can be placed there, and of the pool over managed memory",
        )
}
