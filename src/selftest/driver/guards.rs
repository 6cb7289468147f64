//! What a case makes and must give back however it ends. A guard destroys what it holds when it is
//! dropped; declared after what it needs, it goes before it.

use super::abi::{Access, Place, PoolProperties, Properties, READ_WRITE};
use super::calls::{Calls, code};
use crate::selftest::Stop;
use crate::sys::cuda::Handle;

/// The size of the smallest chunk.
pub const CHUNK: u64 = 2 << 20;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// A failed preparation ends its case.
pub fn need(what: &str, answer: i32) -> Result<(), Stop> {
    match answer {
        0 => Ok(()),
        answer => Err(Stop::Failed(format!("preparing: {what} answered {answer}"))),
    }
}

/// A stream of the case's own, or one of the driver's special ones.
pub struct Stream<'a> {
    owner: Option<Calls<'a>>,
    handle: usize,
}

pub const BLOCKING: u32 = 0;
pub const NON_BLOCKING: u32 = 1;

impl<'a> Stream<'a> {
    pub fn new(calls: Calls<'a>, flags: u32) -> Result<Stream<'a>, Stop> {
        let mut handle = 0;
        need("cuStreamCreate", calls.stream_create(&mut handle, flags))?;
        Ok(Stream {
            owner: Some(calls),
            handle,
        })
    }

    /// 0 and 1: the legacy stream; 2: the calling thread's.
    pub const fn special(handle: usize) -> Stream<'static> {
        Stream {
            owner: None,
            handle,
        }
    }

    pub fn raw(&self) -> Handle {
        self.handle as Handle
    }

    /// Destroys it now; the code.
    pub fn destroy(mut self) -> i32 {
        self.give_back()
    }

