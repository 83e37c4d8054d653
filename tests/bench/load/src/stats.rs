//! Results as JSON: percentiles of latencies, counts of errors, CPU time.
use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{json, Value};

/// Counts of failures by their message.
#[derive(Default)]
pub struct Errors(BTreeMap<String, u64>);

impl Errors {
    pub fn add(&mut self, error: String) {
        *self.0.entry(error).or_default() += 1;
    }

    pub fn merge(&mut self, other: Self) {
        for (error, count) in other.0 {
            *self.0.entry(error).or_default() += count;
        }
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub fn json(&self) -> Value {
        json!(self.0)
    }
}

/// Percentiles by nearest rank, in milliseconds; `null` without samples.
pub fn percentiles(mut samples: Vec<Duration>) -> Value {
    samples.sort_unstable();
    let rank = |p: f64| {
        let at = ((p * samples.len() as f64).ceil() as usize).max(1) - 1;
        samples.get(at).map(|sample| sample.as_secs_f64() * 1e3)
    };
    json!({ "p50": rank(0.5), "p90": rank(0.9), "p99": rank(0.99), "p999": rank(0.999), "max": rank(1.0) })
}

/// User and system time of this process so far.
pub fn cpu_seconds() -> f64 {
    // SAFETY: getrusage writes the structure it is given; zeros are a valid one
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks_in_milliseconds() {
        let hundred = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(
            percentiles(hundred),
            json!({ "p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 100.0, "max": 100.0 })
        );
    }

    #[test]
    fn percentiles_of_nothing_are_null() {
        assert_eq!(percentiles(Vec::new())["p99"], Value::Null);
    }
}
