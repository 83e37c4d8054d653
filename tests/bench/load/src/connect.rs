//! How a client reaches the origin: through a proxy with CONNECT, or directly.
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than the 10 s that proxies wait for an agent, so that their answer is counted.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
const HEAD_LIMIT: usize = 8192;

/// How to reach the origin.
#[derive(Clone)]
pub struct Via {
    target: String,
    /// Address of the proxy, and the request that opens a tunnel.
    proxy: Option<(String, Vec<u8>)>,
}

impl Via {
    pub fn new(target: String, proxy: Option<String>, user: Option<String>) -> Self {
        let proxy = proxy.map(|address| {
            let authorization = match user {
                Some(user) => format!("Proxy-Authorization: Basic {}\r\n", base64(user.as_bytes())),
                None => String::new(),
            };
            (
                address,
                format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n").into_bytes(),
            )
        });
        Self { target, proxy }
    }

    /// Connects to the origin. The origin does not send first, so nothing may follow the proxy's head.
    pub async fn open(&self) -> Result<TcpStream, String> {
        timeout(OPEN_TIMEOUT, self.try_open())
            .await
            .map_err(|_| "open: timed out".to_string())?
    }

    async fn try_open(&self) -> Result<TcpStream, String> {
        let address = self.proxy.as_ref().map_or(&self.target, |(address, _)| address);
        let mut stream = TcpStream::connect(address)
            .await
            .map_err(|error| format!("connect: {}", error.kind()))?;
        stream.set_nodelay(true).map_err(|error| format!("connect: {}", error.kind()))?;
        if let Some((_, request)) = &self.proxy {
            stream
                .write_all(request)
                .await
                .map_err(|error| format!("request: {}", error.kind()))?;
            read_answer(&mut stream).await?;
        }
        Ok(stream)
    }
}

async fn read_answer(stream: &mut TcpStream) -> Result<(), String> {
    let mut head = Vec::with_capacity(512);
    loop {
        let count = stream
            .read_buf(&mut head)
            .await
            .map_err(|error| format!("answer: {}", error.kind()))?;
        if count == 0 {
            return Err("answer: ended before its blank line".into());
        }
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            let status = head.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
            return match (status, head.len() - end - 4) {
                (b"200", 0) => Ok(()),
                (b"200", _) => Err("answer: followed by bytes that the origin did not send".into()),
                _ => Err(format!("status {}", String::from_utf8_lossy(status))),
            };
        }
        if head.len() > HEAD_LIMIT {
            return Err("answer: too large".into());
        }
    }
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            out.push(if at > three.len() {
                '='
            } else {
                ALPHABET[(bits >> (18 - 6 * at)) as usize & 63] as char
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_pads_to_four() {
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
    }
}
