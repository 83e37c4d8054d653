//! Whether small frames of some streams wait behind the bulk data of others.
use std::time::Instant;

use crate::quic::signals::{BULK_WRITE, INTERACTIVE_TIMEOUT, INTERACTIVE_WRITE};

/// The streams that small frames were last on. Two are kept: a stream on which bulk data follows is removed, and must not hide another one.
#[derive(Default)]
pub(super) struct Interactivity([Option<(u32, Instant)>; 2]);

impl Interactivity {
    /// Records a DATA frame. A small one is interactive, unless bulk data follows on the same stream.
    pub fn record(&mut self, stream: u32, bytes: usize) {
        if bytes <= INTERACTIVE_WRITE {
            self.record_small(stream, Instant::now());
        } else if bytes >= BULK_WRITE {
            for last in &mut self.0 {
                last.take_if(|(small, _)| *small == stream);
            }
        }
    }

    fn record_small(&mut self, stream: u32, now: Instant) {
        let [last, before] = &mut self.0;
        if last.is_some_and(|(small, _)| small != stream) {
            *before = *last;
        }
        *last = Some((stream, now));
    }

    /// Whether interactive data has arrived lately.
    pub fn is_recent(&self, now: Instant) -> bool {
        let recent = |(_, at): &(u32, Instant)| now.saturating_duration_since(*at) <= INTERACTIVE_TIMEOUT;
        self.0.iter().flatten().any(recent)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn is_interactive(frames: &[(u32, usize)]) -> bool {
        let mut interactivity = Interactivity::default();
        frames.iter().for_each(|(stream, bytes)| interactivity.record(*stream, *bytes));
        interactivity.is_recent(Instant::now())
    }

    #[test]
    fn small_frames_are_interactive_beside_bulk_data_of_other_streams() {
        assert!(!is_interactive(&[]));
        assert!(is_interactive(&[(1, INTERACTIVE_WRITE)]));
        assert!(!is_interactive(&[(1, INTERACTIVE_WRITE + 1), (1, BULK_WRITE)]));
        assert!(is_interactive(&[(1, 100), (3, BULK_WRITE), (3, BULK_WRITE)]));
    }

    #[test]
    fn bulk_data_after_a_small_frame_is_not_interactive() {
        assert!(!is_interactive(&[(1, 100), (1, BULK_WRITE)]));
        assert!(!is_interactive(&[(1, 100), (3, 100), (3, BULK_WRITE), (1, BULK_WRITE)]), "of both");
        assert!(!is_interactive(&[(1, 100), (3, 100), (1, 100), (1, BULK_WRITE), (3, BULK_WRITE)]));
    }

    #[test]
    fn the_last_part_of_bulk_data_does_not_hide_a_stream_that_is_interactive() {
        let mut interactivity = Interactivity::default();
        let start = Instant::now();
        interactivity.record(1, 100);
        for _ in 0..100 {
            interactivity.record(3, BULK_WRITE);
            interactivity.record(3, 100);
            assert!(interactivity.is_recent(start));
        }
        interactivity.record(3, BULK_WRITE);
        assert!(interactivity.is_recent(start));
    }

    #[test]
    fn traffic_is_interactive_for_a_while_after_its_last_small_frame() {
        let mut interactivity = Interactivity::default();
        let start = Instant::now();
        interactivity.record_small(1, start);
        assert!(interactivity.is_recent(start + INTERACTIVE_TIMEOUT));
        assert!(!interactivity.is_recent(start + INTERACTIVE_TIMEOUT + Duration::from_millis(1)));
    }
}
