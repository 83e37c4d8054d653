//! The TLS records of a link. rustls completes the handshake and then hands out the keys, so that each direction has a half of its own, and
//! data is opened where it lies. Its record code still seals and opens: no nonce, padding or cipher is computed here. Key updates, alerts and
//! limits of keys are handled here (ADR 22).
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::crypto::cipher::{AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus};
use rustls::{
    AlertDescription, CommonState, ConnectionTrafficSecrets, ContentType, Error, HandshakeType, InvalidMessage, PeerMisbehaved,
    ProtocolVersion, Tls13CipherSuite,
};

use crate::sync::lock;

/// Bytes of a record's header.
const HEADER: usize = 5;
/// Maximum bytes of a record: of its data, and of what is encrypted (RFC 8446 §5.1, §5.2).
const MAX_DATA: usize = 1 << 14;
const MAX_ENCRYPTED: usize = MAX_DATA + 256;
/// Maximum bytes of a handshake message after the handshake: a ticket, which is not used.
const MAX_HANDSHAKE: usize = 16 << 10;
/// Maximum number of records without data between two with data. They cost more than they carry.
const MAX_EMPTY_RECORDS: u32 = 32;
/// Alert levels (RFC 8446 §6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;
/// A KeyUpdate that requests none of the peer (RFC 8446 §4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// A connection until its handshake is complete.
pub struct Tls(Connection);

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// The next step of the handshake.
pub enum Handshake {
    /// More bytes of the peer.
    Incomplete,
    /// Nothing. The peer may have sent data together with its last message.
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

/// Records that wait to be written.
#[derive(Default)]
pub struct Sealed {
    records: VecDeque<Vec<u8>>,
    /// Bytes of the first one that were written.
    written: usize,
}

impl Sealed {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Fills `slices` with what is to be written next, and returns how many there are.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, record) in slices.iter_mut().zip(&self.records) {
            let skipped = if count == 0 { self.written } else { 0 };
            *slice = IoSlice::new(record.get(skipped..).unwrap_or_default());
            count += 1;
        }
        count
    }

    /// Removes bytes that were written.
    pub fn written(&mut self, bytes: usize) {
        self.written += bytes;
        while let Some(first) = self.records.front().filter(|first| first.len() <= self.written) {
            self.written -= first.len();
            self.records.pop_front();
        }
    }

    /// Frees the memory of the queue if it is empty.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            self.records = VecDeque::new();
        }
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
        Self(Connection::Client(connection))
    }
}

impl From<UnbufferedServerConnection> for Tls {
    fn from(connection: UnbufferedServerConnection) -> Self {
        Self(Connection::Server(connection))
    }
}

impl Tls {
    pub fn common(&self) -> &CommonState {
        match &self.0 {
            Connection::Client(connection) => connection,
            Connection::Server(connection) => connection,
        }
    }

    /// Continues the handshake with the received data. `sealed` must be written before more is awaited, also after an error: it may be an
    /// alert. Data after the last message stays in `incoming`.
    pub fn handshake(&mut self, incoming: &mut BytesMut, sealed: &mut Sealed) -> Result<Handshake, Error> {
        let mut early = Vec::new();
        let is_complete = match &mut self.0 {
            Connection::Client(connection) => handshake(connection, incoming, sealed, &mut early),
            Connection::Server(connection) => handshake(connection, incoming, sealed, &mut early),
        }?;
        Ok(match is_complete {
            true => Handshake::Complete(early),
            false => Handshake::Incomplete,
        })
    }

