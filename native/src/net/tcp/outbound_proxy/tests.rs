//! Scripted proxies: the requests that they receive, and the results of their responses.
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{OutboundProxy, Tunnel};
use crate::error::NetErrorCode;
use crate::sync::lock;

/// A proxy that answers the first bytes of connection `n` with `answers[n]`, one answer for each read, and then closes it.
struct Proxy {
    tunnel: Tunnel,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

async fn start(protocol: &str, user: User<'_>, host: &str, answers: &[&[&[u8]]]) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = OutboundProxy {
        protocol: protocol.into(),
        host: "127.0.0.1".into(),
        port: listener.local_addr().unwrap().port(),
        username: user.map(|(name, _)| name.into()),
        password: user.map(|(_, password)| password.into()),
    };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (record, answers) = (
        asked.clone(),
        answers
            .iter()
            .map(|all| all.iter().map(|a| a.to_vec()).collect())
            .collect::<Vec<Vec<_>>>(),
    );
    tokio::spawn(async move {
        for all in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in all {
                let mut buffer = vec![0; 4096];
                let length = stream.read(&mut buffer).await.unwrap();
                lock(&record).push(buffer[..length].to_vec());
                stream.write_all(&answer).await.unwrap();
            }
        }
    });
    Proxy {
        tunnel: Tunnel::new(proxy, host, 443),
        asked,
    }
}

impl Proxy {
    async fn open(&self) -> Result<(), (NetErrorCode, String)> {
        let (_, port) = self.tunnel.first_hop();
        let opened = self.tunnel.open(|| TcpStream::connect(("127.0.0.1", port))).await;
        let hidden = |text: String| text.replace(&port.to_string(), "PORT");
        opened.map(drop).map_err(|error| (error.code, hidden(error.message)))
    }

    async fn reason(&self) -> String {
        let (code, message) = self.open().await.unwrap_err();
        let is_rejection = message.contains("rejects");
        let expected = if is_rejection {
            NetErrorCode::OutboundProxyCredentials
        } else {
            NetErrorCode::OutboundProxy
        };
        assert_eq!(code, expected);
        let prefix = format!("Cannot connect to {} via proxy 127.0.0.1:PORT: ", self.tunnel.server());
        message.strip_prefix(&prefix).unwrap_or_else(|| panic!("{message}")).to_owned()
    }

    fn asked(&self) -> Vec<String> {
        lock(&self.asked)
            .iter()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    }
}

async fn http(user: User<'_>, answers: &[&[u8]]) -> Proxy {
    let answers: Vec<_> = answers.iter().map(std::slice::from_ref).collect();
    start("http", user, "proxy.example", &answers).await
}

const OK: &[u8] = b"HTTP/1.1 200 Connection established\r\nContent-Length: 7\r\n\r\n";
type User<'a> = Option<(&'a str, &'a str)>;
const ALICE: User = Some(("alice", "a:secret"));

#[tokio::test]
async fn a_tunnel_is_asked_for_by_name() {
    let proxy = http(None, &[OK]).await;
    assert_eq!(proxy.open().await, Ok(()));
    assert_eq!(
        proxy.asked(),
        ["CONNECT proxy.example:443 HTTP/1.1\r\nHost: proxy.example:443\r\n\r\n"]
    );
    let proxy = start("http", None, "2001:db8::1", &[&[OK]]).await;
    assert_eq!(proxy.open().await, Ok(()));
    assert!(proxy.asked()[0].starts_with("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n"));
}

#[tokio::test]
async fn interim_responses_are_skipped() {
    let proxy = http(
        None,
        &[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.0 299 \r\n\r\n"],
    )
    .await;
    assert_eq!(proxy.open().await, Ok(()));
    let endless = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1_000);
    assert!(http(None, &[&endless]).await.reason().await.contains("more than 16384 bytes"));
}

