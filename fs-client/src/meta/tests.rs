//! The client against small metadata servers over QUIC on loopback, which share one state and take turns leading.

use super::*;
use crate::testing::Ca;
use bytes::Bytes;
use protocol::identity::Role;
use protocol::meta::{LockHolderInfo, LockRequest, LockResource, SetAttr};
use protocol::transport::rpc::{ServeLimits, serve_rpc};
use protocol::transport::{Connection, Endpoint, TransportConfig};
use protocol::{EntryName, Errno, channel_kind};
use std::cell::RefCell;
use std::collections::BTreeSet;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, timeout};

/// What the servers agree on, and how they misbehave.
#[derive(Default)]
struct World {
    leader: Option<usize>,
    sessions: BTreeMap<SessionId, u128>,
    attached: Option<Connection>,
    /// Every change that took effect: whose, its number, its name.
    executed: Vec<(SessionId, u64, String)>,
    replies: BTreeSet<(SessionId, u64)>,
    /// Servers that answer nothing.
    mute: BTreeSet<usize>,
    /// Lose the connection after executing the next change, before its answer.
    lose_next_answer: bool,
    /// Answer the next change so.
    next_error: Option<MetaError>,
    queued: Vec<u64>,
    cancelled: Vec<u64>,
    unlocked: u32,
}

type Shared = Rc<RefCell<World>>;

struct Cluster {
    world: Shared,
    client: Rc<MetaClient>,
    events: Rc<RefCell<Vec<MetaEvent>>>,
    _ca: Ca,
}

async fn cluster(servers: usize) -> Cluster {
    let ca = Ca::new();
    let world: Shared = Rc::default();
    world.borrow_mut().leader = Some(0);
    let mut addresses = Vec::new();
    for index in 0..servers {
        let identity = ca.identity(Role::Metadata, index as u32 + 1);
        let endpoint =
            Endpoint::bind(([127, 0, 0, 1], 0).into(), identity, TransportConfig::default()).expect("binds");
        addresses.push(endpoint.local_addr());
        spawn_local(accept(endpoint, index, world.clone()));
    }
    let endpoint =
        Endpoint::bind(([127, 0, 0, 1], 0).into(), ca.identity(Role::Client, 1), TransportConfig::default())
            .expect("binds");
    let config =
        MetaConfig { addresses, session_timeout: Duration::from_secs(10), info: ClientInfo::default() };
    let client = MetaClient::start(endpoint, config, Rc::default());
    let events = Rc::new(RefCell::new(Vec::new()));
    let heard = events.clone();
    client.on_event(move |event| heard.borrow_mut().push(event));
    client.ready(Duration::from_secs(10)).await.expect("a session opens");
    Cluster { world, client, events, _ca: ca }
}

async fn accept(endpoint: Endpoint, index: usize, world: Shared) {
    while let Some(connection) = endpoint.accept().await {
        spawn_local(serve(connection, index, world.clone()));
    }
}

async fn serve(connection: Connection, index: usize, world: Shared) {
    while let Ok((kind, channel)) = connection.accept_channel().await {
        assert_eq!(kind, channel_kind::META);
        let (world, connection) = (world.clone(), connection.clone());
        spawn_local(serve_rpc(channel, ServeLimits::default(), move |_, request, _| {
            let (world, connection) = (world.clone(), connection.clone());
            async move {
                if world.borrow().mute.contains(&index) {
                    std::future::pending::<()>().await;
                }
                let answer = answer(&mut world.borrow_mut(), &connection, index, request);
                if std::mem::take(&mut world.borrow_mut().lose_next_answer) {
                    connection.close("lost in this test");
                    std::future::pending::<()>().await;
                }
                (answer, Bytes::new())
            }
        }));
    }
}

