//! Physical chunks: what can be made, what they are, how long they live.

use super::abi::{Place, Properties, SHARED_AS_FD, SHARED_AS_WIN32, SHARED_ON_FABRIC};
use super::cases;
use super::guards::{CHUNK, GIB, MIB, Owned, need};
use super::steps::{FILE_HANDLES, HOST_NODES, RDMA, Steps};
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = cases![
    "granularity" => granularity,
    "create: sizes" => sizes,
    "create: kinds" => kinds,
    "create: fabric handles" => fabric,
    "create beyond the memory" => beyond,
    "properties of a chunk" => properties,
    "life of a chunk" => life,
];

const DEVICE: Properties = Properties::at(Place::device(0));

fn granularity(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    for (name, option) in [("minimum", 0), ("recommended", 1)] {
        let mut bytes = 0;
        steps.is(name, calls.granularity(&mut bytes, &DEVICE, option), 0);
        steps.is(&format!("{name} is"), bytes, CHUNK);
    }
    steps.is("option 2", calls.granularity(&mut 0, &DEVICE, 2), 1);
    let mut bytes = 0;
    let node = Properties::at(Place::node(0));
    steps.is("of a host node", calls.granularity(&mut bytes, &node, 0), 0);
    steps.is("of a host node is", bytes, CHUNK);
    Ok(())
}

/// Whether this machine can make such chunks at all.
fn is_offered(steps: &Steps, props: &Properties) -> bool {
    let on_device = matches!(props.place.kind, 0 | 1);
    (on_device || steps.offers(HOST_NODES))
        && (props.handle_types != SHARED_AS_FD || steps.offers(FILE_HANDLES))
        && (props.rdma == 0 || steps.offers(RDMA))
}

/// Creates and gives back; the code.
fn try_create(steps: &Steps, bytes: u64, props: &Properties, flags: u64) -> i32 {
    let calls = steps.calls();
    let mut handle = 0;
    let answer = calls.create(&mut handle, bytes, props, flags);
    if answer == 0 {
        calls.release(handle);
    }
    answer
}

fn sizes(steps: &mut Steps) -> Outcome {
    for bytes in [0, 1, 4096, CHUNK - 1, CHUNK + 4096] {
        steps.is(
            &format!("{bytes} bytes"),
            try_create(steps, bytes, &DEVICE, 0),
            1,
        );
    }
    for bytes in [CHUNK, 3 * CHUNK] {
        steps.is(
            &format!("{bytes} bytes"),
            try_create(steps, bytes, &DEVICE, 0),
            0,
        );
    }
    steps.is("flags", try_create(steps, CHUNK, &DEVICE, 1), 1);
    Ok(())
}

fn kinds(steps: &mut Steps) -> Outcome {
    let at = |place| Properties::at(place);
    let kind = |kind| Properties { kind, ..DEVICE };
    let shared = |handle_types| Properties {
        handle_types,
        ..DEVICE
    };
    // Whole host locations came with 13.0.
    let host = if steps.version() >= 13000 { 0 } else { 1 };
    let cases = [
        ("device 999", at(Place::device(999)), 101),
        ("device -1", at(Place::device(-1)), 101),
        ("kind 0", kind(0), 1),
        ("kind 2", kind(2), 1),
        ("nowhere", at(Place::NOWHERE), 1),
        ("host", at(Place::HOST), host),
        ("node 0", at(Place::node(0)), 0),
        ("node 99", at(Place::node(99)), 1),
        ("node -1", at(Place::node(-1)), 1),
        ("node current", at(Place::NODE_CURRENT), 1),
        ("shared as fd", shared(SHARED_AS_FD), 0),
        ("shared as win32", shared(SHARED_AS_WIN32), 1),
        ("RDMA", Properties { rdma: 1, ..DEVICE }, 0),
        (
            "compression",
            Properties {
                compression: 1,
                ..DEVICE
            },
            0,
        ),
    ];
    for (name, props, expected) in cases {
        if !is_offered(steps, &props) {
            continue;
        }
        steps.is(name, try_create(steps, CHUNK, &props, 0), expected);
    }
    Ok(())
}

fn fabric(steps: &mut Steps) -> Outcome {
    const FABRIC_ATTRIBUTE: i32 = 128;
    let mut advertised = 0;
    steps.is(
        "attribute",
        steps
            .calls()
            .attribute(&mut advertised, FABRIC_ATTRIBUTE, 0),
        0,
    );
    steps.saw("attribute is", advertised);
    let alone = Properties {
        handle_types: SHARED_ON_FABRIC,
        ..DEVICE
    };
    let both = Properties {
        handle_types: SHARED_ON_FABRIC | SHARED_AS_FD,
        ..DEVICE
    };
    // 800: advertised, but the host has no fabric.
    let expected: &[i32] = if advertised == 0 {
        &[1, 800, 801]
    } else {
        &[0, 800]
    };
    let answer = try_create(steps, CHUNK, &alone, 0);
    steps.is_one_of("create", answer, expected);
    steps.is(
        "create with fd too",
        try_create(steps, CHUNK, &both, 0),
        answer,
    );
    Ok(())
}

