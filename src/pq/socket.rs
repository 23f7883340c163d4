//! What the kernel knows of libpq's sockets.

/// Bytes that were read from a TCP connection; `None` for anything else. The one way to see how much
/// libpq takes in: it reads a message whole, of up to 2 GB, before it says a word.
#[cfg(target_os = "linux")]
pub fn taken(socket: i32) -> Option<u64> {
    let received = received(socket)?;
    let mut unread = 0;
    // SAFETY: the kernel writes one int.
    let done = unsafe { libc::ioctl(socket, libc::FIONREAD, &mut unread) };
    (done == 0).then(|| received.saturating_sub(unread.max(0) as u64))
}

/// Not known elsewhere.
#[cfg(not(target_os = "linux"))]
pub fn taken(_socket: i32) -> Option<u64> {
    None
}

#[cfg(target_os = "linux")]
fn received(socket: i32) -> Option<u64> {
    /// Where `tcpi_bytes_received` is in `struct tcp_info` (linux/tcp.h), which only ever grows at its
    /// end; the libc crate's declaration ends before it.
    const AT: usize = 128 / size_of::<u64>();
    let mut info = [0u64; AT + 1];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which the buffer has, and says how many.
    let done = unsafe {
        let into = info.as_mut_ptr().cast();
        libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, into, &mut length)
    };
    (done == 0 && length as usize == size_of_val(&info)).then_some(info[AT])
}

/// Whether there is nothing to be read from a socket, and the other side has not closed it.
pub fn is_quiet(socket: i32) -> bool {
    let mut byte = 0u8;
    // SAFETY: the kernel writes one byte at most.
    let read = unsafe {
        libc::recv(
            socket,
            (&raw mut byte).cast(),
            1,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    read < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn bytes_count_when_they_are_read() -> std::io::Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let mut socket = TcpStream::connect(listener.local_addr()?)?;
        let (mut other, _) = listener.accept()?;
        assert_eq!(taken(socket.as_raw_fd()), Some(0));
        other.write_all(&[0; 1000])?;
        let mut bytes = [0; 600];
        socket.peek(&mut bytes)?;
        assert_eq!(taken(socket.as_raw_fd()), Some(0));
        socket.read_exact(&mut bytes)?;
        assert_eq!(taken(socket.as_raw_fd()), Some(600));
        assert_eq!(taken(-1), None);
        Ok(())
    }

    #[test]
    fn a_socket_is_quiet_until_something_comes_or_it_is_closed() -> std::io::Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let mut socket = TcpStream::connect(listener.local_addr()?)?;
        let (mut other, _) = listener.accept()?;
        assert!(is_quiet(socket.as_raw_fd()));
        other.write_all(&[0])?;
        socket.peek(&mut [0])?;
        assert!(!is_quiet(socket.as_raw_fd()));
        socket.read_exact(&mut [0])?;
        assert!(is_quiet(socket.as_raw_fd()));
        drop(other);
        socket.peek(&mut [0])?;
        assert!(!is_quiet(socket.as_raw_fd()));
        assert!(!is_quiet(-1));
        Ok(())
    }
}
