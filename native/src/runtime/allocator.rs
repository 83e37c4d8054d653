//! The allocator: memory is taken on one thread and given back on another all the time, which those of the systems pay dearly for.

#[cfg(not(feature = "fuzzing"))] // whose sanitizer is to see every allocation
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Gives back to the system what this thread keeps free. Left alone, it would do so with its next allocations only.
pub fn release() {
    // SAFETY: may be called at any time, from any thread
    #[cfg(not(feature = "fuzzing"))]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}
