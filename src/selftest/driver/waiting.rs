//! Which calls wait for running work, which do not: seen by whether a closed gate has been passed
//! when the call is back.

use super::abi::{Place, PoolProperties};
use super::calls::Calls;
use super::cases;
use super::gate::Gate;
use super::guards::{CHUNK, Event, NON_BLOCKING, Owned, Pinned, Pool, Stream, need};
use super::steps::Steps;
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = cases![
    "free waits for running work" => free_waits,
    "what does not wait for running work" => no_wait,
];

fn free_waits(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let plain = Owned::plain(calls, CHUNK)?;
    let managed = Owned::managed(calls, CHUNK)?;
    let pinned = Pinned::new(calls, 4096)?;
    let waits =
        |steps: &mut Steps, name: &str, free: &mut dyn FnMut() -> i32| -> Result<(), Stop> {
            let gate = Gate::close(calls, &stream)?;
            gate.open_soon();
            steps.is(name, free(), 0);
            steps.is(&format!("{name} waits"), gate.is_passed(), true);
            need("cuStreamSynchronize", calls.stream_synchronize(&stream))
        };
    let (mut plain, mut managed) = (Some(plain), Some(managed));
    waits(steps, "free", &mut || plain.take().map_or(-7, Owned::end))?;
    waits(steps, "free managed", &mut || {
        managed.take().map_or(-7, Owned::end)
    })?;
    let mut pinned = Some(pinned);
    waits(steps, "free pinned", &mut || {
        pinned.take().map_or(-7, Pinned::free)
    })?;
    Ok(())
}

/// Things that no running work uses, to be given back beside it.
struct Things<'a> {
    plain: Owned<'a>,
    mapping: Owned<'a>,
    reservation: Owned<'a>,
    chunk: Owned<'a>,
    pool: Pool<'a>,
    spare: Stream<'a>,
    event: Event<'a>,
}

impl<'a> Things<'a> {
    fn new(calls: Calls<'a>) -> Result<Things<'a>, Stop> {
        let (reservation, chunk) = (
            Owned::reservation(calls, CHUNK)?,
            Owned::chunk(calls, CHUNK)?,
        );
        Ok(Things {
            plain: Owned::plain(calls, CHUNK)?,
            mapping: Owned::mapping(calls, reservation.number(), &chunk)?,
            reservation,
            chunk,
            pool: Pool::new(calls, &PoolProperties::at(Place::device(0)))?,
            spare: Stream::new(calls, NON_BLOCKING)?,
            event: Event::new(calls)?,
        })
    }
}

fn no_wait(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let things = Things::new(calls)?;
    let mut block = 0;
    need(
        "alloc",
        calls.alloc_from_pool(&mut block, 4096, &things.pool, &stream),
    )?;
    need("cuCtxSynchronize", calls.synchronize())?;
    let gate = Gate::close(calls, &stream)?;
    let (mut address, mut managed, mut host) = (0, 0, 0);
    let concurrent = steps.is_concurrent();
    let mut check = |name: &str, answer| {
        steps.is(name, answer, 0);
        steps.is(&format!("{name} waits"), gate.is_passed(), false);
    };
    check("alloc", calls.alloc(&mut address, CHUNK));
    check("alloc managed", calls.alloc_managed(&mut managed, CHUNK, 1));
    check("host alloc", calls.host_alloc(&mut host, CHUNK, 0));
    check(
        "fill",
        calls.fill(things.plain.number(), 1, 64, &things.spare),
    );
    check(
        "synchronize a stream",
        calls.stream_synchronize(&things.spare),
    );
    if concurrent {
        check("advise", calls.advise(managed, CHUNK, 3, Place::device(0)));
    }
    check("unmap", things.mapping.end());
    check("release", things.chunk.end());
    check("address free", things.reservation.end());
    check("create", create_and_release(calls));
    check("free async", calls.free_async(block, &stream));
    check("trim", calls.pool_trim(&things.pool, 0));
    check("pool destroy", things.pool.destroy());
    check("event destroy", things.event.destroy());
    check("stream destroy", things.spare.destroy());
    check("memory info", calls.memory_info(&mut 0, &mut 0));
    gate.open();
    let ends = [
        calls.free(address),
        calls.free(managed),
        calls.host_free(host),
    ];
    steps.is("the end", format!("{ends:?}"), "[0, 0, 0]");
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    Ok(())
}

fn create_and_release(calls: Calls) -> i32 {
    Owned::chunk(calls, CHUNK).map_or(-7, Owned::end)
}
