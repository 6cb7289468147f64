//! The one libhbmalloc of the process, found and never loaded a second time: two copies would be two
//! records of who holds what.

use std::ffi::{CStr, CString, c_char, c_int, c_ulonglong, c_void};
use std::sync::OnceLock;

/// hbm_cell_t.
#[repr(C)]
#[derive(Default)]
pub struct Cell {
    pub struct_size: usize,
    pub serial: u64,
    pub address: u64,
    pub bytes: u64,
    pub handle_address: u64,
    pub device: i32,
    pub is_mapped: i32,
    pub is_callers: i32,
    pub is_asleep: i32,
    pub chunk_bytes: u64,
}

impl Cell {
    pub fn new() -> Cell {
        Cell {
            struct_size: size_of::<Cell>(),
            ..Cell::default()
        }
    }
}

type Change = unsafe extern "C" fn(c_ulonglong, isize, u64, *mut u64) -> c_int;

macro_rules! functions {
    ($($field:ident: $type:ty = $name:literal;)*) => {
        /// What this module calls.
        pub struct Library { $(pub $field: $type,)* }

        impl Library {
            /// # Safety
            /// `handle` must be of libhbmalloc, and never be closed.
            unsafe fn resolve(handle: *mut c_void) -> Result<Library, String> {
                Ok(Library { $(
                    $field: {
                        // SAFETY: passed on to the caller.
                        let address = unsafe { symbol(handle, $name)? };
                        // SAFETY: the header of the library declares the function so.
                        unsafe { std::mem::transmute::<*mut c_void, $type>(address) }
                    },
                )* })
            }
        }
    };
}

functions! {
    version: unsafe extern "C" fn() -> c_int = c"hbm_version";
    last_error: unsafe extern "C" fn() -> *const c_char = c"hbm_last_error";
    ensure_context: unsafe extern "C" fn(c_ulonglong) -> c_int = c"hbm_ensure_context";
    create_and_map: Change = c"hbm_create_and_map";
    unmap_and_release: Change = c"hbm_unmap_and_release";
    cell_reserve: unsafe extern "C" fn(c_int, isize, *mut c_void, *mut Cell) -> c_int = c"hbm_cell_reserve";
    cell_free: unsafe extern "C" fn(u64) -> c_int = c"hbm_cell_free";
    cell_describe: unsafe extern "C" fn(u64, *mut Cell) -> c_int = c"hbm_cell_describe";
}

/// # Safety
/// `handle` must be what dlopen gave.
unsafe fn symbol(handle: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: passed on to the caller.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    match address.is_null() {
        true => Err(format!(
            "the libhbmalloc of this process does not export {}: it and this module are of different releases, use the two of one",
            name.to_string_lossy()
        )),
        false => Ok(address),
    }
}

/// The name that every build of the library has inside.
const SONAME: &CStr = c"libhbmalloc.so.0";

static FOUND: OnceLock<Library> = OnceLock::new();

impl Library {
    /// The library, once it was found; looked for among what is loaded where nobody has imported us.
    pub fn get() -> Option<&'static Library> {
        if FOUND.get().is_none() {
            let _ = Library::find(None);
        }
        FOUND.get()
    }

    /// Finds the library loaded from `path`, or loaded under the name that it has inside.
    pub fn find(path: Option<&CStr>) -> Result<&'static Library, String> {
        if let Some(found) = FOUND.get() {
            return Ok(found);
        }
        let mut names = path.into_iter().chain([SONAME]);
        let handle = names.find_map(|name| {
            // SAFETY: a C string; nothing is loaded, so no code runs.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
            (!handle.is_null()).then_some(handle)
        });
        let Some(handle) = handle else {
            return Err("libhbmalloc is not loaded in this process: import hbmalloc first, from the same installation as this module".to_owned());
        };
        // SAFETY: `handle` is what dlopen gave and is never closed.
        let library = unsafe { Library::resolve(handle)? };
        library.check_version()?;
        Ok(FOUND.get_or_init(|| library))
    }

    fn check_version(&self) -> Result<(), String> {
        // SAFETY: takes nothing.
        let theirs = unsafe { (self.version)() };
        let ours = env!("CARGO_PKG_VERSION");
        let mut parts = ours.split('.').map(|part| part.parse().unwrap_or(0));
        let (major, minor): (i32, i32) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if (theirs / 10_000, theirs / 100 % 100) == (major, minor) {
            return Ok(());
        }
        Err(format!(
            "the libhbmalloc of this process is version {}.{}.{} and this module is of {ours}: use the two of one release",
            theirs / 10_000,
            theirs / 100 % 100,
            theirs % 100
        ))
    }

    /// The text of this thread's last error.
    pub fn last_error(&self) -> CString {
        // SAFETY: the text is valid until the thread's next error, and copied here.
        unsafe { CStr::from_ptr((self.last_error)()) }.to_owned()
    }
}
