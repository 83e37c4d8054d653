//! A QUIC socket that passes from one process to the next (docs/adr/0017-hand-over.md). Each process is a generation, which its connection ids
//! name. The newest one reads the socket, and relays packets of earlier processes' connections to these. They send by their own descriptors of it.
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::task::{ready, Context, Poll, Waker};

use quinn::udp::RecvMeta;
use socket2::SockRef;
use tokio::io::ReadBuf;
use tokio::net::UnixDatagram;

use super::generations::generation_of;
use super::relayed_packet::{decode, encode};
use super::siblings::Siblings;
use crate::handover::channel::{duplicate, MAX_DESCRIPTORS};
use crate::relay::datagram_queue::with_buffer;
use crate::sync::lock;

/// Requested buffer of a relay in bytes; the kernel may grant less.
pub(super) const RELAY_BUFFER: usize = 4 << 20;

/// A relay to an earlier process.
#[derive(Debug)]
struct Relay {
    generation: u8,
    socket: StdUnixDatagram,
}

/// Where datagrams come from.
#[derive(Debug)]
enum Source {
    Socket,
    /// Nowhere: a predecessor still reads the socket.
    None,
    /// From the successor, which reads the socket.
    Relay(UnixDatagram),
}

#[derive(Debug)]
struct Reading {
    source: Source,
    /// The end of a relay for the time after a hand-over.
    prepared: Option<UnixDatagram>,
    waker: Option<Waker>,
}

/// The position of this process among those that have, or had, the socket.
#[derive(Debug)]
pub struct Succession {
    pub generation: u8,
    /// The generation of connection ids.
    key: u64,
    reading: Mutex<Reading>,
    earlier: Mutex<Vec<Relay>>,
    has_earlier: AtomicBool,
    /// Other processes that listen at the same address. Then there are no earlier ones.
    siblings: Option<Siblings>,
}

impl Succession {
    /// `relays`: those of earlier processes, the newest first.
    pub fn new(key: u64, relays: Vec<(u8, OwnedFd)>, is_accepting: bool) -> Self {
        let generation = (0..=u8::MAX)
            .cycle()
            .skip(relays.first().map_or(0, |(newest, _)| usize::from(*newest) + 1));
        let is_free = |generation: &u8| relays.iter().all(|(used, _)| used != generation);
        let generation = generation.take(256).find(is_free).unwrap_or_default();
        let relays: Vec<Relay> = relays
            .into_iter()
            .map(|(generation, socket)| {
                let socket = StdUnixDatagram::from(socket);
                Relay { generation, socket }
            })
            .collect();
        Self {
            generation,
            key,
            reading: Mutex::new(Reading {
                source: if is_accepting { Source::Socket } else { Source::None },
                prepared: None,
                waker: None,
            }),
            has_earlier: AtomicBool::new(!relays.is_empty()),
            earlier: Mutex::new(relays),
            siblings: None,
        }
    }

    /// Of a process that shares the address with others.
    pub fn of_siblings(key: u64, siblings: Siblings) -> Self {
        Self {
            generation: siblings.generation,
            siblings: Some(siblings),
            ..Self::new(key, Vec::new(), true)
        }
    }

