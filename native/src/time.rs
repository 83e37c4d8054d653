use std::time::Duration;

pub fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}
