//! Which tag memory gets: the one that the thread pushed last, else the default of the process.
//! Threads that others start, such as autograd's, inherit nothing, so the default is for them.

use super::lifetime;
use crate::core::tags::{TagId, Tags};
use crate::error::{Error, Result, Status};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU16, Ordering};

static TAGS: Tags = Tags::new();
static DEFAULT: AtomicU16 = AtomicU16::new(0);

thread_local! {
    /// The top of the stack, apart from it: it has no destructor, so reading it is one load.
    static CURRENT: Cell<TagId> = const { Cell::new(TagId::NONE) };
    static STACK: RefCell<Vec<TagId>> = const { RefCell::new(Vec::new()) };
}

/// The names in use in the process.
pub fn table() -> &'static Tags {
    &TAGS
}

/// The name of a tag, also of none.
pub fn name_of(tag: TagId) -> String {
    (TAGS.name(tag)).map_or_else(|| "untagged".to_owned(), |name| name.to_string())
}

/// The tag of what the calling thread allocates now. Takes no lock.
pub fn current() -> TagId {
    CURRENT
        .try_with(Cell::get)
        .unwrap_or_default()
        .or_else(default)
}

/// The tag of threads that have pushed none.
pub fn default() -> TagId {
    TagId::from_number(DEFAULT.load(Ordering::Relaxed))
}

/// What the calling thread allocates from here on has the tag `name`, until it is popped. In a forked
/// child nothing is allocated, and nothing happens here.
pub fn push(name: &str) -> Result<()> {
    if lifetime::has_forked() {
        return Ok(());
    }
    let id = TAGS.intern(name)?;
    let pushed = STACK.try_with(|stack| stack.borrow_mut().push(id));
    match pushed {
        Ok(()) => show(id),
        Err(_) => Err(ending("tag_push")),
    }
}

/// Undoes the calling thread's last push.
pub fn pop() -> Result<()> {
    if lifetime::has_forked() {
        return Ok(());
    }
    let popped = STACK.try_with(|stack| {
        let mut stack = stack.borrow_mut();
        let popped = stack.pop();
        (popped, stack.last().copied().unwrap_or_default())
    });
    match popped {
        Ok((Some(_), below)) => show(below),
        Ok((None, _)) => Err(Error::invalid("tag_pop", "this thread has pushed no tag")
            .advice("Push and pop on the same thread")),
        Err(_) => Err(ending("tag_pop")),
    }
}

/// Sets the tag of threads that have pushed none; none for no tag.
pub fn set_default(name: Option<&str>) -> Result<()> {
    if lifetime::has_forked() {
        return Ok(());
    }
    let id = match name {
        Some(name) => TAGS.intern(name)?,
        None => TagId::NONE,
    };
    DEFAULT.store(id.number(), Ordering::Relaxed);
    Ok(())
}

fn show(id: TagId) -> Result<()> {
    // It has no destructor, so it is there as long as the thread is.
    let _ = CURRENT.try_with(|current| current.set(id));
    Ok(())
}

fn ending(operation: &'static str) -> Error {
    Error::new(Status::Shutdown, operation).detail("the thread is ending")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: TagId) -> String {
        table()
            .name(id)
            .map_or(String::new(), |name| name.to_string())
    }

    #[test]
    fn a_thread_has_its_own_stack_above_the_default() {
        set_default(Some("default")).unwrap();
        push("outer").unwrap();
        push("inner").unwrap();
        std::thread::spawn(|| {
            assert_eq!(name(current()), "default");
            push("other").unwrap();
            assert_eq!(name(current()), "other");
        })
        .join()
        .unwrap();
        assert_eq!(name(current()), "inner");
        pop().unwrap();
        assert_eq!(name(current()), "outer");
        pop().unwrap();
        assert_eq!(name(current()), "default");
        let error = pop().unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        set_default(None).unwrap();
        assert!(current().is_none());
        push(&"x".repeat(256)).unwrap_err();
        pop().unwrap_err();
    }
}
