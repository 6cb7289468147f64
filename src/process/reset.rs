//! The program resets a device: its runtime destroys the context, with all streams, events and memory. What is ours is
//! given back before, while it can be, and what the context takes with it is never named to the driver again.

use super::blocks::give_back_all;
use super::{DeviceEntry, Process};
use crate::error::{Result, Status};
use crate::gpu::{Device, Stream};
use std::sync::Arc;

impl Process {
    /// Does `reset`, which destroys the primary context of a device, and makes the device as good as one that was never
    /// used. Blocks on it are freed, after `leave`, which comes once nothing refuses the reset any more: it is refused
    /// while a capture is open on a device in use. No other thread may use the device meanwhile.
    pub fn reset_device(
        &self,
        ordinal: i32,
        leave: impl FnOnce(),
        reset: impl FnOnce(),
    ) -> Result<()> {
        let Some(entry) = self.device_in_use(ordinal)?.cloned() else {
            leave();
            return self.reset_unused(ordinal, reset);
        };
        let gpu = &entry.state().device;
        // A context that an earlier failure has broken can give nothing back: then it is reset first.
        let works = match self.settle_for(&entry) {
            Err(error) if error.status() == Status::Capturing => return Err(error),
            outcome => outcome.is_ok(),
        };
        leave();
        self.leave_in_stacks(ordinal);
        if works {
            self.give_up_all_of(&entry);
        }
        for stream in self.streams_of(ordinal) {
            self.forget_stream(ordinal, stream)?;
        }
        self.reset_context(gpu, reset)?;
        if !works {
            self.give_up_all_of(&entry);
        }
        for other in self.devices_in_use() {
            other.admit_peer(ordinal);
        }
        Ok(())
    }

    /// A device without memory of ours, whose work may have been waited for all the same.
    fn reset_unused(&self, ordinal: i32, reset: impl FnOnce()) -> Result<()> {
        let mut open =
            (self.opened.get().into_iter()).flat_map(|opened| opened.driver.open_devices());
        match open.find(|gpu| gpu.ordinal() == ordinal) {
            Some(gpu) => self.reset_context(gpu, reset),
            None => {
                reset();
                Ok(())
            }
        }
    }

    /// What was named of the device is done, and what was made in its context is gone.
    fn reset_context(&self, gpu: &Device, reset: impl FnOnce()) -> Result<()> {
        self.registry
            .for_each(|record| record.others.leave_out_device(gpu));
        self.pools.leave_out_device(gpu);
        gpu.leave_context();
        reset();
        gpu.retain_again()
    }

    /// Waits for all work, so that nothing is behind a stream or an event of the device any more.
    fn settle_for(&self, entry: &DeviceEntry) -> Result<()> {
        for user in self.devices_in_use() {
            user.state().device.outside_captures(|| Ok(()))?;
        }
        entry.state().device.synchronize()?;
        self.devices_in_use()
            .try_for_each(|user| self.trim_device(user, u64::MAX).map(|_| ()))
    }

    fn give_up_all_of(&self, entry: &Arc<DeviceEntry>) {
        let gpu = &entry.state().device;
        let mut blocks = self.pools.blocks_of(gpu.ordinal());
        let is_its = |device: i32| device == gpu.ordinal();
        let of_sources = self.registry.addresses(|record| is_its(record.device));
        blocks.extend(of_sources);
        for block in blocks {
            // Another thread may have been faster; what fails is tried again by what waits to be given back.
            if let Err(error) = self.deallocate(block, None, None) {
                tracing::debug!("{error}");
            }
        }
        let released = self.graphs.release_all(gpu.ordinal());
        self.pools.release_graphs_of(gpu.ordinal());
        let given = give_back_all(released.blocks).and_then(|()| self.trim_device(entry, 0));
        self.stores.host.trim(0);
        if let Err(error) = given {
            tracing::debug!("{error}");
        }
    }

    /// What is known to have been named of the device, but what every device has.
    fn streams_of(&self, ordinal: i32) -> Vec<Stream> {
        let mut streams = self.pools.streams_of(ordinal);
        self.registry.for_each(|record| {
            if record.device == ordinal && !record.block.stream.is_implicit() {
                streams.push(record.block.stream);
            }
        });
        streams.sort_unstable_by_key(|stream| stream.raw() as usize);
        streams.dedup();
        streams
    }
}
