//! The TLS records of a link. All secrets stay inside rustls, which seals and opens records and handles alerts and key updates; this file
//! drives its unbuffered API (ADR 7).
use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{CommonState, Error};

pub struct Tls {
    connection: Connection,
    /// After an error nothing is sealed any more, except for the alert.
    has_failed: bool,
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What the handshake needs next.
pub enum Handshake {
    /// More bytes of the peer.
    Incomplete,
    /// Complete. The peer may have sent data together with its last message.
    Complete(Vec<u8>),
}

/// What was at the front of the bytes that have arrived.
pub enum Opened {
    /// A record with data, which was passed on.
    Data,
    /// No complete record.
    Incomplete,
    /// The peer sends no more (close_notify).
    End,
}

/// Sealed records that wait to be written. The buffer is zeroed once and reused.
#[derive(Default)]
pub struct Sealed {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Sealed {
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Removes bytes that were written.
    pub fn written(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start >= self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Frees the buffer if it is empty.
    pub fn shrink(&mut self) {
        if self.end == 0 {
            self.buffer = Vec::new();
        }
    }

    /// Moves all of `other` behind this.
    pub fn append(&mut self, other: &mut Self) {
        let bytes = other.bytes();
        if bytes.is_empty() {
            return;
        }
        self.reserve(bytes.len());
        if let Some(space) = self.buffer.get_mut(self.end..self.end + bytes.len()) {
            space.copy_from_slice(bytes);
            self.end += bytes.len();
        }
        *other = Self::default();
    }

    fn reserve(&mut self, bytes: usize) {
        let needed = self.end + bytes;
        if self.buffer.len() < needed {
            self.buffer.resize(needed.next_power_of_two(), 0);
        }
    }

    fn space(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }
}

/// Both kinds of connection; rustls has no trait for them.
trait Unbuffered {
    type Data;

    fn common(&self) -> &CommonState;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn common(&self) -> &CommonState {
        self
    }

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn common(&self) -> &CommonState {
        self
    }

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl From<UnbufferedClientConnection> for Tls {
    fn from(connection: UnbufferedClientConnection) -> Self {
        Self::new(Connection::Client(connection))
    }
}

impl From<UnbufferedServerConnection> for Tls {
    fn from(connection: UnbufferedServerConnection) -> Self {
        Self::new(Connection::Server(connection))
    }
}

impl Tls {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            has_failed: false,
        }
    }

    pub fn is_client(&self) -> bool {
        matches!(self.connection, Connection::Client(_))
    }

    pub fn common(&self) -> &CommonState {
        match &self.connection {
            Connection::Client(connection) => connection,
            Connection::Server(connection) => connection,
        }
    }

    /// Continues the handshake with what has arrived. `sealed` must be written before more is awaited, also after an error: it may be an
    /// alert.
    pub fn handshake(&mut self, incoming: &mut BytesMut, sealed: &mut Sealed) -> Result<Handshake, Error> {
        match &mut self.connection {
            Connection::Client(connection) => handshake(connection, incoming, sealed),
            Connection::Server(connection) => handshake(connection, incoming, sealed),
        }
    }

    /// Opens the first record of `incoming`, removes it, and passes its data to `deliver`.
    pub fn open(&mut self, incoming: &mut BytesMut, alerts: &mut Sealed, deliver: impl FnOnce(&[u8])) -> Result<Opened, Error> {
        let opened = match &mut self.connection {
            Connection::Client(connection) => open(connection, incoming, alerts, deliver),
            Connection::Server(connection) => open(connection, incoming, alerts, deliver),
        };
        self.has_failed |= opened.is_err();
        opened
    }

    /// Seals data as one or more records.
    pub fn seal(&mut self, data: &[u8], sealed: &mut Sealed) -> Result<(), Error> {
        self.seal_or_close(Some(data), sealed)
    }

    /// Seals close_notify.
    pub fn close(&mut self, sealed: &mut Sealed) -> Result<(), Error> {
        self.seal_or_close(None, sealed)
    }

