//! Messages with a file descriptor over Unix-domain stream sockets, as unix(7) and cmsg(3) have it.

use crate::error::{Error, Result, Status};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Room for ancillary data, aligned as its header must be. More than one descriptor fits, so that one too
/// many is seen and closed here.
type Control = [u64; 8];

/// Has a descriptor closed in programs that this process becomes.
pub fn close_on_exec(fd: &OwnedFd) {
    // SAFETY: the descriptor is open, and the command takes no pointer.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Whether a number is that of an open descriptor.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: takes no pointer; a number that is no descriptor is an error.
    fd >= 0 && unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0
}

/// Sends the whole of a message, and a descriptor with its first byte.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<()> {
    const OPERATION: &str = "send";
    check_socket(OPERATION, socket)?;
    let mut sent = 0;
    while sent < message.len() {
        match send_some(socket, &message[sent..], descriptor.filter(|_| sent == 0)) {
            Ok(count) => sent += count,
            Err(error) => wait(OPERATION, socket, libc::POLLOUT, &error)
                .map_err(|error| progress(error, sent, message.len()))?,
        }
    }
    Ok(())
}

/// Receives a message of just this length, and the descriptors that came with it, which exec closes.
pub fn receive(socket: BorrowedFd<'_>, message: &mut [u8]) -> Result<Vec<OwnedFd>> {
    const OPERATION: &str = "receive";
    check_socket(OPERATION, socket)?;
    let whole = message.len();
    let (mut got, mut descriptors) = (0, Vec::new());
    while got < whole {
        match receive_some(socket, &mut message[got..], &mut descriptors) {
            Ok((0, _)) => {
                let closed = Error::new(Status::Io, OPERATION).detail("the other end was closed");
                return Err(progress(closed, got, whole));
            }
            Ok((_, true)) => {
                return Err(Error::new(Status::Io, OPERATION)
                    .detail("more came with the message than a descriptor, or the process may open no more")
                    .advice("Close descriptors, or raise the limit (ulimit -n), and let it be sent again"));
            }
            Ok((count, false)) => got += count,
            Err(error) => wait(OPERATION, socket, libc::POLLIN, &error)
                .map_err(|error| progress(error, got, whole))?,
        }
    }
    Ok(descriptors)
}

fn progress(error: Error, done: usize, whole: usize) -> Error {
    error.also(&format!("{done} of {whole} bytes had come through"))
}

/// Others would let the message through and drop the descriptor.
fn check_socket(operation: &'static str, socket: BorrowedFd<'_>) -> Result<()> {
    let is = |option, wanted| {
        let mut found: libc::c_int = -1;
        let mut size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: both pointers are valid for the call, which writes at most `size` bytes.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                std::ptr::from_mut(&mut found).cast(),
                &mut size,
            )
        };
        answer == 0 && found == wanted
    };
    if is(libc::SO_DOMAIN, libc::AF_UNIX) && is(libc::SO_TYPE, libc::SOCK_STREAM) {
        return Ok(());
    }
    let number = socket.as_raw_fd();
    Err(Error::invalid(
        operation,
        format!("descriptor {number} is no Unix-domain stream socket"),
    )
    .advice("Descriptors go through these only: socketpair, or AF_UNIX and SOCK_STREAM"))
}

/// What comes of a call that failed: it was interrupted or has to wait, or that is the end of it.
fn wait(
    operation: &'static str,
    socket: BorrowedFd<'_>,
    events: libc::c_short,
    error: &io::Error,
) -> Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => return Ok(()),
        io::ErrorKind::WouldBlock => {}
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            return Err(Error::new(Status::Io, operation)
                .detail(format!("the other end was closed ({error})")));
        }
        _ => return Err(Error::new(Status::Io, operation).detail(error.to_string())),
    }
    // SAFETY: takes no pointer.
    let flags = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) };
    if flags & libc::O_NONBLOCK == 0 {
        return Err(
            Error::new(Status::Busy, operation).detail("the time limit of the socket has passed")
        );
    }
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one struct, valid for the call. Whatever ends it, the call that had to wait says the rest.
    unsafe { libc::poll(&mut poll, 1, -1) };
    Ok(())
}

/// A header for one stretch of bytes and for what goes with it.
fn header(
    bytes: &mut libc::iovec,
    control: Option<&mut Control>,
    control_bytes: usize,
) -> libc::msghdr {
    // SAFETY: a struct of integers and pointers, for which zeros are values.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = bytes;
    header.msg_iovlen = 1;
    if let Some(control) = control {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control_bytes as _;
    }
    header
}

fn send_some(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    const ONE: u32 = size_of::<RawFd>() as u32;
    // SAFETY: arithmetic on a length.
    const SPACE: usize = unsafe { libc::CMSG_SPACE(ONE) } as usize;
    const { assert!(SPACE <= size_of::<Control>()) };
    let mut control: Control = [0; 8];
    let mut bytes = libc::iovec {
        iov_base: message.as_ptr().cast_mut().cast(),
        iov_len: message.len(),
    };
    let header = match descriptor {
        None => header(&mut bytes, None, 0),
        Some(descriptor) => {
            let header = header(&mut bytes, Some(&mut control), SPACE);
            // SAFETY: the control buffer has room for a header and one descriptor, and is aligned for both.
            unsafe {
                let first = libc::CMSG_FIRSTHDR(&header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(ONE) as _;
                let data = libc::CMSG_DATA(first).cast::<RawFd>();
                data.write_unaligned(descriptor.as_raw_fd());
            }
            header
        }
    };
    // SAFETY: what the header points to is valid for the call.
    let count = unsafe { libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL) };
    match count {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => usize::try_from(count).map_err(|_| io::Error::last_os_error()),
    }
}

