//! `hbmalloc replay` as a user runs it, on the simulated driver with small traces.
#![allow(missing_docs)]

use std::path::PathBuf;
use std::process::{Command, Output};

const MIB: u64 = 1 << 20;
const COLUMNS: &str = "op,id,size,stream,t_us\n";

/// Five MiB asked for at most, in blocks of virtual memory that take two, four and two.
const SMALL: &str =
    "a,1,1048576,0,0\na,2,3145728,1,5\nf,1,1048576,0,9\na,3,2097152,0,10\nf,2,3145728,1,11\n";

/// A folder of its own for one test, gone when it ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("replay-{name}-{}", std::process::id());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hbmalloc"));
    command.arg("replay").args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HBMALLOC_") {
            command.env_remove(name);
        }
    }
    command.env("HBMALLOC_DRIVER", "sim");
    command
}

fn replay(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The value behind `"name":` in one JSON object.
fn value<'a>(object: &'a str, name: &str) -> &'a str {
    let start = object.find(&format!("\"{name}\":")).expect(name) + name.len() + 3;
    object[start..].split([',', '}']).next().unwrap()
}

fn number(object: &str, name: &str) -> f64 {
    let text = value(object, name);
    text.parse().unwrap_or_else(|_| panic!("{name}: {text}"))
}

#[test]
fn the_figures_of_a_small_trace_are_exact() {
    let folder = Folder::new("exact");
    let trace = folder.file("small.csv", &format!("{COLUMNS}{SMALL}"));
    let output = replay(&["--json", "--backend", "vmm,device", &trace]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let objects: Vec<&str> = lines.lines().collect();
    assert_eq!(objects.len(), 2, "{lines}");
    for (object, backend, held) in [
        (objects[0], "vmm", 6 * MIB),
        (objects[1], "device", 5 * MIB),
    ] {
        let begins = format!(
            "{{\"trace\":\"small\",\"backend\":\"{backend}\",\"driver\":\"sim\",\"peak_requested\":{},\"peak_reserved\":{held},\"ratio\":",
            5 * MIB
        );
        assert!(object.starts_with(&begins), "{object}");
        assert_eq!(number(object, "ratio"), held as f64 / (5 * MIB) as f64);
        assert_eq!(number(object, "pairs"), 2.0);
        assert!(object.ends_with("\"problems\":[]}"), "{object}");
        let names = [
            "pair_ns_p50",
            "pair_ns_p99",
            "host_ms",
            "driver_calls",
            "driver_ms",
        ];
        let places = names.map(|name| object.find(&format!("\"{name}\":")).expect(name));
        assert!(places.is_sorted(), "{object}");
        assert!(number(object, "pair_ns_p50") <= number(object, "pair_ns_p99"));
    }
    // Three allocations of 27 us each and two frees of 24 us, on the virtual clock.
    let device = objects[1];
    assert_eq!(number(device, "driver_calls"), 5.0);
    let driver_ms = number(device, "driver_ms");
    assert!((0.129..0.135).contains(&driver_ms), "{driver_ms}");
}

#[test]
fn a_call_that_fails_fails_the_replay_of_its_backend() {
    let folder = Folder::new("fails");
    let trace = folder.file("small.csv", &format!("{COLUMNS}{SMALL}"));
    let output = command(&["--json", "--backend", "device,vmm", &trace])
        .env("HBMALLOC_SIM", "fail=cuMemAlloc_v2:2:719")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    let objects: Vec<&str> = lines.lines().collect();
    assert_eq!(value(objects[0], "peak_reserved"), "null");
    assert!(objects[0].contains("cuMemAlloc"), "{lines}");
    assert!(objects[1].ends_with("\"problems\":[]}"), "{lines}");
}

#[test]
fn bad_files_and_arguments_end_with_2_and_a_reason() {
    let folder = Folder::new("bad");
    let good = folder.file("good.csv", &format!("{COLUMNS}{SMALL}"));
    let bad = folder.file("bad.csv", &format!("{COLUMNS}a,1,2,0\n"));
    let empty = folder.file("empty.csv", COLUMNS);
    let missing = folder.0.join("missing.csv");
    let cases: [(&[&str], &str); 6] = [
        (&[&bad], "bad.csv, line 2: 5 fields were expected"),
        (&[&good, &empty], "empty.csv: no events"),
        (&[missing.to_str().unwrap()], "missing.csv: No such file"),
        (&["--backend", "none", &good], "no such backend"),
        (&["--repeat", "0", &good], "--repeat"),
        (&[], "TRACE"),
    ];
    for (arguments, reason) in cases {
        let output = replay(arguments);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains(reason), "{arguments:?}: {told}");
        assert!(output.stdout.is_empty());
    }
}
