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

/// A SHA-256 that the server's certificate must have.
#[derive(Debug, PartialEq)]
enum Pin {
    /// Of the certificate itself.
    Certificate([u8; 32]),
    /// Of its public key (SubjectPublicKeyInfo, RFC 7469 §2.4): it survives a renewal with the same key.
    Key([u8; 32]),
}

/// Verifies a pin, a chain of trust, both or neither. The signature of the handshake is always verified.
#[derive(Debug)]
pub struct Verifier {
    pins: Vec<Pin>,
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
        if !self.pins.is_empty() {
            let shown = Shown::of(end_entity);
            if !self.pins.iter().any(|pin| shown.matches(pin)) {
                return Err(untrusted(Reason::NotPinned(shown), end_entity));
            }
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

/// The hashes of a certificate.
struct Shown {
    certificate: [u8; 32],
    /// `None` if the certificate cannot be parsed.
    key: Option<[u8; 32]>,
}

impl Shown {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        let parsed = webpki::EndEntityCert::try_from(certificate).ok();
        Self {
            certificate: sha256(certificate),
            key: parsed.map(|parsed| sha256(&parsed.subject_public_key_info())),
        }
    }

    fn matches(&self, pin: &Pin) -> bool {
        match pin {
            Pin::Certificate(hash) => *hash == self.certificate,
            Pin::Key(hash) => Some(*hash) == self.key,
        }
    }
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses 64 hexadecimal digits, of a certificate, or `sha256/` with as many, of a public key. JavaScript translates other notations.
fn parse_pin(pin: &str) -> Result<Pin, NetError> {
    match pin.strip_prefix("sha256/") {
        Some(key) => parse_hash(pin, key).map(Pin::Key),
        None => parse_hash(pin, pin).map(Pin::Certificate),
    }
}

fn parse_hash(pin: &str, hash: &str) -> Result<[u8; 32], NetError> {
    let bad = || {
        NetError::new(
            NetErrorCode::Invalid,
            format!("Cannot use the pin {pin:?}: it is not a SHA-256 in 64 hexadecimal digits"),
        )
    };
    let digits: Vec<u8> = hash
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
    NotPinned(Shown),
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
                write!(f, "its SHA-256 is {}, and that is not the pinned one", hex(&shown.certificate))?;
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
        assert_eq!(parse_pin(&plain).unwrap(), Pin::Certificate(want));
        assert_eq!(parse_pin(&format!("sha256/{plain}")).unwrap(), Pin::Key(want));
        let colons = plain
            .as_bytes()
            .chunks(2)
            .map(|p| std::str::from_utf8(p).unwrap())
            .collect::<Vec<_>>()
            .join(":");
        assert_eq!(parse_pin(&colons).unwrap(), Pin::Certificate(want));
    }

    #[test]
    fn a_pin_of_the_key_matches_its_certificates_and_no_others() {
        let certificate = CertificateDer::from(super::super::test_certificate::server_tls().cert[0].to_vec());
        let shown = Shown::of(&certificate);
        assert!(shown.matches(&Pin::Certificate(sha256(&certificate))));
        // RFC 8410 §4: the algorithm Ed25519 and the key
        let at = certificate
            .windows(12)
            .position(|w| w == [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0]);
        let key = sha256(&certificate[at.unwrap()..][..44]);
        assert!(shown.matches(&Pin::Key(key)));
        assert!(!shown.matches(&Pin::Certificate(key)));
        assert!(!shown.matches(&Pin::Key(sha256(&certificate))));
    }

    #[test]
    fn bad_pins_are_named() {
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(66), &"g".repeat(64), "sha256/00"] {
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
