//! The exports, which check, call and translate.

use super::super::{allocate_segment, deallocate, guarded, segment_or_null};
use super::backup;
use crate::config::table::{self, Opt};
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status, last};
use crate::observe;
use crate::process::regions::{self, Backend, Fate, Region};
use crate::process::residency::{How, Request, To};
use crate::process::{check_not_forked, tags};
use crate::residency::Report;
use crate::source::Kind;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a resume keeps what is on the host.
static RETAIN: LazyLock<AtomicBool> =
    LazyLock::new(|| AtomicBool::new(regions::flag("TMS_RETAIN_CPU_BACKUP")));

/// The status of a call. Its Python does not look at it, so that a failure is logged besides.
fn status(operation: &'static str, body: impl FnOnce() -> Result<()>) -> c_int {
    match guarded(body) {
        Ok(()) => Status::Ok as c_int,
        Err(error) => {
            let status = error.status() as c_int;
            tracing::warn!(target: "hbmalloc", "{operation}: {error}");
            last::remember(error);
            status
        }
    }
}

/// # Safety
/// `text` must be a C string or NULL.
unsafe fn text_of<'a>(operation: &'static str, what: &str, text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(Error::invalid(operation, format!("{what} is NULL")));
    }
    // SAFETY: passed on to the caller, and not NULL.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map_err(|_| Error::invalid(operation, format!("{what} is no UTF-8")))
}

/// The tags of memory of regions, by where their contents go: of one tag of regions, or of all.
fn tags_of(wanted: Option<&str>) -> [(Fate, Vec<String>); 3] {
    let known = tags::table().list();
    Fate::ALL.map(|fate| {
        let is_wanted = |name: &&str| {
            let tag = name.strip_prefix(fate.prefix());
            tag.is_some_and(|tag| wanted.is_none_or(|wanted| wanted == tag))
        };
        let names = known.iter().map(|(_, name)| &**name);
        (fate, names.filter(is_wanted).map(str::to_owned).collect())
    })
}

fn request_of(tags: Vec<String>) -> Request {
    Request {
        tags: Some(tags),
        device: None,
        dead: Vec::new(),
    }
}

/// # Safety
/// `tag` must be a C string or NULL.
unsafe fn wanted<'a>(operation: &'static str, tag: *const c_char) -> Result<Option<&'a str>> {
    if tag.is_null() {
        return Ok(None);
    }
    // SAFETY: passed on to the caller.
    let tag = unsafe { text_of(operation, "the tag", tag)? };
    Ok((!tag.is_empty()).then_some(tag))
}

/// torch_memory_saver's: takes the memory of all regions of the tag, of every tag where it is NULL or empty, from the
/// devices; its addresses stay. Contents go where the regions said: to the host, to a file, or nowhere. What is
/// paused stays so, and a tag that no region had is nothing to do. 0, or an hbm_status: what could not be saved
/// is awake then, and nothing was discarded.
///
/// # Safety
/// `tag` must be NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tms_pause(tag: *const c_char) -> c_int {
    const OPERATION: &str = "tms_pause";
    status(OPERATION, || {
        check_not_forked()?;
        // SAFETY: passed on to the caller.
        let wanted = unsafe { wanted(OPERATION, tag)? };
        // What loses contents comes last.
        for (fate, tags) in tags_of(wanted) {
            if tags.is_empty() {
                continue;
            }
            if fate == Fate::File {
                observe::process().find_files_of_regions()?;
            }
            let how = How::from(match fate {
                Fate::Host => To::Host,
                Fate::File => To::File,
                Fate::Nothing => To::Nothing,
            });
            observe::process().sleep(&request_of(tags), how)?;
        }
        backup::forget_gone();
        Ok(())
    })
}

