//! Finding the leader and keeping one link attached to the session.
//!
//! All servers are asked at once and again and again; only a leader whose quorum confirmed it can answer, so the
//! first answer is the right one. A link that falls silent stays in use while others are asked in parallel: a
//! slow leader is not a dead one, and an attachment elsewhere ends the older one.

use super::link::MetaLink;
use super::{Attachment, MetaClient, MetaEvent, SUSPECT_AFTER, Session};
use crate::os;
use protocol::InodeId;
use protocol::meta::{MetaError, MetaReply, MetaRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How often the state of the link is looked at.
const PATROL_EVERY: Duration = Duration::from_millis(100);
/// A request that waits this long gets a heartbeat behind it, to tell a slow answer from a dead leader.
const PING_AFTER: Duration = Duration::from_millis(250);
/// Longest time between heartbeats, whatever the session timeout.
const HEARTBEAT_MAX: Duration = Duration::from_secs(2);
/// Time between heartbeats while locks are waited for: their grants come from a leader that must be alive.
const HEARTBEAT_WAITING: Duration = Duration::from_millis(500);
/// Servers that do not lead are kept connected, so that the next leader is found without a handshake.
const WARM_EVERY: Duration = Duration::from_secs(2);

/// A link whose server attached it to the session.
struct Found {
    link: Rc<MetaLink>,
    session: Session,
    fence: protocol::MapEpoch,
    /// A new session rather than the one at hand.
    opened: bool,
    /// Handles that the attachment named.
    named: BTreeMap<u64, InodeId>,
}

type Search = Pin<Box<dyn Future<Output = Found>>>;

/// The connector task; ends when the client closes its session.
pub(super) async fn run(client: Rc<MetaClient>) {
    tokio::task::spawn_local(keep_warm(client.clone()));
    let mut successor = None;
    loop {
        let found = match successor.take() {
            Some(found) => found,
            None => search(client.clone(), None).await,
        };
        if !install(&client, &found) {
            continue;
        }
        successor = supervise(&client, &found.link).await;
        if client.closing.get() {
            return;
        }
        if successor.is_none() {
            detach(&client, &found.link);
        }
    }
}

/// `false`: the session was lost while its attachment was on its way.
fn install(client: &Rc<MetaClient>, found: &Found) -> bool {
    client.note_fence(found.fence);
    let (number, positions) = {
        let mut state = client.state.borrow_mut();
        if !found.opened && state.session.is_none() {
            return false;
        }
        state.session = Some(found.session);
        state.attachments += 1;
        state.problems.clear();
        (state.attachments, state.ordered.positions())
    };
    tracing::debug!(leader = %found.link.address, session = %found.session.id, "attached");
    client.attachment.send_replace(Some(Attachment { number, link: found.link.clone() }));
    // In order, before anything new.
    for position in positions {
        client.transmit(position);
    }
    client.progress.notify_waiters();
    let subscriber = client.clone();
    tokio::task::spawn_local(async move { subscriber.fetch_map().await });
    correct_handles(client, &found.named);
    if found.opened {
        client.tell(MetaEvent::SessionOpened(client.generation()));
    }
    true
}

/// What was opened or closed over the old link while the attachment was on its way is said again.
fn correct_handles(client: &Rc<MetaClient>, named: &BTreeMap<u64, InodeId>) {
    let handles = client.state.borrow().handles.clone();
    for (handle, inode) in handles.iter().filter(|(handle, _)| !named.contains_key(handle)) {
        let (client, handle, inode) = (client.clone(), *handle, *inode);
        tokio::task::spawn_local(async move {
            // Gone, perhaps: its user finds that out.
            let _ = client.ask(MetaRequest::OpenFile { inode, handle }).await;
        });
    }
    for (handle, inode) in named.iter().filter(|(handle, _)| !handles.contains_key(handle)) {
        let (client, handle, inode) = (client.clone(), *handle, *inode);
        tokio::task::spawn_local(async move { client.close_file(inode, handle, false).await });
    }
}

fn detach(client: &MetaClient, link: &Rc<MetaLink>) {
    client.attachment.send_if_modified(|attachment| {
        let is_current = attachment.as_ref().is_some_and(|current| Rc::ptr_eq(&current.link, link));
        if is_current {
            *attachment = None;
        }
        is_current
    });
    link.mark_broken();
}

/// Watches over the attached link; returns when it is of no use any more, with its successor if there is one.
async fn supervise(client: &Rc<MetaClient>, link: &Rc<MetaLink>) -> Option<Found> {
    let mut generations = client.generations();
    generations.mark_unchanged();
    let mut beaten = Instant::now();
    let mut asking_others: Option<Search> = None;
    loop {
        client.session()?;
        tokio::select! {
            () = link.broken() => return None,
            _ = generations.changed() => return None,
            found = poll_search(&mut asking_others) => return Some(found),
            () = sleep(PATROL_EVERY) => {}
        }
        let since = beaten.elapsed();
        if since >= heartbeat_interval(client) || (since >= PING_AFTER && link.is_silent(PING_AFTER)) {
            beaten = Instant::now();
            tokio::task::spawn_local(beat(client.clone(), link.clone()));
        }
        if !link.is_silent(SUSPECT_AFTER) {
            asking_others = None;
        } else if asking_others.is_none() {
            tracing::debug!(leader = %link.address, "the leader is silent; asking the other servers");
            asking_others = Some(Box::pin(search(client.clone(), Some(link.address))));
        }
    }
}

async fn poll_search(search: &mut Option<Search>) -> Found {
    match search {
        Some(search) => search.await,
        None => std::future::pending().await,
    }
}

fn heartbeat_interval(client: &MetaClient) -> Duration {
    let timeout = client.session().map_or(HEARTBEAT_MAX, |session| session.timeout);
    let ordinary = (timeout / 5).min(HEARTBEAT_MAX);
    if client.waits.borrow().is_empty() { ordinary } else { ordinary.min(HEARTBEAT_WAITING) }
}

async fn beat(client: Rc<MetaClient>, link: Rc<MetaLink>) {
    let sent = os::boottime();
    let low_water = client.state.borrow().window.low_water();
    match link.call(&MetaRequest::Heartbeat { low_water }).await {
        Ok(Ok(MetaReply::Session { session, timeout_ms, fence, now })) => {
            client.note_fence(fence);
            let mut state = client.state.borrow_mut();
            if let Some(at_hand) = &mut state.session
                && at_hand.id == session
            {
                let renewed = session_of(session, timeout_ms, sent, now);
                at_hand.valid_until = at_hand.valid_until.max(renewed.valid_until);
                at_hand.cluster_time = at_hand.cluster_time.max(now);
            }
        }
        Ok(Ok(_)) => {}
        Ok(Err(MetaError::SessionExpired)) => client.expired_on(&link),
        Ok(Err(MetaError::NotLeader { leader })) => {
            client.learn(leader.map(|(_, address)| address));
            client.abandon_link(&link);
        }
        Ok(Err(MetaError::NotAttached)) => client.abandon_link(&link),
        Ok(Err(error)) => tracing::debug!(%error, "a heartbeat was not taken"),
        Err(_) => client.abandon_link(&link),
    }
}

/// Asks every server until one attaches a link to the session.
async fn search(client: Rc<MetaClient>, except: Option<SocketAddr>) -> Found {
    let mut asked = BTreeSet::new();
    let mut probes: JoinSet<Option<Found>> = JoinSet::new();
    loop {
        let addresses = client.state.borrow().addresses.clone();
        for address in addresses {
            if Some(address) != except && asked.insert(address) {
                probes.spawn_local(probe(client.clone(), address));
            }
        }
        tokio::select! {
            Some(ended) = probes.join_next() => match ended {
                Ok(Some(found)) => return found,
                // The session expired, or a probe panicked: everybody is asked anew, for a new session.
                _ => asked.clear(),
            },
            // A hint may have named another server.
            () = sleep(Duration::from_millis(50)) => {}
        }
    }
}

/// Asks one server until it says yes (`Some`) or that the session has expired (`None`).
async fn probe(client: Rc<MetaClient>, address: SocketAddr) -> Option<Found> {
    loop {
        // Elections take some 100 ms: not leading is asked about often, it costs one small message.
        let mut pause = Duration::from_millis(25);
        if let Some(link) = link_to(&client, address).await {
            let (request, opening) = request(&client);
            let named = named_in(&request);
            let sent = os::boottime();
            let why = match link.call(&request).await {
                Ok(Ok(MetaReply::Session { session, timeout_ms, fence, now })) => {
                    link.mend();
                    let session = session_of(session, timeout_ms, sent, now);
                    return Some(Found { link, session, fence, opened: opening, named });
                }
                Ok(Err(MetaError::SessionExpired)) if !opening => {
                    client.lose_session("it had expired when the client came back");
                    return None;
                }
                Ok(Err(MetaError::NotLeader { leader })) => {
                    client.learn(leader.map(|(_, address)| address));
                    "it does not lead".to_owned()
                }
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(_)) => {
                    "it gave an answer of the wrong kind; compare the versions of both sides".to_owned()
                }
                Err(error) => {
                    client.state.borrow_mut().links.remove(&address);
                    error.to_string()
                }
            };
            client.state.borrow_mut().problems.insert(address, why);
        } else {
            pause = Duration::from_millis(100);
        }
        sleep(pause).await;
    }
}

