//! `hbmalloc replay` as a user runs it, on the simulated driver with small traces.
#![allow(missing_docs)]

mod support;

use hbmalloc::source::Kind;
use std::process::Command;
use support::replay::{COLUMNS, Folder, MIB, SMALL, command, number, replay, text, value};

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

/// Two streams' worth of the same program in RMM's words; the pointers' values do not matter.
const RMM: &str = "Thread,Time,Action,Pointer,Size,Stream
7,10:00:00:000001,allocate,0x7f0000000000,1048576,0x0
7,10:00:00:000002,allocate,0x7f0000200000,3145728,0x55d0
7,10:00:00:000003,allocate failure,(nil),99999999999,0x55d0
7,10:00:00:000004,free,0x7f0000000000,1048576,0x0
7,10:00:00:000005,allocate,0x7f0000000000,2097152,0x0
7,10:00:00:000006,free,0x7f0000200000,3145728,0x55d0
";

#[test]
fn a_log_of_rmm_gives_the_same_figures() {
    let folder = Folder::new("rmm");
    let ours = folder.file("ours.csv", &format!("{COLUMNS}{SMALL}"));
    let theirs = folder.file("theirs.csv", RMM);
    let output = replay(&["--json", "--backend", "vmm", &ours, &theirs]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let objects: Vec<&str> = lines.lines().collect();
    for name in ["peak_requested", "peak_reserved", "driver_calls", "pairs"] {
        assert_eq!(value(objects[0], name), value(objects[1], name), "{name}");
    }
    assert_eq!(value(objects[1], "trace"), "\"theirs\"");
}

/// Blocks that come and go one after another on one stream.
fn one_after_another(count: usize) -> String {
    let events = (0..count).map(|at| format!("a,{at},2097152,0,0\nf,{at},2097152,0,0\n"));
    format!("{COLUMNS}{}", events.collect::<String>())
}

#[test]
fn with_a_lag_memory_is_in_use_that_many_events_longer() {
    let folder = Folder::new("lag");
    let trace = folder.file("steps.csv", &one_after_another(100));
    let held = |lag: &str| {
        let output = replay(&["--json", "--backend", "vmm", "--lag", lag, &trace]);
        let object = text(&output.stdout);
        assert!(output.status.success(), "{object}{}", text(&output.stderr));
        assert_eq!(value(&object, "lag"), lag);
        if lag != "0" {
            assert_eq!(value(&object, "forced_waits"), "0");
        }
        number(&object, "peak_reserved") as u64 / (2 * MIB)
    };
    // The order point of a free covers work of the free itself, which is `lag` events behind.
    assert_eq!(
        [held("0"), held("4"), held("16"), held("40")],
        [1, 3, 9, 21]
    );
}

#[test]
fn a_call_that_waits_for_lagging_work_is_let_through_and_counted() {
    let folder = Folder::new("waits");
    let trace = folder.file("steps.csv", &one_after_another(5));
    // Freeing plain device memory waits for all work of the device.
    let output = replay(&["--json", "--backend", "device", "--lag", "1000", &trace]);
    let object = text(&output.stdout);
    assert!(output.status.success(), "{object}{}", text(&output.stderr));
    assert_eq!(value(&object, "forced_waits"), "5");
    assert_eq!(number(&object, "peak_reserved") as u64, 2 * MIB);
}

/// A real program's events, sizes scaled down, tensors handed from stream to stream.
const RECORDING: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/bin/hbmalloc/demo/train.csv.gz"
);

#[test]
fn a_real_program_runs_on_every_backend_with_and_without_a_lag() {
    let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    // What waits for all work in every free is let through each time, which takes too long here.
    let lagging: Vec<&str> = (names.iter().copied())
        .filter(|name| !["device", "managed", "pinned"].contains(name))
        .collect();
    for (names, lag) in [(names, "0"), (lagging, "30")] {
        let output = replay(&[
            "--json",
            "--lag",
            lag,
            "--backend",
            &names.join(","),
            RECORDING,
        ]);
        let (lines, told) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{lines}{told}");
        assert_eq!(lines.lines().count(), names.len());
        for (object, name) in lines.lines().zip(names) {
            assert_eq!(value(object, "backend"), format!("\"{name}\""));
            assert!(object.ends_with("\"problems\":[]}"), "{object}");
            assert!(number(object, "ratio") >= 1.0 && number(object, "host_ms") > 0.0);
        }
    }
}

