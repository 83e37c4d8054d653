//! QUIC as the native engine sets it up (native/src/quic/transport.rs): the same windows, timings, packet sizes, sockets and cryptography, so that what
//! bare QUIC reaches is the limit of the engine.
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::CipherSuite;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, Runtime};

use crate::text;

const UDP_BUFFER: usize = 8 << 20;
const MTU: u16 = 6_400;
const WORKERS: usize = 2;

pub fn runtime() -> Result<Runtime, String> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(text)
}

/// `streams`: what the peer may open at a time.
fn transport(streams: u32) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config.keep_alive_interval(Some(Duration::from_secs(3)));
    config.max_idle_timeout(Some(VarInt::from_u32(10_000).into()));
    config.max_concurrent_bidi_streams(streams.into());
    config.max_concurrent_uni_streams(0u8.into());
    config.datagram_receive_buffer_size(None);
    config.stream_receive_window(VarInt::from_u32(8 << 20));
    config.receive_window(VarInt::MAX);
    config.send_window(32 << 20);
    config.congestion_controller_factory(Arc::new(CubicConfig::default()));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MTU);
    config.mtu_discovery_config(Some(discovery));
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    // the processors that are measured have instructions for AES
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn socket(address: SocketAddr) -> Result<std::net::UdpSocket, String> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP)).map_err(text)?;
    socket.set_nonblocking(true).map_err(text)?;
    raise_buffers(&socket);
    socket.bind(&address.into()).map_err(text)?;
    Ok(socket.into())
}

/// As much as the system gives.
pub fn raise_buffers(socket: &impl std::os::fd::AsFd) {
    use std::os::fd::AsRawFd;
    let size = UDP_BUFFER as libc::c_int;
    for option in [libc::SO_RCVBUF, libc::SO_SNDBUF, libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: a plain setsockopt with an int that outlives the call; what is refused changes nothing
        unsafe {
            let value = &size as *const libc::c_int as *const libc::c_void;
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                value,
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    let _ = config.max_udp_payload_size(MTU); // fails below 1,200 only
    config
}

/// Listens on UDP with a certificate and key in PEM files.
pub fn listen(address: SocketAddr, cert: &str, key: &str) -> Result<Endpoint, String> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|e| format!("Cannot read {cert}: {e}"))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("Cannot read {key}: {e}"))?;
    let mut crypto = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(text)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(text)?;
    crypto.alpn_protocols = vec![b"bare".to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto).map_err(text)?));
    config.transport_config(transport(65_536));
    Endpoint::new(endpoint_config(), Some(config), socket(address)?, Arc::new(quinn::TokioRuntime)).map_err(text)
}

/// One socket, for one connection or many, that trusts the authority in the PEM file `ca`.
pub fn dialler(ca: &str, alpn: &[&str], streams: u32) -> Result<Endpoint, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| format!("Cannot read {ca}: {e}"))? {
        roots.add(certificate.map_err(text)?).map_err(text)?;
    }
    let mut crypto = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(text)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    crypto.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).map_err(text)?));
    config.transport_config(transport(streams));
    let mut endpoint = Endpoint::new(
        endpoint_config(),
        None,
        socket((Ipv4Addr::UNSPECIFIED, 0).into())?,
        Arc::new(quinn::TokioRuntime),
    )
    .map_err(text)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

pub async fn dial(endpoint: &Endpoint, address: &str) -> Result<Connection, String> {
    let connecting = endpoint.connect(address.parse().map_err(text)?, "localhost").map_err(text)?;
    connecting.await.map_err(|error| format!("connect: {error}"))
}
