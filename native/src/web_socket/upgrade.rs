//! The request that turns an HTTP connection into a WebSocket (RFC 6455 §4.1), and its response.
use std::sync::Arc;

use aws_lc_rs::{digest, rand};
use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio_rustls::{TlsConnector, TlsStream};

use super::frame::Side;
use super::WebSocket;
use crate::error::{printable, NetError, NetErrorCode};
use crate::http::head::read_head;
use crate::net::tcp::{plain, secure};
use crate::net::tls::{self, ClientTls, TCP_VERSIONS};
use crate::stream::tcp_socket::Tcp;
use crate::stream::tls_transport::TlsTransport;
use crate::stream::Halves;

/// Longest response head in bytes.
const MAX_HEAD: usize = 16 << 10;
/// RFC 6455 §1.3
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A WebSocket to open, as JavaScript passes it.
#[napi_derive::napi(object, object_to_js = false)]
#[derive(Clone)]
pub struct WebSocketRequest {
    /// `host` or `host:port`.
    pub authority: String,
    /// The target of the request.
    pub path: String,
    /// The name that an outer TLS connection is for; plain HTTP if missing.
    pub tls_server_name: Option<String>,
}

/// Opens WebSockets for one request.
#[derive(Clone)]
pub struct Opener {
    request: WebSocketRequest,
    outer: Option<(TlsConnector, ServerName<'static>)>,
}

impl Opener {
    pub fn new(request: WebSocketRequest) -> Result<Self, NetError> {
        let outer = match &request.tls_server_name {
            None => None,
            Some(name) => {
                // the TLS of the link within authenticates the peer; a middlebox may terminate this one
                let unverified = ClientTls {
                    insecure_skip_verify: Some(true),
                    ..ClientTls::default()
                };
                let config = tls::client(&unverified, TCP_VERSIONS, &["http/1.1".to_owned()])?;
                Some((TlsConnector::from(Arc::new(config)), tls::server_name(name)?))
            }
        };
        Ok(Self { request, outer })
    }

    /// Opens one on a TCP connection. `what` names the server in errors.
    pub async fn open(self, tcp: Arc<Tcp>, what: &str) -> Result<WebSocket, NetError> {
        let mut halves = match self.outer {
            None => plain(tcp),
            Some((connector, name)) => {
                let stream = connector.connect(name, TlsTransport(tcp.clone())).await;
                let stream = stream.map_err(|e| NetError::tls(&format!("Cannot connect to {what} over HTTPS"), e))?;
                secure(TlsStream::Client(stream), tcp)
            }
        };
        upgrade(&mut halves, &self.request, what).await?;
        Ok(WebSocket::start(halves, Side::Client))
    }
}

/// Sends the request and reads the response. Data after it stays in `halves`.
async fn upgrade(halves: &mut Halves, request: &WebSocketRequest, what: &str) -> Result<(), NetError> {
    let fail = |why: &str| NetError::remote(NetErrorCode::Reset, format!("Cannot connect to {what}: {why}"));
    let mut nonce = [0; 16];
    rand::fill(&mut nonce).map_err(|_| NetError::new(NetErrorCode::Internal, "The system has no random numbers"))?;
    let key = base64(&nonce);
    let WebSocketRequest { authority, path, .. } = request;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    );
    halves.writer.write(Bytes::from(head)).await?;
    let head = match read_head(halves, MAX_HEAD).await {
        Ok(Some(head)) => head,
        Ok(None) => return Err(fail("the connection was closed after the WebSocket request")),
        Err(error) => return Err(fail(&format!("no valid response to the WebSocket request: {}", error.message))),
    };
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.get(2..));
    match status {
        Some(status) if status.split(' ').next() == Some("101") => {}
        Some(status) => {
            let status = printable(status.trim());
            return Err(fail(&format!("the response to the WebSocket request for {path} is {status}")));
        }
        None => return Err(fail("the response to the WebSocket request is not HTTP/1")),
    }
    let accept = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-accept"));
    match accept {
        Some((_, value)) if value.trim() == accept_of(&key) => Ok(()),
        _ => Err(fail("the response to the WebSocket request has no valid Sec-WebSocket-Accept")),
    }
}

/// RFC 6455 §4.2.2
fn accept_of(key: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(GUID);
    base64(context.finish().as_ref())
}

/// RFC 4648 §4
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .chain([0, 0].iter())
            .take(3)
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        for i in 0..4 {
            match i <= chunk.len() {
                true => text.push(char::from(ALPHABET[(word >> (18 - 6 * i) & 63) as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// The error for a server that gives this response.
    async fn refusal(response: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let request = WebSocketRequest {
            authority: "proxy.example".into(),
            path: "/agents".into(),
            tls_server_name: None,
        };
        let answer = async {
            server.read_buf(&mut Vec::new()).await.unwrap();
            server.write_all(response).await.unwrap();
        };
        let mut halves = plain(Tcp::new(tcp));
        let (upgraded, ()) = tokio::join!(upgrade(&mut halves, &request, "proxy.example:80"), answer);
        upgraded.unwrap_err().message
    }

    #[tokio::test]
    async fn refusals_are_told_without_control_characters_and_in_bounds() {
        const TOLD: &str = "Cannot connect to proxy.example:80: the response to the WebSocket request for /agents is ";
        assert_eq!(refusal(b"HTTP/1.1 404 Not Found\r\n\r\n").await, format!("{TOLD}404 Not Found"));
        let escapes = "HTTP/1.1 502 \u{9b}31m \u{202e}x\r\n\r\n";
        assert_eq!(refusal(escapes.as_bytes()).await, format!("{TOLD}502 ?31m ?x"));
        let invalid = "Cannot connect to proxy.example:80: no valid response to the WebSocket request: ";
        assert_eq!(
            refusal(b"HTTP/1.1 502 \x1b[31m\r\n\r\n").await,
            format!("{invalid}The head contains the control character 0x1b")
        );
        let endless = [b"HTTP/1.1 101 X\r\nA: ", &[b'x'; 20_000][..]].concat();
        assert_eq!(refusal(&endless).await, format!("{invalid}The head is too large"));
        let long = format!("HTTP/1.1 502 {}\r\n\r\n", "x".repeat(10_000));
        assert_eq!(refusal(long.as_bytes()).await.len(), TOLD.len() + 100);
    }

    #[test]
    fn the_example_of_rfc_6455_has_its_answer() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn the_examples_of_rfc_4648_are_encoded() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (text, encoded) in pairs {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }
}
