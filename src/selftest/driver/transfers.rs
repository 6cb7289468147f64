//! Fills and copies in a stream's order, and which ranges they refuse.

use super::calls::Calls;
use super::cases;
use super::guards::{CHUNK, MIB, NON_BLOCKING, Owned, Pinned, Stream};
use super::steps::Steps;
use crate::selftest::{Case, Outcome};

pub const CASES: &[Case] = cases![
    "contents over copies" => contents,
    "fills of any size" => fills,
    "ranges that are no memory" => no_memory,
    "ranges past an allocation" => past_the_end,
];

/// What 64 bytes at `address` are when `stream` has come so far.
pub fn read_back(calls: Calls, to: &mut Pinned, address: u64, stream: &Stream) -> String {
    const BYTES: usize = 64;
    to.bytes()[..BYTES].fill(0xEE);
    let copied = calls.copy_out(to, address, BYTES as u64, stream);
    let waited = calls.stream_synchronize(stream);
    if (copied, waited) != (0, 0) {
        return format!("copy {copied}, synchronize {waited}");
    }
    let bytes = &to.bytes()[..BYTES];
    if bytes.iter().all(|byte| *byte == bytes[0]) {
        format!("{:#x} everywhere", bytes[0])
    } else {
        format!("{bytes:02x?}")
    }
}

fn contents(steps: &mut Steps) -> Outcome {
    const BYTES: u64 = 3 * MIB + 17;
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let (one, two) = (Owned::plain(calls, BYTES)?, Owned::plain(calls, BYTES)?);
    let (mut sent, mut back) = (Pinned::new(calls, BYTES)?, Pinned::new(calls, BYTES)?);
    sent.bytes()
        .iter_mut()
        .enumerate()
        .for_each(|(at, byte)| *byte = (at % 251) as u8);
    back.bytes().fill(0xEE);
    steps.is("in", calls.copy_in(one.number(), &sent, BYTES, &stream), 0);
    steps.is(
        "across",
        calls.copy_on_device(two.number(), one.number(), BYTES, &stream),
        0,
    );
    steps.is(
        "out",
        calls.copy_out(&back, two.number(), BYTES, &stream),
        0,
    );
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    steps.holds("as sent", sent.bytes() == back.bytes());
    Ok(())
}

fn fills(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let plain = Owned::plain(calls, MIB)?;
    let (at, mut pinned) = (plain.number(), Pinned::new(calls, 4096)?);
    steps.is("zeros", calls.fill(at, 0, MIB, &stream), 0);
    steps.is("three bytes", calls.fill(at + 1, 9, 3, &stream), 0);
    steps.is(
        "five words",
        calls.fill_words(at + 8, 0x0403_0201, 5, &stream),
        0,
    );
    steps.is("out", calls.copy_out(&pinned, at, 32, &stream), 0);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    let expected =
        "00090909000000000102030401020304010203040102030401020304".to_owned() + "00000000";
    let found: String = pinned.bytes()[..32]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    steps.is("bytes", found, expected);
    steps.is(
        "words at an odd place",
        calls.fill_words(at + 2, 1, 4, &stream),
        1,
    );
    steps.is("no bytes", calls.fill(at, 1, 0, &stream), 0);
    steps.is(
        "copy of no bytes",
        calls.copy_on_device(0, 0, 0, &stream),
        0,
    );
    steps.is(
        "pinned memory",
        calls.fill(pinned.address() as u64, 5, 64, &stream),
        0,
    );
    steps.is("synchronize again", calls.stream_synchronize(&stream), 0);
    steps.is("its first byte", pinned.bytes()[0], 5);
    Ok(())
}

fn no_memory(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let plain = Owned::plain(calls, CHUNK)?;
    let pinned = Pinned::new(calls, 4096)?;
    let (reservation, chunk) = (
        Owned::reservation(calls, 2 * CHUNK)?,
        Owned::chunk(calls, CHUNK)?,
    );
    let at = reservation.number();
    let _mapping = Owned::bare_mapping(calls, at, &chunk)?;
    let freed = Owned::plain(calls, 64 * MIB)?;
    let gone = freed.number();
    steps.is("free", freed.end(), 0);
    let pageable = Box::new([0u8; 4096]);
    let places = [
        ("mapped without access", at),
        ("reserved only", at + CHUNK),
        ("freed", gone),
        ("pageable", pageable.as_ptr() as u64),
    ];
    for (name, address) in places {
        steps.is(
            &format!("fill {name}"),
            calls.fill(address, 1, 64, &stream),
            1,
        );
        let across = calls.copy_on_device(address, plain.number(), 64, &stream);
        steps.is(&format!("copy to {name}"), across, 1);
        if name != "pageable" {
            steps.is(
                &format!("in to {name}"),
                calls.copy_in(address, &pinned, 64, &stream),
                1,
            );
            steps.is(
                &format!("out of {name}"),
                calls.copy_out(&pinned, address, 64, &stream),
                1,
            );
        }
    }
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    Ok(())
}

fn past_the_end(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let (plain, small) = (Owned::plain(calls, 2 * CHUNK)?, Owned::plain(calls, 4096)?);
    let pinned = Pinned::new(calls, 4096)?;
    let last = plain.number() + 2 * CHUNK - 32;
    steps.is("in", calls.copy_in(last, &pinned, 64, &stream), 1);
    steps.is("fill", calls.fill(last, 1, 64, &stream), 1);
    steps.is(
        "fill past a small one",
        calls.fill(small.number(), 1, 8192, &stream),
        1,
    );
    steps.is("up to the end", calls.fill(last, 1, 32, &stream), 0);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    Ok(())
}
