//! The suites of `hbmalloc selftest` on the simulated driver, each in a process of its own: a case
//! may need the driver as it is right after it was opened.
#![allow(missing_docs)]

mod support;

use std::process::Command;

fn selftest(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .arg("selftest")
        .args(arguments)
        .env("HBMALLOC_DRIVER", support::built("libhbmalloc_sim.so"))
        .output()
        .unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

fn passes(suite: &str) {
    let (code, text) = selftest(&[suite]);
    assert_eq!(code, Some(0), "\n{text}");
    assert!(text.contains(" passed, 0 failed, "), "\n{text}");
    println!("{text}");
}

#[test]
fn driver() {
    passes("driver");
}

#[test]
fn ranges() {
    passes("ranges");
}

#[test]
fn sources() {
    passes("sources");
}

#[test]
fn process() {
    passes("process");
}

#[test]
fn pool() {
    passes("pool");
}

#[test]
fn residency() {
    passes("residency");
}

#[test]
fn faults() {
    passes("faults");
}

/// Short, unless `HBMALLOC_STRESS_SECONDS` says otherwise.
#[test]
fn stress() {
    passes("stress");
}

#[test]
fn an_unknown_suite_is_named_with_those_there_are() {
    let (code, text) = selftest(&["nothing"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("\"nothing\"") && text.contains("driver"),
        "{text}"
    );
}

#[test]
fn cases_are_listed_without_a_driver() {
    let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .args(["selftest", "--list"])
        .env("HBMALLOC_DRIVER", "/nothing/here.so")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("driver: "));
}
