//! What the shared library shows to the world, pinned: a symbol that appears or goes is seen in review,
//! and nothing but the C library is needed to load it.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use support::{built, repository};

fn output(program: &str, arguments: &[&str]) -> String {
    let library = built("libhbmalloc.so");
    let output = Command::new(program)
        .args(arguments)
        .arg(&library)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; this test needs binutils"));
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn exported() -> BTreeSet<String> {
    output("nm", &["-D", "--defined-only"])
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .map(str::to_owned)
        .collect()
}

/// The values of the dynamic section's entries of one tag.
fn dynamic(tag: &str) -> Vec<String> {
    let tag = format!("({tag})");
    output("readelf", &["-dW"])
        .lines()
        .filter_map(|line| Some(line.split_once(&tag)?.1))
        .map(|value| {
            let value = value.rsplit_once(": ").map_or(value, |(_, name)| name);
            value.trim_matches(|c: char| c.is_whitespace() || "[]".contains(c))
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn exports_are_the_pinned_ones() {
    let path = repository().join("tests/exports.txt");
    let found: Vec<String> = exported().into_iter().collect();
    if std::env::var_os("HBMALLOC_UPDATE_EXPORTS").is_some() {
        fs::write(&path, found.join("\n") + "\n").unwrap();
    }
    let pinned = fs::read_to_string(&path).unwrap();
    let pinned: Vec<&str> = pinned.lines().collect();
    assert!(
        found == pinned,
        "exported now:\n{}\nrun `HBMALLOC_UPDATE_EXPORTS=1 cargo test --test exports` if that is meant, and look at the difference: a symbol that goes breaks programs",
        found.join("\n")
    );
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect()
}

#[test]
fn every_export_is_declared_in_the_header_and_called_by_the_c_programs() {
    let header = fs::read_to_string(repository().join("include/hbmalloc.h")).unwrap();
    let programs: String = fs::read_dir(repository().join("tests/c"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    for symbol in exported() {
        assert!(
            words(&header).contains(&*symbol),
            "{symbol} is not in hbmalloc.h"
        );
        assert!(
            words(&programs).contains(&*symbol),
            "no program of tests/c calls {symbol}"
        );
    }
}

#[test]
fn it_is_named_by_its_soname_and_never_unloaded() {
    assert_eq!(dynamic("SONAME"), ["libhbmalloc.so.0"]);
    assert!(
        dynamic("FLAGS_1").concat().contains("NODELETE"),
        "{:?}",
        dynamic("FLAGS_1")
    );
    assert!(dynamic("RPATH").is_empty() && dynamic("RUNPATH").is_empty());
}

#[test]
fn it_needs_nothing_but_the_c_library() {
    // Before glibc 2.34 threads, dlopen and timers were libraries of their own.
    const ALLOWED: [&str; 6] = [
        "libc.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libpthread.so.0",
        "libdl.so.2",
        "librt.so.1",
    ];
    let needed = dynamic("NEEDED");
    assert!(needed.contains(&"libc.so.6".to_owned()), "{needed:?}");
    for name in needed {
        assert!(
            ALLOWED.contains(&&*name) || name.starts_with("ld-linux"),
            "the library needs {name}"
        );
    }
}
