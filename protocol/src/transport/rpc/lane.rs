//! One direction of one stream: frames pushed from anywhere, written together by one task.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::AbortHandle;

use super::SMALL_FRAME_BYTES_MAX;
use crate::frame::{FrameBuffer, FrameError};
use crate::transport::{FrameSender, TransportError};

/// What is occupied until a frame is written: a place among the requests, and room for a large payload.
pub(super) type Held = [Option<OwnedSemaphorePermit>; 2];

/// The sending halves of a channel: small frames on one stream, large ones on the other.
pub(super) struct Lanes {
    small: Arc<Lane>,
    bulk: Arc<Lane>,
}

impl Lanes {
    pub(super) fn new() -> Lanes {
        Lanes { small: Arc::default(), bulk: Arc::default() }
    }

    /// Encodes a frame and queues it. `held` is released once the frame is written or can never be.
    pub(super) fn push<B: Serialize>(
        &self,
        id: u64,
        body: &B,
        payload: Bytes,
        held: Held,
    ) -> Result<(), FrameError> {
        let lane = if payload.len() > SMALL_FRAME_BYTES_MAX { &self.bulk } else { &self.small };
        lane.push(&(id, body), payload, held)
    }

    /// The tasks that write. Each ends when its stream fails.
    pub(super) fn writers(
        &self,
        small: FrameSender,
        bulk: FrameSender,
    ) -> [impl Future<Output = TransportError> + Send + use<>; 2] {
        [write(self.small.clone(), small), write(self.bulk.clone(), bulk)]
    }

    /// Drops what is queued and whatever comes.
    pub(super) fn close(&self) {
        self.small.close();
        self.bulk.close();
    }
}

#[derive(Default)]
struct Lane {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Default)]
struct Queue {
    frames: FrameBuffer,
    held: Vec<OwnedSemaphorePermit>,
    closed: bool,
}

impl Lane {
    fn push(&self, header: &impl Serialize, payload: Bytes, held: Held) -> Result<(), FrameError> {
        let mut queue = self.queue.lock().expect("nothing panics while the lock is held");
        if queue.closed {
            return Ok(());
        }
        let was_empty = queue.frames.is_empty();
        queue.frames.push(header, payload)?;
        queue.held.extend(held.into_iter().flatten());
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
        Ok(())
    }

    fn close(&self) {
        let mut queue = self.queue.lock().expect("nothing panics while the lock is held");
        queue.closed = true;
        queue.frames = FrameBuffer::default();
        queue.held.clear();
    }

    /// Moves everything queued to the sender, and returns what to hold until it is written; `None`: nothing there.
    fn take(&self, sender: &mut FrameSender) -> Option<Vec<OwnedSemaphorePermit>> {
        let mut queue = self.queue.lock().expect("nothing panics while the lock is held");
        if queue.frames.is_empty() {
            return None;
        }
        sender.absorb(&mut queue.frames);
        Some(std::mem::take(&mut queue.held))
    }
}

async fn write(lane: Arc<Lane>, mut sender: FrameSender) -> TransportError {
    loop {
        match lane.take(&mut sender) {
            None => lane.filled.notified().await,
            Some(held) => {
                if let Err(error) = sender.flush().await {
                    lane.close();
                    return error;
                }
                drop(held);
            }
        }
    }
}

/// Ends a task together with its owner.
pub(super) struct AbortOnDrop(pub(super) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
