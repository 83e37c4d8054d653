//! What users configure: certificates and keys as DER, pins, names and addresses.
use std::net::{IpAddr, SocketAddr};

use reverse_http_native::fuzzing::{
    canonical, client, display, interleave, server, server_name, to_bind, ClientTls, Der, NetError, NetErrorCode, ServerTls, TCP_VERSIONS,
};

use super::input::Input;
use super::pki::{der_of, genuine, pki};

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
        ..Default::default()
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
