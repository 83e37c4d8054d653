//! What concerns the process as a whole: the service manager that started it, and how many descriptors it may have.
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// A service manager that does not read must not stop the program.
const PATIENCE: Duration = Duration::from_millis(100);

/// Sends `state` as sd_notify(3) does. `socket` is a path, or `@` and a name of the abstract namespace (unix(7)), which Linux alone has.
pub fn notify(socket: &str, state: &str) -> io::Result<()> {
    let datagram = UnixDatagram::unbound()?;
    datagram.set_write_timeout(Some(PATIENCE))?;
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

/// Lets the process have as many descriptors as its hard limit allows (getrlimit(2)), and says how many that are.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid struct, which outlives them
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        // macOS has no hard limit, and refuses more than this
        let most = if cfg!(target_os = "macos") {
            limit.rlim_max.min(10_240)
        } else {
            limit.rlim_max
        };
        if most > limit.rlim_cur {
            limit.rlim_cur = most;
            if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(limit.rlim_cur)
}

/// Bytes. Few machines have others: not worth a way of their own.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// Lets go of what the executable has in memory as its file has it, and does not use now: code, constants, and what it carries, most of which
/// was needed at the start only. What is used again comes back from the page cache. How many bytes that were.
#[cfg(target_os = "linux")]
pub fn release_executable() -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    /// Present, and the file's: what a process has written to is its own (proc_pid_pagemap(5))
    const UNTOUCHED: u64 = 1 << 63 | 1 << 61;
    // SAFETY: asks for a number
    if unsafe { libc::sysconf(libc::_SC_PAGESIZE) } != PAGE as libc::c_long {
        return Ok(0);
    }
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    let mut released = 0;
    for (from, to) in executable_memory()? {
        let mut entries = vec![0; (to - from) / PAGE * 8];
        pagemap.read_exact_at(&mut entries, (from / PAGE * 8) as u64)?;
        let is_untouched = |entry: &&[u8]| u64::from_ne_bytes((**entry).try_into().unwrap_or_default()) & UNTOUCHED == UNTOUCHED;
        let pages: Vec<bool> = entries.chunks_exact(8).map(|entry| is_untouched(&entry)).collect();
        let mut at = from;
        for run in pages.chunk_by(|a, b| a == b) {
            let bytes = run.len() * PAGE;
            // SAFETY: the mapping is the running executable's, never unmapped; nobody writes to these pages, so they are still what the file
            // has, which cannot be written while it runs (ETXTBSY)
            if run[0] && unsafe { libc::madvise(at as *mut libc::c_void, bytes, libc::MADV_DONTNEED) } == 0 {
                released += bytes;
            }
            at += bytes;
        }
    }
    Ok(released)
}

/// Where the executable is in memory, but for what it writes to. What Bun's executables carry is in a section of its own, which nobody writes to
/// though it could be.
#[cfg(target_os = "linux")]
fn executable_memory() -> io::Result<Vec<(usize, usize)>> {
    use object::read::elf::ElfFile64;
    use object::{Endianness, Object, ObjectSection, ReadCache};
    const PAGE: u64 = self::PAGE as u64;
    let path = std::fs::read_link("/proc/self/exe")?;
    let file = ReadCache::new(std::fs::File::open("/proc/self/exe")?);
    let elf = ElfFile64::<Endianness, _>::parse(&file).map_err(io::Error::other)?;
    let carried = elf
        .section_by_name(".bun")
        .and_then(|section| section.file_range())
        .unwrap_or_default();
    let mut found = Vec::new();
    // address, permissions, offset, device, inode, path (proc_pid_maps(5))
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let mut fields = line.splitn(6, ' ').map(str::trim);
        let (Some(range), Some(permissions), Some(offset), Some(name)) = (fields.next(), fields.next(), fields.next(), fields.nth(2))
        else {
            continue;
        };
        let (Some((from, to)), Some(offset)) = (range.split_once('-').map(|(from, to)| (hex(from), hex(to))), hex(offset)) else {
            continue;
        };
        let (Some(from), Some(to), true) = (from, to, path == std::path::Path::new(name)) else {
            continue;
        };
        match permissions {
            "r-xp" | "r--p" => found.push((from as usize, to as usize)),
            "rw-p" => {
                // whole pages of it alone
                let (start, end) = (carried.0.next_multiple_of(PAGE).max(offset), (carried.0 + carried.1) / PAGE * PAGE);
                let end = end.min(offset + (to - from));
                if start < end {
                    found.push(((from + start - offset) as usize, (from + end - offset) as usize));
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(target_os = "linux")]
fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(not(target_os = "linux"))]
pub fn release_executable() -> io::Result<usize> {
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_released_comes_back_as_it_was() {
        static CONSTANT: [u8; 1 << 16] = [7; 1 << 16];
        static mut WRITTEN: [u8; 1 << 16] = [1; 1 << 16];
        // SAFETY: this test alone uses it
        unsafe { (&raw mut WRITTEN).cast::<u8>().write_volatile(2) };
        for _ in 0..3 {
            assert!(release_executable().unwrap() > 100_000);
            assert!(std::hint::black_box(&CONSTANT).iter().all(|byte| *byte == 7));
            // SAFETY: as above
            assert_eq!(unsafe { (&raw const WRITTEN).cast::<u8>().read_volatile() }, 2);
        }
    }

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
    fn nobody_there_is_an_error() {
        assert!(notify("/nonexistent/notify", "READY=1").is_err());
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up_for_long() {
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
