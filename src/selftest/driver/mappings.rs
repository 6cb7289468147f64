//! Mapping chunks into reserved addresses, giving access, taking both away.

use super::abi::{Access, NO_ACCESS, Place, READ, READ_WRITE};
use super::cases;
use super::guards::{CHUNK, NON_BLOCKING, Owned, Pinned, Stream};
use super::steps::Steps;
use super::transfers::read_back;
use crate::selftest::{Case, Outcome};

pub const CASES: &[Case] = cases![
    "map: what is refused" => refused,
    "map past a reservation" => past_a_reservation,
    "map over two reservations" => over_two,
    "access: who and where" => access,
    "access over several mappings" => access_over_several,
    "unmap" => unmap,
    "unmap where nothing is" => unmap_nothing,
    "aliases see the same data" => aliases,
    "a chunk keeps its data between mappings" => remapped,
    "a copy over neighbouring chunks" => neighbours,
];

fn refused(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let reservation = Owned::reservation(calls, 16 * CHUNK)?;
    let at = reservation.number();
    let (one, two) = (Owned::chunk(calls, CHUNK)?, Owned::chunk(calls, CHUNK)?);
    let big = Owned::chunk(calls, 4 * CHUNK)?;
    let map = |address, bytes, offset, chunk: &Owned| {
        calls.map(address, bytes, offset, chunk.number(), 0)
    };
    steps.is("with an offset", map(at, CHUNK, CHUNK, &big), 801);
    steps.is("in part", map(at, CHUNK, 0, &big), 801);
    steps.is("more than the chunk", map(at, 2 * CHUNK, 0, &one), 801);
    steps.is("unaligned", map(at + 4096, CHUNK, 0, &one), 1);
    steps.is("flags", calls.map(at, CHUNK, 0, one.number(), 1), 1);
    steps.is("size 0", map(at, 0, 0, &one), 1);
    steps.is("outside a reservation", map(1 << 40, CHUNK, 0, &one), 1);
    steps.is("map", map(at, CHUNK, 0, &one), 0);
    let _one = Owned::mapped(calls, at, CHUNK);
    steps.is("another there", map(at, CHUNK, 0, &two), 1);
    steps.is("itself there", map(at, CHUNK, 0, &one), 1);
    steps.is("itself elsewhere", map(at + 2 * CHUNK, CHUNK, 0, &one), 0);
    let _alias = Owned::mapped(calls, at + 2 * CHUNK, CHUNK);
    steps.is(
        "over the end of one",
        map(at + 2 * CHUNK, 4 * CHUNK, 0, &big),
        1,
    );
    steps.is(
        "over the beginning of one",
        map(at + CHUNK, 4 * CHUNK, 0, &big),
        1,
    );
    Ok(())
}

fn past_a_reservation(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    // Room for it, so that nothing else lies behind the second reservation.
    let room = Owned::reservation(calls, 64 * CHUNK)?;
    let (at, mut second) = (room.number(), 0);
    steps.is("free the room", room.end(), 0);
    steps.is(
        "reserve its beginning",
        calls.reserve(&mut second, 4 * CHUNK, 0, at, 0),
        0,
    );
    let reservation = Owned::reserved(calls, second, 4 * CHUNK);
    let chunk = Owned::chunk(calls, 2 * CHUNK)?;
    let edge = reservation.number() + 3 * CHUNK;
    let answer = calls.map(edge, 2 * CHUNK, 0, chunk.number(), 0);
    match steps.context().is_simulated() {
        // Other memory of the process may lie there.
        true => steps.is("map over its end", answer, 1),
        // One card was seen to answer both.
        false => steps.is_one_of("map over its end", answer, &[0, 1]),
    }
    if answer == 0 {
        steps.is("unmap", calls.unmap(edge, 2 * CHUNK), 0);
    }
    Ok(())
}

fn over_two(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let room = Owned::reservation(calls, 8 * CHUNK)?;
    let (at, mut first, mut second) = (room.number(), 0, 0);
    steps.is("free the room", room.end(), 0);
    steps.is(
        "reserve its beginning",
        calls.reserve(&mut first, 4 * CHUNK, 0, at, 0),
        0,
    );
    let first = Owned::reserved(calls, first, 4 * CHUNK);
    steps.is(
        "reserve its end",
        calls.reserve(&mut second, 4 * CHUNK, 0, at + 4 * CHUNK, 0),
        0,
    );
    let second = Owned::reserved(calls, second, 4 * CHUNK);
    let adjacent = second.number() == first.number() + 4 * CHUNK;
    steps.holds("side by side", adjacent);
    if adjacent {
        let chunk = Owned::chunk(calls, 2 * CHUNK)?;
        let seam = second.number() - CHUNK;
        let answer = calls.map(seam, 2 * CHUNK, 0, chunk.number(), 0);
        steps.is("map over the seam", answer, 0);
        if answer == 0 {
            steps.is("unmap", calls.unmap(seam, 2 * CHUNK), 0);
        }
    }
    Ok(())
}

