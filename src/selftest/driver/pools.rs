//! Stream-ordered memory: pools and their counters, and who may have freed memory when.

use super::abi::{Place, PoolProperties};
use super::calls::Calls;
use super::cases;
use super::gate::Gate;
use super::guards::{GIB, MIB, NON_BLOCKING, Pinned, Pool, Stream, need};
use super::steps::Steps;
use crate::selftest::{Case, Outcome, Stop};

pub const CASES: &[Case] = cases![
    "pool: what can be made" => kinds,
    "pool: counters" => counters,
    "pool: release threshold" => threshold,
    "pool: attributes" => attributes,
    "pool: default and current" => defaults,
    "pool: limited in size" => limited,
    "pool: destroyed with a live block" => destroyed,
    "stream-ordered: sizes and frees" => frees,
    "stream-ordered: reuse" => reuse,
];

const DEVICE: PoolProperties = PoolProperties::at(Place::device(0));
const GRANULE: u64 = 32 * MIB;

const POLICIES: [i32; 3] = [1, 2, 3];
const THRESHOLD: i32 = 4;
const RESERVED: i32 = 5;
const RESERVED_HIGH: i32 = 6;
const USED: i32 = 7;
const USED_HIGH: i32 = 8;

fn get(calls: Calls, pool: &Pool, which: i32) -> u64 {
    let mut value = 0;
    match calls.pool_get(pool, which, &mut value) {
        0 => value,
        _ => u64::MAX - 1,
    }
}

/// Reserved and its peak, used and its peak.
fn state(calls: Calls, pool: &Pool) -> String {
    let [reserved, high, used, used_high] =
        [RESERVED, RESERVED_HIGH, USED, USED_HIGH].map(|which| get(calls, pool, which));
    format!("reserved {reserved} of {high}, used {used} of {used_high}")
}

fn allocate(calls: Calls, bytes: u64, pool: &Pool, stream: &Stream) -> Result<u64, Stop> {
    let mut address = 0;
    need(
        "cuMemAllocFromPoolAsync",
        calls.alloc_from_pool(&mut address, bytes, pool, stream),
    )?;
    Ok(address)
}

fn kinds(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let asked = [
        ("device 0", DEVICE, 0),
        ("device 99", PoolProperties::at(Place::device(99)), 1),
        ("device -1", PoolProperties::at(Place::device(-1)), 1),
        ("kind 0", PoolProperties { kind: 0, ..DEVICE }, 1),
        ("nowhere", PoolProperties::at(Place::NOWHERE), 1),
        ("node 0", PoolProperties::at(Place::node(0)), 0),
        ("node 99", PoolProperties::at(Place::node(99)), 1),
    ];
    for (name, props, expected) in asked {
        let mut handle = 0;
        let answer = calls.pool_create(&mut handle, &props);
        steps.is(name, answer, expected);
        if answer == 0 {
            steps.is(
                &format!("destroy {name}"),
                Pool::own(calls, handle).destroy(),
                0,
            );
        }
    }
    Ok(())
}

fn counters(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let pool = Pool::new(calls, &DEVICE)?;
    steps.is("fresh", state(calls, &pool), "reserved 0 of 0, used 0 of 0");
    let small = allocate(calls, 1000, &pool, &stream)?;
    steps.is(
        "1000 bytes",
        state(calls, &pool),
        "reserved 33554432 of 33554432, used 1000 of 1000",
    );
    let large = allocate(calls, 33 * MIB, &pool, &stream)?;
    let both = "reserved 67108864 of 67108864, used 34604008 of 34604008";
    steps.is("and 33 MiB", state(calls, &pool), both);
    steps.is("free the first", calls.free_async(small, &stream), 0);
    let one = "reserved 67108864 of 67108864, used 34603008 of 34604008";
    steps.is("without the first", state(calls, &pool), one);
    steps.is("free the second", calls.free_async(large, &stream), 0);
    let none = "reserved 67108864 of 67108864, used 0 of 34604008";
    steps.is("without both", state(calls, &pool), none);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    steps.is(
        "synchronized",
        state(calls, &pool),
        "reserved 0 of 67108864, used 0 of 34604008",
    );
    Ok(())
}