    /// The halves of a connection whose handshake is complete.
    pub fn into_halves(self) -> Result<(Sealer, Opener), Error> {
        let (secrets, keys, suite) = match self.0 {
            Connection::Client(connection) => {
                let (secrets, keys) = connection.dangerous_into_kernel_connection()?;
                let suite = keys.negotiated_cipher_suite();
                (secrets, Keys::Client(keys), suite)
            }
            Connection::Server(connection) => {
                let (secrets, keys) = connection.dangerous_into_kernel_connection()?;
                let suite = keys.negotiated_cipher_suite();
                (secrets, Keys::Server(keys), suite)
            }
        };
        let suite = suite.tls13().ok_or(Error::HandshakeNotComplete)?;
        let is_client = matches!(keys, Keys::Client(_));
        let (keys, is_update_requested) = (Arc::new(Mutex::new(keys)), Arc::new(AtomicBool::new(false)));
        let (number, secret) = secrets.tx;
        let sealer = Sealer {
            encrypter: encrypter(suite, secret)?,
            number,
            last_number: suite.common.confidentiality_limit / 2,
            suite,
            keys: keys.clone(),
            is_update_requested: is_update_requested.clone(),
            has_ended: false,
        };
        let (number, secret) = secrets.rx;
        let opener = Opener {
            decrypter: decrypter(suite, secret)?,
            number,
            suite,
            keys,
            is_client,
            handshake: Vec::new(),
            empty_records: 0,
            is_update_requested,
            has_ended: false,
        };
        Ok((sealer, opener))
    }
}

/// Derives the keys that follow a key update.
enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    fn next_to_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        }
    }

    fn next_to_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        }
    }
}

fn key_and_iv(secret: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Error> {
    match secret {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(Error::General("unknown cipher".into())),
    }
}

fn encrypter(suite: &Tls13CipherSuite, secret: ConnectionTrafficSecrets) -> Result<Box<dyn MessageEncrypter>, Error> {
    let (key, iv) = key_and_iv(secret)?;
    Ok(suite.aead_alg.encrypter(key, iv))
}

fn decrypter(suite: &Tls13CipherSuite, secret: ConnectionTrafficSecrets) -> Result<Box<dyn MessageDecrypter>, Error> {
    let (key, iv) = key_and_iv(secret)?;
    Ok(suite.aead_alg.decrypter(key, iv))
}

/// The sending half.
pub struct Sealer {
    encrypter: Box<dyn MessageEncrypter>,
    /// Of the next record.
    number: u64,
    /// The number with which the key changes.
    last_number: u64,
    suite: &'static Tls13CipherSuite,
    keys: Arc<Mutex<Keys>>,
    is_update_requested: Arc<AtomicBool>,
    /// An alert was the last record.
    has_ended: bool,
}

impl Sealer {
    /// Seals data as one or more records, after the answer to a key update of the peer.
    pub fn seal(&mut self, data: &[&[u8]], sealed: &mut Sealed) -> Result<(), Error> {
        self.update_key_if_due(sealed)?;
        let mut rest = OutboundChunks::new(data);
        while !rest.is_empty() {
            let (record, left) = rest.split_at(MAX_DATA);
            self.seal_record(ContentType::ApplicationData, record, sealed)?;
            rest = left;
        }
        Ok(())
    }

    /// Seals close_notify, or the alert that tells the peer of `error`. Nothing can be sealed after it.
    pub fn close(&mut self, error: Option<&Error>, sealed: &mut Sealed) -> Result<(), Error> {
        let alert = match error {
            None => [WARNING, AlertDescription::CloseNotify.into()],
            Some(Error::AlertReceived(_)) => {
                self.has_ended = true; // by the peer, which expects no answer
                return Ok(());
            }
            Some(error) => [FATAL, alert_of(error).into()],
        };
        let result = self.seal_record(ContentType::Alert, OutboundChunks::Single(&alert), sealed);
        self.has_ended = true;
        result
    }

    fn seal_record(&mut self, typ: ContentType, payload: OutboundChunks<'_>, sealed: &mut Sealed) -> Result<(), Error> {
        if self.has_ended {
            return Err(Error::EncryptError);
        }
        let message = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_3,
            payload,
        };
        let record = self.encrypter.encrypt(message, self.number)?;
        self.number += 1;
        sealed.records.push_back(record.encode());
        Ok(())
    }

    /// Changes the key if the peer requests it, or long before the limit of records with one key (RFC 8446 §5.5): a batch of data has fewer
    /// records than are left.
    fn update_key_if_due(&mut self, sealed: &mut Sealed) -> Result<(), Error> {
        let is_due = self.number >= self.last_number;
        if self.is_update_requested.swap(false, Ordering::AcqRel) || is_due {
            self.seal_record(ContentType::Handshake, OutboundChunks::Single(&KEY_UPDATE), sealed)?;
            let (number, secret) = lock(&self.keys).next_to_send()?;
            (self.encrypter, self.number) = (encrypter(self.suite, secret)?, number);
        }
        Ok(())
    }
}

