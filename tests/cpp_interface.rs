//! A C++17 program against `include/hbmalloc.h`, shared and static.
#![allow(missing_docs)]

mod support;

use support::{Language, STATIC_LIBRARIES, Workbench};

#[test]
fn shared() {
    let bench = Workbench::new("cpp_shared");
    let program = bench.program(Language::Cpp17, "cpp/interface.cpp");
    bench.run(&program).succeeds();
}

#[test]
fn mem_alloc() {
    let bench = Workbench::new("cpp_mem_alloc");
    let program = bench.program(Language::Cpp17, "cpp/mem_alloc.cpp");
    bench.run(&program).succeeds();
}

#[test]
fn linked_statically() {
    let bench = Workbench::new("cpp_static");
    let program = bench.path("interface");
    bench
        .compiler(Language::Cpp17)
        .args(["-I../include", "cpp/interface.cpp", "-o"])
        .arg(&program)
        .arg(bench.libraries().join("libhbmalloc.a"))
        .args(STATIC_LIBRARIES)
        .run();
    let simulator = "libhbmalloc_sim.so";
    support::place(&support::built(simulator), &bench.path(simulator));
    bench.run(&program).succeeds();
}
