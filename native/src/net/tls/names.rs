//! Names the subject and the issuer of a certificate that is not accepted: an inspecting middlebox has an authority of its own, whose
//! name shows what has answered. Unknown attributes are left out.
use rustls::pki_types::CertificateDer;

/// Longest name in characters.
const MAX_NAME: usize = 128;
/// Maximum number of attributes of a name that are read.
const MAX_ATTRIBUTES: usize = 16;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const BMP_STRING: u8 = 0x1e;
/// UTF8String, PrintableString, TeletexString, IA5String
const STRINGS: [u8; 4] = [0x0c, 0x13, 0x14, 0x16];

/// `it is for "CN=proxy.example" and issued by "CN=Corporate CA, O=Example"`; `None` for a certificate that cannot be read.
pub fn describe(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(format!(
        "it is for {:?} and issued by {:?}",
        name(certificate.subject()),
        name(certificate.issuer())
    ))
}

/// The attributes that people know, as in RFC 4514 but without escapes; the text is for people only.
fn name(der: &[u8]) -> String {
    let text = attributes(der).join(", ");
    match text.char_indices().nth(MAX_NAME) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Reads a Name (RFC 5280 §4.1.2.4) without its outer SEQUENCE.
fn attributes(mut der: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while let Some((SET, mut set)) = take(&mut der) {
        while let Some((SEQUENCE, mut attribute)) = take(&mut set) {
            if found.len() == MAX_ATTRIBUTES {
                return found;
            }
            let (Some((OBJECT_IDENTIFIER, id)), Some(value)) = (take(&mut attribute), take(&mut attribute)) else {
                continue;
            };
            if let (Some(label), Some(value)) = (label(id), string(value)) {
                found.push(format!("{label}={value}"));
            }
        }
    }
    found
}

fn label(id: &[u8]) -> Option<&'static str> {
    match id {
        [0x55, 0x04, 0x03] => Some("CN"),
        [0x55, 0x04, 0x06] => Some("C"),
        [0x55, 0x04, 0x0a] => Some("O"),
        [0x55, 0x04, 0x0b] => Some("OU"),
        _ => None,
    }
}

fn string((tag, value): (u8, &[u8])) -> Option<String> {
    if tag == BMP_STRING {
        let units = value.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
        return Some(
            char::decode_utf16(units)
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
        );
    }
    STRINGS.contains(&tag).then(|| String::from_utf8_lossy(value).into_owned())
}

/// Takes the next element of DER, with a length of at most two bytes.
fn take<'a>(der: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&length, rest) = rest.split_first()?;
            (usize::from(length), rest)
        }
        0x82 => {
            let (&length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(length)), rest)
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    *der = rest;
    Some((tag, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: u8, value: &[u8]) -> Vec<u8> {
        let mut der = vec![tag];
        match u16::try_from(value.len()).unwrap().to_be_bytes() {
            [0, length @ 0..=0x7f] => der.push(length),
            [0, length] => der.extend([0x81, length]),
            length => der.extend([&[0x82], &length[..]].concat()),
        }
        der.extend(value);
        der
    }

    fn attribute(id: u8, tag: u8, value: &[u8]) -> Vec<u8> {
        let content = [element(OBJECT_IDENTIFIER, &[0x55, 0x04, id]), element(tag, value)].concat();
        element(SET, &element(SEQUENCE, &content))
    }

    #[test]
    fn known_attributes_are_read_in_order() {
        let der = [
            attribute(0x03, 0x0c, "Prüf-CA".as_bytes()),
            attribute(0x08, 0x0c, b"a state is left out"),
            attribute(0x0a, 0x13, b"Example"),
            attribute(0x0b, BMP_STRING, &[0x00, b'I', 0x00, b'T']),
        ];
        assert_eq!(name(&der.concat()), "CN=Prüf-CA, O=Example, OU=IT");
    }

    #[test]
    fn names_are_bounded() {
        assert_eq!(name(&attribute(0x03, 0x0c, &[b'a'; 5_000])).chars().count(), MAX_NAME + 1);
        let many = attribute(0x03, 0x0c, b"").repeat(1_000);
        assert_eq!(attributes(&many).len(), MAX_ATTRIBUTES);
    }

    #[test]
    fn damaged_names_are_read_as_far_as_possible() {
        let whole = [attribute(0x03, 0x0c, b"first"), attribute(0x0a, 0x0c, &[b'b'; 200])].concat();
        for end in 0..whole.len() {
            assert!(["", "CN=first"].contains(&name(&whole[..end]).as_str()), "{end}");
        }
        assert_eq!(name(&[SET, 0x84, 0xff, 0xff, 0xff, 0xff]), "");
        assert_eq!(name(&attribute(0x03, 0x0c, &[0xff])), "CN=\u{fffd}");
    }

    #[test]
    fn unprintable_characters_are_escaped() {
        assert_eq!(
            format!("{:?}", name(&attribute(0x03, 0x0c, b"a\n\x1b[31m"))),
            r#""CN=a\n\u{1b}[31m""#
        );
    }
}
