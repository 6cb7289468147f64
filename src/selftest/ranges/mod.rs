//! Pools' ranges: addresses that are backed in part, by chunks that move between them. Contents are
//! written and read through the driver, so that an alias must show the bytes of its chunk.

mod calls;
mod model;
mod random;

use super::check::{ensure, ensure_eq};
use super::machine::Machine;
use super::simulator::Counters;
use super::{Case, Outcome, Stop, Suite};
use crate::config::value::Location;
use crate::core::size::Align;
use crate::core::tags::TagId;
use crate::extent::DeviceState;
use crate::extent::range::RangeSpec;
use crate::extent::table::{Extents, Owner, Residency};
use crate::gpu::stream::OwnedStream;
use crate::gpu::{ChunkSpec, Stream};
use model::{ChunkId, Model};

/// The suite of pools' ranges.
pub const SUITE: Suite = Suite {
    name: "ranges",
    about: "addresses backed in part, by chunks that move between them",
    cases: &[calls::CASES, random::CASES],
};

const fn case(name: &'static str, run: fn(&super::Context) -> Outcome) -> Case {
    Case { name, run }
}

/// Bytes at either end of a chunk that are written and looked at.
const MARK: usize = 64;

/// The tag of every range.
const TAG: TagId = TagId::from_number(7);

/// Extents on a machine, with the model beside them.
struct Bench {
    machine: Machine,
    state: DeviceState,
    chunk: ChunkSpec,
    grain: Align,
    stream: OwnedStream,
    model: Model,
    base: Option<Counters>,
}

impl Bench {
    fn open(spec: &str) -> Result<Bench, Stop> {
        let machine = Machine::open(spec)?;
        machine
            .device
            .vmm()?
            .map_err(|error| Stop::skip(error.to_string()))?;
        let state = DeviceState::new(machine.device.clone());
        let (chunk, grain) = state.grain(Location::Device)?;
        Ok(Bench {
            stream: machine.stream()?,
            base: machine.sim.map(|sim| sim.counters()),
            state,
            chunk,
            grain,
            model: Model::default(),
            machine,
        })
    }

    fn extents(&self) -> &Extents {
        &self.state.extents
    }

    fn stream(&self) -> Stream {
        self.stream.stream()
    }

    /// So many granules in bytes.
    fn granules(&self, count: u64) -> u64 {
        count * self.grain.get()
    }

    fn spec(&self, granules: u64) -> RangeSpec {
        RangeSpec {
            bytes: self.granules(granules),
            align: self.grain.get(),
            chunk: self.chunk,
            tag: TAG,
        }
    }

    fn reserve(&mut self, granules: u64) -> Result<u64, Stop> {
        let spec = self.spec(granules);
        let range = self.extents().reserve(&spec)?;
        ensure!(self.grain.divides(range), "{range:#x} is not aligned");
        self.model.ranges.insert(range, spec.bytes);
        Ok(range)
    }

    /// Backs a stretch and marks its chunks.
    fn back(&mut self, address: u64, sizes: &[u64]) -> Outcome {
        self.extents().back(address, sizes)?;
        for place in self.model.back(address, sizes) {
            self.mark(place)?;
        }
        self.check()
    }

    fn alias(&mut self, from: &[u64], to: u64) -> Outcome {
        self.extents().alias(from, to)?;
        self.model.alias(from, to);
        self.check()
    }

    fn drop_aliases(&mut self, places: &[u64]) -> Outcome {
        self.extents().drop_aliases(places)?;
        self.model.remove(places);
        self.check()
    }

    fn unback(&mut self, places: &[u64]) -> Outcome {
        let freed = self.extents().unback(places)?;
        ensure_eq!(freed, self.model.remove(places), "bytes given back");
        self.check()
    }

    fn mark(&self, place: u64) -> Outcome {
        let known = self.model.places[&place];
        for (address, mark) in marks(place, known.bytes, known.chunk) {
            let device = &self.machine.device;
            device.copy_from_host(address, &mark, self.stream())?;
        }
        Ok(())
    }

    /// Whether every place shows what was written to its chunk, by whichever address.
    fn check_contents(&self) -> Outcome {
        for (place, known) in &self.model.places {
            for (address, mark) in marks(*place, known.bytes, known.chunk) {
                let mut found = [0; MARK];
                let device = &self.machine.device;
                device.copy_to_host(&mut found, address, self.stream())?;
                ensure!(
                    found == mark,
                    "the contents of chunk {} have changed at {address:#x}",
                    known.chunk
                );
            }
        }
        Ok(())
    }

    /// Whether table, model and simulator tell the same.
    fn check(&self) -> Outcome {
        self.extents().audit()?;
        let lines = self.extents().list();
        ensure_eq!(lines.len(), self.model.places.len(), "places");
        for (line, (address, place)) in lines.iter().zip(&self.model.places) {
            let found = (line.address, line.bytes, line.alias);
            ensure_eq!(found, (*address, place.bytes, place.alias), "a place");
            let found = (line.residency, line.owner, line.tag);
            let expected = (Residency::Mapped, Owner::Pool, TAG);
            ensure_eq!(found, expected, "the place at {address:#x}");
        }
        let held = self.extents().physical();
        ensure_eq!(held.now, self.model.bytes(), "bytes held");
        let (Some(sim), Some(base)) = (self.machine.sim, self.base) else {
            return Ok(());
        };
        let counters = sim.counters();
        ensure_eq!(counters.chunk_bytes, held.now, "the simulator's bytes");
        ensure_eq!(
            (counters.mappings, counters.reservations - base.reservations),
            (lines.len() as u64, self.model.ranges.len() as u64),
            "the simulator's mappings and reservations"
        );
        // The probe had a chunk of its own.
        let peak = held.peak.max(base.peak_physical_bytes);
        ensure_eq!(sim.peak_physical(0), peak, "the simulator's peak");
        let faults = sim.faults();
        ensure!(faults.is_empty(), "{}", faults.join("; "));
        Ok(())
    }

    /// Gives everything back and looks for what is left.
    fn finish(mut self) -> Outcome {
        self.machine.synchronize()?;
        self.check_contents()?;
        let aliases = self.model.those(true);
        self.drop_aliases(&aliases)?;
        self.check_contents()?;
        let homes = self.model.those(false);
        self.unback(&homes)?;
        for range in std::mem::take(&mut self.model.ranges).into_keys() {
            self.extents().release(range)?;
        }
        self.check()?;
        ensure_eq!(self.extents().physical().now, 0, "bytes held at the end");
        if let (Some(sim), Some(base)) = (self.machine.sim, self.base) {
            ensure_eq!(sim.counters().memory(), base.memory(), "alive at the end");
        }
        Ok(())
    }
}

/// Where a chunk is marked, and how.
fn marks(place: u64, bytes: u64, chunk: ChunkId) -> [(u64, [u8; MARK]); 2] {
    let mark = |end: u64| {
        let seed = chunk.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ end;
        let mut bytes = [0; MARK];
        for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&seed.rotate_left(at as u32).to_le_bytes());
        }
        bytes
    };
    [(place, mark(0)), (place + bytes - MARK as u64, mark(1))]
}
