//! The session with the metadata cluster.
//!
//! Model. One [`MetaClient`] holds one session at a time. Its connector task ([`connector`]) keeps one connection
//! *attached* to the session: it asks all servers at once, the one that can answer is the leader. Requests:
//!
//! | kind | sent | after a change of leader |
//! |---|---|---|
//! | [`MetaClient::read`] | when attached | sent again, any number of times |
//! | [`MetaClient::write`] | in order, with a sequence number | sent again in order under the same number |
//! | [`MetaClient::open_file`], [`MetaClient::close_file`] | when attached / in order | sent again: idempotent |
//!
//! Nothing here fails because a server is away: calls wait. When the session itself is lost (it expired, or a
//! data server says that it was fenced), what was in flight fails with [`MetaFailure::SessionLost`] and is never
//! sent again; the *generation* rises, a new session is opened, and requests that belong to an older generation
//! are refused.
//!
//! Bounds: [`ordered::ORDERED_MAX`] writes without an answer, sequence numbers spanning [`SPAN_MAX`],
//! [`READS_MAX`] reads in flight, [`waits::EARLY_MAX`] grants that nobody waits for yet. Beyond them callers wait,
//! and the oldest unclaimed grant is forgotten (its waiter asks for its state later).

pub mod backup;
pub mod bench;
mod connector;
mod error;
pub mod leader;
mod link;
mod locks;
mod ordered;
pub mod reader;
pub mod status;
mod waits;

pub use error::MetaFailure;
pub use locks::{LockAsk, LockWait};

use crate::backoff::Backoff;
use crate::map_holder::MapHolder;
use crate::os;
use crate::sequence::SequenceWindow;
use link::MetaLink;
use ordered::{ORDERED_MAX, Ordered, Outcome, Verdict, failure_of};
use protocol::meta::{
    ClientInfo, ClusterStatus, MetaError, MetaReply, MetaRequest, MetaResponse, Push, REPLIES_MAX, ReadOp,
    WriteOp,
};
use protocol::transport::Endpoint;
use protocol::transport::rpc::RpcError;
use protocol::{FileView, InodeId, MapEpoch, SessionId, Timestamp};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use waits::Waits;

/// Most sequence numbers from the oldest unanswered write to the newest: half of what the server remembers.
pub const SPAN_MAX: u64 = REPLIES_MAX / 2;
/// Most reads in flight; further ones wait.
pub const READS_MAX: usize = 2048;
/// Nothing heard for this long while an answer is due: the leader may be gone.
pub(crate) const SUSPECT_AFTER: Duration = Duration::from_millis(400);

/// How to reach the cluster and what to ask of it.
#[derive(Clone, Debug)]
pub struct MetaConfig {
    /// Addresses of metadata servers; one that is alive suffices, the others are learnt from its hints.
    pub addresses: Vec<SocketAddr>,
    /// Wanted session timeout.
    pub session_timeout: Duration,
    /// Who this is, for people.
    pub info: ClientInfo,
}

/// What the owner of a session is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaEvent {
    /// Another mount wants to change the size of this file: finish what is in flight, then give the hold back.
    RecallHold(InodeId),
    /// The session is lost; the number is the new generation.
    SessionLost(u64),
    /// A session of this generation is open.
    SessionOpened(u64),
    /// Another mount wants to know the times of this file: commit what is deferred, and defer nothing more.
    Settle(InodeId),
}

/// The session with the metadata cluster. See the module's documentation.
pub struct MetaClient {
    endpoint: Endpoint,
    config: MetaConfig,
    map: Rc<MapHolder>,
    state: RefCell<State>,
    fence: Cell<MapEpoch>,
    waits: RefCell<Waits>,
    /// The link that is attached, with the number of its attachment.
    attachment: watch::Sender<Option<Attachment>>,
    generation: watch::Sender<u64>,
    /// Room for another ordered request may have appeared.
    progress: Notify,
    reads: Semaphore,
    events: OnceCell<Box<dyn Fn(MetaEvent)>>,
    closing: Cell<bool>,
}

/// A link that is attached to the session.
#[derive(Clone)]
struct Attachment {
    number: u64,
    link: Rc<MetaLink>,
}

