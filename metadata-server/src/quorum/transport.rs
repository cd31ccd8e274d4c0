//! Links among metadata servers.
//!
//! Each server opens one connection to every other and sends its messages on one channel of it; what a peer says
//! arrives on the channel that the peer opened. So there is one writer and one order per direction, and nothing to
//! arbitrate when both connect at once. Snapshots travel on channels of their own, on the same connections.
//!
//! A link keeps order and loses only a suffix: when its connection ends, or its queue would exceed its bound and the
//! connection is therefore closed, everything not yet sent is dropped and the driver hears of it. While there is no
//! connection, messages are dropped: zab repeats itself.
//!
//! ```text
//! channel ZAB   first frame: header Hello
//!   Messages    frames: header (), payload postcard(zab::Message)
//!   Snapshot    frames: header SnapshotFrame, payload the chunk; see `snapshot`
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use protocol::channel_kind;
use protocol::identity::Role;
use protocol::transport::{
    Channel, Connection, Endpoint, EndpointStats, Expect, FrameReceiver, FrameSender, TransportError,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use zab::{Body, Message, PeerId, Zxid};

/// Bytes that wait to be sent to one peer. Zab has at most half of it on the way to one follower.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Messages that wait to be sent to one peer.
const QUEUE_MESSAGES_MAX: usize = 65_536;
/// Messages and reports that wait for the driver; further ones wait with their senders.
const EVENTS_MAX: usize = 1024;
/// Between attempts to connect: from the first to the second, doubling up to the last.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(320);
/// One attempt to connect. Shorter than the transport's own: a server that starts meanwhile is found sooner by a
/// new attempt than by the old one's repetitions, which come ever more slowly.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// Answers that wait for a peer that this server has no link to.
const ANSWERS_MAX: usize = 16;
/// A channel must say what it is for within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// The first frame of a channel between metadata servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Hello {
    Messages {
        /// Drawn by the sender's process at its start.
        incarnation: u64,
    },
    Snapshot {
        id: u64,
        zxid: Zxid,
    },
}

/// What the network tells the driver.
pub(super) enum NetworkEvent {
    Message {
        from: PeerId,
        message: Message,
    },
    /// What was on the way from or to this peer may be lost.
    Disconnected {
        peer: PeerId,
    },
    /// A peer wants to send a snapshot.
    SnapshotOffered {
        from: PeerId,
        id: u64,
        zxid: Zxid,
        receiver: FrameReceiver,
    },
}

/// All links of this server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    me: PeerId,
    incarnation: u64,
    events: mpsc::Sender<NetworkEvent>,
    links: Mutex<BTreeMap<PeerId, Link>>,
    readers: Mutex<BTreeMap<PeerId, Reader>>,
}

/// The task that reads a peer's messages, and which of the peer's processes sends them.
struct Reader {
    incarnation: u64,
    task: AbortHandle,
    /// The way back over the same channel, for peers that this server has no link to: who was removed, or is not
    /// added yet, has an address that nobody knows, and is to be told.
    answers: mpsc::Sender<Bytes>,
}

struct Link {
    queue: Arc<Queue>,
    task: AbortHandle,
}

impl Network {
    /// Starts to connect to `peers` (this server among them is ignored). Must be called within the runtime.
    /// `incarnation` differs between processes of one server.
    pub(super) fn start(
        endpoint: Endpoint,
        me: PeerId,
        incarnation: u64,
        peers: &BTreeMap<PeerId, Vec<String>>,
    ) -> (Network, mpsc::Receiver<NetworkEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (links, readers) = (Mutex::default(), Mutex::default());
        let inner = Inner { endpoint, me, incarnation, events, links, readers };
        let network = Network { inner: Arc::new(inner) };
        network.set_peers(peers);
        (network, receiver)
    }

