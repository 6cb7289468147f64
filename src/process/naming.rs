//! Streams that callers name for blocks: on which device one is, until it is forgotten.

use super::{Process, lifetime};
use crate::error::{Result, Warning};
use crate::gpu::{Device, PlacedStream, Stream, Uses};
use crate::pool::Named;
use crate::registry::Record;
use crate::source::Naming;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Which stream a handle means that every device has: the legacy one's, the per-thread one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// That of the calling thread's current context, or of the block's device: both, where they differ.
    Current,
    /// That of any device. torch has the block's device current, whatever device its stream is of.
    Any,
}

impl Process {
    /// Says that work already given to `stream` of any device uses the block at `address`.
    pub fn record_stream(&self, address: u64, stream: Stream) -> Result<()> {
        self.record_stream_of(address, stream, Whose::Current)
    }

    /// [`Process::record_stream`], where it is known whose stream a handle means.
    pub fn record_stream_of(&self, address: u64, stream: Stream, whose: Whose) -> Result<()> {
        if lifetime::has_forked() || lifetime::is_exiting() {
            return Ok(());
        }
        let named = Named {
            stream,
            device: self.device_meant(stream, whose),
            uses: &|home| self.uses_of(stream, whose, home),
        };
        self.pools
            .record_stream(address, named)
            .or_else(|| self.note_uses(address, named))
            .ok_or_else(|| super::blocks::not_owned("record_stream", address))
    }

    /// The device whose stream is meant by a handle that all have; none where that is taken for the
    /// block's own. Asks the driver only where there is a choice.
    fn device_meant(&self, stream: Stream, whose: Whose) -> Option<i32> {
        if !stream.is_implicit() || whose == Whose::Any || self.devices_in_use().count() < 2 {
            return None;
        }
        let current = self.driver().ok()?.current_context().ok()??;
        Some(current.device().ordinal())
    }

    /// The work of a stream, for a block on the device `home`. What cannot be told is all work of all
    /// devices.
    pub(super) fn uses_of(&self, stream: Stream, whose: Whose, home: &Arc<Device>) -> Uses {
        let mut uses = Uses::default();
        let found = self.driver().and_then(|driver| {
            if !stream.is_implicit() {
                let context = driver.context_of(stream)?;
                if !context.is_primary() {
                    self.other_contexts.store(true, Ordering::Relaxed);
                }
                uses.add(PlacedStream { stream, context });
                return Ok(());
            }
            uses.add(PlacedStream::on(home, stream));
            match whose {
                Whose::Any => uses.join(driver.uses_of_every(stream)),
                Whose::Current => {
                    if let Some(context) = driver.current_context()? {
                        uses.add(PlacedStream { stream, context });
                    }
                }
            }
            Ok(())
        });
        if let Err(error) = found {
            uses.add_device(home);
            if let Ok(driver) = self.driver() {
                uses.join(driver.uses_of_any(stream));
            }
            self.warnings.warn(Warning::GiveBack, || {
                format!("on which device a stream is could not be told, so blocks used on it wait for all work of every device: {error}")
            });
        }
        uses
    }

    /// [`Process::record_stream`] for a block that a source gave out.
    fn note_uses(&self, address: u64, named: Named) -> Option<()> {
        let (device, is_own) = self.registry.with(address, |record| {
            let is_own = record.is_own_stream(named.stream)
                && named.device.is_none_or(|device| device == record.device);
            (record.device, is_own)
        })?;
        if is_own {
            return Some(());
        }
        let home = &self.device(device).ok()?.state().device;
        let uses = (named.uses)(home);
        self.registry
            .with(address, |record| record.note_uses(uses, home))
    }

    /// Adds what a free names to the record of a block.
    pub(super) fn note_last_use(&self, record: &mut Record, stream: Stream, home: &Arc<Device>) {
        if !record.is_own_stream(stream) {
            record.note_uses(self.uses_of(stream, Whose::Current, home), home);
        }
    }

    /// While it lives no stream is forgotten.
    pub(super) fn naming(&self) -> Naming<'_> {
        self.naming.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never names a stream of `device` to the driver again, since it is about to be destroyed; arenas
    /// neither. Blocks of whatever device that it uses are then given back behind all work of its device.
    pub fn forget_stream(&self, device: i32, stream: Stream) -> Result<()> {
        if lifetime::has_forked() {
            return Ok(());
        }
        self.forget_in_stacks(stream);
        self.device_in_use(device)?;
        let Some(opened) = self.opened.get() else {
            return Ok(());
        };
        self.see_end_of(stream);
        let is_its = |ordinal: i32| ordinal == device || !stream.is_implicit();
        {
            // Who was about to name the stream has done so from here on.
            let _named = self.naming.write().unwrap_or_else(PoisonError::into_inner);
            for gpu in opened.driver.open_devices() {
                if is_its(gpu.ordinal()) {
                    gpu.captures().forget(stream);
                }
            }
            self.registry.for_each(|record| {
                if is_its(record.device) {
                    record.forget_use(stream);
                }
            });
            self.graphs.forget(stream);
            self.pools.forget_stream(device, stream);
        }
        for entry in self.devices_in_use() {
            if is_its(entry.state().device.ordinal()) {
                entry.state().deferral.forget(stream);
            }
        }
        Ok(())
    }

    /// Waits for a stream of a context that the program made itself: no order point of a device covers
    /// it once it is gone.
    fn see_end_of(&self, stream: Stream) {
        if stream.is_implicit() || !self.other_contexts.load(Ordering::Relaxed) {
            return;
        }
        let outcome = self.driver().and_then(|driver| {
            let context = driver.context_of(stream)?;
            match context.is_primary() {
                true => Ok(()),
                false => PlacedStream { stream, context }.synchronize(),
            }
        });
        if let Err(error) = outcome {
            self.warnings.warn(Warning::GiveBack, || {
                format!("a stream that is forgotten could not be waited for: {error}")
            });
        }
    }
}
