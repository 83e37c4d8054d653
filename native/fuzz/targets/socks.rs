//! The messages of SOCKS clients end at the same place however their bytes arrive, and soon; the headers of their datagrams do in any case.
use reverse_http_native::fuzzing::{credentials_end, header_end, methods_end};

/// Longest messages in bytes: the methods, and the credentials.
const LONGEST: [usize; 2] = [2 + 255, 1 + 2 * 256];

/// A message, and what follows it.
pub fn socks_handshakes(data: &[u8]) {
    let ends: [fn(&[u8]) -> Option<usize>; 2] = [methods_end, credentials_end];
    for (end_of, longest) in ends.into_iter().zip(LONGEST) {
        let mut found = None;
        for n in 0..=data.len().min(longest + 1) {
            let end = end_of(&data[..n]);
            assert!(end.is_none_or(|end| (1..=longest).contains(&end)), "it ends at {end:?}");
            assert!(found.is_none() || found == end, "it matters how the bytes come");
            found = end;
        }
        assert!(found.is_some() || data.len() < longest, "it has no end");
    }
}

/// Longest header of a datagram: one for a name.
const LONGEST_HEADER: usize = 4 + 1 + 255 + 2;

/// A datagram.
pub fn socks_datagrams(data: &[u8]) {
    let Some(end) = header_end(data) else { return };
    assert!((7..=LONGEST_HEADER.min(data.len())).contains(&end), "it ends at {end}");
    assert_eq!(header_end(&data[..end]), Some(end), "it matters what the payload is");
    assert_eq!(header_end(&data[..end - 1]), None, "a cut header is taken for one");
    assert_eq!(data[2], 0, "a fragment is taken for a whole datagram");
}
