//! In whose order a freed block may serve again.

use super::pools::thread_number;

/// In whose. One word, since keys are made and compared at every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Order(u64);

impl Order {
    /// The stream's.
    pub const STREAM: Order = Order(0);

    /// Everybody's: work of any stream of the device may use a block until it is freed, as cudaFree has it.
    pub const EVERYWHERE: Order = Order(u64::MAX - 1);

    /// That of the stream which the calling thread has by itself.
    #[inline]
    pub fn of_this_thread() -> Order {
        Order(thread_number())
    }

    /// Whether it is the stream's, on whatever thread.
    #[inline]
    pub fn is_stream(self) -> bool {
        self == Order::STREAM
    }

    /// Whether it is everybody's.
    #[inline]
    pub fn is_everywhere(self) -> bool {
        self == Order::EVERYWHERE
    }

    /// Whether it is that of a thread's stream.
    pub fn is_of_a_thread(self) -> bool {
        !self.is_stream() && !self.is_everywhere()
    }

    pub(super) fn number(self) -> u64 {
        self.0
    }

    #[cfg(test)]
    pub(super) fn of(number: u64) -> Order {
        Order(number)
    }
}