/// torch_memory_saver's: puts memory behind all that tms_pause took of the tag, of every tag where it is NULL or empty,
/// with its contents where they were saved. What is awake is left alone. 0, or an hbm_status: all that slept sleeps on, to
/// be resumed again.
///
/// # Safety
/// As for tms_pause.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tms_resume(tag: *const c_char) -> c_int {
    const OPERATION: &str = "tms_resume";
    status(OPERATION, || {
        check_not_forked()?;
        // SAFETY: passed on to the caller.
        let wanted = unsafe { wanted(OPERATION, tag)? };
        let tags: Vec<String> = (tags_of(wanted).into_iter())
            .flat_map(|(_, tags)| tags)
            .collect();
        if !tags.is_empty() {
            let keep = retains().then_some(u64::MAX);
            let process = observe::process();
            process.wake_keeping(&request_of(tags), keep, &mut Report::default())?;
        }
        backup::forget_gone();
        Ok(())
    })
}

/// torch_memory_saver's: where on the host `bytes` bytes are that were saved from `address` on: of paused memory, or of
/// resumed memory with tms_set_retain_cpu_backup, as they were at the pause. NULL where there are none. To be read, until
/// the memory is resumed, freed or paused again: what is not in one piece on the host is copied into one.
#[unsafe(no_mangle)]
pub extern "C" fn tms_get_cpu_backup_pointer(address: *const u8, bytes: u64) -> *mut u8 {
    let find = || {
        check_not_forked()?;
        backup::find(address as u64, bytes)
    };
    guarded(find).unwrap_or_else(|error| {
        last::remember(error);
        std::ptr::null_mut()
    })
}

/// torch_memory_saver's: whether what this thread allocates from here on, by tms_torch_malloc and under the preload
/// library by cudaMalloc, can be paused. So it begins where TMS_INIT_ENABLE is 1.
#[unsafe(no_mangle)]
pub extern "C" fn tms_set_interesting_region(is_region: u8) {
    regions::change(|region| region.is_open = is_region != 0);
}

/// What tms_set_interesting_region set for this thread.
#[unsafe(no_mangle)]
pub extern "C" fn tms_get_interesting_region() -> bool {
    regions::read(|region| region.is_open)
}

/// torch_memory_saver's: the tag of what this thread allocates in regions; `default` at first.
///
/// # Safety
/// `tag` must be a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tms_set_current_tag(tag: *const c_char) {
    status("tms_set_current_tag", || {
        // SAFETY: passed on to the caller.
        let tag = unsafe { text_of("tms_set_current_tag", "the tag", tag)? };
        regions::change(|region| region.set_tag(tag));
        Ok(())
    });
}

/// The tag that tms_set_current_tag set for this thread, until it sets another.
#[unsafe(no_mangle)]
pub extern "C" fn tms_get_current_tag() -> *const c_char {
    regions::tag()
}

/// torch_memory_saver's: whether contents of what this thread allocates in regions go to the host at a pause.
/// TMS_INIT_ENABLE_CPU_BACKUP says how it begins.
#[unsafe(no_mangle)]
pub extern "C" fn tms_set_enable_cpu_backup(is_enabled: u8) {
    regions::change(|region| region.to_host = is_enabled != 0);
}

/// What tms_set_enable_cpu_backup set for this thread.
#[unsafe(no_mangle)]
pub extern "C" fn tms_get_enable_cpu_backup() -> bool {
    regions::read(|region| region.to_host)
}

/// torch_memory_saver's: whether contents of what this thread allocates in regions go to a file at a pause; not to
/// both. TMS_INIT_ENABLE_DISK_BACKUP says how it begins.
#[unsafe(no_mangle)]
pub extern "C" fn tms_set_enable_disk_backup(is_enabled: u8) {
    regions::change(|region| region.to_file = is_enabled != 0);
}

/// What tms_set_enable_disk_backup set for this thread.
#[unsafe(no_mangle)]
pub extern "C" fn tms_get_enable_disk_backup() -> bool {
    regions::read(|region| region.to_file)
}

