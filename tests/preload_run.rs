//! `hbmalloc run`: what the program is given, what becomes of its end and of signals, and what is told of it.
#![allow(missing_docs)]

mod support;

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::{Language, Workbench, built};

const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int cudaMalloc(void **, unsigned long);
int cudaFree(void *);
int cudaMallocManaged(void **, unsigned long, unsigned);
int main(int count, char **arguments) {
    void *block = NULL;
    if (cudaMalloc(&block, 100ul << 20) != 0) return 5;
    if (count > 1 && strcmp(arguments[1], "quit") == 0) _exit(0);
    if (count > 1 && strcmp(arguments[1], "more") == 0) return cudaMalloc(&block, 1000ul << 20);
    if (count > 1 && strcmp(arguments[1], "managed") == 0)
        return cudaFree(block) || cudaMallocManaged(&block, 500ul << 20, 1) || cudaFree(block);
    if (count > 1 && fork() == 0) exit(0);
    return cudaFree(block);
}
"#;

/// As after installation: the command, and beside its folder the libraries.
fn installed(name: &str) -> (Workbench, PathBuf, PathBuf) {
    let bench = Workbench::new(name);
    let folder = bench.libraries().to_owned();
    support::place(
        &built("libhbmalloc_preload.so"),
        &folder.join("libhbmalloc_preload.so"),
    );
    bench
        .compiler(Language::C11)
        .args(["-std=gnu11", "-Wno-pedantic", "-shared", "-fPIC"])
        .args(["-Wl,-soname,libcudart.so.13", "preload/runtime.c", "-o"])
        .arg(folder.join("libcudart.so.13"))
        .args(["-ldl", "-lpthread"])
        .run();
    let source = bench.path("program.c");
    std::fs::write(&source, PROGRAM).unwrap();
    let program = bench.path("program");
    bench
        .compiler(Language::C11)
        .args(["-std=gnu11"])
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .arg(folder.join("libcudart.so.13"))
        .run();
    let command = PathBuf::from(env!("CARGO_BIN_EXE_hbmalloc"));
    (bench, command, program)
}

fn run(bench: &Workbench, command: &Path) -> Command {
    let mut run = Command::new(command);
    let folder = bench.libraries();
    run.arg("run")
        .env("HBMALLOC_LIBRARY", folder.join("libhbmalloc.so.0"))
        .env("HBMALLOC_DRIVER", "sim")
        .env("STAND_IN_DRIVER", folder.join("libhbmalloc_sim.so"))
        .env("LD_LIBRARY_PATH", folder)
        .env("TMPDIR", bench.path(""))
        .stdin(Stdio::null());
    run
}

/// The same, by a shell that has done what `before` says.
fn run_after(before: &str, bench: &Workbench, command: &Path) -> Command {
    let usual = run(bench, command);
    let mut shell = Command::new("bash");
    shell
        .args(["-c", &format!("{before}; exec \"$@\""), "bash"])
        .arg(command)
        .arg("run")
        .envs(
            usual
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stdin(Stdio::null());
    shell
}

/// The folders of reports that are still there.
fn folders_left(bench: &Workbench) -> Vec<String> {
    std::fs::read_dir(bench.path(""))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("hbmalloc-run"))
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ended(run: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = run.output().unwrap();
    (status.code(), text(&stdout), text(&stderr))
}

#[test]
fn what_a_program_held_is_told() {
    let (bench, command, program) = installed("run_held");
    let (code, out, told) = ended(run(&bench, &command).arg("--").arg(&program));
    assert_eq!((code, out.as_str()), (Some(0), ""), "{told}");
    assert!(told.starts_with("hbmalloc: program ("), "{told}");
    assert!(
        told.contains("device 0: held 1") && told.contains("100MiB of it in blocks; 1 allocations"),
        "{told}"
    );
    assert!(told.contains("1 frees"), "{told}");

    let of = |options: &[&str], part: &str| {
        let mut run = run(&bench, &command);
        run.arg("--stats").args(options).arg("--");
        let (code, _, told) = ended(run.arg(&program).arg(part));
        (code, told)
    };
    let limited = ["--limit", "512MiB", "--backend", "pool"];
    let (code, told) = of(&limited, "more");
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("limit 512MiB, 1 times out of memory"),
        "{told}"
    );

    // Each kind of memory had its most at another time, so the limit holds.
    let (code, told) = of(&limited, "managed");
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("held at most 1") && told.contains("MiB of pool, 500MiB of managed; 2"),
        "{told}"
    );

    // A child of a fork that has no allocation of its own tells nothing, nor twice what its parent told.
    let (_, told) = of(&[], "fork");
    assert_eq!(
        told.lines()
            .filter(|line| line.contains("device 0"))
            .count(),
        1,
        "{told}"
    );

    let (code, told) = of(&[], "quit");
    assert_eq!(code, Some(0));
    assert!(told.contains("ended without telling"), "{told}");
    assert_eq!(folders_left(&bench), [""; 0]);
}

