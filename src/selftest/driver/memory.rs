//! Synchronous device memory.

use super::cases;
use super::guards::{CHUNK, MIB, NON_BLOCKING, Owned, Pinned, Stream, need};
use super::steps::Steps;
use crate::selftest::{Case, Outcome};

pub const CASES: &[Case] = cases![
    "alloc: sizes" => sizes,
    "free: what is refused" => refused,
    "memory that an allocation takes" => taken,
    "pinned host memory" => pinned,
];

fn sizes(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (mut base, mut bytes) = (0, 0);
    steps.is("0 bytes", calls.alloc(&mut base, 0), 1);
    // SAFETY: the driver refuses a null pointer.
    let nowhere = unsafe { calls.cuda().memory_alloc(std::ptr::null_mut(), 4096) };
    steps.is("to nowhere", super::calls::code(nowhere), 1);
    for size in [1, 1000, 3 * MIB] {
        let plain = Owned::plain(calls, size)?;
        steps.holds(
            &format!("{size} bytes are aligned"),
            plain.number() % 512 == 0,
        );
        steps.is(
            &format!("range of {size}"),
            calls.range(&mut base, &mut bytes, plain.number() + size - 1),
            0,
        );
        steps.holds(&format!("begins where {size} do"), base == plain.number());
        steps.is(&format!("length of {size}"), bytes, size);
    }
    Ok(())
}

fn refused(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let plain = Owned::plain(calls, CHUNK)?;
    let pinned = Pinned::new(calls, 4096)?;
    let (reservation, chunk) = (
        Owned::reservation(calls, CHUNK)?,
        Owned::chunk(calls, CHUNK)?,
    );
    let mapping = Owned::mapping(calls, reservation.number(), &chunk)?;
    let mut pooled = 0;
    steps.is("null", calls.free(0), 0);
    steps.is("inside", calls.free(plain.number() + 512), 1);
    steps.is("never allocated", calls.free(1 << 40), 1);
    steps.is("mapped chunk", calls.free(mapping.number()), 1);
    steps.is("pinned memory", calls.free(pinned.address() as u64), 1);
    steps.is(
        "as pinned memory",
        calls.host_free(plain.number() as usize),
        1,
    );
    steps.is(
        "alloc in a stream's order",
        calls.alloc_async(&mut pooled, CHUNK, &stream),
        0,
    );
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    steps.is("pool memory", calls.free(pooled), 0);
    let mut by_stream = 0;
    need("cuMemAlloc", calls.alloc(&mut by_stream, CHUNK))?;
    steps.is(
        "plain memory in a stream's order",
        calls.free_async(by_stream, &stream),
        0,
    );
    let (mut base, mut bytes) = (0, 0);
    let at = mapping.number();
    steps.is(
        "range of a mapped chunk",
        calls.range(&mut base, &mut bytes, at + 64),
        0,
    );
    steps.is("it begins at", base.wrapping_sub(at), 0);
    steps.is("its length", bytes, CHUNK);
    steps.is("unmap", mapping.end(), 0);
    steps.is(
        "range of reserved addresses",
        calls.range(&mut base, &mut bytes, at),
        500,
    );
    steps.is("free", plain.end(), 0);
    Ok(())
}

fn taken(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let free = || -> Result<u64, crate::selftest::Stop> {
        let (mut free, mut total) = (0, 0);
        need("cuMemGetInfo", calls.memory_info(&mut free, &mut total))?;
        Ok(free as u64)
    };
    let before = free()?;
    let one = Owned::plain(calls, 512 * MIB)?;
    steps.is("MiB of 512", before.saturating_sub(free()?) / MIB, 512);
    let two = Owned::plain(calls, 512 * MIB + 1)?;
    steps.is(
        "MiB with one byte more",
        before.saturating_sub(free()?) / MIB,
        1026,
    );
    steps.is("free one", one.end(), 0);
    steps.is("free two", two.end(), 0);
    steps.is("MiB at the end", before.saturating_sub(free()?) / MIB, 0);
    Ok(())
}

fn pinned(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let mut address = 0;
    steps.is("0 bytes", calls.host_alloc(&mut address, 0, 0), 0);
    steps.is("unknown flags", calls.host_alloc(&mut address, 4096, 64), 1);
    steps.is("4096 bytes", calls.host_alloc(&mut address, 4096, 0), 0);
    steps.is("free", calls.host_free(address), 0);
    steps.is("free null", calls.host_free(0), 0);
    let managed = Owned::managed(calls, CHUNK)?;
    steps.is(
        "managed memory",
        calls.host_free(managed.number() as usize),
        1,
    );
    Ok(())
}
