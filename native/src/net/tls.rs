//! TLS configurations from DER. Errors name the cause, but never reveal a key. PEM is read by `shared/net/pem.ts`; here only for the
//! system's CA bundle.
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::aws_lc_rs::{digest, hkdf, hmac};
use napi::bindgen_prelude::{FromNapiValue, TypeName, Uint8Array, ValidateNapiValue};
use napi::{sys, ValueType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_name, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio_rustls::TlsConnector;

use crate::error::{NetError, NetErrorCode};
use crate::sync::lock;

/// DER of a certificate, a key or a revocation list.
#[derive(Clone, PartialEq)]
pub struct Der(pub Vec<u8>);

impl Deref for Der {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl TypeName for Der {
    fn type_name() -> &'static str {
        Uint8Array::type_name()
    }

    fn value_type() -> ValueType {
        Uint8Array::value_type()
    }
}

impl ValidateNapiValue for Der {
    unsafe fn validate(env: sys::napi_env, value: sys::napi_value) -> napi::Result<sys::napi_value> {
        // SAFETY: both come from the caller, who has the same duties
        unsafe { Uint8Array::validate(env, value) }
    }
}

impl FromNapiValue for Der {
    unsafe fn from_napi_value(env: sys::napi_env, value: sys::napi_value) -> napi::Result<Self> {
        // SAFETY: both come from the caller, who has the same duties; the bytes are copied here and now
        let bytes = unsafe { Uint8Array::from_napi_value(env, value) }?;
        Ok(Self(bytes.to_vec()))
    }
}

#[napi_derive::napi(object, object_to_js = false)]
#[derive(Clone)]
pub struct ServerTls {
    pub cert: Vec<Der>,
    pub key: Der,
    pub client_ca: Option<Vec<Der>>,
    pub client_crl: Option<Vec<Der>>,
}

#[napi_derive::napi(object, object_to_js = false)]
#[derive(Clone, Default, PartialEq)]
pub struct ClientTls {
    pub ca: Option<Vec<Der>>,
    pub system_roots: Option<bool>,
    pub cert: Option<Vec<Der>>,
    pub key: Option<Der>,
    pub insecure_skip_verify: Option<bool>,
    pub pin_sha256: Option<Vec<String>>,
}

/// QUIC requires TLS 1.3 (RFC 9001 §4.2).
pub static QUIC_VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
pub static TCP_VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // protects recorded traffic against future quantum computers
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    Arc::new(provider)
}

