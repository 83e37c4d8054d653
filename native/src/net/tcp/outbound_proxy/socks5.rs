//! SOCKS 5 (RFC 1928), and its authentication by user name and password (RFC 1929).
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{lost, Failure, OutboundProxy};
use crate::net::address::parse_literal;

/// Asks for a tunnel to a server. Returns why that fails.
pub async fn request<S>(stream: &mut S, proxy: &OutboundProxy, host: &str, port: u16) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let methods: &[u8] = match proxy.username {
        Some(_) => &[5, 2, 0, 2],
        None => &[5, 1, 0],
    };
    stream.write_all(methods).await.map_err(lost)?;
    match (read(stream).await?, &proxy.username) {
        ([5, 0], _) => {}
        ([5, 2], Some(username)) => authenticate(stream, username, proxy.password.as_deref().unwrap_or_default()).await?,
        ([5, _], None) => {
            return Err("the proxy needs a user name and a password, or another authentication"
                .to_owned()
                .into())
        }
        ([5, _], Some(_)) => return Err("the proxy accepts no authentication by user name and password".into()),
        _ => return Err("the proxy does not speak SOCKS 5".into()),
    }
    let mut request = vec![5, 1, 0];
    match parse_literal(host).map(|address| address.ip()) {
        Some(IpAddr::V4(ip)) => {
            request.push(1);
            request.extend(ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            request.push(4);
            request.extend(ip.octets());
        }
        None => {
            request.push(3);
            put_text(&mut request, host, "the server's name")?;
        }
    }
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await.map_err(lost)?;
    let [version, reply, _, kind] = read(stream).await?;
    match (version, reply) {
        (5, 0) => {}
        (5, code) => return Err(format!("the proxy answers {code}: {}", describe(code)).into()),
        _ => return Err("the proxy does not speak SOCKS 5".into()),
    }
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(read::<_, 1>(stream).await?[0]),
        _ => return Err(format!("the proxy answers with an address of type {kind}").into()),
    };
    let mut bound = vec![0; length + 2];
    stream.read_exact(&mut bound).await.map_err(lost)?;
    Ok(())
}

async fn authenticate<S>(stream: &mut S, username: &str, password: &str) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = vec![1];
    put_text(&mut request, username, "the user name")?;
    put_text(&mut request, password, "the password")?;
    stream.write_all(&request).await.map_err(lost)?;
    let [_, status] = read(stream).await?;
    let rejected = || Failure::Credentials("the proxy rejects the user name or the password".into());
    (status == 0).then_some(()).ok_or_else(rejected)
}

/// Appends a text after its length, which is one byte.
fn put_text(to: &mut Vec<u8>, text: &str, what: &str) -> Result<(), String> {
    let length = u8::try_from(text.len()).map_err(|_| format!("{what} is longer than 255 bytes"))?;
    to.push(length);
    to.extend(text.as_bytes());
    Ok(())
}

async fn read<S: AsyncRead + Unpin, const N: usize>(stream: &mut S) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.map_err(lost)?;
    Ok(bytes)
}

/// RFC 1928 §6.
fn describe(reply: u8) -> &'static str {
    match reply {
        1 => "general failure",
        2 => "its rules do not allow this connection",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "TTL expired",
        7 => "command not supported",
        8 => "address type not supported",
        _ => "unknown reply",
    }
}
