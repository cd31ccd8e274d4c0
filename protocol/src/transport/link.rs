//! The UDP socket and what the kernel knows about the way to a peer.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::TransportError;

/// A bound, non-blocking UDP socket with large buffers.
pub(super) fn bind(address: SocketAddr, buffer_bytes: usize) -> Result<UdpSocket, TransportError> {
    let failed = |error: io::Error| TransportError::Bind { address, why: error.to_string() };
    let socket =
        Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    enlarge(&socket, buffer_bytes).map_err(failed)?;
    socket.bind(&address.into()).map_err(failed)?;
    Ok(socket.into())
}

/// A socket whose peer is `remote`: the kernel reports to it what it learns about that peer.
pub(super) fn connected(remote: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(remote)?;
    Ok(socket)
}

/// The MTU of the route to `remote`, as far as this machine knows it.
pub(super) fn route_mtu(remote: SocketAddr) -> Option<u16> {
    let socket = connected(remote).ok()?;
    let (level, name) = match remote {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mtu = integer_option(&socket, level, name).ok()?;
    // Loopback's 65536 is one more than the type holds.
    Some(u16::try_from(mtu.clamp(0, 65_535)).expect("clamped to the type's range"))
}

fn enlarge(socket: &Socket, bytes: usize) -> io::Result<()> {
    let set_and_get = [
        (
            Socket::set_recv_buffer_size as fn(&Socket, usize) -> io::Result<()>,
            Socket::recv_buffer_size as fn(&Socket) -> io::Result<usize>,
            libc::SO_RCVBUFFORCE,
            "net.core.rmem_max",
        ),
        (Socket::set_send_buffer_size, Socket::send_buffer_size, libc::SO_SNDBUFFORCE, "net.core.wmem_max"),
    ];
    for (set, get, force, limit) in set_and_get {
        set(socket, bytes)?;
        // The kernel reports twice what it grants, and grants less than asked without an error.
        if get(socket)? / 2 >= bytes || set_integer_option(socket, libc::SOL_SOCKET, force, bytes).is_ok() {
            continue;
        }
        tracing::warn!(
            "The kernel grants socket buffers of {} bytes instead of {bytes}, which costs throughput. Raise it with \
             `sysctl -w {limit}={bytes}`.",
            get(socket)? / 2,
        );
    }
    Ok(())
}

#[allow(unsafe_code, reason = "no safe wrapper exposes IP_MTU")]
fn integer_option(socket: &impl AsRawFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `length` outlive the call and describe one c_int, which these options fill.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

#[allow(unsafe_code, reason = "no safe wrapper exposes SO_RCVBUFFORCE and SO_SNDBUFFORCE")]
fn set_integer_option(socket: &impl AsRawFd, level: i32, name: i32, value: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(value).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer and length describe one c_int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_carries_jumbo_datagrams() {
        let mtu = route_mtu("127.0.0.1:9".parse().unwrap()).unwrap();
        assert!(mtu >= 1500, "route MTU {mtu}");
    }
}
