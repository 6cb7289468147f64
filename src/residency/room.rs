//! Room for one sleep on the host: what is free at once, the rest as it is made, so that copies run while
//! later parts are still being populated.

use super::host::{HostStore, PART_BYTES, Promise, Span};
use crate::core::sync::lock;
use crate::error::{Error, Result, Status};
use crate::gpu::{Device, Registered};
use crate::sys::pages::Pages;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::Scope;
use std::time::Instant;

/// As many threads populate pages, where there are as many processors. More gain little ([`PART_BYTES`]).
const THREADS: usize = 8;

/// Pages to be populated, and whether anybody still wants them.
#[derive(Default)]
pub(super) struct Works {
    parts: Mutex<Vec<Pages>>,
    count: usize,
    is_over: AtomicBool,
}

/// Room that is handed out piece by piece.
pub(super) struct Room<'a> {
    device: &'a Arc<Device>,
    promise: Promise,
    works: &'a Works,
    made: Receiver<Result<Pages>>,
    left: usize,
}

/// What asking for room came to.
pub(super) enum Asked {
    /// This much.
    Span(Span),
    /// None now; there will be.
    NotYet,
}

impl Works {
    /// What `promise` needs. It is mapped at once, since mapping holds up whoever populates pages.
    pub fn for_promise(promise: &Promise) -> Result<Works> {
        if promise.missing == 0 {
            return Ok(Works::default());
        }
        let mut parts = Pages::map(promise.missing)?.split(PART_BYTES);
        parts.reverse();
        Ok(Works {
            count: parts.len(),
            parts: Mutex::new(parts),
            is_over: AtomicBool::new(false),
        })
    }

    fn make(&self, made: &Sender<Result<Pages>>) {
        while !self.is_over.load(Ordering::Relaxed) {
            let Some(pages) = lock(&self.parts).pop() else {
                return;
            };
            let begin = Instant::now();
            let pages = pages.populate().map(|()| pages);
            tracing::debug!(
                "{PART_BYTES} bytes or less populated in {:?}",
                begin.elapsed()
            );
            if made.send(pages).is_err() {
                return;
            }
        }
    }
}

impl<'a> Room<'a> {
    /// Begins to make what `promise` lacks, on threads of `scope`.
    pub fn begin<'scope>(
        scope: &'scope Scope<'scope, 'a>,
        device: &'a Arc<Device>,
        promise: Promise,
        works: &'a Works,
    ) -> Result<Room<'a>> {
        let (send, made) = channel();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..THREADS.min(works.count).min(processors) {
            let send = send.clone();
            let thread = std::thread::Builder::new().name("hbm-populate".to_owned());
            thread
                .spawn_scoped(scope, move || works.make(&send))
                .map_err(|error| {
                    works.is_over.store(true, Ordering::Relaxed);
                    Error::new(Status::OutOfMemory, "start a thread").detail(error.to_string())
                })?;
        }
        Ok(Room {
            device,
            promise,
            works,
            made,
            left: works.count,
        })
    }

    /// Room for up to `most` bytes above 0; waits for it where `is_patient`.
    pub fn ask(&mut self, most: u64, is_patient: bool) -> Result<Asked> {
        loop {
            if let Some(span) = self.promise.take(most) {
                return Ok(Asked::Span(span));
            }
            if self.left == 0 {
                return Err(Error::new(Status::Internal, "sleep")
                    .detail("room was promised and is not there"));
            }
            let pages = match is_patient {
                true => self.made.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.made.try_recv(),
            };
            match pages {
                Ok(pages) => self.add(pages?)?,
                Err(TryRecvError::Empty) => return Ok(Asked::NotYet),
                Err(TryRecvError::Disconnected) => {
                    return Err(
                        Error::new(Status::Internal, "sleep").detail("no thread populates pages")
                    );
                }
            }
        }
    }

    fn add(&mut self, pages: Pages) -> Result<()> {
        let (bytes, begin) = (pages.bytes(), Instant::now());
        self.promise.add(Registered::register(self.device, pages)?);
        tracing::debug!("{bytes} bytes registered in {:?}", begin.elapsed());
        self.left -= 1;
        Ok(())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.works.is_over.store(true, Ordering::Relaxed);
    }
}

/// Pins room until `bytes` are free, of at most `budget` in all.
pub fn prepare(
    device: &Arc<Device>,
    store: &Arc<HostStore>,
    bytes: u64,
    budget: u64,
) -> Result<()> {
    let promise = store.promise(bytes, budget)?;
    let works = Works::for_promise(&promise)?;
    std::thread::scope(|scope| {
        let mut room = Room::begin(scope, device, promise, &works)?;
        while room.left > 0 {
            match room.made.recv() {
                Ok(pages) => room.add(pages?)?,
                Err(_) => {
                    return Err(
                        Error::new(Status::Internal, "prepare").detail("no thread populates pages")
                    );
                }
            }
        }
        Ok(())
    })
}
