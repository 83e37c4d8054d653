//! Heads and PROXY protocol headers, which end at the same place however their bytes arrive.
use bytes::Bytes;
use reverse_http_native::fuzzing::{parse_proxy_header, HeadScanner, NetErrorCode, ProxyHeader};

use super::input::Input;

/// A limit, how the bytes are split, and the bytes.
pub fn heads(data: &[u8]) {
    let mut input = Input(data);
    let (limit, pattern) = (input.number() % 2_048, usize::from(input.byte()));
    let text = input.0;
    let whole = scan(text, limit, |_| text.len().max(1));
    let single = scan(text, limit, |_| 1);
    let split = scan(text, limit, |i| 1 + (i * 31 + pattern) % (pattern + 1));
    for other in [&single, &split] {
        match (&whole, other) {
            // which of two errors is found first may differ
            (Err(_), Err(code)) => assert!(
                matches!(*code, NetErrorCode::HeadTooLarge | NetErrorCode::HeadMalformed),
                "{code:?}"
            ),
            _ => assert_eq!(&whole, other, "it matters how the bytes come"),
        }
    }
    assert_eq!(whole.as_ref().ok(), by_definition(text, limit).as_ref());
    check_with_httparse(text);
}

type Found = Option<(Vec<u8>, Vec<u8>)>;

fn scan(text: &[u8], limit: usize, size: impl Fn(usize) -> usize) -> Result<Found, NetErrorCode> {
    let mut scanner = HeadScanner::new(limit);
    let mut left = text;
    for i in 0.. {
        if left.is_empty() {
            return Ok(None);
        }
        let (part, rest) = left.split_at(size(i).min(left.len()));
        left = rest;
        match scanner.push(Bytes::copy_from_slice(part)) {
            Ok(None) => {}
            Ok(Some((head, behind))) => return Ok(Some((head.to_vec(), [&behind[..], left].concat()))),
            Err(error) => return Err(error.code),
        }
    }
    unreachable!()
}

/// Where httparse accepts a request or a response, the head ends at the same byte: a server behind the proxy cannot take the rest for
/// something else. Where it waits for more, there is no end yet.
fn check_with_httparse(text: &[u8]) {
    let found = scan(text, text.len() + 1, |_| text.len().max(1));
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let request = httparse::Request::new(&mut fields).parse(text);
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let response = httparse::Response::new(&mut fields).parse(text);
    for parsed in [request, response] {
        match parsed {
            Ok(httparse::Status::Complete(end)) => assert_eq!(found.as_ref().map(behind), Ok(Some(text.len() - end))),
            Ok(httparse::Status::Partial) => assert!(!matches!(found, Ok(Some(_))), "httparse waits for more"),
            Err(_) => {}
        }
    }
}

/// How many bytes follow the head.
fn behind(found: &Found) -> Option<usize> {
    found.as_ref().map(|(_, rest)| rest.len())
}

/// A second implementation of [`HeadScanner`]; `None` for an error.
fn by_definition(text: &[u8], limit: usize) -> Option<Found> {
    let start = text.iter().position(|b| !b"\r\n".contains(b)).unwrap_or(text.len());
    let bytes = &text[start..];
    let limit = limit.saturating_sub(start);
    let is_end = |i: &usize| {
        let line = bytes[..*i].strip_suffix(b"\n").map(|line| {
            let carriages = line.iter().rev().take_while(|b| **b == b'\r').count();
            &line[..line.len() - carriages]
        });
        line.is_some_and(|line| line.ends_with(b"\n"))
    };
    let end = (1..=bytes.len()).find(is_end);
    let read = &bytes[..end.unwrap_or(bytes.len())];
    if read.iter().any(|b| (*b < 0x20 && !b"\r\n\t".contains(b)) || *b == 0x7f) || read.len() > limit || (limit == 0 && !text.is_empty()) {
        return None;
    }
    Some(end.map(|end| (bytes[..end].to_vec(), bytes[end..].to_vec())))
}

/// A PROXY protocol header is read to its end and no further, however it is split.
pub fn proxy_headers(data: &[u8]) {
    let take = |step: usize| {
        let mut taken = 0;
        loop {
            match parse_proxy_header(&data[..taken]) {
                ProxyHeader::Needs(0) => panic!("it needs nothing, and goes on"),
                ProxyHeader::Needs(_) if taken == data.len() => return (taken, None),
                ProxyHeader::Needs(n) => taken += n.min(step).min(data.len() - taken),
                header => return (taken, Some(header)),
            }
        }
    };
    let (whole, single) = (take(usize::MAX), take(1));
    assert!(whole.0 <= 4_096, "a header has an end");
    match (&whole.1, &single.1) {
        (Some(ProxyHeader::Complete(_)), _) | (_, Some(ProxyHeader::Complete(_))) => {
            assert_eq!(whole, single, "it matters how the bytes come")
        }
        (one, other) => assert_eq!(one, other),
    }
}
