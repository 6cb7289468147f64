//! Captures told of by programs without PyTorch's hooks, so that memory of their graphs is given back.

use super::export;
use crate::error::{Error, Result};
use crate::observe;
use crate::process::check_not_forked;
use crate::registry::GraphPool;

fn pool(operation: &'static str, device: i32, id: (u64, u64)) -> Result<GraphPool> {
    match id {
        (0, 0) | (u64::MAX, u64::MAX) => Err(Error::invalid(
            operation,
            "a graph pool's id is not all zeros nor all ones",
        )),
        id => Ok(GraphPool { device, id }),
    }
}

/// Says that this thread is about to begin a stream capture on `device`, whose blocks belong to the
/// graph pool (`id_high`, `id_low`). A replay writes where its capture did, so a block allocated on
/// a stream while that captures stays mapped, freed or not, until its pool is released; within the
/// pool it may serve again in the order of its stream. Captures nobody tells of work too, but their
/// blocks are kept for good. The order of calls:
///
///   hbm_graph_begin(device, high, low);
///   cuStreamBeginCapture(stream, mode);     on this thread
///   ...                                     allocate, launch, deallocate
///   cuStreamEndCapture(stream, &graph);
///   hbm_graph_end(device, high, low);       next on this thread; also where the capture failed
///   ...                                     instantiate, launch
///   hbm_graph_release(device, high, low);   after its last launch, once for each capture
///
/// Between cuStreamEndCapture and hbm_graph_end the capture's memory stays its own, whatever other
/// threads do. The thread that called hbm_graph_begin must neither allocate on a stream that does not
/// capture nor begin another capture before the end is told: a capture that is over by then is taken
/// for one that failed, and where no other graph uses the pool its memory is given back. hbm_trim gives
/// none of it back. A capture that failed and whose end nobody tells keeps its memory until then.
///
/// The id is the program's choice: the same one for graphs that are replayed one after the other in
/// the order of their captures and may share memory, another one else. It is neither all zeros nor
/// all ones; PyTorch's have one half zero, so beside PyTorch choose both halves above zero.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_graph_begin(device: i32, id_high: u64, id_low: u64) -> i32 {
    export(|| {
        let pool = pool("hbm_graph_begin", device, (id_high, id_low))?;
        observe::process().graph_begin(pool)
    })
}

/// Says that a capture told of by hbm_graph_begin is over, well or not: the latest into this pool that
/// the calling thread began, else the latest of any thread. Any thread. HBM_INVALID_ARGUMENT where none
/// into this pool has begun or all have ended; nothing changes then. HBM_NOT_OWNED where the capture was
/// taken for one that failed (see hbm_graph_begin) and its memory is gone: a graph of it must not be
/// launched, and is released all the same.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_graph_end(device: i32, id_high: u64, id_low: u64) -> i32 {
    export(|| {
        let pool = pool("hbm_graph_end", device, (id_high, id_low))?;
        observe::process().graph_end(pool)
    })
}

/// Says that the graph of one capture into this pool will not be launched again. With the last one
/// the pool's freed blocks are given back, once all work given to the device so far is done; blocks
/// not freed yet stay, and are ordinary ones from here on. HBM_BUSY where the capture has not ended;
/// HBM_INVALID_ARGUMENT where there is no such pool, or as many were released as had begun. Any
/// thread.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_graph_release(device: i32, id_high: u64, id_low: u64) -> i32 {
    export(|| {
        let pool = pool("hbm_graph_release", device, (id_high, id_low))?;
        observe::process().graph_release(pool)
    })
}

/// Promises (1), or takes the promise back (0), that from here on every stream capture of the process,
/// also by other libraries in it, is told of by hbm_graph_begin before it begins. The pool then need
/// not ask the driver about the stream of each allocation, which costs more than the allocation.
///
/// A program that breaks the promise corrupts its memory: a block allocated in a capture nobody told
/// of is taken for an ordinary one, is given to others once it is freed, and a replay of the graph
/// writes there. No capture may be open when the promise is made. hbmalloc.torch.install() makes it
/// for programs whose captures are all PyTorch's. Any thread; makes no driver call.
#[unsafe(no_mangle)]
pub extern "C" fn hbm_captures_told(told: i32) -> i32 {
    export(|| {
        check_not_forked()?;
        if !(0..=1).contains(&told) {
            return Err(Error::invalid(
                "hbm_captures_told",
                format!("{told} is neither 0 nor 1"),
            ));
        }
        observe::process().set_captures_told(told == 1);
        Ok(())
    })
}
