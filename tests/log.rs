//! The log as a user of the command sees it: levels, parts, files, bad values.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

use std::process::{Command, Output};

fn doctor(variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .arg("doctor")
        .env("HBMALLOC_DRIVER", "sim")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn at_info_one_line_tells_version_backend_driver_and_devices() {
    let text = stderr(&doctor(&[("HBMALLOC_LOG", "info")]));
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("INFO")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    for part in [
        env!("CARGO_PKG_VERSION"),
        "backend pool",
        "driver 13.0",
        "2 device(s)",
    ] {
        assert!(lines[0].contains(part), "{text}");
    }
}

#[test]
fn by_default_nothing_is_written() {
    assert_eq!(stderr(&doctor(&[])), "");
    assert_eq!(
        stderr(&doctor(&[
            ("HBMALLOC_LOG", "off"),
            ("HBMALLOC_BAKEND", "vmm")
        ])),
        ""
    );
}

#[test]
fn an_unknown_variable_warns_with_the_nearest_name() {
    let text = stderr(&doctor(&[("HBMALLOC_BAKEND", "vmm")]));
    assert!(
        text.contains("WARN") && text.contains("HBMALLOC_BACKEND"),
        "{text}"
    );
}

#[test]
fn parts_have_levels_of_their_own() {
    let text = stderr(&doctor(&[("HBMALLOC_LOG", "off,process=info")]));
    assert!(text.contains("INFO process"), "{text}");
    let text = stderr(&doctor(&[("HBMALLOC_LOG", "info,process=off")]));
    assert!(!text.contains("INFO process"), "{text}");
}

#[test]
fn a_log_file_gets_the_lines_and_a_bad_one_a_warning() {
    let path = std::env::temp_dir().join(format!("hbmalloc-log-{}", std::process::id()));
    let name = path.to_str().unwrap();
    let output = doctor(&[("HBMALLOC_LOG", "info"), ("HBMALLOC_LOG_FILE", name)]);
    assert_eq!(stderr(&output), "");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(text.contains("backend pool"), "{text}");
    let output = doctor(&[("HBMALLOC_LOG_FILE", "/nowhere/at/all")]);
    assert!(
        stderr(&output).contains("/nowhere/at/all"),
        "{}",
        stderr(&output)
    );
    assert!(output.status.success());
}

#[test]
fn a_bad_option_is_exit_status_2_and_says_what_is_accepted() {
    for (variable, value) in [
        ("HBMALLOC_BACKEND", "fast"),
        ("HBMALLOC_LOG", "loud"),
        ("HBMALLOC_PREFETCH_THRESHOLD", "-1"),
        ("HBMALLOC_DRIVER", "nvidia"),
        ("HBMALLOC_VMM_LOCATION", "host_numa:x"),
    ] {
        let output = doctor(&[(variable, value)]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(2), "{variable}: {text}");
        for part in [variable, value, "Accepted:"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn without_a_driver_the_doctor_says_what_is_missing() {
    let output = doctor(&[("HBMALLOC_DRIVER", "/nowhere/libcuda.so.1")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success());
    assert!(
        text.contains("/nowhere/libcuda.so.1") && text.contains("HBMALLOC_DRIVER=sim"),
        "{text}"
    );
}
