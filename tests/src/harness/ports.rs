//! Free UDP ports on an address of this machine.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::bail;

/// Below the kernel's range for outgoing connections, so that no client socket takes a server's port
/// while that server is down.
const FIRST: u16 = 7100;
const LAST: u16 = 32_000;

/// `count` UDP ports that nobody holds, in rising order. They are not reserved: bind them soon.
///
/// The search starts at a place that depends on the process, so that two clusters that start at the same
/// moment do not choose the same ports.
pub fn free_ports(address: IpAddr, count: usize) -> anyhow::Result<Vec<u16>> {
    let span = u32::from(LAST - FIRST);
    let offset = std::process::id().wrapping_mul(97) % span;
    let rotated = (0..span).map(|step| FIRST + u16::try_from((offset + step) % span).unwrap_or(0));
    let mut ports: Vec<u16> = rotated.filter(|port| is_free(address, *port)).take(count).collect();
    if ports.len() < count {
        bail!("{address} has no {count} free UDP ports between {FIRST} and {LAST}");
    }
    ports.sort_unstable();
    Ok(ports)
}

/// Whether nobody holds this UDP port now.
pub fn is_free(address: IpAddr, port: u16) -> bool {
    UdpSocket::bind(SocketAddr::new(address, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_distinct_and_bindable() {
        let address: IpAddr = [127, 0, 0, 1].into();
        let ports = free_ports(address, 7).unwrap();
        let sockets: Vec<_> = ports.iter().map(|port| UdpSocket::bind((address, *port)).unwrap()).collect();
        assert_eq!(sockets.len(), 7);
        assert!(!is_free(address, ports[0]));
    }
}
