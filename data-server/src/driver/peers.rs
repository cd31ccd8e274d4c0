//! Links between data servers.
//!
//! Each server opens a connection and one channel to every other server that is up, for what it sends; what it
//! receives comes over channels that the others open. A link is FIFO; when it breaks, whatever it carried may be
//! lost, and the replicas start over with a new Hello.

use super::Driver;
use bytes::Bytes;
use protocol::identity::Role;
use protocol::map::ClusterMap;
use protocol::replication::{PeerFrame, PeerMessage};
use protocol::transport::{Channel, Endpoint, Expect, FrameReceiver, FrameSender};
use protocol::{DataServerId, PgId, channel_kind};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

/// Frames that wait for a slow link; beyond it the link is ended and starts over.
const QUEUE_MAX: usize = 8192;
/// Their bytes, with the same rule.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Frames sent with one flush at most.
const BATCH_MAX: usize = 64;
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(200);

/// Where frames for a link go while there is a channel.
type Queue = Rc<RefCell<Option<QueueIn>>>;

/// Where frames go in.
struct QueueIn {
    sender: mpsc::Sender<(PeerFrame, Bytes)>,
    bytes: Rc<Cell<usize>>,
}

impl QueueIn {
    /// False if there is no room.
    fn push(&self, frame: PeerFrame, payload: Bytes) -> bool {
        let bytes = self.bytes.get() + payload.len();
        let fits = bytes <= QUEUE_BYTES_MAX && self.sender.try_send((frame, payload)).is_ok();
        if fits {
            self.bytes.set(bytes);
        }
        fits
    }
}

/// Where they come out.
struct QueueOut {
    receiver: mpsc::Receiver<(PeerFrame, Bytes)>,
    bytes: Rc<Cell<usize>>,
}

impl QueueOut {
    async fn recv(&mut self) -> Option<(PeerFrame, Bytes)> {
        self.receiver.recv().await.map(|frame| self.took(frame))
    }

    fn try_recv(&mut self) -> Option<(PeerFrame, Bytes)> {
        self.receiver.try_recv().ok().map(|frame| self.took(frame))
    }

    fn took(&self, frame: (PeerFrame, Bytes)) -> (PeerFrame, Bytes) {
        self.bytes.set(self.bytes.get() - frame.1.len());
        frame
    }
}

/// The links of this server.
pub struct Peers {
    endpoint: Endpoint,
    links: RefCell<BTreeMap<DataServerId, Link>>,
}

struct Link {
    address: SocketAddr,
    incarnation: u64,
    /// There is a channel: frames go here.
    queue: Queue,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peers {
    /// No links yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, links: RefCell::default() }
    }

    /// Sends a message, or drops it if there is no link.
    pub fn send(&self, to: DataServerId, pg: PgId, message: PeerMessage, payload: Bytes) {
        let links = self.links.borrow();
        let Some(link) = links.get(&to) else { return };
        let mut queue = link.queue.borrow_mut();
        let Some(open) = queue.as_ref() else { return };
        if !open.push(PeerFrame { pg, message }, payload) {
            tracing::warn!("the link to data server {to} is too slow; it starts over");
            // The link's task sees the end of its queue.
            *queue = None;
        }
    }

    /// Keeps a link to every other server that is up.
    pub fn adopt(&self, map: &ClusterMap, me: DataServerId, driver: &Rc<Driver>) {
        let mut links = self.links.borrow_mut();
        links.retain(|id, link| {
            map.data_servers
                .get(id)
                .is_some_and(|s| s.up && (s.address, s.incarnation) == (link.address, link.incarnation))
        });
        for (id, server) in map.data_servers.iter().filter(|(id, s)| **id != me && s.up) {
            links.entry(*id).or_insert_with(|| {
                let queue = Rc::new(RefCell::new(None));
                let task = keep(driver.clone(), self.endpoint.clone(), *id, server.address, queue.clone());
                Link {
                    address: server.address,
                    incarnation: server.incarnation,
                    queue,
                    task: spawn_local(task).abort_handle(),
                }
            });
        }
    }
}

/// Connects again and again.
async fn keep(
    driver: Rc<Driver>,
    endpoint: Endpoint,
    server: DataServerId,
    address: SocketAddr,
    queue: Queue,
) {
    loop {
        match open(&endpoint, server, address).await {
            Ok(channel) => {
                let (sender, receiver) = mpsc::channel(QUEUE_MAX);
                let bytes = Rc::new(Cell::new(0));
                *queue.borrow_mut() = Some(QueueIn { sender, bytes: bytes.clone() });
                let frames = QueueOut { receiver, bytes };
                driver.link(server, true);
                let why = pump(channel, frames).await;
                *queue.borrow_mut() = None;
                tracing::info!("the link to data server {server} ended: {why}");
                driver.link(server, false);
            }
            Err(why) => tracing::debug!("no link to data server {server} at {address}: {why}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn open(endpoint: &Endpoint, server: DataServerId, address: SocketAddr) -> Result<Channel, String> {
    let expect = Expect::server(Role::Data, server.0);
    let connection = endpoint.connect(address, expect).await.map_err(|e| e.to_string())?;
    connection.open_channel(channel_kind::PEER).await.map_err(|e| e.to_string())
}

/// Sends frames until the queue or the connection ends.
async fn pump(channel: Channel, mut frames: QueueOut) -> String {
    let connection = channel.connection().clone();
    let (mut sender, _receiver) = channel.split();
    loop {
        let first = tokio::select! {
            lost = connection.closed() => return lost.to_string(),
            frame = frames.recv() => frame,
        };
        let Some(first) = first else {
            connection.close("the link starts over");
            return "its queue was full".into();
        };
        if let Err(error) = send_batch(&mut sender, first, &mut frames).await {
            return error;
        }
    }
}

async fn send_batch(
    sender: &mut FrameSender,
    first: (PeerFrame, Bytes),
    frames: &mut QueueOut,
) -> Result<(), String> {
    let mut next = Some(first);
    for _ in 0..BATCH_MAX {
        let Some((frame, payload)) = next else { break };
        sender.queue(&frame, payload).map_err(|e| e.to_string())?;
        next = frames.try_recv();
    }
    if let Some((frame, payload)) = next {
        sender.queue(&frame, payload).map_err(|e| e.to_string())?;
    }
    sender.flush().await.map_err(|e| e.to_string())
}

/// Takes what another server sends over a channel that it opened.
pub async fn receive(driver: Rc<Driver>, from: DataServerId, mut frames: FrameReceiver) {
    loop {
        match frames.recv::<PeerFrame>().await {
            Ok(Some((PeerFrame { pg, message }, payload))) => driver.message(from, pg, message, payload),
            Ok(None) => return,
            Err(error) => {
                tracing::debug!("the channel from data server {from} ended: {error}");
                return;
            }
        }
    }
}
