//! Capsules (RFC 9297 §3.2) that carry UDP payloads (RFC 9298 §5): their encoding, a decoder for what a peer sends, and a splitter for a hop that
//! passes them on.
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{NetError, NetErrorCode};

/// The capsule type DATAGRAM.
const DATAGRAM: u64 = 0;
/// The context id of UDP payloads.
pub const UDP: u64 = 0;
/// Maximum length of a UDP payload (RFC 9298 §5); a longer one ends the flow.
pub const MAX_PAYLOAD: usize = 65_527;
/// Maximum length of a capsule that is skipped; a longer one ends the flow.
const MAX_SKIPPED: u64 = 1 << 20;
/// Maximum length of the value of a datagram: a context id and a payload.
const MAX_VALUE: u64 = 8 + MAX_PAYLOAD as u64;
/// Largest prefix of a payload as it is encoded here: type, length in four bytes, context id.
const MAX_PREFIX: usize = 6;

/// Encodes a UDP payload of at most [`MAX_PAYLOAD`] bytes.
pub fn encode(payload: &[u8]) -> Bytes {
    let mut capsule = BytesMut::with_capacity(MAX_PREFIX + payload.len());
    put_varint(&mut capsule, DATAGRAM);
    put_varint(&mut capsule, payload.len() as u64 + 1);
    put_varint(&mut capsule, UDP);
    capsule.put_slice(payload);
    capsule.freeze()
}

/// A capsule that a peer has sent.
#[derive(Debug, PartialEq)]
pub enum Capsule {
    /// A UDP payload, possibly empty.
    Payload(Bytes),
    /// A datagram of another context, which is dropped.
    OtherContext,
}

/// Finds the capsules in the bytes of a stream. It buffers at most one payload and the last input. Capsules of other types are skipped.
#[derive(Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// Bytes of a capsule that are still to be skipped.
    skip: u64,
}

impl Decoder {
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// Whether the bytes so far are whole capsules.
    pub fn is_complete(&self) -> bool {
        self.buffer.is_empty() && self.skip == 0
    }

    /// The next capsule; `None` until more bytes are pushed. An error ends the flow.
    pub fn next_capsule(&mut self) -> Result<Option<Capsule>, NetError> {
        loop {
            let skipped = self.skip.min(self.buffer.len() as u64);
            self.buffer.advance(skipped as usize);
            self.skip -= skipped;
            if self.skip > 0 {
                return Ok(None);
            }
            let mut rest = &self.buffer[..];
            let (Some(kind), Some(length)) = (read_varint(&mut rest), read_varint(&mut rest)) else {
                return Ok(None);
            };
            let header = self.buffer.len() - rest.len();
            if kind != DATAGRAM {
                self.skip(header, length)?;
                continue;
            }
            let available = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let mut value = &rest[..available];
            let Some(context) = read_varint(&mut value) else {
                return match available as u64 == length {
                    true => Err(malformed("A datagram has no context id")),
                    false => Ok(None),
                };
            };
            if context != UDP {
                self.skip(header, length)?;
                return Ok(Some(Capsule::OtherContext));
            }
            let prefix = available - value.len();
            let payload = length - prefix as u64;
            if payload > MAX_PAYLOAD as u64 {
                return Err(malformed("A datagram has more bytes than UDP carries"));
            }
            if (available as u64) < length {
                return Ok(None);
            }
            self.buffer.advance(header + prefix);
            return Ok(Some(Capsule::Payload(self.buffer.split_to(payload as usize).freeze())));
        }
    }

    fn skip(&mut self, header: usize, length: u64) -> Result<(), NetError> {
        if length > MAX_SKIPPED {
            return Err(malformed("A capsule is too long"));
        }
        self.skip = header as u64 + length;
        Ok(())
    }
}

fn malformed(why: &str) -> NetError {
    NetError::remote(NetErrorCode::Reset, format!("The capsules are malformed: {why}"))
}

/// A part of a stream of capsules.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// A whole capsule with a UDP payload.
    Datagram {
        capsule: Bytes,
        /// Bytes in front of the payload.
        prefix: usize,
    },
    /// Bytes of a capsule of another type or context, or malformed bytes.
    Other(Bytes),
}

/// Splits the bytes of a stream into whole datagrams and the rest, which it neither checks nor changes. It buffers at most one datagram, and what
/// was pushed last.
#[derive(Default)]
pub struct Splitter {
    buffer: BytesMut,
    /// Bytes of a capsule that are still to be passed on.
    pass: u64,
}

