//! The global allocator. Memory is often allocated on one thread and freed on another, which the allocators of the systems handle slowly.

#[cfg(not(feature = "fuzzing"))] // the sanitizer must see every allocation
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Returns this thread's free memory to the system. Without it, that happens only at its next allocations.
pub fn release() {
    // SAFETY: may be called at any time, from any thread
    #[cfg(not(feature = "fuzzing"))]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}
