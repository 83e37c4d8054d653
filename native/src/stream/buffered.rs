//! Streams whose unread data counts towards the memory budget.
use std::sync::Arc;

use quinn::StreamId;

use super::udp_peer::UdpPeer;
use crate::quic::datagrams::Inbox;
use crate::{http2, tls_link};

/// A packet keeps the memory of the whole batch that the kernel delivered: measured, twice its size.
const PACKET_OVERHEAD: u64 = 2;

pub enum BufferedStream {
    Quic(quinn::Connection, StreamId),
    /// The datagrams of a flow over QUIC.
    Datagrams(Arc<Inbox>),
    TlsLink(Arc<tls_link::stream::Stream>),
    Udp(Arc<UdpPeer>),
    Http2(Arc<http2::stream::Stream>),
}

impl BufferedStream {
    /// Bytes received and not read, and bytes written and not acknowledged.
    pub fn held(&self) -> u64 {
        match self {
            Self::Quic(connection, id) => connection.held(*id),
            Self::Datagrams(inbox) => inbox.held(),
            Self::TlsLink(stream) => stream.held(),
            Self::Udp(peer) => peer.held(),
            Self::Http2(stream) => stream.held(),
        }
    }

    /// Memory for these bytes. `is_compact`: they were copied out of the packets.
    pub fn memory(&self, is_compact: bool) -> u64 {
        match self {
            Self::Quic(..) if !is_compact => PACKET_OVERHEAD * self.held(),
            _ => self.held(),
        }
    }

    /// Copies the data out of the packets, which take more memory.
    pub fn compact(&self) {
        if let Self::Quic(connection, id) = self {
            connection.compact(*id);
        }
    }
}
