//! The fuzz targets. Each takes an input and panics if a property does not hold. libFuzzer runs millions of inputs (`fuzz_targets/`), the
//! tests a few thousand (`tests/`). Keys and certificates are generated per process; inputs describe how to modify them.
#![allow(dead_code)] // each program that includes this uses a part of it
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest;
use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use reverse_http_native::fuzzing::{
    canonical, client, display, interleave, parse_proxy_header, server, server_name, to_bind, ClientTls, Der, HeadScanner, NetError,
    NetErrorCode, ProxyHeader, ServerTls, TCP_VERSIONS,
};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{pem::PemObject, CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection, SignatureScheme};

/// Consumes an input; zeros after its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes `bytes` in one place, or leaves them unchanged.
    fn edit(&mut self, bytes: &mut Vec<u8>) {
        let (kind, at, n) = (self.byte(), self.number() % (bytes.len() + 1), usize::from(self.byte()));
        let end = (at + n).min(bytes.len());
        match kind % 8 {
            0 if at < bytes.len() => bytes[at] = n as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << (n % 8),
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..at, self.take(n).to_vec())),
            4 => drop(bytes.splice(at..end, self.take(n).to_vec())),
            5 => bytes.truncate(at),
            6 => bytes.extend_from_within(at..end),
            _ => {}
        }
    }
}

// ---- heads

/// A limit, how the bytes are split, and the bytes.
pub fn heads(data: &[u8]) {
    let mut input = Input(data);
    let (limit, pattern) = (input.number() % 2_048, usize::from(input.byte()));
    let text = input.0;
    let whole = scan(text, limit, |_| text.len().max(1));
    let single = scan(text, limit, |_| 1);
    let split = scan(text, limit, |i| 1 + (i * 31 + pattern) % (pattern + 1));
    for other in [&single, &split] {
        match (&whole, other) {
            // which of two errors is found first may differ
            (Err(_), Err(code)) => assert!(
                matches!(*code, NetErrorCode::HeadTooLarge | NetErrorCode::HeadMalformed),
                "{code:?}"
            ),
            _ => assert_eq!(&whole, other, "it matters how the bytes come"),
        }
    }
    assert_eq!(whole.as_ref().ok(), by_definition(text, limit).as_ref());
}

/// A PROXY protocol header is read to its end and no further, however it is split.
pub fn proxy_headers(data: &[u8]) {
    let take = |step: usize| {
        let mut taken = 0;
        loop {
            match parse_proxy_header(&data[..taken]) {
                ProxyHeader::Needs(0) => panic!("it needs nothing, and goes on"),
                ProxyHeader::Needs(_) if taken == data.len() => return (taken, None),
                ProxyHeader::Needs(n) => taken += n.min(step).min(data.len() - taken),
                header => return (taken, Some(header)),
            }
        }
    };
    let (whole, single) = (take(usize::MAX), take(1));
    assert!(whole.0 <= 4_096, "a header has an end");
    match (&whole.1, &single.1) {
        (Some(ProxyHeader::Complete(_)), _) | (_, Some(ProxyHeader::Complete(_))) => {
            assert_eq!(whole, single, "it matters how the bytes come")
        }
        (one, other) => assert_eq!(one, other),
    }
}

type Found = Option<(Vec<u8>, Vec<u8>)>;

fn scan(text: &[u8], limit: usize, size: impl Fn(usize) -> usize) -> Result<Found, NetErrorCode> {
    let mut scanner = HeadScanner::new(limit);
    let mut left = text;
    for i in 0.. {
        if left.is_empty() {
            return Ok(None);
        }
        let (part, rest) = left.split_at(size(i).min(left.len()));
        left = rest;
        match scanner.push(Bytes::copy_from_slice(part)) {
            Ok(None) => {}
            Ok(Some((head, behind))) => return Ok(Some((head.to_vec(), [&behind[..], left].concat()))),
            Err(error) => return Err(error.code),
        }
    }
    unreachable!()
}

/// A second implementation of [`HeadScanner`]; `None` for an error.
fn by_definition(text: &[u8], limit: usize) -> Option<Found> {
    let start = text.iter().position(|b| !b"\r\n".contains(b)).unwrap_or(text.len());
    let bytes = &text[start..];
    let limit = limit.saturating_sub(start);
    let is_end = |i: &usize| {
        let line = bytes[..*i].strip_suffix(b"\n").map(|line| {
            let carriages = line.iter().rev().take_while(|b| **b == b'\r').count();
            &line[..line.len() - carriages]
        });
        line.is_some_and(|line| line.ends_with(b"\n"))
    };
    let end = (1..=bytes.len()).find(is_end);
    let read = &bytes[..end.unwrap_or(bytes.len())];
    if read.iter().any(|b| (*b < 0x20 && !b"\r\n\t".contains(b)) || *b == 0x7f) || read.len() > limit || (limit == 0 && !text.is_empty()) {
        return None;
    }
    Some(end.map(|end| (bytes[..end].to_vec(), bytes[end..].to_vec())))
}

// ---- certificates and keys