struct State {
    /// Proof of ownership of the session that is open or being opened.
    nonce: u128,
    session: Option<Session>,
    window: SequenceWindow,
    ordered: Ordered,
    /// Open handles, which every new attachment names.
    handles: BTreeMap<u64, InodeId>,
    addresses: Vec<SocketAddr>,
    links: BTreeMap<SocketAddr, Rc<MetaLink>>,
    attachments: u64,
    /// Why each server could not be used the last time, for people.
    problems: BTreeMap<SocketAddr, String>,
    last_status: Option<ClusterStatus>,
}

/// An open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its timeout.
    pub timeout: Duration,
    /// Until then, on CLOCK_BOOTTIME, it has surely not expired: counted from when the last answered heartbeat
    /// was *sent*, less a tenth for clocks that run apart.
    pub valid_until: Duration,
    /// Cluster time as of the last answer.
    pub cluster_time: Timestamp,
}

impl MetaClient {
    /// Prepares a client and starts its connector. Must be called within a `LocalSet`.
    pub fn start(endpoint: Endpoint, config: MetaConfig, map: Rc<MapHolder>) -> Rc<Self> {
        let state = State {
            nonce: os::random_u128(),
            session: None,
            window: SequenceWindow::new(SPAN_MAX),
            ordered: Ordered::default(),
            handles: BTreeMap::new(),
            addresses: config.addresses.clone(),
            links: BTreeMap::new(),
            attachments: 0,
            problems: BTreeMap::new(),
            last_status: None,
        };
        let client = Rc::new(Self {
            endpoint,
            config,
            map,
            state: RefCell::new(state),
            fence: Cell::new(MapEpoch(0)),
            waits: RefCell::default(),
            attachment: watch::Sender::new(None),
            generation: watch::Sender::new(0),
            progress: Notify::new(),
            reads: Semaphore::new(READS_MAX),
            events: OnceCell::new(),
            closing: Cell::new(false),
        });
        tokio::task::spawn_local(connector::run(client.clone()));
        client
    }

    /// Who is told of events; only the first call counts.
    pub fn on_event(&self, handler: impl Fn(MetaEvent) + 'static) {
        let _ = self.events.set(Box::new(handler));
    }

    /// The session, if one is open (attached or not).
    pub fn session(&self) -> Option<Session> {
        self.state.borrow().session
    }

    /// Number of sessions lost so far.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Resolves at every loss of the session from now on.
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The highest fence epoch heard of.
    pub fn fence(&self) -> MapEpoch {
        self.fence.get()
    }

    /// Whether a server that leads is connected now, and where it is.
    pub fn leader_address(&self) -> Option<SocketAddr> {
        self.attachment.borrow().as_ref().map(|attachment| attachment.link.address)
    }

    /// Whether a leader is connected and has not been silent for suspiciously long.
    pub fn is_reachable(&self) -> bool {
        self.attachment.borrow().as_ref().is_some_and(|attached| !attached.link.is_silent(SUSPECT_AFTER))
    }

    /// Waits until a session is open and attached; `Err` with a sentence per server after `patience`.
    pub async fn ready(&self, patience: Duration) -> Result<Session, String> {
        let mut attached = self.attachment.subscribe();
        let waiting = tokio::time::timeout(patience, attached.wait_for(Option::is_some));
        if waiting.await.is_ok_and(|attached| attached.is_ok())
            && let Some(session) = self.session()
        {
            return Ok(session);
        }
        let state = self.state.borrow();
        let problems: Vec<String> =
            state.problems.iter().map(|(address, why)| format!("{address}: {why}")).collect();
        let problems =
            if problems.is_empty() { "no server answered".to_owned() } else { problems.join("; ") };
        Err(format!("no metadata server that leads was found within {} s ({problems})", patience.as_secs()))
    }

    /// Reads; waits while no server leads.
    pub async fn read(&self, op: ReadOp) -> Result<MetaReply, MetaFailure> {
        self.ask(MetaRequest::Read(op)).await
    }

    /// Changes something, exactly once.
    pub async fn write(self: &Rc<Self>, op: WriteOp) -> Result<MetaReply, MetaFailure> {
        self.write_in(None, op).await
    }

    /// Changes something, exactly once, and only as part of what began in `generation`.
    pub async fn write_in(
        self: &Rc<Self>,
        generation: Option<u64>,
        op: WriteOp,
    ) -> Result<MetaReply, MetaFailure> {
        let mut backoff = Backoff::short();
        loop {
            match self.write_once(generation, op.clone()).await? {
                Err(MetaError::Busy) => backoff.wait().await,
                Err(error) => return Err(failure_of(error)),
                Ok(reply) => return Ok(reply),
            }
        }
    }

