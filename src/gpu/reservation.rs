//! Address space without memory behind it.

use super::device::Device;
use crate::error::{Error, Result, Status};
use std::sync::Arc;

/// A reserved range of addresses, given back when dropped. Nothing may be mapped in it then.
pub struct Reservation {
    device: Arc<Device>,
    address: u64,
    bytes: u64,
    /// What the driver gave: more where it could not be had aligned.
    whole: Whole,
    freed: bool,
    lent: bool,
}

#[derive(Clone, Copy)]
struct Whole {
    base: u64,
    bytes: u64,
}

/// As often the same addresses are asked for again: another thread may have them for a moment.
const CYCLE_TRIES: usize = 8;

impl Reservation {
    /// Reserves `bytes`, a multiple of the granularity, aligned to `align`, a power of two.
    pub fn new(device: &Arc<Device>, bytes: u64, align: u64) -> Result<Reservation> {
        let whole = match Whole::reserve(device, bytes, align, 0) {
            Err(error) if device.is_hip() => {
                Whole::reserve_unasked(device, bytes, align).map_err(|_| error)?
            }
            Ok(whole) if whole.base % align.max(1) != 0 => {
                whole.free(device)?;
                Whole::reserve_unasked(device, bytes, align)?
            }
            outcome => outcome?,
        };
        Ok(Reservation {
            device: device.clone(),
            address: whole.base.next_multiple_of(align.max(1)),
            bytes,
            whole,
            freed: false,
            lent: false,
        })
    }

    /// Part of a range that somebody else reserved, and frees.
    pub fn lent(device: &Arc<Device>, address: u64, bytes: u64) -> Reservation {
        Reservation {
            device: device.clone(),
            address,
            bytes,
            whole: Whole {
                base: address,
                bytes,
            },
            freed: false,
            lent: true,
        }
    }

    /// Whether the addresses are somebody else's.
    pub fn is_lent(&self) -> bool {
        self.lent
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the addresses back; on failure they are still held and can be freed again.
    pub fn free(&mut self) -> Result<()> {
        if !self.freed && !self.lent {
            self.whole.free(&self.device)?;
            self.freed = true;
        }
        Ok(())
    }

    /// Takes the addresses again if [`Reservation::cycle`] has lost them.
    pub fn regain(&mut self) -> Result<()> {
        match self.freed {
            true => self.cycle(),
            false => Ok(()),
        }
    }

    /// Gives the addresses back and takes the same ones again, with nothing mapped in them: some versions
    /// of HIP hold released memory as long as they are held (see [`Findings`](super::workarounds::Findings)).
    /// Does nothing with addresses that are somebody else's.
    /// For sleep only: between the two, somebody else in the process may come to have them. Then it is an
    /// error, nothing is held, and a later call tries to get the same addresses again.
    pub fn cycle(&mut self) -> Result<()> {
        if self.lent {
            return Ok(());
        }
        self.free()?;
        let mut last = None;
        for _ in 0..CYCLE_TRIES {
            match Whole::reserve(&self.device, self.whole.bytes, 0, self.whole.base) {
                Ok(whole) if whole.base == self.whole.base => {
                    self.freed = false;
                    return Ok(());
                }
                // The driver takes the address for a wish.
                Ok(other) => other.free(&self.device)?,
                Err(error) => last = Some(error),
            }
        }
        let Whole { base, bytes } = self.whole;
        Err(last
            .unwrap_or_else(|| Error::new(Status::Busy, "reserve the same addresses").bytes(bytes))
            .detail(format!("{bytes} bytes of addresses at {base:#x} were given back, and something else in the process has them now"))
            .advice("Try again"))
    }
}

impl Whole {
    fn reserve(device: &Device, bytes: u64, align: u64, hint: u64) -> Result<Whole> {
        let mut base = 0;
        // SAFETY: `base` is a valid out-pointer.
        device
            .check(unsafe {
                device
                    .cuda()
                    .vmm_reserve(&mut base, bytes as usize, align as usize, hint, 0)
            })
            .map_err(|error| error.bytes(bytes))?;
        Ok(Whole { base, bytes })
    }

    /// Reserves without asking for an alignment, which HIP may refuse; where what comes is not aligned,
    /// so much more that an aligned part of it is long enough.
    fn reserve_unasked(device: &Device, bytes: u64, align: u64) -> Result<Whole> {
        let whole = Whole::reserve(device, bytes, 0, 0)?;
        if whole.base % align.max(1) == 0 {
            return Ok(whole);
        }
        whole.free(device)?;
        Whole::reserve(device, bytes + align, 0, 0)
    }

    fn free(self, device: &Device) -> Result<()> {
        // SAFETY: the range was reserved as a whole.
        device.check(unsafe {
            device
                .cuda()
                .vmm_free_address(self.base, self.bytes as usize)
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Err(error) = self.free() {
            tracing::debug!("{error}");
        }
    }
}
