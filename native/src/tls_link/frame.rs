//! Frames of the TLS link: a header of eight bytes, `type(1) stream(4) length(3)`, and a payload. Frames follow each other as a stream of
//! bytes; the boundaries of TLS records have no meaning.

pub const HEADER: usize = 8;
/// Maximum payload of a DATA frame: the control frames of other streams wait for no more than this.
pub const MAX_DATA: usize = 64 << 10;
/// Maximum bytes of a reason.
pub const MAX_REASON: usize = 1 << 10;
/// Maximum payload of SETTINGS: the fields of this version, and those of later ones.
const MAX_SETTINGS: usize = 1 << 10;

const SETTINGS: u8 = 0;
const OPEN: u8 = 1;
const DATA: u8 = 2;
const FIN: u8 = 3;
const RESET: u8 = 4;
const STOP: u8 = 5;
const CREDIT: u8 = 6;
const STREAMS: u8 = 7;
const PING: u8 = 8;
const PONG: u8 = 9;
const CLOSE: u8 = 10;
const ERROR: u8 = 11;

/// The limits that a side sets for its peer; its first frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Streams that the peer may open before STREAMS allows more.
    pub streams: u32,
    /// Initial credit of each stream in bytes.
    pub stream_window: u32,
    /// Initial credit of all streams together in bytes.
    pub session_window: u32,
}

/// A frame without data.
#[derive(Debug, PartialEq)]
pub enum Control {
    Settings(Settings),
    Open,
    Fin,
    Reset(u32),
    Stop(u32),
    Credit(u32),
    Streams(u32),
    Ping([u8; 8]),
    Pong([u8; 8]),
    Close { code: u32, reason: String },
    Error { reason: String },
}

#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// A part of a DATA frame, which has `length` bytes; `missing` of them follow.
    Data {
        stream: u32,
        bytes: &'a [u8],
        length: usize,
        missing: usize,
    },
    Control {
        stream: u32,
        frame: Control,
    },
}

/// A violation of the protocol by the peer.
#[derive(Debug, PartialEq)]
pub struct ProtocolError(pub String);

impl ProtocolError {
    pub fn new<T>(message: impl Into<String>) -> Result<T, Self> {
        Err(Self(message.into()))
    }
}

fn header(kind: u8, stream: u32, length: usize) -> [u8; HEADER] {
    let ([a, b, c, d], [_, x, y, z]) = (stream.to_be_bytes(), (length as u32).to_be_bytes());
    [kind, a, b, c, d, x, y, z]
}

/// Appends the header of a DATA frame of up to [`MAX_DATA`] bytes.
pub fn put_data_header(out: &mut Vec<u8>, stream: u32, length: usize) {
    debug_assert!(length <= MAX_DATA);
    out.extend_from_slice(&header(DATA, stream, length));
}

/// Appends a frame without data.
pub fn put(out: &mut Vec<u8>, stream: u32, frame: &Control) {
    let mut payload = |kind: u8, parts: &[&[u8]]| {
        out.extend_from_slice(&header(kind, stream, parts.iter().map(|part| part.len()).sum()));
        parts.iter().for_each(|part| out.extend_from_slice(part));
    };
    match frame {
        Control::Settings(settings) => payload(
            SETTINGS,
            &[settings.streams, settings.stream_window, settings.session_window]
                .map(u32::to_be_bytes)
                .each_ref()
                .map(|bytes| &bytes[..]),
        ),
        Control::Open => payload(OPEN, &[]),
        Control::Fin => payload(FIN, &[]),
        Control::Reset(code) => payload(RESET, &[&code.to_be_bytes()]),
        Control::Stop(code) => payload(STOP, &[&code.to_be_bytes()]),
        Control::Credit(bytes) => payload(CREDIT, &[&bytes.to_be_bytes()]),
        Control::Streams(count) => payload(STREAMS, &[&count.to_be_bytes()]),
        Control::Ping(token) => payload(PING, &[token]),
        Control::Pong(token) => payload(PONG, &[token]),
        Control::Close { code, reason } => payload(CLOSE, &[&code.to_be_bytes(), cut(reason).as_bytes()]),
        Control::Error { reason } => payload(ERROR, &[cut(reason).as_bytes()]),
    }
}

/// The reason, cut to [`MAX_REASON`] bytes at a character.
fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[derive(Clone, Copy)]
struct Arriving {
    kind: u8,
    stream: u32,
    /// Bytes of the payload, and how many of them are missing.
    length: usize,
    missing: usize,
}

