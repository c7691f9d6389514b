//! Payload between guest memory and sockets, copied by the kernel alone.
//!
//! With unsafe code, as has the closing of a descriptor: the system calls take pointers
//! into guest memory, which the safe wrappers could only offer as slices.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::memory::Piece;
use crate::memory_faults;
use crate::mishaps::{self, Call};

/// The most pieces one system call takes (IOV_MAX).
const MAX_PIECES: usize = 1024;

/// Sends pieces of guest memory, as much of them as the socket takes. Neither waits nor
/// raises SIGPIPE. Returns the bytes sent.
///
/// # Errors
///
/// Those of `sendmsg(2)` when nothing was sent; EFAULT where the memory behind a piece is
/// gone.
pub(crate) fn send(socket: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<usize> {
    let mut total = 0;
    for some in pieces.chunks(MAX_PIECES) {
        match send_some(socket, some) {
            Ok(sent) => {
                total += sent;
                if sent < some.iter().map(Piece::len).sum() {
                    break;
                }
            }
            Err(error) if total == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(total)
}

fn send_some(socket: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<usize> {
    let (sent, _) = with_message(socket, pieces, |message| {
        // SAFETY: `message` is valid for the call, and so are the pieces it points to:
        // they borrow from mapped guest memory. The kernel only reads them, and whatever
        // a guest writes meanwhile is data to it.
        unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        }
    })?;
    Ok(sent)
}

/// What came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    /// Zero at the end of the stream.
    pub(crate) bytes: usize,
    /// It may not be all there was, though there was room: more pieces than one system call
    /// takes, or descriptors that came with it and were dropped, which the kernel reads no
    /// further than.
    pub(crate) cut_short: bool,
}

/// Receives into pieces of guest memory, one after the other, without waiting.
///
/// # Errors
///
/// Those of `recvmsg(2)`; EFAULT where the memory behind a piece is gone.
pub(crate) fn receive(socket: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<Received> {
    let (bytes, flags) = with_message(socket, pieces, |message| {
        // SAFETY: as above; the kernel writes to guest memory, which nothing in this
        // process holds a reference to, only volatile slices.
        unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_DONTWAIT) }
    })?;
    let cut_short = pieces.len() > MAX_PIECES || flags & libc::MSG_CTRUNC != 0;
    Ok(Received { bytes, cut_short })
}

/// The bytes moved by `call`, and the message's flags after it.
fn with_message(
    socket: BorrowedFd<'_>,
    pieces: &[Piece<'_>],
    call: impl Fn(*mut libc::msghdr) -> libc::ssize_t,
) -> io::Result<(usize, libc::c_int)> {
    mishaps::instead_of(Call::Transfer, socket)?;
    let mut limit = mishaps::limit(socket);
    let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX_PIECES];
    let count = pieces.len().min(MAX_PIECES);
    for (vector, piece) in vectors.iter_mut().zip(pieces) {
        let guard = piece.ptr_guard_mut();
        vector.write(libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: limit.take(guard.len()),
        });
    }
    // SAFETY: all-zero is a valid `msghdr`: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr().cast();
    message.msg_iovlen = count as _;
    loop {
        match usize::try_from(call(&raw mut message)) {
            Ok(bytes) => return Ok((bytes, message.msg_flags)),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() == Some(libc::EFAULT) {
                    memory_faults::note_efault();
                }
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// What was sent and the peer has not read, in bytes with what the kernel spends on them.
///
/// # Errors
///
/// Those of `ioctl(2)`: on a stream socket, none.
pub(crate) fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which is TIOCOUTQ by number, writes one int, to a place for it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// The number of the process at the other end, which may listen there: 0 if it has none where
/// this one lives, as one outside of a container has none inside.
///
/// # Errors
///
/// Those of `getsockopt(2)`: on a UNIX socket that is connected, none.
pub(crate) fn peer_process(socket: BorrowedFd<'_>) -> io::Result<libc::pid_t> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: SO_PEERCRED writes at most `len` bytes, to a place for them, which may be any.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(peer.pid)
}

/// Closes a descriptor that its owner gave away as a number.
///
/// # Safety
///
/// Nobody else owns `fd`, and nobody uses it afterwards.
pub(crate) unsafe fn close(fd: RawFd) {
    // SAFETY: the caller's promise.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::memory::Memory;

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn pieces<'m>(mem: &'m Memory, places: &[(u64, usize)]) -> Vec<Piece<'m>> {
        places
            .iter()
            .map(|&(at, len)| mem.get_slice(GuestAddress(at), len).unwrap())
            .collect()
    }

    #[test]
    fn moves_bytes_from_pieces_to_pieces() {
        let mem = memory();
        mem.write_slice(b"hello, ", GuestAddress(0x100)).unwrap();
        mem.write_slice(b"guest", GuestAddress(0x900)).unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let sent = send(one.as_fd(), &pieces(&mem, &[(0x100, 7), (0x900, 5)])).unwrap();
        assert_eq!(sent, 12);
        let into = pieces(&mem, &[(0x2000, 3), (0x3000, 100)]);
        assert_eq!(receive(other.as_fd(), &into).unwrap().bytes, 12);
        let mut bytes = [0; 12];
        mem.read_slice(&mut bytes[..3], GuestAddress(0x2000))
            .unwrap();
        mem.read_slice(&mut bytes[3..], GuestAddress(0x3000))
            .unwrap();
        assert_eq!(&bytes, b"hello, guest");
    }

    #[test]
    fn never_waits() {
        let mem = memory();
        let (one, _other) = UnixStream::pair().unwrap();
        let all = pieces(&mem, &[(0, 0x10000)]);
        let error = receive(one.as_fd(), &all).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let error = loop {
            if let Err(error) = send(one.as_fd(), &all) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let mem = memory();
        let (one, other) = UnixStream::pair().unwrap();
        drop(other);
        let all = pieces(&mem, &[(0, 10)]);
        assert_eq!(
            send(one.as_fd(), &all).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert_eq!(receive(one.as_fd(), &all).unwrap().bytes, 0);
    }

    #[test]
    fn sends_more_pieces_than_one_call_takes() {
        let mem = memory();
        let (one, _other) = UnixStream::pair().unwrap();
        let many = pieces(&mem, &[(0, 1); MAX_PIECES + 10]);
        assert_eq!(send(one.as_fd(), &many).unwrap(), MAX_PIECES + 10);
    }
}