#[test]
fn output_and_end_are_the_program_s() {
    let (bench, command, _) = installed("run_ends");
    let shell = |script: &str| {
        let mut run = run(&bench, &command);
        ended(run.args(["bash", "-c", script]))
    };
    assert_eq!(
        shell("echo out; echo err >&2; exit 7"),
        (Some(7), "out\n".into(), "err\n".into())
    );
    assert_eq!(shell("kill -KILL $$").0, Some(128 + 9));
    assert_eq!(shell("kill -SEGV $$").0, Some(128 + 11));
    let (code, out, _) = shell("echo $LD_PRELOAD; ls $HBMALLOC_RUN_REPORT");
    assert_eq!(code, Some(0));
    assert!(out.contains("libhbmalloc_preload.so\n"), "{out}");
    let (code, _, told) = ended(run(&bench, &command).arg("/no/such/program"));
    assert!(
        code == Some(127) && told.contains("No such file"),
        "{code:?} {told}"
    );
    let (code, _, told) = ended(run(&bench, &command).arg("/etc/passwd"));
    assert!(
        code == Some(126) && told.contains("ermission"),
        "{code:?} {told}"
    );
    for wrong in [
        &["--limit", "lots", "true"][..],
        &["--backend", "none", "true"],
        &[],
    ] {
        let (code, _, told) = ended(run(&bench, &command).args(wrong));
        assert!(
            code == Some(2) && told.contains("--help"),
            "{wrong:?} {code:?} {told}"
        );
    }
    let (code, _, told) = ended(
        run(&bench, &command)
            .env("HBMALLOC_LIBRARY", "/nowhere/libhbmalloc.so.0")
            .arg("true"),
    );
    assert!(
        code == Some(126) && told.contains("/nowhere/libhbmalloc_preload.so"),
        "{told}"
    );
}

#[test]
fn signals_reach_the_program() {
    let (bench, command, _) = installed("run_signals");
    for (name, signal, wanted) in [
        ("TERM", libc::SIGTERM, 3),
        ("HUP", libc::SIGHUP, 3),
        ("USR1", libc::SIGUSR1, 3),
    ] {
        let script = format!("trap 'exit 3' {name}; echo ready; while :; do sleep 0.01; done");
        let mut child = run(&bench, &command)
            .args(["bash", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        // SAFETY: sends a signal, to a child that is not waited for yet.
        unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(child.wait().unwrap().code(), Some(wanted), "{name}");
    }
    // What is ignored from the start, as by nohup, stays so for the program.
    let mut shell = run_after("trap '' HUP", &bench, &command);
    shell.args(["bash", "-c", "kill -HUP $$ $PPID; sleep 0.1; exit 4"]);
    assert_eq!(ended(&mut shell).0, Some(4));
    // What a terminal sends to both is left to the program.
    let mut child = run(&bench, &command)
        .args(["bash", "-c", "echo ready; sleep 0.5; exit 4"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    // SAFETY: as above.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn the_end_is_the_program_s_where_nothing_can_be_told() {
    let (bench, command, _) = installed("run_untold");
    let (open, closed) = UnixStream::pair().unwrap();
    drop(closed);
    let full = std::fs::File::options().write(true).open("/dev/full");
    for unwritable in [Stdio::from(full.unwrap()), Stdio::from(OwnedFd::from(open))] {
        let mut run = run(&bench, &command);
        run.args(["--stats", "--", "bash", "-c", "exit 3"]);
        let status = run.stderr(unwritable).status().unwrap();
        assert_eq!(status.code(), Some(3), "{status}");
        assert_eq!(folders_left(&bench), [""; 0]);
    }
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut run = run(&bench, &command);
    run.arg("/no/such/program").stderr(full.unwrap());
    assert_eq!(run.status().unwrap().code(), Some(127));
}

#[test]
fn ignored_signals_stay_ignored_for_the_program_alone() {
    let (bench, command, _) = installed("run_ignored");
    let mut ignoring = run_after("trap '' CHLD PIPE", &bench, &command);
    let (code, _, told) = ended(ignoring.args(["--", "bash", "-c", "exit 6"]));
    assert_eq!(code, Some(6), "{told}");
    let ask = ["grep", "SigIgn", "/proc/self/status"];
    for trap in ["trap '' CHLD", "trap '' PIPE", "trap '' CHLD PIPE HUP", ":"] {
        let direct = format!("{trap}; exec \"$@\"");
        let (_, wanted, _) = ended(Command::new("bash").args(["-c", &direct, "bash"]).args(ask));
        let (_, given, told) = ended(run_after(trap, &bench, &command).args(ask));
        assert_eq!(given, wanted, "{trap}: {told}");
    }
}

#[test]
fn options_end_where_the_program_begins() {
    let (bench, command, _) = installed("run_options");
    for wrong in [
        &["--bogus", "--", "true"][..],
        &["--bogus", "true"],
        &["--stats", "-x", "true"],
    ] {
        let (code, _, told) = ended(run(&bench, &command).args(wrong));
        let named = wrong
            .iter()
            .find(|word| told.contains(&format!("'{word}'")));
        assert!(
            code == Some(2) && named.is_some() && told.contains("--help"),
            "{wrong:?} {code:?} {told}"
        );
    }
    for (given, wanted) in [
        (
            &["echo", "--stats", "-x", "--", "y"][..],
            "--stats -x -- y\n",
        ),
        (&["--", "echo", "--bogus", "--", "y"], "--bogus -- y\n"),
        (&["--stats", "echo", "--limit", "1GiB"], "--limit 1GiB\n"),
    ] {
        let (code, out, told) = ended(run(&bench, &command).args(given));
        assert_eq!((code, out.as_str()), (Some(0), wanted), "{told}");
    }
    let odd = bench.path("-odd-name");
    std::fs::write(&odd, "#!/bin/sh\necho odd $1\n").unwrap();
    std::fs::set_permissions(&odd, Permissions::from_mode(0o755)).unwrap();
    let mut odd = run(&bench, &command);
    odd.env("PATH", bench.path(""))
        .args(["--", "-odd-name", "-x"]);
    assert_eq!(ended(&mut odd).1, "odd -x\n");
}
