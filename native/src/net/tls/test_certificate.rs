//! A certificate for tests.
use super::{ClientTls, Der, ServerTls};

/// Ed25519, for the name `a`, valid until 2126.
const CERTIFICATE: &str =
    "3082010a3081bda003020102021412db8958de03c05ea7446cdfd768c01b3ed6ff38300506032b6570300c310a300806035504030c0161302017\
    0d3236313133303033303834355a180f32313236313130363033303834355a300c310a300806035504030c0161302a300506032b6570032100d0\
    148857a7e48176d09005f36f2c195bcb1c7c54a896fff3b6d6f9c8054f3a30a32f302d300c0603551d1104053003820161301d0603551d0e0416\
    041460d4198561b54b3f853a6cd8871678f84803b82e300506032b657003410042ba0c8ef787acd569cc77705ee2428d4316365306de04894058\
    dff5a3f12bc826f075fca94e2ea2d008678abf51e447192eb95d4af4413c722e245e957fd60c";
const KEY: &str = "302e020100300506032b657004220420bd4ebfa8f4a98c5af85c21ec94485136d8efac3b1acda958410c9b94f6a8dd6c";

fn der(hex: &str) -> Der {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    Der((0..hex.len()).step_by(2).map(byte).collect())
}

pub fn server_tls() -> ServerTls {
    ServerTls {
        cert: vec![der(CERTIFICATE)],
        key: der(KEY),
        ..Default::default()
    }
}

pub fn client_tls() -> ClientTls {
    ClientTls {
        insecure_skip_verify: Some(true),
        ..Default::default()
    }
}
