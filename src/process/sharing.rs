//! Memory shared with other processes: exports of ours, the message in which one travels, imports of theirs.

use super::{Process, lifetime};
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::gpu::Fence;
use crate::sys::descriptors;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

pub use crate::extent::shared::{Handle, Shared};

const EXPORT: &str = "export";

impl Process {
    /// Exports the chunk that an address in a live block lies in, and pins it until
    /// [`Process::close_export`].
    pub fn export(&self, address: u64) -> Result<Shared<OwnedFd>> {
        lifetime::check_not_forked()?;
        if self.block_of(address).is_none() {
            return Err(Error::new(Status::NotOwned, EXPORT)
                .detail(format!("{address:#x} is in no live block"))
                .advice("It was freed already, or comes from another allocator or process"));
        }
        self.export_chunk(address)
    }

    /// [`Process::export`] of an address that may be in no block, as where the driver says that memory begins.
    pub fn export_chunk(&self, address: u64) -> Result<Shared<OwnedFd>> {
        lifetime::check_not_forked()?;
        let mut devices = self.devices_in_use();
        let device = devices
            .find(|device| device.state().extents.has(address))
            .ok_or_else(|| {
                Error::new(Status::Unsupported, EXPORT)
                    .detail(format!("memory of the kind at {address:#x} cannot be exported"))
                    .advice("Blocks of the vmm kind, of the pool over it and segments of MemPools can be")
            })?;
        // Not while what is there falls asleep.
        let _turn = lock(device.residency_turn());
        let serial = self.exports.fetch_add(1, Ordering::Relaxed) + 1;
        device.state().extents.export(address, serial)
    }

    /// The blocks of a device that lie in a stretch of addresses, in part or as a whole.
    pub fn blocks_in(&self, device: i32, begin: u64, end: u64) -> Vec<u64> {
        if lifetime::has_forked() {
            return Vec::new();
        }
        let mut blocks = self.pools.blocks_of(device);
        blocks.extend(self.registry.addresses(|record| record.device == device));
        let first = self.block_of(begin).map(|(first, _)| first);
        (blocks.range(begin..end).copied())
            .chain(first.filter(|first| *first < begin))
            .collect()
    }

    /// Undoes the pin of the [`Process::export`] of that number.
    pub fn close_export(&self, serial: u64) -> Result<()> {
        lifetime::check_not_forked()?;
        let mut devices = self.devices_in_use();
        match devices.any(|device| device.state().extents.close_export(serial)) {
            true => Ok(()),
            false => Err(
                Error::new(Status::NotOwned, "close an export").detail(format!(
                    "number {serial} is closed already, or its memory is gone"
                )),
            ),
        }
    }

    /// Maps what a process exported, for `device` and its peers; the address that it has here.
    pub fn import(&self, shared: &Shared<BorrowedFd<'_>>, device: i32) -> Result<u64> {
        self.device(device)?.state().extents.import(shared)
    }

    /// [`Process::import`] of chunks that lie one behind the other; the address that the place in the first has here.
    pub fn import_all<F: AsFd>(
        &self,
        parts: impl IntoIterator<Item = Result<Shared<F>>>,
        device: i32,
    ) -> Result<u64> {
        self.device(device)?.state().extents.import_all(parts)
    }

    /// Unmaps what was imported, after all work that its device and those that reach it were given.
    pub fn close_import(&self, address: u64) -> Result<()> {
        const OPERATION: &str = "close an import";
        lifetime::check_not_forked()?;
        let not_imported = || {
            Error::new(Status::NotOwned, OPERATION).detail(format!(
                "{address:#x} is no address that an import gave, or it was closed"
            ))
        };
        let device = (self.devices_in_use())
            .find(|device| device.state().extents.has_import(address))
            .ok_or_else(not_imported)?;
        let state = device.state();
        let peers = state.device.active_peers()?;
        for user in self.devices_in_use() {
            let gpu = &user.state().device;
            if gpu.ordinal() == state.device.ordinal() || peers.contains(&gpu.ordinal()) {
                Fence::order_point(gpu)?.wait()?;
            }
        }
        match state.extents.close_import(address)? {
            true => Ok(()),
            // Another thread was faster.
            false => Err(not_imported()),
        }
    }
}

const MAGIC: [u8; 8] = *b"hbmexprt";
const VERSION: u32 = 1;
const FD: u32 = 1;
const FABRIC: u32 = 2;

/// What goes over the socket, in little-endian order: magic, version, kind, device, 0, chunk_bytes, offset,
/// and the fabric handle or zeros.
const MESSAGE_BYTES: usize = 8 + 4 * 4 + 2 * 8 + 64;

/// Sends an export over a connected Unix-domain stream socket.
pub fn send(socket: BorrowedFd<'_>, shared: &Shared<BorrowedFd<'_>>) -> Result<()> {
    let (kind, fd, fabric) = match &shared.handle {
        Handle::Fd(fd) => (FD, Some(*fd), [0; 64]),
        Handle::Fabric(handle) => (FABRIC, None, *handle),
    };
    let mut message = Vec::with_capacity(MESSAGE_BYTES);
    message.extend(MAGIC);
    for number in [VERSION, kind, shared.device as u32, 0] {
        message.extend(number.to_le_bytes());
    }
    for number in [shared.chunk_bytes, shared.offset] {
        message.extend(number.to_le_bytes());
    }
    message.extend(fabric);
    descriptors::send(socket, &message, fd).map_err(|error| error.during("send an export"))
}

