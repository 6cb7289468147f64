//! C11 programs against `include/hbmalloc.h`, linked as users link them and run on the simulated
//! driver. What each checks is in `tests/c/`.
#![allow(missing_docs)]

mod support;

use support::{Language, STATIC_LIBRARIES, Workbench, repository};

/// Programs that need nothing but the library.
const PROGRAMS: [&str; 20] = [
    "across_devices",
    "allocators",
    "arena",
    "cells",
    "copies",
    "graphs",
    "host",
    "host_kinds",
    "limits",
    "memory_saver",
    "objects",
    "placed_pool",
    "wrong_use",
    "process",
    "sharing",
    "residency",
    "stats",
    "streams",
    "tags",
    "torch_entries",
];

fn run_shared(program: &str) {
    let bench = Workbench::new(&format!("c_shared_{program}"));
    let built = bench.program(Language::C11, &format!("c/{program}.c"));
    bench.run(&built).succeeds();
}

#[test]
fn allocators() {
    run_shared("allocators");
}

#[test]
fn arena() {
    run_shared("arena");
}

#[test]
fn objects() {
    run_shared("objects");
}

#[test]
fn cells() {
    run_shared("cells");
}

#[test]
fn copies() {
    run_shared("copies");
}

#[test]
fn across_devices() {
    run_shared("across_devices");
}

#[test]
fn wrong_use() {
    run_shared("wrong_use");
}

#[test]
fn process() {
    run_shared("process");
}

#[test]
fn residency() {
    run_shared("residency");
}

/// Alone: its definitions of system calls are not for others.
#[test]
fn files() {
    run_shared("files");
}

/// Alone, as the one above.
#[test]
fn host_faults() {
    run_shared("host_faults");
}

#[test]
fn graphs() {
    run_shared("graphs");
}

#[test]
fn limits() {
    run_shared("limits");
}

#[test]
fn memory_saver() {
    run_shared("memory_saver");
}

#[test]
fn placed_pool() {
    run_shared("placed_pool");
}

#[test]
fn host() {
    run_shared("host");
}

#[test]
fn host_kinds() {
    run_shared("host_kinds");
}

#[test]
fn sharing() {
    run_shared("sharing");
}

#[test]
fn tags() {
    run_shared("tags");
}

#[test]
fn stats() {
    run_shared("stats");
}

#[test]
fn streams() {
    run_shared("streams");
}

#[test]
fn torch_entries() {
    run_shared("torch_entries");
}

#[test]
fn linked_statically_with_nothing_but_c_libraries() {
    let bench = Workbench::new("c_static");
    // The simulator is looked for beside the code, which here is the program.
    let simulator = "libhbmalloc_sim.so";
    support::place(&support::built(simulator), &bench.path(simulator));
    for name in PROGRAMS {
        let program = bench.path(name);
        bench
            .compiler(Language::C11)
            .args(["-I../include", &format!("c/{name}.c"), "-o"])
            .arg(&program)
            .arg(bench.libraries().join("libhbmalloc.a"))
            .args(STATIC_LIBRARIES)
            // Debug information is most of the archive.
            .arg("-Wl,--strip-debug")
            .run();
        bench
            .run(&program)
            .env("LD_LIBRARY_PATH", bench.path(""))
            .succeeds();
    }
}

#[test]
fn a_program_built_against_an_older_header() {
    let bench = Workbench::new("c_older");
    let program = bench.path("older");
    bench
        .compiler(Language::C11)
        .args(["-Ic/older", "c/older/older.c", "-o"])
        .arg(&program)
        .args(bench.link_shared())
        .run();
    bench.run(&program).succeeds();
}

#[test]
fn a_program_built_against_a_newer_header() {
    let bench = Workbench::new("c_newer");
    let program = bench.program(Language::C11, "c/newer/newer.c");
    bench.run(&program).succeeds();
}

#[test]
fn pkg_config_says_what_a_static_link_needs() {
    let text = std::fs::read_to_string(repository().join("scripts/hbmalloc.pc.in")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Libs.private: "))
        .unwrap();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        STATIC_LIBRARIES
    );
}
