//! Managed memory: advice and prefetch, and what is read back of both.

use super::abi::Place;
use super::calls::Calls;
use super::cases;
use super::guards::{CHUNK, MIB, NON_BLOCKING, Owned, Stream};
use super::steps::Steps;
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = cases![
    "managed: sizes and flags" => sizes,
    "managed: advice read back" => advice,
    "managed: prefetch read back" => prefetch,
    "managed: host locations" => host_locations,
    "managed: advice that is refused" => refused_advice,
    "managed: prefetch that is refused" => refused_prefetch,
    "managed: attributes that are refused" => refused_attributes,
];

const READ_MOSTLY: i32 = 1;
const NOT_READ_MOSTLY: i32 = 2;
const PREFER: i32 = 3;
const PREFER_NONE: i32 = 4;
const ACCESSED_BY: i32 = 5;
const NOT_ACCESSED_BY: i32 = 6;

const DEVICE: Place = Place::device(0);
const BYTES: u64 = 8 * MIB;

/// Every attribute of a range. Prefetches and preferences: device number, then kind and number.
fn attributes(calls: Calls, address: u64, bytes: u64) -> String {
    let word = |which| {
        let mut out = [9];
        let answer = calls.range_attribute(&mut out, 4, which, address, bytes);
        if answer == 0 {
            out[0].to_string()
        } else {
            format!("refused {answer}")
        }
    };
    let mut by = [9; 3];
    let answer = calls.range_attribute(&mut by, 12, 3, address, bytes);
    let by = if answer == 0 {
        format!("{by:?}")
    } else {
        format!("refused {answer}")
    };
    format!(
        "read mostly {}, preferred {} {}:{}, by {by}, prefetched {} {}:{}",
        word(1),
        word(2),
        word(5),
        word(6),
        word(4),
        word(7),
        word(8)
    )
}

/// Advice and prefetch need the host and the device at once.
fn need_concurrent(steps: &Steps) -> Outcome {
    if steps.is_concurrent() {
        Ok(())
    } else {
        Err(Stop::skip("no concurrent managed access"))
    }
}

fn sizes(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let mut address = 0;
    steps.is("0 bytes", calls.alloc_managed(&mut address, 0, 1), 1);
    for flags in [0, 3, 4, 8] {
        steps.is(
            &format!("flags {flags}"),
            calls.alloc_managed(&mut address, CHUNK, flags),
            1,
        );
    }
    for (name, flags) in [("attached globally", 1), ("attached to the host", 2)] {
        steps.is(name, calls.alloc_managed(&mut address, CHUNK, flags), 0);
        steps.is(&format!("free {name}"), calls.free(address), 0);
    }
    let managed = Owned::managed(calls, 10000)?;
    let (mut base, mut bytes) = (0, 0);
    steps.is(
        "range",
        calls.range(&mut base, &mut bytes, managed.number() + 9999),
        0,
    );
    steps.is("range is", bytes, 10000);
    steps.is("free", managed.end(), 0);
    Ok(())
}