    /// As [`write_in`](Self::write_in), but asks once: `None` if something of another session is in the way.
    pub async fn write_or_busy(
        self: &Rc<Self>,
        generation: u64,
        op: WriteOp,
    ) -> Result<Option<MetaReply>, MetaFailure> {
        match self.write_once(Some(generation), op).await? {
            Err(MetaError::Busy) => Ok(None),
            Err(error) => Err(failure_of(error)),
            Ok(reply) => Ok(Some(reply)),
        }
    }

    /// As [`write_in`](Self::write_in) for an operation that opens `handle`: from now on the handle is named to
    /// every new leader.
    pub async fn write_opening(
        self: &Rc<Self>,
        generation: u64,
        handle: u64,
        op: WriteOp,
    ) -> Result<FileView, MetaFailure> {
        let attachments = self.attachments();
        let view = match self.write_in(Some(generation), op).await? {
            MetaReply::Opened(view) => view,
            _ => return Err(MetaFailure::Unexpected("a creation")),
        };
        self.state.borrow_mut().handles.insert(handle, view.attr.inode);
        if self.attachments() == attachments {
            return Ok(view);
        }
        // Another leader may have answered from what its predecessor executed.
        self.open_file(view.attr.inode, handle).await
    }

    /// Opens a handle; its number must never have been used in this session.
    pub async fn open_file(&self, inode: InodeId, handle: u64) -> Result<FileView, MetaFailure> {
        self.state.borrow_mut().handles.insert(handle, inode);
        match self.ask(MetaRequest::OpenFile { inode, handle }).await {
            Ok(MetaReply::View(view) | MetaReply::Opened(view)) => {
                // Again: a session lost meanwhile took its handles with it, and this one is of the next.
                self.state.borrow_mut().handles.insert(handle, inode);
                Ok(view)
            }
            other => {
                self.state.borrow_mut().handles.remove(&handle);
                other.and(Err(MetaFailure::Unexpected("an open")))
            }
        }
    }

    /// Closes a handle; returns when that is acknowledged or the session is lost.
    pub async fn close_file(self: &Rc<Self>, inode: InodeId, handle: u64, release_hold: bool) {
        self.state.borrow_mut().handles.remove(&handle);
        if self.session().is_none() {
            return;
        }
        let request = MetaRequest::CloseFile { inode, handle, release_hold };
        let (position, answer) = self.state.borrow_mut().ordered.push(request);
        self.transmit(position);
        if let Ok(Outcome::Answered(Err(error))) = answer.await {
            tracing::debug!(%inode, handle, %error, "the metadata server did not close a handle");
        }
    }