fn answer(world: &mut World, connection: &Connection, index: usize, request: MetaRequest) -> MetaResponse {
    if world.leader != Some(index) {
        return Err(MetaError::NotLeader { leader: None });
    }
    let opened = |session| {
        let now = Timestamp::default();
        Ok(MetaReply::Session { session, timeout_ms: 10_000, fence: MapEpoch(3), now })
    };
    match request {
        MetaRequest::OpenSession { nonce, .. } => {
            world.attached = Some(connection.clone());
            let known =
                world.sessions.iter().find(|(_, known)| **known == nonce).map(|(session, _)| *session);
            let session = known.unwrap_or(SessionId(world.executed.len() as u64 + 100));
            world.sessions.insert(session, nonce);
            opened(session)
        }
        MetaRequest::Attach { session, nonce, .. } if world.sessions.get(&session) == Some(&nonce) => {
            world.attached = Some(connection.clone());
            opened(session)
        }
        MetaRequest::Attach { .. } => Err(MetaError::SessionExpired),
        MetaRequest::Write { sequence, op, .. } => write(world, connection, sequence, op),
        MetaRequest::Heartbeat { .. } => Ok(MetaReply::Done),
        MetaRequest::SubscribeMap { .. } => Ok(MetaReply::Unchanged),
        MetaRequest::Read(ReadOp::WaitState { waiter, .. }) if world.queued.contains(&waiter) => {
            Ok(MetaReply::Queued { waiter })
        }
        _ => Err(Errno::ENOENT.into()),
    }
}

fn write(world: &mut World, connection: &Connection, sequence: u64, op: WriteOp) -> MetaResponse {
    let is_attached = world.attached.as_ref().is_some_and(|attached| attached.is_same(connection));
    let Some(session) = world.sessions.keys().next_back().copied().filter(|_| is_attached) else {
        return Err(if world.sessions.is_empty() {
            MetaError::SessionExpired
        } else {
            MetaError::NotAttached
        });
    };
    if let Some(error) = world.next_error.take() {
        return Err(error);
    }
    if !world.replies.insert((session, sequence)) {
        return Ok(MetaReply::Done);
    }
    match op {
        WriteOp::Unlink { name, .. } => {
            world.executed.push((session, sequence, name.to_string()));
            Ok(MetaReply::Done)
        }
        WriteOp::Lock { .. } => {
            world.queued.push(sequence);
            Ok(MetaReply::Queued { waiter: sequence })
        }
        WriteOp::CancelWait { waiter, .. } => {
            world.cancelled.push(waiter);
            Ok(MetaReply::Done)
        }
        WriteOp::Unlock { .. } => {
            world.unlocked += 1;
            Ok(MetaReply::Done)
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

fn unlink(name: &str) -> WriteOp {
    WriteOp::Unlink { parent: InodeId::ROOT, name: EntryName::new(name).expect("legal") }
}

fn names(world: &Shared) -> Vec<String> {
    world.borrow().executed.iter().map(|(_, _, name)| name.clone()).collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(30), test).await.expect("the test ends in time");
    });
}

#[test]
fn a_change_whose_answer_was_lost_takes_effect_once() {
    run(async {
        let Cluster { world, client, .. } = &cluster(1).await;
        world.borrow_mut().lose_next_answer = true;
        assert_eq!(client.write(unlink("a")).await, Ok(MetaReply::Done));
        assert_eq!(client.write(unlink("b")).await, Ok(MetaReply::Done));
        assert_eq!(names(world), ["a", "b"]);
        assert!(client.fence() == MapEpoch(3));
    });
}

#[test]
fn changes_wait_for_the_next_leader_and_keep_their_order() {
    run(async {
        let Cluster { world, client, .. } = &cluster(3).await;
        until("all servers are connected", || client.state.borrow().links.len() == 3).await;
        world.borrow_mut().leader = None;
        let writing: Vec<_> = (0..20)
            .map(|n| {
                let client = client.clone();
                spawn_local(async move { client.write(unlink(&format!("{n:02}"))).await })
            })
            .collect();
        until("all are waiting", || client.unanswered_writes() == 20).await;
        world.borrow_mut().leader = Some(2);
        let begun = Instant::now();
        for write in writing {
            assert_eq!(write.await.expect("no panic"), Ok(MetaReply::Done));
        }
        assert!(begun.elapsed() < Duration::from_millis(700), "took {:?}", begun.elapsed());
        let expected: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
        assert_eq!(names(world), expected);
    });
}

#[test]
fn a_silent_leader_is_left_for_one_that_answers() {
    run(async {
        let Cluster { world, client, .. } = &cluster(3).await;
        until("all servers are connected", || client.state.borrow().links.len() == 3).await;
        {
            let mut world = world.borrow_mut();
            world.mute.insert(0);
            world.leader = Some(1);
        }
        let begun = Instant::now();
        assert_eq!(client.write(unlink("a")).await, Ok(MetaReply::Done));
        assert!(begun.elapsed() < Duration::from_millis(1500), "took {:?}", begun.elapsed());
    });
}

