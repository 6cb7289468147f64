//! The suites of `hbmalloc selftest` on the simulated driver, each in a process of its own: a case
//! may need the driver as it is right after it was opened.
#![allow(missing_docs)]

mod support;

use std::process::Command;

fn selftest(arguments: &[&str]) -> (Option<i32>, String) {
    selftest_on("", arguments)
}

fn selftest_on(machine: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hbmalloc"))
        .arg("selftest")
        .args(arguments)
        .env("HBMALLOC_DRIVER", support::built("libhbmalloc_sim.so"))
        .env("HBMALLOC_SIM", machine)
        .output()
        .unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

fn passes_on(machine: &str, suite: &str) {
    let (code, text) = selftest_on(machine, &[suite]);
    assert_eq!(code, Some(0), "\n{text}");
    assert!(text.contains(" passed, 0 failed, "), "\n{text}");
    println!("{text}");
}

/// A test for each of the suites, on a machine of its own.
macro_rules! suites {
    ($machine:expr; $($suite:ident)*) => { $(
        #[test]
        fn $suite() {
            super::passes_on($machine, stringify!($suite));
        }
    )* };
}

/// All of them. The stress is short, unless `HBMALLOC_STRESS_SECONDS` says otherwise.
mod on_cuda {
    suites! { ""; driver ranges sources process pool residency faults stress }
}

/// HIP as it should be. What it lacks is skipped with a reason.
mod on_hip {
    suites! { "hip=6.4"; driver ranges sources process pool faults }
}

/// HIP with all that is wrong with some version of it and changes no figures.
mod on_hip_with_quirks {
    const MACHINE: &str = "hip=7.14,hip_create_limit=256MiB,hip_large=256MiB,hip_set_device=1,hip_whole=1,hip_align=1,hip_access_fails=1,hip_stale=1";

    suites! { MACHINE; ranges sources process pool }
}

/// What changes figures: memory that is held longer, descriptors that are few.
mod on_hip_that_lacks {
    #[test]
    fn memory() {
        super::passes_on("hip=6.4,hip_holds=1", "process");
    }

    #[test]
    fn descriptors() {
        super::passes_on("hip=7.14,hip_fds=1", "process");
    }

    #[test]
    fn descriptors_for_a_pool() {
        super::passes_on("hip=7.14,hip_fds=1", "pool");
    }
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
