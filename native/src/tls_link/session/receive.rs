//! Processes the frames of the peer. A violation of the protocol ends the session.
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::{Ended, Session, State, ID_STEP};
use crate::sync::lock;
use crate::tls_link::frame::{Control, Event, Parser, ProtocolError, Settings};
use crate::tls_link::stream::{add_credit, Stream};

/// Maximum number of PING and PONG frames per second.
const MAX_PINGS: u32 = 100;
/// Maximum number of frames per second for streams that have ended. A few per stream cross its end.
const MAX_LATE_FRAMES: u32 = 100_000;

/// Counts frames of one kind per second.
#[derive(Default)]
pub(super) struct FrameRate {
    since: Option<Instant>,
    count: u32,
}

impl FrameRate {
    /// Counts a frame. Returns whether there were more than `max` within a second.
    fn exceeds(&mut self, max: u32) -> bool {
        let now = Instant::now();
        match self.since {
            Some(since) if now.duration_since(since) < Duration::from_secs(1) => self.count += 1,
            _ => (self.since, self.count) = (Some(now), 1),
        }
        self.count > max
    }
}

impl Session {
    /// Processes decrypted bytes. After an error the session has ended.
    pub fn receive(&self, parser: &mut Parser, mut bytes: &[u8]) -> Result<(), ProtocolError> {
        let result = loop {
            if self.ended().is_some() {
                return Ok(());
            }
            match parser.next(&mut bytes) {
                Ok(None) => return Ok(()),
                Ok(Some(event)) => {
                    if let Err(error) = self.process(event) {
                        break error;
                    }
                }
                Err(error) => break error,
            }
        };
        let message = format!("protocol error: {}", result.0);
        let frame = Control::Error { reason: message.clone() };
        self.end(Ended::Faulty { message, remote: false }, Some(frame));
        Err(result)
    }

    fn process(&self, event: Event<'_>) -> Result<(), ProtocolError> {
        let (id, frame) = match event {
            Event::Data {
                stream,
                bytes,
                length,
                missing,
            } => return self.receive_data(stream, bytes, length, missing),
            Event::Control { stream, frame } => (stream, frame),
        };
        match frame {
            Control::Settings(settings) => return self.receive_settings(settings),
            Control::Close { code, reason } => {
                self.end(Ended::Closed { code, reason }, None);
                return Ok(());
            }
            Control::Error { reason } => {
                let ended = Ended::Faulty {
                    message: reason,
                    remote: true,
                };
                self.end(ended, None);
                return Ok(());
            }
            _ if self.settings.get().is_none() => return ProtocolError::new("the first frame is not SETTINGS"),
            Control::Ping(token) => return self.receive_ping(token),
            Control::Pong(token) => return self.receive_pong(token),
            Control::Streams(count) => return self.receive_streams(count),
            Control::Credit(bytes) if id == 0 => {
                let mut state = lock(&self.state);
                state.send_credit = add_credit(state.send_credit, bytes)?;
                state.wake_starved();
                return Ok(());
            }
            Control::Open => return self.receive_open(id),
            _ => {}
        }
        let Some(stream) = self.find(&mut lock(&self.state), id, true)? else {
            return Ok(());
        };
        let is_over = match frame {
            Control::Fin => stream.receive_fin()?,
            Control::Reset(code) => stream.receive_reset(code)?,
            Control::Stop(code) => {
                stream.receive_stop(code);
                false
            }
            Control::Credit(bytes) => {
                stream.receive_credit(bytes)?;
                false
            }
            _ => false, // handled above
        };
        if is_over {
            self.release(&stream);
        }
        Ok(())
    }

    fn receive_settings(&self, settings: Settings) -> Result<(), ProtocolError> {
        if self.settings.set(settings).is_err() {
            return ProtocolError::new("SETTINGS was sent twice");
        }
        lock(&self.state).send_credit = settings.session_window.into();
        self.opening.add_permits(settings.streams as usize);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Receives a part of a frame of `length` bytes, of which `missing` follow.
    fn receive_data(&self, id: u32, bytes: &[u8], length: usize, missing: usize) -> Result<(), ProtocolError> {
        let mut state = lock(&self.state);
        let stream = self.find(&mut state, id, false)?;
        if !state.window.received(bytes.len() as u64) {
            return ProtocolError::new("more data than credit of the session");
        }
        state.interactivity.record(id, length);
        drop(state);
        let discarded = match stream {
            Some(stream) => stream.receive_data(bytes, missing)?,
            None => bytes.len(),
        };
        self.consume(discarded);
        Ok(())
    }

    fn receive_ping(&self, token: [u8; 8]) -> Result<(), ProtocolError> {
        let mut state = lock(&self.state);
        if state.pings.exceeds(MAX_PINGS) {
            return ProtocolError::new("too many pings");
        }
        state.out.put_pong(token);
        state.pinged_by_peer = Some(Instant::now());
        drop(state);
        self.to_send.notify_one();
        Ok(())
    }

    fn receive_pong(&self, token: [u8; 8]) -> Result<(), ProtocolError> {
        let mut state = lock(&self.state);
        if state.pings.exceeds(MAX_PINGS) {
            return ProtocolError::new("too many pings");
        }
        let (number, sent_at) = &mut state.ping;
        let Some(sent_at) = sent_at.take_if(|_| number.to_be_bytes() == token) else {
            return Ok(()); // of an earlier ping
        };
        self.counters.add_round_trip(sent_at.elapsed());
        Ok(())
    }

    fn receive_streams(&self, count: u32) -> Result<(), ProtocolError> {
        let total = self.opening.available_permits().saturating_add(count as usize);
        if count == 0 || total > Semaphore::MAX_PERMITS / 2 {
            return ProtocolError::new(format!("STREAMS of {count}"));
        }
        self.opening.add_permits(count as usize);
        Ok(())
    }

    fn receive_open(&self, id: u32) -> Result<(), ProtocolError> {
        let window = self.settings.get().map_or(0, |settings| settings.stream_window);
        let mut state = lock(&self.state);
        if id != state.next_peer_id {
            return ProtocolError::new(format!("stream {id} is opened instead of {}", state.next_peer_id));
        }
        if state.peer_streams == 0 {
            return ProtocolError::new("more streams than allowed");
        }
        state.peer_streams -= 1;
        state.next_peer_id = id.checked_add(ID_STEP).unwrap_or(0);
        let stream = Stream::new(id, self.config.stream_window.into(), window.into());
        state.streams.insert(id, stream.clone());
        state.to_accept.push_back(stream);
        drop(state);
        self.opened.notify_waiters();
        Ok(())
    }

    /// The stream; `None` if it has ended, which is counted if `counts`.
    fn find(&self, state: &mut State, id: u32, counts: bool) -> Result<Option<Arc<Stream>>, ProtocolError> {
        if let Some(stream) = state.streams.get(&id) {
            return Ok(Some(stream.clone()));
        }
        let next = if self.is_own(id) { state.next_id } else { state.next_peer_id };
        if next != 0 && id >= next {
            return ProtocolError::new(format!("stream {id} is not open"));
        }
        if counts && state.late.exceeds(MAX_LATE_FRAMES) {
            return ProtocolError::new("too many frames for streams that have ended");
        }
        Ok(None)
    }
}
