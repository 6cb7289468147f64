//! Two threads that take turns: what they do is as repeatable as one thread's doings, and each has
//! its own cache and its own default stream.

use crate::selftest::Stop;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

type Task = Box<dyn FnOnce() + Send>;

struct Helper {
    tasks: Sender<Task>,
    thread: JoinHandle<()>,
}

impl Helper {
    fn new() -> Helper {
        let (tasks, to_do) = channel::<Task>();
        let thread = std::thread::spawn(move || to_do.into_iter().for_each(|task| task()));
        Helper { tasks, thread }
    }
}

/// The calling thread and another.
#[derive(Default)]
pub struct Crew {
    other: Option<Helper>,
}

impl Crew {
    /// Lets a thread act, 0 for the calling one, and waits for its answer.
    pub fn on<R: Send + 'static>(
        &mut self,
        thread: usize,
        act: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Stop> {
        if thread == 0 {
            return Ok(act());
        }
        let (tell, told) = channel();
        let other = self.other.get_or_insert_with(Helper::new);
        let task = move || {
            let _ = tell.send(act());
        };
        let sent = other.tasks.send(Box::new(task));
        let answer = sent.ok().and_then(|()| told.recv().ok());
        answer.ok_or_else(|| "the other thread panicked".into())
    }

    /// Ends the other thread; the next one asked for is a new one.
    pub fn end(&mut self) -> Result<(), Stop> {
        let Some(Helper { tasks, thread }) = self.other.take() else {
            return Ok(());
        };
        drop(tasks);
        let panicked = |_| Stop::from("the other thread panicked");
        thread.join().map_err(panicked)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