fn threshold(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let pool = Pool::new(calls, &DEVICE)?;
    steps.is("at first", get(calls, &pool, THRESHOLD), 0);
    steps.is(
        "set",
        calls.pool_set(&pool, THRESHOLD, &mut u64::MAX.clone()),
        0,
    );
    steps.is("is set", get(calls, &pool, THRESHOLD), u64::MAX);
    let block = allocate(calls, GIB, &pool, &stream)?;
    steps.is("1 GiB", get(calls, &pool, RESERVED), GIB);
    steps.is("free", calls.free_async(block, &stream), 0);
    steps.is("context synchronize", calls.synchronize(), 0);
    steps.is("kept", get(calls, &pool, RESERVED), GIB);
    steps.is("trim to half", calls.pool_trim(&pool, GIB / 2), 0);
    steps.saw("after trimming to half", get(calls, &pool, RESERVED));
    steps.is("trim", calls.pool_trim(&pool, 0), 0);
    steps.is("trimmed", get(calls, &pool, RESERVED), 0);
    let block = allocate(calls, 128 * MIB, &pool, &stream)?;
    steps.is("trim around a block", calls.pool_trim(&pool, 0), 0);
    steps.is("block stays", get(calls, &pool, RESERVED), 128 * MIB);
    let gate = Gate::close(calls, &stream)?;
    steps.is("free behind a gate", calls.free_async(block, &stream), 0);
    steps.is("trim behind a gate", calls.pool_trim(&pool, 0), 0);
    steps.holds("without waiting", !gate.is_passed());
    steps.is(
        "memory behind the gate stays",
        get(calls, &pool, RESERVED),
        128 * MIB,
    );
    gate.open();
    steps.is(
        "lower the threshold",
        calls.pool_set(&pool, THRESHOLD, &mut 0),
        0,
    );
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    steps.is("given back", get(calls, &pool, RESERVED), 0);
    Ok(())
}

fn attributes(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let pool = Pool::new(calls, &DEVICE)?;
    for which in POLICIES {
        steps.is(&format!("policy {which}"), get(calls, &pool, which), 1);
        steps.is(
            &format!("switch {which} off"),
            calls.pool_set(&pool, which, &mut 0),
            0,
        );
        steps.is(
            &format!("policy {which} after"),
            get(calls, &pool, which),
            0,
        );
    }
    let mut value = 0;
    steps.is("attribute 0", calls.pool_get(&pool, 0, &mut value), 1);
    steps.is("attribute 99", calls.pool_get(&pool, 99, &mut value), 1);
    steps.is("set attribute 99", calls.pool_set(&pool, 99, &mut value), 1);
    let block = allocate(calls, GRANULE, &pool, &stream)?;
    steps.is("free", calls.free_async(block, &stream), 0);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    steps.is(
        "peaks",
        state(calls, &pool),
        "reserved 0 of 33554432, used 0 of 33554432",
    );
    for (name, which) in [("reserved", RESERVED_HIGH), ("used", USED_HIGH)] {
        steps.is(
            &format!("peak of {name} to 5"),
            calls.pool_set(&pool, which, &mut 5),
            1,
        );
        steps.is(
            &format!("peak of {name} to 0"),
            calls.pool_set(&pool, which, &mut 0),
            0,
        );
    }
    steps.is("reset", state(calls, &pool), "reserved 0 of 0, used 0 of 0");
    steps.is("set reserved", calls.pool_set(&pool, RESERVED, &mut 0), 1);
    steps.is("set used", calls.pool_set(&pool, USED, &mut 0), 1);
    let mut flags = 9;
    steps.is(
        "access",
        calls.pool_access(&mut flags, &pool, Place::device(0)),
        0,
    );
    steps.is("access is", flags, 3);
    Ok(())
}

fn defaults(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let own = Pool::default(calls)?;
    let (mut one, mut two, mut now) = (0, 0, 0);
    steps.is("default", calls.default_pool(&mut one, 0), 0);
    steps.is("default again", calls.default_pool(&mut two, 0), 0);
    steps.holds("the same", one == two && one == own.raw() as usize);
    steps.is("current", calls.device_pool(&mut now, 0), 0);
    steps.holds("is the default", now == one);
    steps.is("destroy the default", calls.pool_destroy(&own), 1);
    let other = Pool::new(calls, &DEVICE)?;
    steps.is("set another", calls.set_device_pool(0, &other), 0);
    steps.is("current after", calls.device_pool(&mut now, 0), 0);
    steps.holds("is the other", now == other.raw() as usize);
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let mut block = 0;
    steps.is("alloc", calls.alloc_async(&mut block, 1000, &stream), 0);
    steps.is("comes from it", get(calls, &other, USED), 1000);
    steps.is("set the default", calls.set_device_pool(0, &own), 0);
    steps.is("free", calls.free_async(block, &stream), 0);
    steps.is("goes back to it", get(calls, &other, USED), 0);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    steps.is("set again", calls.set_device_pool(0, &other), 0);
    steps.is("destroy the current", other.destroy(), 0);
    steps.is("current at the end", calls.device_pool(&mut now, 0), 0);
    steps.holds("is the default again", now == one);
    Ok(())
}

