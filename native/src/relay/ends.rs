//! How a splice ends: the events of both directions and both sides, and their consequences.
use crate::error::NetError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    A,
    B,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

pub enum CopyError {
    /// The source failed: the data is incomplete.
    Read(NetError),
    /// The sink failed.
    Write(NetError),
}

/// How a splice ended.
pub enum End {
    /// Both directions have ended gracefully.
    Complete,
    /// The peer of this side closed the stream: its direction has ended and it stopped reading, which is not an error.
    Closed(Side),
    Broken(NetError, Option<Side>),
}

/// The state of both sides while a splice runs.
#[derive(Default)]
pub struct TunnelEnds {
    /// Directions that have ended, by their source.
    pub done: [bool; 2],
    /// Why a side stopped reading although nothing was being written to it.
    pub stopped: [Option<NetError>; 2],
    /// The first sink that failed.
    failed: Option<(NetError, Side)>,
}

impl TunnelEnds {
    /// Records the end of a direction. Returns how the splice ended, if it has.
    pub fn ended(&mut self, from: Side, result: Result<(), CopyError>) -> Option<End> {
        self.done[from as usize] = true;
        let to = from.other();
        match result {
            Ok(()) => {}
            Err(CopyError::Read(error)) => return Some(self.broken(error, from)),
            // a peer that closed its stream does not miss what still arrived
            Err(CopyError::Write(error)) if error.is_close() && self.done[to as usize] && self.failed.is_none() => {
                return Some(End::Closed(to))
            }
            Err(CopyError::Write(error)) => self.failed = self.failed.take().or(Some((error, to))),
        }
        if self.done != [true, true] {
            return self.gone(from);
        }
        Some(match self.failed.take() {
            None => End::Complete,
            Some((error, side)) => End::Broken(error, Some(side)),
        })
    }

    /// Records that a side stopped reading. Returns how the splice ended, if it has.
    pub fn stopped(&mut self, side: Side, error: NetError) -> Option<End> {
        self.stopped[side as usize] = Some(error);
        self.gone(side)
    }

    /// A side that was reset and whose direction has ended neither sends nor receives.
    fn gone(&mut self, side: Side) -> Option<End> {
        let error = self.stopped[side as usize].as_ref()?;
        if !self.done[side as usize] || error.is_close() {
            return None;
        }
        let error = error.clone();
        Some(self.broken(error, side))
    }

    /// Whether the splice must end within the grace period.
    pub fn has_grace(&self) -> bool {
        let must_end = |side: Side| {
            let done = self.done[side as usize];
            self.stopped[side as usize].as_ref().is_some_and(|error| done || !error.is_close())
        };
        self.failed.is_some() || must_end(Side::A) || must_end(Side::B)
    }

    pub fn after_grace(&mut self) -> End {
        let [a, b] = std::mem::take(&mut self.stopped).map(|stopped| stopped.filter(|error| !error.is_close()));
        let first = self
            .failed
            .take()
            .or(a.map(|error| (error, Side::A)))
            .or(b.map(|error| (error, Side::B)));
        match first {
            Some((error, side)) => End::Broken(error, Some(side)),
            None if self.done[Side::A as usize] => End::Closed(Side::A),
            None => End::Closed(Side::B),
        }
    }

    /// The first failure is the reason.
    fn broken(&mut self, error: NetError, side: Side) -> End {
        let (error, side) = self.failed.take().unwrap_or((error, side));
        End::Broken(error, Some(side))
    }
}