struct Pki {
    ca: String,
    other_ca: String,
    crl: String,
    server: Identity,
    agent: Identity,
    revoked: Identity,
    /// Issued by another CA with the same name.
    stranger: Identity,
}

struct Identity {
    cert: String,
    key: String,
    der: Vec<u8>,
}

fn pki() -> &'static Pki {
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

/// Lists of DER separated by zero bytes: certificates, key, CA, revocation lists, and the text of a pin. Bytes 1 to 7 stand for genuine ones, 8
/// for an edited one.
pub fn der(data: &[u8]) {
    let mut lists = [const { Vec::<Vec<u8>>::new() }; 5];
    let mut at = 0;
    let mut input = Input(data);
    while !input.is_empty() && at < lists.len() {
        match input.byte() {
            0 => at += 1,
            8 => {
                let mut bytes = genuine(input.byte() % 7 + 1);
                input.edit(&mut bytes);
                lists[at].push(bytes);
            }
            byte @ 1..=7 => lists[at].push(genuine(byte)),
            byte => match lists[at].last_mut() {
                Some(last) => last.push(byte),
                None => lists[at].push(vec![byte]),
            },
        }
        if lists[at.min(4)].iter().map(Vec::len).sum::<usize>() > 1 << 16 {
            return;
        }
    }
    let [cert, key, ca, crl, pin] = lists;
    let all = |list: &[Vec<u8>]| list.iter().cloned().map(Der).collect::<Vec<_>>();
    let given = |list: &[Vec<u8>]| (!list.is_empty()).then(|| all(list));
    let key = Der(key.concat());
    let alpn = ["reverse-http-proto/2".to_owned()];
    let tls = ServerTls {
        cert: all(&cert),
        key: key.clone(),
        client_ca: given(&ca),
        client_crl: given(&crl),
    };
    check_error(server(&tls, TCP_VERSIONS, &alpn).err());
    let pin = String::from_utf8(pin.concat()).unwrap_or_default();
    let pin = if pin.is_ascii() { pin } else { String::new() }; // the error shows it: it is no secret
    let tls = ClientTls {
        ca: given(&ca).or(Some(vec![der_of(&pki().ca)])), // without, the system's file is read each time
        cert: given(&cert),
        key: Some(key),
        pin_sha256: (!pin.is_empty()).then(|| vec![pin]),
        ..Default::default()
    };
    check_error(client(&tls, TCP_VERSIONS, &alpn).err());
}

/// The DER of a PEM text of `pki`.
fn der_of(pem: &str) -> Der {
    let der = match pem.lines().next() {
        Some(begin) if begin.contains("PRIVATE KEY") => PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap().secret_der().to_vec(),
        Some(begin) if begin.contains("CRL") => CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec(),
        _ => CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec(),
    };
    Der(der)
}

fn genuine(number: u8) -> Vec<u8> {
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

/// An error is a sentence about the cause and reveals nothing of a key.
fn check_error(error: Option<NetError>) {
    let Some(error) = error else { return };
    assert!(matches!(error.code, NetErrorCode::Tls | NetErrorCode::Invalid), "{error:?}");
    assert!(error.message.starts_with("Cannot "), "{error:?}");
    for key in [&pki().server.key, &pki().agent.key] {
        let secret = key.lines().nth(1).unwrap();
        let decimals: Vec<_> = secret.bytes().take(16).map(|b| b.to_string()).collect();
        assert!(
            !error.message.contains(&secret[..16]) && !error.message.contains(&decimals.join(", ")),
            "a key in an error"
        );
    }
}

// ---- names

/// Text as a pin, as a server name, and as a listen address.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let is_pin = digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let tls = ClientTls {
        pin_sha256: Some(vec![text.clone()]),
        ..Default::default()
    };
    assert_eq!(client(&tls, TCP_VERSIONS, &[]).is_ok(), is_pin, "{text:?}");
    if let Ok(name) = server_name(&text) {
        assert!(!text.is_empty() && !name.to_str().contains('%'), "{text:?}");
    }
    let host = text.rsplit_once(':').map_or("", |(host, _)| host);
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    // names are not resolved
    if bare.is_empty() || bare.parse::<IpAddr>().is_ok() {
        match to_bind(&text) {
            Ok(addresses) => check_addresses(bare, addresses),
            Err(error) => assert_eq!(error.code, NetErrorCode::Invalid),
        }
    }
}

fn check_addresses(host: &str, addresses: Vec<SocketAddr>) {
    assert!(!addresses.is_empty());
    for address in &addresses {
        let shown = canonical(*address);
        assert_eq!((canonical(shown), shown.port()), (shown, address.port()));
        if !host.is_empty() {
            assert_eq!(address.ip(), host.parse::<IpAddr>().unwrap());
            let displayed = display(&address.ip().to_string(), address.port());
            assert_eq!(displayed.parse::<SocketAddr>().unwrap(), *address);
        }
    }
    let mut sorted = interleave(addresses.clone());
    assert_eq!(sorted[0], addresses[0]);
    sorted.sort();
    let mut all = addresses;
    all.sort();
    assert_eq!(sorted, all);
}

// ---- peers

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