fn limited(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let pool = Pool::new(
        calls,
        &PoolProperties {
            most: 64 << 20,
            ..DEVICE
        },
    )?;
    steps.is(
        "more than it may",
        calls.alloc_from_pool(&mut 0, 128 * MIB, &pool, &stream),
        2,
    );
    let block = allocate(calls, 16 * MIB, &pool, &stream)?;
    steps.is("reserved", get(calls, &pool, RESERVED), GRANULE);
    steps.is("used", get(calls, &pool, USED), 16 * MIB);
    steps.is("free", calls.free_async(block, &stream), 0);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    Ok(())
}

fn destroyed(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let stream = Stream::new(calls, NON_BLOCKING)?;
    let pool = Pool::new(calls, &DEVICE)?;
    let block = allocate(calls, 4096, &pool, &stream)?;
    steps.is("destroy", pool.destroy(), 0);
    steps.is("fill the block", calls.fill(block, 1, 4096, &stream), 0);
    steps.is("free the block", calls.free_async(block, &stream), 0);
    steps.is("synchronize", calls.stream_synchronize(&stream), 0);
    Ok(())
}

fn frees(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let (one, two) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, NON_BLOCKING)?,
    );
    let mut address = 77;
    steps.is("0 bytes", calls.alloc_async(&mut address, 0, &one), 0);
    steps.is("0 bytes are", address, 0);
    steps.is("1 PiB", calls.alloc_async(&mut address, 1 << 50, &one), 2);
    steps.is("1 byte", calls.alloc_async(&mut address, 1, &one), 0);
    steps.holds("aligned", address % 512 == 0);
    steps.is("free inside", calls.free_async(address + 512, &one), 1);
    steps.is("free null", calls.free_async(0, &one), 0);
    steps.is("free never allocated", calls.free_async(1 << 40, &one), 1);
    steps.is("free on another stream", calls.free_async(address, &two), 0);
    let pinned = Pinned::new(calls, 4096)?;
    steps.is(
        "free pinned memory",
        calls.free_async(pinned.address() as u64, &two),
        1,
    );
    steps.is(
        "legacy stream",
        calls.alloc_async(&mut address, MIB, &super::guards::LEGACY),
        0,
    );
    steps.is("free on a third", calls.free_async(address, &one), 0);
    steps.is("context synchronize", calls.synchronize(), 0);
    Ok(())
}

fn reuse(steps: &mut Steps) -> Outcome {
    const BYTES: u64 = 128 * MIB;
    let calls = steps.calls();
    let (one, two) = (
        Stream::new(calls, NON_BLOCKING)?,
        Stream::new(calls, NON_BLOCKING)?,
    );
    let pool = Pool::new(calls, &DEVICE)?;
    need(
        "cuMemPoolSetAttribute",
        calls.pool_set(&pool, THRESHOLD, &mut u64::MAX.clone()),
    )?;
    let first = allocate(calls, BYTES, &pool, &one)?;
    let gate = Gate::close(calls, &one)?;
    steps.is("free", calls.free_async(first, &one), 0);
    let again = allocate(calls, BYTES, &pool, &one)?;
    steps.holds("the same stream has it at once", again == first);
    steps.is("free again", calls.free_async(again, &one), 0);
    let foreign = allocate(calls, BYTES, &pool, &two)?;
    steps.holds("another stream gets other memory", foreign != first);
    steps.holds("the gate is closed still", !gate.is_passed());
    gate.open();
    steps.is("synchronize", calls.stream_synchronize(&one), 0);
    let later = allocate(calls, BYTES, &pool, &two)?;
    steps.holds(
        "another stream has it when the first is done",
        later == first,
    );
    steps.is("free the foreign", calls.free_async(foreign, &two), 0);
    steps.is("free the later", calls.free_async(later, &two), 0);
    steps.is("context synchronize", calls.synchronize(), 0);
    steps.is("trim", calls.pool_trim(&pool, 0), 0);
    steps.is("reserved", get(calls, &pool, RESERVED), 0);
    Ok(())
}
