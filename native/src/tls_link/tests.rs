//! Two sessions whose bytes are passed on by hand, and one against a hostile peer.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::frame::{put, put_data_header, Control, Parser, Settings, MAX_DATA};
use super::session::{Config, Ended, Peer, Session};
use super::stream::{RecvHalf, SendHalf};
use crate::error::NetErrorCode;

const WINDOW: u32 = 64 << 10;
const CONFIG: Config = Config {
    keep_alive: None,
    idle_timeout: None,
    streams: 4,
    stream_window: WINDOW,
    session_window: 0,
};

type Halves = (RecvHalf, SendHalf);

struct Pair {
    client: Arc<Session>,
    server: Arc<Session>,
    to_client: Parser,
    to_server: Parser,
}

/// All that the session sends now.
fn sent(session: &Session) -> Vec<u8> {
    let mut bytes = Vec::new();
    while session.has_more() {
        let batch = session.next(MAX_DATA);
        for piece in &batch.pieces {
            bytes.extend_from_slice(&piece.frames);
            bytes.extend_from_slice(&piece.data);
        }
        session.batch_written(&batch);
    }
    bytes
}

impl Pair {
    fn new(config: Config) -> Self {
        let session = |is_client| Session::new(config.clone(), Peer::default(), is_client);
        let mut pair = Self {
            client: session(true),
            server: session(false),
            to_client: Parser::default(),
            to_server: Parser::default(),
        };
        pair.exchange();
        pair
    }

    /// Passes bytes on until neither side has more.
    fn exchange(&mut self) {
        loop {
            let (up, down) = (sent(&self.client), sent(&self.server));
            if up.is_empty() && down.is_empty() {
                return;
            }
            self.server.receive(&mut self.to_server, &up).unwrap();
            self.client.receive(&mut self.to_client, &down).unwrap();
        }
    }

    async fn open(&mut self) -> (Halves, Halves) {
        let here = self.client.open().await.unwrap();
        self.exchange();
        (here, self.server.accept().await.unwrap())
    }

    /// Runs `work` while bytes are passed on.
    async fn during<T>(&mut self, work: impl std::future::Future<Output = T>) -> T {
        tokio::pin!(work);
        for _ in 0..10_000 {
            tokio::select! {
                biased;
                result = &mut work => return result,
                () = tokio::task::yield_now() => self.exchange(),
            }
        }
        panic!("it does not end");
    }
}

async fn is_pending(work: impl std::future::Future) -> bool {
    timeout(Duration::ZERO, work).await.is_err()
}

async fn read_all(reader: &mut RecvHalf) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = reader.read(usize::MAX).await.unwrap() {
        all.extend_from_slice(&data);
    }
    all
}

#[tokio::test]
async fn each_direction_carries_its_data_and_ends_on_its_own() {
    let mut pair = Pair::new(CONFIG);
    let ((mut a_reader, mut a_writer), (mut b_reader, mut b_writer)) = pair.open().await;
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let sending = async {
        a_writer.write(Bytes::copy_from_slice(&data)).await.unwrap();
        a_writer.finish().await.unwrap();
    };
    let ((), got) = pair.during(async { tokio::join!(sending, read_all(&mut b_reader)) }).await;
    assert!(got == data);
    b_writer.write(Bytes::from_static(b"answer")).await.unwrap();
    b_writer.finish().await.unwrap();
    pair.exchange();
    assert_eq!(read_all(&mut a_reader).await, b"answer");
}

#[tokio::test]
async fn a_reset_comes_after_the_data_before_it_and_is_no_end() {
    let mut pair = Pair::new(CONFIG);
    let ((_reader, mut writer), (mut reader, _writer)) = pair.open().await;
    writer.write(Bytes::from_static(b"half of ")).await.unwrap();
    writer.reset(42);
    pair.exchange();
    assert_eq!(reader.read(100).await.unwrap().unwrap(), "half of ");
    for _ in 0..2 {
        let error = reader.read(100).await.unwrap_err();
        assert_eq!((error.code, error.app_code, error.remote), (NetErrorCode::Reset, Some(42), true));
    }
}

#[tokio::test]
async fn a_writer_hears_that_its_reader_has_stopped_even_while_it_waits() {
    let mut pair = Pair::new(CONFIG);
    let ((_reader, mut writer), (mut reader, _writer)) = pair.open().await;
    let stopped = writer.stopped();
    let write = writer.write(Bytes::from(vec![0; 4 * WINDOW as usize]));
    let stop = async {
        tokio::task::yield_now().await;
        reader.stop(7);
    };
    let (written, ()) = pair.during(async { tokio::join!(write, stop) }).await;
    assert_eq!(written.unwrap_err().app_code, Some(7));
    assert_eq!(stopped.await.code, NetErrorCode::Stopped);
}

