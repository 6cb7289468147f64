//! What is in the 64 bytes of a handle.
//!
//! A runtime without this library takes them for its own. What is in its handles is not documented; those seen begin
//! with an address of the process that made them, and the number of that process. There stands here a text that is no
//! address, and a number that no process has, so that it finds nobody to ask and refuses the handle.

use hbmalloc::error::{Error, Result, Status};
use hbmalloc::sys::descriptors;
use std::os::fd::BorrowedFd;

pub const BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"hbm-ipc1";
const NOBODY: [u8; 8] = [0xFF; 8];

/// Memory of a process, as another comes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// The process that has it.
    pub process: u32,
    /// A number that this process drew: another that comes to have its number has another one.
    pub token: u64,
    /// The number of the export in that process.
    pub export: u64,
    /// The device, as that process counts them.
    pub device: i32,
    /// Bytes from the beginning of the memory to its end.
    pub bytes: u64,
}

impl Handle {
    pub fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let parts: [&[u8]; 7] = [
            &MAGIC,
            &NOBODY,
            &self.process.to_le_bytes(),
            &self.device.to_le_bytes(),
            &self.token.to_le_bytes(),
            &self.export.to_le_bytes(),
            &self.bytes.to_le_bytes(),
        ];
        let mut at = 0;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        bytes
    }

    /// None of what is no handle of this library's.
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Option<Handle> {
        let long = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let is_ours = bytes[..8] == MAGIC && bytes[8..16] == NOBODY && bytes[48..] == [0; 16];
        is_ours.then(|| Handle {
            process: long(16) as u32,
            device: (long(16) >> 32) as i32,
            token: long(24),
            export: long(32),
            bytes: long(40),
        })
    }
}

/// What an opener asks of an exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Open = 1,
    Close = 2,
}

/// The wish, and the handle that it is of.
pub const REQUEST: usize = 8 + BYTES;

pub fn send_request(socket: BorrowedFd<'_>, wish: Wish, handle: Handle) -> Result<()> {
    let mut message = [0; REQUEST];
    message[0] = wish as u8;
    message[8..].copy_from_slice(&handle.to_bytes());
    descriptors::send(socket, &message, None)
}

pub fn receive_request(socket: BorrowedFd<'_>) -> Result<(Wish, Handle)> {
    let mut message = [0; REQUEST];
    descriptors::receive(socket, &mut message)?;
    let (first, rest) = message.split_at(8);
    let handle = rest.try_into().ok().and_then(Handle::from_bytes);
    match (first[0], handle) {
        (1, Some(handle)) => Ok((Wish::Open, handle)),
        (2, Some(handle)) => Ok((Wish::Close, handle)),
        _ => Err(Error::new(Status::Io, "receive a request").detail("what came is none")),
    }
}

/// What an exporter answers: in how many chunks the memory comes, each in a message of its own; 0 where it is gone.
pub fn send_count(socket: BorrowedFd<'_>, chunks: u64) -> Result<()> {
    descriptors::send(socket, &chunks.to_le_bytes(), None)
}

/// Instead of a count: no more openers are served. It comes unasked, and the connection ends.
pub const NO_ROOM: u64 = u64::MAX;

pub fn receive_count(socket: BorrowedFd<'_>) -> Result<u64> {
    let mut message = [0; 8];
    descriptors::receive(socket, &mut message)?;
    Ok(u64::from_le_bytes(message))
}
