//! Translates heads between HTTP/2 and HTTP/1.1 (RFC 9113 §8.3), of servers and of clients. It does not check the requests themselves.
use bytes::{BufMut, Bytes, BytesMut};
use h2::ext::Protocol;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::body::Body;

/// Fields about a connection of HTTP/1.1, which a message of HTTP/2 must not have (RFC 9113 §8.2.2).
const CONNECTION_FIELDS: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The framing of a received body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Framing {
    /// Unframed: the bytes of a tunnel, or a body with its length in the head.
    Raw,
    /// In chunks (RFC 9112 §7.1), because its length is unknown.
    Chunked,
}

/// Returns the head of a request in the form of HTTP/1.1, and the framing of its body. `has_body`: something may follow. An extended
/// CONNECT (RFC 8441) becomes a GET with Upgrade.
pub fn request_head<B>(request: &Request<B>, has_body: bool) -> (Bytes, Framing) {
    let protocol = request.extensions().get::<Protocol>();
    let is_connect = request.method() == Method::CONNECT && protocol.is_none();
    let framing = match has_body && request.method() != Method::CONNECT && !request.headers().contains_key(header::CONTENT_LENGTH) {
        true => Framing::Chunked,
        false => Framing::Raw,
    };
    let mut head = BytesMut::new();
    head.put_slice(if protocol.is_some() {
        b"GET"
    } else {
        request.method().as_str().as_bytes()
    });
    head.put_u8(b' ');
    put_target(request, is_connect, &mut head);
    head.put_slice(b" HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        if name != header::COOKIE {
            put_field(name, value.as_bytes(), &mut head);
        }
    }
    // RFC 9113 §8.2.3: one field in HTTP/1.1
    let cookies: Vec<&[u8]> = request
        .headers()
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if !cookies.is_empty() {
        put_field(&header::COOKIE, &cookies.join(&b"; "[..]), &mut head);
    }
    if let Some(protocol) = protocol {
        put_field(&header::CONNECTION, b"Upgrade", &mut head);
        put_field(&header::UPGRADE, protocol.as_str().as_bytes(), &mut head);
    }
    if framing == Framing::Chunked {
        put_field(&header::TRANSFER_ENCODING, b"chunked", &mut head);
    }
    head.put_slice(b"\r\n");
    (head.freeze(), framing)
}

/// CONNECT has the authority as its target, other requests have the absolute form (RFC 9112 §3.2).
fn put_target<B>(request: &Request<B>, is_connect: bool, head: &mut BytesMut) {
    let uri = request.uri();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if is_connect {
        return head.put_slice(authority.as_bytes());
    }
    if let Some(scheme) = uri.scheme_str() {
        head.put_slice(scheme.as_bytes());
        head.put_slice(b"://");
        head.put_slice(authority.as_bytes());
    }
    match uri.path_and_query().map_or("/", |path| path.as_str()) {
        "*" if !authority.is_empty() => {} // about the server as a whole: an empty path in the absolute form
        path => head.put_slice(path.as_bytes()),
    }
}

/// The status line and the fields of a response.
fn put_status(status: StatusCode, fields: &HeaderMap, head: &mut BytesMut) {
    head.put_slice(b"HTTP/1.1 ");
    head.put_slice(status.as_str().as_bytes());
    head.put_u8(b' ');
    head.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    head.put_slice(b"\r\n");
    for (name, value) in fields {
        put_field(name, value.as_bytes(), head);
    }
}

fn put_field(name: &HeaderName, value: &[u8], head: &mut BytesMut) {
    head.put_slice(name.as_str().as_bytes());
    head.put_slice(b": ");
    head.put_slice(value);
    head.put_slice(b"\r\n");
}

/// Parses a response head of HTTP/1.1, written by this program, without the fields that HTTP/2 does not have. Returns how its body is framed,
/// too. `None` if it is none. The response to an upgrade is 200 (RFC 8441 §5).
pub fn response(head: &[u8]) -> Option<(Response<()>, Body)> {
    let mut lines = head
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let status = lines.next()?.strip_prefix(b"HTTP/1.")?.split(|byte| *byte == b' ').nth(1)?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_bytes(status).ok()?;
    *response.headers_mut() = lines.filter_map(field).collect::<HeaderMap>();
    let body = match response.status() {
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Body::Raw,
        StatusCode::SWITCHING_PROTOCOLS => {
            *response.status_mut() = StatusCode::OK;
            Body::Raw
        }
        _ => body_of(response.headers())?.unwrap_or(Body::Raw),
    };
    for name in CONNECTION_FIELDS {
        response.headers_mut().remove(name);
    }
    Some((response, body))
}

