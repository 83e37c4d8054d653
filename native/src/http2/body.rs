//! The body of a message that is sent, as the frontend writes it: in the framing of HTTP/1.1 (RFC 9112 §6), which HTTP/2 does not have.
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::head;
use crate::error::{NetError, NetErrorCode};

/// Longest line with the size of a chunk, and longest trailer section, in bytes. The frontend allows no more.
const MAX_SIZE_LINE: usize = 4 << 10;
const MAX_TRAILERS: usize = 64 << 10;

/// How the body ends.
#[derive(Debug, PartialEq)]
pub enum Body {
    /// With the direction: a tunnel, or a response without framing.
    Raw,
    /// After this number of bytes.
    Length(u64),
    Chunked(Box<Chunks>),
}

/// The part of a body in one write.
#[derive(Debug, Default, PartialEq)]
pub struct Part {
    pub content: Bytes,
    /// The body ends here, with these trailers.
    pub end: Option<HeaderMap>,
}

impl Body {
    /// Takes the framing off. Nothing may follow the end.
    pub fn take(&mut self, data: Bytes) -> Result<Part, NetError> {
        match self {
            Self::Raw => Ok(Part { content: data, end: None }),
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or_else(malformed)?;
                let end = (*left == 0).then(HeaderMap::new);
                Ok(Part { content: data, end })
            }
            Self::Chunked(chunks) => chunks.take(data),
        }
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::Length(0)
    }

    /// Whether the direction may end here. A length is not asked for: the response to HEAD has one, and no body.
    pub fn may_end(&self) -> bool {
        match self {
            Self::Raw | Self::Length(_) => true,
            // many servers omit the last line
            Self::Chunked(chunks) => matches!(chunks.state, State::Trailers) && chunks.line.is_empty() && chunks.trailer_bytes == 0,
        }
    }
}

/// A chunked body (RFC 9112 §7.1). Lines may end with LF alone.
#[derive(Debug, Default, PartialEq)]
pub struct Chunks {
    state: State,
    /// Bytes of the current chunk that are missing.
    left: u64,
    /// The current line so far.
    line: BytesMut,
    trailers: HeaderMap,
    trailer_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Size,
    Data,
    /// The line end behind the data of a chunk.
    DataEnd,
    Trailers,
    Over,
}

impl Chunks {
    fn take(&mut self, mut data: Bytes) -> Result<Part, NetError> {
        let mut parts = Vec::new();
        while !data.is_empty() {
            match self.state {
                State::Data => {
                    let here = usize::try_from(self.left).map_or(data.len(), |left| left.min(data.len()));
                    self.left -= here as u64;
                    parts.push(data.split_to(here));
                    if self.left == 0 {
                        self.state = State::DataEnd;
                    }
                }
                State::Size => {
                    let Some(line) = self.line(&mut data, MAX_SIZE_LINE)? else { break };
                    self.left = size(&line).ok_or_else(malformed)?;
                    self.state = if self.left == 0 { State::Trailers } else { State::Data };
                }
                State::DataEnd => {
                    let Some(line) = self.line(&mut data, 1)? else { break };
                    if !line.is_empty() {
                        return Err(malformed());
                    }
                    self.state = State::Size;
                }
                State::Trailers => {
                    let Some(line) = self.line(&mut data, MAX_TRAILERS - self.trailer_bytes)? else {
                        break;
                    };
                    self.trailer_bytes += line.len();
                    if line.is_empty() {
                        self.state = State::Over;
                    } else if let Some((name, value)) = head::field(&line).filter(|(name, _)| head::is_trailer(name)) {
                        self.trailers.append(name, value);
                    }
                }
                State::Over => return Err(malformed()),
            }
        }
        let content = match parts.len() {
            1 => parts.swap_remove(0),
            _ => parts.concat().into(),
        };
        let end = (self.state == State::Over).then(|| std::mem::take(&mut self.trailers));
        Ok(Part { content, end })
    }

    /// The next line without its end. `None` if it is not complete.
    fn line(&mut self, data: &mut Bytes, max: usize) -> Result<Option<Bytes>, NetError> {
        let end = data.iter().position(|byte| *byte == b'\n');
        let part = data.split_to(end.unwrap_or(data.len()));
        if self.line.len() + part.len() > max {
            return Err(malformed());
        }
        self.line.extend_from_slice(&part);
        if end.is_none() {
            return Ok(None);
        }
        data.advance(1);
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Ok(Some(line.freeze()))
    }
}

/// The size of a chunk, whose line may have an extension.
fn size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii_end();
    let is_hex = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    u64::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| is_hex)?, 16).ok()
}

fn malformed() -> NetError {
    NetError::new(NetErrorCode::Internal, "The framing of the body is malformed")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content and trailers of a body, written in parts of `step` bytes.
    fn read(body: &str, step: usize) -> Result<(String, Option<Vec<String>>), NetError> {
        let mut chunks = Body::Chunked(Box::default());
        let (mut content, mut end) = (Vec::new(), None);
        for part in body.as_bytes().chunks(step) {
            let part = chunks.take(Bytes::copy_from_slice(part))?;
            content.extend_from_slice(&part.content);
            end = end.or(part.end);
        }
        let lines = |(name, value): (&http::HeaderName, &http::HeaderValue)| format!("{name}={}", value.to_str().unwrap());
        Ok((String::from_utf8(content).unwrap(), end.map(|end| end.iter().map(lines).collect())))
    }

    #[test]
    fn chunks_lose_their_framing_however_they_are_cut() {
        let body = "5\r\nhello\r\n1;x=\"y\"\r\n \r\n005 \nworld\n0\r\nGrpc-Status: 0\r\nContent-Length: 3\r\nx: 1\r\nx: 2\r\n\r\n";
        for step in [1, 2, 3, 7, 1000] {
            let trailers = ["grpc-status=0", "x=1", "x=2"].map(str::to_owned).to_vec();
            assert_eq!(read(body, step).unwrap(), ("hello world".to_owned(), Some(trailers)), "{step}");
        }
        assert_eq!(read("0\r\n\r\n", 1).unwrap(), (String::new(), Some(vec![])));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let long = format!("1;{}", "x".repeat(MAX_SIZE_LINE));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(MAX_TRAILERS / 4));
        for body in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "1\r\nab\r\n",
            "11111111111111111\r\n",
            "0\r\n\r\nx",
            &long,
            &trailers,
        ] {
            assert!(read(body, 1).is_err(), "{}", &body[..body.len().min(20)]);
        }
    }

    #[test]
    fn a_body_that_is_cut_off_must_not_look_complete() {
        for (body, may_end) in [
            ("", false),
            ("3\r\nab", false),
            ("3\r\nabc\r\n", false),
            ("0\r\n", true),
            ("0\r\na: ", false),
            ("0\r\na: b\r\n", false),
        ] {
            let mut chunks = Body::Chunked(Box::default());
            chunks.take(Bytes::from(body)).unwrap();
            assert_eq!(chunks.may_end(), may_end, "{body:?}");
        }
    }

    #[test]
    fn a_length_ends_the_body() {
        let mut body = Body::Length(3);
        let part = |content: &'static str, end| Part {
            content: content.into(),
            end,
        };
        assert_eq!(body.take("ab".into()).unwrap(), part("ab", None));
        assert_eq!(body.take("c".into()).unwrap(), part("c", Some(HeaderMap::new())));
        assert!(body.take("d".into()).is_err());
    }
}
