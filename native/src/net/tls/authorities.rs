//! The authorities that a client trusts: given ones, the system's, or Mozilla's.
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;
use rustls::RootCertStore;

use super::{chain, ClientTls, Der};
use crate::error::NetError;

/// Adds the given authorities. `what` they are is part of the error.
pub fn add(roots: &mut RootCertStore, authorities: &[Der], what: &str) -> Result<(), NetError> {
    for certificate in chain(authorities) {
        roots
            .add(certificate)
            .map_err(|e| NetError::tls(&format!("Cannot use the {what}"), e))?;
    }
    Ok(())
}

/// The authorities for the certificates of servers.
pub fn of_servers(tls: &ClientTls) -> Result<RootCertStore, NetError> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &tls.ca {
        add(&mut roots, ca, "CA")?;
    }
    if tls.ca.is_none() || tls.system_roots.unwrap_or(false) {
        let (added, _) = roots.add_parsable_certificates(system());
        if added == 0 {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
    }
    Ok(roots)
}

/// The system's CA bundle: the first of the usual files that has certificates.
fn system() -> Vec<CertificateDer<'static>> {
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
