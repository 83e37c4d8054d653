//! The system's resolver, for names that only it knows.
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use tokio::sync::{oneshot, Semaphore};

use super::config::MAX_ADDRESSES;
use super::Purpose;
use crate::error::{NetError, NetErrorCode};

/// Threads for the system's resolver, which cannot be interrupted: for tunnels, and for the agent's own connections.
pub const THREADS: [usize; 2] = [12, 4];
const STACK: usize = 256 * 1024;

pub struct SystemResolver {
    /// By purpose.
    pub threads: [Arc<Semaphore>; 2],
}

impl SystemResolver {
    pub fn new() -> Self {
        Self {
            threads: THREADS.map(|threads| Arc::new(Semaphore::new(threads))),
        }
    }

    /// Resolves with getaddrinfo(3), on a separate thread, as it cannot be interrupted.
    pub async fn resolve(&self, name: &str, purpose: Purpose) -> Result<Vec<SocketAddr>, NetError> {
        let unknown = |why: String| NetError::new(NetErrorCode::UnknownHost, format!("the name is unknown ({why})"));
        // waits without a limit: a full pool says nothing about this name
        let threads = self.threads[purpose as usize].clone();
        let permit = threads.acquire_owned().await.map_err(|e| unknown(e.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        let name = name.to_owned();
        let resolve = move || {
            let result = (&name[..], 0)
                .to_socket_addrs()
                .map(|all| all.take(MAX_ADDRESSES).collect::<Vec<_>>());
            let _ = sender.send(result.map_err(|e| e.to_string())); // the lookup has ended
            drop(permit);
        };
        let thread = std::thread::Builder::new().name("names".into()).stack_size(STACK);
        thread.spawn(resolve).map_err(|e| {
            NetError::new(
                NetErrorCode::Limit,
                format!("its name cannot be resolved: the system's resolver has no thread: {e}"),
            )
        })?;
        receiver.await.map_err(|e| unknown(e.to_string()))?.map_err(unknown)
    }
}

/// Whether `name` is the host name of this machine.
pub fn is_own_name(name: &str) -> bool {
    let mut buffer = [0_u8; 256];
    // SAFETY: it writes no more bytes than the buffer has.
    let got = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    let end = buffer.iter().position(|byte| *byte == 0);
    got == 0 && end.is_some_and(|end| end > 0 && buffer[..end].eq_ignore_ascii_case(name.as_bytes()))
}
