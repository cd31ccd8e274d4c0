//! A connection to one verified peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;

use super::channel::{Channel, FrameReceiver, FrameSender, RawReceiver};
use super::refusals::Refusals;
use super::{Lost, PROTOCOL_VERSION, TransportError, close_code, probe};
use crate::identity::{ClusterId, PeerIdentity};

pub(super) mod welcome;

/// Channels opened by the peer that wait for [`Connection::accept_channel`]; then its next ones wait too.
const CHANNELS_WAITING_MAX: usize = 64;

/// A channel's first frame must follow its opening within this time.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection to one verified peer. Cheap to clone; closed when the last clone and the last channel are dropped.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    quic: quinn::Connection,
    peer: Arc<PeerIdentity>,
    cluster: ClusterId,
    channels: Mutex<mpsc::Receiver<Opened>>,
    next_group: AtomicU32,
    closer: Closer,
    tasks: Vec<AbortHandle>,
}

/// The first frame of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Preamble {
    version: u16,
    cluster: ClusterId,
    kind: u8,
    /// Streams of one channel carry the same number.
    group: u32,
    lane: Lane,
}

/// Which stream of its channel this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Lane {
    /// The only one.
    Single,
    /// Of two: the one for small frames, opened first.
    Small,
    /// Of two: the one for large frames.
    Bulk,
}

/// A channel that the peer opened, before its user is known.
struct Opened {
    kind: u8,
    main: Stream,
    bulk: Option<Stream>,
}

struct Stream {
    send: quinn::SendStream,
    receive: RawReceiver,
}

impl Connection {
    pub(super) fn new(
        quic: quinn::Connection,
        peer: PeerIdentity,
        cluster: ClusterId,
        probe_interval: Option<Duration>,
        refusals: Arc<Refusals>,
    ) -> Connection {
        let closer = Closer { quic: quic.clone(), peer: peer.to_string(), why: Arc::default(), refusals };
        let (sender, channels) = mpsc::channel(CHANNELS_WAITING_MAX);
        let acceptor =
            ChannelAcceptor { quic: quic.clone(), cluster, closer: closer.clone(), halves: BTreeMap::new() };
        let mut tasks = vec![tokio::spawn(acceptor.run(sender)).abort_handle()];
        if let Some(interval) = probe_interval {
            tasks.push(tokio::spawn(watch_port(quic.clone(), closer.clone(), interval)).abort_handle());
        }
        let inner = Inner {
            quic,
            peer: Arc::new(peer),
            cluster,
            channels: Mutex::new(channels),
            next_group: AtomicU32::new(0),
            closer,
            tasks,
        };
        Connection { inner: Arc::new(inner) }
    }

    /// Who is at the other end, as its verified certificate says.
    pub fn peer(&self) -> &Arc<PeerIdentity> {
        &self.inner.peer
    }

    /// Where the peer is now.
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.quic.remote_address()
    }

    /// The smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.inner.quic.rtt()
    }

    /// The datagram size that discovery has reached, in bytes.
    pub fn mtu(&self) -> u16 {
        self.inner.quic.stats().path.current_mtu
    }

    /// Opens a channel. The peer gets it from [`Connection::accept_channel`]. Waits while the peer holds as many
    /// channels of this side as it allows.
    pub async fn open_channel(&self, kind: u8) -> Result<Channel, TransportError> {
        let group = self.next_group();
        let (sender, receiver) = self.open_stream(kind, group, Lane::Single).await?;
        Ok(Channel { kind, sender, receiver, bulk: None })
    }

    /// Opens a channel of two streams, the second for large frames.
    pub(super) async fn open_double_channel(&self, kind: u8) -> Result<Channel, TransportError> {
        let group = self.next_group();
        let (sender, receiver) = self.open_stream(kind, group, Lane::Small).await?;
        sender.set_priority(1);
        let bulk = self.open_stream(kind, group, Lane::Bulk).await?;
        Ok(Channel { kind, sender, receiver, bulk: Some(bulk) })
    }

    /// The next channel that the peer opened, with its kind. Cancelling loses nothing. Channels come in the order
    /// in which they were opened, and wait here until they are taken, so some task must always be taking them.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn accept_channel(&self) -> Result<(u8, Channel), TransportError> {
        let opened = self.inner.channels.lock().await.recv().await;
        let Some(Opened { kind, main, bulk }) = opened else {
            return Err(self.closed().await.into());
        };
        let wrap = |stream: Stream| {
            (FrameSender::new(stream.send, self.clone()), FrameReceiver::new(stream.receive, self.clone()))
        };
        let (sender, receiver) = wrap(main);
        if bulk.is_some() {
            sender.set_priority(1);
        }
        Ok((kind, Channel { kind, sender, receiver, bulk: bulk.map(wrap) }))
    }

    /// Closes the connection at once; `why` is told to the peer. Frames not yet received by it are lost.
    pub fn close(&self, why: &str) {
        self.inner.closer.close(close_code::DONE, why);
    }

    /// Waits for the end of the connection and returns how it ended.
    pub async fn closed(&self) -> Lost {
        let error = self.inner.quic.closed().await;
        self.inner.closer.explain(error)
    }

    /// How the connection ended, if it did.
    pub fn lost(&self) -> Option<Lost> {
        self.inner.quic.close_reason().map(|error| self.inner.closer.explain(error))
    }

    pub fn is_closed(&self) -> bool {
        self.inner.quic.close_reason().is_some()
    }

    /// Whether both handles are of the same connection.
    pub fn is_same(&self, other: &Connection) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Closes the connection because the peer sent something impossible, and says so in the log.
    pub fn close_malformed(&self, why: &str) {
        self.inner.closer.misbehaved(close_code::MALFORMED, why);
    }

    pub(super) fn explain(&self, error: quinn::ConnectionError) -> Lost {
        self.inner.closer.explain(error)
    }

    fn next_group(&self) -> u32 {
        self.inner.next_group.fetch_add(1, Ordering::Relaxed)
    }

    async fn open_stream(
        &self,
        kind: u8,
        group: u32,
        lane: Lane,
    ) -> Result<(FrameSender, FrameReceiver), TransportError> {
        let (send, receive) = self.inner.quic.open_bi().await.map_err(|error| self.explain(error))?;
        let mut sender = FrameSender::new(send, self.clone());
        let preamble = Preamble { version: PROTOCOL_VERSION, cluster: self.inner.cluster, kind, group, lane };
        sender.send(&preamble, bytes::Bytes::new()).await?;
        Ok((sender, FrameReceiver::new(RawReceiver::new(receive), self.clone())))
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({} at {})", self.inner.peer, self.remote_address())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.closer.close(close_code::DONE, "it is no longer needed");
    }
}

