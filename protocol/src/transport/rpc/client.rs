//! The calling side.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::lane::{AbortOnDrop, Held, Lanes};
use super::{CALLS_MAX, QUEUED_BYTES_MAX, SMALL_FRAME_BYTES_MAX};
use crate::frame::{Frame, FrameError, decode_header};
use crate::transport::{Channel, Connection, FrameReceiver, Lost, TransportError};

/// Why a call has no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RpcError {
    /// The request may or may not have been served.
    #[error("the call was cut off: {0}")]
    Disconnected(Lost),
    /// Nothing was sent.
    #[error("the request cannot be sent: {0}")]
    Unsendable(FrameError),
    /// The connection was closed because of it.
    #[error("the reply makes no sense: {0}")]
    Malformed(FrameError),
}

/// Calls over one connection. Cheap to clone; may be used from any task. Must be created within the runtime.
pub struct RpcClient<Req, Resp> {
    inner: Arc<Inner>,
    types: PhantomData<fn(Req) -> Resp>,
}

impl<Req, Resp> Clone for RpcClient<Req, Resp> {
    fn clone(&self) -> Self {
        RpcClient { inner: self.inner.clone(), types: PhantomData }
    }
}

struct Inner {
    shared: Arc<Shared>,
    _driver: AbortOnDrop,
}

struct Shared {
    connection: Connection,
    lanes: Lanes,
    calls: Arc<Semaphore>,
    /// In KiB, as a semaphore counts at most 2³² permits on small machines.
    queued_kib: Arc<Semaphore>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    next_id: u64,
    calls: BTreeMap<u64, Waiting>,
    lost: Option<Lost>,
}

struct Waiting {
    reply: oneshot::Sender<Frame>,
    /// Kept until the reply is there even if nobody waits for it: the server is still at work.
    _permit: OwnedSemaphorePermit,
}

impl<Req: Serialize, Resp: DeserializeOwned> RpcClient<Req, Resp> {
    /// Opens a channel of `kind`, which the peer hands to [`serve_rpc`](super::serve_rpc).
    pub fn new(connection: &Connection, kind: u8) -> Self {
        let shared = Arc::new(Shared {
            connection: connection.clone(),
            lanes: Lanes::new(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            queued_kib: Arc::new(Semaphore::new(QUEUED_BYTES_MAX >> 10)),
            pending: Mutex::default(),
        });
        let driver = tokio::spawn(drive(shared.clone(), kind)).abort_handle();
        RpcClient { inner: Arc::new(Inner { shared, _driver: AbortOnDrop(driver) }), types: PhantomData }
    }

    /// The connection that carries the calls.
    pub fn connection(&self) -> &Connection {
        &self.inner.shared.connection
    }

    /// Calls without a reply yet, also those that nobody waits for any more.
    pub fn in_flight(&self) -> usize {
        self.inner.shared.lock().calls.len()
    }

    /// Sends a request and waits for its reply. Requests of one client reach the server in the order of their calls
    /// as long as their payloads are all small or all large. If the call is dropped, its reply is discarded; the
    /// server may still serve it.
    ///
    /// # Errors
    /// See [`RpcError`]. There is no timeout here: wrap the call in one where a deadline is needed.
    pub async fn call(&self, request: &Req, payload: Bytes) -> Result<(Resp, Bytes), RpcError> {
        let shared = &self.inner.shared;
        let frame = shared.start(request, payload).await?.await.map_err(|_| shared.disconnected())?;
        let response = decode_header(&frame.header).map_err(|error| {
            shared.connection.close_malformed(&format!("a reply makes no sense: {error}"));
            RpcError::Malformed(error)
        })?;
        Ok((response, frame.payload))
    }
}

impl Shared {
    async fn start(
        &self,
        request: &impl Serialize,
        payload: Bytes,
    ) -> Result<oneshot::Receiver<Frame>, RpcError> {
        let permit = acquire(&self.calls, 1).await.ok_or_else(|| self.disconnected())?;
        let mut held: Held = [None, None];
        if payload.len() > SMALL_FRAME_BYTES_MAX {
            let kib = (payload.len() >> 10).min(QUEUED_BYTES_MAX >> 10) as u32;
            held[1] = Some(acquire(&self.queued_kib, kib).await.ok_or_else(|| self.disconnected())?);
        }
        let (reply, receiver) = oneshot::channel();
        let mut pending = self.lock();
        if let Some(lost) = &pending.lost {
            return Err(RpcError::Disconnected(lost.clone()));
        }
        let id = pending.next_id;
        self.lanes.push(id, request, payload, held).map_err(RpcError::Unsendable)?;
        pending.next_id += 1;
        pending.calls.insert(id, Waiting { reply, _permit: permit });
        Ok(receiver)
    }