/// Splits what arrives into frames. It stores no data, and of other frames only the payload, which is about 1 KiB at most.
#[derive(Default)]
pub struct Parser {
    /// The header as far as it has arrived, then the payload of a frame without data.
    buffer: Vec<u8>,
    /// The frame whose payload is arriving.
    current: Option<Arriving>,
}

impl Parser {
    /// The next part of `input`, which it advances; `None` once `input` is used up.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        let Arriving {
            kind,
            stream,
            length,
            missing,
        } = match self.current {
            Some(current) => current,
            None => {
                if !self.collect(input, HEADER) {
                    return Ok(None);
                }
                let current = self.header()?;
                self.buffer.clear();
                self.current = Some(current);
                current
            }
        };
        if kind == DATA {
            let bytes = take(input, missing);
            if bytes.is_empty() {
                return Ok(None);
            }
            let missing = missing - bytes.len();
            self.current = (missing > 0).then_some(Arriving {
                kind,
                stream,
                length,
                missing,
            });
            return Ok(Some(Event::Data {
                stream,
                bytes,
                length,
                missing,
            }));
        }
        if !self.collect(input, missing) {
            return Ok(None);
        }
        let frame = control(kind, &self.buffer)?;
        self.buffer.clear();
        self.current = None;
        Ok(Some(Event::Control { stream, frame }))
    }

    /// Moves bytes into the buffer until it has `length`. Returns whether it has.
    fn collect(&mut self, input: &mut &[u8], length: usize) -> bool {
        let bytes = take(input, length - self.buffer.len());
        self.buffer.extend_from_slice(bytes);
        self.buffer.len() == length
    }

    /// Checks the header in the buffer: a length that its type does not allow is refused before any of the payload is stored.
    fn header(&self) -> Result<Arriving, ProtocolError> {
        let [kind, a, b, c, d, x, y, z] = self.buffer[..] else {
            return ProtocolError::new("a header is not complete");
        };
        let (stream, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, x, y, z]) as usize);
        let (lengths, has_stream) = match kind {
            SETTINGS => (12..=MAX_SETTINGS, Some(false)),
            OPEN | FIN => (0..=0, Some(true)),
            DATA => (1..=MAX_DATA, Some(true)),
            RESET | STOP => (4..=4, Some(true)),
            CREDIT => (4..=4, None), // of a stream, or of all
            STREAMS => (4..=4, Some(false)),
            PING | PONG => (8..=8, Some(false)),
            CLOSE => (4..=4 + MAX_REASON, Some(false)),
            ERROR => (0..=MAX_REASON, Some(false)),
            _ => return ProtocolError::new(format!("frame type {kind} is unknown")),
        };
        if !lengths.contains(&length) {
            return ProtocolError::new(format!("a frame of type {kind} has {length} bytes"));
        }
        if has_stream.is_some_and(|has_stream| has_stream != (stream != 0)) {
            return ProtocolError::new(format!("a frame of type {kind} has stream {stream}"));
        }
        Ok(Arriving {
            kind,
            stream,
            length,
            missing: length,
        })
    }
}

fn take<'a>(input: &mut &'a [u8], max: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(max.min(input.len()));
    *input = rest;
    taken
}

