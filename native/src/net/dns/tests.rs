//! Queries against name servers that answer, fail or are silent.
use std::net::{IpAddr, Ipv4Addr};

use tokio::net::TcpListener;

use super::test_server::{code, dns, has, silent, Say, Server};
use super::*;
use crate::net::resolver::config::MAX_ADDRESSES;

/// The answers for a name, and the error.
async fn look_up(dns: &Dns) -> (Vec<String>, Option<String>) {
    let mut heard = Vec::new();
    let ended = query(dns, &AtomicUsize::new(0), "host.test", |family, answer| {
        heard.push(match answer {
            Answer::Addresses(ips, ttl) => {
                let ips = ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                format!("{family:?} {ips} {}", ttl.as_secs())
            }
            Answer::NoData(_) => format!("{family:?} none"),
            Answer::NxDomain(_) => "no name".into(),
        });
        true
    })
    .await;
    heard.sort();
    (heard, ended.err().map(|e| e.to_string()))
}

#[tokio::test]
async fn both_families_are_asked_for_side_by_side() {
    let server = Server::start(|_, family, _| match family {
        Family::V4 => has(&["192.0.2.1", "192.0.2.2", "192.0.2.1"]),
        Family::V6 => has(&["2001:db8::1"]),
    })
    .await;
    let (heard, ended) = look_up(&server.dns()).await;
    assert_eq!(heard, ["V4 192.0.2.1 192.0.2.2 60", "V6 2001:db8::1 60"]);
    assert_eq!((ended, server.asked().len()), (None, 2));
}

#[tokio::test]
async fn aliases_are_followed_to_their_end_and_no_further() {
    let server = Server::start(|_, family, _| match family {
        Family::V4 => Say {
            aliases: (0..8).map(|i| format!("alias-{i}.test")).collect(),
            ..has(&["192.0.2.1"])
        },
        // a loop
        Family::V6 => Say {
            aliases: vec!["alias.test".into(), "host.test".into(), "alias.test".into()],
            ..has(&["2001:db8::1"])
        },
    })
    .await;
    let (heard, ended) = look_up(&server.dns()).await;
    assert_eq!(heard, ["V4 192.0.2.1 60"]);
    assert_eq!(ended.as_deref(), Some("FORMERR"));
}

#[tokio::test]
async fn an_answer_that_is_too_long_comes_over_tcp() {
    let server = Server::start(|_, family, over_tcp| Say {
        truncated: true,
        addresses: match (family, over_tcp) {
            (Family::V4, true) => vec!["192.0.2.1".parse().unwrap()],
            _ => Vec::new(),
        },
        ..Say::default()
    })
    .await;
    let (heard, ended) = look_up(&server.dns()).await;
    assert_eq!(heard, ["V4 192.0.2.1 0", "V6 none"]);
    assert_eq!(ended, None);
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test]
async fn answers_without_end_are_cut() {
    let many: Vec<IpAddr> = (0..3_000_u32).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n).into()).collect();
    let server = Server::start(move |_, family, over_tcp| match (family, over_tcp) {
        (Family::V4, false) => Say {
            truncated: true,
            ..Say::default()
        },
        (Family::V4, true) => Say {
            addresses: many.clone(),
            ..Say::default()
        },
        (Family::V6, _) => code(Rcode::NXDOMAIN),
    })
    .await;
    let (heard, _) = look_up(&server.dns()).await;
    assert_eq!(heard[0].split(' ').count(), 2 + MAX_ADDRESSES);
}

#[tokio::test]
async fn responses_to_other_questions_are_ignored() {
    let server = Server::start(|_, family, _| Say {
        garbage: vec![Vec::new(), vec![0; 11], vec![0xff; 600], b"\0\0\x80\0\0\x01\0\x01\0\0\0\0".to_vec()],
        ..has(if family == Family::V4 { &["192.0.2.1"] } else { &["2001:db8::1"] })
    })
    .await;
    let (heard, ended) = look_up(&server.dns()).await;
    assert_eq!((heard.len(), ended), (2, None));
}

