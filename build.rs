//! Link arguments of the shared library: its soname, and that it is never unloaded, since torch
//! keeps function addresses from it until the very end of the process.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libhbmalloc.so.0");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