fn advice(steps: &mut Steps) -> Outcome {
    need_concurrent(steps)?;
    let calls = steps.calls();
    let managed = Owned::managed(calls, BYTES)?;
    let at = managed.number();
    let nothing = "read mostly 0, preferred -2 0:-2, by [-2, -2, -2], prefetched -2 0:-2";
    steps.is("fresh", attributes(calls, at, BYTES), nothing);
    steps.is(
        "prefer the device",
        calls.advise(at, 4 * MIB, PREFER, DEVICE),
        0,
    );
    steps.is(
        "accessed by the host",
        calls.advise(at, BYTES, ACCESSED_BY, Place::HOST),
        0,
    );
    steps.is(
        "accessed by the device",
        calls.advise(at, BYTES, ACCESSED_BY, DEVICE),
        0,
    );
    steps.is(
        "read mostly",
        calls.advise(at, 2 * MIB, READ_MOSTLY, DEVICE),
        0,
    );
    let by = "by [0, -1, -2], prefetched -2 0:-2";
    steps.is(
        "first part",
        attributes(calls, at, 2 * MIB),
        format!("read mostly 1, preferred 0 1:0, {by}"),
    );
    steps.is(
        "whole",
        attributes(calls, at, BYTES),
        format!("read mostly 0, preferred -2 0:-2, {by}"),
    );
    steps.is(
        "last part",
        attributes(calls, at + 4 * MIB, 4 * MIB),
        format!("read mostly 0, preferred -2 0:-2, {by}"),
    );
    steps.is(
        "not by the host",
        calls.advise(at, BYTES, NOT_ACCESSED_BY, Place::HOST),
        0,
    );
    steps.is(
        "not by the device",
        calls.advise(at, BYTES, NOT_ACCESSED_BY, DEVICE),
        0,
    );
    steps.is(
        "not read mostly",
        calls.advise(at, BYTES, NOT_READ_MOSTLY, DEVICE),
        0,
    );
    steps.is(
        "prefer none",
        calls.advise(at, BYTES, PREFER_NONE, DEVICE),
        0,
    );
    steps.is("taken back", attributes(calls, at, BYTES), nothing);
    steps.is("unaligned", calls.advise(at + 100, 1000, PREFER, DEVICE), 0);
    let page = "read mostly 0, preferred 0 1:0, by [-2, -2, -2], prefetched -2 0:-2";
    steps.is("its page", attributes(calls, at, 4096), page);
    Ok(())
}

fn prefetch(steps: &mut Steps) -> Outcome {
    need_concurrent(steps)?;
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let managed = Owned::managed(calls, BYTES)?;
    let (at, part) = (managed.number(), 4 * MIB);
    let places = [
        ("device", DEVICE, "0 1:0"),
        ("host", Place::HOST, "-1 2:-1"),
        ("node 0", Place::node(0), "-1 3:0"),
        ("device again", DEVICE, "0 1:0"),
    ];
    for (name, place, expected) in places {
        steps.is(name, calls.prefetch(at, part, place, 0, &stream), 0);
        steps.is(
            &format!("synchronize after {name}"),
            calls.stream_synchronize(&stream),
            0,
        );
        let expected =
            format!("read mostly 0, preferred -2 0:-2, by [-2, -2, -2], prefetched {expected}");
        steps.is(
            &format!("read back {name}"),
            attributes(calls, at, part),
            expected,
        );
    }
    let half = "read mostly 0, preferred -2 0:-2, by [-2, -2, -2], prefetched -2 0:-2";
    steps.is("half prefetched", attributes(calls, at, BYTES), half);
    steps.is(
        "on the legacy stream",
        calls.prefetch(at, BYTES, DEVICE, 0, &super::guards::LEGACY),
        0,
    );
    steps.is("context synchronize", calls.synchronize(), 0);
    let whole = "read mostly 0, preferred -2 0:-2, by [-2, -2, -2], prefetched 0 1:0";
    steps.is("whole prefetched", attributes(calls, at, BYTES), whole);
    Ok(())
}

fn host_locations(steps: &mut Steps) -> Outcome {
    need_concurrent(steps)?;
    let calls = steps.calls();
    let managed = Owned::managed(calls, BYTES)?;
    let at = managed.number();
    let host = "read mostly 0, preferred -1 2:-1, by [-2, -2, -2], prefetched -2 0:-2";
    steps.is("host", calls.advise(at, BYTES, PREFER, Place::HOST), 0);
    steps.is("read back host", attributes(calls, at, BYTES), host);
    steps.is(
        "node 0",
        calls.advise(at, 4 * MIB, PREFER, Place::node(0)),
        0,
    );
    steps.saw("read back node 0", attributes(calls, at, 4 * MIB));
    steps.is(
        "current node",
        calls.advise(at, 4 * MIB, PREFER, Place::NODE_CURRENT),
        0,
    );
    steps.saw("read back current node", attributes(calls, at, 4 * MIB));
    Ok(())
}

