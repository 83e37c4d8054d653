//! Capsules and QUIC datagrams of a hostile peer.
use bytes::{Bytes, BytesMut};
use reverse_http_native::fuzzing::capsule::{encode, put_varint, Capsule, Decoder, Piece, Splitter};
use reverse_http_native::fuzzing::parse_datagram;

use super::input::Input;

/// What is decoded, and whether it ended with an error, in the middle of a capsule, or behind one.
fn decode<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<Capsule>, Option<bool>) {
    let (mut decoder, mut all) = (Decoder::default(), Vec::new());
    for part in parts {
        decoder.push(part);
        loop {
            match decoder.next_capsule() {
                Ok(Some(capsule)) => all.push(capsule),
                Ok(None) => break,
                Err(_) => return (all, None),
            }
        }
    }
    (all, Some(decoder.is_complete()))
}

/// What is decoded does not depend on how it arrives, has no more bytes than that, and what is encoded comes back.
pub fn capsules(data: &[u8]) {
    let mut input = Input(data);
    let size = input.number().max(1);
    let bytes = input.0;
    let whole = decode(std::iter::once(bytes));
    assert_eq!(whole, decode(bytes.chunks(size)));
    assert_eq!(whole, decode(bytes.chunks(1)));
    let payload = |capsule: &Capsule| match capsule {
        Capsule::Payload(payload) => payload.len() + 3,
        Capsule::OtherContext => 3,
    };
    assert!(whole.0.iter().map(payload).sum::<usize>() <= bytes.len());

    let payloads: Vec<&[u8]> = bytes.chunks(size).collect();
    let encoded: Vec<u8> = payloads.iter().flat_map(|payload| encode(payload)).collect();
    let expected: Vec<_> = payloads
        .iter()
        .map(|payload| Capsule::Payload(Bytes::copy_from_slice(payload)))
        .collect();
    assert_eq!(decode(encoded.chunks(size)), (expected, Some(true)));
}

/// The bytes of the pieces, the payloads among them, and what is left over.
fn split<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Vec<Bytes>, Bytes) {
    let (mut splitter, mut bytes, mut payloads) = (Splitter::default(), Vec::new(), Vec::new());
    for part in parts {
        splitter.push(part);
        while let Some(piece) = splitter.next_piece() {
            match piece {
                Piece::Datagram { capsule, prefix } => {
                    payloads.push(capsule.slice(prefix..));
                    bytes.extend_from_slice(&capsule);
                }
                Piece::Other(other) => {
                    assert!(!other.is_empty());
                    bytes.extend_from_slice(&other);
                }
            }
        }
    }
    (bytes, payloads, splitter.rest())
}

/// A hop loses and changes nothing, and finds the payloads that the end finds. The header of a datagram is followed by its payload.
pub fn datagrams(data: &[u8]) {
    let mut input = Input(data);
    let size = input.number().max(1);
    let bytes = input.0;
    let whole = split(std::iter::once(bytes));
    let (passed, payloads, rest) = &whole;
    assert_eq!([&passed[..], &rest[..]].concat(), bytes);
    for size in [size, 1] {
        let parts = split(bytes.chunks(size));
        assert_eq!((passed, payloads, rest), (&parts.0, &parts.1, &parts.2));
    }
    let (decoded, _) = decode(std::iter::once(bytes));
    let decoded = decoded.iter().filter_map(|capsule| match capsule {
        Capsule::Payload(payload) => Some(payload),
        Capsule::OtherContext => None,
    });
    assert!(decoded.zip(payloads).all(|(one, other)| one == other));

    if let Some((stream, payload)) = parse_datagram(bytes) {
        assert!(bytes.ends_with(payload) && stream < 1 << 62);
        let mut again = BytesMut::new();
        put_varint(&mut again, stream);
        put_varint(&mut again, 0);
        again.extend_from_slice(payload);
        assert!(again.len() <= bytes.len());
        assert_eq!(parse_datagram(&again), Some((stream, payload)));
    }
}
