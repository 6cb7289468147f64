//! Arenas: where they live, so that a handle is found without a lock and a stale one is seen, and what is theirs
//! alone.

use super::allocator::{find, hbm_allocator_t};
use super::allocator_kinds::Allocator;
use super::descriptor::Backing;
use super::{export, streams, write_struct};
use crate::core::size::Align;
use crate::core::stack::ALIGN;
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::gpu::Stream;
use crate::observe;
use crate::pool::stack::{Arena, ArenaStats, Upstream};
use crate::process::{self, AllocatorId, Stats};
use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex};

/// So many arenas at a time.
const PLACES: usize = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 12;
/// Tells the handles of arenas from those of others, which are small numbers.
const IS_ARENA: u64 = 1 << 62;

/// Never taken down, so that a stale handle finds at worst another arena, which sees that it is not meant.
static ARENAS: [AtomicPtr<Arena>; PLACES] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; PLACES];
static SPARE: Mutex<Places> = Mutex::new(Places {
    spare: Vec::new(),
    used: 0,
});

struct Places {
    spare: Vec<usize>,
    used: usize,
}

/// An arena's place, and what it is over.
pub(super) struct Place {
    arena: &'static Arena,
    number: u64,
    upstream: Arc<Allocator>,
}

#[inline]
fn arena_at(place: usize) -> Option<&'static Arena> {
    let arena = ARENAS[place % PLACES].load(Ordering::Acquire);
    // SAFETY: NULL, or put there by `make_at`, whose arena is never taken down.
    unsafe { arena.as_ref() }
}

/// The arena at a place that the caller alone was given.
fn make_at(place: usize) -> &'static Arena {
    arena_at(place).unwrap_or_else(|| {
        let arena: &'static mut Arena = Box::leak(Box::new(Arena::new()));
        ARENAS[place % PLACES].store(arena, Ordering::Release);
        arena
    })
}

/// Whether it may be an arena's handle.
#[inline]
pub(super) fn is_arena(handle: *mut hbm_allocator_t) -> bool {
    handle as usize as u64 & IS_ARENA != 0
}

/// The arena of a handle, perhaps another by now.
#[inline]
fn arena_of(handle: *mut hbm_allocator_t) -> Option<(&'static Arena, u64)> {
    if !is_arena(handle) || process::is_of_parent() {
        return None;
    }
    let number = handle as usize as u64;
    Some((arena_at(number as usize)?, number))
}

/// A block of an arena that this thread has to itself, where there is room in the region.
#[inline]
pub(super) fn allocate_at_once(
    handle: *mut hbm_allocator_t,
    bytes: u64,
    alignment: usize,
    stream: Stream,
) -> Option<u64> {
    if alignment & alignment.wrapping_sub(1) != 0 || alignment > ALIGN.get() as usize {
        return None;
    }
    let (arena, number) = arena_of(handle)?;
    arena.allocate_at_once(number, bytes, stream)
}

/// Takes the last block of an arena back that this thread has to itself.
#[inline]
pub(super) fn deallocate_at_once(
    handle: *mut hbm_allocator_t,
    address: u64,
    bytes: Option<u64>,
    used_on: Stream,
) -> bool {
    let Some((arena, number)) = arena_of(handle) else {
        return false;
    };
    arena.deallocate_at_once(number, address, bytes, used_on)
}

impl Place {
    /// A place for a new arena over an allocator, which from now on stays.
    pub fn take(operation: &'static str, upstream: *mut hbm_allocator_t) -> Result<Place> {
        if upstream.is_null() {
            return Err(Error::invalid(
                operation,
                "upstream is NULL, with kind arena",
            ));
        }
        let upstream = find(operation, upstream)?;
        upstream.add_arena(operation)?;
        let place = {
            let mut places = lock(&SPARE);
            places.spare.pop().or_else(|| {
                places.used += usize::from(places.used < PLACES);
                (places.used < PLACES).then_some(places.used)
            })
        };
        let Some(place) = place else {
            upstream.drop_arena();
            return Err(Error::new(Status::OutOfMemory, operation)
                .detail(format!("there are {} arenas", PLACES - 1)));
        };
        let number = IS_ARENA | AllocatorId::new().get() << PLACE_BITS | place as u64;
        let arena = make_at(place);
        arena.begin(number, Arc::new(Over(upstream.clone())));
        observe::process().add_stack(arena, number);
        Ok(Place {
            arena,
            number,
            upstream,
        })
    }

    /// As the caller has it.
    pub fn handle(&self) -> usize {
        self.number as usize
    }

    /// What it is over.
    pub fn upstream(&self) -> &Allocator {
        &self.upstream
    }

    /// The arena is no more, and its upstream free of it.
    pub fn end(&self) -> Result<()> {
        self.arena.end(self.number)?;
        observe::process().drop_stack(self.number);
        self.upstream.drop_arena();
        lock(&SPARE).spare.push(self.number as usize % PLACES);
        Ok(())
    }

    pub fn allocate(&self, bytes: u64, align: Align, stream: Stream) -> Result<u64> {
        self.arena.allocate(self.number, bytes, align, stream)
    }

    pub fn deallocate(
        &self,
        address: u64,
        bytes: Option<u64>,
        used_on: Stream,
    ) -> (bool, Result<()>) {
        (self.arena).deallocate(self.number, address, bytes, used_on)
    }

