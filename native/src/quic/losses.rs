//! The losses that `cubic-loss-tolerant` ignores.
use std::time::Duration;

/// The share of packets that `cubic-loss-tolerant` lets go: radio links and bad cables lose this much without a queue. BBR tolerates the
/// same (draft-ietf-ccwg-bbr, `BBR.LossThresh`).
const TOLERATED_LOSS: f64 = 0.02;
/// Standard deviations above that share at which the path is taken to lose more. Losses at random come in clusters, so of few packets
/// more than the share is lost often; each answer to that would end slow start, and the window would stay small for minutes.
const DEVIATIONS: f64 = 2.0;
/// Packets over which the loss rate is measured.
pub const LOSS_SAMPLE_PACKETS: u64 = 2_048;

/// Decides whether losses are tolerable: they are few, and the round-trip time shows no queue.
#[derive(Clone, Default)]
pub struct Losses {
    pub mtu: u64,
    /// Bytes of about the last [`LOSS_SAMPLE_PACKETS`] packets.
    arrived: u64,
    pub lost: u64,
    queued: bool,
}

impl Losses {
    pub fn new(mtu: u16) -> Self {
        Self {
            mtu: mtu.into(),
            ..Self::default()
        }
    }

    /// `rtt`: the smoothed and the minimum round-trip time.
    pub fn arrived(&mut self, bytes: u64, rtt: [Duration; 2]) {
        let [late, least] = rtt;
        self.arrived += bytes;
        self.forget();
        self.queued = late > least + least / 8 + Duration::from_millis(1);
    }

    pub fn lost(&mut self, bytes: u64) {
        self.lost += bytes;
        self.forget();
    }

    fn forget(&mut self) {
        if self.arrived + self.lost > LOSS_SAMPLE_PACKETS * self.mtu {
            self.arrived /= 2;
            self.lost /= 2;
        }
    }

    pub fn are_tolerable(&self) -> bool {
        let packets = |bytes: u64| bytes as f64 / self.mtu.max(1) as f64;
        let expected = packets(self.arrived + self.lost) * TOLERATED_LOSS;
        !self.queued && packets(self.lost) <= expected + DEVIATIONS * expected.sqrt()
    }
}
