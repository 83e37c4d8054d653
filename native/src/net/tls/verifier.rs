//! Verifies certificates of servers: by a pin, by a chain of trust, by both or not at all.
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_name, WebPkiServerVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};

use super::{authorities, names, ClientTls};
use crate::error::{NetError, NetErrorCode};

/// Verifies a pin, a chain of trust, both or neither. The signature of the handshake is always verified.
#[derive(Debug)]
pub struct Verifier {
    pins: Vec<[u8; 32]>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates that the user trusts, not the system's.
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    pub fn new(tls: &ClientTls, provider: Arc<CryptoProvider>) -> Result<Arc<Self>, NetError> {
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
                let roots = authorities::of_servers(tls)?;
                let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
                Some(inner.build().map_err(|e| NetError::tls("Cannot use the CA", e))?)
            }
        };
        Ok(Arc::new(Self {
            pins,
            chain,
            trusted: super::chain(tls.ca.as_deref().unwrap_or_default()),
            provider,
        }))
    }

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
            return Err(untrusted(Reason::NotPinned(shown), end_entity));
        }
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki checks the validity period before this
            Err(rustls::Error::InvalidCertificate(error)) if is_ca(&error) && self.trusted.iter().any(|trusted| trusted == end_entity) => {
                self.verify_trusted(end_entity, server_name)
            }
            Err(rustls::Error::InvalidCertificate(error @ (CertificateError::UnknownIssuer | CertificateError::BadSignature))) => {
                Err(untrusted(Reason::Chain(error), end_entity))
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

/// Whether webpki rejected an end-entity certificate because of CA:TRUE.
fn is_ca(error: &CertificateError) -> bool {
    let CertificateError::Other(OtherError(error)) = error else {
        return false;
    };
    matches!(error.downcast_ref::<webpki::Error>(), Some(webpki::Error::CaUsedAsEndEntity))
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

fn untrusted(reason: Reason, certificate: &CertificateDer<'_>) -> rustls::Error {
    let names = names::describe(certificate);
    CertificateError::Other(OtherError(Arc::new(Untrusted { reason, names }))).into()
}

enum Reason {
    /// No trusted authority has issued it, or one of the same name with another key.
    Chain(CertificateError),
    /// With the certificate's SHA-256.
    NotPinned([u8; 32]),
}

/// The certificate is not that of the server; another server or a middlebox may have answered. rustls formats such errors with `Debug`, so that
/// is the message.
struct Untrusted {
    reason: Reason,
    names: Option<String>,
}

impl std::fmt::Debug for Untrusted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.reason {
            Reason::Chain(error) => write!(f, "{error}")?,
            Reason::NotPinned(shown) => {
                let shown: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
                write!(f, "its SHA-256 is {shown}, and that is not the pinned one")?;
            }
        }
        self.names.as_ref().map_or(Ok(()), |names| write!(f, "; {names}"))
    }
}

impl std::fmt::Display for Untrusted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Untrusted {}

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
}
