//! Connection ids with a generation, which identifies one of the processes that have, or had, a socket.
use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator, InvalidCid};

/// Length of a connection id: the generation, then an id that its key verifies.
const CID_LEN: usize = 9;
/// Packets of long header (RFC 9000 §17.2), and of these Initial ones.
const LONG_HEADER: u8 = 0x80;
const LONG_TYPE: u8 = 0x30;

/// Generates connection ids that name a generation.
pub struct GenerationalIds {
    generation: u8,
    ids: HashedConnectionIdGenerator,
}

impl GenerationalIds {
    pub fn new(generation: u8, key: u64) -> Self {
        Self {
            generation,
            ids: HashedConnectionIdGenerator::from_key(key),
        }
    }
}

impl ConnectionIdGenerator for GenerationalIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [self.generation; CID_LEN];
        id[1..].copy_from_slice(&self.ids.generate_cid());
        ConnectionId::new(&id)
    }

    /// Those of other generations, too: they may be of a process that has ended, whose peers are told by a stateless reset.
    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        match cid.len() {
            CID_LEN => self.ids.validate(&ConnectionId::new(&cid[1..])),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// The generation of the process that has chosen the packet's destination id. `None` for the first packets of a connection, whose client has
/// chosen it, and for those with a token: it is valid in each process.
pub fn generation_of(packet: &[u8], key: u64) -> Option<u8> {
    let first = *packet.first()?;
    if first & LONG_HEADER == 0 {
        return packet.get(1).copied();
    }
    // RFC 8999 §5.1: version, then the ids with their lengths
    let (length, rest) = packet.get(5..)?.split_first()?;
    let id = rest.get(..CID_LEN).filter(|_| usize::from(*length) == CID_LEN)?;
    let ids = GenerationalIds::new(0, key);
    ids.validate(&ConnectionId::new(id)).ok()?;
    if first & LONG_TYPE == 0 {
        let (source, rest) = rest[CID_LEN..].split_first()?;
        let has_token = *rest.get(usize::from(*source))? != 0;
        if has_token {
            return None;
        }
    }
    Some(id[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u64 = 7;

    fn short(generation: u8) -> Vec<u8> {
        let mut packet = vec![0x40];
        packet.extend_from_slice(&GenerationalIds::new(generation, KEY).generate_cid());
        packet.push(0);
        packet
    }

    fn long(first: u8, id: &[u8], token: &[u8]) -> Vec<u8> {
        let mut packet = vec![first, 0, 0, 0, 1, id.len() as u8];
        packet.extend_from_slice(id);
        packet.extend_from_slice(&[2, 9, 9, token.len() as u8]);
        packet.extend_from_slice(token);
        packet
    }

    #[test]
    fn only_ids_that_a_process_has_chosen_name_its_generation() {
        let id = GenerationalIds::new(3, KEY).generate_cid();
        let other = GenerationalIds::new(3, KEY + 1).generate_cid();
        assert_eq!(generation_of(&short(3), KEY), Some(3));
        assert_eq!(generation_of(&long(0xe0, &id, b""), KEY), Some(3), "Handshake");
        assert_eq!(generation_of(&long(0xc0, &id, b""), KEY), Some(3), "the second Initial");
        assert_eq!(generation_of(&long(0xc0, &id, b"t"), KEY), None, "after a Retry");
        assert_eq!(generation_of(&long(0xc0, &other, b""), KEY), None, "chosen by the client");
        assert_eq!(generation_of(&long(0xc0, &[3; 20], b""), KEY), None);
        for length in 0..15 {
            assert_eq!(generation_of(&long(0xc0, &id, b"")[..length], KEY), None);
        }
        assert!(GenerationalIds::new(0, KEY).validate(&id).is_ok() && GenerationalIds::new(3, KEY).validate(&other).is_err());
    }
}