    fn seal_or_close(&mut self, data: Option<&[u8]>, sealed: &mut Sealed) -> Result<(), Error> {
        if self.has_failed {
            return Err(Error::EncryptError);
        }
        match &mut self.connection {
            Connection::Client(connection) => seal(connection, data, sealed),
            Connection::Server(connection) => seal(connection, data, sealed),
        }
    }
}

fn encode<Data>(mut message: EncodeTlsData<'_, Data>, sealed: &mut Sealed) {
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = message.encode(&mut []) {
        sealed.reserve(required_size);
        if let Ok(written) = message.encode(sealed.space()) {
            sealed.end += written;
        }
    }
}

fn handshake<C: Unbuffered>(connection: &mut C, incoming: &mut BytesMut, sealed: &mut Sealed) -> Result<Handshake, Error> {
    loop {
        let mut early = Vec::new();
        let UnbufferedStatus { discard, state } = connection.process(incoming);
        let next = match state {
            Err(error) => {
                incoming.advance(discard.min(incoming.len()));
                alert(connection, sealed);
                return Err(error);
            }
            Ok(ConnectionState::EncodeTlsData(message)) => {
                encode(message, sealed);
                None
            }
            Ok(ConnectionState::TransmitTlsData(message)) => {
                message.done();
                None
            }
            Ok(ConnectionState::BlockedHandshake) => Some(Handshake::Incomplete),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Handshake::Complete(Vec::new())),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    early.extend_from_slice(record?.payload);
                }
                Some(Handshake::Complete(early))
            }
            Ok(_) => return Err(Error::General("the peer has closed the connection".into())),
        };
        incoming.advance(discard.min(incoming.len()));
        match next {
            Some(Handshake::Complete(early)) if early.is_empty() && has_piece(incoming) => return Err(in_pieces()),
            Some(next) => return Ok(next),
            None => {}
        }
    }
}

/// Encodes the alert that follows an error. Nothing else may be asked of rustls then: it would look for a message in the empty buffer.
fn alert<C: Unbuffered>(connection: &mut C, sealed: &mut Sealed) {
    while connection.common().wants_write() {
        match connection.process(&mut []).state {
            Ok(ConnectionState::EncodeTlsData(message)) => encode(message, sealed),
            _ => return,
        }
    }
}

/// Whether a complete record is left after all were opened. rustls keeps it because it has the beginning of a handshake message. No peer
/// splits the few that follow the handshake, and rustls cannot seal without the buffer that holds such a beginning: it would panic.
fn has_piece(incoming: &[u8]) -> bool {
    let [_, _, _, high, low, payload @ ..] = incoming else {
        return false;
    };
    payload.len() >= usize::from(u16::from_be_bytes([*high, *low]))
}

fn in_pieces() -> Error {
    Error::General("a handshake message in pieces".into())
}

fn open<C: Unbuffered>(
    connection: &mut C,
    incoming: &mut BytesMut,
    alerts: &mut Sealed,
    deliver: impl FnOnce(&[u8]),
) -> Result<Opened, Error> {
    let mut deliver = Some(deliver);
    loop {
        let UnbufferedStatus { discard, state } = connection.process(incoming);
        let opened = match state {
            Err(error) => {
                alert(connection, alerts);
                return Err(error);
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                let mut deliver = deliver.take();
                while let Some(record) = traffic.next_record() {
                    // one record at a time is opened
                    if let Some(deliver) = deliver.take() {
                        deliver(record?.payload);
                    }
                }
                Some(Opened::Data)
            }
            // the answer to a key update
            Ok(ConnectionState::EncodeTlsData(message)) => {
                encode(message, alerts);
                None
            }
            Ok(ConnectionState::TransmitTlsData(message)) => {
                message.done();
                None
            }
            Ok(ConnectionState::WriteTraffic(_)) => Some(Opened::Incomplete),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(Opened::End),
            Ok(_) => return Err(Error::General("unexpected state of TLS".into())),
        };
        incoming.advance(discard.min(incoming.len()));
        match opened {
            Some(Opened::Incomplete) if has_piece(incoming) => return Err(in_pieces()),
            Some(opened) => return Ok(opened),
            None => {}
        }
    }
}

/// Seals data, or close_notify.
fn seal<C: Unbuffered>(connection: &mut C, data: Option<&[u8]>, sealed: &mut Sealed) -> Result<(), Error> {
    loop {
        match connection.process(&mut []).state? {
            ConnectionState::EncodeTlsData(message) => encode(message, sealed),
            ConnectionState::TransmitTlsData(message) => message.done(),
            ConnectionState::PeerClosed => {} // told once; the reader has seen it
            ConnectionState::WriteTraffic(mut traffic) => {
                let result = match data {
                    Some(data) => traffic.encrypt(data, sealed.space()),
                    None => traffic.queue_close_notify(sealed.space()),
                };
                match result {
                    Ok(written) => {
                        sealed.end += written;
                        return Ok(());
                    }
                    Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => sealed.reserve(required_size),
                    Err(EncryptError::EncryptExhausted) => return Err(Error::EncryptError),
                }
            }
            _ => return Err(Error::General("unexpected state of TLS".into())),
        }
    }
}
