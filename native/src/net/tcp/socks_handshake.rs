//! The first messages of a SOCKS 5 client, as far as they need no decision: the methods that it offers (RFC 1928 §3) and, if it offers a
//! password, its credentials (RFC 1929 §2). It does not verify them.
use bytes::{Bytes, BytesMut};

use crate::error::{NetError, NetErrorCode};
use crate::stream::Halves;

pub const VERSION: u8 = 5;
/// The method that asks for user name and password.
const PASSWORD: u8 = 2;
/// The version of the subnegotiation for user name and password.
const PASSWORD_VERSION: u8 = 1;

/// Where the methods that a client offers end in `data`; `None` until their number is known.
pub fn methods_end(data: &[u8]) -> Option<usize> {
    Some(2 + usize::from(*data.get(1)?))
}

/// Where credentials end in `data`; `None` until their lengths are known. Those of another version end after that.
pub fn credentials_end(data: &[u8]) -> Option<usize> {
    if *data.first()? != PASSWORD_VERSION {
        return Some(1);
    }
    let password = 2 + usize::from(*data.get(1)?);
    Some(password + 1 + usize::from(*data.get(password)?))
}

/// Adds the messages to `received`, one byte after the other, and leaves the rest in the stream. Selects the method if it is the password.
/// Returns false if the peer closed the stream without sending anything.
pub async fn read(stream: &mut Halves, received: &mut BytesMut) -> Result<bool, NetError> {
    let Ok(Some(data)) = stream.reader.read().await else {
        return Ok(false);
    };
    if let Some(first) = data.first().filter(|first| **first != VERSION) {
        return Err(other_protocol(*first));
    }
    stream.reader.prefix = data;
    read_message(stream, received, methods_end).await?;
    if !received[2..].contains(&PASSWORD) {
        return Ok(true);
    }
    stream.writer.write(Bytes::from_static(&[VERSION, PASSWORD])).await?;
    let methods = received.len();
    read_message(stream, received, |data| Some(methods + credentials_end(&data[methods..])?)).await?;
    Ok(true)
}

/// Adds bytes to `received` up to the end that `end_of` finds, and leaves the rest in the stream.
async fn read_message(stream: &mut Halves, received: &mut BytesMut, end_of: impl Fn(&[u8]) -> Option<usize>) -> Result<(), NetError> {
    loop {
        if let Some(end) = end_of(received).filter(|end| *end <= received.len()) {
            stream.reader.prefix = received.split_off(end).freeze();
            return Ok(());
        }
        match stream.reader.read().await? {
            Some(data) => received.extend_from_slice(&data),
            None => return Err(NetError::remote(NetErrorCode::HeadTruncated, "The stream ended within a message")),
        }
    }
}

fn other_protocol(first: u8) -> NetError {
    let message = match first {
        0x04 => "This is SOCKS 4, but this port accepts only SOCKS 5",
        0x16 => "This is TLS, but this port accepts only SOCKS 5",
        b'A'..=b'Z' => "This is HTTP, but this port accepts only SOCKS 5",
        _ => "This is not SOCKS 5",
    };
    NetError::remote(NetErrorCode::HeadMalformed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_where_their_lengths_say() {
        let methods = [5, 3, 0, 1, 2, 1];
        assert_eq!(methods_end(&methods[..1]), None);
        assert_eq!(methods_end(&methods), Some(5));
        assert_eq!(methods_end(&[5, 0]), Some(2));
        let credentials = [1, 2, b'i', b'd', 3, b'a', b'b', b'c', 5];
        for n in 0..5 {
            assert_eq!(credentials_end(&credentials[..n]), None, "{n} bytes");
        }
        assert_eq!(credentials_end(&credentials), Some(8));
        assert_eq!(credentials_end(&[1, 0, 0]), Some(3));
    }

    #[test]
    fn no_more_than_the_version_of_unknown_credentials_is_read() {
        assert_eq!(credentials_end(&[5]), Some(1));
        assert_eq!(credentials_end(&[]), None);
    }
}
