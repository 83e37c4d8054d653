//! Certificates and keys, generated per process.
use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use reverse_http_native::fuzzing::Der;
use rustls::pki_types::{pem::PemObject, CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

pub struct Pki {
    pub ca: String,
    pub other_ca: String,
    pub crl: String,
    pub server: Identity,
    pub agent: Identity,
    pub revoked: Identity,
    /// Issued by another CA with the same name.
    pub stranger: Identity,
}

pub struct Identity {
    pub cert: String,
    pub key: String,
    pub der: Vec<u8>,
}

pub fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let (ca, issuer) = authority();
        let (other_ca, other) = authority();
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(666),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let crl = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2999, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Pki {
            ca,
            other_ca,
            crl: crl.signed_by(&issuer).unwrap().pem().unwrap(),
            server: issue(&issuer, "localhost", 1),
            agent: issue(&issuer, "4711", 2),
            revoked: issue(&issuer, "4711", 666),
            stranger: issue(&other, "localhost", 1),
        }
    })
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Fuzz CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap().pem();
    (cert, Issuer::new(params, key))
}

fn issue(issuer: &Issuer<'_, KeyPair>, name: &str, serial: u64) -> Identity {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial));
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, issuer).unwrap();
    Identity {
        cert: cert.pem(),
        key: key.serialize_pem(),
        der: cert.der().to_vec(),
    }
}

/// The DER of a PEM text of `pki`.
pub fn der_of(pem: &str) -> Der {
    let der = match pem.lines().next() {
        Some(begin) if begin.contains("PRIVATE KEY") => PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap().secret_der().to_vec(),
        Some(begin) if begin.contains("CRL") => CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec(),
        _ => CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec(),
    };
    Der(der)
}

pub fn genuine(number: u8) -> Vec<u8> {
    let pki = pki();
    let pem = match number {
        1 => &pki.server.cert,
        2 => &pki.server.key,
        3 => &pki.ca,
        4 => &pki.crl,
        5 => &pki.agent.key,
        6 => &pki.other_ca,
        _ => &pki.agent.cert,
    };
    der_of(pem).0
}