#[tokio::test]
async fn refusals_are_told_with_status_and_reason() {
    for (answer, reason) in [
        (
            &b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nforbidden"[..],
            "the proxy answers 403 Forbidden",
        ),
        (b"HTTP/1.1 503\r\n\r\n", "the proxy answers 503"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "the proxy answers 101 Switching Protocols",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n",
            "the proxy answers 302 Found",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n<html>",
            "the proxy answers 200 OK, and sends 6 bytes after it",
        ),
        (b"SSH-2.0-OpenSSH\r\n", "the proxy does not answer in HTTP: invalid HTTP version"),
        (
            b"HTTP/1.1 200 OK\r\n",
            "the proxy closes the connection without a complete response",
        ),
        (b"", "the proxy closes the connection without a complete response"),
    ] {
        assert_eq!(http(ALICE, &[answer]).await.reason().await, reason);
    }
    let long = [b"HTTP/1.1 200 OK\r\nX: ", &[b'x'; 20_000][..], b"\r\n\r\n"].concat();
    let reason = http(None, &[&long]).await.reason().await;
    assert_eq!(reason, "the proxy answers with a header section of more than 16384 bytes");
    let shouting = format!("HTTP/1.1 500 {}\u{1b}[31m\r\n\r\n", "x".repeat(200));
    let reason = http(None, &[shouting.as_bytes()]).await.reason().await;
    assert!(reason.len() < 200 && !reason.contains('\u{1b}'), "{reason}");
}

fn wants(challenges: &[&str]) -> Vec<u8> {
    let fields: String = challenges
        .iter()
        .map(|challenge| format!("Proxy-Authenticate: {challenge}\r\n"))
        .collect();
    format!("HTTP/1.1 407 Proxy Authentication Required\r\n{fields}Transfer-Encoding: chunked\r\n\r\n3\r\nx").into_bytes()
}

const DIGEST: &str = r#"Digest realm="a, b", qop="auth-int, auth", nonce="n1", opaque="o", algorithm=SHA-256"#;

#[tokio::test]
async fn the_password_goes_to_a_proxy_that_asks_for_it_on_a_new_connection() {
    let proxy = http(ALICE, &[&wants(&["Negotiate, Basic realm=\"x\""]), OK]).await;
    assert_eq!(proxy.open().await, Ok(()));
    let [first, second] = &proxy.asked()[..] else { panic!() };
    assert!(!first.contains("Authorization"));
    assert!(
        second.contains("\r\nProxy-Authorization: Basic YWxpY2U6YTpzZWNyZXQ=\r\n\r\n"),
        "{second}"
    );
}

#[tokio::test]
async fn digest_is_preferred_and_a_stale_nonce_replaced_once() {
    let stale = wants(&[&DIGEST.replace("n1", "n2").replace("algorithm", "stale=true, algorithm")]);
    let proxy = http(ALICE, &[&wants(&["Basic realm=\"x\"", DIGEST]), &stale, OK]).await;
    assert_eq!(proxy.open().await, Ok(()));
    let asked = proxy.asked();
    for (text, nonce) in [(&asked[1], "n1"), (&asked[2], "n2")] {
        assert!(
            text.contains("\r\nProxy-Authorization: Digest username=\"alice\", realm=\"a, b\", uri=\"proxy.example:443\""),
            "{text}"
        );
        assert!(
            text.contains(&format!("nonce=\"{nonce}\", algorithm=SHA-256, nc=00000001")) && text.contains("qop=auth,"),
            "{text}"
        );
    }
    assert!(!asked.concat().contains("secret"));
    let reason = http(ALICE, &[&stale, &stale, &stale]).await.reason().await;
    assert_eq!(reason, "the proxy asks for the credentials again and again");
}