impl Splitter {
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// Whether the pieces so far are whole capsules.
    pub fn is_between(&self) -> bool {
        self.pass == 0
    }

    /// The next piece; `None` until more bytes are pushed.
    pub fn next_piece(&mut self) -> Option<Piece> {
        if self.pass == 0 {
            let mut value = &self.buffer[..];
            let (kind, length) = (read_varint(&mut value)?, read_varint(&mut value)?);
            let end = (self.buffer.len() - value.len()) as u64 + length;
            if kind == DATAGRAM && length <= MAX_VALUE {
                let mut payload = value.get(..length as usize)?;
                if read_varint(&mut payload) == Some(UDP) && payload.len() <= MAX_PAYLOAD {
                    let prefix = end as usize - payload.len();
                    let capsule = self.buffer.split_to(end as usize).freeze();
                    return Some(Piece::Datagram { capsule, prefix });
                }
            }
            self.pass = end;
        }
        let passed = self.pass.min(self.buffer.len() as u64);
        self.pass -= passed;
        (passed > 0).then(|| Piece::Other(self.buffer.split_to(passed as usize).freeze()))
    }

    /// The input that is no complete piece, at the end of the stream.
    pub fn rest(&mut self) -> Bytes {
        if !self.buffer.is_empty() {
            self.pass = u64::MAX; // nothing may follow
        }
        self.buffer.split().freeze()
    }
}

/// Appends a variable-length integer (RFC 9000 §16) below 2^62, in as few bytes as possible.
pub fn put_varint(buffer: &mut BytesMut, value: u64) {
    match value {
        0..0x40 => buffer.put_u8(value as u8),
        0x40..0x4000 => buffer.put_u16(0x4000 | value as u16),
        0x4000..0x4000_0000 => buffer.put_u32(0x8000_0000 | value as u32),
        _ => buffer.put_u64(0xc000_0000_0000_0000 | value),
    }
}