/// The alert that tells the peer of an error (RFC 8446 §6.2).
fn alert_of(error: &Error) -> AlertDescription {
    match error {
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        Error::InvalidMessage(invalid) => (*invalid).into(),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } | Error::PeerMisbehaved(_) => {
            AlertDescription::UnexpectedMessage
        }
        _ => AlertDescription::InternalError,
    }
}

/// The receiving half.
pub struct Opener {
    decrypter: Box<dyn MessageDecrypter>,
    /// Of the next record.
    number: u64,
    suite: &'static Tls13CipherSuite,
    keys: Arc<Mutex<Keys>>,
    is_client: bool,
    /// A handshake message that has not arrived completely.
    handshake: Vec<u8>,
    /// Records without data since the last one with data.
    empty_records: u32,
    is_update_requested: Arc<AtomicBool>,
    /// The peer has sent close_notify.
    has_ended: bool,
}

impl Opener {
    /// Opens the complete records of `incoming`, removes them, and passes their data to `deliver`. After an error nothing more may be opened.
    pub fn open(&mut self, incoming: &mut BytesMut, mut deliver: impl FnMut(&[u8])) -> Result<Opened, Error> {
        let mut rest = &mut incoming[..];
        let mut opened = 0;
        while !self.has_ended {
            let Some(record) = next_record(&mut rest)? else { break };
            opened += HEADER + record.len();
            let message = InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, record);
            let message = self.decrypter.decrypt(message, self.number)?;
            self.number += 1;
            if message.typ == ContentType::ApplicationData && !message.payload.is_empty() {
                self.check_whole()?;
                self.empty_records = 0;
                deliver(message.payload);
            } else {
                self.receive_other(message.typ, message.payload)?;
            }
        }
        incoming.advance(opened);
        if self.has_ended {
            incoming.clear();
            return Ok(Opened::End);
        }
        Ok(Opened::Incomplete)
    }

    pub fn is_client(&self) -> bool {
        self.is_client
    }

    /// Whether the peer waits for a key update, which [`Sealer::seal`] sends.
    pub fn is_update_requested(&self) -> bool {
        self.is_update_requested.load(Ordering::Acquire)
    }

    /// Nothing may come between the parts of a handshake message (RFC 8446 §5.1).
    fn check_whole(&self) -> Result<(), Error> {
        match self.handshake.is_empty() {
            true => Ok(()),
            false => Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into()),
        }
    }

    /// Receives a record without data for the session.
    fn receive_other(&mut self, typ: ContentType, payload: &[u8]) -> Result<(), Error> {
        self.empty_records += 1;
        if self.empty_records > MAX_EMPTY_RECORDS {
            return Err(PeerMisbehaved::TooManyEmptyFragments.into());
        }
        if typ == ContentType::Handshake {
            return self.receive_handshake(payload);
        }
        self.check_whole()?;
        match (typ, payload) {
            (ContentType::ApplicationData, _) => Ok(()),
            (ContentType::Alert, &[_, alert]) => self.receive_alert(alert.into()),
            (ContentType::Alert, _) => Err(InvalidMessage::MissingData("alert").into()),
            (got_type, _) => Err(Error::InappropriateMessage {
                expect_types: vec![ContentType::ApplicationData, ContentType::Alert, ContentType::Handshake],
                got_type,
            }),
        }
    }

    /// All alerts are fatal but these two (RFC 8446 §6).
    fn receive_alert(&mut self, alert: AlertDescription) -> Result<(), Error> {
        match alert {
            AlertDescription::CloseNotify => self.has_ended = true,
            AlertDescription::UserCanceled => {} // close_notify follows
            alert => return Err(Error::AlertReceived(alert)),
        }
        Ok(())
    }

    fn receive_handshake(&mut self, payload: &[u8]) -> Result<(), Error> {
        if payload.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        let mut messages = std::mem::take(&mut self.handshake);
        messages.extend_from_slice(payload);
        let mut rest = &messages[..];
        while let Some((&[typ, a, b, c], body)) = rest.split_first_chunk() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > MAX_HANDSHAKE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let Some((message, after)) = body.split_at_checked(length) else {
                break;
            };
            match HandshakeType::from(typ) {
                HandshakeType::KeyUpdate if !after.is_empty() => return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into()),
                HandshakeType::KeyUpdate => self.update_key(message)?,
                HandshakeType::NewSessionTicket if self.is_client => {} // a link is not resumed
                got_type => {
                    return Err(Error::InappropriateHandshakeMessage {
                        expect_types: vec![HandshakeType::KeyUpdate],
                        got_type,
                    })
                }
            }
            rest = after;
        }
        self.handshake = rest.to_vec();
        Ok(())
    }

    fn update_key(&mut self, request: &[u8]) -> Result<(), Error> {
        match request {
            [0] => {}
            [1] => self.is_update_requested.store(true, Ordering::Release),
            _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
        }
        let (number, secret) = lock(&self.keys).next_to_receive()?;
        (self.decrypter, self.number) = (decrypter(self.suite, secret)?, number);
        Ok(())
    }
}

