//! Drivers that are not the newest: older versions, missing functions, other machines. Played by
//! the simulator; the command stands for a program.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

use hbmalloc::sys::cuda::Cuda;
use hbmalloc::sys::hip;
use std::process::{Command, Output};

fn bench(sim: &str, variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .args(["bench", "--only", "sources", "--pairs", "3"])
        .env("HBMALLOC_DRIVER", "sim")
        .env("HBMALLOC_SIM", sim)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn cuda_12_2_to_13_serve_every_source() {
    for version in [12_020, 12_040, 12_080, 13_000, 13_010] {
        let output = bench(&format!("version={version}"), &[]);
        assert!(output.status.success(), "{version}: {}", text(&output));
    }
}

#[test]
fn a_driver_before_12_2_is_refused_by_its_version() {
    let output = bench("version=12010", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("12.1") && text(&output).contains("12.2"),
        "{}",
        text(&output)
    );
}

/// Each function missing in turn: what needs it fails and names it, or there is another way; nothing
/// crashes.
#[test]
fn a_missing_function_is_named_and_never_a_crash() {
    for function in Cuda::FUNCTIONS {
        let output = bench(&format!("missing={function}"), &[]);
        let said = text(&output);
        match output.status.code() {
            Some(0) => {}
            Some(1) => assert!(
                said.contains("unsupported") && said.contains(function),
                "{function}: {said}"
            ),
            other => panic!("{function}: exit {other:?}: {said}"),
        }
    }
}

#[test]
fn hip_6_and_7_serve_every_source() {
    for version in ["6.0", "6.4", "7.0", "7.14"] {
        let output = bench(&format!("hip={version}"), &[]);
        assert!(output.status.success(), "{version}: {}", text(&output));
    }
    let output = bench("hip=5.7", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("HIP 5.7") && text(&output).contains("6.0"));
}

/// The same of HIP, by HIP's names; what it has nothing for is told by the driver's.
#[test]
fn a_missing_function_of_hip_is_named_and_never_a_crash() {
    for function in hip::names() {
        let output = bench(&format!("hip=6.4,missing={function}"), &[]);
        let said = text(&output);
        match output.status.code() {
            Some(0) => {}
            // Without it the library is not known to be HIP's.
            Some(1) if function == "hipRuntimeGetVersion" => assert!(said.contains("unsupported")),
            Some(1) => assert!(
                said.contains("unsupported") && said.contains(function),
                "{function}: {said}"
            ),
            other => panic!("{function}: exit {other:?}: {said}"),
        }
    }
}

#[test]
fn other_machines_serve_every_source() {
    for machine in [
        "coherent=1",
        "concurrent_managed=0",
        "fabric=works",
        "fabric=none,posix_fd=0,rdma=0",
        "devices=1",
    ] {
        let output = bench(machine, &[]);
        assert!(output.status.success(), "{machine}: {}", text(&output));
    }
}
