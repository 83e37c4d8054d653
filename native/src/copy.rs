//! Copies that JavaScript asks for.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::held::{Cancel, Core};
use crate::hub::{Js, Promise};
use crate::rate::Pace;
use crate::stream::{Stop, Taking};
use crate::{lock, millis, splice};

/// One of them.
pub struct Copy {
    pub core: Arc<Core>,
    promise: Promise,
    pub prologue_to_a: Bytes,
    idle: Option<Duration>,
    pace: Pace,
    pub stop: Arc<Stop>,
    /// Where it can be cancelled.
    known: Option<Known>,
    /// There is one more of them.
    _counted: Arc<()>,
}

/// What can be cancelled under a number, as long as it is there.
struct Known(Arc<Core>, u64);

impl Drop for Known {
    fn drop(&mut self) {
        lock(&self.0.cancels).remove(&self.1);
    }
}

impl Copy {
    pub fn new(
        core: &Arc<Core>,
        op: f64,
        prologue_to_a: Option<&[u8]>,
        idle_timeout_ms: u32,
        rates: Option<Vec<f64>>,
        cancellable: bool,
    ) -> Self {
        let stop = Arc::new(Stop::default());
        let known = cancellable.then(|| {
            lock(&core.cancels).insert(op as u64, Cancel::Splice(stop.clone()));
            Known(core.clone(), op as u64)
        });
        Self {
            core: core.clone(),
            promise: core.promise(op),
            prologue_to_a: prologue_to_a.map(Bytes::copy_from_slice).unwrap_or_default(),
            idle: (idle_timeout_ms > 0).then(|| millis(idle_timeout_ms)),
            pace: core.pace(&rates.unwrap_or_default()),
            stop,
            known,
            _counted: core.copies.clone(),
        }
    }

    /// Copies to the end, and frees the numbers of the streams that have one.
    pub async fn run(mut self, halves: Box<(Taking, Taking)>, numbers: [Option<f64>; 2]) {
        let prologue = std::mem::take(&mut self.prologue_to_a);
        let done = splice::run(halves, prologue, self.idle, &self.pace, &self.stop).await;
        {
            let mut streams = lock(&self.core.streams);
            for number in numbers.into_iter().flatten() {
                streams.remove(&(number as u64));
            }
        }
        let (fault, side) = match &done.fault {
            None => (Js::Undefined, Js::Undefined),
            Some((fault, side)) => (Js::from(fault), side.map_or(Js::Undefined, |side| Js::Number(side as u8 as f64))),
        };
        self.settle(Js::Array(vec![
            Js::Number(done.a_to_b as f64),
            Js::Number(done.b_to_a as f64),
            fault,
            side,
        ]));
    }

    pub fn settle(self, value: Js) {
        let Self { core, promise, known, .. } = self;
        drop(known); // before JavaScript hears of it
        core.mention(promise, value);
    }
}
