//! A session over a TLS link against a hostile peer, and the TLS records below it.
use std::future::Future;
use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use reverse_http_native::fuzzing::frame::{put, put_data_header, Control, Event, Parser, Settings};
use reverse_http_native::fuzzing::records::{Handshake, Opened, Opener, Sealed, Sealer, Tls};
use reverse_http_native::fuzzing::session::{Config, Peer, Session};
use reverse_http_native::fuzzing::stream::{RecvHalf, SendHalf};
use reverse_http_native::fuzzing::{client, server, ClientTls, ServerTls, TCP_VERSIONS};
use rustls::client::ClientConnection;
use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
use rustls::server::UnbufferedServerConnection;
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion};

use super::input::Input;
use super::pki::{der_of, pki};

const WINDOW: u32 = 1_000;
const STREAMS: u32 = 3;
/// Bytes that may wait for a peer that reads nothing: a few frames for each stream, and small writes.
const MAX_WAITING: usize = 80 << 10;

fn config() -> Config {
    Config {
        keep_alive: None,
        idle_timeout: None,
        streams: STREAMS,
        stream_window: WINDOW,
        session_window: 2_000,
    }
}

/// The result of a call that is ready; `None` if it waits.
fn now<T>(work: impl Future<Output = T>) -> Option<T> {
    match std::pin::pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

/// A session, what it has open, and how it parses what arrives.
struct End {
    session: Arc<Session>,
    parser: Parser,
    open: Vec<(RecvHalf, SendHalf)>,
    /// What it has sent.
    sent: Vec<u8>,
}

impl End {
    fn new(is_client: bool) -> Self {
        Self {
            session: Session::new(config(), Peer::default(), is_client),
            parser: Parser::default(),
            open: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn receive(&mut self, bytes: &[u8], at_once: usize) {
        for part in bytes.chunks(at_once.max(1)) {
            let is_refused = self.session.receive(&mut self.parser, part).is_err();
            assert!(!is_refused || self.session.ended().is_some());
        }
    }

    fn flush(&mut self) {
        while self.session.has_more() {
            let batch = self.session.next(500);
            let before = self.sent.len();
            for piece in &batch.pieces {
                self.sent.extend_from_slice(&piece.frames);
                self.sent.extend_from_slice(&piece.data);
            }
            assert!(
                self.sent.len() - before <= MAX_WAITING,
                "a peer that reads nothing fills the memory"
            );
            self.session.batch_written(&batch);
        }
    }

    /// A call of the program, as the input says.
    fn act(&mut self, input: &mut Input) {
        let (what, index, n) = (input.byte(), usize::from(input.byte()), input.number());
        match what % 9 {
            0 => self.open.extend(now(self.session.accept()).flatten()),
            1 => self.open.extend(now(self.session.open()).and_then(Result::ok)),
            2 => self.flush(),
            3 => self.session.set_window(n as u32),
            4 if n == 0 => self.session.close(n as u32, "fuzzed"),
            _ => {}
        }
        if self.open.is_empty() {
            return;
        }
        let index = index % self.open.len();
        let (reader, writer) = &mut self.open[index];
        match what % 9 {
            5 => {
                if let Some(Ok(Some(data))) = now(reader.read(n.max(1))) {
                    assert!(data.len() <= n.max(1));
                }
            }
            6 => drop(now(writer.write(Bytes::from(vec![b'x'; n % 6_000])))),
            7 if n % 2 == 0 => drop(now(writer.finish())),
            7 => {
                writer.reset(n as u32);
                reader.stop(n as u32);
            }
            8 => {
                let (mut reader, mut writer) = self.open.swap_remove(index);
                reader.stop(0);
                writer.reset(0);
            }
            _ => {}
        }
        for (reader, _) in &self.open {
            assert!(
                reader.stream().held() <= 2 * reader.batch() as u64,
                "more than the window is stored"
            );
        }
    }
}

/// A frame, as the input says, or bytes that are none.
fn frame(input: &mut Input) -> Vec<u8> {
    let mut out = Vec::new();
    let (kind, stream, n) = (input.byte(), u32::from(input.byte() % 10), input.number() as u32);
    let frame = match kind % 16 {
        0 => Control::Settings(Settings {
            streams: n % 10,
            stream_window: n,
            session_window: n,
        }),
        1 => Control::Open,
        2 => Control::Fin,
        3 => Control::Reset(n),
        4 => Control::Stop(n),
        5 => Control::Credit(n),
        6 => Control::Streams(n % 100),
        7 => Control::Ping([n as u8; 8]),
        8 => Control::Pong([n as u8; 8]),
        9 if n < 100 => Control::Close {
            code: n,
            reason: "fuzzed".into(),
        },
        10 if n < 100 => Control::Error { reason: "fuzzed".into() },
        11..=13 => {
            let length = n as usize % 700;
            put_data_header(&mut out, stream, length);
            out.resize(out.len() + length, b'd');
            return out;
        }
        _ => return input.take(n as usize % 20).to_vec(),
    };
    let is_of_session = !matches!(
        frame,
        Control::Open | Control::Fin | Control::Reset(_) | Control::Stop(_) | Control::Credit(_)
    );
    put(&mut out, if is_of_session { 0 } else { stream }, &frame);
    out
}

/// Frames and data as they arrive, `at_once` bytes at a time. The data of a frame is one item for each byte.
fn events(bytes: &[u8], at_once: usize) -> (Vec<String>, Option<String>) {
    let (mut parser, mut events) = (Parser::default(), Vec::new());
    for mut part in bytes.chunks(at_once.max(1)) {
        loop {
            match parser.next(&mut part) {
                Ok(Some(Event::Data { stream, bytes, .. })) => events.extend(bytes.iter().map(|byte| format!("{stream} {byte}"))),
                Ok(Some(Event::Control { stream, frame })) => events.push(format!("{stream} {frame:?}")),
                Ok(None) => break,
                Err(error) => return (events, Some(error.0)),
            }
        }
    }
    (events, None)
}

/// A hostile peer of either side sends any frames, while the program makes any calls. It neither fills the memory nor confuses the session,
/// and frames are read the same however their bytes are split.
pub fn tls_link_frames(data: &[u8]) {
    let mut input = Input(data);
    let (flags, split) = (input.byte(), usize::from(input.byte()));
    let (mut end, mut arrived) = (End::new(flags & 1 != 0), Vec::new());
    if flags & 2 == 0 {
        let allows = Settings {
            streams: 2,
            stream_window: 500,
            session_window: 1_000,
        };
        put(&mut arrived, 0, &Control::Settings(allows));
        end.receive(&arrived, split);
    }
    for _ in 0..500 {
        if input.is_empty() {
            break;
        }
        if input.byte() % 3 == 0 {
            end.act(&mut input);
        } else {
            let bytes = frame(&mut input);
            end.receive(&bytes, split);
            arrived.extend_from_slice(&bytes);
        }
    }
    end.flush();
    assert_eq!(
        events(&arrived, split),
        events(&arrived, usize::MAX),
        "it matters how the bytes come"
    );
    // what a session sends is what another one can read
    assert_eq!(events(&end.sent, split).1, None);
}

// ---- records

/// A server whose peer is another implementation, in memory.
struct TlsPair {
    server: Tls,
    client: ClientConnection,
}

impl Default for TlsPair {
    fn default() -> Self {
        let tls = ServerTls {
            cert: vec![der_of(&pki().server.cert)],
            key: der_of(&pki().server.key),
            ..Default::default()
        };
        let mut config = server(&tls, TCP_VERSIONS, &[]).unwrap();
        config.send_tls13_tickets = 0;
        config.enable_secret_extraction = true;
        let connection = UnbufferedServerConnection::new(Arc::new(config)).unwrap();
        let tls = ClientTls {
            ca: Some(vec![der_of(&pki().ca)]),
            ..Default::default()
        };
        let mut config = client(&tls, TCP_VERSIONS, &[]).unwrap();
        config.enable_secret_extraction = true;
        let mut pair = Self {
            server: connection.into(),
            client: ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap(),
        };
        let mut incoming = BytesMut::new();
        loop {
            incoming.extend_from_slice(&pair.from_client());
            let mut sealed = Sealed::default();
            let progress = pair.server.handshake(&mut incoming, &mut sealed).unwrap();
            pair.to_client(&sealed);
            if matches!(progress, Handshake::Complete(_)) {
                return pair;
            }
        }
    }
}

impl TlsPair {
    fn from_client(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    fn to_client(&mut self, sealed: &Sealed) {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = sealed.slices(&mut slices);
        let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).unwrap();
            self.client.process_new_packets().unwrap();
        }
    }

    /// Seals any messages with the client's keys, which no implementation would do.
    fn forge(self, messages: &[(ContentType, &[u8])]) -> (Vec<u8>, (Sealer, Opener)) {
        let suite = self.client.negotiated_cipher_suite().unwrap().tls13().unwrap();
        let (mut number, secrets) = self.client.dangerous_extract_secrets().unwrap().tx;
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
        else {
            panic!("unknown secrets")
        };
        let mut encrypter = suite.aead_alg.encrypter(key, iv);
        let mut records = Vec::new();
        for (typ, payload) in messages {
            let message = OutboundPlainMessage {
                typ: *typ,
                version: ProtocolVersion::TLSv1_3,
                payload: OutboundChunks::Single(payload),
            };
            records.extend(encrypter.encrypt(message, number).unwrap().encode());
            number += 1;
        }
        (records, self.server.into_halves().unwrap())
    }
}

/// The data of a record. With a type of zero, its zeros are padding, and the type is before them (RFC 8446 §5.4).
fn data_of(typ: ContentType, payload: &[u8]) -> Option<&[u8]> {
    let (typ, data) = match u8::from(typ) {
        0 => {
            let at = payload.iter().rposition(|byte| *byte != 0)?;
            (ContentType::from(payload[at]), &payload[..at])
        }
        _ => (typ, payload),
    };
    (typ == ContentType::ApplicationData).then_some(data)
}

/// A peer that holds the keys sends any records. The server passes on what is data, refuses the rest, and can be asked to seal at any time.
pub fn tls_link_records(data: &[u8]) {
    let mut input = Input(data);
    let mut messages = Vec::new();
    while !input.is_empty() && messages.len() < 20 {
        let typ = match input.byte() % 6 {
            0 => ContentType::Handshake,
            1 => ContentType::Alert,
            2 => ContentType::from(input.byte()),
            _ => ContentType::ApplicationData,
        };
        let length = usize::from(input.byte());
        messages.push((typ, input.take(length)));
    }
    let (records, (mut sealer, mut opener)) = TlsPair::default().forge(&messages);
    let want = messages
        .iter()
        .filter_map(|(typ, payload)| data_of(*typ, payload))
        .collect::<Vec<_>>()
        .concat();
    let (mut incoming, mut got) = (BytesMut::new(), Vec::new());
    for part in records.chunks(97) {
        incoming.extend_from_slice(part);
        let opened = opener.open(&mut incoming, |bytes| got.extend_from_slice(bytes));
        let mut sealed = Sealed::default();
        assert!(want.starts_with(&got), "data that the peer did not send");
        match opened {
            Ok(Opened::End) => return,
            Ok(_) => assert!(sealer.seal(&[b"answer"], &mut sealed).is_ok() && !sealed.is_empty()),
            Err(error) => {
                assert!(sealer.close(Some(&error), &mut sealed).is_ok());
                return assert!(sealer.seal(&[b"answer"], &mut sealed).is_err() || sealed.is_empty());
            }
        }
    }
}