    fn deliver(&self, mut frame: Frame) -> Result<(), FrameError> {
        let (id, rest) = postcard::take_from_bytes::<u64>(&frame.header).map_err(FrameError::Header)?;
        let used = frame.header.len() - rest.len();
        frame.header.advance(used);
        let Some(waiting) = self.lock().calls.remove(&id) else {
            return Err(FrameError::Header(postcard::Error::DeserializeBadEncoding));
        };
        // Nobody listens if the call was dropped.
        let _ = waiting.reply.send(frame);
        Ok(())
    }

    fn fail(&self, lost: Lost) {
        self.calls.close();
        self.queued_kib.close();
        self.lanes.close();
        let mut pending = self.lock();
        pending.lost = Some(lost);
        let calls = std::mem::take(&mut pending.calls);
        drop(pending);
        // Dropping the senders wakes every caller.
        drop(calls);
    }

    fn disconnected(&self) -> RpcError {
        let lost = self.lock().lost.clone().or_else(|| self.connection.lost());
        RpcError::Disconnected(
            lost.unwrap_or_else(|| Lost::Failed { why: "the channel is closed".to_owned() }),
        )
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().expect("nothing panics while the lock is held")
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, count: u32) -> Option<OwnedSemaphorePermit> {
    match semaphore.clone().try_acquire_many_owned(count) {
        Ok(permit) => Some(permit),
        Err(_) => semaphore.clone().acquire_many_owned(count).await.ok(),
    }
}

async fn drive(shared: Arc<Shared>, kind: u8) {
    let error = match shared.connection.open_double_channel(kind).await {
        Ok(channel) => carry(&shared, channel).await,
        Err(error) => error,
    };
    let lost = match error {
        TransportError::Lost(lost) => lost,
        other => shared.connection.lost().unwrap_or(Lost::Failed { why: other.to_string() }),
    };
    shared.fail(lost);
}

async fn carry(shared: &Arc<Shared>, channel: Channel) -> TransportError {
    let Channel { sender, receiver, bulk, .. } = channel;
    let Some((bulk_sender, bulk_receiver)) = bulk else { return TransportError::ChannelReset };
    let [small_writer, bulk_writer] = shared.lanes.writers(sender, bulk_sender);
    // Tasks of their own, so that one becoming ready does not poll the others.
    let mut small_writer = tokio::spawn(small_writer);
    let mut bulk_writer = tokio::spawn(bulk_writer);
    let mut bulk_reader = tokio::spawn(read(shared.clone(), bulk_receiver));
    let _abort = [&small_writer, &bulk_writer, &bulk_reader].map(|task| AbortOnDrop(task.abort_handle()));
    let ended = tokio::select! {
        error = read(shared.clone(), receiver) => return error,
        ended = &mut small_writer => ended,
        ended = &mut bulk_writer => ended,
        ended = &mut bulk_reader => ended,
    };
    ended.unwrap_or(TransportError::ChannelReset)
}

async fn read(shared: Arc<Shared>, mut receiver: FrameReceiver) -> TransportError {
    loop {
        match receiver.recv_frame().await {
            Ok(Some(frame)) => {
                if let Err(error) = shared.deliver(frame) {
                    return receiver.malformed(error);
                }
            }
            Ok(None) => return TransportError::ChannelReset,
            Err(error) => return error,
        }
    }
}
