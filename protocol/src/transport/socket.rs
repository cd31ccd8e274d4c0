//! The UDP socket as quinn sees it, without wake-ups for nothing.
//!
//! tokio's own socket asks to be told of room for sending too. The kernel reports room whenever a packet has left, so
//! every packet sent brought its sender back once more, though it waits for room only when the socket's buffer is full.
//! Here the socket is registered for what arrives alone, and a second descriptor of it for room only while somebody
//! waits for that.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// tokio's runtime with [`Socket`]s.
#[derive(Debug)]
pub(super) struct QuietRuntime;

impl Runtime for QuietRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let state = UdpSocketState::new((&socket).into())?;
        let socket = register(socket, Interest::READABLE)?;
        Ok(Arc::new(Socket { socket, state, is_full: AtomicBool::new(false) }))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[allow(unsafe_code, reason = "only this registers for one direction alone")]
fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: a `UdpSocket` owns its open descriptor, always the same one, and lives as long as what is returned.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// See the module.
#[derive(Debug)]
struct Socket {
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The last packet did not fit into the socket's buffer.
    is_full: AtomicBool,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let result = self.state.send(self.socket.get_ref().into(), transmit);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.is_full.store(true, Ordering::Relaxed);
        }
        result
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            match self.state.recv(self.socket.get_ref().into(), buffers, meta) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Ok(received) => {
                    // It is empty now; what arrives from here on is reported anew.
                    if received < buffers.len() {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(received));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// Waits for room in the socket's buffer, for one connection.
struct Room {
    socket: Arc<Socket>,
    /// Registered for room, while there is none.
    waiting: Option<AsyncFd<UdpSocket>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.socket.is_full.load(Ordering::Relaxed) {
            self.waiting = None;
            return Poll::Ready(Ok(()));
        }
        if self.waiting.is_none() {
            let again = self.socket.socket.get_ref().try_clone()?;
            self.waiting = Some(register(again, Interest::WRITABLE)?);
        }
        if let Some(waiting) = &self.waiting {
            ready!(waiting.poll_write_ready(cx))?.retain_ready();
        }
        self.socket.is_full.store(false, Ordering::Relaxed);
        self.waiting = None;
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("waits", &self.waiting.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::link;
    use quinn::udp::EcnCodepoint;

    fn transmit(to: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit { destination: to, ecn: None::<EcnCodepoint>, contents, segment_size: None, src_ip: None }
    }

    fn socket(buffer_bytes: usize) -> Arc<dyn AsyncUdpSocket> {
        let any = "127.0.0.1:0".parse().expect("an address");
        let socket = link::bind(any, buffer_bytes).expect("a free port");
        QuietRuntime.wrap_udp_socket(socket).expect("a runtime")
    }

    async fn receive(socket: &dyn AsyncUdpSocket) -> usize {
        let (mut buffer, mut meta) = ([0; 65_536], [RecvMeta::default()]);
        std::future::poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta))
            .await
            .expect("it receives");
        meta[0].len
    }

    #[tokio::test]
    async fn every_packet_arrives_whenever_it_is_sent() {
        let (from, to) = (socket(1 << 20), socket(1 << 20));
        let address = to.local_addr().expect("bound");
        for length in 1..200 {
            let receiving = receive(&*to);
            tokio::pin!(receiving);
            if length % 2 == 0 {
                // It waits already when the packet comes.
                std::future::poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx).is_pending())).await;
            }
            from.try_send(&transmit(address, &vec![7; length])).expect("there is room");
            assert_eq!(receiving.await, length);
        }
    }

    /// Loopback takes every packet at once, so that no test fills the buffer itself.
    #[tokio::test]
    async fn whoever_found_the_buffer_full_is_told_of_room() {
        let socket = link::bind("127.0.0.1:0".parse().expect("an address"), 64 << 10).expect("a free port");
        let state = UdpSocketState::new((&socket).into()).expect("a socket");
        let socket = register(socket, Interest::READABLE).expect("a runtime");
        let socket = Arc::new(Socket { socket, state, is_full: AtomicBool::new(true) });
        let (mut one, mut other) = (socket.clone().create_io_poller(), socket.clone().create_io_poller());
        for room in [&mut one, &mut other] {
            socket.is_full.store(true, Ordering::Relaxed);
            let waiting = std::future::poll_fn(|cx| room.as_mut().poll_writable(cx));
            let told = tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await;
            assert!(told.is_ok_and(|room| room.is_ok()) && !socket.is_full.load(Ordering::Relaxed));
        }
    }
}
