//! Address ranges: reserving them and giving them back.

use super::cases;
use super::guards::{CHUNK, GIB, Owned};
use super::steps::Steps;
use crate::selftest::{Case, Outcome};

pub const CASES: &[Case] = cases![
    "reserve" => reserve,
    "reserve at an address" => at_an_address,
    "free addresses" => free,
];

fn reserve(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    for bytes in [0, 4096, 65536, CHUNK + 4096] {
        steps.is(
            &format!("{bytes} bytes"),
            calls.reserve(&mut 0, bytes, 0, 0, 0),
            1,
        );
    }
    for (bytes, align) in [
        (3 * CHUNK, 0),
        (CHUNK, 1),
        (CHUNK, 4096),
        (CHUNK, CHUNK),
        (CHUNK, GIB),
        (1 << 46, 0),
    ] {
        let mut address = 0;
        let step = format!("{bytes} bytes aligned to {align}");
        let answer = calls.reserve(&mut address, bytes, align, 0, 0);
        let _guard = (answer == 0).then(|| Owned::reserved(calls, address, bytes));
        steps.is(&step, answer, 0);
        steps.holds(
            &format!("{step} is"),
            address != 0 && address % align.max(CHUNK) == 0,
        );
    }
    steps.is("aligned to 3", calls.reserve(&mut 0, CHUNK, 3, 0, 0), 1);
    steps.is("flags", calls.reserve(&mut 0, CHUNK, 0, 0, 1), 1);
    Ok(())
}

fn at_an_address(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let first = Owned::reservation(calls, 8 * CHUNK)?;
    let (hint, mut second, mut third) = (first.number(), 0, 0);
    steps.is(
        "where another is",
        calls.reserve(&mut second, CHUNK, 0, hint, 0),
        0,
    );
    let second = Owned::reserved(calls, second, CHUNK);
    let is_apart = !(hint..hint + 8 * CHUNK).contains(&second.number());
    steps.holds("is elsewhere", is_apart);
    steps.is("free the first", first.end(), 0);
    steps.is(
        "where it was",
        calls.reserve(&mut third, 4 * CHUNK, 0, hint, 0),
        0,
    );
    let third = Owned::reserved(calls, third, 4 * CHUNK);
    steps.holds("is there", third.number() == hint);
    Ok(())
}

fn free(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let chunk = Owned::chunk(calls, CHUNK)?;
    let reservation = Owned::reservation(calls, 4 * CHUNK)?;
    let at = reservation.number();
    let mapping = Owned::mapping(calls, at + CHUNK, &chunk)?;
    steps.is("while mapped", calls.free_address(at, 4 * CHUNK), 1);
    steps.is("unmap", mapping.end(), 0);
    steps.is("part", calls.free_address(at, 2 * CHUNK), 1);
    steps.is("inside", calls.free_address(at + CHUNK, CHUNK), 1);
    steps.is("more", calls.free_address(at, 8 * CHUNK), 1);
    steps.is("size 0", calls.free_address(at, 0), 1);
    steps.is("null", calls.free_address(0, CHUNK), 1);
    steps.is("never reserved", calls.free_address(1 << 40, CHUNK), 1);
    steps.is("whole", reservation.end(), 0);
    steps.is("again", calls.free_address(at, 4 * CHUNK), 1);
    Ok(())
}