#[test]
fn what_was_in_flight_when_the_session_was_lost_is_never_sent_again() {
    run(async {
        let Cluster { world, client, events, .. } = &cluster(1).await;
        let old = client.session().expect("open").id;
        world.borrow_mut().mute.insert(0);
        let writing = spawn_local({
            let client = client.clone();
            async move { client.write_in(Some(0), unlink("old")).await }
        });
        until("it is on its way", || client.unanswered_writes() == 1).await;
        world.borrow_mut().sessions.clear();
        world.borrow_mut().executed.push((old, 0, "by somebody else".to_owned()));
        client.lose_session("this test says so");
        assert_eq!(writing.await.expect("no panic"), Err(MetaFailure::SessionLost));
        world.borrow_mut().mute.clear();
        assert_eq!(client.write_in(Some(0), unlink("later")).await, Err(MetaFailure::SessionLost));
        assert_eq!(client.write(unlink("new")).await, Ok(MetaReply::Done));
        assert_eq!(names(world), ["by somebody else", "new"]);
        assert_ne!(client.session().expect("open").id, old);
        assert_eq!(
            *events.borrow(),
            [MetaEvent::SessionOpened(0), MetaEvent::SessionLost(1), MetaEvent::SessionOpened(1)]
        );
    });
}

#[test]
fn a_busy_file_is_tried_again_and_errors_are_final() {
    run(async {
        let Cluster { world, client, .. } = &cluster(1).await;
        world.borrow_mut().next_error = Some(MetaError::Busy);
        assert_eq!(client.write(unlink("a")).await, Ok(MetaReply::Done));
        world.borrow_mut().next_error = Some(MetaError::Overloaded);
        assert_eq!(client.write(unlink("b")).await, Ok(MetaReply::Done));
        world.borrow_mut().next_error = Some(Errno::ENOENT.into());
        assert_eq!(client.write(unlink("c")).await, Err(MetaFailure::Errno(Errno::ENOENT)));
        world.borrow_mut().next_error = Some(MetaError::Respill);
        let change = WriteOp::Setattr { inode: InodeId(7), change: SetAttr::default() };
        assert_eq!(client.write(change).await, Err(MetaFailure::Respill));
        assert_eq!(names(world), ["a", "b"]);
    });
}

fn ask() -> LockAsk {
    LockAsk {
        resource: LockResource::Flock(InodeId(9)),
        request: LockRequest { owner: 1, exclusive: true, start: 0, end: u64::MAX, pid: 1 },
        holder: LockHolderInfo::default(),
    }
}

async fn grant(world: &Shared, waiter: u64) {
    let connection = world.borrow().attached.clone().expect("attached");
    let (mut sender, _receiver) = connection.open_channel(channel_kind::PUSH).await.expect("opens").split();
    let push =
        Push::LockGranted { resource: ask().resource, waiter, token: waiter + 1000, fence: MapEpoch(4) };
    sender.send(&push, Bytes::new()).await.expect("sent");
    sender.finish().await.expect("finished");
}

#[test]
fn a_queued_lock_is_granted_by_a_push() {
    run(async {
        let Cluster { world, client, .. } = &cluster(1).await;
        let waiting = client.lock(ask());
        until("it is queued", || world.borrow().queued.len() == 1).await;
        let waiter = world.borrow().queued[0];
        grant(world, waiter).await;
        assert_eq!(waiting.await, Ok(waiter + 1000));
        assert_eq!(client.fence(), MapEpoch(4));
    });
}

#[test]
fn an_abandoned_wait_is_cancelled_and_a_grant_nobody_took_is_given_back() {
    run(async {
        let Cluster { world, client, .. } = &cluster(1).await;
        let abandoned = client.lock(ask());
        until("it is queued", || world.borrow().queued.len() == 1).await;
        let waiter = world.borrow().queued[0];
        drop(abandoned);
        until("it is cancelled", || world.borrow().cancelled == [waiter]).await;

        let granted = client.lock(ask());
        until("it is queued", || world.borrow().queued.len() == 2).await;
        let waiter = world.borrow().queued[1];
        grant(world, waiter).await;
        until("the grant arrived", || client.waits.borrow().is_empty()).await;
        drop(granted);
        until("it is given back", || world.borrow().cancelled.contains(&waiter)).await;
        assert_eq!(world.borrow().unlocked, 0);
    });
}
