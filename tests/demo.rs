//! `hbmalloc demo` as a user runs it, on the simulated driver and with few events.
#![allow(missing_docs)]

use hbmalloc::source::Kind;
use std::process::{Command, Output};

const KINDS: usize = Kind::ALL.len();

fn backends() -> [&'static str; KINDS] {
    Kind::ALL.map(Kind::name)
}

fn demo(arguments: &[&str], sim: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hbmalloc"));
    command.arg("demo").args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HBMALLOC_") {
            command.env_remove(name);
        }
    }
    if let Some(spec) = sim {
        command.env("HBMALLOC_SIM", spec);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The number behind `"name":` in one JSON object.
fn number(object: &str, name: &str) -> u64 {
    let start = object.find(&format!("\"{name}\":")).expect(name) + name.len() + 3;
    let digits = object[start..].split(|c: char| !c.is_ascii_digit()).next();
    digits.unwrap().parse().expect(name)
}

#[test]
fn the_table_has_a_row_a_backend_and_says_that_it_is_simulated() {
    let output = demo(&["--events", "400"], None);
    let (table, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{table}{told}");
    for backend in backends() {
        let row = table
            .lines()
            .find(|line| line.starts_with(backend) && line.ends_with(" ok"));
        assert!(row.is_some(), "{backend}: {table}");
    }
    let first = table.lines().find(|line| line.ends_with(" ok")).unwrap();
    assert!(first.starts_with("pool "), "{table}");
    assert!(table.contains("The pool, the default, served"), "{table}");
    let (small, tight) = ("60 MiB more than is asked for", "HBMALLOC_WASTE=tight");
    assert!(table.contains(small) && table.contains(tight), "{table}");
    assert!(table.contains("How to read it"), "{table}");
    assert!(table.contains("All checks passed"), "{table}");
    assert!(told.contains("SIMULATED"), "{told}");
    let width = table.lines().map(|line| line.chars().count()).max();
    assert!(width <= Some(120) && table.lines().count() <= 40, "{table}");
}

#[test]
fn peaks_of_hbmalloc_and_of_the_simulator_agree() {
    let output = demo(&["--json", "--events", "600"], None);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let objects: Vec<&str> = lines.lines().collect();
    assert_eq!(objects.len(), KINDS, "{lines}");
    let checksum = |object: &str| object.split("\"crc32\":\"").nth(1).unwrap()[..8].to_owned();
    for (object, backend) in objects.iter().zip(backends()) {
        assert!(
            object.starts_with(&format!("{{\"backend\":\"{backend}\"")),
            "{object}"
        );
        assert!(object.contains("\"ok\":true") && object.contains("\"simulated\":true"));
        let held = number(object, "peak_held");
        assert_eq!(held, number(object, "peak_held_simulator"), "{object}");
        assert!(held >= number(object, "peak_requested"), "{object}");
        assert!(number(object, "driver_calls") > number(object, "blocks"));
        assert!(number(object, "driver_ns") > 0);
        assert_eq!(checksum(object), checksum(objects[0]));
    }
}

#[test]
fn a_call_that_fails_is_reported_for_its_backend_only() {
    let output = demo(
        &["--json", "--events", "300"],
        Some("fail=cuMemAlloc_v2:20:719"),
    );
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    let bad: Vec<&str> = lines
        .lines()
        .filter(|line| line.contains("\"ok\":false"))
        .collect();
    assert_eq!((lines.lines().count(), bad.len()), (KINDS, 1), "{lines}");
    assert!(
        bad[0].contains("\"backend\":\"device\"") && bad[0].contains("cuMemAlloc"),
        "{lines}"
    );
}

#[test]
fn a_byte_that_changed_is_found_on_every_backend() {
    let output = demo(&["--events", "300", "--damage", "5"], None);
    assert_eq!(output.status.code(), Some(1));
    let (table, told) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(table.matches("WRONG").count(), KINDS, "{table}");
    assert_eq!(
        told.matches("byte 3 is not what was written").count(),
        KINDS,
        "{told}"
    );
    assert_eq!(told.matches("the checksum is").count(), KINDS, "{told}");
}

#[test]
fn a_machine_that_cannot_serve_a_backend_says_so() {
    let output = demo(&["--json", "--events", "100"], Some("vmm=0"));
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    let bad: Vec<&str> = lines
        .lines()
        .filter(|line| line.contains("\"ok\":false"))
        .collect();
    assert_eq!(bad.len(), 1, "{lines}");
    assert!(bad[0].contains("\"backend\":\"vmm\""), "{lines}");
}

/// A folder with a `libcuda.so.1` that is the simulator, and a Python that says what it is asked.
fn machine_with_a_gpu(has_torch: bool) -> (std::path::PathBuf, std::path::PathBuf) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let name = format!("demo-gpu-{}-{has_torch}", std::process::id());
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let built = std::path::Path::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .parent()
        .unwrap();
    symlink(
        built.join("libhbmalloc_sim.so"),
        folder.join("libcuda.so.1"),
    )
    .unwrap();
    let answer = if has_torch {
        "yes"
    } else {
        "No module named torch"
    };
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -c ] && echo {answer} || echo \"ran $@ with $PYTHONPATH\"\n"
    );
    let python = folder.join("python");
    std::fs::write(&python, script).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    (folder, python)
}

