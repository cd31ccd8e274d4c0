//! The server's session with the metadata cluster: registration, heartbeats, the map, wishes of primaries.

use super::{Driver, Proposal, now};
use crate::config::DataServerConfig;
use crate::pg::Tick;
use bytes::Bytes;
use protocol::MapEpoch;
use protocol::channel_kind;
use protocol::identity::Role;
use protocol::map::{ClusterMap, RESTORE_RAISES};
use protocol::meta::{
    DataServerRegistration, FullRatios, MetaError, MetaReply, MetaRequest, MetaResponse, Push,
};
use protocol::transport::rpc::RpcClient;
use protocol::transport::{Connection, Endpoint, Expect, FrameReceiver};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Between two rounds through all metadata servers.
const RETRY: Duration = Duration::from_millis(100);
/// A call that takes longer than this is given up, and another server asked.
const CALL_TIMEOUT: Duration = Duration::from_millis(1500);
/// How often the leader is asked who the metadata servers are.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Share of the session timeout that is not relied on, against drifting clocks.
const MARGIN_PER_CENT: u64 = 10;

type Rpc = RpcClient<MetaRequest, MetaResponse>;

/// What the session needs to know.
pub struct Session {
    /// Settings.
    pub config: DataServerConfig,
    /// What was written before the last stop is still there.
    pub clean: bool,
    /// For outgoing connections.
    pub endpoint: Endpoint,
    /// Where this server is reached.
    pub address: SocketAddr,
}

/// Keeps the session alive until this server fails, and says so then. `registered` rings once, at the first
/// registration.
pub async fn keep(
    driver: Rc<Driver>,
    session: Session,
    mut proposals: mpsc::Receiver<Proposal>,
    registered: impl FnOnce(),
) {
    let mut registered = Some(registered);
    let mut hint = None;
    let mut turn = 0;
    // Servers come and go: the leader says who they are now. The settings are the first hint.
    let servers = RefCell::new(session.config.metadata.clone());
    loop {
        let address = hint.take().unwrap_or_else(|| {
            turn += 1;
            let servers = servers.borrow();
            servers[turn % servers.len()]
        });
        match session.attend(&driver, address, &servers, &mut proposals, &mut registered).await {
            Ended::NotLeader(leader) => hint = leader,
            Ended::Lost(why) => tracing::debug!("the metadata server at {address} is of no use now: {why}"),
            Ended::Refused(why) => driver.fail(&format!("the metadata cluster refuses it: {why}")),
            Ended::Left => return,
        }
        if driver.fatal.borrow().is_some() {
            // Nobody was reached who could be told.
            return;
        }
        // Hints are mostly right; two servers that name each other must not keep this one running in circles.
        tokio::time::sleep(if hint.is_none() { RETRY } else { RETRY / 10 }).await;
    }
}

enum Ended {
    NotLeader(Option<SocketAddr>),
    Lost(String),
    /// The cluster does not want this server.
    Refused(String),
    /// This server cannot go on, and said so.
    Left,
}

impl From<String> for Ended {
    fn from(why: String) -> Self {
        Self::Lost(why)
    }
}

