//! Programs under the preload library: of CUDA's runtime, which is a stand-in over the simulated driver here, and of none.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::{Language, Run, Workbench, built};

struct Preloaded {
    bench: Workbench,
    library: PathBuf,
}

impl Preloaded {
    fn new(name: &str) -> Preloaded {
        let bench = Workbench::new(name);
        let library = bench.libraries().join("libhbmalloc_preload.so");
        support::place(&built("libhbmalloc_preload.so"), &library);
        let preloaded = Preloaded { bench, library };
        preloaded.stand_in("libcudart.so.13");
        preloaded
    }

    /// A stand-in for the runtime of that name.
    fn stand_in(&self, name: &str) {
        self.bench
            .compiler(Language::C11)
            .args(["-std=gnu11", "-Wno-pedantic", "-shared", "-fPIC"])
            .args([&format!("-Wl,-soname,{name}"), "preload/runtime.c", "-o"])
            .arg(self.bench.libraries().join(name))
            .args(["-ldl", "-lpthread"])
            .run();
    }

    /// A program of the runtime, whose functions would be found there first; the library's own it finds in the one that is
    /// preloaded.
    fn program(&self, source: &str, runtime: &str) -> PathBuf {
        let program = self
            .bench
            .path(Path::new(source).file_stem().unwrap().to_str().unwrap());
        self.bench
            .compiler(Language::C11)
            .args(["-std=gnu11", "-I../include", source, "-o"])
            .arg(&program)
            .arg(self.bench.libraries().join(runtime))
            .arg(&self.library)
            .args(["-lpthread", "-ldl"])
            .run();
        program
    }

    fn run(&self, program: &Path) -> Run {
        self.bench
            .run(program)
            .env("LD_PRELOAD", &self.library)
            .env(
                "STAND_IN_DRIVER",
                self.bench.libraries().join("libhbmalloc_sim.so"),
            )
    }
}

#[test]
fn memory_of_the_runtime() {
    let preloaded = Preloaded::new("preload_memory");
    let program = preloaded.program("preload/memory.c", "libcudart.so.13");
    let run = preloaded
        .run(&program)
        .env("HBMALLOC_SIM", "devices=2,memory=4GiB")
        .env("HBMALLOC_LIMIT", "1GiB");
    run.succeeds();
}

#[test]
fn what_a_free_orders_against() {
    let preloaded = Preloaded::new("preload_order");
    let program = preloaded.program("preload/order.c", "libcudart.so.13");
    for waste in ["balanced", "tight"] {
        let run = preloaded.run(&program).env("HBMALLOC_WASTE", waste);
        run.env("HBMALLOC_SIM", "devices=3,memory=4GiB").succeeds();
    }
}

#[test]
fn whatever_memory_is_taken_from() {
    let preloaded = Preloaded::new("preload_backends");
    let program = preloaded.program("preload/backends.c", "libcudart.so.13");
    for backend in ["pool", "device", "managed", "async", "vmm", "pinned"] {
        let run = preloaded.run(&program).env("HBMALLOC_BACKEND", backend);
        run.env("HBMALLOC_SIM", "devices=1,memory=4GiB").succeeds();
    }
}

#[test]
fn two_runtimes_in_one_process() {
    let preloaded = Preloaded::new("preload_two");
    preloaded.stand_in("libcudart.so.12");
    let program = preloaded.program("preload/two.c", "libcudart.so.12");
    for when in ["before", "after"] {
        let run = preloaded.run(&program).arg(when);
        run.env("HBMALLOC_SIM", "devices=2,memory=4GiB").succeeds();
    }
}

/// What a shell or another program finds of a run: its output and how it ended.
fn outcome(program: &str, arguments: &[&str], library: Option<&Path>) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("LD_PRELOAD");
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    command
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[test]
fn programs_of_no_gpu_are_left_alone() {
    let library = built("libhbmalloc_preload.so");
    const TREE: &str = env!("CARGO_MANIFEST_DIR");
    const MAKE: [&str; 3] = ["--no-print-directory", "-C", TREE];
    let make = |arguments: &[&'static str]| [&MAKE[..], arguments].concat();
    let (setup, dry, removed) = (
        make(&["setup"]),
        make(&["--dry-run", "test"]),
        make(&["uninstall", "DESTDIR=/nowhere"]),
    );
    let programs: [(&str, &[&str]); 10] = [
        ("/bin/true", &[]),
        ("/bin/false", &[]),
        (
            "bash",
            &[
                "-c",
                "echo out; echo err >&2; (exit 3); for i in 1 2; do /bin/echo $i; done; exit 7",
            ],
        ),
        (
            "python3",
            &[
                "-c",
                "import ctypes, threading, subprocess, sys; print(sys.version); subprocess.run(['/bin/echo', 'x'])",
            ],
        ),
        ("python3", &["-c", "import sys; sys.exit(9)"]),
        ("git", &["--version"]),
        ("git", &["-C", TREE, "log", "--oneline", "-3"]),
        ("make", &setup),
        ("make", &dry),
        ("make", &removed),
    ];
    for (program, arguments) in programs {
        let alone = outcome(program, arguments, None);
        let under = outcome(program, arguments, Some(&library));
        assert_eq!(alone, under, "{program} {arguments:?}");
    }
}

/// The names of other libraries' functions are not taken, and no library of CUDA or of C++ is needed.
#[test]
fn it_exports_what_it_serves_and_needs_little() {
    let library = built("libhbmalloc_preload.so");
    let read = |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.push(library.to_str().unwrap());
        String::from_utf8(outcome("readelf", &all, None).stdout).unwrap()
    };
    for line in read(&["-W", "--dyn-syms"]).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [
            _,
            _,
            _,
            "FUNC" | "OBJECT",
            "GLOBAL" | "WEAK",
            "DEFAULT",
            section,
            name,
        ] = words[..]
        else {
            continue;
        };
        let is_ours = ["hbm_", "cuda", "tms_", "set_memory_margin_bytes"];
        let is_known = section == "UND" || is_ours.iter().any(|prefix| name.starts_with(prefix));
        assert!(is_known, "{name} is exported");
    }
    let dynamic = read(&["-d"]);
    for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        let known = [
            "libc.so",
            "libgcc_s.so",
            "ld-linux",
            "libm.so",
            "libdl.so",
            "libpthread.so",
        ];
        assert!(known.iter().any(|name| line.contains(name)), "{line}");
    }
}
