//! Sleep and wake: what backs memory changes, its address does not.

use super::{export, read_struct, text_argument, write_struct};
use crate::core::tags::TagId;
use crate::error::{Error, Result};
use crate::observe;
use crate::process::residency::{How, Listener, Request, To};
use crate::process::tags;
use crate::residency::{Amounts, Report};
use std::ffi::{c_char, c_void};
use std::mem::offset_of;

/// Where contents of memory that sleeps go.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_sleep_to {
    /// Pinned memory of the host.
    HBM_SLEEP_TO_HOST = 0,
    /// A file.
    HBM_SLEEP_TO_FILE = 1,
    /// Nowhere: they are gone.
    HBM_SLEEP_TO_NOTHING = 2,
}

/// In `hbm_residency_request_t.flags`: nothing has written to the memory since it was last woken.
pub const HBM_SLEEP_CLEAN: u32 = 1;

/// In `hbm_residency_request_t.flags`: while it sleeps, its addresses read as zeros, and writing to them is a fault
/// where the driver can forbid it. Costs a mapping for every 32 MiB and for every granule of what is left (some
/// 24 us each) at the sleep and at the wake, and 34 MiB of the device.
pub const HBM_SLEEP_GUARD_ZERO: u32 = 2;

/// A stretch of memory.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_range_t {
    /// Its first address.
    pub address: *mut c_void,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The most bytes of a tag's name, its end included.
pub const HBM_TAG_NAME_BYTES: usize = 256;

/// What hbm_sleep, hbm_wake or hbm_discard did with memory of one tag, in bytes, over all devices.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_residency_of_tag_t {
    /// The tag's name, empty for memory without a tag.
    pub tag: [c_char; HBM_TAG_NAME_BYTES],
    /// The devices' memory given back, or had again.
    pub moved: u64,
    /// Copied over the link.
    pub copied: u64,
    /// Awake as before, since it is pinned (hbm_pin) or exported.
    pub pinned: u64,
}

/// What is to sleep or to wake. Zeros, with `struct_size` filled in, are everything of device 0.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_residency_request_t {
    /// sizeof(hbm_residency_request_t) as the program was compiled.
    pub struct_size: usize,
    /// Names of tags, in the order in which they are to wake; NULL for everything, memory without a
    /// tag included. The empty name is memory without a tag; a name that no memory ever had is HBM_INVALID_ARGUMENT.
    pub tags: *const *const c_char,
    /// How many.
    pub tag_count: usize,
    /// The device, or -1 for every device in use; these then go at the same time.
    pub device: i32,
    /// hbm_sleep: an hbm_sleep_to.
    pub to: i32,
    /// hbm_sleep, hbm_discard: HBM_SLEEP_CLEAN and HBM_SLEEP_GUARD_ZERO, or 0.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// hbm_sleep: stretches of MemPool segments that hold nothing, as torch's snapshot tells; they are not
    /// copied, and hold anything after the wake. NULL for none.
    pub dead: *const hbm_range_t,
    /// How many.
    pub dead_count: usize,
    /// Where to write what was done tag by tag, NULL for nowhere: the tags asked for in their order, or for
    /// everything those with which something was done. Needs a report, for their number.
    pub by_tag: *mut hbm_residency_of_tag_t,
    /// For so many there is room; report's `tag_count` says how many there were.
    pub by_tag_capacity: usize,
}

/// What hbm_sleep, hbm_wake or hbm_discard did, in bytes, over all devices.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_residency_report_t {
    /// sizeof(hbm_residency_report_t) as the program was compiled.
    pub struct_size: usize,
    /// The devices' memory given back, or had again.
    pub moved: u64,
    /// Copied over the link.
    pub copied: u64,
    /// Awake as before, since it is pinned (hbm_pin) or exported.
    pub pinned: u64,
    /// How many tags there were for the request's `by_tag`.
    pub tag_count: u64,
}

/// Where memory is, in bytes of whole chunks.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_residency_t {
    /// sizeof(hbm_residency_t) as the program was compiled.
    pub struct_size: usize,
    /// In the device's memory: awake.
    pub device: u64,
    /// Asleep, in pinned memory of the host.
    pub host: u64,
    /// Asleep, in a file.
    pub file: u64,
    /// Asleep, with nothing saved.
    pub discarded: u64,
    /// The part of `device` that cannot sleep, since it is pinned or exported.
    pub pinned: u64,
}