#[tokio::test]
async fn a_lost_session_is_a_reset_of_its_streams_after_their_data() {
    let mut pair = Pair::new(CONFIG);
    let ((_r1, mut cut), (mut cut_reader, mut cut_writer)) = pair.open().await;
    let ((_r2, mut whole), (mut whole_reader, _w2)) = pair.open().await;
    cut.write(Bytes::from_static(b"cut")).await.unwrap();
    whole.write(Bytes::from_static(b"whole")).await.unwrap();
    whole.finish().await.unwrap();
    pair.exchange();
    pair.server.end(Ended::Lost("on purpose".into()), None);
    assert_eq!(read_all(&mut whole_reader).await, b"whole");
    assert_eq!(cut_reader.read(100).await.unwrap().unwrap(), "cut");
    assert_eq!(cut_reader.read(100).await.unwrap_err().code, NetErrorCode::Reset);
    assert_eq!(
        cut_writer.write(Bytes::from_static(b"x")).await.unwrap_err().code,
        NetErrorCode::Reset
    );
    assert!(pair.server.accept().await.is_none());
    assert!(pair.server.open().await.is_err());
}

#[tokio::test]
async fn a_reader_that_stands_still_holds_its_window_and_stops_no_other() {
    let mut pair = Pair::new(CONFIG);
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let ((reader, mut writer), far) = pair.open().await;
        let write = tokio::spawn(async move { writer.write(Bytes::from(vec![0; 1 << 20])).await });
        stuck.push((reader, write, far));
    }
    let ((_r, mut writer), (mut reader, _w)) = pair.open().await;
    let data = vec![1; 4 << 20];
    let sending = async {
        writer.write(Bytes::copy_from_slice(&data)).await.unwrap();
        writer.finish().await.unwrap();
    };
    let ((), got) = pair.during(async { tokio::join!(sending, read_all(&mut reader)) }).await;
    assert!(got == data);
    for (_, write, (far, _)) in &stuck {
        assert_eq!(far.stream().held(), u64::from(WINDOW));
        assert!(!write.is_finished());
        write.abort();
    }
}

#[tokio::test]
async fn streams_that_are_not_accepted_share_the_window_of_the_session() {
    let mut pair = Pair::new(Config {
        session_window: WINDOW,
        ..CONFIG
    });
    let mut writes = Vec::new();
    for _ in 0..3 {
        let (reader, mut writer) = pair.client.open().await.unwrap();
        let write = async move {
            let written = writer.write(Bytes::from(vec![0; WINDOW as usize])).await;
            (written, reader, writer)
        };
        writes.push(tokio::spawn(write));
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
        pair.exchange();
    }
    assert_eq!(writes.iter().filter(|write| write.is_finished()).count(), 1);
    pair.server.set_window(0);
    let all = async {
        for write in writes {
            write.await.unwrap().0.unwrap();
        }
    };
    pair.during(all).await;
}

#[tokio::test]
async fn a_stream_makes_room_for_another_once_it_is_over() {
    let mut pair = Pair::new(CONFIG);
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(pair.open().await);
    }
    assert_eq!(pair.client.peer_credit(), Some((0, WINDOW)));
    assert!(is_pending(pair.client.open()).await);
    let ((_reader, mut writer), (_far_reader, mut far_writer)) = open.pop().unwrap();
    writer.finish().await.unwrap();
    pair.exchange();
    assert!(is_pending(pair.client.open()).await, "the other direction is open");
    far_writer.reset(1);
    pair.exchange();
    drop(pair.client.open().await.unwrap());
}

#[tokio::test]
async fn a_reader_that_keeps_up_gets_a_larger_window() {
    let mut pair = Pair::new(CONFIG);
    let ((_r, mut writer), (mut reader, _w)) = pair.open().await;
    let before = reader.batch();
    let sending = writer.write(Bytes::from(vec![0; 4 << 20]));
    let reading = async {
        let mut got = 0;
        while got < 4 << 20 {
            got += reader.read(usize::MAX).await.unwrap().unwrap().len();
        }
    };
    let (written, ()) = pair.during(async { tokio::join!(sending, reading) }).await;
    written.unwrap();
    assert!(reader.batch() >= 4 * before, "{} after {before}", reader.batch());
}

/// Sends data and reads it on the other side. Returns the credit that the sender has then.
async fn move_data(pair: &mut Pair, (sender, writer): &mut Halves, reader: &mut RecvHalf, bytes: usize) -> u64 {
    let sending = writer.write(Bytes::from(vec![0; bytes]));
    let reading = async {
        let mut got = 0;
        while got < bytes {
            got += reader.read(usize::MAX).await.unwrap().unwrap().len();
        }
    };
    let (written, ()) = pair.during(async { tokio::join!(sending, reading) }).await;
    written.unwrap();
    pair.exchange();
    let credit = sender.stream().take_credit(u64::MAX);
    sender.stream().return_credit(credit);
    credit
}

