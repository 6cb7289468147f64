//! `hbmalloc replay` beside other allocators: those that run on the simulated driver.
#![allow(missing_docs)]

mod support;

use support::replay::{COLUMNS, Folder, MIB, SMALL, command, number, replay, text};

#[test]
fn another_allocator_is_replayed_beside_ours_and_compared() {
    let folder = Folder::new("compare");
    // Far less than the 32 MiB by which a stream-ordered pool grows, in blocks far below 2 MiB.
    let blocks = (0..100).map(|at| format!("a,{at},4096,{},0\n", at % 2));
    let trace = folder.file(
        "small.csv",
        &format!("{COLUMNS}{}f,7,4096,1,0\n", blocks.collect::<String>()),
    );
    let compare = |backend: &str| {
        replay(&[
            "--json",
            "--peers",
            "--compare",
            "--backend",
            backend,
            &trace,
        ])
    };
    let output = compare("vmm");
    let (lines, told) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{lines}{told}");
    let losses: Vec<&str> = told
        .lines()
        .filter(|line| line.starts_with("loss: "))
        .collect();
    assert_eq!(
        losses,
        ["loss: small, vmm: ratio 512.0000, cudaMallocAsync 81.9200"],
        "{told}"
    );
    let peer = lines.lines().nth(1).unwrap();
    assert!(peer.starts_with("{\"trace\":\"small\",\"backend\":\"cudaMallocAsync\",\"driver\":\"sim\",\"peak_requested\":409600,"), "{peer}");
    assert_eq!(number(peer, "peak_reserved") as u64, 32 * MIB);
    assert_eq!(
        (number(peer, "pairs"), number(peer, "driver_calls")),
        (1.0, 101.0)
    );
    // 290 and 285 ns on the virtual clock.
    assert!(
        (570.0..580.0).contains(&number(peer, "pair_ns_p50")),
        "{peer}"
    );
    for name in ["torch-native", "torch-expandable", "rmm-pool", "rmm-arena"] {
        assert!(told.contains(&format!("skipped: {name}: ")), "{told}");
    }
    // torch does not run on the simulator, so whether we took longer is not known.
    let output = compare("device");
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for line in [
        "not compared: small, device: time was compared with nobody, since torch-native did not run\n",
        "No loss in what was compared.\n",
    ] {
        assert!(told.contains(line), "{told}");
    }
}

#[test]
fn without_other_allocators_there_is_nothing_to_compare() {
    let folder = Folder::new("alone");
    let trace = folder.file("small.csv", &format!("{COLUMNS}{SMALL}"));
    for arguments in [
        &["--compare", &trace][..],
        &["--compare", "--peers", "--lag", "1", &trace],
    ] {
        let output = replay(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let told = text(&output.stderr);
        assert!(told.contains("nothing to compare with"), "{told}");
        assert!(
            !told.contains("small, pool"),
            "replayed for nothing: {told}"
        );
        assert!(output.stdout.is_empty());
    }
    let output = command(&["--peers", "--json", &trace])
        .env("CXX", "no-such-compiler")
        .output();
    let output = output.unwrap();
    let told = text(&output.stderr);
    assert!(
        output.status.success() && told.contains("no-such-compiler"),
        "{told}"
    );
}

#[test]
fn it_is_said_whose_time_is_the_drivers() {
    let folder = Folder::new("told");
    let trace = folder.file("small.csv", &format!("{COLUMNS}{SMALL}"));
    let output = replay(&["--peers", "--backend", "pool,pool", &trace]);
    let table = text(&output.stdout);
    assert!(
        table.contains("All time of cudaMallocAsync is the driver's."),
        "{table}"
    );
    assert!(!table.contains("is not told of"), "{table}");
    let rows = table
        .lines()
        .filter(|line| line.starts_with("small        pool"));
    assert_eq!(rows.count(), 1, "{table}");
}

#[test]
fn a_replay_beside_others_that_is_stopped_leaves_nothing() {
    let folder = Folder::new("stopped-peers");
    let trace = folder.file("small.csv", &format!("{COLUMNS}{SMALL}"));
    let arguments = ["--peers", "--backend", "vmm", &trace];
    support::stopped_while_compiling("replay_int", command(&arguments), libc::SIGINT);
    support::stopped_while_compiling("replay_term", command(&arguments), libc::SIGTERM);
}
