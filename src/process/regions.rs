//! Regions of torch_memory_saver's: what a thread said of memory that it allocates from here on, and that memory.

use super::{Demand, Process, check_not_forked, tags};
use crate::config::table::{self, Opt};
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::gpu::Stream;
use crate::source::{Kind, LastUse};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::atomic::{AtomicU64, Ordering};

/// What has to stay free on a device beside what is allocated in regions.
static MARGIN: AtomicU64 = AtomicU64::new(0);

/// Sets that.
pub fn set_margin(bytes: u64) {
    MARGIN.store(bytes, Ordering::Relaxed);
}

/// Where contents of paused memory go, in the order in which they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// To the host.
    Host,
    /// To a file.
    File,
    /// Nowhere.
    Nothing,
}

impl Fate {
    /// All of them.
    pub const ALL: [Fate; 3] = [Fate::Host, Fate::File, Fate::Nothing];

    /// Before a region's tag in hbmalloc's: memory of one tag may be saved in one region and not in another, and
    /// other memory of the program that has the tag is no region's.
    pub fn prefix(self) -> &'static str {
        match self {
            Fate::Host => "tms.host.",
            Fate::File => "tms.file.",
            Fate::Nothing => "tms.none.",
        }
    }
}

/// How the host's memory is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// By the driver.
    Pinned,
    /// By the system.
    Mmap,
}

impl Backend {
    /// Its name.
    pub fn name(self) -> &'static CStr {
        match self {
            Backend::Pinned => c"pinned",
            Backend::Mmap => c"mmap",
        }
    }

    /// Which has that name.
    pub fn from_name(name: &str) -> Option<Backend> {
        let of_name = |backend: &Backend| backend.name().to_bytes() == name.as_bytes();
        [Backend::Pinned, Backend::Mmap].into_iter().find(of_name)
    }
}

/// What a thread said.
pub struct Said {
    /// Whether a region is open.
    pub is_open: bool,
    /// Whether contents go to the host.
    pub to_host: bool,
    /// Whether contents go to a file.
    pub to_file: bool,
    /// Kept and told.
    pub backend: Backend,
    tag: CString,
}

impl Said {
    /// As a thread begins.
    fn at_first() -> Said {
        let backend = std::env::var("TMS_INIT_CPU_BACKUP_BACKEND").unwrap_or_default();
        Said {
            is_open: flag("TMS_INIT_ENABLE"),
            to_host: flag("TMS_INIT_ENABLE_CPU_BACKUP"),
            to_file: flag("TMS_INIT_ENABLE_DISK_BACKUP"),
            backend: Backend::from_name(&backend).unwrap_or(Backend::Pinned),
            tag: c"default".to_owned(),
        }
    }

    /// What it allocates has that tag.
    pub fn set_tag(&mut self, tag: &str) {
        // It was a C string.
        self.tag = CString::new(tag).unwrap_or_default();
    }

    fn fate(&self) -> Result<Fate> {
        match (self.to_host, self.to_file) {
            (true, true) => Err(Error::invalid(
                "a region of torch_memory_saver",
                "contents can go to the host or to a file, not to both",
            )),
            (true, false) => Ok(Fate::Host),
            (false, true) => Ok(Fate::File),
            (false, false) => Ok(Fate::Nothing),
        }
    }
}

/// A variable of the environment that says yes or no.
pub fn flag(name: &str) -> bool {
    let text = std::env::var(name).unwrap_or_default();
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => true,
        "" | "0" | "false" | "no" | "off" => false,
        _ => {
            tracing::warn!(target: "hbmalloc", "{name} is {text:?}, which is neither 1 nor 0: taken for 0");
            false
        }
    }
}

thread_local! {
    static SAID: RefCell<Said> = RefCell::new(Said::at_first());
}

/// Looks at what this thread said; at what threads begin with where it is ending.
pub fn read<T>(look: impl Fn(&Said) -> T) -> T {
    SAID.try_with(|said| look(&said.borrow()))
        .unwrap_or_else(|_| look(&Said::at_first()))
}

/// Changes what this thread said.
pub fn change(act: impl FnOnce(&mut Said)) {
    let _ = SAID.try_with(|said| act(&mut said.borrow_mut()));
}

/// The tag that this thread set, until it sets another.
pub fn tag() -> *const c_char {
    SAID.try_with(|said| said.borrow().tag.as_ptr())
        .unwrap_or(c"default".as_ptr())
}

/// Memory of an open region.
pub struct Region {
    /// Its tag among hbmalloc's.
    pub tag: TagId,
}

/// The region that this thread is in.
pub fn current() -> Result<Option<Region>> {
    read(|said| {
        if !said.is_open {
            return Ok(None);
        }
        check_not_forked()?;
        let name = format!("{}{}", said.fate()?.prefix(), said.tag.to_string_lossy());
        let tag = tags::table().intern(&name)?;
        Ok(Some(Region { tag }))
    })
}

/// The kind of memory of regions: the pool's where that can sleep.
fn kind(process: &Process) -> Result<Kind> {
    match (process.default_kind()?, process.default_segment_kind()?) {
        (Kind::Pool, Kind::Vmm) => Ok(Kind::Pool),
        _ => Ok(Kind::Vmm),
    }
}

impl Process {
    /// Refuses what would leave the device less than the margin.
    pub fn check_margin(&self, device: c_int, bytes: u64) -> Result<()> {
        let margin = MARGIN.load(Ordering::Relaxed);
        if margin == 0 {
            return Ok(());
        }
        let room = self.room(device)?;
        if bytes.saturating_add(margin) <= room {
            return Ok(());
        }
        Err(
            Error::new(Status::OutOfMemory, "a region of torch_memory_saver")
                .bytes(bytes)
                .detail(format!(
                    "{room} bytes could be had, and the margin is {margin}"
                ))
                .advice("Pause other memory, or lower memory_margin_bytes"),
        )
    }

    /// Memory for who knows no streams, where the thread is in a region; none where it is not.
    pub fn allocate_in_region(&self, device: c_int, bytes: u64) -> Option<Result<u64>> {
        let region = match current() {
            Ok(region) => region?,
            Err(error) => return Some(Err(error)),
        };
        let allocate = || {
            self.check_margin(device, bytes)?;
            self.allocate(Demand::of_block(
                kind(self)?,
                (device, bytes),
                (Stream::LEGACY, LastUse::Everywhere),
                region.tag,
            ))
        };
        Some(allocate())
    }

    /// Has files where the environment names a folder and the options do not.
    pub fn find_files_of_regions(&self) -> Result<()> {
        if !self.settings.text(Opt::SleepDir).is_empty() {
            return Ok(());
        }
        let Ok(folder) = std::env::var("TMS_DISK_BACKUP_DIR") else {
            return Ok(());
        };
        // The sleep says what is wrong with a folder that could not be made.
        let _ = std::fs::create_dir_all(&folder);
        self.settings
            .set(table::name(Opt::SleepDir), &folder)
            .map(|_| ())
    }
}
