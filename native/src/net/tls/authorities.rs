//! The authorities that a client trusts: given ones, the system's, or Mozilla's.
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
            refuse_variables()?;
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
    }
    Ok(roots)
}

/// An error if a variable names authorities and none was found: a typing error must not end in other trust than was asked for.
fn refuse_variables() -> Result<(), NetError> {
    for name in VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            let what = format!("Cannot use the variable {name} {:?}", value.to_string_lossy());
            return Err(NetError::tls(&what, "no certificate can be read there; correct it or unset it"));
        }
    }
    Ok(())
}

/// The variables that [`system`] reads.
#[cfg(not(target_os = "macos"))]
const VARIABLES: &[&str] = &["SSL_CERT_FILE", "SSL_CERT_DIR"];
#[cfg(target_os = "macos")]
const VARIABLES: &[&str] = &["SSL_CERT_FILE"];

/// The system's authorities: those in SSL_CERT_FILE and SSL_CERT_DIR, or else in the places where OpenSSL looks.
#[cfg(not(target_os = "macos"))]
fn system() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs // without what cannot be read
}

/// The system's authorities: those in SSL_CERT_FILE, or else the bundle of macOS. The keychain needs Apple's frameworks, without which the
/// engine is linked on other systems.
#[cfg(target_os = "macos")]
fn system() -> Vec<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    let file = std::env::var_os("SSL_CERT_FILE").unwrap_or_else(|| "/etc/ssl/cert.pem".into());
    CertificateDer::pem_file_iter(file)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .collect()
}
