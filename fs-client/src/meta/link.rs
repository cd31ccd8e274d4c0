//! One connection to one metadata server.

use bytes::Bytes;
use protocol::channel_kind;
use protocol::identity::Role;
use protocol::meta::{MetaRequest, MetaResponse, Push};
use protocol::transport::rpc::{RpcClient, RpcError};
use protocol::transport::{Connection, Endpoint, Expect, TransportError};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Opening a connection is given up and begun anew after this time, so that a server that starts meanwhile is
/// found at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection with its calls. Closed when dropped.
pub(super) struct MetaLink {
    pub(super) address: SocketAddr,
    connection: Connection,
    rpc: RpcClient<MetaRequest, MetaResponse>,
    flight: RefCell<Flight>,
    broken: Cell<bool>,
    breaking: Notify,
}

/// Whether an answer is due.
#[derive(Default)]
struct Flight {
    unanswered: usize,
    /// Since when something was asked and nothing at all was heard.
    waiting_since: Option<Instant>,
}

impl Flight {
    fn asked(&mut self) {
        self.unanswered += 1;
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    fn heard(&mut self) {
        self.waiting_since = (self.unanswered > 0).then(Instant::now);
    }
}

impl MetaLink {
    /// Connects. What the server pushes goes to `push` as long as the link lives.
    pub(super) async fn open(
        endpoint: &Endpoint,
        address: SocketAddr,
        push: impl Fn(Push) + 'static,
    ) -> Result<Rc<Self>, TransportError> {
        let connecting = endpoint.connect(address, Expect::role(Role::Metadata));
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected?,
            Err(_) => return Err(TransportError::Unanswered { address, waited: CONNECT_TIMEOUT }),
        };
        let rpc = RpcClient::new(&connection, channel_kind::META);
        let link = Rc::new(Self {
            address,
            connection: connection.clone(),
            rpc,
            flight: RefCell::default(),
            broken: Cell::new(false),
            breaking: Notify::new(),
        });
        tokio::task::spawn_local(accept_pushes(connection, Rc::downgrade(&link), Rc::new(push)));
        Ok(link)
    }

    /// Sends a request. It leaves at the first poll, so polling several calls once each sends them in that order.
    pub(super) async fn call(&self, request: &MetaRequest) -> Result<MetaResponse, RpcError> {
        self.call_for_payload(request).await.map(|(response, _)| response)
    }

    /// As [`Self::call`], for an answer that has a payload.
    pub(super) async fn call_for_payload(
        &self,
        request: &MetaRequest,
    ) -> Result<(MetaResponse, Bytes), RpcError> {
        let in_flight = InFlight::begin(&self.flight);
        let answer = self.rpc.call(request, Bytes::new()).await;
        drop(in_flight);
        match answer {
            Ok((response, payload)) => {
                self.flight.borrow_mut().heard();
                Ok((response, payload))
            }
            Err(error) => {
                if !matches!(error, RpcError::Unsendable(_)) {
                    self.mark_broken();
                }
                Err(error)
            }
        }
    }

    /// Whether something was asked longer than `patience` ago and nothing at all was heard since, also if whoever
    /// asked has given up.
    pub(super) fn is_silent(&self, patience: Duration) -> bool {
        self.flight.borrow().waiting_since.is_some_and(|since| since.elapsed() >= patience)
    }

    /// The link is of no use any more: lost, or its server does not lead.
    pub(super) fn mark_broken(&self) {
        self.broken.set(true);
        self.breaking.notify_waiters();
    }

    /// A server that does not lead now may lead later.
    pub(super) fn mend(&self) {
        self.broken.set(false);
    }

    pub(super) fn is_open(&self) -> bool {
        !self.connection.is_closed()
    }

    /// Resolves when the link is of no use any more.
    pub(super) async fn broken(&self) {
        let breaking = self.breaking.notified();
        tokio::pin!(breaking);
        breaking.as_mut().enable();
        if self.broken.get() || !self.is_open() {
            return;
        }
        tokio::select! {
            () = breaking => {}
            _ = self.connection.closed() => {}
        }
    }
}

impl Drop for MetaLink {
    fn drop(&mut self) {
        self.connection.close("the client does not need it any more");
    }
}

/// Counts a request as unanswered while it lives.
struct InFlight<'a>(&'a RefCell<Flight>);

impl<'a> InFlight<'a> {
    fn begin(flight: &'a RefCell<Flight>) -> Self {
        flight.borrow_mut().asked();
        Self(flight)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().unanswered -= 1;
    }
}

/// Takes every channel that the server opens, for as long as the connection lasts.
async fn accept_pushes(connection: Connection, link: Weak<MetaLink>, push: Rc<dyn Fn(Push)>) {
    while let Ok((kind, accepted)) = connection.accept_channel().await {
        if kind != channel_kind::PUSH {
            tracing::debug!(kind, "a metadata server opened a channel of a kind that clients do not serve");
            continue;
        }
        let (push, link) = (push.clone(), link.clone());
        tokio::task::spawn_local(async move {
            let (_sender, mut receiver) = accepted.split();
            while let Ok(Some((message, _))) = receiver.recv::<Push>().await {
                let Some(link) = link.upgrade() else { return };
                link.flight.borrow_mut().heard();
                push(message);
            }
        });
    }
}