impl From<&Report> for hbm_residency_report_t {
    fn from(report: &Report) -> hbm_residency_report_t {
        let total = report.total();
        hbm_residency_report_t {
            struct_size: size_of::<hbm_residency_report_t>(),
            moved: total.moved,
            copied: total.copied,
            pinned: total.pinned,
            tag_count: report.by_tag.len() as u64,
        }
    }
}

impl From<&(TagId, Amounts)> for hbm_residency_of_tag_t {
    fn from((tag, amounts): &(TagId, Amounts)) -> hbm_residency_of_tag_t {
        let mut written = [0; HBM_TAG_NAME_BYTES];
        if *tag != TagId::NONE {
            let name = tags::name_of(*tag);
            let bytes = name.bytes().take(HBM_TAG_NAME_BYTES - 1);
            (written.iter_mut().zip(bytes)).for_each(|(to, byte)| *to = byte as c_char);
        }
        hbm_residency_of_tag_t {
            tag: written,
            moved: amounts.moved,
            copied: amounts.copied,
            pinned: amounts.pinned,
        }
    }
}

/// Puts memory to sleep: saves what is in it, gives its memory of the device back, keeps its addresses.
/// What can sleep is what chunks back: blocks of the vmm kind, MemPool segments from it and the pool's
/// memory of the tags; other kinds, and memory placed on the host, stay as they are. What sleeps already
/// sleeps on; with HBM_SLEEP_TO_NOTHING its contents are given up. What is allocated for a sleeping tag is
/// awake, and sleeps next time.
///
/// All work given to the device before the call is done first, on streams that nobody named too; work
/// given to it afterwards must not touch the memory: that is a fault, as with memory that was freed.
/// While the call runs other threads may allocate and free, what is asleep too; what they are given for these tags
/// before it returns may sleep with the rest. HBM_CAPTURING, and nothing
/// changed, while a stream captures on the device.
///
/// To a file: one a tag and device, in the folder that the option `sleep_dir` names, mode 0600, written past
/// the page cache where the file system can, removed once nothing sleeps in it, at the latest when the
/// process exits. HBM_IO, with everything awake, where it cannot be written. hbm_wake compares a checksum, and
/// answers HBM_IO where the file does not hold what was written.
///
/// HBM_OUT_OF_MEMORY where the host has no room (see the options `sleep_host_limit` and
/// hbm_host_buffer_prepare). After an error everything is awake, but for what its text names; of several devices
/// each stands for itself. The report says what was done all the same. Any thread; calls on one device take
/// turns. `report` may be NULL.
///
/// # Safety
/// `request` must point to a filled-in struct whose pointers are valid; `report` must be NULL or point to a
/// struct whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_sleep(
    request: *const hbm_residency_request_t,
    report: *mut hbm_residency_report_t,
) -> i32 {
    const OPERATION: &str = "hbm_sleep";
    export(|| {
        // SAFETY: passed on to the caller.
        let asked = unsafe { Asked::read(OPERATION, request, report)? };
        let to = match asked.raw.to {
            0 => To::Host,
            1 => To::File,
            2 => To::Nothing,
            other => {
                return Err(Error::invalid(OPERATION, format!("to {other} is no place"))
                    .advice("Places: 0 host, 1 file, 2 nothing"));
            }
        };
        let how = how(OPERATION, to, asked.raw.flags)?;
        let mut done = Report::default();
        let outcome = observe::process().sleep_reporting(&asked.request, how, &mut done);
        // SAFETY: passed on to the caller.
        unsafe { asked.answer(&done)? };
        outcome
    })
}

/// Wakes memory that sleeps, tag by tag in their order: puts memory of the device behind its addresses
/// and fills it with what was saved. Where nothing was, it holds anything. Returns when all of it can be used.
/// What is awake is left alone.
///
/// HBM_OUT_OF_MEMORY where the device has too little; then all of it sleeps on, and can be woken later or
/// in parts. HBM_CAPTURING while a stream captures on the device. `to`, `flags` and `dead` are not looked at.
///
/// # Safety
/// As for hbm_sleep.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_wake(
    request: *const hbm_residency_request_t,
    report: *mut hbm_residency_report_t,
) -> i32 {
    export(|| {
        // SAFETY: passed on to the caller.
        let asked = unsafe { Asked::read("hbm_wake", request, report)? };
        let mut done = Report::default();
        let outcome = observe::process().wake_reporting(&asked.request, &mut done);
        // SAFETY: passed on to the caller.
        unsafe { asked.answer(&done)? };
        outcome
    })
}

