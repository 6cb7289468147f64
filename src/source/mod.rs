//! Where memory comes from: one file a kind, one contract. A source serves one device and knows
//! nothing of how its blocks are cached or who asks for them.

pub mod device;
pub mod host;
pub mod managed;
pub mod pinned;
pub mod slab;
pub mod stream_ordered;
pub mod vmm;

use crate::config::value::Location;
use crate::core::size::Align;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status};
use crate::extent::DeviceState;
use crate::extent::deferral::Behind;
use crate::extent::table::Owner;
use crate::gpu::{Device, Fence, PlacedStream, Stream, Uses};
use std::sync::{Arc, RwLockReadGuard};

/// The kinds of source; the integers are those of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Kind {
    /// Synchronous device memory.
    Device = 0,
    /// Managed memory.
    Managed = 1,
    /// The driver's stream-ordered pools.
    Async = 2,
    /// Virtual memory management.
    Vmm = 3,
    /// The caching pool over one of these.
    Pool = 4,
    /// Pinned memory of the host.
    Pinned = 5,
}

impl Kind {
    /// Every kind, the default first.
    pub const ALL: [Kind; 6] = [
        Kind::Pool,
        Kind::Device,
        Kind::Managed,
        Kind::Async,
        Kind::Vmm,
        Kind::Pinned,
    ];

    /// The kinds that have a source of their own.
    pub const SOURCES: [Kind; 5] = [
        Kind::Device,
        Kind::Managed,
        Kind::Async,
        Kind::Vmm,
        Kind::Pinned,
    ];

    /// The kind's name in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Device => "device",
            Kind::Managed => "managed",
            Kind::Async => "async",
            Kind::Vmm => "vmm",
            Kind::Pool => "pool",
            Kind::Pinned => "pinned",
        }
    }

    /// The kind of a name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind of the C ABI's integer.
    pub fn from_number(number: i32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as i32 == number)
    }
}

/// The alignment every block has at least: what the driver gives and kernels rely on.
pub const ALIGN: Align = Align::new(256).expect("a power of two");

/// What is asked of a source.
#[derive(Clone, Debug)]
pub struct Request {
    /// Bytes wanted, above zero.
    pub bytes: u64,
    /// Alignment of the address.
    pub align: Align,
    /// The stream on which the block is used first.
    pub stream: Stream,
    /// Whether that stream is capturing.
    pub capturing: bool,
    /// Who divides the memory up.
    pub owner: Owner,
    /// The tag of what will live in it.
    pub tag: TagId,
}

/// Memory handed out by a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its first address.
    pub address: u64,
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes that belong to it.
    pub bytes: u64,
    /// The stream it was allocated on.
    pub stream: Stream,
}

/// Which work of its own device may still use a block that is given back, besides what was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastUse {
    /// Work already given to the block's own stream.
    Streams,
    /// The same, in a program that tells us of every capture. A stream may use the block and not be
    /// named, if the program orders it by itself: memory it uses is not unmapped under it.
    Told,
    /// Any work already given to the device.
    Anywhere,
    /// Any work already given to the device, of managed memory to any, as cudaFree has it; what becomes of the block in a
    /// capture is the program's own affair. Work of any stream may use the block at once, so [`Kind::Async`] has none for
    /// this.
    Everywhere,
    /// Any work already given to the device, in a program that tells us neither of streams nor of
    /// captures: one may just have begun, so nothing is recorded before the next allocation.
    Unknown,
}

impl LastUse {
    /// Whether the block's own stream is all that need be waited for of what nobody named.
    pub fn is_by_stream(self) -> bool {
        matches!(self, LastUse::Streams | LastUse::Told)
    }
}

/// Held while streams are named to the driver that a caller may be about to destroy: who forgets one
/// waits for it.
pub type Naming<'a> = RwLockReadGuard<'a, ()>;

/// How a block is given back: the work that may still use it.
pub struct Freeing<'a> {
    /// Of its own device.
    pub last_use: LastUse,
    /// What was named, on whatever device.
    pub others: Uses,
    /// Let go as soon as no stream need be named any more, and before anything is waited for.
    pub naming: Option<Naming<'a>>,
}

impl Freeing<'_> {
    /// Behind the block's own stream and one other of its device.
    pub fn behind(last_use: LastUse, device: &Arc<Device>, stream: Stream) -> Self {
        let mut others = Uses::default();
        others.add(PlacedStream::on(device, stream));
        Freeing {
            others,
            ..Freeing::from(last_use)
        }
    }
}

impl From<LastUse> for Freeing<'_> {
    fn from(last_use: LastUse) -> Self {
        Freeing {
            last_use,
            others: Uses::default(),
            naming: None,
        }
    }
}

/// Bytes a source holds from the device.
pub use crate::core::gauge::Reading as Held;

