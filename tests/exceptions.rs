//! Failures raised as torch's exceptions, in C++ programs that hold stand-ins of torch's libraries
//! under their names: `libc10.so` with the base class, another with the memory error.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use support::{Language, STATIC_LIBRARIES, Workbench};

/// The symbol by which the constructor of torch's error is found.
const CONSTRUCTOR: &str =
    "_ZN3c105ErrorC1ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";

fn program(bench: &Workbench, arguments: &[&str], link: &[&str]) -> PathBuf {
    let program = bench.path("raise");
    let folder = bench.libraries().to_str().unwrap();
    bench
        .compiler(Language::Cpp17)
        .args(["-I../include", "cpp/raise.cpp"])
        .args(arguments)
        .arg("-o")
        .arg(&program)
        .args([&format!("-L{folder}"), "-Wl,--no-as-needed"])
        .args(link)
        .arg("-lpthread")
        .run();
    program
}

fn run(bench: &Workbench, program: &Path) {
    print!("{}", bench.run(program).succeeds());
}

/// A folder with the stand-in of libc10.so and that of the library that knows the memory error.
fn with_torch(name: &str, memory_error: &str) -> Workbench {
    let bench = Workbench::new(name);
    bench.shared_library("libc10.so", "cpp/fake_torch/c10.cpp", &[]);
    bench.shared_library(memory_error, "cpp/fake_torch/torch.cpp", &["-lc10"]);
    bench
}

#[test]
fn torchs_memory_error_is_raised() {
    let bench = with_torch("raise_cuda", "libtorch_cuda.so");
    run(
        &bench,
        &program(&bench, &[], &["-lhbmalloc", "-ltorch_cuda", "-lc10"]),
    );
}

#[test]
fn torchs_memory_error_is_found_in_its_python_library_too() {
    let bench = with_torch("raise_python", "libtorch_python.so");
    run(
        &bench,
        &program(&bench, &[], &["-lhbmalloc", "-ltorch_python", "-lc10"]),
    );
}

#[test]
fn torchs_memory_error_is_raised_from_a_static_library() {
    let bench = with_torch("raise_static", "libtorch_cuda.so");
    let archive = bench.libraries().join("libhbmalloc.a");
    let mut link = vec![archive.to_str().unwrap(), "-ltorch_cuda", "-lc10"];
    link.extend(STATIC_LIBRARIES);
    let program = program(&bench, &[], &link);
    let simulator = "libhbmalloc_sim.so";
    support::place(&support::built(simulator), &bench.path(simulator));
    run(&bench, &program);
}

#[test]
fn without_torchs_memory_error_it_is_a_runtime_error() {
    let bench = Workbench::new("raise_no_memory_error");
    bench.shared_library("libc10.so", "cpp/fake_torch/c10.cpp", &[]);
    run(
        &bench,
        &program(&bench, &["-DNO_MEMORY_ERROR"], &["-lhbmalloc", "-lc10"]),
    );
}

#[test]
fn without_torch_there_is_null_and_the_last_error() {
    let bench = Workbench::new("raise_no_torch");
    run(&bench, &program(&bench, &["-DNO_TORCH"], &["-lhbmalloc"]));
}

#[test]
fn the_stand_in_has_torchs_symbols() {
    let bench = with_torch("raise_symbols", "libtorch_cuda.so");
    let symbols = |name: &str| {
        let output = std::process::Command::new("nm")
            .args(["-D", "--defined-only"])
            .arg(bench.libraries().join(name))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(symbols("libc10.so").contains(&format!("T {CONSTRUCTOR}\n")));
    assert!(!symbols("libc10.so").contains("16OutOfMemoryErrorE"));
    assert!(symbols("libtorch_cuda.so").contains("V _ZTIN3c1016OutOfMemoryErrorE\n"));
    assert!(symbols("libtorch_cuda.so").contains("V _ZTVN3c1016OutOfMemoryErrorE\n"));
}
