//! The transport settings of a connection, as JavaScript gives them, in the terms of quinn.
use std::sync::{Arc, Weak};
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::{Connection, EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::congestion;
use super::connection_window;
use super::datagrams;
use super::generations::GenerationalIds;
use super::signals::ConnectionSignals;
use super::socket::Socket;
use crate::error::{NetError, NetErrorCode};
use crate::net::tls::{self, ServerTls};
use crate::stream::window_growth;

/// With GSO quinn loses larger ones: a send must stay below 64 KiB.
const MAX_MTU: u32 = 6_400;
const MIN_MTU: u32 = 1_200;
/// MTU discovery starts at 1,200 (RFC 8899). Paths with 1,500 bytes end at about 1,450; loopback and data centres go higher.
const DEFAULT_MTU: u32 = MAX_MTU;
/// Initial stream limit. quinn allocates for all streams that a peer may open, even during the handshake, and keeps what they have needed:
/// 6 MB for 10,000.
pub const INITIAL_STREAMS: u32 = 256;
/// Minimum interval between stateless resets. A reset costs less than the packet that caused it; at quinn's 20 ms thousands of peers would
/// time out first.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

#[napi_derive::napi(object)]
#[derive(Clone, Default)]
pub struct Transport {
    pub keep_alive_ms: Option<u32>,
    pub idle_timeout_ms: Option<u32>,
    pub max_peer_streams: Option<u32>,
    pub stream_window: Option<u32>,
    pub connection_window: Option<u32>,
    pub congestion: Option<String>,
    pub max_mtu: Option<u32>,
}

impl Transport {
    pub fn config(&self) -> Result<Arc<TransportConfig>, NetError> {
        let mut config = TransportConfig::default();
        let millis = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
        config.keep_alive_interval(millis(self.keep_alive_ms.unwrap_or(3_000)));
        config.max_idle_timeout(
            self.idle_timeout_ms
                .map_or(Some(10_000), |ms| (ms > 0).then_some(ms))
                .map(|ms| VarInt::from_u32(ms).into()),
        );
        config.max_concurrent_bidi_streams(self.streams().min(INITIAL_STREAMS).into());
        config.max_concurrent_uni_streams(0u8.into());
        config.datagram_receive_buffer_size(Some(datagrams::RECEIVE_BUFFER));
        config.datagram_send_buffer_size(datagrams::SEND_BUFFER);
        config.stream_receive_window(self.stream_window().into());
        config.receive_window(connection_window::initial_connection_window(self.connection_window.unwrap_or(0)));
        // each stream has its own: with a shared one bulk streams would starve the others
        config.send_window(u64::MAX);
        let name = self.congestion.as_deref().unwrap_or("cubic");
        let factory = congestion::named(name).ok_or_else(|| {
            let message = format!("Cannot use {name:?} for congestion control: it is cubic, cubic-loss-tolerant, bbr or newreno");
            NetError::new(NetErrorCode::Invalid, message)
        })?;
        config.congestion_controller_factory(factory);
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu());
        config.mtu_discovery_config(Some(discovery));
        Ok(Arc::new(config))
    }

    fn stream_window(&self) -> u32 {
        self.stream_window.unwrap_or(window_growth::INITIAL_STREAM_WINDOW as u32)
    }

    /// Sets up a connection after its handshake.
    pub fn begin(&self, connection: &Connection, socket: &Weak<Socket>) {
        if let Some(signals) = ConnectionSignals::of(connection) {
            signals.set_socket(socket);
            signals
                .window
                .begin(self.stream_window().into(), self.connection_window.unwrap_or(0));
        }
    }

    /// Maximum number of streams that the peer may have open.
    pub fn streams(&self) -> u32 {
        self.max_peer_streams.unwrap_or(16)
    }

    fn mtu(&self) -> u16 {
        self.max_mtu.unwrap_or(DEFAULT_MTU).clamp(MIN_MTU, MAX_MTU) as u16
    }

    pub fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        let _ = config.max_udp_payload_size(self.mtu().max(1_472)); // fails only below 1,200
        config
    }

    /// The configuration of a server's endpoint. Its stateless resets (RFC 9000 §10.3) are derived from the private key, so that a
    /// restarted server, or another one with the same key behind a load balancer, can end connections it does not know.
    pub fn server_endpoint(&self, tls: &ServerTls, generation: u8) -> Result<EndpointConfig, NetError> {
        let (key, ids) = (reset_key(tls)?, key_of_ids(tls)?);
        let mut config = self.endpoint();
        config.reset_key(Arc::new(key));
        config.cid_generator(move || Box::new(GenerationalIds::new(generation, ids)));
        config.min_reset_interval(RESET_INTERVAL);
        Ok(config)
    }
}

fn reset_key(tls: &ServerTls) -> Result<hmac::Key, NetError> {
    tls::derive(&tls.key, b"QUIC stateless reset")
}

/// The key by which a server recognizes its connection ids.
pub fn key_of_ids(tls: &ServerTls) -> Result<u64, NetError> {
    let mut key = [0; 8];
    key.copy_from_slice(&hmac::sign(&reset_key(tls)?, b"key of connection ids").as_ref()[..8]);
    Ok(u64::from_le_bytes(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert!(Transport::default().config().is_ok());
        assert_eq!(Transport::default().mtu(), 6400);
    }

    #[test]
    fn packet_sizes_stay_where_they_work() {
        let mtu = |n| {
            Transport {
                max_mtu: Some(n),
                ..Default::default()
            }
            .mtu()
        };
        assert_eq!((mtu(0), mtu(100_000)), (1200, 6400));
    }

    #[test]
    fn unknown_congestion_control_is_named() {
        let error = Transport {
            congestion: Some("vegas".into()),
            ..Default::default()
        }
        .config()
        .unwrap_err();
        assert!(error.message.contains("\"vegas\""));
    }
}
