//! C++ programs: against `include/hbmalloc.h`, shared and static, and against `include/hbmalloc.hpp`, in each of
//! its standards and with sanitizers. What each checks is in `tests/cpp/`.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Language, Run, STATIC_LIBRARIES, Workbench, repository};

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

const STRICT: [&str; 2] = ["-std=c++17", "-Wshadow"];
const NEWER: [&str; 3] = ["-std=c++20", "-Wshadow", "-O2"];
const SANITIZED: [&str; 5] = [
    "-std=c++17",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
];

/// Programs of tests/cpp over hbmalloc.hpp that run by themselves.
const PROGRAMS: [&str; 5] = [
    "turbomind",
    "contexts",
    "allocators",
    "resources",
    "at_exit",
];

fn compiled(bench: &Workbench, name: &str, sources: &[&str], flags: &[&str]) -> PathBuf {
    let program = bench.path(name);
    bench
        .compiler(Language::Cpp17)
        .args(flags)
        .arg("-I../include")
        .args(sources)
        .arg("-o")
        .arg(&program)
        .args(bench.link_shared())
        .run();
    program
}

fn run_all(bench: &Workbench, flags: &[&str]) {
    for name in PROGRAMS {
        let program = compiled(bench, name, &[&format!("cpp/{name}.cpp")], flags);
        bench.run(&program).succeeds();
    }
}

#[test]
fn header_as_cpp17() {
    run_all(&Workbench::new("hpp_17"), &STRICT);
}

/// That of gpu-check, here on the simulated driver.
#[test]
fn arenas_of_device_memory() {
    let bench = Workbench::new("hpp_arenas");
    let program = compiled(&bench, "arena", &["gpu/arena.cpp"], &STRICT);
    bench.run(&program).succeeds();
}

#[test]
fn header_as_cpp20() {
    run_all(&Workbench::new("hpp_20"), &NEWER);
}

/// Whether the compiler can, which it says by an empty program.
fn can_compile(bench: &Workbench, compiler: &str, flags: &[&str]) -> bool {
    let source = bench.path("empty.cpp");
    std::fs::write(&source, "int main() {}\n").unwrap();
    let output = Command::new(compiler)
        .args(flags)
        .arg(&source)
        .arg("-o")
        .arg(bench.path("empty"))
        .output();
    output.is_ok_and(|output| output.status.success())
}

fn default_compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

#[test]
fn header_under_sanitizers() {
    let bench = Workbench::new("hpp_sanitized");
    if !can_compile(&bench, &default_compiler(), &SANITIZED) {
        println!("skipped: the C++ compiler has no address and undefined-behaviour sanitizers");
        return;
    }
    run_all(&bench, &SANITIZED);
    let program = bench.path("allocators");
    small_machine(&bench, &program).succeeds();
}