    /// Ends the session in peace, if the leader answers within `patience`.
    pub async fn close(self: &Rc<Self>, patience: Duration) {
        let ending = async {
            while self.state.borrow().ordered.len() > 0 {
                let progress = self.progress.notified();
                tokio::pin!(progress);
                progress.as_mut().enable();
                if self.state.borrow().ordered.len() > 0 {
                    progress.await;
                }
            }
            self.closing.set(true);
            self.ask(MetaRequest::CloseSession).await
        };
        match tokio::time::timeout(patience, ending).await {
            Ok(Ok(_) | Err(MetaFailure::SessionLost)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the session was not closed and will expire"),
            Err(_) => tracing::warn!("no metadata server answered in time; the session will expire"),
        }
        self.closing.set(true);
    }

    /// The session was fenced, says somebody who knows: gives it up and opens another.
    pub fn lose_session(&self, why: &str) {
        if self.closing.get() {
            return;
        }
        let Some(session) = self.state.borrow_mut().session.take() else { return };
        tracing::warn!(
            session = %session.id,
            "The session is lost: {why}. What was in flight fails with EIO, locks are gone; a new session is opened."
        );
        {
            let mut state = self.state.borrow_mut();
            state.nonce = os::random_u128();
            state.window = SequenceWindow::new(SPAN_MAX);
            state.handles.clear();
        }
        self.attachment.send_replace(None);
        self.generation.send_modify(|generation| *generation += 1);
        self.waits.borrow_mut().clear();
        self.state.borrow_mut().ordered.lose();
        self.progress.notify_waiters();
        self.tell(MetaEvent::SessionLost(self.generation()));
    }

    /// State of the cluster as the leader sees it; `None` if nobody answers within `patience`.
    pub async fn cluster_status(&self, patience: Duration) -> Option<ClusterStatus> {
        let asked = tokio::time::timeout(patience, self.ask(MetaRequest::Status)).await;
        let Ok(Ok(MetaReply::Status(status))) = asked else { return None };
        self.state.borrow_mut().last_status = Some(status.clone());
        Some(status)
    }

    /// The last state of the cluster that was heard of.
    pub fn last_status(&self) -> Option<ClusterStatus> {
        self.state.borrow().last_status.clone()
    }

    /// Writes that wait for their answer.
    pub fn unanswered_writes(&self) -> usize {
        self.state.borrow().ordered.len()
    }

    fn attachments(&self) -> u64 {
        self.state.borrow().attachments
    }

    fn tell(&self, event: MetaEvent) {
        if let Some(handler) = self.events.get() {
            handler(event);
        }
    }

    /// Sends something idempotent until a leader answers it.
    async fn ask(&self, request: MetaRequest) -> Result<MetaReply, MetaFailure> {
        let _room = self.reads.acquire().await.expect("this semaphore is never closed");
        let mut backoff = Backoff::short();
        loop {
            let Attachment { link, .. } = self.attached().await;
            match link.call(&request).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(MetaError::Busy | MetaError::Overloaded)) => backoff.wait().await,
                Ok(Err(MetaError::NotLeader { leader })) => {
                    self.learn(leader.map(|(_, address)| address));
                    self.abandon_link(&link);
                }
                Ok(Err(MetaError::NotAttached)) => self.abandon_link(&link),
                Ok(Err(MetaError::SessionExpired)) if self.closing.get() => {
                    return Err(MetaFailure::SessionLost);
                }
                Ok(Err(MetaError::SessionExpired)) => self.expired_on(&link),
                Ok(Err(error)) => return Err(failure_of(error)),
                Err(RpcError::Unsendable(_)) => return Err(protocol::Errno::E2BIG.into()),
                Err(_) => self.abandon_link(&link),
            }
        }
    }

    /// Waits until a link is attached.
    async fn attached(&self) -> Attachment {
        if let Some(attachment) = self.attachment.borrow().clone() {
            return attachment;
        }
        let mut receiver = self.attachment.subscribe();
        loop {
            if let Some(attachment) = receiver.borrow_and_update().clone() {
                return attachment;
            }
            // The sender lives in `self`, so this cannot fail.
            let _ = receiver.changed().await;
        }
    }

    /// Detaches `link` at once, so that nobody asks it again, and has the connector look for the leader.
    fn abandon_link(&self, link: &Rc<MetaLink>) {
        link.mark_broken();
        let is_current =
            self.attachment.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(&current.link, link));
        if is_current {
            self.attachment.send_replace(None);
        }
    }

    /// The server at the end of `link` says that the session expired. Believed only of the current link: an older
    /// one may speak of an older session.
    fn expired_on(&self, link: &Rc<MetaLink>) {
        let is_current =
            self.attachment.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(&current.link, link));
        if is_current {
            self.lose_session("the metadata cluster says that it expired");
        }
    }

    async fn write_once(
        self: &Rc<Self>,
        generation: Option<u64>,
        op: WriteOp,
    ) -> Result<MetaResponse, MetaFailure> {
        let mut op = Some(op);
        loop {
            let sequence = self.room(generation).await?;
            let again = if generation.is_none() { op.clone() } else { None };
            let Some(op_now) = op.take() else { return Err(MetaFailure::SessionLost) };
            let answer = {
                let mut state = self.state.borrow_mut();
                let low_water = state.window.low_water();
                let request = MetaRequest::Write { sequence, low_water, op: op_now };
                let (position, answer) = state.ordered.push(request);
                drop(state);
                self.transmit(position);
                answer
            };
            match answer.await {
                Ok(Outcome::Answered(response)) => return Ok(response),
                // Nothing was sent, and it belongs to no particular session: the next one may carry it.
                Ok(Outcome::LostUnsent) if again.is_some() => op = again,
                _ => return Err(MetaFailure::SessionLost),
            }
        }
    }

    /// Waits for a session with room and takes the next sequence number.
    async fn room(&self, generation: Option<u64>) -> Result<u64, MetaFailure> {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                if generation.is_some_and(|generation| generation != self.generation()) {
                    return Err(MetaFailure::SessionLost);
                }
                let mut state = self.state.borrow_mut();
                if state.session.is_some()
                    && state.ordered.len() < ORDERED_MAX
                    && let Some(sequence) = state.window.begin()
                {
                    return Ok(sequence);
                }
            }
            progress.await;
        }
    }

    /// Sends the request at `position` over the attached link, if there is one; otherwise the next attachment does.
    fn transmit(self: &Rc<Self>, position: u64) {
        let Some(Attachment { number, link }) = self.attachment.borrow().clone() else { return };
        let Some(request) = self.state.borrow_mut().ordered.send(position, number) else { return };
        let client = self.clone();
        start_in_order(async move {
            let answer = link.call(&request).await;
            client.answered(position, number, &link, answer);
        });
    }

    fn answered(
        self: &Rc<Self>,
        position: u64,
        number: u64,
        link: &Rc<MetaLink>,
        answer: Result<MetaResponse, RpcError>,
    ) {
        let response = match answer {
            Ok(response) => response,
            Err(RpcError::Unsendable(_)) => Err(protocol::Errno::E2BIG.into()),
            Err(_) => return self.abandon_link(link),
        };
        if let Err(MetaError::NotLeader { leader: Some((_, address)) }) = &response {
            self.learn(Some(*address));
        }
        let verdict = self.state.borrow_mut().ordered.answer(position, number, response);
        match verdict {
            Verdict::Final(sequence) => {
                // Here and not where the caller wakes up: by then the numbers may be those of another session.
                if let Some(sequence) = sequence {
                    self.state.borrow_mut().window.finish(sequence);
                }
                self.progress.notify_waiters();
            }
            Verdict::Superseded => {}
            Verdict::AgainSoon => self.transmit_later(position),
            Verdict::LinkUseless => self.abandon_link(link),
            Verdict::Expired => self.expired_on(link),
        }
    }

    fn transmit_later(self: &Rc<Self>, position: u64) {
        let client = self.clone();
        let times = self.state.borrow().ordered.times_sent(position);
        let pause = Duration::from_millis(5 << times.min(5));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            client.transmit(position);
        });
    }

    /// Remembers the address of a server that a hint named.
    fn learn(&self, address: Option<SocketAddr>) {
        let mut state = self.state.borrow_mut();
        if let Some(address) = address
            && !state.addresses.contains(&address)
        {
            state.addresses.push(address);
        }
    }

    /// Something came without being asked for.
    fn pushed(self: &Rc<Self>, push: Push) {
        match push {
            Push::LockGranted { resource, waiter, token, fence } => {
                self.note_fence(fence);
                self.waits.borrow_mut().granted((resource, waiter), token);
            }
            Push::RecallHold(inode) => self.tell(MetaEvent::RecallHold(inode)),
            Push::Settle(inode) => self.tell(MetaEvent::Settle(inode)),
            Push::Map(delta) => {
                if let Err(gap) = self.map.apply(delta) {
                    tracing::debug!(%gap, "asking for the whole map");
                    let client = self.clone();
                    tokio::task::spawn_local(async move { client.fetch_map().await });
                }
            }
            Push::SessionExpired => self.lose_session("the metadata cluster says that it expired"),
        }
    }

    /// Subscribes to the map and fetches it if there is a newer one.
    async fn fetch_map(&self) {
        match self.ask(MetaRequest::SubscribeMap { known: self.map.epoch() }).await {
            Ok(MetaReply::Map(map)) => self.map.replace(map),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the metadata server does not give the cluster map"),
        }
    }

    fn note_fence(&self, fence: MapEpoch) {
        self.fence.set(self.fence.get().max(fence));
    }
}

/// Polls a call once on the spot, so that calls leave in the order in which they are started, and makes it a task
/// if it has to wait.
fn start_in_order(call: impl Future<Output = ()> + 'static) {
    let mut call: Pin<Box<dyn Future<Output = ()>>> = Box::pin(call);
    // A task is always polled when it starts, so a wake-up of this first poll cannot be lost.
    if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        tokio::task::spawn_local(call);
    }
}

#[cfg(test)]
mod tests;
