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
    /// A copy of the received data that is not decrypted yet. rustls must get the beginning that it has already seen again, even to encrypt.
    unopened: Vec<u8>,
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// The next step of the handshake.
pub enum Handshake {
    /// More bytes of the peer.
    Incomplete,
    /// Complete. The peer may have sent data together with its last message.
    Complete(Vec<u8>),
}

/// What follows the records that were opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Opened {
    /// An incomplete record, or nothing.
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
            unopened: Vec::new(),
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

    /// Continues the handshake with the received data. `sealed` must be written before more is awaited, also after an error: it may be an
    /// alert.
    pub fn handshake(&mut self, incoming: &mut BytesMut, sealed: &mut Sealed) -> Result<Handshake, Error> {
        let mut early = Vec::new();
        let is_complete = match &mut self.connection {
            Connection::Client(connection) => handshake(connection, incoming, sealed, &mut early),
            Connection::Server(connection) => handshake(connection, incoming, sealed, &mut early),
        }?;
        if !is_complete {
            return Ok(Handshake::Incomplete);
        }
        self.open(incoming, sealed, |data| early.extend_from_slice(data))?;
        Ok(Handshake::Complete(early))
    }

    /// Opens the complete records of `incoming`, removes them, and passes their data to `deliver`.
    pub fn open(&mut self, incoming: &mut BytesMut, alerts: &mut Sealed, deliver: impl FnMut(&[u8])) -> Result<Opened, Error> {
        let opened = match &mut self.connection {
            Connection::Client(connection) => open(connection, incoming, alerts, deliver),
            Connection::Server(connection) => open(connection, incoming, alerts, deliver),
        };
        self.has_failed |= opened.is_err();
        self.unopened.clear();
        self.unopened.extend_from_slice(incoming);
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
            Connection::Client(connection) => seal(connection, data, &mut self.unopened, sealed),
            Connection::Server(connection) => seal(connection, data, &mut self.unopened, sealed),
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

/// Returns whether the handshake is complete. Data that the peer sent with its last message is added to `early`.
fn handshake<C: Unbuffered>(connection: &mut C, incoming: &mut BytesMut, sealed: &mut Sealed, early: &mut Vec<u8>) -> Result<bool, Error> {
    loop {
        let UnbufferedStatus { discard, state } = connection.process(incoming);
        let next = match state {
            Err(error) => {
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
            Ok(ConnectionState::BlockedHandshake) => Some(false),
            Ok(ConnectionState::WriteTraffic(_)) => Some(true),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    early.extend_from_slice(record?.payload);
                }
                Some(true)
            }
            Ok(_) => return Err(Error::General("the peer has closed the connection".into())),
        };
        incoming.advance(discard.min(incoming.len()));
        if let Some(is_complete) = next {
            return Ok(is_complete);
        }
    }
}

/// Encodes the alert that follows an error. rustls returns it before it looks into the buffer.
fn alert<C: Unbuffered>(connection: &mut C, sealed: &mut Sealed) {
    while connection.common().wants_write() {
        match connection.process(&mut []).state {
            Ok(ConnectionState::EncodeTlsData(message)) => encode(message, sealed),
            _ => return,
        }
    }
}

fn open<C: Unbuffered>(
    connection: &mut C,
    incoming: &mut BytesMut,
    alerts: &mut Sealed,
    mut deliver: impl FnMut(&[u8]),
) -> Result<Opened, Error> {
    loop {
        let UnbufferedStatus { discard, state } = connection.process(incoming);
        let opened = match state {
            Err(error) => {
                alert(connection, alerts);
                return Err(error);
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    deliver(record?.payload);
                }
                None
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
        if let Some(opened) = opened {
            return Ok(opened);
        }
    }
}

/// Seals data, or close_notify.
fn seal<C: Unbuffered>(connection: &mut C, data: Option<&[u8]>, unopened: &mut [u8], sealed: &mut Sealed) -> Result<(), Error> {
    loop {
        // nothing is opened here: all complete records were opened before
        match connection.process(unopened).state? {
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
