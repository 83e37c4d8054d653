//! Resets a direction of a stream if its half is dropped before the direction has ended, so that no code path, not even a panic, can
//! make a truncated stream look complete.
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};

/// The default code of RESET_STREAM and STOP_SENDING: the other end of the tunnel was reset.
pub const RESET_CODE: u32 = 1;

/// What happens when a half is dropped before its end. Shared with the owner of the stream.
#[derive(Default)]
pub struct ResetOnDrop {
    /// The code plus one; zero for the default, [`RESET_CODE`].
    code: AtomicU32,
    /// How a stream that is only reset as a whole ends: [`FINISHED`], [`ABORTED`] or neither.
    ending: AtomicU8,
}

/// The other half decides how the stream ends.
const FINISHED: u8 = 1;
/// The stream is reset, even if this half has ended gracefully.
const ABORTED: u8 = 2;

impl ResetOnDrop {
    /// Only the first code counts.
    pub fn set_code(&self, code: u32) {
        let _ = self
            .code
            .compare_exchange(0, code.saturating_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Has no effect on an aborted half.
    pub fn set_finish_on_drop(&self) {
        let _ = self.ending.compare_exchange(0, FINISHED, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub fn set_aborted(&self) {
        self.ending.store(ABORTED, Ordering::Relaxed);
    }

    /// Whether a half that is dropped lets the stream end gracefully. `ended`: the half has reached its end.
    pub fn is_orderly(&self, ended: bool) -> bool {
        match self.ending.load(Ordering::Relaxed) {
            ABORTED => false,
            FINISHED => true,
            _ => ended,
        }
    }

    pub fn code(&self) -> u32 {
        match self.code.load(Ordering::Relaxed) {
            0 => RESET_CODE,
            n => n - 1,
        }
    }
}
