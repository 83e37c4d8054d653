//! ClientHellos, in which the same server name is found however their bytes arrive, and the one that a server behind would find.
use std::net::IpAddr;

use reverse_http_native::fuzzing::HelloReader;

use super::input::Input;

/// Longest input: the listener reads no more.
const LIMIT: usize = 16 << 10;

#[derive(Debug, PartialEq)]
enum Outcome {
    Found(Option<String>),
    Incomplete,
    Invalid,
}

/// How the bytes are split, and the bytes.
pub fn client_hellos(data: &[u8]) {
    let mut input = Input(data);
    let pattern = usize::from(input.byte());
    let bytes = &input.0[..input.0.len().min(LIMIT)];
    let whole = read(bytes, |_| bytes.len());
    let single = read(bytes, |_| 1);
    let split = read(bytes, |i| 1 + (i * 31 + pattern) % (pattern + 1));
    for other in [&single, &split] {
        match (&whole, other) {
            // what follows the message in the same read makes it invalid
            (Outcome::Invalid, Outcome::Found(_)) => {}
            _ => assert_eq!(&whole, other, "it matters how the bytes come"),
        }
    }
    if let Outcome::Found(name) = single {
        assert_eq!(Some(name), by_definition(bytes), "a server would read another name");
    }
}

fn read(bytes: &[u8], size: impl Fn(usize) -> usize) -> Outcome {
    let mut reader = HelloReader::default();
    let mut left = bytes;
    for i in 0.. {
        if left.is_empty() {
            return Outcome::Incomplete;
        }
        let (part, rest) = left.split_at(size(i).min(left.len()));
        left = rest;
        match reader.push(part) {
            Ok(None) => {}
            Ok(Some(hello)) => {
                let name = hello.client_hello().server_name().map(str::to_owned);
                assert_eq!(reader.into_bytes(), bytes[..bytes.len() - left.len()], "every byte is kept");
                return Outcome::Found(name);
            }
            Err(invalid) => {
                assert!(invalid.alert.is_empty() || invalid.alert[0] == 21, "an alert");
                return Outcome::Invalid;
            }
        }
    }
    unreachable!()
}

/// The first `count` bytes, and the rest.
fn take(bytes: &[u8], count: usize) -> Option<(&[u8], &[u8])> {
    (bytes.len() >= count).then(|| bytes.split_at(count))
}

/// What follows a length of `size` bytes, and the rest.
fn vector(bytes: &[u8], size: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = take(bytes, size)?;
    take(rest, length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

/// The server name by RFC 8446 §4.1.2 and RFC 6066 §3, of a message that is valid otherwise; the outer `None` where it is not.
fn by_definition(bytes: &[u8]) -> Option<Option<String>> {
    let (mut message, mut left) = (Vec::new(), bytes);
    while let Some((22, (payload, rest))) = left.first().copied().zip(left.get(3..).and_then(|rest| vector(rest, 2))) {
        message.extend_from_slice(payload);
        left = rest;
    }
    let (body, _) = vector(message.get(1..)?, 3)?;
    let (_, rest) = take(body, 34)?; // version and random
    let (_, rest) = vector(rest, 1)?; // session id
    let (_, rest) = vector(rest, 2)?; // cipher suites
    let (_, rest) = vector(rest, 1)?; // compression methods
    let (mut extensions, _) = vector(rest, 2)?;
    while !extensions.is_empty() {
        let (kind, rest) = take(extensions, 2)?;
        let (value, rest) = vector(rest, 2)?;
        extensions = rest;
        if kind != [0, 0] {
            continue;
        }
        let (mut names, _) = vector(value, 2)?;
        while !names.is_empty() {
            let (kind, rest) = take(names, 1)?;
            let (name, rest) = vector(rest, 2)?;
            names = rest;
            let name = std::str::from_utf8(name).ok()?;
            if kind == [0] {
                let name = name.strip_suffix('.').unwrap_or(name); // the same name
                return Some((name.parse::<IpAddr>().is_err()).then(|| name.to_ascii_lowercase()));
            }
        }
    }
    Some(None)
}
