//! The answer to cudnn.benchmark's question, in C++ programs that hold stand-ins of torch's allocator
//! under its names.
#![allow(missing_docs)]

mod support;

use support::{Language, Workbench};

fn bench(name: &str) -> Workbench {
    let bench = Workbench::new(name);
    bench.shared_library("libc10_cuda.so", "cpp/fake_torch/c10_cuda.cpp", &[]);
    let class = "cpp/fake_torch/torch_cuda.cpp";
    bench.shared_library("libtorch_cuda.so", class, &["-lc10_cuda"]);
    bench
}

fn run(bench: &Workbench, arguments: &[&str], libraries: &[&str]) {
    let program = bench.path("cache_info");
    bench
        .compiler(Language::Cpp17)
        // As torch's own libraries: a program built otherwise has copies of the class's table.
        .args(["-fPIC", "-I../include", "cpp/cache_info.cpp"])
        .args(arguments)
        .arg("-o")
        .arg(&program)
        .args([
            &format!("-L{}", bench.libraries().display()),
            "-Wl,--no-as-needed",
        ])
        .args(libraries)
        .run();
    print!("{}", bench.run(&program).succeeds());
}

#[test]
fn the_pluggable_allocator_answers() {
    let libraries = ["-lhbmalloc", "-ltorch_cuda", "-lc10_cuda"];
    run(&bench("cache_info"), &[], &libraries);
}

#[test]
fn another_allocator_is_left_alone() {
    let libraries = ["-lhbmalloc", "-ltorch_cuda", "-lc10_cuda"];
    run(&bench("cache_info_native"), &["-DNATIVE"], &libraries);
}

#[test]
fn a_torch_without_the_class_is_left_alone() {
    let bench = bench("cache_info_no_class");
    run(&bench, &["-DNO_CLASS"], &["-lhbmalloc", "-lc10_cuda"]);
}

#[test]
fn the_stand_in_has_torchs_symbols() {
    let bench = bench("cache_info_symbols");
    let symbols = |name: &str| {
        let output = std::process::Command::new("nm")
            .args(["-D", "--defined-only"])
            .arg(bench.libraries().join(name))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let class = "5torch4cuda22CUDAPluggableAllocator22CUDAPluggableAllocator";
    let torch = symbols("libtorch_cuda.so");
    assert!(torch.contains(&format!("V _ZTVN{class}E\n")), "{torch}");
    assert!(
        torch.contains(&format!("T _ZN{class}9cacheInfoEaPm\n")),
        "{torch}"
    );
    assert!(
        symbols("libc10_cuda.so").contains("B _ZN3c104cuda20CUDACachingAllocator9allocatorE\n")
    );
}
