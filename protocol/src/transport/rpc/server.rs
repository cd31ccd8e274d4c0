//! The serving side.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_local;

use super::lane::{AbortOnDrop, Held, Lanes};
use crate::identity::PeerIdentity;
use crate::transport::{Channel, Connection, FrameReceiver, TransportError};

/// What one channel may occupy at once. Beyond it no more requests are read, and the peer's next ones wait.
#[derive(Clone, Debug)]
pub struct ServeLimits {
    /// Requests in service, from being read until their reply is written; at least 8.
    pub requests_max: usize,
    /// Payload bytes of large requests in service; at least the largest frame.
    pub payload_bytes_max: usize,
    /// Shared with other channels, if several must not have more than so many requests in service together.
    pub gate: Option<Gate>,
}

/// Bounds the requests that several channels have in service together, from being handed to their handlers until they
/// are answered. Channels that wait take turns, one request each.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// Lets `requests_max` through at once.
    pub fn new(requests_max: usize) -> Gate {
        Gate(Arc::new(Semaphore::new(requests_max)))
    }
}

impl Default for ServeLimits {
    fn default() -> Self {
        ServeLimits { requests_max: 4096, payload_bytes_max: 64 << 20, gate: None }
    }
}

/// Serves the calls of one channel until the peer ends it or the connection is lost; dropping the future ends it
/// too. Requests start in the order in which the client made them, small and large ones apart; replies go out in the
/// order in which handlers finish.
///
/// Must run within a [`LocalSet`](tokio::task::LocalSet): each handler becomes a local task, so it need not be
/// `Send`. A handler runs to its end even if its caller is gone; one that waits for long should watch
/// [`Connection::closed`].
///
/// # Errors
/// How the channel ended, unless the peer ended it in good order.
pub async fn serve_rpc<Req, Resp, H, F>(
    channel: Channel,
    limits: ServeLimits,
    handler: H,
) -> Result<(), TransportError>
where
    Req: DeserializeOwned + 'static,
    Resp: Serialize + 'static,
    H: Fn(Arc<PeerIdentity>, Req, Bytes) -> F + 'static,
    F: Future<Output = (Resp, Bytes)> + 'static,
{
    let peer = channel.connection().peer().clone();
    serve_calls(channel, limits, move |request, payload, responder: Responder<Resp>| {
        let service = handler(peer.clone(), request, payload);
        spawn_local(async move {
            let (response, payload) = service.await;
            responder.send(&response, payload);
        });
    })
    .await
}

/// As [`serve_rpc`], without a task per call: `handler` is called with each request in turn and must not wait; it or
/// somebody else answers through the [`Responder`] whenever the answer is there.
///
/// # Errors
/// How the channel ended, unless the peer ended it in good order.
pub async fn serve_calls<Req, Resp, H>(
    channel: Channel,
    limits: ServeLimits,
    handler: H,
) -> Result<(), TransportError>
where
    Req: DeserializeOwned + 'static,
    Resp: Serialize + 'static,
    H: Fn(Req, Bytes, Responder<Resp>) + 'static,
{
    let connection = channel.connection().clone();
    let Channel { sender, receiver, bulk, .. } = channel;
    let Some((bulk_sender, bulk_receiver)) = bulk else {
        let why = "it opened a channel for calls without the stream for large frames";
        connection.close_malformed(why);
        return Err(connection.closed().await.into());
    };
    let server = Rc::new(Server {
        connection,
        handler,
        replies: ClosingLanes(Rc::new(Lanes::new())),
        requests: Arc::new(Semaphore::new(limits.requests_max.max(REQUESTS_MIN))),
        payload_kib: Arc::new(Semaphore::new((limits.payload_bytes_max >> 10).max(PAYLOAD_KIB_MIN))),
        payload_kib_max: (limits.payload_bytes_max >> 10).max(PAYLOAD_KIB_MIN),
        gate: limits.gate,
    });
    let [small_writer, bulk_writer] = server.replies.0.writers(sender, bulk_sender);
    let mut small_writer = tokio::spawn(small_writer);
    let mut bulk_writer = tokio::spawn(bulk_writer);
    let mut bulk_reader = spawn_local(server.clone().read(bulk_receiver));
    let _abort = [
        AbortOnDrop(small_writer.abort_handle()),
        AbortOnDrop(bulk_writer.abort_handle()),
        AbortOnDrop(bulk_reader.abort_handle()),
    ];
    tokio::select! {
        result = server.read(receiver) => result,
        result = &mut bulk_reader => result.unwrap_or(Err(TransportError::ChannelReset)),
        error = &mut small_writer => Err(error.unwrap_or(TransportError::ChannelReset)),
        error = &mut bulk_writer => Err(error.unwrap_or(TransportError::ChannelReset)),
    }
}

