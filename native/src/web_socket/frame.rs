//! WebSocket frames (RFC 6455 §5) around a stream of bytes: binary messages, whose boundaries have no meaning.
use bytes::{BufMut, Bytes, BytesMut};

/// Longest payload of a control frame (RFC 6455 §5.5).
const MAX_CONTROL: usize = 125;
/// Longest header: two bytes, eight of a length and four of a masking key.
const MAX_HEADER: usize = 14;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Which end receives. A client masks its frames, and a server does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// The response that a frame requires, apart from its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// To be answered with a pong that has the same payload.
    Ping(Bytes),
    /// The last frame of the peer.
    Close,
}

/// A frame to send.
#[derive(Clone, Copy, Debug)]
pub enum Outgoing<'a> {
    Data(&'a [u8]),
    Pong(&'a [u8]),
    Close,
}

/// Decodes what arrives, in any pieces. It stores no data, only a header or a control frame that is incomplete.
pub struct Decoder {
    side: Side,
    header: Vec<u8>,
    /// The frame whose payload is being received.
    frame: Option<Frame>,
    /// A message has begun whose last frame is still to come.
    is_fragmented: bool,
    is_closed: bool,
}

struct Frame {
    opcode: u8,
    left: u64,
    mask: [u8; 4],
    /// Payload of a control frame.
    control: Vec<u8>,
}

impl Decoder {
    pub fn new(side: Side) -> Self {
        Self {
            side,
            header: Vec::new(),
            frame: None,
            is_fragmented: false,
            is_closed: false,
        }
    }

    /// Decodes bytes: appends data to `data` and passes the rest to `on_control`. What follows a close frame is ignored.
    pub fn push(&mut self, mut bytes: &[u8], data: &mut BytesMut, mut on_control: impl FnMut(Control)) -> Result<(), &'static str> {
        while !self.is_closed {
            let Some(frame) = &mut self.frame else {
                let Some((&byte, rest)) = bytes.split_first() else { break };
                bytes = rest;
                self.header.push(byte);
                self.frame = self.parse_header()?;
                if self.frame.is_some() {
                    self.header.clear();
                }
                continue;
            };
            let part = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len());
            if part == 0 && frame.left > 0 {
                break;
            }
            let (payload, rest) = bytes.split_at(part);
            bytes = rest;
            frame.left -= part as u64;
            if frame.opcode >= CLOSE {
                frame.control.extend_from_slice(payload);
            } else {
                let start = data.len();
                data.extend_from_slice(payload);
                apply_mask(data.get_mut(start..).unwrap_or_default(), frame.mask);
                frame.mask.rotate_left(part % 4);
            }
            if frame.left > 0 {
                break;
            }
            let Some(Frame {
                opcode, mask, mut control, ..
            }) = self.frame.take()
            else {
                break;
            };
            apply_mask(&mut control, mask);
            match opcode {
                PING => on_control(Control::Ping(control.into())),
                CLOSE => {
                    self.is_closed = true;
                    on_control(Control::Close);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The frame, once its header is complete.
    fn parse_header(&mut self) -> Result<Option<Frame>, &'static str> {
        let Some((&[first, second], rest)) = self.header.split_first_chunk::<2>() else {
            return Ok(None);
        };
        let is_masked = second & MASKED != 0;
        if is_masked != (self.side == Side::Server) {
            return Err(match self.side {
                Side::Client => "a WebSocket frame of the server is masked",
                Side::Server => "a WebSocket frame of the client is not masked",
            });
        }
        let (length, rest) = match second & !MASKED {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            length => (u64::from(length), rest),
        };
        let mask = match (is_masked, rest.split_first_chunk::<4>()) {
            (false, _) => [0; 4],
            (true, Some((mask, _))) => *mask,
            (true, None) => return Ok(None),
        };
        let (is_final, opcode) = (first & FINAL != 0, first & 0x0f);
        if first & 0x70 != 0 {
            return Err("a WebSocket frame has reserved bits: no extension was negotiated");
        }
        match opcode {
            BINARY | CONTINUATION if (opcode == CONTINUATION) != self.is_fragmented => {
                return Err("a WebSocket message begins within another, or continues none");
            }
            BINARY | CONTINUATION => self.is_fragmented = !is_final,
            CLOSE | PING | PONG if !is_final || length > MAX_CONTROL as u64 => {
                return Err("a WebSocket control frame is fragmented or too long");
            }
            CLOSE | PING | PONG => {}
            TEXT => return Err("a WebSocket message is text"),
            _ => return Err("a WebSocket frame has an unknown opcode"),
        }
        if length > i64::MAX as u64 {
            return Err("a WebSocket frame is too long");
        }
        Ok(Some(Frame {
            opcode,
            left: length,
            mask,
            control: Vec::new(),
        }))
    }
}

/// Appends a frame. `mask`: the key, which clients choose at random for each frame.
pub fn encode(frame: Outgoing<'_>, mask: Option<[u8; 4]>, out: &mut BytesMut) {
    let (opcode, payload) = match frame {
        Outgoing::Data(payload) => (BINARY, payload),
        Outgoing::Pong(payload) => (PONG, payload.get(..MAX_CONTROL).unwrap_or(payload)),
        Outgoing::Close => (CLOSE, &1000u16.to_be_bytes()[..]), // normal closure (RFC 6455 §7.4.1)
    };
    out.reserve(MAX_HEADER + payload.len());
    out.put_u8(FINAL | opcode);
    let bit = if mask.is_some() { MASKED } else { 0 };
    match payload.len() {
        length @ 0..=125 => out.put_u8(bit | length as u8),
        length @ 126..=0xffff => {
            out.put_u8(bit | 126);
            out.put_u16(length as u16);
        }
        length => {
            out.put_u8(bit | 127);
            out.put_u64(length as u64);
        }
    }
    let Some(mask) = mask else {
        return out.extend_from_slice(payload);
    };
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(out.get_mut(start..).unwrap_or_default(), mask);
}

/// Masks or unmasks (RFC 6455 §5.3).
fn apply_mask(data: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Decoded = (Vec<u8>, Vec<Control>);

    fn decode(side: Side, parts: &[&[u8]]) -> Result<Decoded, &'static str> {
        let (mut decoder, mut data, mut controls) = (Decoder::new(side), BytesMut::new(), Vec::new());
        for part in parts {
            decoder.push(part, &mut data, |control| controls.push(control))?;
        }
        Ok((data.to_vec(), controls))
    }

    fn encoded(frames: &[Outgoing<'_>], mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut out = BytesMut::new();
        frames.iter().for_each(|frame| encode(*frame, mask, &mut out));
        out.to_vec()
    }

    #[test]
    fn the_examples_of_rfc_6455_are_read() {
        // §5.7, with binary instead of text
        assert_eq!(decode(Side::Client, &[b"\x82\x05Hello"]).unwrap().0, b"Hello");
        let masked = b"\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(decode(Side::Server, &[masked]).unwrap().0, b"Hello");
        assert_eq!(encoded(&[Outgoing::Data(b"Hello")], Some([0x37, 0xfa, 0x21, 0x3d])), masked);
        assert_eq!(decode(Side::Client, &[b"\x02\x03Hel\x80\x02lo"]).unwrap().0, b"Hello");
        let ping = Control::Ping(Bytes::from_static(b"Hello"));
        assert_eq!(decode(Side::Client, &[b"\x89\x05Hello"]).unwrap().1, [ping]);
    }

    #[test]
    fn every_length_and_every_split_is_read() {
        for length in [0, 1, 7, 8, 125, 126, 127, 1_000, 65_535, 65_536, 70_000] {
            let payload: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
            for (side, mask) in [(Side::Client, None), (Side::Server, Some([1, 2, 3, 250]))] {
                let bytes = encoded(&[Outgoing::Data(&payload), Outgoing::Pong(b"x"), Outgoing::Data(b"end")], mask);
                let whole = [&payload[..], b"end"].concat();
                assert_eq!(decode(side, &[&bytes]).unwrap(), (whole.clone(), vec![]), "{length}");
                let bytewise: Vec<_> = bytes.iter().map(std::slice::from_ref).collect();
                assert_eq!(decode(side, &bytewise).unwrap().0, whole, "{length}");
                for at in [1, 2, 3, 4, 13, 14, 15, bytes.len() / 2] {
                    let (a, b) = bytes.split_at(at.min(bytes.len()));
                    assert_eq!(decode(side, &[a, b]).unwrap().0, whole, "{length} at {at}");
                }
            }
        }
    }

    #[test]
    fn control_frames_come_within_a_message() {
        let (data, controls) = decode(Side::Client, &[b"\x02\x01a\x89\x01p\x00\x01b\x80\x01c\x88\x00\x82\x01x"]).unwrap();
        assert_eq!(data, b"abc");
        assert_eq!(controls, [Control::Ping(Bytes::from_static(b"p")), Control::Close]);
    }

    #[test]
    fn what_the_rfc_forbids_is_refused() {
        let refused: [(&[u8], Side); 11] = [
            (b"\x82\x05Hello", Side::Server),                                // not masked
            (b"\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", Side::Client), // masked
            (b"\x81\x01a", Side::Client),                                    // text
            (b"\xc2\x01a", Side::Client),                                    // a reserved bit
            (b"\x80\x01a", Side::Client),                                    // continues nothing
            (b"\x02\x01a\x82\x01b", Side::Client),                           // begins within another
            (b"\x09\x01a", Side::Client),                                    // a fragmented ping
            (b"\x89\x7e\x00\x7e", Side::Client),                             // a long ping
            (b"\x83\x00", Side::Client),                                     // unknown opcodes
            (b"\x8b\x00", Side::Client),
            (b"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00", Side::Client), // longer than 63 bits
        ];
        for (bytes, side) in refused {
            assert!(decode(side, &[bytes]).is_err(), "{bytes:x?}");
        }
    }
}
