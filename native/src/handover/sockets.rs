//! The listening sockets of an engine: those for a successor, those from a predecessor, and whether they accept.
use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::channel::{Channel, MAX_DESCRIPTORS};
use crate::net::sharing::Sharing;
use crate::sync::lock;

/// Maximum number of sockets that are taken over.
const MAX_SOCKETS: usize = 8_192;
/// The message after the last socket.
const END: &str = "end";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A socket on its way to a successor.
pub struct Passed {
    pub socket: OwnedFd,
    /// Of QUIC: where this process and each earlier one receive what arrives for their connections, with the generation of each. The first
    /// is this process's. Of other UDP: the socket at which this process receives packets that are not from the new one's peers.
    pub relays: Vec<(u8, OwnedFd)>,
}

impl From<OwnedFd> for Passed {
    fn from(socket: OwnedFd) -> Self {
        Self {
            socket,
            relays: Vec::new(),
        }
    }
}

/// A listener whose socket can be passed to another process.
pub trait Listening: Send + Sync {
    /// Copies of its descriptors. Requires the runtime. The error is `NotConnected` if it has stopped accepting.
    fn pass(&self) -> io::Result<Passed>;

    /// Called when listeners shall accept, or no longer. Those that have a [`Gate`] need not do anything.
    fn set_accepting(&self, _accepting: bool) {}

    /// Called while it does not accept, once another process does: closes the descriptor, unless it is needed to send.
    fn release(&self) {}
}

/// Tells a listener whether it accepts.
#[derive(Clone)]
pub struct Gate(watch::Receiver<bool>);

impl Gate {
    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves with what `accept` resolves with, but does not poll it while the gate is closed.
    pub async fn accept<T>(&mut self, accept: impl Future<Output = T>) -> T {
        tokio::pin!(accept);
        loop {
            self.until(true).await;
            tokio::select! {
                biased;
                () = self.until(false) => {}
                accepted = &mut accept => return accepted,
            }
        }
    }

    async fn until(&mut self, open: bool) {
        if self.0.wait_for(|is_open| *is_open == open).await.is_err() {
            std::future::pending::<()>().await; // the engine is gone
        }
    }
}

struct Offered {
    kind: Kind,
    address: String,
    listener: Weak<dyn Listening>,
}

struct Inherited {
    kind: Kind,
    address: String,
    passed: Passed,
}

pub struct Sockets {
    pub runtime: Handle,
    accepting: watch::Sender<bool>,
    offered: Mutex<Vec<Offered>>,
    inherited: Mutex<Vec<Inherited>>,
    sharing: Mutex<Option<Sharing>>,
}

impl Sockets {
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            accepting: watch::Sender::new(true),
            offered: Mutex::default(),
            inherited: Mutex::default(),
            sharing: Mutex::default(),
        }
    }

    /// Listeners that are opened from now on share their addresses with other processes.
    pub fn share(&self, sharing: Sharing) {
        *lock(&self.sharing) = Some(sharing);
    }

    pub fn sharing(&self) -> Option<Sharing> {
        lock(&self.sharing).clone()
    }

    pub fn gate(&self) -> Gate {
        Gate(self.accepting.subscribe())
    }

    /// The predecessor's socket for an address, as the address was configured.
    pub fn take(&self, kind: Kind, address: &str) -> Option<Passed> {
        let mut inherited = lock(&self.inherited);
        let found = inherited.iter().position(|one| one.kind == kind && one.address == address)?;
        Some(inherited.remove(found).passed)
    }

    /// A successor will have the socket of this listener, as long as it exists.
    pub fn offer<L: Listening + 'static>(&self, kind: Kind, address: &str, listener: &Arc<L>) {
        let listener: Arc<dyn Listening> = listener.clone();
        let mut offered = lock(&self.offered);
        offered.retain(|one| one.listener.strong_count() > 0);
        offered.push(Offered {
            kind,
            address: address.to_owned(),
            listener: Arc::downgrade(&listener),
        });
    }

    /// Starts or stops accepting. Accepted connections are not affected, and peers that connect meanwhile wait.
    pub fn set_accepting(&self, accepting: bool) {
        self.accepting.send_replace(accepting);
        let listeners: Vec<_> = lock(&self.offered).iter().filter_map(|one| one.listener.upgrade()).collect();
        for listener in listeners {
            listener.set_accepting(accepting);
        }
    }

    /// Closes the descriptors that a successor uses. Requires that listeners do not accept.
    pub fn release(&self) {
        let listeners: Vec<_> = lock(&self.offered).iter().filter_map(|one| one.listener.upgrade()).collect();
        for listener in listeners {
            listener.release();
        }
    }

    /// Closes what no listener has taken.
    pub fn drop_unused(&self) {
        lock(&self.inherited).clear();
    }

    /// Passes all sockets on, including those that were never used. Requires the runtime.
    pub async fn send(&self, channel: &Channel) -> io::Result<()> {
        let mut passed = Vec::new();
        for one in &*lock(&self.offered) {
            let Some(listener) = one.listener.upgrade() else { continue };
            match listener.pass() {
                Ok(socket) => passed.push((one.kind, one.address.clone(), socket)),
                Err(error) if error.kind() == ErrorKind::NotConnected => {} // it accepts no more, as after a reload
                Err(error) => return Err(error),
            }
        }
        for (kind, address, Passed { socket, relays }) in passed {
            let generations: Vec<_> = relays.iter().map(|(generation, _)| generation.to_string()).collect();
            let descriptors: Vec<_> = std::iter::once(socket.as_fd())
                .chain(relays.iter().map(|(_, relay)| relay.as_fd()))
                .collect();
            let text = format!("{} {} {address}", kind.as_str(), generations.join(","));
            channel.send(&text, &descriptors).await?;
        }
        channel.send(END, &[]).await
    }

    /// Receives the sockets of a predecessor. From now on listeners do not accept until [`Sockets::set_accepting`]. Returns how many there are.
    pub async fn receive(&self, channel: &Channel) -> io::Result<usize> {
        self.accepting.send_replace(false);
        let mut received = Vec::new();
        loop {
            let Some((text, descriptors)) = channel.receive().await? else {
                return Err(ErrorKind::UnexpectedEof.into());
            };
            if text == END {
                break;
            }
            if received.len() >= MAX_SOCKETS {
                return Err(ErrorKind::InvalidData.into());
            }
            received.push(parse(&text, descriptors).ok_or(ErrorKind::InvalidData)?);
        }
        let count = received.len();
        *lock(&self.inherited) = received;
        Ok(count)
    }
}

