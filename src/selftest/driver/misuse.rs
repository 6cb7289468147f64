//! Things given back twice. Last of the suite: the driver looks at what it has just forgotten, and
//! nothing says that every version survives it.

use super::cases;
use super::guards::{CHUNK, NON_BLOCKING, Owned, Stream, need};
use super::steps::Steps;
use crate::selftest::{Case, Outcome};

pub const CASES: &[Case] = cases![
    "free twice" => free_twice,
    "free twice in a stream's order" => free_async_twice,
    "release twice" => release_twice,
];

fn free_twice(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (plain, managed) = (Owned::plain(calls, CHUNK)?, Owned::managed(calls, CHUNK)?);
    let (plain_at, managed_at) = (plain.number(), managed.number());
    steps.is("free", plain.end(), 0);
    steps.is("again", calls.free(plain_at), 1);
    steps.is("free managed", managed.end(), 0);
    steps.is("managed again", calls.free(managed_at), 1);
    Ok(())
}

fn free_async_twice(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let mut address = 0;
    need(
        "cuMemAllocAsync",
        calls.alloc_async(&mut address, 4096, &stream),
    )?;
    steps.is("free", calls.free_async(address, &stream), 0);
    steps.is("again", calls.free_async(address, &stream), 1);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    Ok(())
}

fn release_twice(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let chunk = Owned::chunk(calls, CHUNK)?;
    let handle = chunk.number();
    steps.is("release", chunk.end(), 0);
    steps.is("again", calls.release(handle), 1);
    Ok(())
}
