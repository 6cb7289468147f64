//! torch_memory_saver's functions in the preload library: a program with the stand-in runtime, under LD_PRELOAD, on the
//! simulated driver.
#![allow(missing_docs)]

mod support;

use support::{Language, Run, Workbench, built};

fn bench_of(name: &str) -> (Workbench, std::path::PathBuf) {
    let bench = Workbench::new(name);
    let runtime = bench.libraries().join("libcudart.so.13");
    bench
        .compiler(Language::C11)
        .args(["-Wno-pedantic", "-Wno-strict-prototypes"])
        .args([
            "-Wno-deprecated-non-prototype",
            "-Wno-unknown-warning-option",
        ])
        .args(["-shared", "-fPIC", "preload/runtime.c", "-o"])
        .arg(&runtime)
        .args(["-Wl,-soname,libcudart.so.13", "-ldl"])
        .run();
    let program = bench.path("saver");
    bench
        .compiler(Language::C11)
        .args(["-Wno-pedantic", "preload/saver.c", "-o"])
        .arg(&program)
        .arg(&runtime)
        .args(["-lpthread", "-ldl"])
        .run();
    support::place(
        &built("libhbmalloc_preload.so"),
        &bench.libraries().join("libhbmalloc_preload.so"),
    );
    std::fs::create_dir_all(bench.path("files")).unwrap();
    (bench, program)
}

fn run(bench: &Workbench, program: &std::path::Path) -> Run {
    let libraries = bench.libraries();
    bench
        .run(program)
        .env("LD_PRELOAD", libraries.join("libhbmalloc_preload.so"))
        .env("LD_LIBRARY_PATH", libraries)
        .env("STAND_IN_DRIVER", libraries.join("libhbmalloc_sim.so"))
        .env("SAVER_FOLDER", bench.path("files"))
        .env("TMS_DISK_BACKUP_DIR", bench.path("files/made"))
}

#[test]
fn regions_pause_and_resume() {
    let (bench, program) = bench_of("preload_saver");
    let text = run(&bench, &program).succeeds();
    assert!(text.ends_with("done\n"), "{text}");
    assert!(bench.path("files/made").is_dir());
}

/// Its pool then has memory that cannot sleep; memory of regions is other memory.
#[test]
fn regions_sleep_whatever_the_backend_is() {
    let (bench, program) = bench_of("preload_saver_device");
    for (option, value) in [
        ("HBMALLOC_BACKEND", "device"),
        ("HBMALLOC_POOL_SOURCE", "device"),
    ] {
        run(&bench, &program).env(option, value).succeeds();
    }
}
