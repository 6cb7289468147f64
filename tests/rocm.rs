//! HIP as the simulated driver plays it, and what some versions of it do wrong: each is first shown to be
//! there, by a call as any program makes it, and then that blocks are had, used and given back all the same.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

use hbmalloc::config::value::Location;
use hbmalloc::core::size::Align;
use hbmalloc::core::tags::TagId;
use hbmalloc::error::{Error, Result, Status};
use hbmalloc::extent::table::Owner;
use hbmalloc::gpu::{Chunk, ChunkSpec, CopyQueue, Findings, Mapping, Reservation, Stream};
use hbmalloc::process::{Demand, Process};
use hbmalloc::selftest::machine::Machine;
use hbmalloc::source::{Kind, LastUse};
use std::sync::{Mutex, MutexGuard, PoisonError};

const MIB: u64 = 1 << 20;
const GRAIN: u64 = 2 * MIB;
const CHUNK: u64 = 256 * MIB;

/// The simulated driver is one a process.
static ONE: Mutex<()> = Mutex::new(());

struct Scene {
    process: Process,
    machine: Machine,
    _one: MutexGuard<'static, ()>,
}

impl Scene {
    fn open(spec: &str) -> Scene {
        Scene::with(spec, &[])
    }

    fn with(spec: &str, options: &[(&str, &str)]) -> Scene {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = Process::current().settings();
        settings.set("driver", "sim").unwrap();
        let machine = Machine::open(spec).unwrap();
        assert!(machine.driver.is_hip());
        let process = machine.process(options).unwrap();
        Scene {
            process,
            machine,
            _one: one,
        }
    }

    fn allocate_on(&self, device: i32, kind: Kind, bytes: u64) -> Result<u64> {
        self.process.allocate(Demand {
            kind,
            device,
            bytes,
            align: Align::new(256).unwrap(),
            stream: Stream::LEGACY,
            owner: Owner::Block,
            last_use: LastUse::Streams,
            allocator: None,
            location: None,
            tag: TagId::NONE,
        })
    }

    fn allocate(&self, kind: Kind, bytes: u64) -> u64 {
        self.allocate_on(0, kind, bytes).unwrap()
    }

    /// A block of each kind that takes chunks, its memory shown to be its own from end to end, and taken
    /// back with nothing left.
    fn serves(&self, bytes: u64) {
        for kind in [Kind::Vmm, Kind::Pool] {
            let (block, other) = (self.allocate(kind, bytes), self.allocate(kind, bytes));
            self.holds_marks(&[(block, bytes), (other, bytes)]);
            for address in [block, other] {
                self.process.deallocate(address, None, None).unwrap();
            }
            self.process.trim(0, 0).unwrap();
        }
        let extents = &self.process.device(0).unwrap().state().extents;
        extents.audit().unwrap();
        assert_eq!(extents.physical().now, 0);
        assert_eq!(self.sim().counters().chunks, 0);
    }

    /// Marks at the beginning, the end and every 16 MiB of blocks are all there after all are written.
    fn holds_marks(&self, blocks: &[(u64, u64)]) {
        let device = &self.machine.device;
        let places = || {
            let of = |(address, bytes): &(u64, u64)| {
                let (first, end) = (*address, *address + *bytes - 8);
                (first..end).step_by(16 << 20).chain([end])
            };
            blocks.iter().flat_map(of)
        };
        for place in places() {
            let mark = place.to_le_bytes();
            device.copy_from_host(place, &mark, Stream::LEGACY).unwrap();
        }
        for place in places() {
            let mut mark = [0; 8];
            device
                .copy_to_host(&mut mark, place, Stream::LEGACY)
                .unwrap();
            assert_eq!(u64::from_le_bytes(mark), place);
        }
    }

    fn sim(&self) -> hbmalloc::selftest::simulator::Simulator {
        self.machine.sim.unwrap()
    }

    fn findings(&self) -> Findings {
        self.machine.device.findings().unwrap()
    }
}

fn plain() -> ChunkSpec {
    ChunkSpec::plain(Location::Device)
}