pub fn server(tls: &ServerTls, versions: &[&'static SupportedProtocolVersion], alpn: &[String]) -> Result<ServerConfig, NetError> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|e| NetError::tls("Cannot set up TLS", e))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            add_authorities(&mut roots, ca, "client CA")?;
            let lists = tls.client_crl.iter().flatten();
            let lists = lists.map(|list| CertificateRevocationListDer::from(list.to_vec()));
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .with_crls(lists)
                .allow_unknown_revocation_status() // a CA without a CRL revokes nothing
                .build()
                .map_err(|e| NetError::tls("Cannot use the client CA or CRL", e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain(&tls.cert), private_key(&tls.key)?)
        .map_err(|e| NetError::tls("Cannot use the certificate and key", e))?;
    config.alpn_protocols = alpn.iter().map(|p| p.clone().into_bytes()).collect();
    Ok(config)
}

pub fn client(tls: &ClientTls, versions: &[&'static SupportedProtocolVersion], alpn: &[String]) -> Result<ClientConfig, NetError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|e| NetError::tls("Cannot set up TLS", e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(tls, provider)?);
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
pub struct LastConnector(Mutex<Option<(Instant, ClientTls, TlsConnector)>>);

impl LastConnector {
    pub fn get(&self, tls: ClientTls) -> Result<TlsConnector, NetError> {
        let mut last = lock(&self.0);
        if let Some((made, of, connector)) = &*last {
            if made.elapsed() < CONNECTOR_LIFETIME && *of == tls {
                return Ok(connector.clone());
            }
        }
        let connector = TlsConnector::from(Arc::new(client(&tls, TCP_VERSIONS, &[])?));
        *last = Some((Instant::now(), tls, connector.clone()));
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

/// Derives a secret from the private key with HKDF (RFC 5869), for one purpose.
pub fn derive(key: &[u8], purpose: &[u8]) -> Result<hmac::Key, NetError> {
    let key = private_key(key)?;
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"reverse-http").extract(key.secret_der());
    let purpose = [purpose];
    let derived = secret.expand(&purpose, hmac::HMAC_SHA256);
    Ok(derived.map_err(|e| NetError::tls("Cannot derive a secret", e))?.into())
}

fn add_authorities(roots: &mut RootCertStore, authorities: &[Der], what: &str) -> Result<(), NetError> {
    for certificate in chain(authorities) {
        roots
            .add(certificate)
            .map_err(|e| NetError::tls(&format!("Cannot use the {what}"), e))?;
    }
    Ok(())
}

fn verifier(tls: &ClientTls, provider: Arc<CryptoProvider>) -> Result<Arc<Verifier>, NetError> {
    let pins = tls
        .pin_sha256
        .iter()
        .flatten()
        .map(|pin| parse_pin(pin))
        .collect::<Result<Vec<_>, _>>()?;
    let skip = tls.insecure_skip_verify.unwrap_or(false) || (!pins.is_empty() && tls.ca.is_none());
    let chain = match skip {
        true => None,
        false => {
            let roots = roots(tls)?;
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            Some(inner.build().map_err(|e| NetError::tls("Cannot use the CA", e))?)
        }
    };
    Ok(Arc::new(Verifier {
        pins,
        chain,
        trusted: self::chain(tls.ca.as_deref().unwrap_or_default()),
        provider,
    }))
}

fn roots(tls: &ClientTls) -> Result<RootCertStore, NetError> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &tls.ca {
        add_authorities(&mut roots, ca, "CA")?;
    }
    if tls.ca.is_none() || tls.system_roots.unwrap_or(false) {
        let (added, _) = roots.add_parsable_certificates(system_authorities());
        if added == 0 {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
    }
    Ok(roots)
}

/// The system's CA bundle: the first of the usual files that has certificates.
fn system_authorities() -> Vec<CertificateDer<'static>> {
    const BUNDLES: [&str; 5] = [
        "/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Arch, Alpine, distroless
        "/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL
        "/etc/ssl/ca-bundle.pem",             // openSUSE
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/cert.pem", // macOS, BSD
    ];
    let chosen = std::env::var("SSL_CERT_FILE").ok();
    for file in chosen.as_deref().into_iter().chain(BUNDLES) {
        let Ok(pem) = std::fs::read(file) else { continue };
        let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

fn parse_pin(pin: &str) -> Result<[u8; 32], NetError> {
    let bad = || {
        NetError::new(
            NetErrorCode::Invalid,
            format!("Cannot use the pin {pin:?}: it is not the SHA-256 of a certificate in 64 hexadecimal digits"),
        )
    };
    let digits: Vec<u8> = pin
        .bytes()
        .filter(|b| *b != b':')
        .map(|b| (b as char).to_digit(16).map(|d| d as u8))
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |n, d| n << 4 | d)).collect();
    if digits.len() != 64 {
        return Err(bad());
    }
    bytes.try_into().map_err(|_| bad())
}

/// The certificate does not match the pin. rustls formats such errors with `Debug`, so that is the message.
struct WrongPin([u8; 32]);

impl std::fmt::Debug for WrongPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(f, "its SHA-256 is {shown}, and that is not the pinned one")
    }
}

impl std::fmt::Display for WrongPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for WrongPin {}

/// Verifies a pin, a chain of trust, both or neither. The signature of the handshake is always verified.
#[derive(Debug)]
struct Verifier {
    pins: Vec<[u8; 32]>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates that the user trusts, not the system's.
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

/// Whether webpki rejected an end-entity certificate because of CA:TRUE.
fn is_ca(error: &CertificateError) -> bool {
    let CertificateError::Other(OtherError(error)) = error else {
        return false;
    };
    matches!(error.downcast_ref::<webpki::Error>(), Some(webpki::Error::CaUsedAsEndEntity))
}

impl Verifier {
    /// Accepts a server certificate that is itself one of the trusted certificates, even if it has CA:TRUE, as `openssl req -x509` creates
    /// them. Validity, name and purpose are still checked.
    fn verify_trusted(&self, end_entity: &CertificateDer<'_>, server_name: &ServerName<'_>) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        if !is_for_servers(end_entity) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        Ok(ServerCertVerified::assertion())
    }
}

/// Whether the extended key usage, if present, includes `id-kp-serverAuth` (RFC 5280 §4.2.1.12). webpki does not expose it, so this
/// searches the bytes, which is safe for a certificate the user has chosen to trust.
fn is_for_servers(certificate: &[u8]) -> bool {
    const EXTENDED_KEY_USAGE: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x25];
    const SERVER_AUTH: [u8; 10] = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
    let Some(at) = certificate.windows(5).position(|bytes| bytes == EXTENDED_KEY_USAGE) else {
        return true;
    };
    let mut value = &certificate[at + 5..];
    value = value.strip_prefix(&[0x01, 0x01, 0xff]).unwrap_or(value); // critical
    let length = match value {
        [0x04, length, ..] if *length < 0x80 => usize::from(*length) + 2,
        [0x04, 0x81, length, ..] => usize::from(*length) + 3,
        _ => return false,
    };
    let value = value.get(..length).unwrap_or_default();
    value.windows(SERVER_AUTH.len()).any(|bytes| bytes == SERVER_AUTH)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = sha256(end_entity);
        if !self.pins.is_empty() && !self.pins.contains(&shown) {
            return Err(CertificateError::Other(OtherError(Arc::new(WrongPin(shown)))).into());
        }
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki checks the validity period before this
            Err(rustls::Error::InvalidCertificate(error)) if is_ca(&error) && self.trusted.iter().any(|trusted| trusted == end_entity) => {
                self.verify_trusted(end_entity, server_name)
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_with_and_without_colons() {
        let plain = "00".repeat(31) + "fF";
        let mut want = [0; 32];
        want[31] = 0xff;
        assert_eq!(parse_pin(&plain).unwrap(), want);
        let colons = plain
            .as_bytes()
            .chunks(2)
            .map(|p| std::str::from_utf8(p).unwrap())
            .collect::<Vec<_>>()
            .join(":");
        assert_eq!(parse_pin(&colons).unwrap(), want);
    }

    #[test]
    fn bad_pins_are_named() {
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(66), &"g".repeat(64)] {
            assert_eq!(parse_pin(bad).unwrap_err().code, NetErrorCode::Invalid, "{bad}");
        }
    }

    #[test]
    fn junk_is_an_error_of_tls() {
        let junk = || Der(b"junk".to_vec());
        let tls = ServerTls {
            cert: vec![junk()],
            key: junk(),
            client_ca: None,
            client_crl: None,
        };
        assert_eq!(server(&tls, TCP_VERSIONS, &[]).unwrap_err().code, NetErrorCode::Tls);
        let tls = ClientTls {
            ca: Some(vec![junk()]),
            ..Default::default()
        };
        assert_eq!(client(&tls, TCP_VERSIONS, &[]).unwrap_err().code, NetErrorCode::Tls);
    }

    #[test]
    fn a_purpose_other_than_that_of_servers_is_seen() {
        let usage = |purpose: u8| {
            let mut der = vec![0x30, 0x13, 0x06, 0x03, 0x55, 0x1d, 0x25, 0x04, 0x0c, 0x30, 0x0a];
            der.extend([0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, purpose]);
            der
        };
        assert!(is_for_servers(&usage(1)));
        assert!(!is_for_servers(&usage(2)));
        assert!(is_for_servers(b"none"));
        assert!(!is_for_servers(&usage(1)[..12]));
    }

    #[test]
    fn the_post_quantum_group_is_offered_first() {
        assert_eq!(provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }
}