    pub fn record_stream(&self, address: u64, stream: Stream) -> Result<()> {
        self.arena.record_stream(self.number, address, stream)
    }

    pub fn trim(&self, keep: u64) -> Result<u64> {
        self.arena.trim(self.number, keep)
    }

    fn read(&self, operation: &'static str) -> Result<ArenaStats> {
        self.arena.stats(self.number, operation)
    }

    pub fn stats(&self) -> Result<Stats> {
        let stats = self.read("hbm_allocator_stats")?;
        Ok(Stats {
            requested: stats.requested.now,
            allocated: stats.allocated.now,
            reserved: stats.reserved.now,
            peak_requested: stats.requested.peak,
            peak_allocated: stats.allocated.peak,
            peak_reserved: stats.reserved.peak,
            total_requested: stats.requested.added,
            total_allocated: stats.allocated.added,
            total_reserved: stats.reserved.added,
            allocations: stats.blocks.added,
            deallocations: stats.blocks.added - stats.blocks.now,
            peak_blocks: stats.blocks.peak,
            segments: stats.pieces.now,
            peak_segments: stats.pieces.peak,
            total_segments: stats.pieces.added,
            failed_allocations: stats.failed,
            out_of_memory: stats.out_of_memory,
            warnings: observe::process().warnings().total(),
            limit: u64::MAX,
            ..Stats::default()
        })
    }
}

/// What an arena is over.
struct Over(Arc<Allocator>);

impl Upstream for Over {
    fn is_by_stream(&self) -> bool {
        self.0.is_by_stream()
    }

    fn device(&self) -> Option<i32> {
        self.0.device_of_blocks()
    }

    fn gives_back_at_once(&self) -> bool {
        self.0.gives_back_at_once()
    }

    fn allocate(&self, bytes: u64, stream: Stream) -> Result<u64> {
        self.0.expect_block();
        self.0.allocate_expected(bytes, ALIGN, stream)
    }

    fn deallocate(&self, address: u64, bytes: u64, used_on: Stream) -> (bool, Result<()>) {
        self.0.deallocate(address, Some(bytes), used_on)
    }

    fn record_stream(&self, address: u64, stream: Stream) -> Result<()> {
        self.0.record_stream(address, stream)
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        streams::synchronize(self.0.device, stream)
    }

    fn trim(&self, keep: u64) -> Result<u64> {
        self.0.trim(keep)
    }
}

/// Between two steps of a program: makes the region of an arena as long as the largest need so far, so that the next
/// step finds room for everything. HBM_BUSY while a block of the region is given out, with nothing changed; blocks
/// that were spilled may live on. Does nothing if the region is that long and for `stream` already.
///
/// `stream` is the stream (as for hbm_allocator_allocate) that the region will be used on. It must live until the region is
/// given back, by another iter, by a trim or with the arena, or be forgotten (hbm_stream_forget) before it is destroyed.
///
/// The old region is given back to the upstream before the new one is had, so that memory for both is never needed. If
/// the new one cannot be had, one of the old length is; the error of the upstream is returned all the same, and says
/// whether there is a region. Without one all blocks are spilled, until another iter succeeds. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_arena_iter(arena: *mut hbm_allocator_t, stream: *mut c_void) -> i32 {
    export(|| {
        with_place("hbm_arena_iter", arena, |place| {
            place.arena.iter(place.number, Stream::from_raw(stream))
        })
    })
}

/// What an arena is like, besides what hbm_allocator_stats says of it. Sizes in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct hbm_arena_stats_t {
    /// sizeof(hbm_arena_stats_t) as the program was compiled.
    pub struct_size: usize,
    /// The length of the region; 0 where there is none.
    pub region_bytes: u64,
    /// As long a region would have served every request so far; hbm_arena_iter makes it so long.
    pub largest_need: u64,
    /// Bytes had from the upstream for blocks now given out that are spilled.
    pub spilled_bytes: u64,
    /// Blocks now given out that are spilled.
    pub spilled_blocks: u64,
    /// Blocks that were ever spilled.
    pub spills: u64,
    /// Blocks now given out, in the region or spilled.
    pub blocks: u64,
}

/// Statistics of an arena. Any thread.
///
/// # Safety
/// `out` must point to an hbm_arena_stats_t whose `struct_size` is filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hbm_arena_stats(
    arena: *mut hbm_allocator_t,
    out: *mut hbm_arena_stats_t,
) -> i32 {
    const OPERATION: &str = "hbm_arena_stats";
    export(|| {
        let stats = with_place(OPERATION, arena, |place| place.read(OPERATION))?;
        let stats = hbm_arena_stats_t {
            struct_size: size_of::<hbm_arena_stats_t>(),
            region_bytes: stats.region,
            largest_need: stats.largest_need,
            spilled_bytes: stats.spilled_bytes,
            spilled_blocks: stats.spilled.now,
            spills: stats.spilled.added,
            blocks: stats.blocks.now,
        };
        // SAFETY: passed on to the caller.
        unsafe { write_struct(OPERATION, out, &stats) }
    })
}

fn with_place<R>(
    operation: &'static str,
    arena: *mut hbm_allocator_t,
    ask: impl FnOnce(&Place) -> Result<R>,
) -> Result<R> {
    let found = find(operation, arena)?;
    match &found.backing {
        Backing::Arena(place) => ask(place),
        _ => Err(Error::invalid(operation, format!("{arena:p} is no arena"))),
    }
}
