//! The programs of `benches/peers/` that need nothing but the simulated driver, and `hbmalloc bench`:
//! with hardly any work, so that only what they say is checked, not how long it took.
#![allow(missing_docs)]

mod support;

use std::process::{Command, Output};
use support::{Language, Workbench, built, repository};

/// A benchmark and its cases.
const BENCHES: [(&str, &[&str]); 6] = [
    (
        "steady",
        &[
            "512 B",
            "4 KiB",
            "32 KiB",
            "1 MiB",
            "2 MiB",
            "16 MiB",
            "64 MiB",
            "4 KiB, 200 streams",
        ],
    ),
    ("holes", &["8 KiB"]),
    ("random", &["60 live"]),
    ("remote", &["512 B", "8 KiB"]),
    (
        "threads",
        &[
            "1 thread",
            "2",
            "4",
            "8",
            "16",
            "16, 32 held each",
            "16 on one stream",
        ],
    ),
    ("cold", &["first 1 GiB", "second"]),
];

struct Programs {
    workbench: Workbench,
}

impl Programs {
    fn compile(name: &str, sources: &[&str]) -> Programs {
        let workbench = Workbench::new(name);
        for source in sources {
            workbench.program(Language::Cpp17, &format!("../benches/peers/{source}.cpp"));
        }
        Programs { workbench }
    }

    /// Runs one benchmark; its exit status and lines.
    fn run(&self, program: &str, allocator: &str, bench: &str) -> (bool, Vec<String>) {
        let libraries = self.workbench.libraries();
        let run = (self.workbench.run(&self.workbench.path(program)))
            .arg("--allocator")
            .arg(allocator)
            .arg("--bench")
            .arg(bench)
            .arg("--driver")
            .arg(libraries.join("libhbmalloc_sim.so"))
            .arg("--library")
            .arg(libraries.join("libhbmalloc.so.0"));
        let few = [
            "--reps",
            "2",
            "--batch-ms",
            "0.5",
            "--live",
            "60",
            "--holes",
            "20",
        ];
        let (status, text) = few
            .into_iter()
            .fold(run, |run, argument| run.arg(argument))
            .outcome();
        (status.success(), text.lines().map(str::to_owned).collect())
    }

    fn every_benchmark(&self, program: &str, allocator: &str) {
        for (bench, cases) in BENCHES {
            let (success, lines) = self.run(program, allocator, bench);
            assert!(success, "{allocator} {bench}: {lines:?}");
            let told: Vec<String> = lines.iter().map(|line| string(line, "case")).collect();
            assert_eq!(told, cases, "{allocator} {bench}");
            for line in &lines {
                assert_eq!(string(line, "allocator"), allocator);
                sane(line);
            }
        }
    }
}

/// The text behind `"name":"`.
fn string(line: &str, name: &str) -> String {
    let start = format!("\"{name}\":\"");
    let at = line
        .find(&start)
        .unwrap_or_else(|| panic!("{name}: {line}"));
    line[at + start.len()..]
        .split('"')
        .next()
        .unwrap()
        .to_owned()
}

fn number(line: &str, name: &str) -> f64 {
    let start = format!("\"{name}\":");
    let at = line
        .find(&start)
        .unwrap_or_else(|| panic!("{name}: {line}"));
    let digits = line[at + start.len()..].split([',', '}']).next();
    digits
        .unwrap()
        .parse()
        .unwrap_or_else(|_| panic!("{name}: {line}"))
}

fn sane(line: &str) {
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    assert_eq!(line.matches('"').count() % 2, 0, "{line}");
    let figures = ["ns_min", "ns_median", "ns_max"].map(|name| number(line, name));
    assert!(figures[0] > 0.0 && figures.is_sorted(), "{line}");
}

#[test]
fn hbmalloc_by_both_interfaces() {
    let programs = Programs::compile("bench_hbmalloc", &["hbmalloc"]);
    let mut kinds = vec!["async", "vmm"];
    if hbmalloc::source::Kind::from_name("pool").is_some() {
        kinds.push("pool");
    }
    for kind in kinds {
        programs.every_benchmark("hbmalloc", kind);
        programs.every_benchmark("hbmalloc", &format!("{kind}/torch"));
    }
}