fn control(kind: u8, payload: &[u8]) -> Result<Control, ProtocolError> {
    let number = |index: usize| match payload.get(index * 4..index * 4 + 4) {
        Some(&[a, b, c, d]) => Ok(u32::from_be_bytes([a, b, c, d])),
        _ => ProtocolError::new(format!("a frame of type {kind} is too short")),
    };
    let token = || <[u8; 8]>::try_from(payload).or_else(|_| ProtocolError::new("a ping does not have 8 bytes"));
    let reason = |from: usize| String::from_utf8_lossy(payload.get(from..).unwrap_or_default()).into_owned();
    Ok(match kind {
        SETTINGS => Control::Settings(Settings {
            streams: number(0)?,
            stream_window: number(1)?,
            session_window: number(2)?,
        }),
        OPEN => Control::Open,
        FIN => Control::Fin,
        RESET => Control::Reset(number(0)?),
        STOP => Control::Stop(number(0)?),
        CREDIT => Control::Credit(number(0)?),
        STREAMS => Control::Streams(number(0)?),
        PING => Control::Ping(token()?),
        PONG => Control::Pong(token()?),
        CLOSE => Control::Close {
            code: number(0)?,
            reason: reason(4),
        },
        ERROR => Control::Error { reason: reason(0) },
        _ => return ProtocolError::new(format!("frame type {kind} is unknown")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream, and a frame or data.
    type Owned = (u32, Result<Control, Vec<u8>>);

    /// Events in a form that owns its bytes; parts of data are joined.
    fn parse(parts: &[&[u8]]) -> Result<Vec<Owned>, ProtocolError> {
        let mut parser = Parser::default();
        let mut events: Vec<Owned> = Vec::new();
        let mut is_data = false;
        for mut part in parts.iter().copied() {
            while let Some(event) = parser.next(&mut part)? {
                match event {
                    Event::Control { stream, frame } => events.push((stream, Ok(frame))),
                    Event::Data { stream, bytes, .. } => match events.last_mut() {
                        Some((last, Err(data))) if *last == stream && is_data => data.extend_from_slice(bytes),
                        _ => events.push((stream, Err(bytes.to_vec()))),
                    },
                }
                is_data = matches!(parser.current, Some(Arriving { kind: DATA, .. }));
            }
        }
        Ok(events)
    }

    fn all() -> Vec<(u32, Control)> {
        let settings = Settings {
            streams: 1,
            stream_window: 2,
            session_window: u32::MAX,
        };
        let close = |reason: &str| Control::Close {
            code: 409,
            reason: reason.into(),
        };
        vec![
            (0, Control::Settings(settings)),
            (7, Control::Open),
            (7, Control::Fin),
            (u32::MAX, Control::Reset(u32::MAX)),
            (7, Control::Stop(3)),
            (7, Control::Credit(5)),
            (0, Control::Credit(5)),
            (0, Control::Streams(6)),
            (0, Control::Ping(*b"12345678")),
            (0, Control::Pong(*b"12345678")),
            (0, close("")),
            (0, close("größer")),
            (0, Control::Error { reason: "why".into() }),
        ]
    }

    #[test]
    fn every_frame_is_read_as_it_was_written_however_it_arrives() {
        let mut bytes = Vec::new();
        let mut want = Vec::new();
        for (stream, frame) in all() {
            put(&mut bytes, stream, &frame);
            put_data_header(&mut bytes, 9, 3);
            bytes.extend_from_slice(b"abc");
            want.push((stream, Ok(frame)));
            want.push((9, Err(b"abc".to_vec())));
        }
        for size in [1, 2, 7, 8, 11, bytes.len()] {
            assert_eq!(
                parse(&bytes.chunks(size).collect::<Vec<_>>()).as_ref(),
                Ok(&want),
                "{size} at a time"
            );
        }
    }

    #[test]
    fn a_header_that_is_not_allowed_is_refused_before_its_payload_arrives() {
        let refused = |kind: u8, stream: u32, length: usize| parse(&[&header(kind, stream, length)]).is_err();
        assert!(refused(12, 0, 0) && refused(255, 1, 0), "types");
        assert!(refused(DATA, 1, 0) && refused(DATA, 1, MAX_DATA + 1) && !refused(DATA, 1, MAX_DATA));
        assert!(refused(SETTINGS, 0, 11) && refused(SETTINGS, 0, MAX_SETTINGS + 1) && !refused(SETTINGS, 0, 100));
        assert!(refused(CLOSE, 0, 3) && refused(CLOSE, 0, 5 + MAX_REASON) && refused(ERROR, 0, 1 + MAX_REASON));
        for kind in [RESET, STOP, CREDIT, STREAMS, PING, PONG, OPEN, FIN] {
            assert!(
                refused(kind, u32::from(!matches!(kind, STREAMS | PING | PONG)), 5),
                "length of {kind}"
            );
        }
        for kind in [OPEN, DATA, FIN, RESET, STOP] {
            assert!(refused(kind, 0, 4), "stream of {kind}");
        }
        for (kind, length) in [(SETTINGS, 12), (STREAMS, 4), (PING, 8), (PONG, 8), (CLOSE, 4), (ERROR, 0)] {
            assert!(refused(kind, 1, length), "stream of {kind}");
        }
    }

    #[test]
    fn settings_may_have_more_than_this_version_knows() {
        let mut bytes = header(SETTINGS, 0, 16).to_vec();
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 9, 9, 9, 9]);
        let settings = Settings {
            streams: 1,
            stream_window: 2,
            session_window: 3,
        };
        assert_eq!(parse(&[&bytes]), Ok(vec![(0, Ok(Control::Settings(settings)))]));
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = format!("{}ö", "x".repeat(MAX_REASON - 1));
        let mut bytes = Vec::new();
        put(&mut bytes, 0, &Control::Error { reason });
        let reason = "x".repeat(MAX_REASON - 1);
        assert_eq!(parse(&[&bytes]), Ok(vec![(0, Ok(Control::Error { reason }))]));
    }
}
