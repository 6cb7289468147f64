//! The most memory of a device that is held: by the option `limit`, or by call for one device. May be
//! set before there is a driver, and changed at any time.

use super::{DeviceEntry, Process, lifetime};
use crate::config::table::{self, Opt};
use crate::config::value::{Location, Size};
use crate::core::sync::lock;
use crate::error::Result;
use rustc_hash::FxHashMap;
use std::sync::Mutex;

/// What was set by call, by the device's ordinal.
#[derive(Default)]
pub(super) struct Limits(Mutex<FxHashMap<i32, Size>>);

/// How a limit is said that is none.
const NO_LIMIT: Size = Size::Bytes(0);

/// The limit in bytes, where `size` is one.
fn bytes(size: Size, total: u64) -> Option<u64> {
    match size {
        NO_LIMIT => None,
        Size::Percent(percent) if percent >= 100.0 => None,
        // A share of next to nothing is still a limit.
        size => Some(size.of(total).max(1)),
    }
}

impl Process {
    /// Sets the limit of one device; 0 bytes or 100 % for none. What is held beyond it is given back
    /// as far as it is cached; the rest stays, and nothing more is had until less is held.
    pub fn set_limit(&self, ordinal: i32, limit: Size) -> Result<()> {
        let device = self.device_in_use(ordinal)?;
        lock(&self.limits.0).insert(ordinal, limit);
        if let Some(device) = device {
            self.apply_limit(device);
        }
        Ok(())
    }

    /// Sets the limit of every device, whatever was set for one.
    pub fn set_limits(&self, limit: Size) -> Result<()> {
        lifetime::check_not_forked()?;
        self.settings.set(table::name(Opt::Limit), &limit.text())?;
        lock(&self.limits.0).clear();
        self.apply_limits();
        Ok(())
    }

    /// The limit of a device in bytes, where it has one. Brings the device into use where the limit
    /// is a share of its memory.
    pub fn limit(&self, ordinal: i32) -> Result<Option<u64>> {
        match self.device_in_use(ordinal)? {
            Some(device) => Ok(device.state().limit.get()),
            None => match self.limit_of(ordinal) {
                Size::Percent(percent) if percent < 100.0 => {
                    Ok(self.device(ordinal)?.state().limit.get())
                }
                size => Ok(bytes(size, 0)),
            },
        }
    }

    /// Acts on a change of the option.
    pub fn apply_limits(&self) {
        for device in self.devices_in_use() {
            self.apply_limit(device);
        }
    }

    /// Sets a device's limit to what was said last.
    pub(super) fn apply_limit(&self, device: &DeviceEntry) {
        let state = device.state();
        let gpu = &state.device;
        {
            let by_call = lock(&self.limits.0);
            let said = by_call.get(&gpu.ordinal()).copied();
            let said = said.unwrap_or_else(|| self.settings.size(Opt::Limit));
            state.limit.set(bytes(said, gpu.total_memory()));
        }
        device.settle_limit();
    }

    /// The limit in bytes of a device that may not be in use, where it is no share of its memory.
    pub(super) fn stated_limit(&self, ordinal: i32) -> Option<u64> {
        match self.limit_of(ordinal) {
            Size::Percent(_) => None,
            size => bytes(size, 0),
        }
    }

    fn limit_of(&self, ordinal: i32) -> Size {
        let by_call = lock(&self.limits.0).get(&ordinal).copied();
        by_call.unwrap_or_else(|| self.settings.size(Opt::Limit))
    }
}

impl DeviceEntry {
    /// Counts what is held, and gives back what is cached where that is more than the limit allows.
    fn settle_limit(&self) {
        let limit = &self.state().limit;
        if limit.get().is_none() {
            return;
        }
        self.recharge();
        if limit.excess() > 0 {
            if let Err(error) = self.trim_at(0, Some(Location::Device)) {
                tracing::debug!("not all that is cached was given back: {error}");
            }
        }
        if limit.excess() > 0 {
            tracing::info!(
                "device {}: {} bytes are held and the limit is {} bytes; nothing more is had until less is held",
                self.state().device.ordinal(),
                limit.used(),
                limit.get().unwrap_or(u64::MAX)
            );
        }
    }
}