    fn give_back(&mut self) -> i32 {
        self.owner.take().map_or(0, |calls| {
            // SAFETY: made in `new`, and `owner` is taken once.
            code(unsafe { calls.cuda().stream_destroy(self.handle as Handle) })
        })
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// The legacy stream.
pub const LEGACY: Stream<'static> = Stream::special(0);
/// The calling thread's stream.
pub const PER_THREAD: Stream<'static> = Stream::special(2);

pub struct Event<'a> {
    owner: Option<Calls<'a>>,
    handle: usize,
}

/// Events without times, as an allocator uses.
pub const UNTIMED: u32 = 2;

impl<'a> Event<'a> {
    pub fn new(calls: Calls<'a>) -> Result<Event<'a>, Stop> {
        let mut handle = 0;
        need("cuEventCreate", calls.event_create(&mut handle, UNTIMED))?;
        Ok(Event {
            owner: Some(calls),
            handle,
        })
    }

    pub fn raw(&self) -> Handle {
        self.handle as Handle
    }

    pub fn destroy(mut self) -> i32 {
        self.give_back()
    }

    fn give_back(&mut self) -> i32 {
        self.owner.take().map_or(0, |calls| {
            // SAFETY: made in `new`, and `owner` is taken once.
            code(unsafe { calls.cuda().event_destroy(self.handle as Handle) })
        })
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Something named by a number, given back by a call with it.
pub struct Owned<'a> {
    calls: Calls<'a>,
    number: u64,
    bytes: u64,
    give_back: Option<fn(Calls<'a>, u64, u64) -> i32>,
}

impl<'a> Owned<'a> {
    fn new(
        calls: Calls<'a>,
        number: u64,
        bytes: u64,
        give_back: fn(Calls<'a>, u64, u64) -> i32,
    ) -> Owned<'a> {
        Owned {
            calls,
            number,
            bytes,
            give_back: Some(give_back),
        }
    }

    /// Synchronous device memory.
    pub fn plain(calls: Calls<'a>, bytes: u64) -> Result<Owned<'a>, Stop> {
        let mut address = 0;
        need("cuMemAlloc", calls.alloc(&mut address, bytes))?;
        Ok(Owned::new(calls, address, bytes, |calls, at, _| {
            calls.free(at)
        }))
    }

    /// Managed memory for every stream.
    pub fn managed(calls: Calls<'a>, bytes: u64) -> Result<Owned<'a>, Stop> {
        const ATTACH_GLOBAL: u32 = 1;
        let mut address = 0;
        need(
            "cuMemAllocManaged",
            calls.alloc_managed(&mut address, bytes, ATTACH_GLOBAL),
        )?;
        Ok(Owned::new(calls, address, bytes, |calls, at, _| {
            calls.free(at)
        }))
    }

    pub fn reservation(calls: Calls<'a>, bytes: u64) -> Result<Owned<'a>, Stop> {
        let mut address = 0;
        need(
            "cuMemAddressReserve",
            calls.reserve(&mut address, bytes, 0, 0, 0),
        )?;
        Ok(Owned::reserved(calls, address, bytes))
    }

    /// Takes over addresses reserved already.
    pub fn reserved(calls: Calls<'a>, address: u64, bytes: u64) -> Owned<'a> {
        Owned::new(calls, address, bytes, |calls, at, bytes| {
            calls.free_address(at, bytes)
        })
    }

    pub fn chunk(calls: Calls<'a>, bytes: u64) -> Result<Owned<'a>, Stop> {
        Owned::chunk_of(calls, bytes, &Properties::at(Place::device(0)))
    }

    pub fn chunk_of(calls: Calls<'a>, bytes: u64, props: &Properties) -> Result<Owned<'a>, Stop> {
        let mut handle = 0;
        need("cuMemCreate", calls.create(&mut handle, bytes, props, 0))?;
        Ok(Owned::handle(calls, handle, bytes))
    }

    /// Takes over a chunk's handle.
    pub fn handle(calls: Calls<'a>, handle: u64, bytes: u64) -> Owned<'a> {
        Owned::new(calls, handle, bytes, |calls, handle, _| {
            calls.release(handle)
        })
    }

    /// Maps `chunk` whole at `address`, without access.
    pub fn bare_mapping(calls: Calls<'a>, address: u64, chunk: &Owned) -> Result<Owned<'a>, Stop> {
        let bytes = chunk.bytes;
        need("cuMemMap", calls.map(address, bytes, 0, chunk.number, 0))?;
        Ok(Owned::mapped(calls, address, bytes))
    }

    /// Maps `chunk` whole at `address`, for the first device to read and write.
    pub fn mapping(calls: Calls<'a>, address: u64, chunk: &Owned) -> Result<Owned<'a>, Stop> {
        let mapping = Owned::bare_mapping(calls, address, chunk)?;
        let all = Access {
            place: Place::device(0),
            flags: READ_WRITE,
        };
        need(
            "cuMemSetAccess",
            calls.set_access(address, chunk.bytes, &[all]),
        )?;
        Ok(mapping)
    }

    /// Takes over a mapping.
    pub fn mapped(calls: Calls<'a>, address: u64, bytes: u64) -> Owned<'a> {
        Owned::new(calls, address, bytes, |calls, at, bytes| {
            calls.unmap(at, bytes)
        })
    }

    /// The address or the handle.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Gives it back now; the code. What was refused is not tried again.
    pub fn end(mut self) -> i32 {
        self.finish()
    }

    /// Gives it back now; what was refused is tried again at the end.
    pub fn attempt(&mut self) -> i32 {
        let Some(give_back) = self.give_back else {
            return 0;
        };
        let answer = give_back(self.calls, self.number, self.bytes);
        if answer == 0 {
            self.give_back = None;
        }
        answer
    }

    /// The case has given it back by a call of its own.
    pub fn gone(mut self) {
        self.give_back = None;
    }

    fn finish(&mut self) -> i32 {
        self.give_back.take().map_or(0, |give_back| {
            give_back(self.calls, self.number, self.bytes)
        })
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Pinned host memory, freed behind all work of the context.
pub struct Pinned<'a> {
    calls: Calls<'a>,
    address: usize,
    bytes: usize,
}

impl<'a> Pinned<'a> {
    pub fn new(calls: Calls<'a>, bytes: u64) -> Result<Pinned<'a>, Stop> {
        let mut address = 0;
        need("cuMemHostAlloc", calls.host_alloc(&mut address, bytes, 0))?;
        Ok(Pinned {
            calls,
            address,
            bytes: bytes as usize,
        })
    }

    pub fn address(&self) -> usize {
        self.address
    }

    /// Its bytes, once the work that writes them has ended.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the driver gave so many bytes there; cases look when the stream has been waited for.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes) }
    }
}

impl Pinned<'_> {
    /// Frees it now; the code.
    pub fn free(mut self) -> i32 {
        self.give_back()
    }

    fn give_back(&mut self) -> i32 {
        match std::mem::take(&mut self.address) {
            0 => 0,
            address => self.calls.host_free(address),
        }
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

macro_rules! handle_guard {
    ($(#[$doc:meta])* $name:ident, $destroy:ident) => {
        $(#[$doc])*
        pub struct $name<'a> {
            owner: Option<Calls<'a>>,
            handle: usize,
        }

        impl<'a> $name<'a> {
            /// Takes a handle over.
            pub fn own(calls: Calls<'a>, handle: usize) -> $name<'a> {
                $name { owner: Some(calls), handle }
            }

            pub fn raw(&self) -> Handle {
                self.handle as Handle
            }

            fn give_back(&mut self) -> i32 {
                self.owner.take().map_or(0, |calls| {
                    // SAFETY: the handle was taken over from its making, and `owner` is taken once.
                    code(unsafe { calls.cuda().$destroy(self.handle as Handle) })
                })
            }

            /// Destroys it now; the code.
            pub fn destroy(mut self) -> i32 {
                self.give_back()
            }
        }

        impl Drop for $name<'_> {
            fn drop(&mut self) {
                self.give_back();
            }
        }
    };
}

handle_guard!(
    /// A graph.
    Graph,
    graph_destroy
);
handle_guard!(
    /// A graph made ready to run.
    Executable,
    graph_executable_destroy
);
handle_guard!(
    /// A stream-ordered pool.
    Pool,
    pool_destroy
);

impl<'a> Pool<'a> {
    pub fn new(calls: Calls<'a>, props: &PoolProperties) -> Result<Pool<'a>, Stop> {
        let mut handle = 0;
        need("cuMemPoolCreate", calls.pool_create(&mut handle, props))?;
        Ok(Pool::own(calls, handle))
    }

    /// The first device's own pool.
    pub fn default(calls: Calls<'a>) -> Result<Pool<'static>, Stop> {
        let mut handle = 0;
        need(
            "cuDeviceGetDefaultMemPool",
            calls.default_pool(&mut handle, 0),
        )?;
        Ok(Pool {
            owner: None,
            handle,
        })
    }
}

/// A capture that is ended with its case at the latest.
pub struct Capture<'a, 's> {
    calls: Calls<'a>,
    stream: Option<&'s Stream<'a>>,
}

pub const GLOBAL: i32 = 0;
pub const THREAD_LOCAL: i32 = 1;
pub const RELAXED: i32 = 2;

impl<'a, 's> Capture<'a, 's> {
    pub fn begin(
        calls: Calls<'a>,
        stream: &'s Stream<'a>,
        mode: i32,
    ) -> Result<Capture<'a, 's>, Stop> {
        need("cuStreamBeginCapture", calls.begin_capture(stream, mode))?;
        Ok(Capture {
            calls,
            stream: Some(stream),
        })
    }

    /// The code of the end, and the graph where there is one.
    pub fn end(mut self) -> (i32, Option<Graph<'a>>) {
        self.finish()
    }

    fn finish(&mut self) -> (i32, Option<Graph<'a>>) {
        let Some(stream) = self.stream.take() else {
            return (0, None);
        };
        let mut graph = 0;
        let answer = self.calls.end_capture(stream, &mut graph);
        (answer, (graph != 0).then(|| Graph::own(self.calls, graph)))
    }
}

impl Drop for Capture<'_, '_> {
    fn drop(&mut self) {
        self.finish();
    }
}