/// The encrypted part of the next record, which is removed from `rest`; `None` if it has not arrived completely.
fn next_record<'a>(rest: &mut &'a mut [u8]) -> Result<Option<&'a mut [u8]>, Error> {
    let Some(&[typ, _, _, high, low]) = rest.first_chunk() else {
        return Ok(None);
    };
    let (got_type, length) = (ContentType::from(typ), usize::from(u16::from_be_bytes([high, low])));
    if got_type != ContentType::ApplicationData {
        return Err(Error::InappropriateMessage {
            expect_types: vec![ContentType::ApplicationData],
            got_type,
        });
    }
    if length > MAX_ENCRYPTED {
        return Err(Error::PeerSentOversizedRecord);
    }
    if rest.len() < HEADER + length {
        return Ok(None);
    }
    let (record, after) = std::mem::take(rest).split_at_mut(HEADER + length);
    *rest = after;
    Ok(record.get_mut(HEADER..))
}

fn encode<Data>(mut message: EncodeTlsData<'_, Data>, sealed: &mut Sealed) {
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = message.encode(&mut []) {
        let mut record = vec![0; required_size];
        if message.encode(&mut record).is_ok() {
            sealed.records.push_back(record);
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustls::ClientConnection;

    use super::*;
    use crate::net::tls::{link_client, link_server, server_name, test_certificate};

    fn server() -> Tls {
        let mut config = link_server(&test_certificate::server_tls(), &[]).unwrap();
        (config.send_tls13_tickets, config.enable_secret_extraction) = (0, true);
        UnbufferedServerConnection::new(config.into()).unwrap().into()
    }

    fn client_config() -> rustls::ClientConfig {
        let mut config = link_client(&test_certificate::client_tls(), &[]).unwrap();
        config.enable_secret_extraction = true;
        config
    }

    fn bytes(sealed: &mut Sealed) -> Vec<u8> {
        std::mem::take(sealed).records.into_iter().flatten().collect()
    }

    /// The halves of a client and of a server.
    fn both() -> [(Sealer, Opener); 2] {
        let name = server_name("a").unwrap();
        let mut client: Tls = UnbufferedClientConnection::new(client_config().into(), name).unwrap().into();
        let mut server = server();
        let (mut to_client, mut to_server, mut sealed) = (BytesMut::new(), BytesMut::new(), Sealed::default());
        loop {
            let is_connected = matches!(client.handshake(&mut to_client, &mut sealed).unwrap(), Handshake::Complete(_));
            to_server.extend_from_slice(&bytes(&mut sealed));
            let is_accepted = matches!(server.handshake(&mut to_server, &mut sealed).unwrap(), Handshake::Complete(_));
            to_client.extend_from_slice(&bytes(&mut sealed));
            if is_connected && is_accepted {
                return [client.into_halves().unwrap(), server.into_halves().unwrap()];
            }
        }
    }

    /// The halves of a server, and a client of another implementation.
    struct Pair {
        sealer: Sealer,
        opener: Opener,
        client: ClientConnection,
    }

    impl Pair {
        fn new() -> Self {
            let mut client = ClientConnection::new(client_config().into(), server_name("a").unwrap()).unwrap();
            let (mut server, mut sealed, mut incoming) = (server(), Sealed::default(), BytesMut::new());
            loop {
                incoming.extend_from_slice(&sent(&mut client));
                let progress = server.handshake(&mut incoming, &mut sealed).unwrap();
                pass(&mut client, &bytes(&mut sealed)).unwrap();
                if matches!(progress, Handshake::Complete(_)) {
                    let (sealer, opener) = server.into_halves().unwrap();
                    return Self { sealer, opener, client };
                }
            }
        }

        /// What the server opens of what the client sends now.
        fn open(&mut self) -> Result<Vec<u8>, Error> {
            let mut incoming = BytesMut::from(&sent(&mut self.client)[..]);
            let mut got = Vec::new();
            self.opener.open(&mut incoming, |data| got.extend_from_slice(data))?;
            assert!(incoming.is_empty());
            Ok(got)
        }

        /// What the client receives of what the server sends.
        fn answer(&mut self, data: &[u8]) -> Result<Vec<u8>, Error> {
            let mut sealed = Sealed::default();
            self.sealer.seal(&[data], &mut sealed).unwrap();
            pass(&mut self.client, &bytes(&mut sealed))
        }

        /// The server's error for what the client seals with its keys, which no implementation would send, and the alert that follows.
        fn refused(mut self, messages: &[(ContentType, &[u8])]) -> (Error, AlertDescription) {
            let suite = self.client.negotiated_cipher_suite().unwrap().tls13().unwrap();
            let secrets = self.client.dangerous_extract_secrets().unwrap();
            let (mut number, secret) = secrets.tx;
            let mut encrypter = encrypter(suite, secret).unwrap();
            let mut incoming = BytesMut::new();
            for (typ, payload) in messages {
                let message = OutboundPlainMessage {
                    typ: *typ,
                    version: ProtocolVersion::TLSv1_3,
                    payload: OutboundChunks::Single(payload),
                };
                incoming.extend_from_slice(&encrypter.encrypt(message, number).unwrap().encode());
                number += 1;
            }
            let error = self.opener.open(&mut incoming, |_| {}).unwrap_err();
            let mut sealed = Sealed::default();
            self.sealer.close(Some(&error), &mut sealed).unwrap();
            assert!(self.sealer.seal(&[b"more"], &mut sealed).is_err());
            let (number, secret) = secrets.rx;
            let mut alert = bytes(&mut sealed).split_off(HEADER);
            let message = InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, &mut alert);
            let mut decrypter = decrypter(suite, secret).unwrap();
            let alert = decrypter.decrypt(message, number).unwrap();
            assert_eq!((alert.typ, alert.payload[0]), (ContentType::Alert, FATAL));
            (error, alert.payload[1].into())
        }
    }

    fn sent(client: &mut ClientConnection) -> Vec<u8> {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    fn pass(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let mut got = Vec::new();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            client.process_new_packets()?;
            let _ = client.reader().read_to_end(&mut got); // there is no end yet
        }
        Ok(got)
    }

    fn data(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn data_arrives_whole_however_it_is_split() {
        let [(mut sealer, _), (_, mut opener)] = both();
        let data = data(3 * MAX_DATA + 100);
        for size in [1, 97, MAX_DATA, usize::MAX] {
            let mut sealed = Sealed::default();
            sealer
                .seal(&[b"", &data[..5], &data[5..40_000], &data[40_000..]], &mut sealed)
                .unwrap();
            assert_eq!(sealed.records.len(), 4, "frames share records");
            let (mut incoming, mut got) = (BytesMut::new(), Vec::new());
            for part in bytes(&mut sealed).chunks(size) {
                incoming.extend_from_slice(part);
                let opened = opener.open(&mut incoming, |data| got.extend_from_slice(data));
                assert_eq!(opened, Ok(Opened::Incomplete));
            }
            assert!(got == data && incoming.is_empty());
        }
    }

    #[test]
    fn records_that_are_written_in_parts_are_written_once() {
        let [(mut sealer, _), _] = both();
        let mut sealed = Sealed::default();
        sealer.seal(&[&data(2 * MAX_DATA)], &mut sealed).unwrap();
        let (all, mut written) = (sealed.records.iter().flatten().copied().collect::<Vec<_>>(), Vec::new());
        while !sealed.is_empty() {
            let mut slices = [IoSlice::new(&[]); 64];
            let count = sealed.slices(&mut slices);
            let next: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter()).take(9_000).copied().collect();
            written.extend_from_slice(&next);
            sealed.written(next.len());
        }
        assert!(written == all);
    }

    #[test]
    fn keys_that_the_peer_changes_are_changed_in_both_directions() {
        let mut pair = Pair::new();
        for round in 0..100u8 {
            pair.client.refresh_traffic_keys().unwrap();
            pair.client.writer().write_all(&[round]).unwrap();
            assert_eq!(pair.open(), Ok(vec![round]));
            assert!(pair.opener.is_update_requested());
            assert_eq!(pair.answer(&[round]), Ok(vec![round]));
            assert!(!pair.opener.is_update_requested());
        }
    }

    #[test]
    fn a_key_is_changed_before_it_has_sealed_too_many_records() {
        let mut pair = Pair::new();
        assert_eq!(pair.sealer.last_number, 1 << 23, "half of the limit of AES-GCM");
        pair.sealer.last_number = 3;
        let (mut numbers, data) = (Vec::new(), data(2 * MAX_DATA));
        for _ in 0..5 {
            assert!(pair.answer(&data) == Ok(data.clone()));
            numbers.push(pair.sealer.number);
        }
        assert_eq!(numbers, [2, 4, 2, 4, 2]);
    }

    #[test]
    fn close_notify_is_the_end_in_both_directions() {
        let mut pair = Pair::new();
        pair.client.writer().write_all(b"last").unwrap();
        pair.client.send_close_notify();
        let mut incoming = BytesMut::from(&sent(&mut pair.client)[..]);
        incoming.extend_from_slice(b"and what is no record");
        let mut got = Vec::new();
        let opened = pair.opener.open(&mut incoming, |data| got.extend_from_slice(data));
        assert_eq!((opened, &got[..]), (Ok(Opened::End), &b"last"[..]));
        let mut sealed = Sealed::default();
        pair.sealer.close(None, &mut sealed).unwrap();
        assert!(pair.sealer.seal(&[b"more"], &mut sealed).is_err());
        assert_eq!(pass(&mut pair.client, &bytes(&mut sealed)), Ok(Vec::new()));
        assert_eq!(pair.client.reader().read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_record_that_was_changed_on_its_way_is_refused() {
        let mut pair = Pair::new();
        pair.client.writer().write_all(b"data").unwrap();
        let mut record = sent(&mut pair.client);
        *record.last_mut().unwrap() ^= 1;
        let error = pair.opener.open(&mut BytesMut::from(&record[..]), |_| panic!("data")).unwrap_err();
        assert_eq!(error, Error::DecryptError);
        let mut sealed = Sealed::default();
        pair.sealer.close(Some(&error), &mut sealed).unwrap();
        let told = pass(&mut pair.client, &bytes(&mut sealed)).unwrap_err();
        assert_eq!(told, Error::AlertReceived(AlertDescription::BadRecordMac));
    }

    #[test]
    fn what_no_peer_sends_after_the_handshake_is_refused_with_an_alert() {
        use ContentType::*;
        let alert = |messages: &[(ContentType, &[u8])]| Pair::new().refused(messages).1;
        let update: &[u8] = &KEY_UPDATE;
        for (messages, want) in [
            (&[(Handshake, &[24, 0, 0, 1, 2][..])][..], AlertDescription::DecodeError),
            (&[(Handshake, &[24, 0, 0, 2, 0, 0])], AlertDescription::DecodeError),
            (&[(Handshake, &[24, 0, 0, 1, 0, 24])], AlertDescription::UnexpectedMessage), // of the old key
            (&[(Handshake, &[])], AlertDescription::DecodeError),
            (&[(Handshake, &[4, 0, 0, 1, 0])], AlertDescription::UnexpectedMessage), // a ticket for a server
            (&[(Handshake, &[1, 0, 0, 1, 0])], AlertDescription::UnexpectedMessage),
            (&[(Handshake, &[4, 0, 64, 1])], AlertDescription::DecodeError), // long
            (
                &[(Handshake, &update[..4]), (ApplicationData, b"x")],
                AlertDescription::UnexpectedMessage,
            ),
            (&[(Handshake, &update[..4]), (Alert, &[1, 0])], AlertDescription::UnexpectedMessage),
            (&[(Alert, &[2])], AlertDescription::DecodeError),
            (&[(ChangeCipherSpec, &[1])], AlertDescription::UnexpectedMessage),
            (&[(Heartbeat, &[1])], AlertDescription::UnexpectedMessage),
            (
                &[(ApplicationData, b"x"), (ApplicationData, &[0; MAX_DATA + 1])],
                AlertDescription::RecordOverflow,
            ),
        ] {
            assert_eq!(alert(messages), want, "{messages:?}");
        }
        let many = vec![(ApplicationData, &b""[..]); MAX_EMPTY_RECORDS as usize + 1];
        assert_eq!(alert(&many), AlertDescription::UnexpectedMessage);
        let mut some = vec![(Alert, &[WARNING, 90][..]); MAX_EMPTY_RECORDS as usize];
        some.extend([(ApplicationData, &b"x"[..]), (Handshake, &[])]);
        assert_eq!(alert(&some), AlertDescription::DecodeError, "user_canceled is allowed");
    }

    #[test]
    fn what_is_no_record_of_data_is_refused_before_it_has_arrived() {
        for header in [[22, 3, 3, 0, 1], [20, 3, 3, 0, 1], [0, 0, 0, 0, 0], [23, 3, 3, 0x41, 0x01]] {
            let mut pair = Pair::new();
            let refused = pair.opener.open(&mut BytesMut::from(&header[..]), |_| panic!("data"));
            assert!(refused.is_err(), "{header:?}");
        }
        let mut pair = Pair::new();
        let longest = [23, 3, 3, 0x41, 0x00];
        assert_eq!(
            pair.opener.open(&mut BytesMut::from(&longest[..]), |_| panic!("data")),
            Ok(Opened::Incomplete)
        );
    }

    #[test]
    fn an_alert_of_the_peer_is_reported_and_not_answered() {
        let mut pair = Pair::new();
        let suite = pair.client.negotiated_cipher_suite().unwrap().tls13().unwrap();
        let (number, secret) = pair.client.dangerous_extract_secrets().unwrap().tx;
        let message = OutboundPlainMessage {
            typ: ContentType::Alert,
            version: ProtocolVersion::TLSv1_3,
            payload: OutboundChunks::Single(&[FATAL, 80]),
        };
        let record = encrypter(suite, secret).unwrap().encrypt(message, number).unwrap().encode();
        let error = pair.opener.open(&mut BytesMut::from(&record[..]), |_| {}).unwrap_err();
        assert_eq!(error, Error::AlertReceived(AlertDescription::InternalError));
        let mut sealed = Sealed::default();
        pair.sealer.close(Some(&error), &mut sealed).unwrap();
        assert!(sealed.is_empty() && pair.sealer.seal(&[b"more"], &mut sealed).is_err());
    }
}
