//! ICMP errors of a UDP socket, from the kernel's error queue (Linux). Anyone who knows the addresses can forge them.
use std::net::SocketAddr;
use std::os::fd::RawFd;

#[cfg(target_os = "linux")]
pub use linux::{closed_ports, report_errors};

#[cfg(not(target_os = "linux"))]
pub fn report_errors(_: RawFd, _: bool) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub fn closed_ports(_: RawFd) -> Vec<SocketAddr> {
    Vec::new()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::mem::MaybeUninit;
    use std::net::IpAddr;

    use libc::{c_int, socklen_t};
    use socket2::SockAddr;

    use super::*;
    use crate::net::address::canonical;

    /// Maximum number of errors taken at a time.
    const MAX_ERRORS: usize = 1_024;
    /// Room for the control messages of one error.
    const CONTROL: usize = 512;
    /// Port unreachable of ICMP (RFC 792) and of ICMPv6 (RFC 4443 §3.1): type and code.
    const PORT_UNREACHABLE: (u8, u8) = (3, 3);
    const PORT_UNREACHABLE_V6: (u8, u8) = (1, 4);

    /// Lets the kernel report errors on the socket, or no longer. Returns whether it can.
    pub fn report_errors(socket: RawFd, on: bool) -> bool {
        let value = c_int::from(on);
        let set = |level, option| {
            // SAFETY: a plain setsockopt with an int that outlives the call
            unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), size_of::<c_int>() as socklen_t) == 0 }
        };
        // a socket for IPv6 may have peers of either family
        let v6 = set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
        set(libc::IPPROTO_IP, libc::IP_RECVERR) || v6
    }

    /// Takes the errors that were reported, and returns the destinations whose own system said that no program receives at this port. A
    /// router or firewall on the way that says so does not count: it may only block the path.
    pub fn closed_ports(socket: RawFd) -> Vec<SocketAddr> {
        let errors = std::iter::from_fn(|| next_error(socket)).take(MAX_ERRORS);
        errors.flatten().collect()
    }

    /// Takes one error. `Some(None)`: an error of another kind; `None`: there is no more.
    fn next_error(socket: RawFd) -> Option<Option<SocketAddr>> {
        let mut control = [0u64; CONTROL / size_of::<u64>()]; // aligned as cmsghdr
                                                              // SAFETY: msghdr is plain data, for which zeros are valid
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = CONTROL as _;
        // SAFETY: the address and `control` are buffers of the sizes given, and outlive the call
        let received = unsafe {
            SockAddr::try_init(|address, length| {
                message.msg_name = address.cast();
                message.msg_namelen = *length;
                if libc::recvmsg(socket, &mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                *length = message.msg_namelen;
                Ok(())
            })
        };
        let destination = received.ok()?.1.as_socket().map(canonical);
        let offender = offender_of_closed_port(&message);
        Some(destination.filter(|to| offender == Some(to.ip())))
    }

    /// The host that reported a closed port, if this is such an error.
    fn offender_of_closed_port(message: &libc::msghdr) -> Option<IpAddr> {
        // SAFETY: the kernel has filled the control buffer of `message`, which is still alive; CMSG_NXTHDR stays within it
        let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
        while let Some(header) = (!next.is_null()).then_some(next) {
            // musl's length has 32 bits
            #[allow(clippy::unnecessary_cast)]
            // SAFETY: as above; the kernel writes whole headers, aligned
            let (level, kind, length) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
            if matches!(
                (level, kind),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            ) {
                // SAFETY: the data of the message begins there, and has the length that the header says
                let data = unsafe {
                    let data = libc::CMSG_DATA(header);
                    std::slice::from_raw_parts(data, length.saturating_sub(data.offset_from(header.cast::<u8>()) as usize))
                };
                return closed_port(data);
            }
            // SAFETY: as above
            next = unsafe { libc::CMSG_NXTHDR(message, header) };
        }
        None
    }

    /// Reads a `sock_extended_err` and the address of the offender that follows it.
    fn closed_port(data: &[u8]) -> Option<IpAddr> {
        let error: libc::sock_extended_err = read(data)?;
        let (kind, offender) = ((error.ee_type, error.ee_code), data.get(size_of::<libc::sock_extended_err>()..)?);
        match error.ee_origin {
            libc::SO_EE_ORIGIN_ICMP if kind == PORT_UNREACHABLE => {}
            libc::SO_EE_ORIGIN_ICMP6 if kind == PORT_UNREACHABLE_V6 => {}
            _ => return None,
        }
        let family = c_int::from(read::<libc::sa_family_t>(offender)?);
        let ip: IpAddr = match family {
            libc::AF_INET => u32::from_be(read::<libc::sockaddr_in>(offender)?.sin_addr.s_addr)
                .to_be_bytes()
                .into(),
            libc::AF_INET6 => read::<libc::sockaddr_in6>(offender)?.sin6_addr.s6_addr.into(),
            _ => return None,
        };
        Some(canonical((ip, 0).into()).ip())
    }

    /// A plain C structure at the start of the data.
    fn read<T: Plain>(data: &[u8]) -> Option<T> {
        let bytes = data.get(..size_of::<T>())?;
        // SAFETY: there are enough bytes, any bytes are a valid `T`, and no alignment is needed
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    /// # Safety
    /// Any bytes must be a valid value.
    unsafe trait Plain: Copy {}
    // SAFETY: all consist of integers
    unsafe impl Plain for libc::sock_extended_err {}
    // SAFETY: as above
    unsafe impl Plain for libc::sa_family_t {}
    // SAFETY: as above
    unsafe impl Plain for libc::sockaddr_in {}
    // SAFETY: as above
    unsafe impl Plain for libc::sockaddr_in6 {}
}