#[tokio::test]
async fn bulk_data_has_less_credit_while_small_frames_of_other_streams_arrive() {
    const LARGE: u32 = 512 << 10;
    let mut pair = Pair::new(Config {
        stream_window: LARGE,
        ..CONFIG
    });
    pair.server.counters.add_round_trip(Duration::from_micros(1)); // a busy machine may have delayed all others
    let (mut bulk, (mut bulk_reader, _w1)) = pair.open().await;
    let (mut small, (mut small_reader, _w2)) = pair.open().await;
    let steps = [300, 500, 30, 300];
    let mut credit = Vec::new();
    for bytes in steps {
        credit.push(move_data(&mut pair, &mut bulk, &mut bulk_reader, bytes << 10).await);
    }
    assert_eq!(credit.iter().max(), Some(&u64::from(LARGE)), "nothing else arrives: {credit:?}");
    assert!(credit.iter().all(|credit| *credit > u64::from(LARGE / 2)), "{credit:?}");

    move_data(&mut pair, &mut small, &mut small_reader, 100).await;
    move_data(&mut pair, &mut bulk, &mut bulk_reader, LARGE as usize).await;
    for bytes in steps {
        let credit = move_data(&mut pair, &mut bulk, &mut bulk_reader, bytes << 10).await;
        assert!((16 << 10..=128 << 10).contains(&credit), "{credit}");
    }

    // the other stream carries bulk data too
    move_data(&mut pair, &mut small, &mut small_reader, 64 << 10).await;
    let credit = move_data(&mut pair, &mut bulk, &mut bulk_reader, 20 << 10).await;
    assert_eq!(credit, u64::from(LARGE));
}

#[tokio::test]
async fn a_chunk_that_is_reset_leaves_its_credit_to_others() {
    let mut pair = Pair::new(Config {
        session_window: WINDOW,
        ..CONFIG
    });
    for _ in 0..20 {
        let (reader, mut writer) = pair.client.open().await.unwrap();
        assert!(is_pending(writer.write(Bytes::from(vec![0; WINDOW as usize]))).await);
        drop(reader);
        writer.reset(1); // before it was sent
        pair.exchange();
        let (mut reader, mut writer) = pair.server.accept().await.unwrap();
        assert_eq!(reader.read(1).await.unwrap_err().app_code, Some(1));
        writer.reset(1);
        pair.exchange();
    }
}

#[tokio::test]
async fn code_and_reason_of_a_close_arrive() {
    let mut pair = Pair::new(CONFIG);
    pair.client.close(409, "closing old connection");
    pair.client.close(1, "later");
    pair.exchange();
    let ended = Ended::Closed {
        code: 409,
        reason: "closing old connection".into(),
    };
    assert_eq!((pair.server.ended(), pair.client.ended()), (Some(&ended), Some(&Ended::Local)));
    assert_eq!(pair.server.open().await.err().unwrap().app_code, Some(409));
}

// ---- a hostile peer

/// A peer that writes frames by hand.
struct Hostile {
    session: Arc<Session>,
    parser: Parser,
}

impl Hostile {
    /// A client of a session that has its settings.
    fn new() -> Self {
        let mut hostile = Self {
            session: Session::new(CONFIG, Peer::default(), false),
            parser: Parser::default(),
        };
        assert!(hostile.send(&[(0, Control::Settings(SETTINGS))]));
        hostile
    }

    /// Whether the frames are allowed. If not, the session has ended, and the peer is told.
    fn send(&mut self, frames: &[(u32, Control)]) -> bool {
        let mut bytes = Vec::new();
        frames.iter().for_each(|(stream, frame)| put(&mut bytes, *stream, frame));
        self.bytes(&bytes)
    }