    /// Replaces the peers and their addresses, `HOST:PORT` each, the likeliest first. Links to addresses that did not
    /// change go on.
    pub(super) fn set_peers(&self, peers: &BTreeMap<PeerId, Vec<String>>) {
        let mut links = lock(&self.inner.links);
        links.retain(|peer, link| {
            let is_kept = peers.get(peer).is_some_and(|addresses| *addresses == link.queue.addresses);
            if !is_kept {
                link.end();
            }
            is_kept
        });
        for (peer, addresses) in peers.iter().filter(|(peer, _)| **peer != self.inner.me) {
            links.entry(*peer).or_insert_with(|| {
                let queue = Arc::new(Queue { addresses: addresses.clone(), ..Queue::default() });
                let dialer = Dialer {
                    endpoint: self.inner.endpoint.clone(),
                    peer: *peer,
                    incarnation: self.inner.incarnation,
                    queue: queue.clone(),
                    events: self.inner.events.clone(),
                };
                Link { queue, task: tokio::spawn(dialer.run()).abort_handle() }
            });
        }
    }

    /// Queues a message, or drops it if there is no connection in either direction.
    pub(super) fn send(&self, to: PeerId, message: &Message) {
        let encode = || -> Bytes {
            let room = Vec::with_capacity(encoded_bytes(message));
            postcard::to_extend(message, room).expect("messages are made of types that always encode").into()
        };
        if let Some(link) = lock(&self.inner.links).get(&to)
            && link.queue.is_connected()
        {
            link.queue.push(encode());
        } else if let Some(reader) = lock(&self.inner.readers).get(&to) {
            // Who does not take its answers asks again.
            let _ = reader.answers.try_send(encode());
        }
    }

    /// Counters of the socket.
    pub(super) fn transport(&self) -> EndpointStats {
        self.inner.endpoint.stats()
    }

    /// The connection to a peer, for a snapshot.
    pub(super) fn connection(&self, to: PeerId) -> Option<Connection> {
        lock(&self.inner.links).get(&to).and_then(|link| link.queue.state().connection.clone())
    }

    /// The configured peers, and whether there is a connection to them.
    pub(super) fn peers(&self) -> Vec<(PeerId, bool)> {
        lock(&self.inner.links).iter().map(|(peer, link)| (*peer, link.queue.is_connected())).collect()
    }

    /// The peers that this server has a connection to.
    pub(super) fn connected(&self) -> Vec<PeerId> {
        self.peers().into_iter().filter(|(_, is_connected)| *is_connected).map(|(peer, _)| peer).collect()
    }

    /// Bytes that wait to be sent, to all peers together.
    pub(super) fn queued_bytes(&self) -> usize {
        lock(&self.inner.links).values().map(|link| link.queue.state().bytes).sum()
    }

    /// Takes a channel that another metadata server opened.
    pub(super) fn accept(&self, channel: Channel) {
        let peer = channel.connection().peer().clone();
        let from = PeerId(peer.id);
        if peer.role != Role::Metadata || from == self.inner.me {
            channel
                .connection()
                .close_malformed("it opened a channel that only other metadata servers may open");
            return;
        }
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.read_channel(from, channel).await });
    }

    /// Ends everything; nothing more is sent or received.
    pub(super) fn close(&self) {
        for (_, link) in std::mem::take(&mut *lock(&self.inner.links)) {
            link.end();
        }
        for (_, reader) in std::mem::take(&mut *lock(&self.inner.readers)) {
            reader.task.abort();
        }
    }
}

impl Inner {
    async fn read_channel(self: Arc<Inner>, from: PeerId, channel: Channel) {
        let connection = channel.connection().clone();
        let (sender, mut receiver) = channel.split();
        let hello = match timeout(HELLO_TIMEOUT, receiver.recv::<Hello>()).await {
            Ok(Ok(Some((hello, _)))) => hello,
            Ok(_) => return,
            Err(_) => {
                connection.close_malformed("a channel between metadata servers began with silence");
                return;
            }
        };
        match hello {
            Hello::Messages { incarnation } => self.start_reading(from, incarnation, sender, receiver).await,
            Hello::Snapshot { id, zxid } => {
                let _ = self.events.send(NetworkEvent::SnapshotOffered { from, id, zxid, receiver }).await;
            }
        }
    }

