//! Which thread it is, for the price of a load.

/// Which thread it is: no two that live have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadMark(usize);

impl ThreadMark {
    /// Above 0.
    #[inline]
    pub fn number(self) -> usize {
        self.0
    }

    /// The calling thread's.
    #[inline]
    pub fn here() -> ThreadMark {
        #[cfg(target_arch = "x86_64")]
        {
            let mark: usize;
            // SAFETY: on Linux the first word that fs points to is the thread's own control block's address.
            unsafe {
                std::arch::asm!("mov {}, fs:[0]", out(reg) mark, options(nostack, preserves_flags, pure, readonly));
            }
            ThreadMark(mark)
        }
        #[cfg(target_arch = "aarch64")]
        {
            let mark: usize;
            // SAFETY: reads the register that holds the thread's control block's address.
            unsafe {
                std::arch::asm!("mrs {}, tpidr_el0", out(reg) mark, options(nostack, preserves_flags, pure, nomem));
            }
            ThreadMark(mark)
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            thread_local! {
                static OWN: u8 = const { 0 };
            }
            ThreadMark(OWN.with(|own| std::ptr::from_ref(own) as usize))
        }
    }
}
