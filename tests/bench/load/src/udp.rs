//! Datagrams at a constant rate through a published UDP port to the origin's echo, and how long they take there and back.
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::stats::{percentiles, Errors};
use crate::text;

/// Sequence number, and nanoseconds since the start. A number of zero marks a probe.
const HEADER: usize = 16;
const MAX_SIZE: usize = 65_507;
/// So that neither the origin nor this program is where datagrams are lost.
const BUFFER_BYTES: libc::c_int = 8 << 20;
/// Between two batches: what a timer of the kernel can keep.
const TICK: Duration = Duration::from_micros(200);
/// From the last datagram until those that have not come back count as lost.
const GRACE: Duration = Duration::from_secs(1);
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
const PROBES: usize = 100;

/// Sends `per_second` datagrams of `size` bytes during `time`.
pub fn run(target: &str, per_second: u64, size: usize, time: Duration) -> Result<Value, String> {
    if !(HEADER..=MAX_SIZE).contains(&size) {
        return Err(format!(
            "Cannot use --size: it must be from {HEADER} to {MAX_SIZE}; current value is {size}"
        ));
    }
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(text)?;
    enlarge_buffers(&socket);
    socket.connect(target).map_err(text)?;
    probe(&socket, size)?;
    let began = Instant::now();
    let receiving = {
        let socket = socket.try_clone().map_err(text)?;
        std::thread::spawn(move || receive(&socket, began, began + time + GRACE))
    };
    let mut errors = Errors::default();
    let sent = send(&socket, per_second, size, began, time, &mut errors);
    let samples = receiving.join().expect("receiving does not panic").map_err(text)?;
    let received = samples.len() as u64;
    Ok(json!({
        "sent": sent,
        "received": received,
        "sentPerSecond": sent as f64 / time.as_secs_f64(),
        "lostPercent": 100.0 * sent.saturating_sub(received) as f64 / sent.max(1) as f64,
        "rttMs": percentiles(samples),
        "errors": errors.json(),
    }))
}

/// Returns when a datagram has come back: the tunnel is open.
fn probe(socket: &UdpSocket, size: usize) -> Result<(), String> {
    socket.set_read_timeout(Some(PROBE_INTERVAL)).map_err(text)?;
    for _ in 0..PROBES {
        let sent_at = Instant::now();
        // refused until the port is published
        let answered = socket.send(&vec![0; size]).and_then(|_| socket.recv(&mut [0; HEADER]));
        if answered.is_ok() {
            return Ok(());
        }
        sleep(PROBE_INTERVAL.saturating_sub(sent_at.elapsed()));
    }
    Err("udp: no datagram has come back".into())
}

fn send(socket: &UdpSocket, per_second: u64, size: usize, began: Instant, time: Duration, errors: &mut Errors) -> u64 {
    let mut data = vec![b'.'; size];
    let mut sent = 0;
    loop {
        let elapsed = began.elapsed();
        if elapsed >= time {
            return sent;
        }
        let due = (elapsed.as_secs_f64() * per_second as f64) as u64;
        while sent < due {
            sent += 1;
            data[..8].copy_from_slice(&sent.to_be_bytes());
            data[8..HEADER].copy_from_slice(&(began.elapsed().as_nanos() as u64).to_be_bytes());
            if let Err(error) = socket.send(&data) {
                errors.add(format!("udp: {}", error.kind()));
            }
        }
        sleep(TICK);
    }
}

/// The round trips until `end`.
fn receive(socket: &UdpSocket, began: Instant, end: Instant) -> std::io::Result<Vec<Duration>> {
    let mut samples = Vec::new();
    let mut data = vec![0; MAX_SIZE];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(samples);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut data) {
            Ok(size) if size >= HEADER => {
                let number = |at: usize| u64::from_be_bytes(data[at..at + 8].try_into().expect("eight bytes"));
                if number(0) > 0 {
                    samples.push(began.elapsed().saturating_sub(Duration::from_nanos(number(8))));
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(samples),
            // ICMP says that the port is gone: the rest is lost
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends each datagram back to where it comes from, forever, at the port of the origin.
pub fn serve(address: SocketAddr) -> Result<(), String> {
    let socket = UdpSocket::bind(address).map_err(text)?;
    enlarge_buffers(&socket);
    std::thread::spawn(move || {
        let mut data = vec![0; MAX_SIZE];
        loop {
            // an error is that of an earlier datagram, whose sender is gone
            if let Ok((size, from)) = socket.recv_from(&mut data) {
                let _ = socket.send_to(&data[..size], from);
            }
        }
    });
    Ok(())
}

/// Beyond the system's maximum as root; otherwise up to it.
fn enlarge_buffers(socket: &UdpSocket) {
    let bytes = BUFFER_BYTES;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE, libc::SO_RCVBUF, libc::SO_SNDBUF] {
        // SAFETY: the option's value is an int that lives during the call
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_come_back_from_the_echo() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        serve(free).unwrap();
        let result = run(&free.to_string(), 1_000, 100, Duration::from_millis(50)).unwrap();
        assert!(result["sent"].as_u64().unwrap() > 0);
        assert_eq!(result["sent"], result["received"]);
    }

    #[test]
    fn a_size_without_room_for_the_header_is_refused() {
        assert!(run("127.0.0.1:9", 1, HEADER - 1, Duration::ZERO).unwrap_err().contains("--size"));
    }
}