/// Where the answer to one call goes. Dropped without [`send`](Self::send) it leaves the caller waiting until its
/// connection ends, so every call has to be answered. The call counts against [`ServeLimits`] until then.
pub struct Responder<Resp> {
    id: u64,
    lanes: Rc<Lanes>,
    connection: Connection,
    held: Held,
    /// Not held until the answer is written: who does not read its answers must not keep others out.
    passed: Option<OwnedSemaphorePermit>,
    response: PhantomData<fn(Resp)>,
}

impl<Resp: Serialize> Responder<Resp> {
    /// Queues the answer. It goes nowhere if the channel has ended.
    pub fn send(self, response: &Resp, payload: Bytes) {
        drop(self.passed);
        if let Err(error) = self.lanes.push(self.id, response, payload, self.held) {
            self.connection.close_malformed(&format!("a reply to it cannot be sent: {error}"));
        }
    }
}

/// Each of the two readers holds one while it waits for a request.
const REQUESTS_MIN: usize = 8;

/// How long one channel's requests may be handled while others wait: a handler that has to read from a disk may take
/// a hundred times as long as usual.
const TURN: Duration = Duration::from_millis(1);

/// The largest frame must fit.
const PAYLOAD_KIB_MIN: usize = crate::frame::FRAME_BYTES_MAX >> 10;

struct Server<H> {
    connection: Connection,
    handler: H,
    replies: ClosingLanes,
    requests: Arc<Semaphore>,
    payload_kib: Arc<Semaphore>,
    payload_kib_max: usize,
    gate: Option<Gate>,
}

/// Handlers outlive the channel; their replies then go nowhere instead of piling up.
struct ClosingLanes(Rc<Lanes>);

impl Drop for ClosingLanes {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<H> Server<H> {
    async fn read<Req, Resp>(self: Rc<Self>, mut receiver: FrameReceiver) -> Result<(), TransportError>
    where
        Req: DeserializeOwned + 'static,
        Resp: Serialize + 'static,
        H: Fn(Req, Bytes, Responder<Resp>) + 'static,
    {
        let mut turn = Instant::now();
        loop {
            let mut held: Held = [Some(take(&self.requests, 1).await), None];
            let Some(((id, request), payload)) = receiver.recv::<(u64, Req)>().await? else {
                return Ok(());
            };
            if payload.len() > super::SMALL_FRAME_BYTES_MAX {
                let kib = (payload.len() >> 10).min(self.payload_kib_max) as u32;
                held[1] = Some(take(&self.payload_kib, kib).await);
            }
            let passed = match &self.gate {
                Some(gate) => Some(take(&gate.0, 1).await),
                None => None,
            };
            let (lanes, connection) = (self.replies.0.clone(), self.connection.clone());
            (self.handler)(
                request,
                payload,
                Responder { id, lanes, connection, held, passed, response: PhantomData },
            );
            // A handler takes its time here; everybody else on this thread has to have a turn as well.
            if turn.elapsed() < TURN {
                tokio::task::consume_budget().await;
            } else {
                tokio::task::yield_now().await;
                turn = Instant::now();
            }
        }
    }
}

async fn take(semaphore: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    let permit = match semaphore.clone().try_acquire_many_owned(count) {
        Ok(permit) => Ok(permit),
        Err(_) => semaphore.clone().acquire_many_owned(count).await,
    };
    permit.expect("this semaphore is never closed")
}
