//! A stand-in for the metadata cluster: registers data servers, hands out the map, changes configurations by
//! compare-and-set. Sessions end when the test says so.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use protocol::map::{ClusterMap, DataServerInfo, Member, PgChange, PgConfig, Pool, WEIGHT_ONE};
use protocol::meta::{
    DataServerRegistration, MetaError, MetaReply, MetaRequest, MetaResponse, MetadataServers, Push,
};
use protocol::transport::rpc::{ServeLimits, serve_rpc};
use protocol::transport::{Connection, Endpoint};
use protocol::{DataServerId, MapEpoch, PgId, PoolId, SessionId, channel_kind};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

pub(crate) const POOL: PoolId = PoolId(1);
pub(crate) const PG_NUM: u32 = 4;
pub(crate) const CHUNK: u32 = 4 << 20;
const SIZE: usize = 3;
const MIN_SIZE: usize = 2;

pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    map: ClusterMap,
    pushes: Vec<mpsc::UnboundedSender<()>>,
    corrupt_blocks: BTreeMap<DataServerId, u64>,
    clean: BTreeMap<DataServerId, bool>,
    /// Groups that the server said it holds at its last start.
    held: BTreeMap<DataServerId, usize>,
}

impl Stub {
    /// Must be called within a `LocalSet`.
    pub(crate) fn start(endpoint: Endpoint) -> Self {
        let mut state = State::default();
        state.map.epoch = MapEpoch(1);
        let pool = Pool {
            name: "data".into(),
            size: SIZE as u32,
            min_size: MIN_SIZE as u32,
            pg_num: PG_NUM,
            rule: 0,
            chunk_size: CHUNK,
            inline_limit: 0,
        };
        state.map.pools.insert(POOL, pool);
        let state = Rc::new(RefCell::new(state));
        let address = endpoint.local_addr();
        spawn_local(accept(endpoint, state.clone()));
        Stub { address, state }
    }

    pub(crate) fn map(&self) -> ClusterMap {
        self.state.borrow().map.clone()
    }

    pub(crate) fn corrupt_blocks(&self, server: DataServerId) -> u64 {
        self.state.borrow().corrupt_blocks.get(&server).copied().unwrap_or(0)
    }

    /// What the server said at its last start.
    pub(crate) fn was_clean(&self, server: DataServerId) -> bool {
        self.state.borrow().clean.get(&server).copied().unwrap_or(false)
    }

    /// Groups that the server said it holds at its last start.
    pub(crate) fn held(&self, server: DataServerId) -> Option<usize> {
        self.state.borrow().held.get(&server).copied()
    }

    /// Forgets what servers said at their starts.
    pub(crate) fn forget_held(&self) {
        self.state.borrow_mut().held.clear();
    }

    /// The pool goes, with its groups.
    pub(crate) fn remove_pool(&self) {
        self.state.borrow_mut().change(|map| {
            map.pools.clear();
            map.pgs.clear();
            map.removed_pools.insert(POOL);
        });
    }

    /// The server's session ends: the groups go on without it.
    pub(crate) fn expire(&self, server: DataServerId) {
        self.state.borrow_mut().change(|map| {
            if let Some(info) = map.data_servers.get_mut(&server) {
                info.up = false;
            }
            for config in map.pgs.values_mut() {
                config.learners.retain(|m| m.server != server);
                if config.certain().filter(|m| m.server != server).count() >= MIN_SIZE {
                    config.in_sync.retain(|m| m.server != server);
                }
            }
        });
    }

    /// All groups get this primary.
    pub(crate) fn lead(&self, server: DataServerId) {
        self.state.borrow_mut().change(|map| {
            for config in map.pgs.values_mut() {
                config.primary = Some(server);
                config.activated = false;
            }
        });
    }

    /// Every group has all its members, and serves.
    pub(crate) fn is_whole(&self) -> bool {
        let state = self.state.borrow();
        let whole = |c: &PgConfig| c.activated && c.learners.is_empty() && c.certain().count() == SIZE;
        state.map.pgs.len() == PG_NUM as usize && state.map.pgs.values().all(whole)
    }

    pub(crate) fn serves(&self) -> bool {
        let state = self.state.borrow();
        state.map.pgs.len() == PG_NUM as usize && state.map.pgs.values().all(|c| c.activated)
    }
}

impl State {
    /// One transaction: changed configurations get the new epoch as their version.
    fn change(&mut self, act: impl FnOnce(&mut ClusterMap)) {
        let before = self.map.pgs.clone();
        act(&mut self.map);
        plan(&mut self.map);
        self.map.epoch.0 += 1;
        for (pg, config) in &mut self.map.pgs {
            if before.get(pg) != Some(config) {
                config.version = self.map.epoch.0;
            }
        }
        self.pushes.retain(|push| push.send(()).is_ok());
    }

    fn register(&mut self, server: DataServerId, said: &DataServerRegistration) -> MetaResponse {
        self.clean.insert(server, said.clean);
        self.held.insert(server, said.positions.len());
        let known = self.map.data_servers.get(&server);
        if known.is_none_or(|k| !k.up || (k.incarnation, k.address) != (said.incarnation, said.address)) {
            self.change(|map| {
                let info = DataServerInfo {
                    address: said.address,
                    host: said.host.clone(),
                    up: true,
                    session: SessionId(u64::from(server.0)),
                    store: said.store,
                    incarnation: said.incarnation,
                    crush_weight: WEIGHT_ONE,
                    reweight: WEIGHT_ONE,
                    failure: None,
                };
                map.data_servers.insert(server, info);
                for config in map.pgs.values_mut() {
                    for member in config.in_sync.iter_mut().filter(|m| m.server == server) {
                        member.uncertain |= !said.clean && member.incarnation != said.incarnation;
                        member.incarnation = said.incarnation;
                    }
                    if config.primary == Some(server) {
                        config.activated = false;
                    }
                }
            });
        }
        self.session(server)
    }