/// A chunk made, mapped and given access to as a program does that knows nothing of HIP's ways.
fn naive(scene: &Scene, bytes: u64) -> Result<(Reservation, Chunk, Mapping)> {
    let device = &scene.machine.device;
    let _guard = device.enter()?;
    let reservation = Reservation::new(device, bytes, GRAIN)?;
    let chunk = Chunk::create(device, bytes, plain())?;
    let mapping = Mapping::new(device, reservation.address(), &chunk)?;
    mapping.allow(&[], Location::Device)?;
    Ok((reservation, chunk, mapping))
}

fn put_away((reservation, chunk, mapping): (Reservation, Chunk, Mapping)) {
    mapping.unmap().map_err(|(_, error)| error).unwrap();
    drop((chunk, reservation));
}

#[test]
fn a_block_is_several_chunks_of_the_size_that_the_option_names() {
    let scene = Scene::open("hip=6.4");
    let address = scene.allocate(Kind::Vmm, 3 * CHUNK + 1);
    let extents = &scene.process.device(0).unwrap().state().extents;
    let sizes: Vec<u64> = extents.list().iter().map(|extent| extent.bytes).collect();
    assert_eq!(sizes, [CHUNK, CHUNK, CHUNK, GRAIN]);
    let fixed = scene.process.settings().set("rocm_chunk_size", "512MiB");
    assert_eq!(fixed.unwrap_err().status(), Status::Busy);
    scene.process.deallocate(address, None, None).unwrap();
    scene.process.trim(0, 0).unwrap();
    drop(scene);

    let scene = Scene::with("hip=6.4", &[("rocm_chunk_size", "32MiB")]);
    for kind in [Kind::Vmm, Kind::Pool] {
        scene.allocate(kind, 100 * MIB);
    }
    let extents = &scene.process.device(0).unwrap().state().extents;
    assert!(extents.list().iter().all(|extent| extent.bytes <= 32 * MIB));
}

#[test]
fn chunks_that_are_refused_above_a_size() {
    let scene = Scene::open("hip=6.4,hip_create_limit=256MiB");
    let refused = naive(&scene, 2 * CHUNK).err().unwrap();
    assert_eq!(refused.status(), Status::OutOfMemory);
    scene.serves(3 * CHUNK);
}

#[test]
fn large_chunks_that_misbehave() {
    let scene = Scene::open("hip=6.4,hip_large=256MiB");
    let large = naive(&scene, 2 * CHUNK).unwrap();
    let (device, begin) = (&scene.machine.device, large.2.address());
    let (mut seen, over) = ([0; 1], begin + CHUNK);
    device.copy_from_host(over, &[7], Stream::LEGACY).unwrap();
    device
        .copy_to_host(&mut seen, begin, Stream::LEGACY)
        .unwrap();
    assert_eq!(
        seen,
        [7],
        "what is written beyond the size lies over the beginning"
    );
    put_away(large);
    scene.serves(3 * CHUNK);
}

#[test]
fn chunks_are_made_on_the_current_device() {
    let scene = Scene::open("hip=6.4,hip_set_device=1,devices=2");
    let other = scene.machine.driver.device(1).unwrap().clone();
    let used = |device: &hbmalloc::gpu::Device| {
        let (free, total) = device.memory_info().unwrap();
        total - free
    };
    let guard = scene.machine.device.enter().unwrap();
    let elsewhere = Chunk::create(&other, GRAIN, plain()).unwrap();
    assert_eq!((used(&scene.machine.device), used(&other)), (GRAIN, 0));
    drop((elsewhere, guard));
    scene.machine.set_context(None).unwrap();
    let block = scene.allocate_on(1, Kind::Vmm, 64 * MIB).unwrap();
    assert_eq!((used(&scene.machine.device), used(&other)), (0, 64 * MIB));
    scene.process.deallocate(block, None, None).unwrap();
    scene.process.trim(1, 0).unwrap();
    scene.serves(64 * MIB);
}

