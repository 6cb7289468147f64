//! One safe type a driver verb. What CUDA and HIP do differently is decided here and nowhere above;
//! nothing here knows how memory is pooled.

pub mod capability;
pub mod capture;
pub mod chunk;
pub mod copying;
pub mod device;
pub mod driver;
pub mod fence;
pub mod gate;
pub mod managed;
pub mod mapping;
pub mod pinned;
pub mod placing;
pub mod plain;
pub mod registered;
pub mod reservation;
pub mod staging;
pub mod stream;
pub mod stream_ordered;
pub mod transfer;
pub mod uses;

pub use capability::Probe;
pub use chunk::{Chunk, ChunkSpec, FabricHandle, Share};
pub use copying::{CopyQueue, HostPiece};
pub use device::{ContextGuard, Device};
pub use driver::Driver;
pub use fence::{Event, Fence};
pub use gate::Gate;
pub use mapping::Mapping;
pub use registered::Registered;
pub use reservation::Reservation;
pub use staging::Staging;
pub use stream::{OwnedStream, Stream};
pub use uses::{Context, PlacedStream, Uses};