/// How a body is framed (RFC 9112 §6.3): `Some(None)` if the head does not say, and `None` if the fields for it are malformed.
fn body_of(headers: &HeaderMap) -> Option<Option<Body>> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return Some(Some(Body::Chunked(Box::default())));
    }
    let Some(length) = headers.get(header::CONTENT_LENGTH) else {
        return Some(None);
    };
    Some(Some(Body::Length(length.to_str().ok()?.parse().ok()?)))
}

/// Parses a request head of HTTP/1.1, written by this program: GET with Upgrade is an extended CONNECT (RFC 8441). Returns how its body is
/// framed, too. `None` if it is none. Except of CONNECT, `Host` becomes the authority.
pub fn request(head: &[u8]) -> Option<(Request<()>, Body)> {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_end());
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = lines.filter_map(field).collect::<HeaderMap>();
    let host = headers.remove(header::HOST)?;
    let protocol = headers.remove(header::UPGRADE);
    let framing = body_of(&headers)?;
    for name in CONNECTION_FIELDS {
        headers.remove(name);
    }
    if let Some(credentials) = headers.get_mut(header::PROXY_AUTHORIZATION) {
        credentials.set_sensitive(true); // not in the table of a compression (RFC 7541 §7.1.3)
    }
    let uri = |scheme| {
        let builder = Uri::builder().scheme(scheme).authority(host.as_bytes());
        builder.path_and_query(std::str::from_utf8(target).ok()?).build().ok()
    };
    let (builder, body) = match (method, protocol) {
        (b"CONNECT", None) => (Request::builder().method(Method::CONNECT).uri(target), Body::Raw),
        (b"GET", Some(protocol)) => {
            let protocol = Protocol::from(protocol.to_str().ok()?);
            let builder = Request::builder().method(Method::CONNECT).uri(uri("https")?);
            (builder.extension(protocol), Body::Raw)
        }
        (_, Some(_)) => return None,
        (_, None) => (
            Request::builder().method(method).uri(uri("http")?),
            framing.unwrap_or(Body::Length(0)),
        ),
    };
    let mut request = builder.body(()).ok()?;
    request.uri().authority()?;
    *request.headers_mut() = headers;
    Some((request, body))
}

/// The kind of request that a response belongs to.
#[derive(Clone, Debug)]
pub enum Asked {
    /// CONNECT, of an extended one with its protocol.
    Tunnel(Option<Protocol>),
    Content {
        is_head: bool,
    },
}

impl Asked {
    pub fn of<B>(request: &Request<B>) -> Self {
        match *request.method() {
            Method::CONNECT => Self::Tunnel(request.extensions().get::<Protocol>().cloned()),
            _ => Self::Content {
                is_head: request.method() == Method::HEAD,
            },
        }
    }
}

/// Returns the head of a response in the form of HTTP/1.1, and the framing of its body. `has_body`: something may follow.
pub fn response_head<B>(response: &Response<B>, asked: &Asked, has_body: bool) -> (Bytes, Framing) {
    let protocol = match asked {
        Asked::Tunnel(protocol) => protocol.as_ref().filter(|_| response.status().is_success()),
        Asked::Content { .. } => None,
    };
    let status = protocol.map_or(response.status(), |_| StatusCode::SWITCHING_PROTOCOLS);
    let mut head = BytesMut::new();
    put_status(status, response.headers(), &mut head);
    if let Some(protocol) = protocol {
        put_field(&header::CONNECTION, b"Upgrade", &mut head);
        put_field(&header::UPGRADE, protocol.as_str().as_bytes(), &mut head);
    }
    let needs_framing = matches!(asked, Asked::Content { is_head: false })
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        && !response.headers().contains_key(header::CONTENT_LENGTH);
    let framing = match needs_framing && has_body {
        true => Framing::Chunked,
        false => Framing::Raw,
    };
    if framing == Framing::Chunked {
        put_field(&header::TRANSFER_ENCODING, b"chunked", &mut head);
    } else if needs_framing {
        put_field(&header::CONTENT_LENGTH, b"0", &mut head);
    }
    head.put_slice(b"\r\n");
    (head.freeze(), framing)
}

/// Returns the head of an interim response in the form of HTTP/1.1.
pub fn interim_head(response: &Response<()>) -> Bytes {
    let mut head = BytesMut::new();
    put_status(response.status(), response.headers(), &mut head);
    head.put_slice(b"\r\n");
    head.freeze()
}

