//! CONNECT over HTTP/1.1 (RFC 9110 §9.3.6), and authentication by Basic or Digest (RFC 7617, RFC 7616).
use std::fmt::{self, Display};
use std::io;

use bytes::BytesMut;
use http_auth::{ChallengeParser, PasswordClient, PasswordParams};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{lost, Failure, OutboundProxy};
use crate::error::printable;

/// Limit on the head of a response, with the interim responses before it.
const MAX_HEAD: usize = 16 << 10;
const MAX_FIELDS: usize = 64;
const UNSUPPORTED: &str = "only Basic and Digest (MD5 or SHA-256, qop=auth) are supported; use a local proxy that authenticates to this \
                           one, such as cntlm";

/// A response to CONNECT. It is displayed as its status and reason.
pub struct Response {
    pub status: u16,
    reason: String,
    /// The values of `Proxy-Authenticate`.
    challenges: Vec<String>,
}

impl Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if self.reason.is_empty() {
            return Ok(());
        }
        write!(f, " {}", printable(&self.reason))
    }
}

impl Response {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Any response but that to the request, which follows. 101 ends HTTP, and is no response to CONNECT.
    fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// The authentication schemes that the proxy offers.
    fn offers(&self) -> String {
        let mut schemes = Vec::new();
        for value in &self.challenges {
            for challenge in ChallengeParser::new(value) {
                // a scheme with a token instead of parameters is not parsed
                let scheme = challenge
                    .as_ref()
                    .map_or_else(|_| value.split([' ', ',']).next().unwrap_or(""), |c| c.scheme);
                if !schemes.contains(&scheme) {
                    schemes.push(scheme);
                }
                if challenge.is_err() {
                    break;
                }
            }
        }
        match schemes.join(", ") {
            empty if empty.is_empty() => "no authentication".into(),
            schemes => printable(&schemes),
        }
    }
}

/// Asks for a tunnel to `server`, and reads the head of the response. Returns why that fails.
pub async fn request<S>(stream: &mut S, server: &str, credentials: Option<&str>) -> Result<Response, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let credentials = credentials.map_or_else(String::new, |text| format!("Proxy-Authorization: {text}\r\n"));
    let head = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n{credentials}\r\n");
    stream.write_all(head.as_bytes()).await.map_err(lost)?;
    let (mut received, mut skipped) = (BytesMut::new(), 0);
    loop {
        match parse(&received)? {
            Some((response, length)) if response.is_interim() => {
                skipped += length;
                let _ = received.split_to(length);
            }
            // the server speaks only when it was spoken to: these bytes are not its
            Some((response, length)) if response.is_success() && received.len() > length => {
                let count = received.len() - length;
                return Err(format!("the proxy answers {response}, and sends {count} bytes after it"));
            }
            Some((response, _)) => return Ok(response),
            None if skipped + received.len() > MAX_HEAD => {
                return Err(format!("the proxy answers with a header section of more than {MAX_HEAD} bytes"));
            }
            None => {
                received.reserve(1 << 10);
                if stream.read_buf(&mut received).await.map_err(lost)? == 0 {
                    return Err(lost(io::ErrorKind::UnexpectedEof.into()));
                }
            }
        }
    }
}

/// Parses the head of a response. Returns it and its length; `None` while it is incomplete.
fn parse(bytes: &[u8]) -> Result<Option<(Response, usize)>, String> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(_) => return Ok(None),
        Err(error) => return Err(format!("the proxy does not answer in HTTP: {error}")),
    };
    let is_challenge = |field: &&httparse::Header| field.name.eq_ignore_ascii_case("proxy-authenticate");
    let text = |field: &httparse::Header| String::from_utf8_lossy(field.value).into_owned();
    let response = Response {
        status: head.code.unwrap_or_default(),
        reason: head.reason.unwrap_or_default().to_owned(),
        challenges: head.headers.iter().filter(is_challenge).map(text).collect(),
    };
    Ok(Some((response, length)))
}

/// The credentials for a response with status 407, or why there are none. `was_answered`: the request had credentials.
pub fn answer(response: &Response, proxy: &OutboundProxy, server: &str, was_answered: bool) -> Result<String, Failure> {
    let fail = |why: &str| format!("the proxy answers {response} and offers {}: {why}", response.offers());
    let challenges = response.challenges.iter().map(String::as_str);
    let client = challenges.fold(PasswordClient::builder(), |builder, each| builder.challenges(each));
    let mut client = client.build().map_err(|_| fail(UNSUPPORTED))?;
    let Some(username) = proxy.username.as_deref() else {
        return Err(fail("it needs a user name and a password").into());
    };
    let is_stale = matches!(&client, PasswordClient::Digest(digest) if digest.stale());
    if was_answered && !is_stale {
        return Err(Failure::Credentials(fail("it rejects the user name or the password")));
    }
    let params = PasswordParams {
        username,
        password: proxy.password.as_deref().unwrap_or_default(),
        uri: server,
        method: "CONNECT",
        body: None,
    };
    client.respond(&params).map_err(|_| fail(UNSUPPORTED).into())
}