    fn data(&mut self, stream: u32, length: usize) -> bool {
        let mut bytes = Vec::new();
        put_data_header(&mut bytes, stream, length);
        bytes.resize(bytes.len() + length, 0);
        self.bytes(&bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> bool {
        let is_allowed = self.session.receive(&mut self.parser, bytes).is_ok();
        if !is_allowed {
            assert!(matches!(self.session.ended(), Some(Ended::Faulty { remote: false, .. })));
            let bytes = sent(&self.session);
            let (mut parser, mut bytes, mut last) = (Parser::default(), &bytes[..], None);
            while let Some(event) = parser.next(&mut bytes).unwrap() {
                last = Some(format!("{event:?}"));
            }
            assert!(last.unwrap().contains("Error"));
        }
        is_allowed
    }
}

const SETTINGS: Settings = Settings {
    streams: 4,
    stream_window: WINDOW,
    session_window: 1 << 20,
};

#[tokio::test]
async fn what_the_protocol_does_not_allow_ends_the_session() {
    use Control::*;
    let open = || (1, Open);
    let refused: Vec<Vec<(u32, Control)>> = vec![
        vec![(0, Settings(SETTINGS))],
        vec![(3, Open)],
        vec![(2, Open)],
        vec![open(), open()],
        vec![open(), (3, Open), (5, Open), (7, Open), (9, Open)],
        vec![(1, Fin)],
        vec![(2, Stop(1))],
        vec![(3, Credit(1))],
        vec![open(), (1, Fin), (1, Fin)],
        vec![open(), (1, Reset(1)), (1, Fin)],
        vec![open(), (1, Credit(0))],
        vec![(0, Credit(0))],
        vec![(0, Streams(0))],
    ];
    for frames in refused {
        assert!(!Hostile::new().send(&frames), "{frames:?}");
    }
    let mut early = Hostile {
        session: Session::new(CONFIG, Peer::default(), false),
        parser: Parser::default(),
    };
    assert!(!early.send(&[(0, Ping([0; 8]))]), "before its settings");
    for frame in [Credit(u32::MAX), Streams(u32::MAX)] {
        let mut much = Hostile::new();
        let stream = u32::from(matches!(frame, Credit(_)));
        assert!(much.send(&[open()]));
        for _ in 0..1_000 {
            much.session
                .receive(&mut much.parser, &{
                    let mut bytes = Vec::new();
                    put(&mut bytes, stream, &frame);
                    bytes
                })
                .ok();
        }
        assert_eq!(much.session.ended().is_some(), stream == 1, "credit has a bound");
    }
}

#[tokio::test]
async fn more_data_than_credit_ends_the_session() {
    let mut hostile = Hostile::new();
    assert!(hostile.send(&[(1, Control::Open)]));
    assert!(hostile.data(1, WINDOW as usize));
    assert!(!hostile.data(1, 1));
    let mut many = Hostile::new();
    many.session.set_window(1); // what was granted before stays
    for stream in [1, 3, 5, 7] {
        assert!(many.send(&[(stream, Control::Open)]));
        assert!(many.data(stream, WINDOW as usize));
    }
}

#[tokio::test]
async fn data_after_an_end_is_refused_and_data_of_a_stream_that_is_over_is_ignored() {
    let mut hostile = Hostile::new();
    assert!(hostile.send(&[(1, Control::Open), (1, Control::Fin)]));
    assert!(!hostile.data(1, 1));
    let mut late = Hostile::new();
    assert!(late.send(&[(1, Control::Open), (1, Control::Fin)]));
    let (_reader, mut writer) = late.session.accept().await.unwrap();
    writer.reset(1);
    assert!(late.data(1, 100) && late.send(&[(1, Control::Stop(1)), (1, Control::Credit(5))]));
    // its bytes are given back: the session does not run out of credit
    for _ in 0..100 {
        assert!(late.data(1, 32 << 10));
        drop(sent(&late.session));
    }
}

#[tokio::test]
async fn tiny_frames_cost_little_more_than_they_carry() {
    let mut hostile = Hostile::new();
    assert!(hostile.send(&[(1, Control::Open)]));
    for _ in 0..WINDOW {
        assert!(hostile.data(1, 1));
    }
    let (mut reader, _writer) = hostile.session.accept().await.unwrap();
    let mut chunks = vec![Bytes::new(); 100];
    let count = reader.read_chunks(&mut chunks, usize::MAX).await.unwrap().unwrap();
    assert!(count <= 2 + WINDOW as usize / (4 << 10), "{count} allocations");
}

#[tokio::test]
async fn a_flood_of_pings_is_not_stored_and_ends_the_session() {
    let mut hostile = Hostile::new();
    drop(sent(&hostile.session));
    for n in 0..50u64 {
        assert!(hostile.send(&[(0, Control::Ping(n.to_be_bytes()))]));
    }
    let mut want = Vec::new();
    put(&mut want, 0, &Control::Pong(49u64.to_be_bytes()));
    assert_eq!(sent(&hostile.session), want, "the last is answered");
    let refused = (0..1_000u64).any(|n| !hostile.send(&[(0, Control::Ping(n.to_be_bytes()))]));
    assert!(refused);
}

#[tokio::test]
async fn streams_that_are_reset_at_once_use_up_the_limit_until_they_are_accepted() {
    let mut hostile = Hostile::new();
    for stream in [1, 3, 5, 7] {
        assert!(hostile.send(&[(stream, Control::Open), (stream, Control::Reset(1)), (stream, Control::Stop(1))]));
    }
    drop(hostile.session.accept().await.unwrap()); // dropping the halves does not end them: their owner does
    assert!(!hostile.send(&[(9, Control::Open)]));
}