/// The bytes received, and whether something that came with them is lost.
fn receive_some(
    socket: BorrowedFd<'_>,
    message: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<(usize, bool)> {
    let mut control: Control = [0; 8];
    let mut bytes = libc::iovec {
        iov_base: message.as_mut_ptr().cast(),
        iov_len: message.len(),
    };
    let mut header = header(&mut bytes, Some(&mut control), size_of::<Control>());
    // SAFETY: what the header points to is valid for the call.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel wrote whole headers into the control buffer and said how long they are in all; the
    // descriptors after each were made for this process, so nobody else closes them.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&header);
        while !next.is_null() {
            if (*next).cmsg_level == libc::SOL_SOCKET && (*next).cmsg_type == libc::SCM_RIGHTS {
                let data_bytes = (*next).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(next).cast::<RawFd>();
                for index in 0..data_bytes / size_of::<RawFd>() {
                    let number = data.add(index).read_unaligned();
                    descriptors.push(OwnedFd::from_raw_fd(number));
                }
            }
            next = libc::CMSG_NXTHDR(&header, next);
        }
    }
    Ok((count, header.msg_flags & libc::MSG_CTRUNC != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    fn same_file(one: &OwnedFd, other: &std::fs::File) -> bool {
        use std::os::unix::fs::MetadataExt;
        let one = std::fs::File::from(one.try_clone().unwrap());
        one.metadata().unwrap().ino() == other.metadata().unwrap().ino()
    }

    #[test]
    fn a_descriptor_goes_with_the_message() {
        let (here, there) = pair();
        let file = std::fs::File::open("/proc/self/maps").unwrap();
        send(here.as_fd(), b"message", Some(file.as_fd())).unwrap();
        send(here.as_fd(), b"another", None).unwrap();
        let mut seen = [0; 7];
        let got = receive(there.as_fd(), &mut seen).unwrap();
        assert_eq!((&seen, got.len()), (b"message", 1));
        assert!(same_file(&got[0], &file));
        // SAFETY: takes no pointer.
        let flags = unsafe { libc::fcntl(got[0].as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
        assert!(receive(there.as_fd(), &mut seen).unwrap().is_empty());
        assert_eq!(&seen, b"another");
    }

    #[test]
    fn a_message_may_come_in_parts_and_through_sockets_that_do_not_block() {
        let (here, there) = pair();
        there.set_nonblocking(true).unwrap();
        let reader = std::thread::spawn(move || {
            let mut seen = [0; 6];
            receive(there.as_fd(), &mut seen).map(|got| (seen, got.len()))
        });
        for part in [&b"ab"[..], b"cd", b"ef"] {
            std::thread::sleep(std::time::Duration::from_millis(5));
            (&here).write_all(part).unwrap();
        }
        assert_eq!(reader.join().unwrap().unwrap(), (*b"abcdef", 0));
    }

    #[test]
    fn a_socket_that_is_full_is_waited_for() {
        let (here, there) = pair();
        here.set_nonblocking(true).unwrap();
        let message = vec![7; 4 << 20];
        let sender = std::thread::spawn(move || {
            send(here.as_fd(), &message, Some(here.as_fd())).map(|()| message)
        });
        let mut seen = vec![0; 4 << 20];
        assert_eq!(receive(there.as_fd(), &mut seen).unwrap().len(), 1);
        assert_eq!(sender.join().unwrap().unwrap(), seen);
    }

    #[test]
    fn ends_that_are_closed_are_errors() {
        let (here, there) = pair();
        (&here).write_all(b"abc").unwrap();
        drop(here);
        let error = receive(there.as_fd(), &mut [0; 4]).unwrap_err();
        assert_eq!(error.status(), Status::Io);
        assert!(error.to_string().contains("3 of 4 bytes"), "{error}");
        let error = send(there.as_fd(), b"x", None).unwrap_err();
        assert!(error.to_string().contains("closed"), "{error}");
    }

    #[test]
    fn a_time_limit_of_the_socket_holds() {
        let (_here, there) = pair();
        there
            .set_read_timeout(Some(std::time::Duration::from_millis(5)))
            .unwrap();
        let error = receive(there.as_fd(), &mut [0; 4]).unwrap_err();
        assert_eq!(error.status(), Status::Busy);
    }

    #[test]
    fn what_is_no_such_socket_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let datagrams = std::os::unix::net::UnixDatagram::pair().unwrap();
        for descriptor in [file.as_fd(), udp.as_fd(), datagrams.0.as_fd()] {
            let error = send(descriptor, b"x", None).unwrap_err();
            assert_eq!(error.status(), Status::InvalidArgument);
            assert!(receive(descriptor, &mut [0]).is_err());
        }
        assert!(is_open(0) && !is_open(-1) && !is_open(1 << 20));
    }
}