#[tokio::test]
async fn a_server_that_fails_refuses_or_is_not_there_is_followed_by_the_next() {
    let failing = Server::start(|_, _, _| code(Rcode::SERVFAIL)).await;
    let refusing = Server::start(|_, _, _| code(Rcode::REFUSED)).await;
    let gone = Server::start(|_, _, _| silent()).await.stop();
    let good = Server::start(|_, family, _| has(if family == Family::V4 { &["192.0.2.1"] } else { &[] })).await;
    for first in [failing.address, refusing.address, gone] {
        let (heard, ended) = look_up(&dns(&[first, good.address])).await;
        assert_eq!(heard, ["V4 192.0.2.1 60", "V6 none"]);
        assert_eq!(ended, None);
    }
    let (heard, ended) = look_up(&failing.dns()).await;
    assert_eq!((heard.len(), ended.as_deref()), (0, Some("SERVFAIL")));
}

#[tokio::test]
async fn a_silent_server_is_followed_by_the_next_which_is_the_first_from_then_on() {
    let mute = Server::start(|_, _, _| silent()).await;
    let good = Server::start(|_, _, _| has(&[])).await;
    let preferred = AtomicUsize::new(0);
    let dns = dns(&[mute.address, good.address]);
    for _ in 0..2 {
        query(&dns, &preferred, "host.test", |_, _| true).await.unwrap();
    }
    assert_eq!((mute.asked().len(), good.asked().len()), (2, 4));
}

#[tokio::test]
async fn an_answer_that_is_late_counts() {
    let server = Server::start(|_, _, _| Say {
        after: Duration::from_millis(300),
        ..has(&[])
    })
    .await;
    // the second query is pending by then
    let (heard, ended) = look_up(&server.dns()).await;
    assert_eq!((heard.len(), ended), (2, None));
}

#[tokio::test]
async fn a_slow_server_is_waited_for_though_the_last_one_is_not_there() {
    let slow = Server::start(|_, _, _| Say {
        after: Duration::from_millis(1_500),
        ..has(&[])
    })
    .await;
    let gone = Server::start(|_, _, _| silent()).await.stop();
    let dns = Dns {
        timeout: Duration::from_secs(5),
        attempts: 1,
        ..dns(&[slow.address, gone])
    };
    let (heard, ended) = look_up(&dns).await;
    assert_eq!((heard.len(), ended), (2, None));
}

#[tokio::test]
async fn a_timeout_is_reported_rather_than_an_unreachable_server() {
    let mute = Server::start(|_, _, _| silent()).await;
    let gone = Server::start(|_, _, _| silent()).await.stop();
    for servers in [[mute.address, gone], [gone, mute.address]] {
        let (_, ended) = look_up(&dns(&servers)).await;
        assert_eq!(ended.as_deref(), Some("no answer"));
    }
    let (_, ended) = look_up(&dns(&[gone])).await;
    assert!(ended.is_some_and(|why| why.contains("refused")));
}

#[tokio::test]
async fn a_server_that_truncates_over_tcp_too_is_followed_by_the_next() {
    let bad = Server::start(|_, _, _| Say {
        truncated: true,
        truncated_over_tcp: true,
        ..Say::default()
    })
    .await;
    let good = Server::start(|_, _, _| has(&[])).await;
    let (heard, ended) = look_up(&dns(&[bad.address, good.address])).await;
    assert_eq!((heard.len(), ended), (2, None));
    let (_, ended) = look_up(&bad.dns()).await;
    assert_eq!(ended.as_deref(), Some("FORMERR"));
}

#[tokio::test]
async fn a_server_that_is_silent_over_tcp_is_followed_by_the_next() {
    // the kernel accepts, but nothing responds
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let good = Server::start(|_, _, _| has(&[])).await;
    let dns = Dns {
        tcp_only: true,
        ..dns(&[mute.local_addr().unwrap(), good.address])
    };
    let (heard, ended) = look_up(&dns).await;
    assert_eq!((heard.len(), ended), (2, None));
}

#[tokio::test]
async fn invalid_names_are_not_queried() {
    let server = Server::start(|_, _, _| has(&[])).await;
    for bad in ["a..b", &"x".repeat(64), &["abcdefghi"; 30].join(".")] {
        let asked = query(&server.dns(), &AtomicUsize::new(0), bad, |_, _| true).await;
        assert!(matches!(asked, Err(Failure::BadName)), "{bad}");
    }
    assert_eq!(server.asked().len(), 0);
}