/// hbm_sleep with HBM_SLEEP_TO_NOTHING, whatever `to` says.
///
/// # Safety
/// As for hbm_sleep.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_discard(
    request: *const hbm_residency_request_t,
    report: *mut hbm_residency_report_t,
) -> i32 {
    const OPERATION: &str = "hbm_discard";
    export(|| {
        // SAFETY: passed on to the caller.
        let asked = unsafe { Asked::read(OPERATION, request, report)? };
        let how = how(OPERATION, To::Nothing, asked.raw.flags)?;
        let mut done = Report::default();
        let outcome = observe::process().sleep_reporting(&asked.request, how, &mut done);
        // SAFETY: passed on to the caller.
        unsafe { asked.answer(&done)? };
        outcome
    })
}

/// Writes where memory is: that of the tag `tag`, without one where that is empty, or of all tags and none where it is NULL; on `device`, or on
/// every device in use where it is -1. Any thread; makes no driver call.
///
/// # Safety
/// `tag` must be NULL or a C string, `out` point to a struct whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_residency(
    device: i32,
    tag: *const c_char,
    out: *mut hbm_residency_t,
) -> i32 {
    export(|| {
        let tag = match tag.is_null() {
            true => None,
            // SAFETY: passed on to the caller.
            false => Some(unsafe { text_argument("hbm_residency", "tag", tag)? }),
        };
        let found = observe::process().whereabouts(device_of(device), tag)?;
        let found = hbm_residency_t {
            struct_size: size_of::<hbm_residency_t>(),
            device: found.device,
            host: found.host,
            file: found.file,
            discarded: found.discarded,
            pinned: found.pinned,
        };
        // SAFETY: passed on to the caller.
        unsafe { write_struct("hbm_residency", out, &found) }
    })
}

/// What a residency callback is told.
#[allow(non_camel_case_types, missing_docs)]
#[repr(C)]
pub enum hbm_residency_change {
    /// Nothing is behind the addresses any more.
    HBM_RESIDENCY_ASLEEP = 0,
    /// Other memory than before is behind the addresses.
    HBM_RESIDENCY_REMAPPED = 1,
}

/// Told of `bytes` of memory at `address` of `device`: `change` is an hbm_residency_change.
#[allow(non_camel_case_types)]
pub type hbm_residency_function = Option<
    unsafe extern "C" fn(
        device: i32,
        address: *mut c_void,
        bytes: u64,
        change: i32,
        data: *mut c_void,
    ),
>;

/// Has `function` called for every stretch that fell asleep or was mapped anew, with `data`, by the thread that
/// called hbm_sleep, hbm_wake or hbm_discard and before that returns: network cards and libraries such as NCCL
/// that registered the memory must register it again, since other memory is behind its addresses after a wake.
/// NULL for nobody. It may allocate and free, and must not change what sleeps. One callback a process; calls of
/// hbm_sleep, hbm_wake and hbm_discard that have begun may still call the one before, so that its `data` must
/// stay until they have returned.
///
/// # Safety
/// `function` must be callable with `data` on any thread for as long as it is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_residency_callback(
    function: hbm_residency_function,
    data: *mut c_void,
) -> i32 {
    export(|| {
        let data = data as usize;
        let listener = function.map(|function| {
            let listener: Listener = Box::new(move |device, address, bytes, change| {
                // SAFETY: passed on to the caller.
                unsafe {
                    function(
                        device,
                        address as *mut c_void,
                        bytes,
                        change as i32,
                        data as *mut c_void,
                    );
                }
            });
            listener
        });
        observe::process().set_residency_listener(listener);
        Ok(())
    })
}

/// Keeps memory of the device behind `[address, address + bytes)`, to the chunk, until as many calls of
/// hbm_unpin: for network cards and other processes that know it. What is pinned does not sleep. Blocks there
/// must not be freed before. HBM_NOT_OWNED where no such memory is, HBM_INVALID_ARGUMENT where part of it sleeps.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_pin(address: *const c_void, bytes: u64) -> i32 {
    export(|| observe::process().pin(address as u64, bytes))
}

