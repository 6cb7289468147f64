//! Many copies between host and device in one call, in a stream's order.

use super::device::Device;
use super::stream::Stream;
use crate::core::seams::Seams;
use crate::error::{Error, Result};
use crate::sys::pieces::{Piece, Pieces};
use std::ffi::c_void;

/// Between which memories a batch copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Host to device.
    ToDevice,
    /// Device to host.
    ToHost,
}

impl Device {
    /// Copies pieces in `stream`'s order, cut where registrations of the host meet. Does not wait. Those before one that
    /// is refused are under way.
    pub fn copy_pieces(
        &self,
        way: Way,
        pieces: &Pieces<'_>,
        seams: &Seams,
        stream: Stream,
    ) -> Result<()> {
        let _guard = self.enter()?;
        for (index, piece) in pieces.iter() {
            let mut done = 0;
            while done < piece.bytes() {
                let rest = piece.part(done, piece.bytes() - done);
                let of_host = match way {
                    Way::ToDevice => rest.from(),
                    Way::ToHost => rest.to(),
                };
                let part = rest.part(0, seams.before_next(of_host, rest.bytes()));
                self.copy_piece(way, part, stream)
                    .map_err(|error| refused(error, index, pieces.count(), piece))?;
                done += part.bytes();
            }
        }
        Ok(())
    }

    fn copy_piece(&self, way: Way, piece: Piece, stream: Stream) -> Result<()> {
        let (bytes, stream) = (piece.bytes() as usize, stream.raw());
        // SAFETY: whoever made the piece vouched for its side on the host until the stream has copied it; the
        // driver checks the device's.
        self.check(unsafe {
            match way {
                Way::ToDevice => {
                    let from = piece.from() as *const c_void;
                    self.cuda().copy_to_device(piece.to(), from, bytes, stream)
                }
                Way::ToHost => {
                    let to = piece.to() as *mut c_void;
                    self.cuda().copy_to_host(to, piece.from(), bytes, stream)
                }
            }
        })
    }
}

fn refused(error: Error, index: usize, count: usize, piece: Piece) -> Error {
    error.bytes(piece.bytes()).also(&format!(
        "piece {index} of {count}, from {:#x} to {:#x}; those before it are under way",
        piece.from(),
        piece.to()
    ))
}