    async fn start_reading(
        &self,
        from: PeerId,
        incarnation: u64,
        sender: FrameSender,
        receiver: FrameReceiver,
    ) {
        let before = lock(&self.readers).remove(&from);
        let has_restarted = before.as_ref().is_some_and(|before| before.incarnation != incarnation);
        if let Some(before) = before.filter(|before| !before.task.is_finished()) {
            // It came back before the loss of its last connection was noticed. Said before its first new message.
            before.task.abort();
            let _ = self.events.send(NetworkEvent::Disconnected { peer: from }).await;
        }
        if let Some(link) = lock(&self.links).get(&from) {
            // A connection to the process that is gone may look alive until the idle timeout.
            if has_restarted && let Some(stale) = &link.queue.state().connection {
                stale.close("the peer has restarted");
            }
            // The peer is there: no reason to wait before connecting to it.
            link.queue.nudge.notify_one();
        }
        let task = tokio::spawn(read_messages(from, receiver, self.events.clone())).abort_handle();
        let (answers, waiting) = mpsc::channel(ANSWERS_MAX);
        tokio::spawn(send_answers(sender, waiting));
        let other = lock(&self.readers).insert(from, Reader { incarnation, task, answers });
        if let Some(other) = other {
            // Two channels at once: the later one counts.
            other.task.abort();
        }
    }
}

async fn read_messages(from: PeerId, mut receiver: FrameReceiver, events: mpsc::Sender<NetworkEvent>) {
    // An error means that the connection is lost, which the driver hears as such; nothing else is to be done.
    while let Ok(Some(((), payload))) = receiver.recv::<()>().await {
        match postcard::take_from_bytes::<Message>(&payload) {
            Ok((message, [])) => {
                if events.send(NetworkEvent::Message { from, message }).await.is_err() {
                    return;
                }
            }
            _ => {
                receiver.connection().close_malformed("it sent what is no message between metadata servers");
                break;
            }
        }
    }
    let _ = events.send(NetworkEvent::Disconnected { peer: from }).await;
}

/// Ends with the reader, or with the connection.
async fn send_answers(mut sender: FrameSender, mut waiting: mpsc::Receiver<Bytes>) {
    while let Some(answer) = waiting.recv().await {
        if sender.send(&(), answer).await.is_err() {
            return;
        }
    }
}

/// What a peer without a link to this server answers. Ends with the connection.
async fn read_answers(from: PeerId, mut answers: FrameReceiver, events: mpsc::Sender<NetworkEvent>) {
    while let Ok(Some(((), payload))) = answers.recv::<()>().await {
        let Ok((message, [])) = postcard::take_from_bytes::<Message>(&payload) else {
            answers.connection().close_malformed("it answered what is no message between metadata servers");
            return;
        };
        if events.send(NetworkEvent::Message { from, message }).await.is_err() {
            return;
        }
    }
}

impl Link {
    fn end(&self) {
        self.task.abort();
        if let Some(connection) = self.queue.state().connection.take() {
            connection.close("the link is no longer configured");
        }
    }
}

/// Messages on their way to one peer.
#[derive(Default)]
struct Queue {
    addresses: Vec<String>,
    state: Mutex<QueueState>,
    filled: Notify,
    nudge: Notify,
}

#[derive(Default)]
struct QueueState {
    connection: Option<Connection>,
    messages: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        lock(&self.state)
    }

    fn is_connected(&self) -> bool {
        self.state().connection.is_some()
    }

    fn push(&self, message: Bytes) {
        let mut state = self.state();
        let Some(connection) = &state.connection else { return };
        if state.bytes + message.len() > QUEUE_BYTES_MAX || state.messages.len() >= QUEUE_MESSAGES_MAX {
            connection.close("its messages are taken too slowly; it will be brought up to date again");
            state.clear();
            return;
        }
        state.bytes += message.len();
        state.messages.push_back(message);
        drop(state);
        self.filled.notify_one();
    }

    fn take(&self) -> VecDeque<Bytes> {
        let mut state = self.state();
        state.bytes = 0;
        std::mem::take(&mut state.messages)
    }
}

