//! TLS configurations from PEM texts: what a server shows and asks, what a client believes. Errors name what is wrong, never a key.
use std::sync::Arc;

use ::aws_lc_rs::{hkdf, hmac};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use sha2::{Digest, Sha256};

use crate::error::Fault;

#[napi_derive::napi(object)]
#[derive(Clone)]
pub struct ServerTls {
    pub cert: String,
    pub key: String,
    pub client_ca: Option<String>,
    pub client_crl: Option<String>,
}

#[napi_derive::napi(object)]
#[derive(Clone, Default)]
pub struct ClientTls {
    pub ca: Option<String>,
    pub system_roots: Option<bool>,
    pub cert: Option<String>,
    pub key: Option<String>,
    pub insecure_skip_verify: Option<bool>,
    pub pin_sha256: Option<Vec<String>>,
}

/// QUIC knows TLS 1.3 alone (RFC 9001 §4.2).
pub static QUIC_VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
pub static TCP_VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // whoever records the traffic today must not read it with tomorrow's computer
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    Arc::new(provider)
}

pub fn server(tls: &ServerTls, versions: &[&'static SupportedProtocolVersion], alpn: &[String]) -> Result<ServerConfig, Fault> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|e| Fault::tls("Cannot set up TLS", e))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            add_authorities(&mut roots, ca, "client CA")?;
            let lists = match &tls.client_crl {
                None => Vec::new(),
                Some(crl) => CertificateRevocationListDer::pem_slice_iter(crl.as_bytes())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e| Fault::tls("Cannot use the client CRL", without_content(&e)))?,
            };
            if tls.client_crl.is_some() && lists.is_empty() {
                return Err(Fault::tls("Cannot use the client CRL", "it has no revocation list in PEM"));
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .with_crls(lists)
                .allow_unknown_revocation_status() // an authority without a list of its own revokes nothing
                .build()
                .map_err(|e| Fault::tls("Cannot use the client CA or CRL", e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain(&tls.cert, "certificate")?, private_key(&tls.key)?)
        .map_err(|e| Fault::tls("Cannot use the certificate and key", e))?;
    config.alpn_protocols = alpn.iter().map(|p| p.clone().into_bytes()).collect();
    Ok(config)
}

pub fn client(tls: &ClientTls, versions: &[&'static SupportedProtocolVersion], alpn: &[String]) -> Result<ClientConfig, Fault> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|e| Fault::tls("Cannot set up TLS", e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(tls, provider)?);
    let mut config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(chain(cert, "client certificate")?, private_key(key)?)
            .map_err(|e| Fault::tls("Cannot use the client certificate and key", e))?,
        (None, None) => builder.with_no_client_auth(),
        _ => {
            return Err(Fault::tls(
                "Cannot use the client certificate",
                "certificate and key must be given together",
            ))
        }
    };
    config.alpn_protocols = alpn.iter().map(|p| p.clone().into_bytes()).collect();
    Ok(config)
}

pub fn server_name(name: &str) -> Result<ServerName<'static>, Fault> {
    // a zone (RFC 6874) says where an address is reached, not whose it is
    let name = name.split('%').next().unwrap_or(name);
    ServerName::try_from(name.to_owned()).map_err(|_| Fault::new("invalid", format!("Cannot use {name:?} as a server name")))
}

fn chain(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Fault::tls(&format!("Cannot read the {what}"), without_content(&e)))?;
    if chain.is_empty() {
        return Err(Fault::tls(&format!("Cannot read the {what}"), "it has no certificate in PEM"));
    }
    Ok(chain)
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Fault> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| Fault::tls("Cannot read the private key", without_content(&e)))
}

/// The parser's own sentences show the line that is wrong: all of a key whose line breaks were lost.
fn without_content(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line of PEM is not a line of its own, or is cut short",
        pem::Error::MissingSectionEnd { .. } => "a section of PEM has no END line",
        pem::Error::Base64Decode(_) => "a section of PEM is not in base64",
        pem::Error::NoItemsFound => "there is none in PEM",
        _ => "it is not PEM that can be read",
    }
}