/// The end of a chunked body, with trailers.
pub fn last_chunk(trailers: &HeaderMap) -> Bytes {
    let mut end = BytesMut::from(&b"0\r\n"[..]);
    for (name, value) in trailers.iter().filter(|(name, _)| is_trailer(name)) {
        put_field(name, value.as_bytes(), &mut end);
    }
    end.put_slice(b"\r\n");
    end.freeze()
}

/// Whether a field may be a trailer: not those about the connection, or framing and routing of the message (RFC 9110 §6.5.1).
pub fn is_trailer(name: &HeaderName) -> bool {
    !CONNECTION_FIELDS.contains(name) && ![header::CONTENT_LENGTH, header::HOST, header::TE, header::TRAILER].contains(name)
}

/// A field that HTTP/2 can have.
pub(super) fn field(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    let name = HeaderName::from_bytes(name).ok()?;
    let value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(request: http::request::Builder, has_body: bool) -> (String, Framing) {
        let (head, framing) = request_head(&request.body(()).unwrap(), has_body);
        (String::from_utf8(head.to_vec()).unwrap(), framing)
    }

    #[test]
    fn connect_has_the_authority_as_its_target_and_no_framing() {
        let request = Request::builder()
            .method("CONNECT")
            .uri("db.test:5432")
            .header("proxy-authorization", "Basic eDp5");
        let want = "CONNECT db.test:5432 HTTP/1.1\r\nproxy-authorization: Basic eDp5\r\n\r\n";
        assert_eq!(head(request, true), (want.to_owned(), Framing::Raw));
    }

    #[test]
    fn other_requests_have_the_absolute_form() {
        let request = || Request::builder().method("GET").uri("http://a.test/x?y=1");
        assert_eq!(
            head(request(), false),
            ("GET http://a.test/x?y=1 HTTP/1.1\r\n\r\n".into(), Framing::Raw)
        );
        let options = Request::builder().method("OPTIONS").uri("http://a.test/*");
        assert_eq!(head(options, false).0, "OPTIONS http://a.test/* HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn an_extended_connect_is_an_upgrade_and_its_response_no_interim_one() {
        let request = Request::builder()
            .method("CONNECT")
            .uri("http://a.test/chat")
            .extension(Protocol::from_static("websocket"));
        let want = "GET http://a.test/chat HTTP/1.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        assert_eq!(head(request, true), (want.to_owned(), Framing::Raw));
        let (response, body) = response(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").unwrap();
        assert_eq!((response.status().as_u16(), response.headers().len(), body), (200, 0, Body::Raw));
    }

    #[test]
    fn a_body_without_a_length_is_in_chunks() {
        let request = || Request::builder().method("POST").uri("http://a.test/");
        let (text, framing) = head(request(), true);
        assert_eq!((text.contains("transfer-encoding: chunked\r\n"), framing), (true, Framing::Chunked));
        let (text, framing) = head(request().header("content-length", "3"), true);
        assert_eq!((text.contains("transfer-encoding"), framing), (false, Framing::Raw));
    }

    #[test]
    fn cookies_are_one_field() {
        let request = Request::builder()
            .uri("http://a.test/")
            .header("cookie", "a=1")
            .header("x", "1")
            .header("cookie", "b=2");
        assert_eq!(
            head(request, false).0,
            "GET http://a.test/ HTTP/1.1\r\nx: 1\r\ncookie: a=1; b=2\r\n\r\n"
        );
    }

    #[test]
    fn a_response_loses_the_fields_of_its_connection() {
        let head = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nConnection: close\r\nKeep-Alive: x\r\n\
            Transfer-Encoding: chunked\r\nUpgrade: y\r\nSet-Cookie: a=1\r\nSet-Cookie: b=\xe4\r\n\r\n";
        let (response, body) = response(head).unwrap();
        assert_eq!((response.status().as_u16(), body), (407, Body::Chunked(Box::default())));
        let fields: Vec<_> = response
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        assert_eq!(
            fields,
            [
                ("proxy-authenticate", &b"Basic"[..]),
                ("set-cookie", b"a=1"),
                ("set-cookie", b"b=\xe4")
            ]
        );
    }

    fn sent(head: &str) -> Request<()> {
        request(head.as_bytes()).unwrap().0
    }

    #[test]
    fn other_requests_have_their_host_as_authority_and_lose_their_framing() {
        let sent = |fields: &str| request(format!("POST /a?b HTTP/1.1\r\nHost: a.test:1\r\nTE: trailers\r\n{fields}\r\n").as_bytes());
        let (request, body) = sent("Transfer-Encoding: chunked\r\n").unwrap();
        assert_eq!(
            (request.method(), request.uri().to_string()),
            (&Method::POST, "http://a.test:1/a?b".to_owned())
        );
        assert_eq!(request.headers().keys().collect::<Vec<_>>(), [&header::TE]);
        assert_eq!(body, Body::Chunked(Box::default()));
        assert_eq!(sent("Content-Length: 7\r\n").unwrap().1, Body::Length(7));
        assert!(sent("").unwrap().1.is_empty());
        assert!(sent("Content-Length: x\r\n").is_none());
    }

    #[test]
    fn the_end_of_a_response_shows_in_its_head() {
        let head = |status: u16, is_head, has_body| {
            let response = Response::builder().status(status).body(()).unwrap();
            let (head, framing) = response_head(&response, &Asked::Content { is_head }, has_body);
            (String::from_utf8(head.to_vec()).unwrap(), framing)
        };
        assert_eq!(
            head(200, false, true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".into(), Framing::Chunked)
        );
        assert_eq!(
            head(200, false, false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into(), Framing::Raw)
        );
        assert_eq!(head(200, true, false), ("HTTP/1.1 200 OK\r\n\r\n".into(), Framing::Raw));
        assert_eq!(head(304, false, false), ("HTTP/1.1 304 Not Modified\r\n\r\n".into(), Framing::Raw));
    }

    #[test]
    fn an_interim_response_has_no_framing() {
        let response = Response::builder()
            .status(103)
            .header("link", "</a>; rel=preload")
            .body(())
            .unwrap();
        assert_eq!(
            &interim_head(&response)[..],
            b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"
        );
    }

    #[test]
    fn trailers_have_no_framing() {
        let mut trailers = HeaderMap::new();
        for (name, value) in [("grpc-status", "0"), ("content-length", "1"), ("x", "y")] {
            trailers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(&last_chunk(&trailers)[..], b"0\r\ngrpc-status: 0\r\nx: y\r\n\r\n");
    }

    #[test]
    fn a_request_for_a_tunnel_is_a_connect() {
        let request =
            sent("CONNECT [::1]:22 HTTP/1.1\r\nHost: [::1]:22\r\nProxy-Authorization: Bearer x\r\nProxy-Connection: keep-alive\r\n\r\n");
        assert_eq!(
            (request.method(), request.uri().to_string()),
            (&Method::CONNECT, "[::1]:22".to_owned())
        );
        assert_eq!(request.headers().len(), 1);
        assert!(request.headers()["proxy-authorization"].is_sensitive());
        assert!(request.extensions().get::<Protocol>().is_none());
    }

    #[test]
    fn a_request_for_an_upgrade_is_an_extended_connect() {
        let request =
            sent("GET /a%3Ab/53/ HTTP/1.1\r\nHost: proxy:1\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n");
        assert_eq!(
            (request.method(), request.uri().to_string()),
            (&Method::CONNECT, "https://proxy:1/a%3Ab/53/".to_owned())
        );
        assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "connect-udp");
        let fields: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(fields, ["capsule-protocol"]);
    }

    #[test]
    fn other_requests_are_refused() {
        for head in [
            "",
            "\r\n",
            "CONNECT\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\n\r\n",
            "CONNECT /path HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a b\r\nUpgrade: x\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n",
        ] {
            assert!(request(head.as_bytes()).is_none(), "{head}");
        }
    }

    #[test]
    fn a_response_is_one_of_the_earlier_version() {
        let response = |status: u16| Response::builder().status(status).header("x-request-id", "1").body(()).unwrap();
        let head = |status: u16, protocol: Option<&Protocol>| {
            let (head, _) = response_head(&response(status), &Asked::Tunnel(protocol.cloned()), true);
            String::from_utf8(head.to_vec()).unwrap()
        };
        assert_eq!(head(200, None), "HTTP/1.1 200 OK\r\nx-request-id: 1\r\n\r\n");
        assert_eq!(head(299, None), "HTTP/1.1 299 \r\nx-request-id: 1\r\n\r\n");
        let udp = Protocol::from_static("connect-udp");
        let want = "HTTP/1.1 101 Switching Protocols\r\nx-request-id: 1\r\nconnection: Upgrade\r\nupgrade: connect-udp\r\n\r\n";
        assert_eq!(head(200, Some(&udp)), want);
        assert_eq!(head(403, Some(&udp)), "HTTP/1.1 403 Forbidden\r\nx-request-id: 1\r\n\r\n");
    }

    #[test]
    fn what_is_no_response_is_refused() {
        for head in [
            &b""[..],
            b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 20\r\n\r\n",
            b"HTTP/1.1 0 x\r\n\r\n",
        ] {
            assert!(response(head).is_none(), "{}", String::from_utf8_lossy(head));
        }
    }
}
