//! A short run of every target with a fixed seed, without libFuzzer: the seeds, among them inputs that once failed, and mutations of them.
#[path = "../targets/mod.rs"]
mod targets;

use std::path::Path;

/// xorshift64* of Vigna: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(6) {
            let at = self.below(bytes.len() + 1);
            let end = (at + self.below(8)).min(bytes.len());
            match self.below(5) {
                0 => bytes.insert(at, self.below(256) as u8),
                1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                2 => drop(bytes.drain(at..end)),
                3 => bytes.extend_from_within(at..end),
                _ => bytes.insert(at, b"\r\n\t :\0\x01[]%"[self.below(10)]),
            }
        }
    }
}

fn run(name: &str, target: fn(&[u8]), runs: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let seeds: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| target(seed));
    let mut random = Random(9112);
    for _ in 0..runs {
        let mut input = seeds[random.below(seeds.len())].clone();
        random.mutate(&mut input);
        // a panic names the place; this names the input
        let outcome = std::panic::catch_unwind(|| target(&input));
        assert!(outcome.is_ok(), "{name} fails with {input:?}");
    }
}

#[test]
fn a_head_ends_where_it_should_however_it_comes() {
    run("heads", targets::heads, 20_000);
}

#[test]
fn a_header_of_the_proxy_protocol_is_read_to_its_end() {
    run("proxy_headers", targets::proxy_headers, 20_000);
}

#[test]
fn a_client_hello_has_one_server_name_however_it_comes() {
    run("client_hellos", targets::client_hellos, 10_000);
}

#[test]
fn the_first_messages_of_a_socks_client_are_read_to_their_ends() {
    run("socks_handshakes", targets::socks_handshakes, 20_000);
}

#[test]
fn the_header_of_a_socks_datagram_ends_before_its_payload() {
    run("socks_datagrams", targets::socks_datagrams, 20_000);
}

#[test]
fn der_is_used_or_refused_with_a_sentence() {
    run("der", targets::der, 1_000);
}

#[test]
fn pins_names_and_addresses_are_read_or_refused() {
    run("names", targets::names, 10_000);
}

#[test]
fn a_modified_certificate_is_never_accepted() {
    run("certificates", targets::certificates, 300);
}

#[test]
fn no_side_reads_what_the_other_did_not_write() {
    run("handshakes", targets::handshakes, 300);
}

#[test]
fn an_outbound_proxy_learns_and_shows_nothing_that_it_should_not() {
    run("outbound_proxy", targets::outbound_proxy, 5_000);
}

#[test]
fn a_hostile_peer_of_a_tls_link_neither_fills_the_memory_nor_confuses_the_session() {
    run("tls_link_frames", targets::tls_link_frames, 20_000);
}

#[test]
fn capsules_are_read_alike_however_they_arrive() {
    run("capsules", targets::capsules, 20_000);
}

#[test]
fn a_hop_passes_on_datagrams_and_the_rest_unchanged() {
    run("datagrams", targets::datagrams, 20_000);
}

#[test]
fn a_head_of_http2_becomes_one_head() {
    run("http2_heads", targets::http2_heads, 20_000);
}

#[test]
fn frames_of_a_websocket_are_read_alike_however_they_arrive() {
    run("websocket_frames", targets::websocket_frames, 20_000);
}

#[test]
fn a_peer_with_the_keys_of_a_tls_link_gets_no_further_with_records_than_rustls_allows() {
    run("tls_link_records", targets::tls_link_records, 300);
}