/// The contract of every source.
///
/// Any thread may call it, with any context current or none; the thread's context and capture mode
/// are as before afterwards. A call that fails leaves nothing behind.
pub trait Source: Send + Sync {
    /// What kind it is.
    fn kind(&self) -> Kind;

    /// Whose memory it takes: where room must be made when it has none.
    fn location(&self) -> Location {
        Location::Device
    }

    /// Gives out a block of at least the bytes asked for, aligned as asked for, that no other block
    /// overlaps and that work given to the request's stream from now on may use.
    fn allocate(&self, request: &Request) -> Result<Block>;

    /// Takes a block back once the work that `freed` tells of no longer uses it. The block is gone for
    /// the caller whatever is returned; after an error its memory is given back on a later slow path.
    fn deallocate(&self, block: &Block, freed: Freeing) -> Result<()>;

    /// Gives cached memory back to the device down to `keep` bytes, waiting for work on freed blocks.
    /// Does nothing while a capture is open.
    fn trim(&self, keep: u64) -> Result<()>;

    /// What it holds from the device.
    fn held(&self) -> Held;

    /// In how many pieces the driver gave it, each by a call; none where that is not known.
    fn pieces(&self) -> Held {
        Held::default()
    }

    /// Starts the peak of what it holds again from what it holds now.
    fn reset_peak(&self) -> Result<()>;
}

impl DeviceState {
    /// Whether a capture is open that freeing `block` might disturb.
    fn is_captured(&self, block: &Block, freed: &Freeing) -> Result<bool> {
        if self.device.capture_open() {
            return Ok(true);
        }
        if !freed.last_use.is_by_stream() {
            return Ok(false);
        }
        let _guard = self.device.enter()?;
        Ok(self.device.is_capturing(block.stream)? || freed.others.is_captured()?)
    }

    /// The work that may use `block`, its own stream's included where `own` says so.
    fn uses(&self, block: &Block, freed: &Freeing, own: bool) -> Uses {
        let mut uses = freed.others.clone();
        match freed.last_use.is_by_stream() {
            true if own => uses.add(PlacedStream::on(&self.device, block.stream)),
            true => {}
            false => uses.add_device(&self.device),
        }
        uses
    }

    /// A fence behind the work that may use `block`, its own stream's included where `own` says so;
    /// none while a capture is open or may be, when none can be had.
    fn fence(&self, block: &Block, freed: &Freeing, own: bool) -> Result<Option<Fence>> {
        if freed.last_use == LastUse::Unknown || self.is_captured(block, freed)? {
            return Ok(None);
        }
        match self.uses(block, freed, own).fence() {
            Ok(fence) => Ok(Some(fence)),
            Err(error) if error.status() == Status::Capturing => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a block waits for behind which no fence could be had: everything, of every device that may
    /// use it.
    fn everything(&self, freed: &Freeing) -> Behind {
        let mut uses = freed.others.clone();
        uses.add_device(&self.device);
        uses.widen();
        Behind::Everything(uses)
    }

    /// Waits for the work that may use `block`, then runs `give_back`; where nothing can be waited for
    /// now, or it fails, queues it to be tried again.
    fn give_back_behind(
        &self,
        block: &Block,
        mut freed: Freeing,
        give_back: impl FnMut() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let fence = self.fence(block, &freed, true);
        if let Ok(Some(_)) = &fence {
            freed.naming = None;
        }
        let waited = fence.and_then(|fence| match fence {
            Some(fence) => fence.wait().map(|()| true),
            None => Ok(false),
        });
        match waited {
            Ok(true) => self.give_back_now(block.bytes, give_back),
            waits => {
                let behind = self.everything(&freed);
                self.deferral.push(behind, block.bytes, give_back);
                waits.map(|_| ())
            }
        }
    }

    /// Runs `give_back` now; if it fails, queues it to be tried again and returns the error.
    fn give_back_now(
        &self,
        bytes: u64,
        mut give_back: impl FnMut() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        give_back().inspect_err(|_| {
            let done = Behind::Fence(Fence::DONE);
            self.deferral.push(done, bytes, give_back);
        })
    }
}

/// Rounds a request up, so that arithmetic on sizes near the end of the range fails here and not in
/// the driver.
fn rounded(request: &Request, granularity: Align) -> Result<u64> {
    granularity
        .round_up(request.bytes)
        // Beyond this no device has addresses, and some drivers answer with strange codes.
        .filter(|bytes| *bytes <= 1 << 56)
        .ok_or_else(|| Error::new(Status::OutOfMemory, "allocate").bytes(request.bytes))
}

/// Alignment that only virtual memory can give is refused by the others.
fn check_align(request: &Request) -> Result<()> {
    if request.align <= ALIGN {
        return Ok(());
    }
    Err(Error::invalid(
        "allocate",
        format!(
            "an alignment of {} bytes is more than this source's {} bytes",
            request.align.get(),
            ALIGN.get()
        ),
    )
    .advice("Use the vmm source for larger alignments"))
}