fn beyond(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let mut total = 0;
    need("cuDeviceTotalMem", calls.total_memory(&mut total, 0))?;
    let more = (total as u64).next_multiple_of(GIB) + GIB;
    steps.is("1 PiB", try_create(steps, 1 << 50, &DEVICE, 0), 2);
    steps.is(
        "more than the device has",
        try_create(steps, more, &DEVICE, 0),
        2,
    );
    steps.is("a chunk after it", try_create(steps, CHUNK, &DEVICE, 0), 0);
    steps.is("alloc 1 PiB", calls.alloc(&mut 0, 1 << 50), 2);
    steps.is(
        "alloc more than the device has",
        calls.alloc(&mut 0, more),
        2,
    );
    let mut address = 0;
    steps.is("alloc after it", calls.alloc(&mut address, CHUNK), 0);
    steps.is("free", calls.free(address), 0);
    steps.is("synchronize", calls.synchronize(), 0);
    Ok(())
}

fn properties(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let asked = [
        (
            "plain",
            DEVICE,
            "kind 1 handles 0 place 1:0 rdma 0 compression 0",
        ),
        (
            "as fd",
            Properties {
                handle_types: SHARED_AS_FD,
                ..DEVICE
            },
            "kind 1 handles 1 place 1:0 rdma 0 compression 0",
        ),
        (
            "RDMA",
            Properties { rdma: 1, ..DEVICE },
            "kind 1 handles 0 place 1:0 rdma 1 compression 0",
        ),
        (
            "node 0",
            Properties::at(Place::node(0)),
            "kind 1 handles 0 place 3:0 rdma 0 compression 0",
        ),
    ];
    for (name, props, expected) in asked {
        if !is_offered(steps, &props) {
            continue;
        }
        let chunk = Owned::chunk_of(calls, CHUNK, &props)?;
        let mut found = Properties::at(Place::NOWHERE);
        steps.is(name, calls.properties(&mut found, chunk.number()), 0);
        let shown = format!(
            "kind {} handles {} place {}:{} rdma {} compression {}",
            found.kind,
            found.handle_types,
            found.place.kind,
            found.place.id,
            found.rdma,
            found.compression
        );
        steps.is(&format!("{name} is"), shown, expected);
    }
    Ok(())
}

/// Device memory taken since `before`, in MiB.
fn taken(steps: &Steps, before: u64) -> Result<u64, Stop> {
    Ok(before.saturating_sub(free_memory(steps)?) / MIB)
}

fn free_memory(steps: &Steps) -> Result<u64, Stop> {
    let (mut free, mut total) = (0, 0);
    need(
        "cuMemGetInfo",
        steps.calls().memory_info(&mut free, &mut total),
    )?;
    Ok(free as u64)
}

fn life(steps: &mut Steps) -> Outcome {
    const SIZE: u64 = 512 * MIB;
    let calls = steps.calls();
    let reservation = Owned::reservation(calls, 2 * SIZE)?;
    let at = reservation.number();
    let before = free_memory(steps)?;
    let chunk = Owned::chunk(calls, SIZE)?;
    steps.is("MiB of a chunk", taken(steps, before)?, 512);
    let mapping = Owned::mapping(calls, at, &chunk)?;
    steps.is("MiB with its mapping", taken(steps, before)?, 512);
    steps.is("release while mapped", chunk.end(), 0);
    steps.is("MiB after that", taken(steps, before)?, 512);
    let mut handle = 0;
    steps.is(
        "retain by address",
        calls.retain_chunk(&mut handle, at + 4096),
        0,
    );
    let chunk = Owned::handle(calls, handle, SIZE);
    steps.is(
        "retain where nothing is",
        calls.retain_chunk(&mut 0, at + SIZE),
        1,
    );
    steps.is("unmap", mapping.end(), 0);
    steps.is("MiB with a handle alone", taken(steps, before)?, 512);
    let mapping = Owned::mapping(calls, at + SIZE, &chunk)?;
    steps.is("unmap again", mapping.end(), 0);
    steps.is("release", chunk.end(), 0);
    steps.is("MiB without it", taken(steps, before)?, 0);
    Ok(())
}
