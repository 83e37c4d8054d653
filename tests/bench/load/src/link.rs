//! A long path between agent and proxy: a UDP relay that delays every datagram and drops some of them, in a sequence that is the same every
//! time. It serves one agent.
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::quic::raise_buffers;
use crate::{text, wait};

/// Bytes on their way in one direction.
const QUEUE_LIMIT: usize = 64 << 20;
const LARGEST: usize = 65_535;

struct Datagram {
    due: Instant,
    data: Vec<u8>,
}

/// Runs until standard input ends; then says what went through and what was lost.
pub fn run(host: IpAddr, to: &str, delay: Duration, loss: f64) -> Result<(), String> {
    let to: SocketAddr = to.parse().map_err(text)?;
    let near = socket(host)?;
    let far = socket(host)?;
    far.connect(to).map_err(text)?;
    println!("{}", json!({ "listening": near.local_addr().map_err(text)?.to_string() }));
    let agent: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let counts = [Arc::new(Counts::default()), Arc::new(Counts::default())];
    let (from_agent, to_proxy) = (near.try_clone().map_err(text)?, far.try_clone().map_err(text)?);
    let known = agent.clone();
    direction(
        &counts[0],
        delay,
        Dice::new(1, loss),
        move |buffer| {
            let (n, from) = from_agent.recv_from(buffer)?;
            *known.lock().expect("no holder of the lock panics") = Some(from);
            Ok(n)
        },
        move |data| drop(to_proxy.send(data)), // refused: the proxy is gone, or the datagram is too large
    );
    direction(
        &counts[1],
        delay,
        Dice::new(2, loss),
        move |buffer| far.recv(buffer),
        move |data| {
            if let Some(agent) = *agent.lock().expect("no holder of the lock panics") {
                let _ = near.send_to(data, agent);
            }
        },
    );
    wait()?;
    let say = |counts: &Counts| {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        json!({ "passed": load(&counts.passed), "lost": load(&counts.lost), "overflowed": load(&counts.overflowed) })
    };
    println!("{}", json!({ "up": say(&counts[0]), "down": say(&counts[1]) }));
    Ok(())
}

fn socket(host: IpAddr) -> Result<UdpSocket, String> {
    let socket = UdpSocket::bind((host, 0)).map_err(text)?;
    raise_buffers(&socket);
    forbid_fragments(&socket)?;
    Ok(socket)
}

/// A datagram that exceeds the MTU of the way out is lost, as at a router: QUIC's search for the MTU depends on it.
fn forbid_fragments(socket: &UdpSocket) -> Result<(), String> {
    let value = libc::IP_PMTUDISC_PROBE;
    // SAFETY: a plain setsockopt with an int that outlives the call
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            &value as *const libc::c_int as *const libc::c_void,
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(text(std::io::Error::last_os_error()))
    }
}

#[derive(Default)]
struct Counts {
    passed: AtomicU64,
    lost: AtomicU64,
    overflowed: AtomicU64,
}

/// Two threads: one takes and decides, one waits and gives.
fn direction(
    counts: &Arc<Counts>,
    delay: Duration,
    mut dice: Dice,
    mut take: impl FnMut(&mut [u8]) -> std::io::Result<usize> + Send + 'static,
    mut give: impl FnMut(&[u8]) + Send + 'static,
) {
    let (sender, receiver) = channel();
    let under_way = Arc::new(AtomicUsize::new(0));
    let (counts, waiting) = (counts.clone(), under_way.clone());
    thread::spawn(move || {
        let mut buffer = vec![0; LARGEST];
        loop {
            let Ok(n) = take(&mut buffer) else { continue }; // a refused datagram earlier: the next may do
            let count = if dice.loses() {
                &counts.lost
            } else if under_way.load(Ordering::Relaxed) + n > QUEUE_LIMIT {
                &counts.overflowed
            } else {
                under_way.fetch_add(n, Ordering::Relaxed);
                let data = buffer[..n].to_vec();
                if sender
                    .send(Datagram {
                        due: Instant::now() + delay,
                        data,
                    })
                    .is_err()
                {
                    return;
                }
                &counts.passed
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    thread::spawn(move || deliver(receiver, &waiting, &mut give));
}

fn deliver(receiver: Receiver<Datagram>, waiting: &AtomicUsize, give: &mut impl FnMut(&[u8])) {
    for Datagram { due, data } in receiver {
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            thread::sleep(left);
        }
        give(&data);
        waiting.fetch_sub(data.len(), Ordering::Relaxed);
    }
}

/// xorshift64 (Marsaglia 2003).
struct Dice {
    state: u64,
    below: u64,
}

impl Dice {
    /// `loss`: the share that is lost, from 0 to 1.
    fn new(seed: u64, loss: f64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            below: (loss * u64::MAX as f64) as u64,
        }
    }

    fn loses(&mut self) -> bool {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state < self.below
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn dice_lose_the_share_they_are_told() {
        let mut dice = Dice::new(1, 0.01);
        let lost = (0..100_000).filter(|_| dice.loses()).count();
        assert!((800..1_200).contains(&lost), "{lost}");
    }
}
