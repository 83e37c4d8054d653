//! TLS configurations. Errors name the cause, but never reveal a key. PEM is read by `shared/net/pem.ts`.
mod authorities;
mod names;
mod options;
#[cfg(test)]
pub mod test_certificate;
mod verifier;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::aws_lc_rs::{hkdf, hmac};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::TlsConnector;

pub use self::options::{ClientTls, Der, HostTls, ServerTls};
use self::verifier::Verifier;
use crate::error::{NetError, NetErrorCode};
use crate::sync::lock;

/// QUIC requires it (RFC 9001 §4.2), and the TLS link needs no older one.
static LINK_VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// The protocol of challenges (RFC 8737 §4).
pub const ACME_PROTOCOL: &[u8] = b"acme-tls/1";
pub static TCP_VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // protects recorded traffic against future quantum computers
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    Arc::new(provider)
}

/// As [`provider`], with the cipher first that the processor computes fastest: one connection carries all tunnels.
fn link_provider() -> Arc<CryptoProvider> {
    let mut provider = (*provider()).clone();
    prefer(&mut provider, first_cipher(has_aes()));
    Arc::new(provider)
}

/// Whether the processor has instructions for AES.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn first_cipher(has_aes: bool) -> CipherSuite {
    match has_aes {
        true => CipherSuite::TLS13_AES_128_GCM_SHA256,
        false => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    }
}

fn prefer(provider: &mut CryptoProvider, first: CipherSuite) {
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
}

pub fn server(tls: &ServerTls, versions: &[&'static SupportedProtocolVersion], alpn: &[String]) -> Result<ServerConfig, NetError> {
    server_with(provider(), tls, versions, alpn)
}

/// The server of the agent link, over QUIC or TLS. The order of the client decides on the cipher: an agent may be a small machine without
/// instructions for AES, and it knows best which cipher is fast on its processor.
pub fn link_server(tls: &ServerTls, alpn: &[String]) -> Result<ServerConfig, NetError> {
    server_with(link_provider(), tls, LINK_VERSIONS, alpn)
}

fn server_with(
    provider: Arc<CryptoProvider>,
    tls: &ServerTls,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[String],
) -> Result<ServerConfig, NetError> {
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|e| NetError::tls("Cannot set up TLS", e))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            authorities::add(&mut roots, ca, "client CA")?;
            let lists = tls.client_crl.iter().flatten();
            let lists = lists.map(|list| CertificateRevocationListDer::from(list.to_vec()));
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .with_crls(lists)
                .allow_unknown_revocation_status(); // a CA without a CRL revokes nothing
            if tls.is_client_optional == Some(true) {
                verifier = verifier.allow_unauthenticated();
            }
            let verifier = verifier.build().map_err(|e| NetError::tls("Cannot use the client CA or CRL", e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain(&tls.cert), private_key(&tls.key)?)
        .map_err(|e| NetError::tls("Cannot use the certificate and key", e))?;
    config.alpn_protocols = alpn.iter().map(|p| p.clone().into_bytes()).collect();
    Ok(config)
}

/// A server that answers challenges of TLS-ALPN-01 (RFC 8737 §3). Their certificates have a critical extension that only the authority knows.
pub fn challenge_server(tls: &ServerTls) -> Result<ServerConfig, NetError> {
    let provider = provider();
    let key = provider
        .key_provider
        .load_private_key(private_key(&tls.key)?)
        .map_err(|e| NetError::tls("Cannot use the key of a challenge", e))?;
    let certified = CertifiedKey::new(chain(&tls.cert), key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(TCP_VERSIONS)
        .map_err(|e| NetError::tls("Cannot set up TLS", e))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ACME_PROTOCOL.to_vec()];
    Ok(config)
}

pub fn client(tls: &ClientTls, versions: &[&'static SupportedProtocolVersion], alpn: &[String]) -> Result<ClientConfig, NetError> {
    client_with(provider(), tls, versions, alpn)
}

/// A client of the agent link, over QUIC or TLS.
pub fn link_client(tls: &ClientTls, alpn: &[String]) -> Result<ClientConfig, NetError> {
    client_with(link_provider(), tls, LINK_VERSIONS, alpn)
}

fn client_with(
    provider: Arc<CryptoProvider>,
    tls: &ClientTls,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[String],
) -> Result<ClientConfig, NetError> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|e| NetError::tls("Cannot set up TLS", e))?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::new(tls, provider)?);
    let mut config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(chain(cert), private_key(key)?)
            .map_err(|e| NetError::tls("Cannot use the client certificate and key", e))?,
        (None, None) => builder.with_no_client_auth(),
        _ => {
            return Err(NetError::tls(
                "Cannot use the client certificate",
                "certificate and key must be given together",
            ))
        }
    };
    config.alpn_protocols = alpn.iter().map(|p| p.clone().into_bytes()).collect();
    Ok(config)
}

