//! Messages between two processes on one machine, with descriptors beside them (SCM_RIGHTS, unix(7)).
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    recvmsg, sendmsg, shutdown, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    Shutdown,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{watch, Mutex};

/// Longest message in bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// Maximum number of descriptors beside a message.
pub const MAX_DESCRIPTORS: usize = 65;
/// A message follows its length.
const LENGTH: usize = 4;

/// A message and its descriptors.
pub type Message = (String, Vec<OwnedFd>);

/// A connection with another process of the same user.
pub struct Channel {
    /// The other process, if the system says which one it is.
    pub pid: Option<i32>,
    stream: UnixStream,
    sending: Mutex<()>,
    receiving: Mutex<()>,
}

impl Channel {
    pub async fn connect(path: &str) -> io::Result<Self> {
        Self::new(UnixStream::connect(path).await?)
    }

    /// Refuses other users: what passes here is worth as much as the process itself.
    fn new(stream: UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        if peer.uid() != rustix::process::geteuid().as_raw() && peer.uid() != 0 {
            return Err(ErrorKind::PermissionDenied.into());
        }
        Ok(Self {
            pid: peer.pid(),
            stream,
            sending: Mutex::default(),
            receiving: Mutex::default(),
        })
    }

    pub async fn send(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if text.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
            return Err(ErrorKind::InvalidInput.into());
        }
        let _turn = self.sending.lock().await;
        let length = (text.len() as u32).to_le_bytes();
        // the descriptors belong to the first byte; the kernel takes a few bytes whole
        let sent = self.stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(ErrorKind::InvalidInput.into());
            }
            Ok(sendmsg(&self.stream, &[IoSlice::new(&length)], &mut control, SendFlags::empty())?)
        });
        if sent.await? < LENGTH {
            return Err(ErrorKind::WriteZero.into());
        }
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns `None` once the other process has closed the channel, or has ended.
    pub async fn receive(&self) -> io::Result<Option<Message>> {
        let _turn = self.receiving.lock().await;
        let (mut descriptors, mut length, mut got) = (Vec::new(), [0; LENGTH], 0);
        while got < LENGTH {
            let received = self.stream.async_io(Interest::READABLE, || {
                receive_part(&self.stream, &mut length[got..], &mut descriptors)
            });
            match received.await {
                Ok(0) if got == 0 => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => got += n,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_MESSAGE {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut text = vec![0; length];
        let mut got = 0;
        while got < length {
            self.stream.readable().await?;
            match self.stream.try_read(&mut text[got..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => got += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let text = String::from_utf8(text).map_err(|_| ErrorKind::InvalidData)?;
        Ok(Some((text, descriptors)))
    }

    /// Ends both directions: pending calls settle.
    pub fn close(&self) {
        let _ = shutdown(&self.stream, Shutdown::Both); // fails only if the other side has done so
    }
}

fn receive_part(stream: &UnixStream, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    #[cfg(not(target_os = "linux"))]
    for descriptor in &*descriptors {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok(received.bytes)
}

/// Accepts channels until it is closed.
pub struct ChannelListener {
    socket: UnixListener,
    open: watch::Sender<bool>,
}

impl ChannelListener {
    /// Binds `path`, which must not exist. Requires the runtime.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Ok(Self {
            socket: UnixListener::bind(path)?,
            open: watch::Sender::new(true),
        })
    }

    /// The next channel of a process that may have it; `None` once the listener is closed.
    pub async fn accept(&self) -> io::Result<Option<Channel>> {
        let mut closed = self.open.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                _ = closed.wait_for(|open| !open) => return Ok(None),
            };
            if let Ok(channel) = Channel::new(accepted?.0) {
                return Ok(Some(channel));
            }
        }
    }

    pub fn close(&self) {
        self.open.send_replace(false);
    }
}

/// A copy of a descriptor, for another process.
pub fn duplicate(descriptor: impl AsFd) -> io::Result<OwnedFd> {
    descriptor.as_fd().try_clone_to_owned()
}

/// Whether an error says that nothing listens at a path.
pub fn is_nothing_there(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::NOENT | Errno::CONNREFUSED)
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdUnixStream;

    use super::*;

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("reverse-http-channel-{}-{name}", std::process::id()))
    }

    async fn pair(name: &str) -> (Channel, Channel) {
        let path = path(name);
        let listener = ChannelListener::bind(&path).unwrap();
        let (client, server) = tokio::join!(Channel::connect(path.to_str().unwrap()), listener.accept());
        std::fs::remove_file(&path).unwrap();
        (client.unwrap(), server.unwrap().unwrap())
    }

    #[tokio::test]
    async fn messages_and_their_descriptors_arrive_in_order() {
        let (client, server) = pair("order").await;
        assert_eq!(server.pid, Some(std::process::id() as i32));
        let (mut ours, theirs) = StdUnixStream::pair().unwrap();
        let long = "x".repeat(MAX_MESSAGE);
        let send = async {
            client.send("none", &[]).await.unwrap();
            client.send("one", &[theirs.as_fd()]).await.unwrap();
            client.send(&long, &vec![theirs.as_fd(); MAX_DESCRIPTORS]).await.unwrap();
            client.close();
        };
        let receive = async {
            let mut received = Vec::new();
            while let Some(message) = server.receive().await.unwrap() {
                received.push(message);
            }
            received
        };
        let ((), mut received) = tokio::join!(send, receive);
        let counts: Vec<_> = received.iter().map(|(text, descriptors)| (text.len(), descriptors.len())).collect();
        assert_eq!(counts, [(4, 0), (3, 1), (MAX_MESSAGE, MAX_DESCRIPTORS)]);
        let mut passed = StdUnixStream::from(received[1].1.remove(0));
        passed.write_all(b"hello").unwrap();
        let mut got = [0; 5];
        ours.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }

    #[tokio::test]
    async fn what_is_too_long_is_refused_on_both_sides() {
        let (client, server) = pair("long").await;
        assert!(client.send(&"x".repeat(MAX_MESSAGE + 1), &[]).await.is_err());
        client.stream.writable().await.unwrap();
        client.stream.try_write(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(server.receive().await.unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn an_end_within_a_message_is_an_error() {
        let (client, server) = pair("cut").await;
        client.stream.writable().await.unwrap();
        client.stream.try_write(&[9, 0, 0, 0, b'x']).unwrap();
        client.close();
        assert_eq!(server.receive().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_closed_listener_accepts_nothing_more() {
        let path = path("closed");
        let listener = ChannelListener::bind(&path).unwrap();
        let (accepted, ()) = tokio::join!(listener.accept(), async { listener.close() });
        assert!(accepted.unwrap().is_none());
        drop(listener);
        let error = Channel::connect(path.to_str().unwrap()).await.err().unwrap();
        assert!(is_nothing_there(&error));
        std::fs::remove_file(&path).unwrap();
        assert!(is_nothing_there(&Channel::connect(path.to_str().unwrap()).await.err().unwrap()));
    }
}
