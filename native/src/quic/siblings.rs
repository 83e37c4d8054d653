//! Processes that listen at the same UDP address (docs/adr/0021-workers.md). The kernel distributes datagrams by the address of the peer, so
//! those of a connection whose peer's address has changed may arrive at another process. Its connection ids name a generation, and each
//! process receives what the others have read for it at a Unix socket of that name.
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use quinn::udp::RecvMeta;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::UnixDatagram;

use super::generations::generation_of;
use super::relayed_packet::encode;
use super::succession::{poll_relay, relay_packets, IsOkOrFull, RELAY_BUFFER};
use crate::net::sharing::Sharing;

#[derive(Debug)]
pub struct Siblings {
    pub generation: u8,
    inbox: UnixDatagram,
    path: PathBuf,
    /// Sends to the inboxes of the others.
    outbox: StdUnixDatagram,
    /// The inboxes of all generations.
    addresses: Vec<SockAddr>,
    /// Whether the inbox is polled before the socket: they take turns.
    is_inbox_next: AtomicBool,
}

impl Siblings {
    /// Of the process that listens at `address`. Requires the runtime.
    pub fn open(sharing: &Sharing, address: SocketAddr) -> io::Result<Self> {
        let path_of = |generation: u8| sharing.directory.join(format!("{address}-{generation}"));
        let path = path_of(sharing.generation);
        let _ = std::fs::remove_file(&path); // of an earlier process with this generation
        let inbox = StdUnixDatagram::bind(&path)?;
        inbox.set_nonblocking(true)?;
        let outbox = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
        outbox.set_nonblocking(true)?;
        let _ = outbox.set_send_buffer_size(RELAY_BUFFER); // a smaller one only loses datagrams earlier
        Ok(Self {
            generation: sharing.generation,
            inbox: UnixDatagram::from_std(inbox)?,
            path,
            outbox: outbox.into(),
            addresses: (0..=u8::MAX)
                .map(|generation| SockAddr::unix(path_of(generation)))
                .collect::<io::Result<_>>()?,
            is_inbox_next: AtomicBool::new(false),
        })
    }

    /// Receives from the inbox, or by `receive` from the socket what is not the others'.
    pub fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
        key: u64,
        receive: impl Fn(&mut Context, &mut [IoSliceMut<'_>], &mut [RecvMeta]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let is_inbox_first = self.is_inbox_next.fetch_xor(true, Ordering::Relaxed);
        for is_inbox in [is_inbox_first, !is_inbox_first] {
            let received = match is_inbox {
                true => poll_relay(&self.inbox, cx, bufs, meta),
                false => receive(cx, bufs, meta)
                    .map_ok(|received| relay_packets(bufs, meta, received, |packet, meta| self.relay(packet, meta, key))),
            };
            if received.is_ready() {
                return received;
            }
        }
        Poll::Pending
    }

    /// Returns whether the packet belongs to another process that runs.
    fn relay(&self, packet: &[u8], meta: &RecvMeta, key: u64) -> bool {
        let Some(generation) = generation_of(packet, key).filter(|generation| *generation != self.generation) else {
            return false;
        };
        let header = encode(meta);
        // an inbox that is full loses datagrams as a network does
        SockRef::from(&self.outbox)
            .send_to_vectored(
                &[IoSlice::new(&header), IoSlice::new(packet)],
                &self.addresses[usize::from(generation)],
            )
            .is_ok_or_full()
    }
}

impl Drop for Siblings {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // the others see that this process has ended
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use quinn_proto::ConnectionIdGenerator;

    use super::super::generations::GenerationalIds;
    use super::*;

    const KEY: u64 = 7;

    fn short(generation: u8, content: u8) -> Vec<u8> {
        let mut packet = vec![0x40];
        packet.extend_from_slice(&GenerationalIds::new(generation, KEY).generate_cid());
        packet.push(content);
        packet
    }

    /// The content of the packets that `of` receives when `packets` arrive at its socket in one batch; from its inbox without any.
    async fn receive(of: &Siblings, packets: &[Vec<u8>]) -> Vec<u8> {
        let mut buffers = vec![[0; 2_000]; 4];
        let mut bufs: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut metas = [RecvMeta::default(); 4];
        let from_socket = |_: &mut Context, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]| {
            if packets.is_empty() {
                return Poll::Pending;
            }
            metas[0].addr = ([192, 0, 2, 1], 4000).into();
            (metas[0].len, metas[0].stride) = (packets.concat().len(), packets[0].len());
            bufs[0][..metas[0].len].copy_from_slice(&packets.concat());
            Poll::Ready(Ok(1))
        };
        let count = poll_fn(|cx| of.poll_recv(cx, &mut bufs, &mut metas, KEY, from_socket))
            .await
            .unwrap();
        let packet = |at: usize| &bufs[at][..metas[at].len];
        (0..count)
            .flat_map(|at| packet(at).chunks(metas[at].stride).map(|packet| packet[packet.len() - 1]))
            .collect()
    }

    #[tokio::test]
    async fn packets_reach_the_process_of_their_connection_and_those_of_none_stay() {
        let directory = std::env::temp_dir().join(format!("reverse-http-siblings-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let open = |generation| {
            let sharing = Sharing {
                directory: directory.clone(),
                generation,
                is_first: false,
            };
            Siblings::open(&sharing, ([127, 0, 0, 1], 4242).into()).unwrap()
        };
        let (one, two) = (open(1), open(2));
        let packets = [short(1, 10), short(2, 20), short(3, 30)];
        assert_eq!(receive(&one, &packets).await, [10, 30]);
        assert_eq!(receive(&two, &[]).await, [20]);
        assert_eq!(receive(&two, &packets).await, [20, 30]);
        assert_eq!(receive(&one, &[]).await, [10]);
        drop(two);
        assert_eq!(receive(&one, &packets).await, [10, 20, 30], "the process has ended");
        let next = open(2);
        assert_eq!(receive(&one, &packets).await, [10, 30]);
        assert_eq!(receive(&next, &[]).await, [20]);
        drop((one, next));
        std::fs::remove_dir(&directory).unwrap(); // it is empty
    }
}
