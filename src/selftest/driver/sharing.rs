//! Chunks handed on as file descriptors, chunks in host memory.

use super::abi::{Access, Place, Properties, READ_WRITE, SHARED_AS_FD};
use super::cases;
use super::guards::{CHUNK, NON_BLOCKING, Owned, Pinned, Stream};
use super::steps::{FILE_HANDLES, HOST_NODES, Steps};
use super::transfers::read_back;
use crate::selftest::{Case, Outcome, Stop};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub const CASES: &[Case] = cases![
    "export and import a chunk" => export,
    "export: what is refused" => refused,
    "chunk on a host node" => host_node,
];

const DEVICE: Properties = Properties::at(Place::device(0));
const AS_FD: Properties = Properties {
    handle_types: SHARED_AS_FD,
    ..DEVICE
};

fn need_file_handles(steps: &Steps) -> Outcome {
    if steps.offers(FILE_HANDLES) {
        Ok(())
    } else {
        Err(Stop::skip("no chunks shared as file descriptors"))
    }
}

fn export(steps: &mut Steps) -> Outcome {
    need_file_handles(steps)?;
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let reservation = Owned::reservation(calls, 2 * CHUNK)?;
    let at = reservation.number();
    let chunk = Owned::chunk_of(calls, CHUNK, &AS_FD)?;
    let first = Owned::mapping(calls, at, &chunk)?;
    let mut pinned = Pinned::new(calls, 4096)?;
    steps.is("fill", calls.fill(at, 0x6B, CHUNK, &stream), 0);
    let mut fd = -1;
    steps.is("export", calls.export_fd(&mut fd, chunk.number(), 0), 0);
    if fd < 0 {
        return Err(Stop::Failed("no descriptor came".into()));
    }
    // SAFETY: the driver made it for the caller.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut handle = 0;
    steps.is("import", calls.import_fd(&mut handle, fd.as_raw_fd()), 0);
    let imported = Owned::handle(calls, handle, CHUNK);
    drop(fd);
    let mut found = Properties::at(Place::NOWHERE);
    steps.is(
        "properties",
        calls.properties(&mut found, imported.number()),
        0,
    );
    steps.is(
        "place",
        format!("{}:{}", found.place.kind, found.place.id),
        "1:0",
    );
    steps.saw("handle types", found.handle_types);
    let second = Owned::mapping(calls, at + CHUNK, &imported)?;
    let read = read_back(calls, &mut pinned, at + 2 * CHUNK - 64, &stream);
    steps.is("read", read, "0x6b everywhere");
    steps.is("unmap the first", first.end(), 0);
    steps.is("release the first", chunk.end(), 0);
    steps.is("fill again", calls.fill(at + CHUNK, 0x21, 64, &stream), 0);
    steps.is(
        "read again",
        read_back(calls, &mut pinned, at + CHUNK, &stream),
        "0x21 everywhere",
    );
    steps.is("unmap the second", second.end(), 0);
    steps.is("release the second", imported.end(), 0);
    Ok(())
}

fn refused(steps: &mut Steps) -> Outcome {
    need_file_handles(steps)?;
    let calls = steps.calls();
    let chunk = Owned::chunk(calls, CHUNK)?;
    let shared = Owned::chunk_of(calls, CHUNK, &AS_FD)?;
    let mut fd = -1;
    steps.is(
        "of a private chunk",
        calls.export_fd(&mut fd, chunk.number(), 0),
        1,
    );
    steps.is("flags", calls.export_fd(&mut fd, shared.number(), 1), 1);
    steps.is(
        "as nothing",
        calls.export_as(&mut [0; 64], shared.number(), 0),
        1,
    );
    steps.is(
        "over a fabric",
        calls.export_as(&mut [0; 64], shared.number(), 8),
        1,
    );
    let mut handle = 0;
    let file = std::fs::File::open("/dev/null").map_err(|error| error.to_string())?;
    steps.is(
        "import of another file",
        calls.import_fd(&mut handle, file.as_raw_fd()),
        999,
    );
    steps.is("import of no file", calls.import_fd(&mut handle, -1), 999);
    Ok(())
}

fn host_node(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    if !steps.offers(HOST_NODES) {
        return Err(Stop::skip("no virtual memory on host nodes"));
    }
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let reservation = Owned::reservation(calls, CHUNK)?;
    let at = reservation.number();
    let chunk = Owned::chunk_of(calls, CHUNK, &Properties::at(Place::node(0)))?;
    let _mapping = Owned::mapping(calls, at, &chunk)?;
    let mut pinned = Pinned::new(calls, 4096)?;
    steps.is("fill", calls.fill(at, 0x42, CHUNK, &stream), 0);
    steps.is(
        "read",
        read_back(calls, &mut pinned, at, &stream),
        "0x42 everywhere",
    );
    let host = |place| Access {
        place,
        flags: READ_WRITE,
    };
    steps.is(
        "access for its node",
        calls.set_access(at, CHUNK, &[host(Place::node(0))]),
        0,
    );
    let answer = calls.set_access(at, CHUNK, &[host(Place::HOST)]);
    steps.is("access for the host", answer, 0);
    if answer == 0 {
        // SAFETY: mapped here for the host to read, and the fill has ended.
        let byte = unsafe { std::ptr::read_volatile((at + CHUNK - 1) as *const u8) };
        steps.is("read by the host", byte, 0x42);
    }
    Ok(())
}