#[test]
fn access_and_unmapping_go_mapping_by_mapping() {
    let scene = Scene::open("hip=6.4,hip_whole=1");
    let device = &scene.machine.device;
    let guard = device.enter().unwrap();
    let reservation = Reservation::new(device, 2 * GRAIN, GRAIN).unwrap();
    let mut mappings = Vec::new();
    for at in 0..2 {
        let chunk = Chunk::create(device, GRAIN, plain()).unwrap();
        let place = reservation.address() + at * GRAIN;
        mappings.push(Mapping::new(device, place, &chunk).unwrap());
    }
    // SAFETY: the range is one of whole mappings that nothing uses.
    let over_both = unsafe {
        scene
            .machine
            .cuda
            .vmm_unmap(reservation.address(), 2 * GRAIN as usize)
    };
    assert!(over_both.is_err());
    Mapping::allow_all(&mappings, &[], Location::Device).unwrap();
    let unmapped = Mapping::unmap_all(mappings);
    unmapped.map_err(|(_, error)| error).unwrap();
    drop((reservation, guard));
    scene.serves(CHUNK + 6 * MIB);
}

#[test]
fn reserving_works_without_an_alignment_only() {
    let scene = Scene::open("hip=6.4,hip_align=1");
    let mut address = 0;
    // SAFETY: the pointer is valid for the call.
    let asked = unsafe {
        scene
            .machine
            .cuda
            .vmm_reserve(&mut address, GRAIN as usize, GRAIN as usize, 0, 0)
    };
    assert!(asked.is_err());
    for align in [GRAIN, 64 * MIB, 1 << 30] {
        let device = &scene.machine.device;
        let reservation = Reservation::new(device, 4 * MIB, align).unwrap();
        assert_eq!(reservation.address() % align, 0);
    }
    assert_eq!(scene.sim().counters().reservations, 0);
    scene.serves(40 * MIB);
}

#[test]
fn memory_that_is_held_while_its_addresses_are() {
    let free = |scene: &Scene| scene.machine.device.memory_info().unwrap().0;
    let scene = Scene::open("hip=6.4");
    assert_eq!(scene.findings(), Findings::default());
    drop(scene);

    let scene = Scene::open("hip=6.4,hip_holds=1");
    assert!(scene.findings().holds_memory);
    let before = free(&scene);
    let (mut reservation, chunk, mapping) = naive(&scene, 64 * MIB).unwrap();
    let address = reservation.address();
    mapping.unmap().map_err(|(_, error)| error).unwrap();
    drop(chunk);
    assert_eq!(free(&scene), before - 64 * MIB, "unmapped and released");
    reservation.cycle().unwrap();
    assert_eq!((reservation.address(), free(&scene)), (address, before));

    // Somebody else takes the addresses in between.
    reservation.free().unwrap();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let (place, bytes) = (address as *mut libc::c_void, 64 << 20);
    // SAFETY: the range is nobody's, and is not touched.
    let taken = unsafe { libc::mmap(place, bytes, libc::PROT_NONE, flags, -1, 0) };
    assert_eq!(taken, place);
    let error = reservation.cycle().unwrap_err();
    assert!(
        error.to_string().contains(&format!("{address:#x}")),
        "{error}"
    );
    // SAFETY: mapped above.
    unsafe { libc::munmap(place, bytes) };
    reservation.cycle().unwrap();
    assert_eq!(reservation.address(), address);
    drop(reservation);
    assert_eq!(scene.sim().counters().reservations, 0);
    scene.serves(64 * MIB);
}

#[test]
fn access_that_is_granted_after_some_tries() {
    let scene = Scene::open("hip=6.4,hip_access_fails=3");
    scene.serves(64 * MIB);
    drop(scene);
    let scene = Scene::open("hip=6.4,hip_access_fails=1000");
    let error: Error = scene.allocate_on(0, Kind::Vmm, MIB).unwrap_err();
    assert!(error.to_string().contains("hipMemSetAccess"), "{error}");
    assert_eq!(scene.sim().counters().chunks, 0);
}

#[test]
fn any_granularity() {
    for grain in ["4KiB", "64KiB", "2MiB"] {
        let scene = Scene::open(&format!("hip=6.4,granularity={grain}"));
        scene.serves(20 * MIB + 4096);
    }
}