/// Closes the connection from wherever a reason is found, and remembers the first reason.
#[derive(Clone)]
struct Closer {
    quic: quinn::Connection,
    peer: String,
    why: Arc<OnceLock<String>>,
    refusals: Arc<Refusals>,
}

impl Closer {
    fn close(&self, code: u32, why: &str) {
        if self.quic.close_reason().is_none() {
            let _ = self.why.set(why.to_owned());
            self.quic.close(code.into(), why.as_bytes());
        }
    }

    fn misbehaved(&self, code: u32, why: &str) {
        if self.quic.close_reason().is_none() {
            tracing::warn!(
                "Closed the connection to {} at {}: {why}. It may connect again; if this repeats, compare the \
                 versions of both sides.",
                self.peer,
                self.quic.remote_address(),
            );
            self.refusals.record_misbehaved();
            self.close(code, why);
        }
    }

    fn explain(&self, error: quinn::ConnectionError) -> Lost {
        match error {
            quinn::ConnectionError::ApplicationClosed(close) => {
                Lost::ClosedByPeer { why: String::from_utf8_lossy(&close.reason).into_owned() }
            }
            quinn::ConnectionError::LocallyClosed => Lost::ClosedHere {
                why: self.why.get().cloned().unwrap_or_else(|| "the endpoint was closed".to_owned()),
            },
            quinn::ConnectionError::TimedOut => Lost::Silent,
            quinn::ConnectionError::Reset => Lost::Restarted,
            other => Lost::Failed { why: other.to_string() },
        }
    }
}

async fn watch_port(quic: quinn::Connection, closer: Closer, interval: Duration) {
    tokio::select! {
        _ = quic.closed() => {}
        () = probe::port_closed(quic.remote_address(), interval) => {
            closer.close(close_code::GONE, "the peer's process is gone: its machine says that the port is closed");
        }
    }
}

/// Reads the first frame of each channel that the peer opens.
struct ChannelAcceptor {
    quic: quinn::Connection,
    cluster: ClusterId,
    closer: Closer,
    /// Small lanes whose bulk lane is not there yet, by group; bounded by the number of streams allowed.
    halves: BTreeMap<u32, (u8, Stream)>,
}

impl ChannelAcceptor {
    async fn run(mut self, channels: mpsc::Sender<Opened>) {
        // Ends when the connection ends, which everybody notices by themselves.
        while let Ok((send, receive)) = self.quic.accept_bi().await {
            let stream = Stream { send, receive: RawReceiver::new(receive) };
            match tokio::time::timeout(PREAMBLE_TIMEOUT, self.admit(stream)).await {
                Ok(Ok(Some(opened))) => {
                    if channels.send(opened).await.is_err() {
                        return;
                    }
                }
                Ok(Ok(None)) => {}
                Ok(Err(why)) => self.closer.misbehaved(close_code::INCOMPATIBLE, &why),
                Err(_) => {
                    self.closer
                        .misbehaved(close_code::MALFORMED, "it opened a channel and sent no first frame");
                }
            }
        }
    }

    async fn admit(&mut self, mut stream: Stream) -> Result<Option<Opened>, String> {
        let frame = match stream.receive.recv().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err("a channel ended before its first frame".to_owned()),
            Err(error) => return Err(format!("a channel's first frame did not come: {error}")),
        };
        let preamble: Preamble = frame
            .decode()
            .map_err(|error| format!("a channel starts with what is no first frame: {error}"))?;
        check_version(preamble.version, preamble.cluster, self.cluster)?;
        let kind = preamble.kind;
        match preamble.lane {
            Lane::Single => Ok(Some(Opened { kind, main: stream, bulk: None })),
            Lane::Small => match self.halves.insert(preamble.group, (kind, stream)) {
                None => Ok(None),
                Some(_) => Err(format!("two channels have the number {}", preamble.group)),
            },
            Lane::Bulk => match self.halves.remove(&preamble.group) {
                Some((first, main)) if first == kind => Ok(Some(Opened { kind, main, bulk: Some(stream) })),
                _ => {
                    Err(format!("the stream for large frames of channel {} belongs to none", preamble.group))
                }
            },
        }
    }
}

fn check_version(version: u16, cluster: ClusterId, own: ClusterId) -> Result<(), String> {
    if version != PROTOCOL_VERSION {
        return Err(format!(
            "it speaks protocol version {version} and this side version {PROTOCOL_VERSION}; bring both to the same \
             version of zabfs"
        ));
    }
    if cluster != own {
        return Err(format!("it speaks for cluster {cluster} and this cluster is {own}"));
    }
    Ok(())
}