/// What attaches a link: to the session at hand, or to a new one.
fn request(client: &MetaClient) -> (MetaRequest, bool) {
    let state = client.state.borrow();
    let nonce = state.nonce;
    match state.session {
        Some(session) => {
            let open = state.handles.iter().map(|(handle, inode)| (*inode, *handle)).collect();
            (MetaRequest::Attach { session: session.id, nonce, open }, false)
        }
        None => {
            let timeout_ms = client.config.session_timeout.as_millis().try_into().unwrap_or(u32::MAX);
            (MetaRequest::OpenSession { nonce, timeout_ms, info: client.config.info.clone() }, true)
        }
    }
}

fn named_in(request: &MetaRequest) -> BTreeMap<u64, InodeId> {
    match request {
        MetaRequest::Attach { open, .. } => open.iter().map(|(inode, handle)| (*handle, *inode)).collect(),
        _ => BTreeMap::new(),
    }
}

fn session_of(
    id: protocol::SessionId,
    timeout_ms: u32,
    sent: Duration,
    cluster_time: protocol::Timestamp,
) -> Session {
    let timeout = Duration::from_millis(timeout_ms.into());
    Session { id, timeout, valid_until: sent + timeout - timeout / 10, cluster_time }
}

/// The link to `address`, opened if there is none.
async fn link_to(client: &Rc<MetaClient>, address: SocketAddr) -> Option<Rc<MetaLink>> {
    let at_hand = client.state.borrow().links.get(&address).cloned();
    if let Some(link) = at_hand.filter(|link| link.is_open()) {
        return Some(link);
    }
    let pushed = Rc::downgrade(client);
    let opening = MetaLink::open(&client.endpoint, address, move |push| {
        if let Some(client) = pushed.upgrade() {
            client.pushed(push);
        }
    });
    match opening.await {
        Ok(link) => {
            client.state.borrow_mut().links.insert(address, link.clone());
            Some(link)
        }
        Err(error) => {
            client.state.borrow_mut().problems.insert(address, error.to_string());
            None
        }
    }
}

/// Servers come and go: the leader says who they are now. What was told at the start is only the first hint.
async fn learn_servers(client: &MetaClient) {
    let Some(Attachment { link, .. }) = client.attachment.borrow().clone() else { return };
    let asking = tokio::time::timeout(WARM_EVERY, link.call(&MetaRequest::MetadataServers)).await;
    if let Ok(Ok(Ok(MetaReply::MetadataServers(servers)))) = asking {
        let addresses: Vec<SocketAddr> = servers.members.iter().filter_map(|member| member.address).collect();
        if addresses.contains(&link.address) {
            let mut state = client.state.borrow_mut();
            state.links.retain(|address, _| addresses.contains(address));
            state.addresses = addresses;
        }
    }
}

/// Keeps every server connected.
async fn keep_warm(client: Rc<MetaClient>) {
    while !client.closing.get() {
        sleep(WARM_EVERY).await;
        learn_servers(&client).await;
        let is_attached = client.attachment.borrow().is_some();
        let addresses = client.state.borrow().addresses.clone();
        for address in addresses {
            if is_attached {
                link_to(&client, address).await;
            }
        }
    }
}