    fn session(&self, server: DataServerId) -> MetaResponse {
        if !self.map.data_servers.get(&server).is_some_and(|s| s.up) {
            return Err(MetaError::SessionExpired);
        }
        let session = SessionId(u64::from(server.0));
        Ok(MetaReply::DataSession {
            session,
            timeout_ms: 5000,
            map_epoch: self.map.epoch,
            full_ratios: Default::default(),
        })
    }

    fn propose(&mut self, pg: PgId, version: u64, change: &PgChange) -> MetaResponse {
        let now = self.map.pgs.get(&pg).map_or(0, |config| config.version);
        if now != version {
            return Err(MetaError::PgChanged { version: now });
        }
        let change = change.clone();
        self.change(|map| {
            let Some(config) = map.pgs.get_mut(&pg) else { return };
            match change {
                PgChange::Activate => config.activated = true,
                PgChange::Promote(member) => {
                    config.learners.retain(|m| m.server != member.server);
                    config.in_sync.push(member);
                }
                PgChange::MakeCertain(member) => {
                    let same = config.in_sync.iter_mut().filter(|m| m.server == member.server);
                    same.for_each(|m| m.uncertain = false);
                }
                PgChange::Drop(server) => {
                    if config.certain().filter(|m| m.server != server).count() >= MIN_SIZE {
                        config.in_sync.retain(|m| m.server != server);
                    }
                }
                PgChange::Resign | PgChange::Split { .. } => {}
            }
        });
        Ok(MetaReply::Done)
    }
}

/// Primaries, learners, and the first configurations.
fn plan(map: &mut ClusterMap) {
    let up: Vec<Member> = map
        .data_servers
        .iter()
        .filter(|(_, s)| s.up)
        .map(|(id, s)| Member { server: *id, store: s.store, incarnation: s.incarnation, uncertain: false })
        .collect();
    if map.removed_pools.contains(&POOL) {
        return;
    }
    for seed in 0..PG_NUM {
        let config = map.pgs.entry(PgId { pool: POOL, seed }).or_default();
        config.pg_num = PG_NUM;
        if config.in_sync.is_empty() {
            if up.len() < SIZE {
                continue;
            }
            config.in_sync = up.clone();
            config.primary = Some(up[seed as usize % SIZE].server);
            continue;
        }
        let alive = |server| up.iter().any(|m| m.server == server);
        let certain: Vec<DataServerId> = config.certain().map(|m| m.server).collect();
        if config.primary.is_none_or(|p| !alive(p) || !certain.contains(&p)) {
            config.primary = certain.into_iter().find(|server| alive(*server));
            config.activated = false;
        }
        let missing: Vec<Member> = up.iter().filter(|m| config.member(m.server).is_none()).copied().collect();
        config.learners.extend(missing);
    }
}

async fn accept(endpoint: Endpoint, state: Rc<RefCell<State>>) {
    while let Some(connection) = endpoint.accept().await {
        spawn_local(serve(connection, state.clone()));
    }
}

async fn serve(connection: Connection, state: Rc<RefCell<State>>) {
    let server = DataServerId(connection.peer().id);
    while let Ok((_, channel)) = connection.accept_channel().await {
        let (state, connection) = (state.clone(), connection.clone());
        let handler = move |_, request: MetaRequest, _| {
            let response = answer(&state, &connection, server, request);
            async move { (response, Bytes::new()) }
        };
        spawn_local(serve_rpc(channel, ServeLimits::default(), handler));
    }
}

fn answer(
    state: &Rc<RefCell<State>>,
    connection: &Connection,
    server: DataServerId,
    request: MetaRequest,
) -> MetaResponse {
    match request {
        MetaRequest::RegisterDataServer(said) => state.borrow_mut().register(server, &said),
        MetaRequest::DataHeartbeat(report) => {
            let mut state = state.borrow_mut();
            state.corrupt_blocks.insert(server, report.corrupt_blocks);
            state.session(server)
        }
        MetaRequest::ProposePg { pg, version, change } => state.borrow_mut().propose(pg, version, &change),
        MetaRequest::SubscribeMap { .. } => {
            let (changed, changes) = mpsc::unbounded_channel();
            state.borrow_mut().pushes.push(changed);
            spawn_local(push(connection.clone(), changes, state.clone()));
            Ok(MetaReply::Map(state.borrow().map.clone()))
        }
        // Nobody else: whoever asks goes on with the addresses that it was started with.
        MetaRequest::MetadataServers => Ok(MetaReply::MetadataServers(MetadataServers {
            version: 1,
            members: Vec::new(),
            settled: true,
            refused: None,
        })),
        other => panic!("a data server asks {other:?}"),
    }
}

/// Sends deltas.
async fn push(connection: Connection, mut changes: mpsc::UnboundedReceiver<()>, state: Rc<RefCell<State>>) {
    let mut known = state.borrow().map.clone();
    let Ok(channel) = connection.open_channel(channel_kind::PUSH).await else { return };
    let (mut sender, _receiver) = channel.split();
    while changes.recv().await.is_some() {
        let map = state.borrow().map.clone();
        let delta = protocol::map::MapDelta {
            from: known.epoch,
            to: map.epoch,
            data_servers: Some(map.data_servers.clone()),
            pools: Some(map.pools.clone()),
            crush: None,
            pgs: map.pgs.iter().map(|(pg, config)| (*pg, config.clone())).collect(),
            blocked: None,
            removed_pools: Some(map.removed_pools.clone()),
        };
        known = map;
        if sender.send(&Push::Map(delta), Bytes::new()).await.is_err() {
            return;
        }
    }
}