#[test]
fn the_driver_by_itself() {
    let programs = Programs::compile("bench_driver", &["driver"]);
    programs.every_benchmark("driver", "cuMemAlloc");
    programs.every_benchmark("driver", "cuMemAllocAsync");
    let (success, lines) = programs.run("driver", "none", "random");
    assert!(success && lines.len() == 1, "{lines:?}");
    sane(&lines[0]);
}

#[test]
fn what_cannot_be_measured_says_why() {
    let programs = Programs::compile("bench_refusals", &["hbmalloc", "driver"]);
    for (program, allocator, bench, reason) in [
        ("hbmalloc", "none_such", "steady", "none_such"),
        ("hbmalloc", "none_such/torch", "steady", "none_such_malloc"),
        ("hbmalloc", "async", "none_such", "none_such"),
        ("driver", "none", "cold", "no memory"),
        ("driver", "words", "cold", "no memory"),
        ("driver", "scattered", "cold", "no memory"),
        ("driver", "cudaMallocAsync", "steady", "cudaSetDevice"),
    ] {
        let (success, lines) = programs.run(program, allocator, bench);
        assert!(!success && lines.len() == 1, "{lines:?}");
        assert!(string(&lines[0], "skipped").contains(reason), "{lines:?}");
    }
}

/// A folder with the shared library and the simulator, both of this build.
fn command(workbench: &Workbench, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hbmalloc"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HBMALLOC_") {
            command.env_remove(name);
        }
    }
    let libraries = workbench.libraries();
    command
        .args(["bench", "--reps", "2", "--batch-ms", "1", "--live", "50"])
        .args(arguments)
        .env("HBMALLOC_DRIVER", libraries.join("libhbmalloc_sim.so"))
        .env("HBMALLOC_LIBRARY", libraries.join("libhbmalloc.so.0"))
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_command_prints_tables() {
    let workbench = Workbench::new("bench_tables");
    let output = command(
        &workbench,
        &["--kinds", "async", "--only", "steady,remote,cold"],
    );
    let (tables, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{tables}{told}");
    assert!(tables.contains("SIMULATED"), "{tables}");
    assert!(
        tables.contains("skipped: the driver is simulated"),
        "{tables}"
    );
    for row in ["hbmalloc async, C", "hbmalloc async, torch entry"] {
        let rows = tables
            .lines()
            .filter(|line| line.starts_with(&format!("| {row} ")));
        assert_eq!(rows.count(), 3, "{tables}");
    }
    let rows = tables.lines().filter(|line| line.starts_with("| nothing"));
    assert_eq!(
        rows.count(),
        2,
        "a cold start of nothing is nothing: {tables}"
    );
}

#[test]
fn the_command_prints_json() {
    let workbench = Workbench::new("bench_json");
    let output = command(
        &workbench,
        &[
            "--json",
            "--ours",
            "--kinds",
            "async",
            "--only",
            "random,cold",
        ],
    );
    let lines = text(&output.stdout);
    assert!(output.status.success(), "{lines}{}", text(&output.stderr));
    let lines: Vec<&str> = lines.lines().collect();
    assert!(lines[0].contains("\"machine\":true") && lines[0].contains("\"simulated\":true"));
    let cases: Vec<String> = (lines[1..].iter())
        .map(|line| string(line, "allocator") + " " + &string(line, "case"))
        .collect();
    let expected = [
        "async 50 live",
        "async/torch 50 live",
        "none 50 live",
        "words 50 live",
        "scattered 50 live",
        "async first 1 GiB",
        "async second",
        "async/torch first 1 GiB",
        "async/torch second",
    ];
    assert_eq!(cases, expected);
    for line in &lines[1..] {
        assert_eq!(number(line, "reps"), 2.0, "{line}");
        sane(line);
    }
}

#[test]
fn a_program_that_does_not_compile_is_skipped_with_the_reason() {
    let workbench = Workbench::new("bench_no_compiler");
    let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .args(["bench", "--only", "steady"])
        .env(
            "HBMALLOC_DRIVER",
            workbench.libraries().join("libhbmalloc_sim.so"),
        )
        .env("HBMALLOC_LIBRARY", built("libhbmalloc.so"))
        .env("CXX", "no-such-compiler")
        .output()
        .unwrap();
    let told = text(&output.stdout);
    assert!(
        told.contains("no-such-compiler") && told.contains("set CXX"),
        "{told}"
    );
}

#[test]
fn what_would_measure_nothing_is_a_wrong_use() {
    let workbench = Workbench::new("bench_nothing");
    for argument in ["--pairs", "--reps", "--batch-ms", "--live"] {
        let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
            .args(["bench", "--only", "sources", argument, "0"])
            .env(
                "HBMALLOC_DRIVER",
                workbench.libraries().join("libhbmalloc_sim.so"),
            )
            .output()
            .unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(
            told.contains(&format!("invalid value '0' for '{argument}")),
            "{told}"
        );
    }
    let output = command(&workbench, &["--only", "sources", "--pairs", "1"]);
    let (table, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{table}{told}");
    assert!(table.contains("1 GiB"), "{table}");
}

#[test]
fn torch_on_the_simulator_is_skipped_with_the_reason() {
    let workbench = Workbench::new("bench_torch_simulated");
    let output = command(&workbench, &["--only", "torch"]);
    let (table, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{table}{told}");
    assert!(
        table.contains("torch: skipped: PyTorch does not run on the simulated driver"),
        "{table}"
    );
    assert!(
        !table.contains("torch.empty") && !told.contains("measured"),
        "{table}{told}"
    );
    let output = command(&workbench, &["--only", "torch", "--json"]);
    let lines = text(&output.stdout);
    assert!(
        lines.contains("{\"bench\":\"torch\",\"skipped\":\"PyTorch does not"),
        "{lines}"
    );
}

#[test]
fn an_error_names_the_path_and_the_call_that_failed() {
    let workbench = Workbench::new("bench_errors");
    let output = command(
        &workbench,
        &["--only", "steady", "--build", "/proc/none/here"],
    );
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        told,
        "hbmalloc bench: /proc/none/here: No such file or directory (os error 2)\n"
    );
    let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .args(["bench", "--only", "sources", "--pairs", "1"])
        .env(
            "HBMALLOC_DRIVER",
            workbench.libraries().join("libhbmalloc_sim.so"),
        )
        .env("HBMALLOC_SIM", "devices=1,memory=64MiB")
        .output()
        .unwrap();
    let told = text(&output.stderr);
    assert!(
        told.contains("hbmalloc bench: cuMemAlloc_v2: out of memory (driver code 2"),
        "{told}"
    );
    assert!(!told.contains("unsupported"), "{told}");
}

#[test]
fn a_bench_that_is_stopped_leaves_nothing() {
    for (signal, name) in [(libc::SIGINT, "bench_int"), (libc::SIGTERM, "bench_term")] {
        let workbench = Workbench::new(&format!("{name}_libraries"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_hbmalloc"));
        command
            .args(["bench", "--only", "steady"])
            .env(
                "HBMALLOC_DRIVER",
                workbench.libraries().join("libhbmalloc_sim.so"),
            )
            .env(
                "HBMALLOC_LIBRARY",
                workbench.libraries().join("libhbmalloc.so.0"),
            );
        support::stopped_while_compiling(name, command, signal);
    }
}

#[test]
fn every_source_travels_in_the_command() {
    let folder = repository().join("benches/peers");
    let embedded = ["bench/programs.rs", "replay/peers.rs"].map(|file| {
        std::fs::read_to_string(repository().join("src/bin/hbmalloc").join(file)).unwrap()
    });
    let embedded = embedded.concat();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_source = [".cpp", ".hpp", ".c"].iter().any(|end| name.ends_with(end));
        assert!(
            !is_source || embedded.contains(&format!("\"{name}\"")),
            "{name}"
        );
    }
}