/// A secret that is the same as long as the private key is, and tells nothing of it (RFC 5869). `purpose` makes it another one.
pub fn derive(key: &str, purpose: &[u8]) -> Result<hmac::Key, Fault> {
    let key = private_key(key)?;
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"reverse-http").extract(key.secret_der());
    let purpose = [purpose];
    let derived = secret.expand(&purpose, hmac::HMAC_SHA256);
    Ok(derived.map_err(|e| Fault::tls("Cannot derive a secret", e))?.into())
}

fn add_authorities(roots: &mut RootCertStore, pem: &str, what: &str) -> Result<(), Fault> {
    for certificate in chain(pem, what)? {
        roots
            .add(certificate)
            .map_err(|e| Fault::tls(&format!("Cannot use the {what}"), e))?;
    }
    Ok(())
}

fn verifier(tls: &ClientTls, provider: Arc<CryptoProvider>) -> Result<Arc<Verifier>, Fault> {
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
            Some(inner.build().map_err(|e| Fault::tls("Cannot use the CA", e))?)
        }
    };
    Ok(Arc::new(Verifier { pins, chain, provider }))
}

fn roots(tls: &ClientTls) -> Result<RootCertStore, Fault> {
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

/// The usual bundle files, the first that has certificates. Reading files is the one thing here that can be slow; they are some 200 KB.
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

fn parse_pin(pin: &str) -> Result<[u8; 32], Fault> {
    let bad = || {
        Fault::new(
            "invalid",
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

#[derive(Debug)]
struct WrongPin;

impl std::fmt::Display for WrongPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("its SHA-256 is not the pinned one")
    }
}

impl std::error::Error for WrongPin {}

/// A pin, a chain of trust, both or neither. The handshake's signature is checked always: nobody shows a certificate without its key.
#[derive(Debug)]
struct Verifier {
    pins: Vec<[u8; 32]>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
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
        if !self.pins.is_empty() && !self.pins.contains(&Sha256::digest(end_entity).into()) {
            return Err(CertificateError::Other(OtherError(Arc::new(WrongPin))).into());
        }
        match &self.chain {
            Some(chain) => chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Ok(ServerCertVerified::assertion()),
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
            assert_eq!(parse_pin(bad).unwrap_err().code, "invalid", "{bad}");
        }
    }

    #[test]
    fn junk_is_an_error_of_tls() {
        let tls = ServerTls {
            cert: "junk".into(),
            key: "junk".into(),
            client_ca: None,
            client_crl: None,
        };
        assert_eq!(server(&tls, TCP_VERSIONS, &[]).unwrap_err().code, "tls");
        let tls = ClientTls {
            ca: Some("junk".into()),
            ..Default::default()
        };
        assert_eq!(client(&tls, TCP_VERSIONS, &[]).unwrap_err().code, "tls");
    }

    #[test]
    fn a_key_that_lost_its_line_breaks_is_in_no_error() {
        let key = "-----BEGIN PRIVATE KEY----- c2VjcmV0 -----END PRIVATE KEY-----\n";
        let decimals = |text: &str| text.bytes().map(|b| b.to_string()).collect::<Vec<_>>().join(", ");
        for (cert, key) in [(key, ""), ("", key)] {
            let tls = ServerTls {
                cert: cert.into(),
                key: key.into(),
                client_ca: None,
                client_crl: None,
            };
            let message = [chain(&tls.cert, "certificate").err(), private_key(&tls.key).err()]
                .map(|fault| fault.unwrap().message)
                .concat();
            assert!(
                !message.contains("c2VjcmV0") && !message.contains(&decimals("c2VjcmV0")),
                "{message}"
            );
        }
    }

    #[test]
    fn the_post_quantum_group_is_offered_first() {
        assert_eq!(provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }
}