fn refused_advice(steps: &mut Steps) -> Outcome {
    need_concurrent(steps)?;
    let calls = steps.calls();
    let (managed, plain) = (Owned::managed(calls, BYTES)?, Owned::plain(calls, CHUNK)?);
    let at = managed.number();
    let pageable = Box::new([0u8; 8192]);
    steps.is(
        "device 99",
        calls.advise(at, CHUNK, PREFER, Place::device(99)),
        1,
    );
    steps.is(
        "nowhere",
        calls.advise(at, CHUNK, PREFER, Place::NOWHERE),
        1,
    );
    steps.is(
        "no longer, nowhere",
        calls.advise(at, CHUNK, PREFER_NONE, Place::NOWHERE),
        1,
    );
    steps.is(
        "accessed by a node",
        calls.advise(at, CHUNK, ACCESSED_BY, Place::node(0)),
        1,
    );
    steps.is(
        "node 99",
        calls.advise(at, CHUNK, PREFER, Place::node(99)),
        1,
    );
    steps.is("advice 0", calls.advise(at, CHUNK, 0, DEVICE), 1);
    steps.is("advice 9", calls.advise(at, CHUNK, 9, DEVICE), 1);
    steps.is("0 bytes", calls.advise(at, 0, PREFER, DEVICE), 1);
    steps.is(
        "past the end",
        calls.advise(at, 2 * BYTES, PREFER, DEVICE),
        1,
    );
    steps.is(
        "plain memory",
        calls.advise(plain.number(), CHUNK, PREFER, DEVICE),
        1,
    );
    if !is_coherent(steps) {
        let address = pageable.as_ptr() as u64;
        steps.is(
            "pageable memory",
            calls.advise(address, 4096, PREFER, DEVICE),
            1,
        );
    }
    let nothing = "read mostly 0, preferred -2 0:-2, by [-2, -2, -2], prefetched -2 0:-2";
    steps.is("nothing changed", attributes(calls, at, BYTES), nothing);
    Ok(())
}

/// Whether the device reaches pageable memory.
fn is_coherent(steps: &Steps) -> bool {
    const PAGEABLE: i32 = 88;
    steps.offers(PAGEABLE)
}

fn refused_prefetch(steps: &mut Steps) -> Outcome {
    need_concurrent(steps)?;
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let (managed, plain) = (Owned::managed(calls, BYTES)?, Owned::plain(calls, CHUNK)?);
    let (reservation, chunk) = (
        Owned::reservation(calls, CHUNK)?,
        Owned::chunk(calls, CHUNK)?,
    );
    let mapping = Owned::mapping(calls, reservation.number(), &chunk)?;
    let to = |address, bytes, place, flags| calls.prefetch(address, bytes, place, flags, &stream);
    let at = managed.number();
    steps.is("past the end", to(at, 2 * BYTES, DEVICE, 0), 1);
    steps.is("0 bytes", to(at, 0, DEVICE, 0), 1);
    steps.is("device 99", to(at, CHUNK, Place::device(99), 0), 101);
    steps.is("nowhere", to(at, CHUNK, Place::NOWHERE, 0), 1);
    steps.is("node 99", to(at, CHUNK, Place::node(99), 0), 1);
    steps.is("flags", to(at, CHUNK, DEVICE, 1), 1);
    steps.is("plain memory", to(plain.number(), CHUNK, DEVICE, 0), 1);
    steps.is("mapped chunk", to(mapping.number(), CHUNK, DEVICE, 0), 1);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    Ok(())
}

fn refused_attributes(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (managed, plain) = (Owned::managed(calls, BYTES)?, Owned::plain(calls, CHUNK)?);
    let at = managed.number();
    let mut words = [0; 4];
    let mut ask = |bytes_out, which, address, bytes| {
        calls.range_attribute(&mut words, bytes_out, which, address, bytes)
    };
    let answers = [
        ("8 bytes of one word", ask(8, 1, at, CHUNK)),
        ("no bytes", ask(0, 1, at, CHUNK)),
        ("3 bytes of a list", ask(3, 3, at, CHUNK)),
        ("attribute 0", ask(4, 0, at, CHUNK)),
        ("attribute 99", ask(4, 99, at, CHUNK)),
        ("past the end", ask(4, 1, at, 2 * BYTES)),
        ("plain memory", ask(4, 1, plain.number(), CHUNK)),
    ];
    for (name, answer) in answers {
        steps.is(name, answer, 1);
    }
    Ok(())
}
