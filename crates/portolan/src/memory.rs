//! How much of what was freed the allocator keeps from the system.
//!
//! glibc keeps an arena a thread, and what is freed in the middle of one stays resident. A node's share of a large
//! cluster comes in one burst, its first lists, and most of what that took is free again a moment later.
//!
//! Source: mallopt(3), malloc_trim(3). Elsewhere than with glibc nothing is done.

/// Two threads work; more arenas than that only spread holes.
const ARENAS: libc::c_int = 2;

/// For the start of the process, before there are threads.
pub(crate) fn keep_few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number inside the allocator, which takes its own lock.
    #[allow(unsafe_code, reason = "there is no other way to tell the allocator")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// For after a burst: some milliseconds of work for a large heap.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns pages that nothing lives in; the allocator takes its own locks.
    #[allow(unsafe_code, reason = "there is no other way to tell the allocator")]
    unsafe {
        libc::malloc_trim(0);
    }
}
