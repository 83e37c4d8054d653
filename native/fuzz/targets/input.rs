//! Reads an input as instructions.

/// Consumes an input; zeros after its end.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes `bytes` in one place, or leaves them unchanged.
    pub fn edit(&mut self, bytes: &mut Vec<u8>) {
        let (kind, at, n) = (self.byte(), self.number() % (bytes.len() + 1), usize::from(self.byte()));
        let end = (at + n).min(bytes.len());
        match kind % 8 {
            0 if at < bytes.len() => bytes[at] = n as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << (n % 8),
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..at, self.take(n).to_vec())),
            4 => drop(bytes.splice(at..end, self.take(n).to_vec())),
            5 => bytes.truncate(at),
            6 => bytes.extend_from_within(at..end),
            _ => {}
        }
    }
}