#[tokio::test]
async fn what_the_proxy_offers_is_told_where_no_password_helps() {
    const HEAD: &str = "the proxy answers 407 Proxy Authentication Required and offers";
    for (challenges, user, reason) in [
        (
            &["Basic realm=\"x\"", DIGEST][..],
            None,
            "Basic, Digest: it needs a user name and a password",
        ),
        (&["Negotiate", "NTLM"], None, "Negotiate, NTLM: only Basic and Digest"),
        (&["Negotiate TlRMTVNTUAAC", "NTLM"], ALICE, "Negotiate, NTLM: only Basic and Digest"),
        (
            &["Digest realm=\"x\", nonce=\"y\", qop=\"auth-int\""],
            ALICE,
            "Digest: only Basic and Digest",
        ),
        (
            &["Digest realm=\"x\", nonce=\"y\", algorithm=SHA3"],
            ALICE,
            "Digest: only Basic and Digest",
        ),
        (&[], ALICE, "no authentication: only Basic and Digest"),
    ] {
        let told = http(user, &[&wants(challenges)]).await.reason().await;
        assert!(told.starts_with(&format!("{HEAD} {reason}")), "{told}");
    }
    let told = http(ALICE, &[&wants(&["Basic realm=\"x\""]), &wants(&["Basic realm=\"x\""])])
        .await
        .reason()
        .await;
    assert_eq!(told, format!("{HEAD} Basic: it rejects the user name or the password"));
}

#[tokio::test]
async fn socks_is_asked_by_name_and_by_address() {
    for (host, address) in [
        ("proxy.example", &b"\x03\x0dproxy.example"[..]),
        ("192.0.2.1", b"\x01\xc0\x00\x02\x01"),
        ("2001:db8::1", b"\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01"),
    ] {
        let proxy = start("socks5", None, host, &[&[b"\x05\0", b"\x05\0\0\x03\x01b\0\0"]]).await;
        assert_eq!(proxy.open().await, Ok(()));
        let asked = lock(&proxy.asked).clone();
        assert_eq!(asked, [&b"\x05\x01\0"[..], &[b"\x05\x01\0", address, b"\x01\xbb"].concat()]);
    }
}

#[tokio::test]
async fn socks_has_the_password_if_it_asks_for_it() {
    let proxy = start("socks5", ALICE, "a.example", &[&[b"\x05\x02", b"\x01\0", b"\x05\0\0\x01abcd\0\0"]]).await;
    assert_eq!(proxy.open().await, Ok(()));
    assert_eq!(lock(&proxy.asked)[..2], [&b"\x05\x02\0\x02"[..], b"\x01\x05alice\x08a:secret"]);
}

#[tokio::test]
async fn socks_failures_are_told() {
    let cases: [(User, &[&[u8]], &str); 9] = [
        (
            None,
            &[b"\x05\xff"],
            "the proxy needs a user name and a password, or another authentication",
        ),
        (
            None,
            &[b"\x05\x02"],
            "the proxy needs a user name and a password, or another authentication",
        ),
        (
            ALICE,
            &[b"\x05\x01"],
            "the proxy accepts no authentication by user name and password",
        ),
        (
            ALICE,
            &[b"\x05\x02", b"\x01\x01"],
            "the proxy rejects the user name or the password",
        ),
        (
            None,
            &[b"\x05\0", b"\x05\x02\0\x01"],
            "the proxy answers 2: its rules do not allow this connection",
        ),
        (None, &[b"\x05\0", b"\x05\0\0\x09"], "the proxy answers with an address of type 9"),
        (
            None,
            &[b"\x05\0", b"\x05\0\0\x01ab"],
            "the proxy closes the connection without a complete response",
        ),
        (None, &[b"HTTP/1.1 400 Bad Request\r\n\r\n"], "the proxy does not speak SOCKS 5"),
        (None, &[b""], "the proxy closes the connection without a complete response"),
    ];
    for (user, answers, reason) in cases {
        assert_eq!(start("socks5", user, "a.example", &[answers]).await.reason().await, reason);
    }
    let proxy = start("socks5", None, &"a".repeat(256), &[&[b"\x05\0"]]).await;
    assert_eq!(proxy.reason().await, "the server's name is longer than 255 bytes");
}

#[tokio::test]
async fn a_dead_proxy_is_named() {
    let proxy = http(None, &[]).await;
    tokio::task::yield_now().await; // its listener is closed
    let (code, message) = proxy.open().await.unwrap_err();
    assert_eq!(code, NetErrorCode::Refused);
    assert!(
        message.starts_with("Cannot connect to proxy.example:443 via proxy 127.0.0.1:PORT: Connection refused"),
        "{message}"
    );
}
