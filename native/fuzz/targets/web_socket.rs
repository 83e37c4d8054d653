//! WebSocket frames of a hostile peer.
use bytes::BytesMut;
use reverse_http_native::fuzzing::web_socket_frame::{encode, Control, Decoder, Outgoing, Side};

use super::input::Input;

type Decoded = (Vec<u8>, Vec<Control>, Result<(), &'static str>);

fn decode(side: Side, parts: impl Iterator<Item = impl AsRef<[u8]>>) -> Decoded {
    let (mut decoder, mut data, mut controls) = (Decoder::new(side), BytesMut::new(), Vec::new());
    for part in parts {
        let result = decoder.push(part.as_ref(), &mut data, |control| controls.push(control));
        if result.is_err() {
            return (data.to_vec(), controls, result);
        }
    }
    (data.to_vec(), controls, Ok(()))
}

/// What is decoded does not depend on how it arrives, has no more bytes than that, and what is encoded comes back.
pub fn websocket_frames(data: &[u8]) {
    let mut input = Input(data);
    let (kind, size, mask) = (input.byte(), input.number().max(1), input.take(4).to_vec());
    let side = if kind % 2 == 0 { Side::Client } else { Side::Server };
    let bytes = input.0;
    let whole = decode(side, std::iter::once(bytes));
    assert_eq!(whole, decode(side, bytes.chunks(size)));
    assert_eq!(whole, decode(side, bytes.chunks(1)));
    let payloads: usize = whole
        .1
        .iter()
        .map(|control| match control {
            Control::Ping(payload) => payload.len(),
            Control::Close => 0,
        })
        .sum();
    assert!(whole.0.len() + payloads <= bytes.len());

    let key = <[u8; 4]>::try_from(mask).ok().filter(|_| side == Side::Server);
    if side == Side::Client || key.is_some() {
        let mut out = BytesMut::new();
        encode(Outgoing::Data(bytes), key, &mut out);
        encode(Outgoing::Pong(bytes), key, &mut out);
        encode(Outgoing::Data(bytes), key, &mut out);
        encode(Outgoing::Close, key, &mut out);
        let (data, controls, result) = decode(side, out.chunks(size));
        assert_eq!((data, controls, result), ([bytes, bytes].concat(), vec![Control::Close], Ok(())));
    }
}
