//! What the driver knows about an address.

use super::abi::{Place, Properties};
use super::calls::Calls;
use super::cases;
use super::guards::{CHUNK, LEGACY, MIB, Owned, Pinned};
use super::steps::{HOST_NODES, Steps};
use crate::selftest::{Case, Outcome};

pub const CASES: &[Case] = cases![
    "pointer attributes" => known,
    "pointer attributes of foreign addresses" => unknown,
];

const CONTEXT: i32 = 1;
const MEMORY_KIND: i32 = 2;
const DEVICE_POINTER: i32 = 3;
const HOST_POINTER: i32 = 4;
const IS_MANAGED: i32 = 8;
const DEVICE: i32 = 9;
const RANGE_START: i32 = 11;
const RANGE_SIZE: i32 = 12;
const IS_MAPPED: i32 = 13;
const POOL: i32 = 17;

/// Within a block, so that offsets show.
const INSIDE: u64 = 16;

/// What there is to know 16 bytes behind `start`: numbers as they are, addresses from `start` on.
fn describe(calls: Calls, start: u64) -> String {
    let mut context = 0;
    calls.current(&mut context);
    let ask = |which| {
        let mut out = 0;
        match calls.pointer_attribute(&mut out, which, start + INSIDE) {
            0 => Ok(out),
            code => Err(format!("refused {code}")),
        }
    };
    let number = |which| ask(which).map_or_else(|why| why, |out| out.to_string());
    let offset = |which| match ask(which) {
        Ok(0) => "null".to_owned(),
        Ok(out) => out.wrapping_sub(start).to_string(),
        Err(why) => why,
    };
    let is = |which, what: fn(u64, usize) -> bool| {
        ask(which).map_or_else(|why| why, |out| what(out, context).to_string())
    };
    format!(
        "kind {}, mine {}, device {}, device pointer {}, host pointer {}, managed {}, range {}+{}, mapped {}, pooled {}",
        number(MEMORY_KIND),
        is(CONTEXT, |out, context| out as usize == context),
        number(DEVICE),
        offset(DEVICE_POINTER),
        offset(HOST_POINTER),
        number(IS_MANAGED),
        offset(RANGE_START),
        number(RANGE_SIZE),
        number(IS_MAPPED),
        is(POOL, |out, _| out != 0),
    )
}

fn known(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let plain = Owned::plain(calls, 1000)?;
    let expected = "kind 2, mine true, device 0, device pointer 16, host pointer refused 1, managed 0, range 0+1000, mapped 1, pooled false";
    steps.is("plain", describe(calls, plain.number()), expected);
    let managed = Owned::managed(calls, 10000)?;
    let expected = "kind 2, mine true, device 0, device pointer 16, host pointer 16, managed 1, range 0+10000, mapped 1, pooled false";
    steps.is("managed", describe(calls, managed.number()), expected);
    let pinned = Pinned::new(calls, 10000)?;
    let expected = "kind 1, mine true, device 0, device pointer 16, host pointer 16, managed 0, range 0+10000, mapped 1, pooled false";
    steps.is("pinned", describe(calls, pinned.address() as u64), expected);
    let mut pooled = 0;
    steps.is(
        "alloc async",
        calls.alloc_async(&mut pooled, 1000, &LEGACY),
        0,
    );
    let expected = "kind 2, mine false, device 0, device pointer 16, host pointer refused 1, managed 0, range 0+1000, mapped 1, pooled true";
    steps.is("pooled", describe(calls, pooled), expected);
    steps.is("free async", calls.free_async(pooled, &LEGACY), 0);
    let (reservation, chunk) = (
        Owned::reservation(calls, 4 * MIB)?,
        Owned::chunk(calls, 4 * MIB)?,
    );
    let mapping = Owned::mapping(calls, reservation.number(), &chunk)?;
    let expected = "kind 2, mine false, device 0, device pointer 16, host pointer refused 1, managed 0, range 0+4194304, mapped 1, pooled false";
    steps.is("mapped", describe(calls, mapping.number()), expected);
    drop(mapping);
    let bare = Owned::bare_mapping(calls, reservation.number(), &chunk)?;
    let expected = "kind 2, mine false, device 0, device pointer refused 1, host pointer refused 1, managed 0, range 0+4194304, mapped 1, pooled false";
    steps.is(
        "mapped without access",
        describe(calls, bare.number()),
        expected,
    );
    drop(bare);
    if !steps.offers(HOST_NODES) {
        return Ok(());
    }
    let chunk = Owned::chunk_of(calls, CHUNK, &Properties::at(Place::node(0)))?;
    let _mapping = Owned::mapping(calls, reservation.number(), &chunk)?;
    let expected = "kind 1, mine false, device 0, device pointer 16, host pointer refused 1, managed 0, range 0+4194304, mapped 1, pooled false";
    steps.is(
        "mapped host node",
        describe(calls, reservation.number()),
        expected,
    );
    Ok(())
}

fn unknown(steps: &mut Steps) -> Outcome {
    let calls = steps.calls();
    let reservation = Owned::reservation(calls, CHUNK)?;
    let freed = Owned::plain(calls, 64 * MIB)?;
    let (gone, pageable) = (freed.number(), Box::new([0u8; 4096]));
    steps.is("free", freed.end(), 0);
    let places = [
        ("reserved only", reservation.number()),
        ("freed", gone),
        ("pageable", pageable.as_ptr() as u64),
        ("never allocated", 1 << 40),
    ];
    for (name, address) in places {
        for which in [
            CONTEXT,
            MEMORY_KIND,
            DEVICE_POINTER,
            DEVICE,
            RANGE_SIZE,
            IS_MAPPED,
        ] {
            let mut out = 0;
            let answer = calls.pointer_attribute(&mut out, which, address);
            steps.is(&format!("{which} of {name}"), answer, 1);
        }
    }
    Ok(())
}