impl From<MetaError> for Ended {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::NotLeader { leader } => Self::NotLeader(leader.map(|(_, address)| address)),
            MetaError::Refused(why) => Self::Refused(why),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl Session {
    /// Registers with the server at `address` and attends to it until it is of no use any more.
    async fn attend(
        &self,
        driver: &Rc<Driver>,
        address: SocketAddr,
        servers: &RefCell<Vec<SocketAddr>>,
        proposals: &mut mpsc::Receiver<Proposal>,
        registered: &mut Option<impl FnOnce()>,
    ) -> Ended {
        match self.register(driver, address, proposals).await {
            Err(ended) => ended,
            Ok((connection, rpc)) => {
                if let Some(registered) = registered.take() {
                    registered();
                }
                tracing::info!("registered with the metadata leader at {address}");
                let ended = self.serve(driver, &connection, &rpc, servers, proposals).await;
                connection.close("another metadata server leads");
                ended
            }
        }
    }

    async fn register(
        &self,
        driver: &Rc<Driver>,
        address: SocketAddr,
        proposals: &mut mpsc::Receiver<Proposal>,
    ) -> Result<(Connection, Rpc), Ended> {
        let expect = Expect::role(Role::Metadata);
        let connecting = self.endpoint.connect(address, expect);
        let connection = tokio::time::timeout(CALL_TIMEOUT, connecting)
            .await
            .map_err(|_| "it does not answer".to_owned())?
            .map_err(|e| e.to_string())?;
        let rpc = Rpc::new(&connection, channel_kind::META);
        let request = MetaRequest::RegisterDataServer(DataServerRegistration {
            store: driver.me.store,
            incarnation: driver.me.incarnation,
            clean: self.clean,
            address: self.address,
            host: self.config.host.clone(),
            capacity: driver.store.space().capacity,
            timeout_ms: self.config.session_timeout_ms,
            positions: driver.positions(),
        });
        // Wishes that nobody took may be outdated by now; primaries that still have one say so again.
        while proposals.try_recv().is_ok() {}
        self.confirm(driver, &rpc, &request).await?;
        self.fetch_map(driver, &rpc).await?;
        Ok((connection, rpc))
    }

    /// A call whose answer proves that the session lives, counted from before it was sent. It counts only with a
    /// map that is as new as the answer: a primary that was replaced learns so before its lease is extended.
    async fn confirm(&self, driver: &Rc<Driver>, rpc: &Rpc, request: &MetaRequest) -> Result<(), Ended> {
        let sent = now();
        match call(rpc, request).await? {
            Ok(MetaReply::DataSession { map_epoch, .. }) if is_given_up(map_epoch, driver.map_epoch()) => {
                let why =
                    "it leads a cluster as it was before the metadata was restored from a backup; stop it";
                tracing::warn!("a metadata server is not served: {why}");
                Err(why.to_owned().into())
            }
            Ok(MetaReply::DataSession { timeout_ms, map_epoch, full_ratios, .. }) => {
                driver.store.set_full_ratio(f64::from(full_ratios.full) / f64::from(FullRatios::ONE));
                if driver.map_epoch() < map_epoch {
                    self.fetch_map(driver, rpc).await?;
                }
                if driver.map_epoch() < map_epoch {
                    return Err("its map is older than it said".to_owned().into());
                }
                let valid = u64::from(timeout_ms) * (100 - MARGIN_PER_CENT) / 100;
                driver.extend_lease(Tick(sent.0 + valid));
                Ok(())
            }
            Ok(_) => Err("it answered something else than was asked".to_owned().into()),
            Err(MetaError::SessionExpired) => {
                driver.end_lease();
                Err(MetaError::SessionExpired.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn fetch_map(&self, driver: &Rc<Driver>, rpc: &Rpc) -> Result<(), Ended> {
        match call(rpc, &MetaRequest::SubscribeMap { known: driver.map_epoch() }).await?? {
            MetaReply::Map(map) => driver.adopt_map(map),
            _ => {
                // Epochs and links may still have to be looked at after a reconnect.
                let map: Option<ClusterMap> = driver.map.borrow().clone();
                map.into_iter().for_each(|map| driver.adopt_map(map));
            }
        }
        Ok(())
    }

    async fn serve(
        &self,
        driver: &Rc<Driver>,
        connection: &Connection,
        rpc: &Rpc,
        servers: &RefCell<Vec<SocketAddr>>,
        proposals: &mut mpsc::Receiver<Proposal>,
    ) -> Ended {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let every = Duration::from_millis(u64::from(self.config.session_timeout_ms) / 10);
        let mut heartbeat = tokio::time::interval(every.min(Duration::from_secs(1)));
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pushes: Option<FrameReceiver> = None;
        loop {
            let step = tokio::select! {
                lost = connection.closed() => return lost.to_string().into(),
                _ = heartbeat.tick() => {
                    self.confirm(driver, rpc, &MetaRequest::DataHeartbeat(driver.report())).await
                }
                () = driver.leaving.notified() => return leave(driver, rpc).await,
                _ = look.tick() => learn_servers(rpc, servers).await,
                () = driver.map_needed.notified() => self.fetch_map(driver, rpc).await,
                Some(proposal) = proposals.recv() => propose(rpc, proposal).await,
                channel = connection.accept_channel(), if pushes.is_none() => match channel {
                    Ok((channel_kind::PUSH, channel)) => {
                        pushes = Some(channel.split().1);
                        Ok(())
                    }
                    Ok((kind, _)) => Err(format!("it opened a channel of kind {kind}").into()),
                    Err(error) => Err(error.to_string().into()),
                },
                push = next_push(&mut pushes) => match push {
                    Ok(push) => self.take_push(driver, rpc, push).await,
                    Err(why) => Err(why.into()),
                },
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    async fn take_push(&self, driver: &Rc<Driver>, rpc: &Rpc, push: Push) -> Result<(), Ended> {
        match push {
            Push::Map(delta) => {
                let map = driver.map.borrow().clone();
                let applied = map.map(|mut map| map.apply(delta).map(|()| map));
                match applied {
                    Some(Ok(map)) => {
                        driver.adopt_map(map);
                        Ok(())
                    }
                    _ => self.fetch_map(driver, rpc).await,
                }
            }
            Push::SessionExpired => {
                driver.end_lease();
                Err(MetaError::SessionExpired.into())
            }
            Push::LockGranted { .. } | Push::RecallHold(_) | Push::Settle(_) => Ok(()),
        }
    }
}

/// Says why this server ends, so that nobody waits for it. It serves nothing any more.
async fn leave(driver: &Rc<Driver>, rpc: &Rpc) -> Ended {
    let why = driver.fatal.borrow().clone().unwrap_or_default();
    match call(rpc, &MetaRequest::LeaveDataServer { why }).await {
        Ok(Ok(_)) => Ended::Left,
        Ok(Err(error)) => error.into(),
        Err(ended) => ended,
    }
}

/// Whether a leader with the first map belongs to a life of the cluster that ended before the second: a restore raises
/// epochs by at least this, and within one life a leader knows every map that anybody has.
fn is_given_up(leads_with: MapEpoch, known: MapEpoch) -> bool {
    leads_with.0.saturating_add(RESTORE_RAISES) <= known.0
}

/// Asks the leader who the metadata servers are.
async fn learn_servers(rpc: &Rpc, servers: &RefCell<Vec<SocketAddr>>) -> Result<(), Ended> {
    if let Ok(MetaReply::MetadataServers(answer)) = call(rpc, &MetaRequest::MetadataServers).await? {
        let addresses: Vec<SocketAddr> = answer.members.iter().filter_map(|member| member.address).collect();
        if !addresses.is_empty() {
            servers.replace(addresses);
        }
    }
    Ok(())
}

async fn next_push(pushes: &mut Option<FrameReceiver>) -> Result<Push, String> {
    let Some(receiver) = pushes else { return std::future::pending().await };
    match receiver.recv::<Push>().await {
        Ok(Some((push, _))) => Ok(push),
        Ok(None) => Err("it ended its pushes".into()),
        Err(error) => Err(error.to_string()),
    }
}

async fn propose(rpc: &Rpc, proposal: Proposal) -> Result<(), Ended> {
    let Proposal { pg, version, change } = proposal;
    let shown = format!("{change:?}");
    match call(rpc, &MetaRequest::ProposePg { pg, version, change }).await? {
        Ok(_) => Ok(()),
        Err(MetaError::NotLeader { leader }) => Err(MetaError::NotLeader { leader }.into()),
        Err(error) => {
            // The replica learns the truth from the map, and asks again if it still wants to.
            tracing::debug!("group {pg}: {shown} was refused: {error}");
            Ok(())
        }
    }
}

async fn call(rpc: &Rpc, request: &MetaRequest) -> Result<MetaResponse, Ended> {
    match tokio::time::timeout(CALL_TIMEOUT, rpc.call(request, Bytes::new())).await {
        Ok(Ok((response, _))) => Ok(response),
        Ok(Err(error)) => Err(error.to_string().into()),
        Err(_) => Err("it does not answer".to_owned().into()),
    }
}