#[test]
fn with_a_gpu_and_torch_python_takes_over() {
    let (folder, python) = machine_with_a_gpu(true);
    let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .arg("demo")
        .env_remove("HBMALLOC_DRIVER")
        .env("LD_LIBRARY_PATH", &folder)
        .env("HBMALLOC_PYTHON", python)
        .env("PYTHONPATH", "/somewhere")
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(
        said.starts_with("ran -m hbmalloc.demo_torch with /somewhere"),
        "{said}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn with_a_gpu_but_no_torch_the_simulator_is_used_and_the_reason_told() {
    let (folder, python) = machine_with_a_gpu(false);
    let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .args(["demo", "--damage", "1"])
        .env_remove("HBMALLOC_DRIVER")
        .env("HBMALLOC_SIM", "devices=1,fail=cuStreamCreate:1:1")
        .env("LD_LIBRARY_PATH", &folder)
        .env("HBMALLOC_PYTHON", python)
        .output()
        .unwrap();
    let told = text(&output.stderr);
    assert!(told.contains("No module named torch"), "{told}");
    assert!(told.contains("so the simulated driver is used"), "{told}");
    assert_eq!(output.status.code(), Some(1), "{told}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_driver_that_is_asked_for_by_name_and_missing_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .arg("demo")
        .env("HBMALLOC_DRIVER", "hip")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("HBMALLOC_DRIVER=hip, but"));
}

/// Whoever stops the demo stops all of it, also by a signal to the one process. Its children hold its
/// standard error, which ends when the last of them has.
#[test]
fn a_demo_that_is_stopped_leaves_no_process() {
    use std::io::{BufRead, BufReader, Read};
    let mut demo = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .args(["demo", "--sim"])
        .env("HBMALLOC_SIM", "delay_us=20000")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(demo.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with(&format!("[1/{KINDS}]")) {
        line.clear();
        assert_ne!(told.read_line(&mut line).unwrap(), 0, "it ended by itself");
    }
    // SAFETY: the process is a child of this one and has not been waited for.
    unsafe { libc::kill(demo.id() as i32, libc::SIGINT) };
    let stopped = std::time::Instant::now();
    told.read_to_end(&mut Vec::new()).unwrap();
    assert!(!demo.wait().unwrap().success());
    assert!(stopped.elapsed().as_secs() < 20, "a process went on");
}

#[test]
fn wrong_arguments_and_options_end_with_2() {
    assert_eq!(demo(&["--events", "0"], None).status.code(), Some(2));
    assert_eq!(demo(&["--steps"], None).status.code(), Some(2));
    let mut command = Command::new(env!("CARGO_BIN_EXE_hbmalloc"));
    command
        .args(["demo", "--sim"])
        .env("HBMALLOC_BACKEND", "nothing");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("HBMALLOC_BACKEND"));
}