/// Lifetime of the cached connector: the system's CA bundle may change.
const CONNECTOR_LIFETIME: Duration = Duration::from_secs(60);

/// The connector used last. Creating one parses certificates and reads the CA bundle; reusing one resumes sessions (RFC 8446 §2.2).
#[derive(Default)]
pub struct LastConnector(Mutex<Option<(Instant, ClientTls, Alpn, TlsConnector)>>);

/// Protocols that a client offers (RFC 7301).
pub type Alpn = &'static [&'static str];

impl LastConnector {
    pub fn get(&self, tls: ClientTls, alpn: Alpn) -> Result<TlsConnector, NetError> {
        let mut last = lock(&self.0);
        if let Some((made, of, offered, connector)) = &*last {
            if made.elapsed() < CONNECTOR_LIFETIME && *of == tls && *offered == alpn {
                return Ok(connector.clone());
            }
        }
        let protocols: Vec<String> = alpn.iter().map(|protocol| (*protocol).to_owned()).collect();
        let connector = TlsConnector::from(Arc::new(client(&tls, TCP_VERSIONS, &protocols)?));
        *last = Some((Instant::now(), tls, alpn, connector.clone()));
        Ok(connector)
    }
}

pub fn server_name(name: &str) -> Result<ServerName<'static>, NetError> {
    // a zone (RFC 6874) is not part of the identity
    let name = name.split('%').next().unwrap_or(name);
    ServerName::try_from(name.to_owned()).map_err(|_| NetError::new(NetErrorCode::Invalid, format!("Cannot use {name:?} as a server name")))
}

fn chain(certificates: &[Der]) -> Vec<CertificateDer<'static>> {
    certificates.iter().map(|der| CertificateDer::from(der.to_vec())).collect()
}

/// Detects PKCS #8, PKCS #1 or SEC 1.
fn private_key(der: &[u8]) -> Result<PrivateKeyDer<'static>, NetError> {
    PrivateKeyDer::try_from(der.to_vec()).map_err(|e| NetError::tls("Cannot read the private key", e))
}

/// Derives the key of QUIC's tokens from the private key.
pub fn derive_token_key(key: &[u8]) -> Result<hkdf::Prk, NetError> {
    Ok(hkdf::Salt::new(hkdf::HKDF_SHA256, b"reverse-http QUIC tokens").extract(private_key(key)?.secret_der()))
}

/// Derives a secret from the private key with HKDF (RFC 5869), for one purpose.
pub fn derive(key: &[u8], purpose: &[u8]) -> Result<hmac::Key, NetError> {
    let key = private_key(key)?;
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"reverse-http").extract(key.secret_der());
    let purpose = [purpose];
    let derived = secret.expand(&purpose, hmac::HMAC_SHA256);
    Ok(derived.map_err(|e| NetError::tls("Cannot derive a secret", e))?.into())
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConnection, ServerConnection};

    use super::*;

    #[test]
    fn junk_is_an_error_of_tls() {
        let junk = || Der(b"junk".to_vec());
        let tls = ServerTls {
            cert: vec![junk()],
            key: junk(),
            ..Default::default()
        };
        assert_eq!(server(&tls, TCP_VERSIONS, &[]).unwrap_err().code, NetErrorCode::Tls);
        let tls = ClientTls {
            ca: Some(vec![junk()]),
            ..Default::default()
        };
        assert_eq!(client(&tls, TCP_VERSIONS, &[]).unwrap_err().code, NetErrorCode::Tls);
    }

    #[test]
    fn the_post_quantum_group_is_offered_first() {
        assert_eq!(provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }

    /// The cipher of a handshake with a server of the agent link.
    fn negotiated(client: ClientConfig) -> CipherSuite {
        let mut server = ServerConnection::new(link_server(&test_certificate::server_tls(), &[]).unwrap().into()).unwrap();
        let mut client = ClientConnection::new(client.into(), server_name("a").unwrap()).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut records = Vec::new();
            client.write_tls(&mut records).unwrap();
            server.read_tls(&mut records.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            records.clear();
            server.write_tls(&mut records).unwrap();
            client.read_tls(&mut records.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        client.negotiated_cipher_suite().unwrap().suite()
    }

    #[test]
    fn a_link_uses_the_fastest_cipher_of_the_client() {
        let tls = test_certificate::client_tls();
        assert_eq!(first_cipher(true), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(first_cipher(false), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        assert_eq!(negotiated(link_client(&tls, &[]).unwrap()), first_cipher(has_aes()));
        for first in [first_cipher(true), first_cipher(false)] {
            let mut provider = (*provider()).clone();
            prefer(&mut provider, first);
            let client = client_with(provider.into(), &tls, LINK_VERSIONS, &[]).unwrap();
            assert_eq!(negotiated(client), first, "the processor of an agent without AES is the slower one");
        }
    }
}