    /// The ends of relays for a successor: of this process, then of earlier ones that still run. Requires the runtime.
    pub fn pass(&self) -> io::Result<Vec<(u8, OwnedFd)>> {
        let (ours, theirs) = StdUnixDatagram::pair()?;
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true)?;
        }
        let _ = SockRef::from(&theirs).set_send_buffer_size(RELAY_BUFFER); // a smaller one only loses datagrams earlier
        lock(&self.reading).prepared = Some(UnixDatagram::from_std(ours)?);
        let mut earlier = lock(&self.earlier);
        earlier.retain(|relay| relay.socket.send(&[]).is_ok_or_full()); // an empty one is ignored
        let mut relays = vec![(self.generation, theirs.into())];
        if earlier.len() + relays.len() >= MAX_DESCRIPTORS {
            return Err(io::Error::other("too many earlier processes still run"));
        }
        for relay in &*earlier {
            relays.push((relay.generation, duplicate(&relay.socket)?));
        }
        Ok(relays)
    }

    /// Starts or stops reading the socket. Afterwards only packets that a successor relays are read.
    pub fn set_accepting(&self, accepting: bool) {
        let mut reading = lock(&self.reading);
        reading.source = match (accepting, reading.prepared.take()) {
            (true, _) => Source::Socket,
            (false, Some(relay)) => Source::Relay(relay),
            (false, None) => Source::None,
        };
        if let Some(waker) = reading.waker.take() {
            waker.wake();
        }
    }

    /// Whether the socket is read.
    pub fn is_accepting(&self) -> bool {
        matches!(lock(&self.reading).source, Source::Socket)
    }

    /// Receives by `receive` from the socket, or from the successor.
    pub fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
        receive: impl Fn(&mut Context, &mut [IoSliceMut<'_>], &mut [RecvMeta]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Some(siblings) = &self.siblings {
            return siblings.poll_recv(cx, bufs, meta, self.key, receive);
        }
        {
            let mut reading = lock(&self.reading);
            if reading.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                reading.waker = Some(cx.waker().clone());
            }
            match &reading.source {
                Source::None => return Poll::Pending,
                Source::Relay(relay) => return poll_relay(relay, cx, bufs, meta),
                Source::Socket => {}
            }
        }
        let received = ready!(receive(cx, bufs, meta))?;
        if !self.has_earlier.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(received));
        }
        Poll::Ready(Ok(self.relay_to_earlier(bufs, meta, received)))
    }

    /// Forwards packets of earlier processes to these, and compacts the rest. Returns the number of remaining packets.
    fn relay_to_earlier(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta], received: usize) -> usize {
        let mut earlier = lock(&self.earlier);
        let kept = relay_packets(bufs, meta, received, |packet, meta| {
            self.send_to_earlier(&mut earlier, packet, meta)
        });
        self.has_earlier.store(!earlier.is_empty(), Ordering::Relaxed);
        kept
    }

    /// Returns whether the packet belongs to an earlier process that still runs.
    fn send_to_earlier(&self, earlier: &mut Vec<Relay>, packet: &[u8], meta: &RecvMeta) -> bool {
        let Some(generation) = generation_of(packet, self.key) else {
            return false;
        };
        let Some(at) = earlier.iter().position(|relay| relay.generation == generation) else {
            return false;
        };
        let header = encode(meta);
        // a relay that is full loses datagrams as a network does
        let runs = SockRef::from(&earlier[at].socket)
            .send_vectored(&[IoSlice::new(&header), IoSlice::new(packet)])
            .is_ok_or_full();
        if !runs {
            earlier.remove(at);
        }
        runs
    }
}

/// Relays packets by `relay`, which returns whether it has done so, and moves the rest together. Returns how much is left.
pub fn relay_packets(
    bufs: &mut [IoSliceMut<'_>],
    meta: &mut [RecvMeta],
    received: usize,
    mut relay: impl FnMut(&[u8], &RecvMeta) -> bool,
) -> usize {
    let mut kept = 0;
    for at in 0..received {
        let mut rest = 0;
        for start in (0..meta[at].len).step_by(meta[at].stride.max(1)) {
            let end = meta[at].len.min(start + meta[at].stride);
            if relay(&bufs[at][start..end], &meta[at]) {
                continue;
            }
            if rest != start {
                bufs[at].copy_within(start..end, rest);
            }
            rest += end - start;
        }
        if rest == 0 {
            continue;
        }
        meta[at].len = rest;
        if kept != at {
            bufs.swap(kept, at);
            meta.swap(kept, at);
        }
        kept += 1;
    }
    kept
}

pub trait IsOkOrFull {
    /// Whether a relay still has a reader.
    fn is_ok_or_full(&self) -> bool;
}

impl IsOkOrFull for io::Result<usize> {
    fn is_ok_or_full(&self) -> bool {
        self.as_ref().map_or_else(
            |error| error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS),
            |_| true,
        )
    }
}

