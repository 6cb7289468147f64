//! Contents in files: one a tag and device, written through two buffers so that the disk writes one while
//! the link fills the other. What is read back must be what was written, by its checksum (CRC-32).

use super::plan::Item;
use super::saved::{Saved, Stored};
use crate::core::size::Align;
use crate::core::sync::lock;
use crate::core::tags::TagId;
use crate::error::{Error, Result, Status, Warning};
use crate::gpu::{CopyQueue, Device, Staging};
use crate::sys::scratch::{BLOCK, Scratch};
use rustc_hash::FxHashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

/// Long enough for the link's and a disk's full speed.
const BUFFER_BYTES: u64 = 32 << 20;
const BLOCK_ALIGN: Align = Align::new(BLOCK).expect("a power of two");

/// The files of what sleeps, by device and tag.
#[derive(Default)]
pub struct FileStore(Mutex<FxHashMap<(i32, TagId), Weak<Backing>>>);

/// A file that stays as long as anything sleeps in it.
struct Backing {
    scratch: Scratch,
    end: Mutex<u64>,
}

/// A part of a file.
pub(super) struct FileSpan {
    file: Arc<Backing>,
    at: u64,
    pub bytes: u64,
    checksum: u32,
}

fn blocks(bytes: u64) -> u64 {
    BLOCK_ALIGN.round_up(bytes).unwrap_or(bytes)
}

impl FileStore {
    /// The file of a tag, with room for `bytes` more, and where in it that is.
    fn open(
        &self,
        device: &Device,
        tag: TagId,
        name: &str,
        folder: &Path,
        bytes: u64,
    ) -> Result<(Arc<Backing>, u64)> {
        let mut files = lock(&self.0);
        files.retain(|_, file| file.strong_count() > 0);
        let key = (device.ordinal(), tag);
        let file = match files.get(&key).and_then(Weak::upgrade) {
            Some(file) => file,
            None => {
                let what = format!("device{}-{name}", device.ordinal());
                let scratch = Scratch::create(folder, &what)?;
                if !scratch.is_direct() {
                    device.warnings().warn(Warning::BufferedFile, || {
                        let path = scratch.path().display();
                        format!("{path}: the file system refuses direct I/O, so what sleeps there takes page cache too")
                    });
                }
                Arc::new(Backing {
                    scratch,
                    end: Mutex::new(0),
                })
            }
        };
        let mut end = lock(&file.end);
        let begin = *end;
        file.scratch
            .reserve(begin, bytes)
            .inspect_err(|_| file.scratch.shorten(begin))?;
        *end = begin + bytes;
        drop(end);
        files.insert(key, Arc::downgrade(&file));
        Ok((file, begin))
    }
}

/// Saves what is live of `items`, which are all of one tag; what of each, in their order. On failure
/// nothing of it is left in the file.
pub(super) fn save(
    device: &Arc<Device>,
    store: &FileStore,
    folder: &Path,
    (tag, name): (TagId, &str),
    items: &[&Item],
) -> Result<Vec<Saved>> {
    let stretches = items.iter().flat_map(|item| &item.live);
    // Each piece begins at a block; a stretch is cut where buffers end.
    let most = stretches
        .map(|(_, bytes)| bytes + BLOCK * (2 + bytes / BUFFER_BYTES))
        .sum::<u64>();
    if most == 0 {
        return Ok(items.iter().map(|_| Saved::default()).collect());
    }
    let (file, begin) = store.open(device, tag, name, folder, blocks(most))?;
    let mut writer = Writer::begin(device, file.clone(), begin, items.len())?;
    let written = (items.iter().enumerate())
        .try_for_each(|(index, item)| writer.save(index, item))
        .and_then(|()| writer.finish());
    match written {
        Ok(saved) => Ok(saved),
        Err(error) => {
            let mut end = lock(&file.end);
            *end = begin;
            file.scratch.shorten(begin);
            Err(error)
        }
    }
}

