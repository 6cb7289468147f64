//! Fork, exit, loading: calls return, nothing hangs, nothing crashes.
#![allow(missing_docs)]

mod support;

use std::path::PathBuf;
use support::{Language, Workbench};

#[test]
fn forks() {
    let bench = Workbench::new("lifetime_forks");
    let program = bench.program(Language::C11, "c/forks.c");
    bench.run(&program).succeeds();
}

#[test]
fn exits() {
    let bench = Workbench::new("lifetime_exits");
    let program = bench.program(Language::C11, "c/exits.c");
    print!("{}", bench.run(&program).succeeds());
}

#[test]
fn static_destructors() {
    let bench = Workbench::new("lifetime_destructors");
    let program = bench.program(Language::Cpp17, "cpp/static_destructor.cpp");
    for argument in ["up", "down"] {
        let text = bench.run(&program).arg(argument).succeeds();
        assert!(text.contains("static destructors: fine"), "{text}");
    }
}

/// A program that does not link with the library but opens it.
fn opener(bench: &Workbench, name: &str) -> PathBuf {
    let program = bench.path(name);
    bench
        .compiler(Language::C11)
        .args(["-I../include", &format!("c/loading/{name}.c"), "-o"])
        .arg(&program)
        .arg("-ldl")
        .run();
    program
}

#[test]
fn closed_and_opened_again() {
    let bench = Workbench::new("lifetime_reload");
    let program = opener(&bench, "reload");
    bench.run(&program).succeeds();
}

#[test]
fn loaded_twice_from_two_paths() {
    let bench = Workbench::new("lifetime_twice");
    let program = opener(&bench, "twice");
    let first = bench.libraries().join("libhbmalloc.so.0");
    let second = bench.path("copy/libhbmalloc.so.0");
    std::fs::create_dir_all(second.parent().unwrap()).unwrap();
    // A copy: a link would be the same file, which the loader takes for the same library.
    std::fs::copy(&first, &second).unwrap();
    let simulator = bench.libraries().join("libhbmalloc_sim.so");
    bench
        .run(&program)
        .arg(&first)
        .arg(&second)
        .env("HBMALLOC_DRIVER", &simulator)
        .succeeds();
}
