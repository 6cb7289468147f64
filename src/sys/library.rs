//! Shared libraries opened at run time and never closed, since a driver's threads and exit handlers
//! outlive every use of ours.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

/// An open shared library.
pub struct Library {
    handle: *mut c_void,
    path: PathBuf,
    /// The simulated driver answers for its own symbols, so that it can play an older driver.
    lookup: Option<unsafe extern "C" fn(*const c_char) -> *mut c_void>,
}

// SAFETY: a dlopen handle may be used from any thread.
unsafe impl Send for Library {}
// SAFETY: dlsym is thread-safe.
unsafe impl Sync for Library {}

impl Library {
    /// Opens `name`, a soname or a path: the copy already loaded where there is one. On failure,
    /// the loader's own text.
    pub fn open(name: &Path) -> Result<Library, String> {
        let c_name = CString::new(name.as_os_str().as_encoded_bytes())
            .map_err(|_| format!("{}: the name holds a zero byte", name.display()))?;
        let loaded = open_handle(
            &c_name,
            libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NOLOAD,
        );
        let handle = loaded
            .or_else(|| open_handle(&c_name, libc::RTLD_NOW | libc::RTLD_LOCAL))
            .ok_or_else(last_loader_error)?;
        let mut library = Library {
            handle,
            path: name.to_owned(),
            lookup: None,
        };
        library.lookup = library
            .symbol(c"hbmsim_symbol")
            // SAFETY: the simulator declares this symbol with this signature.
            .map(|address| unsafe { std::mem::transmute(address) });
        Ok(library)
    }

    /// The library, only if the process has it loaded already.
    pub fn loaded(name: &CStr) -> Option<Library> {
        let handle = open_handle(name, libc::RTLD_NOW | libc::RTLD_NOLOAD)?;
        Some(Library {
            handle,
            path: PathBuf::from(name.to_string_lossy().into_owned()),
            lookup: None,
        })
    }

    /// Those that the process has loaded from files whose names begin so, in the order in which they were.
    pub fn loaded_from(beginning: &str) -> Vec<Library> {
        let is_meant = |name: &CString| {
            let name = name.to_string_lossy();
            let file = name.rsplit('/').next();
            file.is_some_and(|file| file.starts_with(beginning))
        };
        let names = loaded_names().into_iter().filter(is_meant);
        names.filter_map(|name| Library::loaded(&name)).collect()
    }

    /// What the program and the libraries of its global scope export.
    pub fn of_program() -> Option<Library> {
        // SAFETY: without a name this is what is loaded already.
        let handle = unsafe { libc::dlopen(std::ptr::null(), libc::RTLD_NOW) };
        (!handle.is_null()).then(|| Library {
            handle,
            path: PathBuf::from("the program"),
            lookup: None,
        })
    }

    /// Whether the process has a library of that name loaded.
    pub fn is_loaded(name: &Path) -> bool {
        let name = CString::new(name.as_os_str().as_encoded_bytes());
        let handle = name.ok().and_then(|name| {
            open_handle(&name, libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NOLOAD)
        });
        if let Some(handle) = handle {
            // SAFETY: the handle was just opened; whoever loaded the library keeps it.
            unsafe { libc::dlclose(handle) };
        }
        handle.is_some()
    }

    /// The address of a symbol.
    pub fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        let address = match self.lookup {
            // SAFETY: `lookup` takes a C string and returns an address or null.
            Some(lookup) => unsafe { lookup(name.as_ptr()) },
            // SAFETY: the handle is open and stays so.
            None => unsafe { libc::dlsym(self.handle, name.as_ptr()) },
        };
        (!address.is_null()).then_some(address)
    }

    /// Under which name it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the simulated driver.
    pub fn is_simulator(&self) -> bool {
        self.lookup.is_some()
    }
}

fn open_handle(name: &CStr, flags: c_int) -> Option<*mut c_void> {
    // SAFETY: `name` is a C string; the library's initialisers are the driver's own.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    (!handle.is_null()).then_some(handle)
}

fn last_loader_error() -> String {
    // SAFETY: dlerror returns null or a string valid until the next call on this thread.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            "the loader gave no reason".to_owned()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }
}

/// Where the code at `address` was loaded to and from which file, if it is code of one.
fn origin(address: usize) -> Option<(usize, PathBuf)> {
    // SAFETY: an all-zero Dl_info is a valid out-argument.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: dladdr only compares the address with what is loaded.
    if unsafe { libc::dladdr(address as *const c_void, &mut info) } == 0 || info.dli_fname.is_null()
    {
        return None;
    }
    // SAFETY: dladdr filled in a C string owned by the loader.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = PathBuf::from(name.to_string_lossy().into_owned());
    Some((info.dli_fbase as usize, path))
}

/// The file from which the code at `address` was loaded, if it is code of one.
pub fn file_of(address: usize) -> Option<PathBuf> {
    let (_, mut path) = origin(address)?;
    // Of the program itself the loader knows what it was called by: where a shell found it by its
    // bare name, that says not where.
    if path.components().count() == 1 {
        path = PathBuf::from("/proc/self/exe");
    }
    Some(std::fs::canonicalize(&path).unwrap_or(path))
}

/// The size of the object that begins at `address`, where it is a symbol of a loaded library.
pub fn size_of_object(address: usize) -> Option<usize> {
    /// Asks for the symbol's entry.
    const RTLD_DL_SYMENT: c_int = 1;
    // SAFETY: an all-zero Dl_info is a valid out-argument.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    let mut entry: *mut c_void = std::ptr::null_mut();
    // SAFETY: both out-pointers are valid; the address is only compared.
    let found = unsafe {
        libc::dladdr1(
            address as *const c_void,
            &mut info,
            &mut entry,
            RTLD_DL_SYMENT,
        )
    };
    if found == 0 || entry.is_null() || info.dli_saddr as usize != address {
        return None;
    }
    // SAFETY: the loader pointed it at the symbol's entry, which stays as long as its library.
    Some(unsafe { (*entry.cast::<libc::Elf64_Sym>()).st_size } as usize)
}

/// A loaded library, other than the one this code is in, that exports a function of that name.
pub fn other_with(name: &CStr) -> Option<PathBuf> {
    let (here, _) = origin(other_with as *const () as usize)?;
    loaded_names().into_iter().find_map(|library| {
        let handle = open_handle(&library, libc::RTLD_NOW | libc::RTLD_NOLOAD)?;
        // SAFETY: the handle was just opened.
        let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
        let found = origin(address as usize).filter(|(base, _)| *base != here);
        // SAFETY: as above; the loader keeps the library for those who had it loaded.
        unsafe { libc::dlclose(handle) };
        found.map(|(_, path)| path)
    })
}

/// The names under which the process has libraries loaded.
fn loaded_names() -> Vec<CString> {
    unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _: usize, to: *mut c_void) -> c_int {
        // SAFETY: the loader passes a description that is valid for the call, and our own pointer.
        let (name, names) = unsafe { ((*info).dlpi_name, &mut *to.cast::<Vec<CString>>()) };
        if !name.is_null() {
            // SAFETY: a C string of the loader's.
            names.push(unsafe { CStr::from_ptr(name) }.to_owned());
        }
        0
    }
    let mut names: Vec<CString> = Vec::new();
    // SAFETY: `note` takes what the loader passes, and `names` outlives the call. Nothing is opened
    // from within, since the loader holds a lock meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(note), std::ptr::from_mut(&mut names).cast()) };
    // The program itself has no name, and opening that would give everything it can see.
    names.retain(|name| !name.is_empty());
    names
}