/// The simulated driver lies beside the command, wherever a shell found that.
#[test]
fn the_command_works_by_its_bare_name() {
    let folder = Folder::new("bare");
    let trace = folder.file("small.csv", &format!("{COLUMNS}{SMALL}"));
    let built = std::path::Path::new(env!("CARGO_BIN_EXE_hbmalloc"));
    let mut command = Command::new("hbmalloc");
    command
        .args(["replay", &trace])
        .env("PATH", built.parent().unwrap())
        .env("HBMALLOC_DRIVER", "sim")
        .current_dir(&folder.0);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_table_names_the_machine_and_says_that_it_is_simulated() {
    let folder = Folder::new("table");
    let trace = folder.file("small.csv", &format!("{COLUMNS}{SMALL}"));
    let output = replay(&["--backend", "vmm,async", "--repeat", "3", &trace]);
    let table = text(&output.stdout);
    assert!(output.status.success(), "{table}{}", text(&output.stderr));
    let machine = table.lines().next().unwrap();
    assert!(
        machine.contains("Simulated H200") && machine.ends_with("SIMULATED"),
        "{machine}"
    );
    assert!(table.contains("medians of 3 runs"), "{table}");
    let row = |backend: &str| {
        let starts = format!("{:12} {backend}", "small");
        table
            .lines()
            .find(|line| line.starts_with(&starts))
            .expect(backend)
    };
    assert!(row("vmm").contains(" 6.0  1.200 "), "{table}");
    assert!(row("async").contains(" 32.0  6.400 "), "{table}");
    let width = table.lines().map(|line| line.chars().count()).max();
    assert!(width <= Some(120), "{table}");
}

/// The coordinates of each drawn line, a list a line.
fn drawn(svg: &str) -> Vec<Vec<(f64, f64)>> {
    let paths = svg
        .split("<path d=\"M")
        .skip(1)
        .filter(|path| path.contains("stroke-width=\"1.5\""));
    let point = |text: &str| {
        let (x, y) = text.split_once(' ').unwrap();
        (x.parse().unwrap(), y.parse().unwrap())
    };
    paths
        .map(|path| {
            path.split('"')
                .next()
                .unwrap()
                .split('L')
                .map(point)
                .collect()
        })
        .collect()
}

#[test]
fn the_plot_shows_what_was_asked_for_and_held_after_every_event() {
    let folder = Folder::new("plot");
    let trace = folder.file("small.csv", &format!("{COLUMNS}{SMALL}"));
    let picture = folder.0.join("memory.svg");
    let output = replay(&[
        "--backend",
        "vmm",
        "--plot",
        picture.to_str().unwrap(),
        &trace,
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let svg = std::fs::read_to_string(picture).unwrap();
    let lines = drawn(&svg);
    assert_eq!(lines.len(), 3, "{svg}");
    assert!(lines.iter().all(|line| line.len() == 5), "{svg}");
    // From the top: 6 MiB held, and 40 pixels a MiB.
    let heights = |line: &[(f64, f64)]| -> Vec<f64> {
        line.iter().map(|(_, y)| (280.0 - y) / 40.0).collect()
    };
    assert_eq!(heights(&lines[2]), [1.0, 4.0, 3.0, 5.0, 2.0]);
    assert_eq!(heights(&lines[0])[..2], [2.0, 6.0]);
    let png = folder.0.join("memory.png");
    for python in ["/bin/false", "/no/such/python"] {
        let output = command(&["--plot", png.to_str().unwrap(), &trace])
            .env("HBMALLOC_PYTHON", python)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let told = text(&output.stderr);
        assert!(told.contains(&format!("{python} cannot draw it")), "{told}");
        assert!(
            told.contains("a name that ends in .svg needs no Python"),
            "{told}"
        );
        assert!(
            output.stdout.is_empty() && !png.exists(),
            "found out after the replays"
        );
    }
}

#[test]
fn a_replay_that_runs_out_of_memory_says_so() {
    let folder = Folder::new("full");
    let trace = folder.file("small.csv", &format!("{COLUMNS}{SMALL}"));
    for backend in ["pool", "vmm", "device"] {
        let output = command(&["--json", "--backend", backend, &trace])
            .env("HBMALLOC_SIM", "devices=1,memory=4MiB")
            .output()
            .unwrap();
        let lines = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{lines}");
        assert!(
            lines.contains("out of memory") && lines.contains(". Free blocks"),
            "{lines}"
        );
        assert!(!lines.contains("unsupported"), "{lines}");
    }
}

/// Whoever stops the command stops all of it, also by a signal to the one process. Its children hold
/// its standard error, which ends when the last of them has.
#[test]
fn a_replay_that_is_stopped_leaves_no_process() {
    use std::io::{BufRead, BufReader, Read};
    let folder = Folder::new("stopped");
    let trace = folder.file("steps.csv", &one_after_another(200_000));
    let mut child = command(&["--backend", "vmm", "--lag", "100", &trace])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("steps, vmm") {
        line.clear();
        assert_ne!(told.read_line(&mut line).unwrap(), 0, "it ended by itself");
    }
    // SAFETY: the process is a child of this one and has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let stopped = std::time::Instant::now();
    told.read_to_end(&mut Vec::new()).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(stopped.elapsed().as_secs() < 5, "a process went on");
}

#[test]
fn bad_files_and_arguments_end_with_2_and_a_reason() {
    let folder = Folder::new("bad");
    let good = folder.file("good.csv", &format!("{COLUMNS}{SMALL}"));
    let bad = folder.file("bad.csv", &format!("{COLUMNS}a,1,2,0\n"));
    let empty = folder.file("empty.csv", COLUMNS);
    let missing = folder.0.join("missing.csv");
    let cases: [(&[&str], &str); 10] = [
        (&[&bad], "bad.csv, line 2: 5 fields were expected"),
        (&[&good, &empty], "empty.csv: no events"),
        (&[missing.to_str().unwrap()], "missing.csv: No such file"),
        (&["--backend", "none", &good], "no such backend"),
        (&["--repeat", "0", &good], "--repeat"),
        (&["--lag", "x", &good], "--lag"),
        (&["--plot", "x.gif", &good], ".svg or .png"),
        (
            &["--plot", "/proc/none/x.svg", &good],
            "/proc/none/x.svg: No such file",
        ),
        (&["--waste", "much", &good], "waste"),
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