/// What is in a buffer and not in the file yet.
#[derive(Default)]
struct Filled {
    /// Item, offset in its extent, position in the buffer, length.
    pieces: Vec<(usize, u64, u64, u64)>,
    bytes: u64,
}

struct Writer {
    queue: CopyQueue,
    file: Arc<Backing>,
    at: u64,
    buffers: [(Staging, Filled); 2],
    turn: usize,
    saved: Vec<Saved>,
}

impl Writer {
    fn begin(device: &Arc<Device>, file: Arc<Backing>, at: u64, items: usize) -> Result<Writer> {
        let buffer = || Ok::<_, Error>((Staging::create(device, BUFFER_BYTES)?, Filled::default()));
        Ok(Writer {
            queue: CopyQueue::create(device)?,
            file,
            at,
            buffers: [buffer()?, buffer()?],
            turn: 0,
            saved: (0..items).map(|_| Saved::default()).collect(),
        })
    }

    fn save(&mut self, index: usize, item: &Item) -> Result<()> {
        for (begin, bytes) in &item.live {
            let (mut at, end) = (*begin, begin + bytes);
            while at < end {
                if self.buffers[self.turn].1.bytes >= BUFFER_BYTES {
                    self.turn ^= 1;
                    self.write_out(self.turn)?;
                }
                let (staging, filled) = &mut self.buffers[self.turn];
                let bytes = (end - at).min(BUFFER_BYTES - filled.bytes);
                staging.fill(&mut self.queue, filled.bytes, at, bytes)?;
                let offset = at - item.place.address;
                filled.pieces.push((index, offset, filled.bytes, bytes));
                filled.bytes += blocks(bytes);
                at += bytes;
            }
        }
        Ok(())
    }

    /// Writes what is in a buffer, whose copies are waited for.
    fn write_out(&mut self, which: usize) -> Result<()> {
        let (staging, filled) = &mut self.buffers[which];
        let filled = std::mem::take(filled);
        if filled.pieces.is_empty() {
            return Ok(());
        }
        let bytes = staging.bytes()?;
        for (index, offset, position, length) in &filled.pieces {
            let piece = &bytes[*position as usize..(position + length) as usize];
            let span = FileSpan {
                file: self.file.clone(),
                at: self.at + position,
                bytes: *length,
                checksum: crc32fast::hash(piece),
            };
            self.saved[*index]
                .pieces
                .push((*offset, Stored::File(span)));
        }
        self.file
            .scratch
            .write(self.at, &bytes[..filled.bytes as usize])?;
        self.at += filled.bytes;
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<Saved>> {
        self.write_out(self.turn ^ 1)?;
        self.write_out(self.turn)?;
        self.queue.wait()?;
        Ok(std::mem::take(&mut self.saved))
    }
}

/// Brings contents back through two buffers.
pub(super) struct Loader {
    buffers: [Staging; 2],
    turn: usize,
}

impl Loader {
    pub fn begin(device: &Arc<Device>) -> Result<Loader> {
        let buffer = || Staging::create(device, BUFFER_BYTES);
        Ok(Loader {
            buffers: [buffer()?, buffer()?],
            turn: 0,
        })
    }

    /// Copies a part of a file to `to` on the device. Waits for the disk, and not for the copy.
    pub fn load(&mut self, queue: &mut CopyQueue, span: &FileSpan, to: u64) -> Result<()> {
        self.turn ^= 1;
        let staging = &mut self.buffers[self.turn];
        let bytes = staging.bytes()?;
        let scratch = &span.file.scratch;
        scratch.read(span.at, &mut bytes[..blocks(span.bytes) as usize])?;
        if crc32fast::hash(&bytes[..span.bytes as usize]) != span.checksum {
            return Err(Error::new(Status::Io, "wake")
                .bytes(span.bytes)
                .detail(format!(
                    "{} does not hold at {} what was written there",
                    scratch.path().display(),
                    span.at
                ))
                .advice("Its contents are lost: discard the tag, then wake it and fill it anew"));
        }
        staging.empty(queue, to, span.bytes)
    }
}
