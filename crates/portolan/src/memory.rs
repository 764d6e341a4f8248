//! The allocator, and when it gives back to the system what was freed.
//!
//! A write to the API is hundreds of small allocations, made on one thread and often freed on the other; `mimalloc` spends
//! less on them than glibc's allocator. It does without huge pages, most of which a small process would leave empty.
//!
//! Source: <https://microsoft.github.io/mimalloc/>, its `mimalloc.h`.

use libmimalloc_sys::{mi_collect, mi_option_set, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, for how many milliseconds free pages are kept, which the bindings leave out.
const PURGE_DELAY: mi_option_t = 15;

/// From now on, gives back at once what is free: what a node's own processes hold is missing to its pods. For the start
/// of a process; what was kept before stays.
pub(crate) fn keep_little() {
    // SAFETY: sets a number that is read atomically.
    #[allow(unsafe_code, reason = "there is no other way to tell the allocator")]
    unsafe {
        mi_option_set(PURGE_DELAY, 0);
    }
}

/// For after a burst, such as a node's first lists of a large cluster: some milliseconds of work for a large heap.
pub(crate) fn give_back() {
    // SAFETY: looks through what is free, under the allocator's own synchronization.
    #[allow(unsafe_code, reason = "there is no other way to tell the allocator")]
    unsafe {
        mi_collect(true);
    }
}
