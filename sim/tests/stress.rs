//! Many threads at once: no overlap, no lost bytes, nothing left.

mod common;
use common::*;

/// A small generator of its own, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

enum Block {
    Mapped(u64, u64, u64),
    Plain(u64),
    Pooled(u64),
}

impl Block {
    fn make(random: &mut Random, stream: u64) -> Block {
        match random.next(3) {
            0 => {
                let size = CHUNK * (1 + random.next(3));
                let (base, chunk) = mapped(size);
                Block::Mapped(base, chunk, size)
            }
            1 => Block::Plain(new("cuMemAlloc_v2", &[1 + random.next(4 * MIB)])),
            _ => Block::Pooled(new("cuMemAllocAsync", &[1 + random.next(8 * MIB), stream])),
        }
    }

    fn base(&self) -> u64 {
        match self {
            Block::Mapped(base, ..) | Block::Plain(base) | Block::Pooled(base) => *base,
        }
    }

    fn free(self, stream: u64) {
        match self {
            Block::Mapped(base, chunk, size) => {
                ok("cuStreamSynchronize", &[stream]);
                unmapped(base, chunk, size);
            }
            Block::Plain(base) => ok("cuMemFree_v2", &[base]),
            Block::Pooled(base) => ok("cuMemFreeAsync", &[base, stream]),
        }
    }
}

fn work(seed: u64, context: u64) {
    ok("cuCtxSetCurrent", &[context]);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let a = stream(1);
    let mut blocks: Vec<(Block, u8)> = Vec::new();
    for _ in 0..400 {
        if blocks.len() < 8 && random.next(2) == 0 {
            let block = Block::make(&mut random, a);
            let mark = random.next(256) as u8;
            ok("cuMemsetD8Async", &[block.base(), mark as u64, 1, a]);
            blocks.push((block, mark));
        } else if !blocks.is_empty() {
            let (block, mark) = blocks.swap_remove(random.next(blocks.len() as u64) as usize);
            let mut found = [0u8];
            ok(
                "cuMemcpyDtoHAsync_v2",
                &[found.as_mut_ptr() as u64, block.base(), 1, a],
            );
            ok("cuStreamSynchronize", &[a]);
            assert_eq!(found[0], mark);
            block.free(a);
        }
    }
    blocks.into_iter().for_each(|(block, _)| block.free(a));
    ok("cuStreamSynchronize", &[a]);
    ok("cuStreamDestroy_v2", &[a]);
}

#[test]
fn eight_threads_keep_out_of_each_others_memory() {
    let _m = Machine::start("");
    let context = new("cuCtxGetCurrent", &[]);
    let threads: Vec<_> = (1..=8)
        .map(|seed| std::thread::spawn(move || work(seed, context)))
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    ok("cuCtxSynchronize", &[]);
    assert_clean();
}

#[test]
fn every_call_may_fail_once_without_harm() {
    let _m = Machine::start("");
    for name in [
        "cuMemAddressReserve",
        "cuMemCreate",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemUnmap",
        "cuMemRelease",
        "cuMemAddressFree",
    ] {
        ok("hbmsim_fail", &[text(name).as_ptr() as u64, 1, 2, 1]);
        let mut base = 0u64;
        while call(
            "cuMemAddressReserve",
            &[&raw mut base as u64, CHUNK, 0, 0, 0],
        ) != 0
        {}
        let (mut chunk, prop) = (0u64, DEVICE);
        while call(
            "cuMemCreate",
            &[&raw mut chunk as u64, CHUNK, &prop as *const Prop as u64, 0],
        ) != 0
        {}
        while map(base, CHUNK, chunk) != 0 {}
        while grant(base, CHUNK, 0, 3) != 0 {}
        ok("cuMemsetD8_v2", &[base, 1, CHUNK]);
        ok("cuCtxSynchronize", &[]);
        while call("cuMemUnmap", &[base, CHUNK]) != 0 {}
        while call("cuMemRelease", &[chunk]) != 0 {}
        while call("cuMemAddressFree", &[base, CHUNK]) != 0 {}
        assert_clean();
    }
}