const fn grant(place: Place, flags: i32) -> Access {
    Access { place, flags }
}

const DEVICE: Place = Place::device(0);

fn access(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let reservation = Owned::reservation(calls, 4 * CHUNK)?;
    let at = reservation.number();
    let chunk = Owned::chunk(calls, 2 * CHUNK)?;
    let _mapping = Owned::bare_mapping(calls, at, &chunk)?;
    let mut flags = 9;
    steps.is(
        "asked of a fresh mapping",
        calls.access(&mut flags, DEVICE, at),
        0,
    );
    steps.is("which has none", flags, 0);
    let give = |bytes, who| calls.set_access(at, bytes, &[who]);
    let whole = 2 * CHUNK;
    steps.is("part", give(CHUNK, grant(DEVICE, READ_WRITE)), 1);
    steps.is("more", give(3 * CHUNK, grant(DEVICE, READ_WRITE)), 1);
    steps.is(
        "inner part",
        calls.set_access(at + CHUNK, CHUNK, &[grant(DEVICE, READ_WRITE)]),
        1,
    );
    steps.is("size 0", give(0, grant(DEVICE, READ_WRITE)), 1);
    steps.is(
        "device 99",
        give(whole, grant(Place::device(99), READ_WRITE)),
        1,
    );
    steps.is(
        "device -1",
        give(whole, grant(Place::device(-1), READ_WRITE)),
        1,
    );
    steps.is("flags 2", give(whole, grant(DEVICE, 2)), 1);
    steps.is("flags 4", give(whole, grant(DEVICE, 4)), 1);
    steps.is("host", give(whole, grant(Place::HOST, READ_WRITE)), 801);
    steps.is(
        "node 0",
        give(whole, grant(Place::node(0), READ_WRITE)),
        801,
    );
    steps.is("nobody", calls.set_access(at, whole, &[]), 1);
    steps.is("null", calls.set_access_of_none(at, whole), 1);
    for (name, wanted) in [("read", READ), ("none", NO_ACCESS), ("both", READ_WRITE)] {
        steps.is(name, give(whole, grant(DEVICE, wanted)), 0);
        steps.is(
            &format!("ask after {name}"),
            calls.access(&mut flags, DEVICE, at + CHUNK),
            0,
        );
        steps.is(&format!("has {name}"), flags, wanted);
    }
    steps.is(
        "ask where nothing is",
        calls.access(&mut flags, DEVICE, at + 3 * CHUNK),
        1,
    );
    Ok(())
}

fn access_over_several(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let reservation = Owned::reservation(calls, 8 * CHUNK)?;
    let at = reservation.number();
    let (one, two) = (Owned::chunk(calls, CHUNK)?, Owned::chunk(calls, CHUNK)?);
    let give = |address, bytes| calls.set_access(address, bytes, &[grant(DEVICE, READ_WRITE)]);
    let _first = Owned::bare_mapping(calls, at, &one)?;
    let _third = Owned::bare_mapping(calls, at + 2 * CHUNK, &one)?;
    steps.is("where nothing is", give(at + 4 * CHUNK, CHUNK), 1);
    steps.is("over a gap", give(at, 3 * CHUNK), 0);
    steps.is("gap at the end", give(at, 2 * CHUNK), 1);
    steps.is("gap at the beginning", give(at + CHUNK, 2 * CHUNK), 1);
    let _second = Owned::bare_mapping(calls, at + CHUNK, &two)?;
    steps.is("over three at once", give(at, 3 * CHUNK), 0);
    steps.is("and past them", give(at, 4 * CHUNK), 1);
    let mut flags = 9;
    steps.is("ask", calls.access(&mut flags, DEVICE, at + CHUNK), 0);
    steps.is("has", flags, READ_WRITE);
    Ok(())
}

