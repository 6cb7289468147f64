//! Memory that this process exports. It is pinned while one of the blocks lives that were there when it was exported; a
//! block that the program frees while somebody has it open is given back once nobody has.

use super::handle::{BYTES, Handle};
use hbmalloc::error::{Error, Result, Status};
use hbmalloc::gpu::Stream;
use hbmalloc::observe;
use hbmalloc::process::{self, Process};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// A stretch of memory that is exported.
struct Export {
    handle: Handle,
    span: Span,
    /// The numbers of the exports that pin its chunks.
    pins: Vec<u64>,
    /// How often others have it open.
    openers: u32,
    /// The blocks that it is of, but for those that the program has freed. Without any, nobody can open it.
    blocks: HashSet<u64>,
    /// Blocks that were freed while it was open.
    held: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub begin: u64,
    pub end: u64,
    /// Whether it is a block, which may be freed.
    is_block: bool,
}

#[derive(Default)]
struct State {
    by_number: HashMap<u64, Export>,
    /// By where they begin, and whether they are blocks.
    by_span: HashMap<(u64, bool), u64>,
    by_block: HashMap<u64, Vec<u64>>,
    /// Blocks that the program has freed, and how many exports hold each.
    waiting: HashMap<u64, usize>,
    last: u64,
}

/// How much is exported: while nothing is, a free need not look.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What becomes of a block that the program frees.
pub enum Freeing {
    /// It can be given back.
    Now,
    /// It is given back once no other process has it open.
    Later,
    /// The program had freed it before.
    Again,
}

/// The handle of the memory that an address lies in, which begins with the block, or, where the address is that of a
/// chunk, which is what the driver takes for an allocation, with that. `server` starts what others ask, and says by
/// which number they find it.
pub fn export(address: u64, server: impl FnOnce() -> Result<u64>) -> Result<[u8; BYTES]> {
    process::check_not_forked()?;
    let process = observe::process();
    let span = span_of(process, address)?;
    let mut state = state();
    let known = state.by_span.get(&(span.begin, span.is_block)).copied();
    if let Some(number) = known {
        match state.by_number.get(&number) {
            Some(export) if export.span == span => return state.export_again(process, number),
            // Other blocks, though whoever has the earlier ones open keeps them.
            Some(export) if export.openers > 0 => {}
            _ => drop(state.remove(number)),
        }
    }
    if span.is_block && state.waiting.contains_key(&span.begin) {
        return Err(gone(address));
    }
    let token = server()?;
    let (pins, device) = pin(process, span)?;
    state.last += 1;
    let handle = Handle {
        process: std::process::id(),
        token,
        export: state.last,
        device,
        bytes: span.end - span.begin,
    };
    state
        .by_span
        .insert((span.begin, span.is_block), handle.export);
    let export = Export {
        handle,
        span,
        pins,
        openers: 0,
        blocks: HashSet::new(),
        held: Vec::new(),
    };
    state.by_number.insert(handle.export, export);
    COUNT.fetch_add(1, Ordering::SeqCst);
    state.export_again(process, handle.export).inspect_err(|_| {
        state.remove(handle.export);
    })
}

fn gone(address: u64) -> Error {
    Error::new(Status::NotOwned, "export").detail(format!("the memory at {address:#x} was freed"))
}

fn span_of(process: &Process, address: u64) -> Result<Span> {
    let block = process.block_of(address);
    // The driver may refuse, and it says where the chunk is.
    let chunk = process.export_chunk(address)?;
    process.close_export(chunk.serial)?;
    let end_of = |block: Option<(u64, u64)>| block.map_or(0, |(begin, bytes)| begin + bytes);
    match block {
        Some((begin, bytes)) if begin == address || chunk.offset > 0 => Ok(Span {
            begin,
            end: begin + bytes,
            is_block: true,
        }),
        None if chunk.offset > 0 => Err(gone(address)),
        block => {
            let chunk_end = address + chunk.chunk_bytes;
            let last = process.block_of(chunk_end - 1);
            Ok(Span {
                begin: address,
                end: chunk_end.max(end_of(block)).max(end_of(last)),
                is_block: false,
            })
        }
    }
}

/// Pins the chunks of a stretch; the numbers of the pins, and the device.
fn pin(process: &Process, span: Span) -> Result<(Vec<u64>, i32)> {
    let (mut pins, mut at, mut device) = (Vec::new(), span.begin, 0);
    while at < span.end {
        match process.export_chunk(at) {
            Ok(chunk) => {
                pins.push(chunk.serial);
                at += chunk.chunk_bytes - chunk.offset;
                device = chunk.device;
            }
            Err(error) => {
                unpin(process, &pins);
                return Err(error);
            }
        }
    }
    Ok((pins, device))
}

