//! Heads of HTTP/2 in the form of HTTP/1.1, and back.
use bytes::Bytes;
use http::{Method, Request};
use reverse_http_native::fuzzing::{http2_body, http2_head, HeadScanner};

/// The content of a chunked body, whose parts have up to `step` bytes; `None` if it is malformed or not complete.
fn content(data: &[u8], step: usize) -> Option<(Vec<u8>, usize)> {
    let mut body = http2_body::Body::Chunked(Box::default());
    let (mut content, mut end) = (Vec::new(), None);
    for part in data.chunks(step) {
        let part = body.take(Bytes::copy_from_slice(part)).ok()?;
        content.extend_from_slice(&part.content);
        end = part.end;
    }
    end.map(|trailers| (content, trailers.len()))
}

/// Lines: a method, a target, fields. Whatever the `http` crate takes for valid becomes one head, which ends where it should and nowhere else;
/// and a response head keeps no field about a connection.
pub fn http2_heads(data: &[u8]) {
    assert_eq!(content(data, 1), content(data, data.len().max(1)));
    let _ = http2_head::response(data);
    let _ = http2_head::request(data);
    let mut lines = data.split(|byte| *byte == b'\n');
    let (method, target) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut builder = Request::builder().method(method).uri(target);
    let mut fields = 0;
    for line in lines.take(100) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        builder = builder.header(name, value.get(1..).unwrap_or_default());
        fields += 1;
    }
    let Ok(request) = builder.body(()) else { return };
    for has_body in [false, true] {
        let (head, _) = http2_head::request_head(&request, has_body);
        let Ok(Some((found, rest))) = HeadScanner::new(head.len()).push(head.clone()) else {
            panic!("a head without its end: {head:?}");
        };
        assert_eq!((&found, rest), (&head, Bytes::new()));
        let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        assert_eq!(line.iter().filter(|byte| **byte == b' ').count(), 2, "{head:?}");
        // a field is a line, cookies are one, and there may be Transfer-Encoding
        let count = head.iter().filter(|byte| **byte == b'\n').count();
        assert!(count <= fields + 3, "{head:?}");
        assert!(request.method() != Method::CONNECT || !head.windows(8).any(|part| part == b"chunked\r"));
    }
}