impl QueueState {
    fn clear(&mut self) {
        *self = QueueState::default();
    }
}

/// Keeps one link connected and sends what is queued.
struct Dialer {
    endpoint: Endpoint,
    peer: PeerId,
    incarnation: u64,
    queue: Arc<Queue>,
    events: mpsc::Sender<NetworkEvent>,
}

impl Dialer {
    async fn run(self) {
        let mut backoff = BACKOFF_MIN;
        let mut was_told = false;
        for address in self.queue.addresses.iter().cycle() {
            match self.connect(address).await {
                Ok((sender, answers)) => {
                    tracing::debug!("Connected to metadata server {}.", self.peer);
                    was_told = false;
                    let since = Instant::now();
                    let answers = tokio::spawn(read_answers(self.peer, answers, self.events.clone()));
                    let lost = self.pump(sender).await;
                    answers.abort();
                    tracing::debug!("Lost the connection to metadata server {}: {lost}.", self.peer);
                    if self.events.send(NetworkEvent::Disconnected { peer: self.peer }).await.is_err() {
                        return;
                    }
                    backoff = if since.elapsed() > BACKOFF_MAX { BACKOFF_MIN } else { backoff };
                }
                Err(error) if was_told => tracing::debug!("Still no metadata server {}: {error}.", self.peer),
                Err(error) => {
                    tracing::info!("Cannot reach metadata server {}: {error}. Trying on.", self.peer);
                    was_told = true;
                }
            }
            tokio::select! {
                () = sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
                () = self.queue.nudge.notified() => backoff = BACKOFF_MIN,
            }
        }
    }

    /// Opens the connection and the channel.
    async fn connect(&self, address: &str) -> Result<(FrameSender, FrameReceiver), String> {
        let attempt = async {
            let mut resolved = tokio::net::lookup_host(address)
                .await
                .map_err(|error| format!("cannot resolve its address {address}: {error}"))?;
            let socket =
                resolved.next().ok_or_else(|| format!("its address {address} resolves to nothing"))?;
            let expect = Expect::server(Role::Metadata, self.peer.0);
            let connected = self.endpoint.connect(socket, expect).await;
            let connection = connected.map_err(|error| error.to_string())?;
            let channel =
                connection.open_channel(channel_kind::ZAB).await.map_err(|error| error.to_string())?;
            let (mut sender, receiver) = channel.split();
            let hello = Hello::Messages { incarnation: self.incarnation };
            sender.send(&hello, Bytes::new()).await.map_err(|error| error.to_string())?;
            Ok((sender, receiver))
        };
        let timed_out = || format!("{address} did not answer within {CONNECT_TIMEOUT:?}");
        timeout(CONNECT_TIMEOUT, attempt).await.map_err(|_| timed_out())?
    }

    /// Sends until the connection is lost, and says why it was.
    async fn pump(&self, mut sender: FrameSender) -> TransportError {
        let connection = sender.connection().clone();
        self.queue.state().connection = Some(connection.clone());
        let lost = loop {
            let messages = self.queue.take();
            if messages.is_empty() {
                tokio::select! {
                    () = self.queue.filled.notified() => continue,
                    lost = connection.closed() => break lost.into(),
                }
            }
            if let Err(error) = send_all(&mut sender, messages).await {
                break error;
            }
        };
        self.queue.state().clear();
        // Also where only the channel failed: the peer must notice that something is missing.
        connection.close("a message could not be delivered");
        lost
    }
}

async fn send_all(sender: &mut FrameSender, messages: VecDeque<Bytes>) -> Result<(), TransportError> {
    for message in messages {
        sender.queue(&(), message)?;
    }
    sender.flush().await
}

/// Room for a message, encoded: at least what it takes, for those that have bytes worth mentioning.
fn encoded_bytes(message: &Message) -> usize {
    match &message.body {
        Body::Entries { entries, .. } => {
            128 + entries.iter().map(|entry| entry.bytes() as usize).sum::<usize>()
        }
        _ => 128,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "tests/transport.rs"]
mod tests;