fn unpin(process: &Process, pins: &[u64]) {
    for pin in pins {
        // What is gone needs no pin.
        let _ = process.close_export(*pin);
    }
}

/// Whether anything is exported.
pub fn is_in_use() -> bool {
    COUNT.load(Ordering::Relaxed) != 0
}

/// A block is about to be freed by the program, which names a live stream that uses it.
pub fn freeing(address: u64, used_on: Option<Stream>) -> Freeing {
    if !is_in_use() || process::has_forked() {
        return Freeing::Now;
    }
    let mut state = state();
    if state.waiting.contains_key(&address) {
        return Freeing::Again;
    }
    let holders = state.part_with(address);
    if holders == 0 {
        return Freeing::Now;
    }
    state.waiting.insert(address, holders);
    if let Some(stream) = used_on {
        // By the time that it is given back the stream may be gone.
        if let Err(error) = observe::process().record_stream(address, stream) {
            hbmalloc::error::last::remember(error);
        }
    }
    Freeing::Later
}

/// The memory of a device is about to go. Other processes that have some open keep it.
pub fn forget_device(device: i32) {
    if process::has_forked() {
        return;
    }
    let mut state = state();
    let its = (state.by_number.iter()).filter(|(_, export)| export.handle.device == device);
    for number in its.map(|(number, _)| *number).collect::<Vec<_>>() {
        state.remove(number);
    }
}

impl State {
    /// The handle of what is exported already, of the blocks that are there now too.
    fn export_again(&mut self, process: &Process, number: u64) -> Result<[u8; BYTES]> {
        let Some(export) = self.by_number.get_mut(&number) else {
            return Err(gone(0));
        };
        let (span, device) = (export.span, export.handle.device);
        let live = match span.is_block {
            true => vec![span.begin],
            false => process.blocks_in(device, span.begin, span.end),
        };
        for block in live {
            let is_freed = self.waiting.contains_key(&block);
            if !is_freed && export.blocks.insert(block) {
                self.by_block.entry(block).or_default().push(number);
            }
        }
        match export.blocks.is_empty() {
            true => Err(gone(span.begin)),
            false => Ok(export.handle.to_bytes()),
        }
    }

    /// A block is no more of what is exported; how many exports hold it, since others have them open.
    fn part_with(&mut self, block: u64) -> usize {
        let mut holders = 0;
        for number in self.by_block.remove(&block).unwrap_or_default() {
            let Some(export) = self.by_number.get_mut(&number) else {
                continue;
            };
            export.blocks.remove(&block);
            if export.openers > 0 {
                export.held.push(block);
                holders += 1;
            } else if export.blocks.is_empty() {
                self.remove(number);
            }
        }
        holders
    }

    /// Blocks that one export holds no more, and nobody else does.
    fn let_go(&mut self, held: Vec<u64>) -> Vec<u64> {
        let mut free = Vec::new();
        for block in held {
            let Some(holders) = self.waiting.get_mut(&block) else {
                continue;
            };
            *holders -= 1;
            if *holders == 0 {
                self.waiting.remove(&block);
                free.push(block);
            }
        }
        free
    }

    /// Forgets an export and undoes its pins; the blocks that it alone held.
    fn remove(&mut self, number: u64) -> Vec<u64> {
        let Some(export) = self.by_number.remove(&number) else {
            return Vec::new();
        };
        let at = (export.span.begin, export.span.is_block);
        if self.by_span.get(&at) == Some(&number) {
            self.by_span.remove(&at);
        }
        for block in &export.blocks {
            if let Some(numbers) = self.by_block.get_mut(block) {
                numbers.retain(|other| *other != number);
            }
        }
        self.by_block.retain(|_, numbers| !numbers.is_empty());
        COUNT.fetch_sub(1, Ordering::SeqCst);
        unpin(observe::process(), &export.pins);
        self.let_go(export.held)
    }
}

/// Counts an opener; where the memory is, and in how many chunks.
pub fn opened(handle: Handle) -> Option<(Span, usize)> {
    let mut state = state();
    let export = state.by_number.get_mut(&handle.export)?;
    if export.handle != handle || export.blocks.is_empty() {
        return None;
    }
    export.openers += 1;
    Some((export.span, export.pins.len()))
}

/// So many openers of an export are gone.
pub fn closed(number: u64, times: u32) {
    let mut state = state();
    let Some(export) = state.by_number.get_mut(&number) else {
        return;
    };
    export.openers = export.openers.saturating_sub(times);
    if export.openers > 0 {
        return;
    }
    let held = std::mem::take(&mut export.held);
    if export.blocks.is_empty() {
        state.remove(number);
    }
    let free = state.let_go(held);
    drop(state);
    for block in free {
        if let Err(error) = observe::process().deallocate(block, None, None) {
            hbmalloc::error::last::remember(error);
        }
    }
}
