//! Capsules of a hostile peer.
use bytes::Bytes;
use reverse_http_native::fuzzing::capsule::{encode, Capsule, Decoder};

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