/// torch_memory_saver's: `pinned` or `mmap`, which is kept and told, and changes nothing: the host's memory is pinned, as for
/// every sleep. Another one is logged, and ignored.
///
/// # Safety
/// `backend` must be a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tms_set_cpu_backup_backend(backend: *const c_char) {
    const OPERATION: &str = "tms_set_cpu_backup_backend";
    status(OPERATION, || {
        // SAFETY: passed on to the caller.
        let name = unsafe { text_of(OPERATION, "the backend", backend)? };
        let backend = Backend::from_name(name).ok_or_else(|| {
            Error::invalid(OPERATION, format!("{name:?} is no backend")).advice("pinned or mmap")
        })?;
        regions::change(|region| region.backend = backend);
        Ok(())
    });
}

/// What tms_set_cpu_backup_backend set for this thread.
#[unsafe(no_mangle)]
pub extern "C" fn tms_get_cpu_backup_backend() -> *const c_char {
    regions::read(|region| region.backend.name().as_ptr())
}

/// torch_memory_saver's: the folder of the files that memory is paused to, which is the option `sleep_dir`; where that
/// is empty, TMS_DISK_BACKUP_DIR names it.
///
/// # Safety
/// `folder` must be a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tms_set_disk_backup_dir(folder: *const c_char) {
    const OPERATION: &str = "tms_set_disk_backup_dir";
    status(OPERATION, || {
        check_not_forked()?;
        // SAFETY: passed on to the caller.
        let folder = unsafe { text_of(OPERATION, "the folder", folder)? };
        let settings = observe::process().settings();
        settings.set(table::name(Opt::SleepDir), folder).map(|_| ())
    });
}

/// torch_memory_saver's: whether tms_resume keeps what is on the host, for tms_get_cpu_backup_pointer; in the whole process.
/// It goes where a later pause needs the room. TMS_RETAIN_CPU_BACKUP says how it begins.
#[unsafe(no_mangle)]
pub extern "C" fn tms_set_retain_cpu_backup(is_retained: u8) {
    RETAIN.store(is_retained != 0, Ordering::Relaxed);
}

/// What tms_set_retain_cpu_backup set.
#[unsafe(no_mangle)]
pub extern "C" fn tms_get_retain_cpu_backup() -> bool {
    retains()
}

fn retains() -> bool {
    RETAIN.load(Ordering::Relaxed)
}

/// torch_memory_saver's: memory of a region is refused, as if the device had no more, where less than `bytes` bytes
/// would be left; in the whole process. 0 at first.
#[unsafe(no_mangle)]
pub extern "C" fn set_memory_margin_bytes(bytes: u64) {
    regions::set_margin(bytes);
}

/// torch_memory_saver's entry for memory pools of torch: a segment of `bytes` bytes, which can be paused where the
/// thread is in a region. NULL for 0 bytes and on failure, with the thread's last error set.
#[unsafe(no_mangle)]
pub extern "C" fn tms_torch_malloc(
    bytes: isize,
    device: c_int,
    stream: *mut c_void,
) -> *mut c_void {
    segment_or_null(guarded(|| {
        check_not_forked()?;
        let Ok(size) = usize::try_from(bytes) else {
            return Err(Error::invalid("tms_torch_malloc", format!("{bytes} bytes")));
        };
        match regions::current()? {
            None => allocate_segment(None, size, device, stream, TagId::NONE),
            Some(_) if size == 0 => Ok(std::ptr::null_mut()),
            Some(Region { tag }) => {
                observe::process().check_margin(device, size as u64)?;
                let kind = Some(Kind::Vmm);
                allocate_segment(kind, size, device, stream, tag)
            }
        }
    }))
}

/// Takes back what tms_torch_malloc gave, paused or not, in a region or not, once all work given to the device is done.
/// The other arguments are not looked at.
#[unsafe(no_mangle)]
pub extern "C" fn tms_torch_free(
    address: *mut c_void,
    bytes: isize,
    device: c_int,
    stream: *mut c_void,
) {
    let _ = (bytes, device, stream);
    deallocate(address);
}