#[test]
fn header_with_clang() {
    let bench = Workbench::new("hpp_clang");
    if !can_compile(&bench, "clang++", &["-std=c++17"]) {
        println!("skipped: there is no clang++");
        return;
    }
    for name in PROGRAMS {
        let program = bench.path(name);
        let status = Command::new("clang++")
            .args(["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
            .args(["-I../include", &format!("cpp/{name}.cpp"), "-o"])
            .arg(&program)
            .args(bench.link_shared())
            .current_dir(repository().join("tests"))
            .status()
            .unwrap();
        assert!(status.success());
        bench.run(&program).succeeds();
    }
}

fn small_machine(bench: &Workbench, program: &Path) -> Run {
    let run = bench.run(program).arg("memory");
    run.env("HBMALLOC_SIM", "memory=1GiB")
}

#[test]
fn memory_runs_out() {
    let bench = Workbench::new("hpp_memory");
    let program = compiled(&bench, "allocators", &["cpp/allocators.cpp"], &STRICT);
    small_machine(&bench, &program).succeeds();
}

#[test]
fn no_driver() {
    let bench = Workbench::new("hpp_no_driver");
    let program = compiled(&bench, "no_driver", &["cpp/no_driver.cpp"], &STRICT);
    let text = bench
        .run(&program)
        .env("HBMALLOC_DRIVER", "cuda")
        .succeeds();
    print!("{text}");
}

#[test]
fn two_units_are_one_program() {
    let bench = Workbench::new("hpp_two_units");
    let sources = ["cpp/two_units/first.cpp", "cpp/two_units/second.cpp"];
    let program = compiled(&bench, "two_units", &sources, &STRICT);
    bench.run(&program).succeeds();
}

#[test]
fn without_types_at_run_time() {
    let bench = Workbench::new("hpp_no_rtti");
    let flags = [&STRICT[..], &["-fno-rtti"]].concat();
    let program = compiled(&bench, "no_rtti", &["cpp/no_rtti.cpp"], &flags);
    bench.run(&program).succeeds();
}

/// What is mostly of no interest to one program must be found by one that asks for it: hidden symbols are the
/// default of many projects, and the state of the header is one all the same.
#[test]
fn one_state_with_hidden_symbols() {
    let bench = Workbench::new("hpp_hidden");
    bench
        .compiler(Language::Cpp17)
        .args(STRICT)
        .args(["-I../include", "-shared", "-fPIC", "-fvisibility=hidden"])
        .args(["-DEXPORTED=__attribute__((visibility(\"default\")))"])
        .args(["cpp/two_units/second.cpp", "-o"])
        .arg(bench.libraries().join("libsecond.so"))
        .args(bench.link_shared())
        .run();
    let program = bench.path("first");
    bench
        .compiler(Language::Cpp17)
        .args(STRICT)
        .args(["-I../include", "-fvisibility=hidden"])
        .args(["cpp/two_units/first.cpp", "-o"])
        .arg(&program)
        .args(bench.link_shared())
        .arg("-lsecond")
        .run();
    bench.run(&program).succeeds();
}

/// Folders with <cuda/memory_resource> and with the headers of the CUDA runtime: those that HBMALLOC_CUDA_INCLUDE
/// names, or those of a toolkit. `scripts/cuda-headers` fetches them.
fn cuda_includes() -> Vec<PathBuf> {
    let named = std::env::var("HBMALLOC_CUDA_INCLUDE").unwrap_or_default();
    let fetched = repository().join("target/cuda-headers");
    let toolkit = Path::new("/usr/local/cuda/include");
    let folders: Vec<PathBuf> = if !named.is_empty() {
        named.split(':').map(PathBuf::from).collect()
    } else if fetched.is_dir() {
        vec![fetched.join("cccl"), fetched]
    } else {
        vec![toolkit.join("cccl"), toolkit.to_owned()]
    };
    folders
        .into_iter()
        .filter(|folder| folder.is_dir())
        .collect()
}

#[test]
fn resources_of_cccl() {
    let bench = Workbench::new("hpp_cccl");
    let includes: Vec<String> = cuda_includes()
        .iter()
        .map(|folder| format!("-isystem{}", folder.display()))
        .collect();
    let flags: Vec<&str> = STRICT
        .into_iter()
        .chain(includes.iter().map(String::as_str))
        .collect();
    let program = compiled(&bench, "cccl", &["cpp/cccl.cpp"], &flags);
    print!("{}", bench.run(&program).succeeds());
}

/// Compiled only: it needs a GPU to run.
#[test]
fn rmm_over_our_memory_compiles() {
    let folder = repository().join("target/rmm");
    if !folder.join("librmm").is_dir() {
        println!("skipped: no RMM in target/rmm, where scripts/rmm-upstream puts it");
        return;
    }
    let bench = Workbench::new("hpp_rmm");
    let includes = [
        "librmm/include/rapids",
        "librmm/include",
        "rapids_logger/include",
        "nvidia/cu13/include",
    ];
    bench
        .compiler(Language::Cpp17)
        .args([
            "-std=c++20",
            "-DLIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE",
        ])
        .arg("-I../include")
        .args(includes.map(|name| format!("-isystem{}", folder.join(name).display())))
        .args(["-c", "cpp/rmm_upstream.cpp", "-o"])
        .arg(bench.path("rmm_upstream.o"))
        .run();
}

#[test]
fn the_bench_of_pairs_runs() {
    let bench = Workbench::new("hpp_bench");
    let program = compiled(&bench, "pairs", &["../benches/cpp/pairs.cpp"], &STRICT);
    let text = bench.run(&program).arg("2").arg("100").succeeds();
    assert!(text.contains("pool") && text.contains("arena"), "{text}");
}