fn unmap(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let reservation = Owned::reservation(calls, 16 * CHUNK)?;
    let at = reservation.number();
    let (small, big) = (Owned::chunk(calls, CHUNK)?, Owned::chunk(calls, 4 * CHUNK)?);
    let first = Owned::mapping(calls, at, &small)?;
    let second = Owned::mapping(calls, at + CHUNK, &small)?;
    let large = Owned::mapping(calls, at + 2 * CHUNK, &big)?;
    steps.is("beginning of one", calls.unmap(at + 2 * CHUNK, CHUNK), 1);
    steps.is("end of one", calls.unmap(at + 3 * CHUNK, 3 * CHUNK), 1);
    steps.is(
        "one and part of the next",
        calls.unmap(at + CHUNK, 2 * CHUNK),
        1,
    );
    steps.is("size 0", calls.unmap(at, 0), 1);
    steps.is("two in one call", calls.unmap(at, 2 * CHUNK), 0);
    first.gone();
    second.gone();
    steps.is("the other", large.end(), 0);
    let first = Owned::mapping(calls, at, &small)?;
    let third = Owned::mapping(calls, at + 2 * CHUNK, &small)?;
    let answer = calls.unmap(at, 3 * CHUNK);
    steps.is("two with a gap", answer, 0);
    if answer == 0 {
        first.gone();
        third.gone();
    }
    Ok(())
}

fn unmap_nothing(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let reservation = Owned::reservation(calls, 4 * CHUNK)?;
    let chunk = Owned::chunk(calls, CHUNK)?;
    let at = reservation.number();
    steps.is("reserved only", calls.unmap(at, CHUNK), 0);
    let mapping = Owned::mapping(calls, at, &chunk)?;
    steps.is("unmap", mapping.end(), 0);
    steps.is("again", calls.unmap(at, CHUNK), 0);
    steps.is("unaligned", calls.unmap(at + 4096, CHUNK), 0);
    Ok(())
}

fn aliases(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let reservation = Owned::reservation(calls, 4 * CHUNK)?;
    let at = reservation.number();
    let chunk = Owned::chunk(calls, CHUNK)?;
    let _one = Owned::mapping(calls, at, &chunk)?;
    let _other = Owned::mapping(calls, at + 2 * CHUNK, &chunk)?;
    let mut pinned = Pinned::new(calls, 4096)?;
    steps.is("fill at one", calls.fill(at, 0x3C, CHUNK, &stream), 0);
    let read = read_back(calls, &mut pinned, at + 3 * CHUNK - 64, &stream);
    steps.is("read at the other", read, "0x3c everywhere");
    steps.is(
        "fill at the other",
        calls.fill(at + 2 * CHUNK, 0x4D, 64, &stream),
        0,
    );
    steps.is(
        "read at one",
        read_back(calls, &mut pinned, at, &stream),
        "0x4d everywhere",
    );
    Ok(())
}

fn remapped(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let reservation = Owned::reservation(calls, 2 * CHUNK)?;
    let at = reservation.number();
    let chunk = Owned::chunk(calls, CHUNK)?;
    let mut pinned = Pinned::new(calls, 4096)?;
    let mapping = Owned::mapping(calls, at, &chunk)?;
    steps.is("fill", calls.fill(at, 0x77, CHUNK, &stream), 0);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    steps.is("unmap", mapping.end(), 0);
    let mapping = Owned::mapping(calls, at + CHUNK, &chunk)?;
    steps.is("release while mapped", chunk.end(), 0);
    let read = read_back(calls, &mut pinned, at + 2 * CHUNK - 64, &stream);
    steps.is("read elsewhere", read, "0x77 everywhere");
    steps.is("unmap again", mapping.end(), 0);
    Ok(())
}

fn neighbours(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let reservation = Owned::reservation(calls, 4 * CHUNK)?;
    let at = reservation.number();
    let (one, two) = (Owned::chunk(calls, CHUNK)?, Owned::chunk(calls, CHUNK)?);
    let _first = Owned::mapping(calls, at, &one)?;
    let _second = Owned::mapping(calls, at + CHUNK, &two)?;
    let mut pinned = Pinned::new(calls, 4096)?;
    let seam = at + CHUNK - 32;
    steps.is("fill over the seam", calls.fill(seam, 0x19, 64, &stream), 0);
    steps.is(
        "copy over the seam",
        calls.copy_on_device(at, seam, 64, &stream),
        0,
    );
    steps.is(
        "read the copy",
        read_back(calls, &mut pinned, at, &stream),
        "0x19 everywhere",
    );
    steps.is(
        "read over the seam",
        read_back(calls, &mut pinned, seam, &stream),
        "0x19 everywhere",
    );
    steps.is(
        "fill past the second",
        calls.fill(at + 2 * CHUNK - 32, 0, 64, &stream),
        1,
    );
    Ok(())
}
