//! TLS between two sides: peers with modified certificates, and an attacker between them.
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest;
use reverse_http_native::fuzzing::{client, server, ClientTls, ServerTls, TCP_VERSIONS};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection, SignatureScheme};

use super::input::Input;
use super::pki::{der_of, pki};

/// Presents any chain with a key.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn shows(chain: Vec<Vec<u8>>, key: &str) -> Arc<Shows> {
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    Arc::new(Shows(Arc::new(CertifiedKey::new(chain, key))))
}

fn server_config(crl: bool) -> ServerConfig {
    let tls = ServerTls {
        cert: vec![der_of(&pki().server.cert)],
        key: der_of(&pki().server.key),
        client_ca: Some(vec![der_of(&pki().ca)]),
        client_crl: crl.then(|| vec![der_of(&pki().crl)]),
        ..Default::default()
    };
    server(&tls, TCP_VERSIONS, &[]).unwrap()
}

fn client_config(pin: bool) -> ClientConfig {
    let hex: String = sha256(&pki().server.der).iter().map(|b| format!("{b:02x}")).collect();
    let tls = ClientTls {
        ca: (!pin).then(|| vec![der_of(&pki().ca)]),
        cert: Some(vec![der_of(&pki().agent.cert)]),
        key: Some(der_of(&pki().agent.key)),
        pin_sha256: pin.then(|| vec![hex]),
        ..Default::default()
    };
    client(&tls, TCP_VERSIONS, &[]).unwrap()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

const FROM_CLIENT: &[u8] = b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n";
/// Maximum number of modified messages: with more, the two sides would continue as long as there is input.
const MEDDLING: usize = 40;
const FROM_SERVER: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0-x\r\n";

struct Ends {
    client: Connection,
    server: Connection,
}

impl Ends {
    fn new(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Self {
        let name = ServerName::try_from("localhost").unwrap();
        let mut ends = Self {
            client: ClientConnection::new(client, name).unwrap().into(),
            server: ServerConnection::new(server).unwrap().into(),
        };
        ends.client.writer().write_all(FROM_CLIENT).unwrap();
        ends.server.writer().write_all(FROM_SERVER).unwrap();
        ends
    }

    /// Passes messages between both sides, through `change`, until both are silent. Returns what each has read.
    fn talk(&mut self, mut change: impl FnMut(&mut Vec<u8>)) -> (Vec<u8>, Vec<u8>) {
        let mut read = (Vec::new(), Vec::new());
        for round in 0.. {
            assert!(round < 50, "they never come to an end");
            let mut there = take(&mut self.client);
            change(&mut there);
            give(&mut self.server, &there, &mut read.1);
            let mut back = take(&mut self.server);
            change(&mut back);
            give(&mut self.client, &back, &mut read.0);
            if there.is_empty() && back.is_empty() {
                break;
            }
        }
        assert!(FROM_SERVER.starts_with(&read.0), "the client read what the server did not write");
        assert!(FROM_CLIENT.starts_with(&read.1), "the server read what the client did not write");
        read
    }
}

fn take(from: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn give(to: &mut Connection, mut bytes: &[u8], read: &mut Vec<u8>) {
    while !bytes.is_empty() {
        // a side that has failed accepts no more data
        if !to.wants_read() || to.read_tls(&mut bytes).is_err() {
            return;
        }
        if to.process_new_packets().is_err() {
            return;
        }
        let _ = to.reader().read_to_end(read); // would block
        assert!(read.len() <= 1 << 20, "more was read than there was");
    }
}

/// A peer that presents forged certificates is never accepted.
pub fn certificates(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    let [of_server, with_pin, with_crl, with_ca] = [1, 2, 4, 8].map(|bit| flags & bit != 0);
    let identity = match (of_server, flags >> 4) {
        (_, 1) => &pki().stranger,
        (false, 2) => &pki().revoked,
        (true, _) => &pki().server,
        (false, _) => &pki().agent,
    };
    let mut chain = vec![identity.der.clone()];
    if with_ca {
        chain.push(CertificateDer::from_pem_slice(pki().ca.as_bytes()).unwrap().to_vec());
    }
    while !input.is_empty() && chain.len() < 16 {
        match input.byte() {
            255 => chain.push(identity.der.clone()),
            n => {
                let at = usize::from(n) % chain.len();
                input.edit(&mut chain[at]);
            }
        }
    }
    let good = if of_server { &pki().server } else { &pki().agent };
    let is_good = chain[0] == good.der && (identity.der == good.der);
    let is_untouched = is_good && chain.len() <= 2 && !(with_ca && chain.len() == 2 && sha256(&chain[1]) != ca_hash());
    let shown = shows(chain.clone(), &identity.key);
    let (mut client, mut server) = (client_config(with_pin), server_config(with_crl));
    match of_server {
        true => server.cert_resolver = shown,
        false => client.client_auth_cert_resolver = shown,
    }
    let mut ends = Ends::new(Arc::new(client), Arc::new(server));
    let (by_client, by_server) = ends.talk(|_| {});
    let got_in = if of_server { !by_client.is_empty() } else { !by_server.is_empty() };
    let is_revoked = !of_server && identity.der == pki().revoked.der && chain[0] == identity.der;
    if got_in {
        // without the CRL a revoked certificate is valid
        assert!(is_good || (is_revoked && !with_crl), "got in with {chain:?}");
    }
    if is_untouched {
        assert!(got_in, "kept out with what is its own");
    }
}

fn ca_hash() -> [u8; 32] {
    sha256(&CertificateDer::from_pem_slice(pki().ca.as_bytes()).unwrap())
}

/// An attacker modifies the handshake and the data after it: no side reads anything that the other did not write. Or a client sends arbitrary
/// bytes.
pub fn handshakes(data: &[u8]) {
    static CONFIGS: OnceLock<(Arc<ClientConfig>, Arc<ServerConfig>)> = OnceLock::new();
    let (client, server) = CONFIGS.get_or_init(|| (Arc::new(client_config(false)), Arc::new(server_config(true))));
    let mut input = Input(data);
    let mut ends = Ends::new(client.clone(), server.clone());
    match input.byte() {
        0 => {
            let (mut read, size) = (Vec::new(), usize::from(input.byte()) + 1);
            while !input.is_empty() {
                give(&mut ends.server, input.take(size), &mut read);
            }
            assert!(read.is_empty(), "read from a client that was never let in");
        }
        _ => {
            let mut is_changed = false;
            let mut turns = 0;
            let read = ends.talk(|bytes| {
                turns += 1;
                if turns > MEDDLING {
                    return;
                }
                let before = bytes.clone();
                for _ in 0..input.byte() % 4 {
                    input.edit(bytes);
                }
                is_changed |= before != *bytes;
            });
            if !is_changed {
                assert_eq!(read, (FROM_SERVER.to_vec(), FROM_CLIENT.to_vec()));
            }
        }
    }
}
