//! Noticing within a fraction of a second that a server's process is gone.
//!
//! A killed process sends nothing, so QUIC learns of it by silence only, after the idle timeout. But its kernel
//! answers a datagram to the closed port with ICMP "port unreachable", which a *connected* UDP socket reports as
//! ECONNREFUSED. The probe is one byte that no QUIC endpoint answers. A stopped or overloaded process keeps its
//! port, so the probe never shortens the idle timeout for those.
//!
//! ICMP is not authenticated, but the kernel only reports one that quotes the probe's own address and random port,
//! and whoever sees those can also drop the packets of the connection.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

/// After a first refusal the second opinion comes this soon.
const RECHECK: Duration = Duration::from_millis(10);

/// Returns once the kernel behind `remote` said twice in a row that nobody has the port open. Never returns if the
/// probe cannot be set up: silence then decides.
pub(super) async fn port_closed(remote: SocketAddr, interval: Duration) {
    let Ok(socket) = super::link::connected(remote) else {
        return std::future::pending().await;
    };
    let mut refusals = 0;
    loop {
        let wait = if refusals == 0 { interval } else { RECHECK };
        tokio::time::sleep(wait).await;
        // A pending refusal is reported in place of the next operation's own result.
        if was_refused(socket.take_error()) || refused(&socket) {
            refusals += 1;
            if refusals == 2 {
                return;
            }
            let _ = socket.send(&[0]);
        } else {
            refusals = 0;
        }
    }
}

fn refused(socket: &UdpSocket) -> bool {
    socket.send(&[0]).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn was_refused(pending: io::Result<Option<io::Error>>) -> bool {
    pending.is_ok_and(|error| error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}
