//! Taking locks and queueing for them.

use super::{MetaClient, MetaFailure};
use protocol::Errno;
use protocol::meta::{LockHolderInfo, LockRequest, LockResource, MetaReply, ReadOp, WriteOp};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;

/// A wait asks for its own state this often, in case that the message of its grant was lost with a leader.
const RECHECK_EVERY: Duration = Duration::from_secs(10);

/// What to lock.
#[derive(Clone, Debug)]
pub struct LockAsk {
    /// What.
    pub resource: LockResource,
    /// How, and whose.
    pub request: LockRequest,
    /// Who, for people.
    pub holder: LockHolderInfo,
}

/// A lock that is being waited for. Resolves with the fencing token. Dropped before that, the wait is cancelled
/// until that is confirmed, and a lock that was granted meanwhile is given back.
pub struct LockWait {
    client: Rc<MetaClient>,
    ask: LockAsk,
    receiver: oneshot::Receiver<Result<Held, Errno>>,
}

/// A lock that was taken.
#[derive(Clone, Copy)]
struct Held {
    token: u64,
    /// Number of the wait that led to it, if it had to wait.
    waiter: Option<u64>,
}

impl MetaClient {
    /// Takes a lock that is free. Resolves with its fencing token, or EAGAIN.
    pub async fn try_lock(self: &Rc<Self>, ask: LockAsk) -> Result<u64, Errno> {
        let LockAsk { resource, request, holder } = ask;
        let op = WriteOp::Lock { resource, request, wait: false, holder };
        match self.write(op).await? {
            MetaReply::Granted { token, fence } => {
                self.note_fence(fence);
                Ok(token)
            }
            _ => Err(MetaFailure::Unexpected("a lock").into()),
        }
    }

    /// Takes a lock or queues for it.
    pub fn lock(self: &Rc<Self>, ask: LockAsk) -> LockWait {
        let (sender, receiver) = oneshot::channel();
        tokio::task::spawn_local(acquire(self.clone(), ask.clone(), sender));
        LockWait { client: self.clone(), ask, receiver }
    }

    /// Releases what `request.owner` holds in the range. Idempotent.
    pub async fn unlock(self: &Rc<Self>, resource: LockResource, request: LockRequest) -> Result<(), Errno> {
        let LockRequest { owner, start, end, .. } = request;
        // Locks of an earlier session are gone with it.
        let generation = Some(self.generation());
        match self.write_in(generation, WriteOp::Unlock { resource, owner, start, end }).await {
            Ok(_) | Err(MetaFailure::SessionLost) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    fn give_back(self: &Rc<Self>, ask: LockAsk, held: Held) {
        let client = self.clone();
        let generation = Some(self.generation());
        tokio::task::spawn_local(async move {
            let given = match held.waiter {
                // Exactly what was granted, and nothing that its owner held before.
                Some(waiter) => {
                    let op = WriteOp::CancelWait { resource: ask.resource, waiter };
                    client.write_in(generation, op).await.map(drop).map_err(Errno::from)
                }
                None => client.unlock(ask.resource, ask.request).await,
            };
            if let Err(errno) = given {
                tracing::warn!(%errno, "a lock that nobody wants any more was not given back");
            }
        });
    }
}

impl Future for LockWait {
    type Output = Result<u64, Errno>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver)
            .poll(context)
            .map(|answer| answer.unwrap_or(Err(Errno::EIO)).map(|held| held.token))
    }
}

impl Drop for LockWait {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(Ok(held)) = self.receiver.try_recv() {
            self.client.give_back(self.ask.clone(), held);
        }
    }
}

/// Runs until the lock is held and its owner told so, or the wait is cancelled.
async fn acquire(client: Rc<MetaClient>, ask: LockAsk, mut owner: oneshot::Sender<Result<Held, Errno>>) {
    let answer = loop {
        match request(&client, &ask).await {
            Ok(Asked::Granted(token)) => break Ok(Held { token, waiter: None }),
            Ok(Asked::Queued(waiter)) => match wait_for(&client, &ask.resource, waiter, &mut owner).await {
                Waited::Granted(token) => break Ok(Held { token, waiter: Some(waiter) }),
                Waited::Forgotten => {}
                Waited::Lost => break Err(Errno::EIO),
                Waited::Cancelled => return,
            },
            Err(failure) => break Err(failure.into()),
        }
        if owner.is_closed() {
            return;
        }
    };
    if let Err(Ok(held)) = owner.send(answer) {
        client.give_back(ask, held);
    }
}

enum Asked {
    Granted(u64),
    Queued(u64),
}

enum Waited {
    Granted(u64),
    /// The server knows neither a grant nor a wait: ask anew.
    Forgotten,
    Lost,
    Cancelled,
}

async fn request(client: &Rc<MetaClient>, ask: &LockAsk) -> Result<Asked, MetaFailure> {
    let LockAsk { resource, request, holder } = ask.clone();
    match client.write(WriteOp::Lock { resource, request, wait: true, holder }).await? {
        MetaReply::Granted { token, fence } => {
            client.note_fence(fence);
            Ok(Asked::Granted(token))
        }
        MetaReply::Queued { waiter } => Ok(Asked::Queued(waiter)),
        _ => Err(MetaFailure::Unexpected("a lock")),
    }
}

async fn wait_for(
    client: &Rc<MetaClient>,
    resource: &LockResource,
    waiter: u64,
    owner: &mut oneshot::Sender<Result<Held, Errno>>,
) -> Waited {
    let generation = client.generation();
    let mut grant = client.waits.borrow_mut().wait((resource.clone(), waiter));
    let mut attachments = client.attachment.subscribe();
    attachments.mark_unchanged();
    loop {
        tokio::select! {
            token = &mut grant => return token.map_or(Waited::Lost, Waited::Granted),
            () = owner.closed() => {
                client.waits.borrow_mut().forget(&(resource.clone(), waiter));
                let cancel = WriteOp::CancelWait { resource: resource.clone(), waiter };
                let _ = client.write_in(Some(generation), cancel).await;
                return Waited::Cancelled;
            }
            _ = attachments.changed() => {}
            () = tokio::time::sleep(RECHECK_EVERY) => {}
        }
        let state = ReadOp::WaitState { resource: resource.clone(), waiter };
        let asked = tokio::select! {
            asked = client.read(state) => asked,
            token = &mut grant => return token.map_or(Waited::Lost, Waited::Granted),
            // Handled at the top.
            () = owner.closed() => continue,
        };
        if client.generation() != generation {
            return Waited::Lost;
        }
        match asked {
            Ok(MetaReply::Granted { token, fence }) => {
                client.note_fence(fence);
                client.waits.borrow_mut().forget(&(resource.clone(), waiter));
                return Waited::Granted(token);
            }
            Ok(_) => {}
            Err(_) => {
                client.waits.borrow_mut().forget(&(resource.clone(), waiter));
                // The grant may have arrived and been answered for in the meantime.
                return grant.try_recv().map_or(Waited::Forgotten, Waited::Granted);
            }
        }
    }
}
