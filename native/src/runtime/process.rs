//! Process-wide functions: notifications to the service manager and the limit on file descriptors.
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// A service manager that does not read must not block the program.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// Sends `state` as sd_notify(3) does. `socket` is a path, or `@` and an abstract name (unix(7), Linux only).
pub fn notify(socket: &str, state: &str) -> io::Result<()> {
    let datagram = UnixDatagram::unbound()?;
    datagram.set_write_timeout(Some(SEND_TIMEOUT))?;
    match socket.strip_prefix('@') {
        None => datagram.send_to(state.as_bytes(), socket)?,
        Some(name) => send_abstract(&datagram, state, name)?,
    };
    Ok(())
}

#[cfg(target_os = "linux")]
fn send_abstract(datagram: &UnixDatagram, state: &str, name: &str) -> io::Result<usize> {
    use std::os::linux::net::SocketAddrExt;
    datagram.send_to_addr(state.as_bytes(), &std::os::unix::net::SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn send_abstract(_: &UnixDatagram, _: &str, _: &str) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Raises the limit on file descriptors to the hard limit (getrlimit(2)) and returns it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid struct, which outlives them
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        // macOS reports no hard limit, but refuses more than this
        let max = if cfg!(target_os = "macos") {
            limit.rlim_max.min(10_240)
        } else {
            limit.rlim_max
        };
        if max > limit.rlim_cur {
            limit.rlim_cur = max;
            if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_arrives_whole() {
        let path = std::env::temp_dir().join(format!("reverse-http-notify-{}", std::process::id()));
        let manager = UnixDatagram::bind(&path).unwrap();
        notify(path.to_str().unwrap(), "READY=1\nSTATUS=x").unwrap();
        let mut got = [0; 64];
        let n = manager.recv(&mut got).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&got[..n], b"READY=1\nSTATUS=x");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_of_the_abstract_namespace_is_reached() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("reverse-http-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notify(&format!("@{name}"), "WATCHDOG=1").unwrap();
        let mut got = [0; 64];
        let n = manager.recv(&mut got).unwrap();
        assert_eq!(&got[..n], b"WATCHDOG=1");
    }

    #[test]
    fn a_missing_socket_is_an_error() {
        assert!(notify("/nonexistent/notify", "READY=1").is_err());
    }

    #[test]
    fn a_manager_that_does_not_read_blocks_only_briefly() {
        let path = std::env::temp_dir().join(format!("reverse-http-notify-full-{}", std::process::id()));
        let _manager = UnixDatagram::bind(&path).unwrap();
        let full = (0..10_000).find_map(|_| notify(path.to_str().unwrap(), "WATCHDOG=1").err());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(full.map(|e| e.kind()), Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn the_limit_of_descriptors_is_the_hard_one_after_it_was_raised() {
        let raised = raise_descriptor_limit().unwrap();
        assert!(raised > 0);
        assert_eq!(raise_descriptor_limit().unwrap(), raised);
    }
}