/// Receives what [`send`] sent. After an error the socket is of no more use: where in the stream it stands
/// is not known.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Shared<OwnedFd>> {
    const OPERATION: &str = "receive an export";
    let mut message = [0; MESSAGE_BYTES];
    let descriptors =
        descriptors::receive(socket, &mut message).map_err(|error| error.during(OPERATION))?;
    parse(&message, descriptors).map_err(|error| error.during(OPERATION))
}

fn parse(message: &[u8; MESSAGE_BYTES], descriptors: Vec<OwnedFd>) -> Result<Shared<OwnedFd>> {
    let wrong = |what: String| {
        Error::new(Status::Io, "")
            .detail(what)
            .advice("The other end must send by hbm_export_send, and nothing else before it")
    };
    let number = |at: usize| message[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let long = |at: usize| message[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    if message[..8] != MAGIC {
        return Err(wrong("what came is no export of this library".into()));
    }
    if number(8) != VERSION {
        return Err(Error::new(Status::Unsupported, "")
            .detail(format!(
                "an export in version {} of the message, this library knows {VERSION}",
                number(8)
            ))
            .advice("Use libraries of one version on both ends"));
    }
    let count = descriptors.len();
    let handle = match (number(12), descriptors.into_iter().next(), count) {
        (FD, Some(fd), 1) => Handle::Fd(fd),
        (FABRIC, None, _) => {
            let mut handle = [0; 64];
            handle.copy_from_slice(&message[40..]);
            Handle::Fabric(handle)
        }
        (kind, ..) => {
            return Err(wrong(format!(
                "an export of kind {kind} came with {count} descriptors"
            )));
        }
    };
    let (chunk_bytes, offset) = (long(24), long(32));
    if offset >= chunk_bytes {
        return Err(wrong(format!(
            "offset {offset} in a chunk of {chunk_bytes} bytes"
        )));
    }
    Ok(Shared {
        handle,
        chunk_bytes,
        offset,
        device: number(16) as i32,
        serial: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn export_of(file: &std::fs::File) -> Shared<BorrowedFd<'_>> {
        Shared {
            handle: Handle::Fd(file.as_fd()),
            chunk_bytes: 2 << 20,
            offset: 77,
            device: 3,
            serial: 5,
        }
    }

    fn null() -> std::fs::File {
        std::fs::File::open("/dev/null").unwrap()
    }

    #[test]
    fn what_is_sent_arrives() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = null();
        send(here.as_fd(), &export_of(&file)).unwrap();
        let fabric = Shared {
            handle: Handle::Fabric([9; 64]),
            ..export_of(&file)
        };
        send(here.as_fd(), &fabric).unwrap();
        let got = receive(there.as_fd()).unwrap();
        assert!(matches!(got.handle, Handle::Fd(_)));
        assert_eq!((got.chunk_bytes, got.offset, got.device), (2 << 20, 77, 3));
        let got = receive(there.as_fd()).unwrap();
        assert!(matches!(got.handle, Handle::Fabric(handle) if handle == [9; 64]));
    }

    /// Sends a good message with one byte changed, and `extra` descriptors besides its own.
    fn refused(at: usize, byte: u8, descriptors: usize) -> Error {
        let (here, there) = UnixStream::pair().unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let file = null();
        send(one.as_fd(), &export_of(&file)).unwrap();
        let mut message = [0; MESSAGE_BYTES];
        let mut got = descriptors::receive(other.as_fd(), &mut message).unwrap();
        message[at] = byte;
        got.truncate(descriptors);
        // Each goes with a part of the message.
        for (index, part) in message.chunks(MESSAGE_BYTES / 2).enumerate() {
            let with = (index < descriptors).then(|| file.as_fd());
            descriptors::send(here.as_fd(), part, with).unwrap();
        }
        receive(there.as_fd()).unwrap_err()
    }

    #[test]
    fn other_messages_are_refused() {
        for (at, byte, descriptors, status, words) in [
            (0, b'x', 1, Status::Io, "no export"),
            (8, 2, 1, Status::Unsupported, "version 2"),
            (12, 3, 1, Status::Io, "kind 3"),
            (12, 2, 1, Status::Io, "kind 2 came with 1"),
            (12, 1, 0, Status::Io, "0 descriptors"),
            (12, 1, 2, Status::Io, "2 descriptors"),
            (39, 1, 1, Status::Io, "offset"),
        ] {
            let error = refused(at, byte, descriptors);
            assert_eq!(error.status(), status, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn an_end_in_the_middle_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        (&here).write_all(&MAGIC).unwrap();
        drop(here);
        let error = receive(there.as_fd()).unwrap_err();
        assert_eq!(error.status(), Status::Io, "{error}");
        assert!(error.to_string().contains("8 of 104 bytes"), "{error}");
    }
}