/// Reads a variable-length integer (RFC 9000 §16) if it is complete.
pub fn read_varint(data: &mut &[u8]) -> Option<u64> {
    let length = 1usize << (data.first()? >> 6);
    let (encoded, rest) = data.split_at_checked(length)?;
    *data = rest;
    let value = encoded.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some(value & ((1 << (8 * length - 2)) - 1)) // without the two bits of the length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(data: &[u8], part: usize) -> Result<Vec<Capsule>, NetError> {
        let (mut decoder, mut all) = (Decoder::default(), Vec::new());
        for part in data.chunks(part) {
            decoder.push(part);
            while let Some(capsule) = decoder.next_capsule()? {
                all.push(capsule);
            }
        }
        assert!(decoder.is_complete(), "capsules are left over");
        Ok(all)
    }

    #[test]
    fn payloads_of_every_length_return() {
        for length in [0, 1, 62, 63, 64, 16_382, 16_383, 16_384, 65_507, MAX_PAYLOAD] {
            let payload = vec![7; length];
            let encoded = encode(&payload);
            let expected = [Capsule::Payload(payload.into())];
            for part in [1, 1_000, usize::MAX] {
                assert_eq!(decode(&encoded, part).unwrap(), expected, "{length} bytes in parts of {part}");
            }
        }
    }

    #[test]
    fn the_encoding_is_that_of_the_rfc() {
        assert_eq!(&encode(b"ab")[..], [0, 3, 0, b'a', b'b']);
        assert_eq!(encode(&[0; 63])[..4], [0, 0x40, 64, 0]);
        assert_eq!(encode(&[0; 16_383])[..6], [0, 0x80, 0, 0x40, 0, 0]);
    }

    #[test]
    fn other_types_and_contexts_are_skipped() {
        let data = [
            &[0x57, 0x28, 3, 1, 2, 3][..], // an unknown type in two bytes
            &[0, 3, 2, 9, 9],              // context 2
            &[0x21, 0],                    // an empty one
            &[0, 2, 0, b'x'],
            &[0, 0x40, 3, 0x40, 0, b'y'], // longer encodings than necessary
        ]
        .concat();
        for part in 1..data.len() {
            let expected = [
                Capsule::OtherContext,
                Capsule::Payload(Bytes::from_static(b"x")),
                Capsule::Payload(Bytes::from_static(b"y")),
            ];
            assert_eq!(decode(&data, part).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_too_long_or_malformed_ends_the_flow_before_it_is_buffered() {
        let too_long = |length: u32| [&[0][..], &(0x8000_0000 | length).to_be_bytes(), &[0]].concat();
        for data in [
            too_long(MAX_PAYLOAD as u32 + 2),
            [&[0x21][..], &[0xff; 8]].concat(), // 2^62 - 1 bytes
            [&[0][..], &[0xff; 8], &[1]].concat(),
            vec![0, 0],             // without a context id
            vec![0, 1, 0x40, 0x00], // the context id goes beyond the capsule
        ] {
            let mut decoder = Decoder::default();
            decoder.push(&data);
            assert!(decoder.next_capsule().is_err(), "{data:?}");
        }
        let mut decoder = Decoder::default();
        decoder.push(&too_long(MAX_PAYLOAD as u32 + 1));
        assert_eq!(decoder.next_capsule().unwrap(), None);
        assert!(!decoder.is_complete());
    }

    /// The pieces of a stream that arrives in parts, and the remaining bytes.
    fn split(data: &[u8], part: usize) -> (Vec<Piece>, Bytes) {
        let (mut splitter, mut all) = (Splitter::default(), Vec::new());
        for part in data.chunks(part) {
            splitter.push(part);
            while let Some(piece) = splitter.next_piece() {
                all.push(piece);
            }
        }
        let rest = splitter.rest();
        (all, rest)
    }

    #[test]
    fn a_splitter_returns_datagrams_whole_and_the_rest_as_it_is() {
        let others = [&[0x57, 0x28, 3, 1, 2, 3][..], &[0, 3, 2, 9, 9], &[0x21, 0], &[0, 0]].concat(); // another type, another context, malformed
        let longest = encode(&vec![7; MAX_PAYLOAD]);
        let data = [
            &others[..],
            &encode(b""),
            &longest,
            &others,
            &[0, 0x40, 3, 0x40, 0, b'y'],
            &[0, 9, 0, b'c'],
        ]
        .concat();
        for part in [1, 2, 1_000, usize::MAX] {
            let (pieces, rest) = split(&data, part);
            let bytes: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| match piece {
                    Piece::Datagram { capsule, .. } => capsule,
                    Piece::Other(bytes) => bytes,
                })
                .copied()
                .collect();
            assert_eq!([&bytes[..], &rest].concat(), data);
            let payloads: Vec<_> = pieces
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Datagram { capsule, prefix } => Some(&capsule[*prefix..]),
                    Piece::Other(_) => None,
                })
                .collect();
            assert_eq!(payloads, [&b""[..], &[7; MAX_PAYLOAD], b"y"]);
            assert_eq!(&rest[..], [0, 9, 0, b'c']);
        }
    }

    #[test]
    fn a_splitter_buffers_no_long_capsule_and_knows_where_it_ends() {
        let mut splitter = Splitter::default();
        for header in [[0x21, 0x80, 1, 0, 0], [0, 0x80, 1, 0, 0], [0, 0xbf, 0xff, 0xff, 0xff]] {
            let mut splitter = Splitter::default();
            splitter.push(&header);
            assert_eq!(splitter.next_piece(), Some(Piece::Other(Bytes::copy_from_slice(&header))));
            assert!(!splitter.is_between());
        }
        splitter.push(&[0x21, 2, 1]);
        assert_eq!(splitter.next_piece(), Some(Piece::Other(Bytes::from_static(&[0x21, 2, 1]))));
        assert!(!splitter.is_between());
        splitter.push(&[2, 0]);
        assert_eq!(splitter.next_piece(), Some(Piece::Other(Bytes::from_static(&[2]))));
        assert!(splitter.is_between());
        assert_eq!(splitter.next_piece(), None);
    }

    #[test]
    fn variable_length_integers_are_those_of_the_rfc() {
        // RFC 9000 appendix A.1
        for (encoded, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            assert_eq!(read_varint(&mut &encoded[..]), Some(value));
            assert_eq!(read_varint(&mut &encoded[..encoded.len() - 1]), None);
        }
        for value in [0, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, (1 << 62) - 1] {
            let mut encoded = BytesMut::new();
            put_varint(&mut encoded, value);
            assert_eq!(read_varint(&mut &encoded[..]), Some(value));
        }
    }
}
