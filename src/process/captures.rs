//! Captures of programs that are told of as they begin and end, and whose memory is the program's own affair: nothing is
//! done meanwhile that would break them.

use super::{Process, lifetime};
use crate::error::Result;
use crate::gpu::Stream;
use std::sync::atomic::Ordering;

impl Process {
    /// A capture is about to begin on a device. Its number for [`Process::capture_shown`] and [`Process::capture_ended`].
    pub fn capture_begins(&self, ordinal: i32) -> Result<u64> {
        let gpu = &self.device(ordinal)?.state().device;
        let token = self.graphs.number();
        // Who tells of graphs has told of it before the runtime's function was called.
        gpu.captures().begin_again(gpu, token);
        self.captures_open.fetch_add(1, Ordering::SeqCst);
        self.note_open_captures();
        Ok(token)
    }

    /// It has begun, on `stream`.
    pub fn capture_shown(&self, ordinal: i32, token: u64, stream: Stream) -> Result<()> {
        let device = self.device(ordinal)?;
        device.state().device.captures().show(token, stream);
        Ok(())
    }

    /// It is over, or has not begun. To be said once of each.
    pub fn capture_ended(&self, ordinal: i32, token: u64) -> Result<()> {
        if lifetime::has_forked() || lifetime::is_exiting() {
            return Ok(());
        }
        self.device(ordinal)?.state().device.captures().end(token);
        self.captures_open.fetch_sub(1, Ordering::SeqCst);
        self.note_open_captures();
        Ok(())
    }
}
