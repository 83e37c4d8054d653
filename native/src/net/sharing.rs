//! Addresses at which several processes of a service listen (SO_REUSEPORT, docs/adr/0021-workers.md): the kernel distributes connections and
//! datagrams over them by the peer's address.
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use socket2::Socket;

/// This process among those that share its addresses.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// Where QUIC listeners receive datagrams of their connections that the others have read. Private to the user.
    pub directory: PathBuf,
    /// Of its connection ids. No other process that shares the addresses has it.
    pub generation: u8,
    /// No other process has the addresses yet.
    pub is_first: bool,
}

/// Binds a socket of `open` to an address that the processes of `sharing` may have, too. The first of them fails if any other process has it.
pub fn bind(sharing: Option<&Sharing>, address: SocketAddr, open: impl Fn() -> io::Result<Socket>) -> io::Result<Socket> {
    if sharing.is_some_and(|sharing| sharing.is_first) && address.port() != 0 {
        open()?.bind(&address.into())?;
    }
    let socket = open()?;
    if sharing.is_some() {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;

    fn sharing(is_first: bool) -> Sharing {
        Sharing {
            directory: PathBuf::new(),
            generation: 0,
            is_first,
        }
    }

    #[test]
    fn the_first_process_refuses_an_address_that_another_program_has_and_the_others_share_it() {
        let open = || Socket::new(Domain::IPV4, Type::DGRAM, None);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = bind(Some(&sharing(true)), any, open).unwrap();
        let address = first.local_addr().unwrap().as_socket().unwrap();
        bind(Some(&sharing(false)), address, open).unwrap();
        let in_use = [Some(sharing(true)), None].map(|sharing| bind(sharing.as_ref(), address, open).unwrap_err().kind());
        assert_eq!(in_use, [io::ErrorKind::AddrInUse; 2]);
    }
}