/// Undoes one hbm_pin of the same stretch.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_unpin(address: *const c_void, bytes: u64) -> i32 {
    export(|| observe::process().unpin(address as u64, bytes))
}

fn how(operation: &'static str, to: To, flags: u32) -> Result<How> {
    if flags & !(HBM_SLEEP_CLEAN | HBM_SLEEP_GUARD_ZERO) != 0 {
        return Err(Error::invalid(operation, format!("flags {flags:#x}")));
    }
    Ok(How {
        to,
        is_clean: flags & HBM_SLEEP_CLEAN != 0,
        is_guarded: flags & HBM_SLEEP_GUARD_ZERO != 0,
    })
}

fn device_of(device: i32) -> Option<i32> {
    (device != -1).then_some(device)
}

/// # Safety
/// The pointers in `raw` must be valid as its fields say.
unsafe fn request_of(operation: &'static str, raw: &hbm_residency_request_t) -> Result<Request> {
    let (is_listed, is_dead) = (!raw.tags.is_null(), !raw.dead.is_null());
    let is_short = raw.by_tag.is_null() && raw.by_tag_capacity > 0;
    if (!is_listed && raw.tag_count > 0)
        || (!is_dead && raw.dead_count > 0)
        || is_short
        || raw.reserved != 0
    {
        return Err(Error::invalid(
            operation,
            "a pointer is NULL, or a reserved field not 0",
        ));
    }
    let tags = match is_listed {
        false => None,
        true => {
            // SAFETY: passed on to the caller.
            let names = unsafe { std::slice::from_raw_parts(raw.tags, raw.tag_count) };
            // SAFETY: passed on to the caller.
            let name = |name: &*const c_char| unsafe {
                text_argument(operation, "a tag", *name).map(str::to_owned)
            };
            Some(names.iter().map(name).collect::<Result<_>>()?)
        }
    };
    let dead = match is_dead {
        false => Vec::new(),
        true => {
            // SAFETY: passed on to the caller.
            let ranges = unsafe { std::slice::from_raw_parts(raw.dead, raw.dead_count) };
            ranges
                .iter()
                .map(|range| (range.address as u64, range.bytes))
                .collect()
        }
    };
    Ok(Request {
        tags,
        device: device_of(raw.device),
        dead,
    })
}

/// What a caller asks for, and where he wants to read what was done.
struct Asked {
    operation: &'static str,
    raw: hbm_residency_request_t,
    request: Request,
    report: *mut hbm_residency_report_t,
}

impl Asked {
    /// What cannot be written is refused before anything is done.
    ///
    /// # Safety
    /// As for hbm_sleep; what is pointed to must stay valid until [`Asked::answer`].
    unsafe fn read(
        operation: &'static str,
        request: *const hbm_residency_request_t,
        report: *mut hbm_residency_report_t,
    ) -> Result<Asked> {
        const OLDER: [usize; 1] = [offset_of!(hbm_residency_request_t, by_tag)];
        // SAFETY: passed on to the caller.
        let raw = unsafe { read_struct(operation, request, &OLDER)? };
        let asked = Asked {
            operation,
            raw,
            // SAFETY: passed on to the caller.
            request: unsafe { request_of(operation, &raw)? },
            report,
        };
        if report.is_null() && !raw.by_tag.is_null() {
            return Err(Error::invalid(operation, "by_tag needs a report"));
        }
        // SAFETY: passed on to the caller.
        unsafe { asked.answer(&Report::default())? };
        Ok(asked)
    }

    /// # Safety
    /// As for [`Asked::read`].
    unsafe fn answer(&self, done: &Report) -> Result<()> {
        let room = match self.raw.by_tag.is_null() {
            true => 0,
            false => self.raw.by_tag_capacity,
        };
        for (at, of_tag) in done.by_tag.iter().take(room).enumerate() {
            // SAFETY: passed on to the caller: there is room for so many.
            unsafe { self.raw.by_tag.add(at).write(of_tag.into()) };
        }
        match self.report.is_null() {
            true => Ok(()),
            // SAFETY: passed on to the caller.
            false => unsafe { write_struct(self.operation, self.report, &done.into()) },
        }
    }
}
