//! Memory shared between processes.

use super::{export, read_struct, write_out, write_struct};
use crate::error::{Error, Result};
use crate::observe;
use crate::process::sharing::{self, Handle, Shared};
use crate::sys::descriptors;
use std::ffi::c_void;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};

/// By what another process comes to memory.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_export_kind {
    /// A file descriptor, for processes of this machine.
    HBM_EXPORT_FD = 1,
    /// A fabric handle, for processes on any host of an NVLink domain.
    HBM_EXPORT_FABRIC = 2,
}

const FD: i32 = hbm_export_kind::HBM_EXPORT_FD as i32;
const FABRIC: i32 = hbm_export_kind::HBM_EXPORT_FABRIC as i32;

/// A chunk of memory to be had by another process, and a place in it.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_export_t {
    /// sizeof(hbm_export_t) as the program was compiled.
    pub struct_size: usize,
    /// An hbm_export_kind: which of `fd` and `fabric` stands for the chunk.
    pub kind: i32,
    /// The file descriptor, or -1. Whoever has the struct closes it, once it was sent or imported: it holds the
    /// chunk's memory while it is open. Programs started by exec do not get it.
    pub fd: i32,
    /// The device, as the process that exported it counts them.
    pub device: i32,
    /// 0.
    pub reserved: u32,
    /// The length of the chunk, which is shared as a whole.
    pub chunk_bytes: u64,
    /// How far in it the address lies that was exported.
    pub offset: u64,
    /// Bytes from that address to the end of the chunk. A block may go on in another one: export that from the
    /// address `bytes` further on.
    pub bytes: u64,
    /// The fabric handle, or zeros.
    pub fabric: [u8; 64],
    /// Its number, for hbm_export_close: no other export of the process has it. 0 of one that was received.
    pub serial: u64,
}

/// Exports the chunk that `address`, anywhere in a live block, lies in. Blocks of the vmm kind can be exported,
/// those of the pool over it, and segments of MemPools; HBM_UNSUPPORTED for others, and where the driver makes
/// no memory that can be shared. HBM_NOT_OWNED where no live block is, HBM_INVALID_ARGUMENT where it sleeps.
///
/// Blocks of the pool share chunks: the other process can read and write the neighbours too. Nothing orders the work
/// of processes: wait for yours before you tell another one to begin.
///
/// The chunk is pinned until hbm_export_close(out->serial), as by hbm_pin: it neither sleeps nor leaves its address,
/// and the pool gives it back to nobody, even if the block is freed; but it may then give the address to another
/// block of this process. A block of the vmm kind, or a segment, that is freed is unmapped here all the same, and
/// needs no close: another process that has imported it has it still.
///
/// # Safety
/// `out` must point to a struct whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_export(address: *const c_void, out: *mut hbm_export_t) -> i32 {
    export(|| {
        // SAFETY: passed on to the caller.
        unsafe { check_room("hbm_export", out)? };
        let shared = observe::process().export(address as u64)?;
        // SAFETY: passed on to the caller.
        unsafe { write_export("hbm_export", out, shared) }
    })
}

/// Undoes the pin of the hbm_export that filled in `serial`, and of no other, also where the same address was
/// exported again. Descriptors stay open, and other processes keep what they have imported. HBM_NOT_OWNED where it
/// was closed before, or where its memory was freed and is gone.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_export_close(serial: u64) -> i32 {
    export(|| observe::process().close_export(serial))
}

/// Maps what another process, or this one, exported, for `device` and its peers to read and write, and writes the
/// address that the exported one has here to `*address`; as many bytes as `bytes` says can be used from there on. The
/// descriptor stays the caller's to close, at once if it likes. `device` is as this process
/// counts them and must be, or reach, the one that has the memory.
///
/// What is imported counts to no limit and to no statistics here, never sleeps, and is no block: hbm_free and the
/// like reject its address. HBM_INVALID_ARGUMENT for lengths or a descriptor that cannot be; HBM_DRIVER or
/// HBM_UNSUPPORTED where the driver makes nothing of what is behind it.
///
/// # Safety
/// `imported` must point to a filled-in struct, `address` be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_import(
    imported: *const hbm_export_t,
    device: i32,
    address: *mut *mut c_void,
) -> i32 {
    const OPERATION: &str = "hbm_import";
    export(|| {
        if address.is_null() {
            return Err(Error::invalid(OPERATION, "the out-pointer is NULL"));
        }
        // SAFETY: passed on to the caller.
        let raw = unsafe { read_struct(OPERATION, imported, &[])? };
        // SAFETY: the descriptor is open, and the caller's for the time of the call.
        let shared = unsafe { lent(OPERATION, &raw)? };
        let found = observe::process().import(&shared, device)?;
        // SAFETY: passed on to the caller.
        unsafe { write_out(OPERATION, address, found as *mut c_void) }
    })
}

/// Unmaps what hbm_import gave `address` for, after all work that its device and those that reach it were given;
/// waits for that. HBM_NOT_OWNED where it was closed already, HBM_CAPTURING while a stream captures there.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_import_close(address: *mut c_void) -> i32 {
    export(|| observe::process().close_import(address as u64))
}