fn parse(text: &str, descriptors: Vec<OwnedFd>) -> Option<Inherited> {
    let mut words = text.splitn(3, ' ');
    let (kind, generations, address) = (Kind::parse(words.next()?)?, words.next()?, words.next()?);
    let mut descriptors = descriptors.into_iter();
    let socket = descriptors.next()?;
    let generations = generations
        .split(',')
        .filter(|text| !text.is_empty())
        .map(|text| text.parse::<u8>().ok());
    let generations: Vec<u8> = generations.collect::<Option<_>>()?;
    if generations.len() != descriptors.len() || generations.len() >= MAX_DESCRIPTORS {
        return None;
    }
    Some(Inherited {
        kind,
        address: address.to_owned(),
        passed: Passed {
            socket,
            relays: generations.into_iter().zip(descriptors).collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::channel::ChannelListener;
    use super::*;

    struct Fixed(TcpListener);

    impl Listening for Fixed {
        fn pass(&self) -> io::Result<Passed> {
            Ok(self.0.as_fd().try_clone_to_owned()?.into())
        }
    }

    #[tokio::test]
    async fn sockets_pass_by_kind_and_address_and_successors_wait_until_they_may_accept() {
        let path = std::env::temp_dir().join(format!("reverse-http-sockets-{}", std::process::id()));
        let listener = ChannelListener::bind(&path).unwrap();
        let (successor, ours) = tokio::join!(Channel::connect(path.to_str().unwrap()), listener.accept());
        std::fs::remove_file(&path).unwrap();
        let (successor, ours) = (successor.unwrap(), ours.unwrap().unwrap());
        let (old, new) = (Sockets::new(Handle::current()), Sockets::new(Handle::current()));
        let [first, second] = [0, 1].map(|_| Arc::new(Fixed(TcpListener::bind("127.0.0.1:0").unwrap())));
        old.offer(Kind::Tcp, ":0", &first);
        old.offer(Kind::Tcp, ":0", &second);
        old.offer(Kind::Tcp, ":1", &Arc::new(Fixed(TcpListener::bind("127.0.0.1:0").unwrap()))); // it is gone at once
        let (sent, received) = tokio::join!(old.send(&ours), new.receive(&successor));
        sent.unwrap();
        assert_eq!(received.unwrap(), 2);
        assert!(new.take(Kind::Udp, ":0").is_none() && new.take(Kind::Tcp, ":1").is_none());
        for listener in [first, second] {
            let passed = TcpListener::from(new.take(Kind::Tcp, ":0").unwrap().socket);
            assert_eq!(passed.local_addr().unwrap(), listener.0.local_addr().unwrap());
        }
        assert!(new.take(Kind::Tcp, ":0").is_none());
        assert!(!new.gate().is_open() && old.gate().is_open());
        let mut gate = new.gate();
        let accept = tokio::spawn(async move { gate.accept(std::future::ready(7)).await });
        tokio::task::yield_now().await;
        assert!(!accept.is_finished());
        new.set_accepting(true);
        assert_eq!(accept.await.unwrap(), 7);
    }

    #[test]
    fn what_no_predecessor_sends_is_refused() {
        let descriptors = |count: usize| {
            (0..count)
                .map(|_| TcpListener::bind("127.0.0.1:0").unwrap().into())
                .collect::<Vec<OwnedFd>>()
        };
        for (text, count) in [
            ("", 1),
            ("tcp", 1),
            ("tcp  ", 0),
            ("sctp  :1", 1),
            ("udp 1 :1", 1),
            ("udp 256 :1", 2),
            ("udp  :1", 2),
        ] {
            assert!(parse(text, descriptors(count)).is_none(), "{text}");
        }
        let parsed = parse("udp 3,2 [::1]:1", descriptors(3)).unwrap();
        assert_eq!((parsed.kind, parsed.address.as_str()), (Kind::Udp, "[::1]:1"));
        assert_eq!(
            parsed.passed.relays.iter().map(|(generation, _)| *generation).collect::<Vec<_>>(),
            [3, 2]
        );
    }
}