/// Receives as many packets as there are, and room for.
pub fn poll_relay(relay: &UnixDatagram, cx: &mut Context, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
    with_buffer(|buffer| {
        let mut received = 0;
        while received < bufs.len().min(meta.len()) {
            let mut message = ReadBuf::new(buffer);
            match relay.poll_recv(cx, &mut message) {
                Poll::Pending if received == 0 => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let Some((of, packet)) = decode(message.filled()) else { continue };
            let Some(room) = bufs[received].get_mut(..packet.len()) else {
                continue;
            };
            room.copy_from_slice(packet);
            meta[received] = of;
            received += 1;
        }
        Poll::Ready(Ok(received))
    })
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::SocketAddrV6;

    use quinn::udp::EcnCodepoint;
    use quinn_proto::ConnectionIdGenerator;

    use super::super::generations::GenerationalIds;
    use super::*;

    const KEY: u64 = 7;

    fn first() -> Succession {
        Succession::new(KEY, Vec::new(), true)
    }

    fn successor(of: &Succession) -> Succession {
        let next = Succession::new(KEY, of.pass().unwrap(), false);
        of.set_accepting(false);
        next.set_accepting(true);
        next
    }

    fn short(generation: u8, content: u8) -> Vec<u8> {
        let mut packet = vec![0x40];
        packet.extend_from_slice(&GenerationalIds::new(generation, KEY).generate_cid());
        packet.push(content);
        packet
    }

    fn meta(packets: &[Vec<u8>]) -> RecvMeta {
        RecvMeta {
            addr: SocketAddrV6::new("fe80::1".parse().unwrap(), 4433, 0, 3).into(),
            len: packets.iter().map(Vec::len).sum(),
            stride: packets[0].len(),
            ecn: Some(EcnCodepoint::Ce),
            dst_ip: Some("192.0.2.1".parse().unwrap()),
        }
    }

    /// The packets that `of` receives when `batches` arrive at the socket, each from one source.
    async fn receive(of: &Succession, batches: &[Vec<Vec<u8>>]) -> Vec<(RecvMeta, Vec<u8>)> {
        let mut buffers = vec![[0; 2_000]; 4];
        let mut bufs: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut metas = [RecvMeta::default(); 4];
        let from_socket = |_: &mut Context, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]| {
            for (at, packets) in batches.iter().enumerate() {
                metas[at] = meta(packets);
                bufs[at][..metas[at].len].copy_from_slice(&packets.concat());
            }
            Poll::Ready(Ok(batches.len()))
        };
        let count = poll_fn(|cx| of.poll_recv(cx, &mut bufs, &mut metas, from_socket)).await.unwrap();
        (0..count).map(|at| (metas[at], bufs[at][..metas[at].len].to_vec())).collect()
    }

    #[tokio::test]
    async fn packets_reach_the_process_of_their_connection_over_several_hand_overs() {
        let oldest = first();
        let older = successor(&oldest);
        let newest = successor(&older);
        assert_eq!([oldest.generation, older.generation, newest.generation], [0, 1, 2]);
        let own = [short(2, 1), short(7, 2)];
        let batches = [
            vec![short(0, 3)],
            vec![short(0, 4), own[0].clone(), short(1, 5)],
            vec![own[1].clone()],
        ];
        let left: Vec<_> = receive(&newest, &batches).await.into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(left, own);
        let relayed = receive(&oldest, &[]).await;
        assert_eq!(
            relayed.iter().map(|(_, packet)| *packet.last().unwrap()).collect::<Vec<_>>(),
            [3, 4]
        );
        let (got, sent) = (relayed[0].0, meta(&[short(0, 3)]));
        assert_eq!((got.addr, got.len, got.stride), (sent.addr, sent.len, sent.stride));
        assert_eq!((got.ecn, got.dst_ip), (sent.ecn, sent.dst_ip));
        assert_eq!(receive(&older, &[]).await[0].1.last(), Some(&5));
    }

    #[tokio::test]
    async fn packets_of_a_process_that_has_ended_are_kept() {
        let oldest = first();
        let newest = successor(&oldest);
        drop(oldest);
        assert_eq!(receive(&newest, &[vec![short(0, 1)]]).await.len(), 1);
        assert!(!newest.has_earlier.load(Ordering::Relaxed));
        assert_eq!(newest.pass().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_hand_over_that_fails_changes_nothing() {
        let only = first();
        drop(Succession::new(KEY, only.pass().unwrap(), false));
        only.set_accepting(false);
        only.set_accepting(true);
        assert_eq!(receive(&only, &[vec![short(0, 1)]]).await.len(), 1);
    }

    #[test]
    fn generations_of_processes_that_run_are_not_used_again() {
        let relay = |generation: u8| (generation, StdUnixDatagram::pair().unwrap().0.into());
        let of = |generations: &[u8]| Succession::new(KEY, generations.iter().copied().map(relay).collect(), true).generation;
        assert_eq!((of(&[255, 0, 1]), of(&[4, 9])), (2, 5));
    }
}