/// Sends an export over `socket`, a connected Unix-domain stream socket, for hbm_export_receive at the other
/// end; its descriptor goes with it and stays open here too. Waits while the socket is full. HBM_IO where the other
/// end is closed, HBM_BUSY where the socket has a time limit and it passes. After an error close the socket.
///
/// # Safety
/// `sent` must point to a filled-in struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_export_send(socket: i32, sent: *const hbm_export_t) -> i32 {
    const OPERATION: &str = "hbm_export_send";
    export(|| {
        // SAFETY: passed on to the caller.
        let raw = unsafe { read_struct(OPERATION, sent, &[])? };
        // SAFETY: the descriptors are open, and the caller's for the time of the call.
        unsafe { sharing::send(borrowed(OPERATION, socket)?, &lent(OPERATION, &raw)?) }
    })
}

/// Receives what hbm_export_send sent, and waits for it. The descriptor in `*out` is then the caller's to close;
/// after an error there is none. HBM_IO where the other end is closed, or where something else came: close the
/// socket then. HBM_UNSUPPORTED where the other end has another version, HBM_BUSY where the socket has a time limit
/// and it passes.
///
/// # Safety
/// `out` must point to a struct whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_export_receive(socket: i32, out: *mut hbm_export_t) -> i32 {
    const OPERATION: &str = "hbm_export_receive";
    export(|| {
        // SAFETY: passed on to the caller.
        unsafe { check_room(OPERATION, out)? };
        // SAFETY: the descriptor is open, and the caller's for the time of the call.
        let shared = unsafe { sharing::receive(borrowed(OPERATION, socket)?)? };
        // SAFETY: passed on to the caller.
        unsafe { write_export(OPERATION, out, shared) }
    })
}

/// What does not fit would be lost, and with it a descriptor.
///
/// # Safety
/// `out` must be null or point to a struct whose first field is its size.
unsafe fn check_room(operation: &'static str, out: *mut hbm_export_t) -> Result<()> {
    if out.is_null() {
        return Err(Error::invalid(operation, "the out-pointer is NULL"));
    }
    // SAFETY: passed on to the caller.
    let size = unsafe { out.cast::<usize>().read() };
    match size >= size_of::<hbm_export_t>() {
        true => Ok(()),
        false => Err(Error::invalid(
            operation,
            format!("struct_size is {size} bytes; set it to the size of the struct"),
        )),
    }
}

/// # Safety
/// `out` must point to a struct with room for all of it.
unsafe fn write_export(
    operation: &'static str,
    out: *mut hbm_export_t,
    shared: Shared<OwnedFd>,
) -> Result<()> {
    let (kind, fd, fabric) = match shared.handle {
        Handle::Fd(fd) => (FD, fd.into_raw_fd(), [0; 64]),
        Handle::Fabric(handle) => (FABRIC, -1, handle),
    };
    let found = hbm_export_t {
        struct_size: size_of::<hbm_export_t>(),
        kind,
        fd,
        device: shared.device,
        reserved: 0,
        chunk_bytes: shared.chunk_bytes,
        offset: shared.offset,
        bytes: shared.chunk_bytes - shared.offset,
        fabric,
        serial: shared.serial,
    };
    // SAFETY: passed on to the caller.
    unsafe { write_struct(operation, out, &found) }
}

/// # Safety
/// What is open under the descriptor in `raw` must stay so for as long as the result lives.
unsafe fn lent<'a>(operation: &'static str, raw: &hbm_export_t) -> Result<Shared<BorrowedFd<'a>>> {
    let handle = match raw.kind {
        // SAFETY: passed on to the caller.
        FD => Handle::Fd(unsafe { borrowed(operation, raw.fd)? }),
        FABRIC => Handle::Fabric(raw.fabric),
        other => {
            return Err(
                Error::invalid(operation, format!("{other} is no kind of export"))
                    .advice("Kinds: 1 file descriptor, 2 fabric handle"),
            );
        }
    };
    let end = raw.offset.checked_add(raw.bytes);
    if raw.bytes == 0 || end != Some(raw.chunk_bytes) || raw.reserved != 0 {
        return Err(Error::invalid(
            operation,
            format!(
                "{} bytes at offset {} in a chunk of {}",
                raw.bytes, raw.offset, raw.chunk_bytes
            ),
        )
        .advice("Pass the struct as it was filled in"));
    }
    Ok(Shared {
        handle,
        chunk_bytes: raw.chunk_bytes,
        offset: raw.offset,
        device: raw.device,
        serial: raw.serial,
    })
}

/// # Safety
/// What is open under the number must stay so for as long as the result lives.
unsafe fn borrowed<'a>(operation: &'static str, number: i32) -> Result<BorrowedFd<'a>> {
    match descriptors::is_open(number) {
        // SAFETY: it is open; the rest is passed on to the caller.
        true => Ok(unsafe { BorrowedFd::borrow_raw(number) }),
        false => Err(Error::invalid(
            operation,
            format!("{number} is no open descriptor"),
        )),
    }
}