#[test]
fn new_memory_that_holds_what_it_held_before() {
    let scene = Scene::open("hip=6.4,hip_stale=1");
    let device = &scene.machine.device;
    let old = naive(&scene, GRAIN).unwrap();
    device
        .fill(old.2.address(), 0xee, GRAIN, Stream::LEGACY)
        .unwrap();
    Stream::LEGACY.synchronize(device).unwrap();
    put_away(old);
    let new = naive(&scene, GRAIN).unwrap();
    let mut seen = [0; 64];
    let look = |seen: &mut [u8]| device.copy_to_host(seen, new.2.address() + MIB, Stream::LEGACY);
    look(&mut seen).unwrap();
    assert_eq!(seen, [0xee; 64]);
    let mut queue = CopyQueue::create(device).unwrap();
    queue.wipe(new.2.address(), GRAIN).unwrap();
    queue.wait().unwrap();
    look(&mut seen).unwrap();
    assert_eq!(seen, [0; 64]);
    put_away(new);
    scene.serves(64 * MIB);
}

#[test]
fn a_file_descriptor_for_each_chunk() {
    let spec = "hip=7.14,hip_fds=1,devices=1,memory=8GiB";
    let scene = Scene::with(spec, &[("rocm_chunk_size", "2MiB")]);
    let _limit = Descriptors::at_most(400);
    assert!(scene.findings().takes_descriptors);
    // Chunks are longer than the option says, so that half of the descriptors are left.
    for kind in [Kind::Vmm, Kind::Pool] {
        let block = scene.allocate(kind, 6 << 30);
        assert!(scene.sim().counters().chunks <= 200);
        scene.process.deallocate(block, None, None).unwrap();
        scene.process.trim(0, 0).unwrap();
    }
    // Where there are none left, that is what is said.
    let hoard: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let error = scene.allocate_on(0, Kind::Vmm, 64 * MIB).unwrap_err();
    drop(hoard);
    let said = error.to_string();
    assert!(
        said.contains("file descriptors") && said.contains("ulimit -n"),
        "{said}"
    );
    scene.serves(64 * MIB);
}

/// Fewer file descriptors for the process while this lives.
struct Descriptors(libc::rlimit);

impl Descriptors {
    fn at_most(count: u64) -> Descriptors {
        let mut before = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the pointers are valid for the calls.
        unsafe {
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut before), 0);
            let fewer = libc::rlimit {
                rlim_cur: count,
                ..before
            };
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &fewer), 0);
        }
        Descriptors(before)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid for the call.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &self.0) };
    }
}

/// What sleeps leaves the device, also where memory goes with its addresses only, and comes back; what was
/// discarded comes back as zeros, also where new memory holds what it held before.
#[test]
fn sleep_and_wake() {
    use hbmalloc::process::residency::{Request, To};
    for quirk in ["", ",hip_holds=1", ",hip_stale=1"] {
        let scene = Scene::open(&format!("hip=6.4{quirk}"));
        let (device, process) = (&scene.machine.device, &scene.process);
        let bytes = 40 * MIB;
        for kind in [Kind::Vmm, Kind::Pool] {
            let block = scene.allocate(kind, bytes);
            let held = device.memory_info().unwrap().0;
            scene.holds_marks(&[(block, bytes)]);
            process.sleep(&Request::default(), To::Host.into()).unwrap();
            let gained = device.memory_info().unwrap().0 - held;
            assert!(gained >= bytes, "{kind:?}{quirk}: {gained}");
            process.wake(&Request::default()).unwrap();
            let mut mark = [0; 8];
            device
                .copy_to_host(&mut mark, block, Stream::LEGACY)
                .unwrap();
            assert_eq!(u64::from_le_bytes(mark), block, "{kind:?}{quirk}");
            process
                .sleep(&Request::default(), To::Nothing.into())
                .unwrap();
            process.wake(&Request::default()).unwrap();
            device
                .copy_to_host(&mut mark, block, Stream::LEGACY)
                .unwrap();
            assert_eq!(mark, [0; 8], "{kind:?}{quirk}");
            process.deallocate(block, None, None).unwrap();
            process.trim(0, 0).unwrap();
        }
        process.trim_host(0).unwrap();
        process.device(0).unwrap().state().extents.audit().unwrap();
    }
}
