//! The client against small data servers over QUIC on loopback.

use super::*;
use crate::meta::MetaConfig;
use crate::testing::Ca;
use protocol::data::{DataError, DataResponse};
use protocol::identity::Role;
use protocol::map::{DataServerInfo, PgConfig, Pool};
use protocol::meta::{ClientInfo, MetaReply, MetaRequest, MetaResponse};
use protocol::transport::TransportConfig;
use protocol::transport::rpc::{ServeLimits, serve_rpc};
use protocol::{InodeId, MapEpoch, PgId, SessionId, StoreUuid, Timestamp, channel_kind};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

/// What the session's grants carry.
const FENCE: MapEpoch = MapEpoch(7);

#[derive(Default)]
pub(crate) struct World {
    /// What the next requests are answered with, before they are served.
    pub(crate) errors: VecDeque<DataError>,
    /// Ids of every write as it came, with the server it came to.
    writes: Vec<(u32, RequestId)>,
    /// Newest fence that each write knew.
    fences: Vec<MapEpoch>,
    reads: u32,
    /// Groups of each sync that was answered, with the server.
    syncs: Vec<(u32, Vec<PgId>)>,
    /// Data server that answers nothing.
    mute: Option<u32>,
    /// Data server whose syncs wait, and chunk whose writes wait, until `released` rings.
    pub(crate) held_syncs: Option<u32>,
    pub(crate) held_writes: Option<u32>,
    pub(crate) released: Rc<Notify>,
    damage_next: bool,
    /// Groups that were synced.
    synced: Vec<Extent>,
    /// Under how many groups each write found its own.
    pg_nums: Vec<u32>,
}

type Shared = Rc<RefCell<World>>;

pub(crate) struct Setup {
    pub(crate) world: Shared,
    pub(crate) client: Rc<DataClient>,
    pub(crate) map: Rc<MapHolder>,
    addresses: Vec<SocketAddr>,
    _ca: Ca,
}

impl World {
    /// Writes that were answered.
    pub(crate) fn writes(&self) -> usize {
        self.writes.len()
    }

    fn holds(&self, id: u32, request: &DataRequest) -> bool {
        match request {
            DataRequest::Sync { .. } => self.held_syncs == Some(id),
            DataRequest::Write { context, .. } => self.held_writes == Some(context.object.chunk),
            _ => false,
        }
    }
}

fn bind(ca: &Ca, role: Role, id: u32) -> Endpoint {
    let address = ([127, 0, 0, 1], 0).into();
    Endpoint::bind(address, ca.identity(role, id), TransportConfig::default()).expect("binds")
}

/// A metadata server that opens a session, and two data servers of which the first is primary of all.
pub(crate) async fn setup() -> Setup {
    let ca = Ca::new();
    let world: Shared = Rc::default();
    let leader = bind(&ca, Role::Metadata, 1);
    let metadata = leader.local_addr();
    spawn_local(serve_metadata(leader));
    let mut addresses = Vec::new();
    for id in [1, 2] {
        let endpoint = bind(&ca, Role::Data, id);
        addresses.push(endpoint.local_addr());
        spawn_local(serve_data(endpoint, id, world.clone()));
    }
    let endpoint = bind(&ca, Role::Client, 1);
    let map = Rc::new(MapHolder::default());
    map.replace(map_of(&addresses, 1, 1));
    let config = MetaConfig {
        addresses: vec![metadata],
        session_timeout: Duration::from_secs(10),
        info: ClientInfo::default(),
    };
    let meta = MetaClient::start(endpoint.clone(), config, map.clone());
    meta.ready(Duration::from_secs(10)).await.expect("a session opens");
    let client = DataClient::new(endpoint, meta, map.clone());
    Setup { world, client, map, addresses, _ca: ca }
}

fn map_of(addresses: &[SocketAddr], epoch: u64, primary: u32) -> ClusterMap {
    let mut map = ClusterMap { epoch: MapEpoch(epoch), ..ClusterMap::default() };
    let pool = Pool {
        name: "data".to_owned(),
        size: 3,
        min_size: 2,
        pg_num: 4,
        rule: 0,
        chunk_size: 4096,
        inline_limit: 0,
    };
    map.pools.insert(PoolId(1), pool);
    for seed in 0..4 {
        let primary = Some(DataServerId(primary));
        let config = PgConfig { version: epoch, primary, pg_num: 4, ..PgConfig::default() };
        map.pgs.insert(PgId { pool: PoolId(1), seed }, config);
    }
    for (index, address) in addresses.iter().enumerate() {
        let info = DataServerInfo {
            address: *address,
            host: String::new(),
            up: true,
            session: SessionId(1),
            store: StoreUuid(index as u128),
            incarnation: 1,
            crush_weight: 0,
            reweight: 0,
            failure: None,
        };
        map.data_servers.insert(DataServerId(index as u32 + 1), info);
    }
    map
}

async fn serve_metadata(endpoint: Endpoint) {
    while let Some(connection) = endpoint.accept().await {
        spawn_local(async move {
            while let Ok((_, channel)) = connection.accept_channel().await {
                spawn_local(serve_rpc(channel, ServeLimits::default(), |_, request, _| async move {
                    let (fence, now) = (FENCE, Timestamp::default());
                    let response: MetaResponse = match request {
                        MetaRequest::OpenSession { .. } => {
                            Ok(MetaReply::Session { session: SessionId(5), timeout_ms: 10_000, fence, now })
                        }
                        _ => Ok(MetaReply::Unchanged),
                    };
                    (response, Bytes::new())
                }));
            }
        });
    }
}

async fn serve_data(endpoint: Endpoint, id: u32, world: Shared) {
    while let Some(connection) = endpoint.accept().await {
        let world = world.clone();
        spawn_local(async move {
            while let Ok((kind, channel)) = connection.accept_channel().await {
                assert_eq!(kind, channel_kind::DATA);
                let world = world.clone();
                spawn_local(serve_rpc(channel, ServeLimits::default(), move |_, request, payload| {
                    let world = world.clone();
                    async move {
                        if world.borrow().mute == Some(id) {
                            std::future::pending::<()>().await;
                        }
                        while world.borrow().holds(id, &request) {
                            let released = world.borrow().released.clone();
                            released.notified().await;
                        }
                        serve_one(&mut world.borrow_mut(), id, &request, &payload)
                    }
                }));
            }
        });
    }
}

fn serve_one(world: &mut World, id: u32, request: &DataRequest, payload: &Bytes) -> (DataResponse, Bytes) {
    if let DataRequest::Write { request, context, crc, .. } = request {
        assert_eq!(*crc, crc32c::crc32c(payload));
        world.pg_nums.push(context.pg_num);
        world.writes.push((id, *request));
        world.fences.push(context.fence);
    }
    if let Some(error) = world.errors.pop_front() {
        return (Err(error), Bytes::new());
    }
    match request {
        DataRequest::Read { length, .. } => {
            world.reads += 1;
            let data = Bytes::from(vec![b'x'; *length as usize / 2]);
            let crc = crc32c::crc32c(&data) ^ u32::from(std::mem::take(&mut world.damage_next));
            (Ok(DataReply::Data { crc }), data)
        }
        DataRequest::Write { .. } => (Ok(DataReply::Written { allocated: 4096 }), Bytes::new()),
        DataRequest::Sync { pgs } => {
            world.syncs.push((id, pgs.iter().map(|extent| extent.pg).collect()));
            world.synced.extend(pgs);
            (Ok(DataReply::Synced), Bytes::new())
        }
        _ => (Err(DataError::Malformed("not in this test".to_owned())), Bytes::new()),
    }
}

fn piece() -> Piece {
    Piece { object: ObjectId { pool: PoolId(1), inode: InodeId(9), chunk: 0 }, offset: 0, length: 8, at: 0 }
}

fn basis() -> Basis {
    Basis { generation: 0, truncations: vec![] }
}

pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(30), test).await.expect("the test ends in time");
    });
}

#[test]
fn a_write_is_repeated_under_one_number_until_it_succeeds() {
    run(async {
        let Setup { world, client, .. } = &setup().await;
        world.borrow_mut().errors = VecDeque::from([
            DataError::Unavailable("taking over".to_owned()),
            DataError::Overloaded,
            DataError::NotPrimary { version: 1 },
        ]);
        let data = Bytes::from_static(b"12345678");
        assert_eq!(client.write(&basis(), piece(), data.clone()).await, Ok(4096));
        assert_eq!(client.write(&basis(), piece(), data).await, Ok(4096));
        let sequences: Vec<u64> = world.borrow().writes.iter().map(|(_, request)| request.sequence).collect();
        assert_eq!(sequences, [1, 1, 1, 1, 2]);
        let last = world.borrow().writes[4].1;
        assert_eq!((last.session, last.low_water), (SessionId(5), 2));
        assert!(
            world.borrow().fences.iter().all(|fence| *fence == FENCE),
            "a new primary must learn of fences"
        );
    });
}

#[test]
fn a_new_map_moves_what_waits_for_a_server_that_is_gone() {
    run(async {
        let Setup { world, client, map, addresses, .. } = &setup().await;
        world.borrow_mut().mute = Some(1);
        let writing = spawn_local({
            let client = client.clone();
            async move { client.write(&basis(), piece(), Bytes::from_static(b"12345678")).await }
        });
        // Whether it has reached the mute server by now or not, it must end at the other one.
        tokio::task::yield_now().await;
        map.replace(map_of(addresses, 2, 2));
        assert_eq!(writing.await.expect("no panic"), Ok(4096));
        assert_eq!(world.borrow().writes.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2]);
    });
}

#[test]
fn final_answers_are_told_apart() {
    run(async {
        let Setup { world, client, .. } = &setup().await;
        let basis = &basis();
        let read = || client.read(basis, piece());
        assert_eq!(read().await, Ok(Bytes::from_static(b"xxxx")));
        world.borrow_mut().damage_next = true;
        assert_eq!(read().await, Ok(Bytes::from_static(b"xxxx")), "read again after damage on the way");
        assert_eq!(world.borrow().reads, 3, "what was damaged is not what is returned");
        for (error, failure) in [
            (DataError::StaleTruncation { known: 3 }, DataFailure::Stale),
            (DataError::Full, DataFailure::Full),
            (DataError::Corrupt("x".to_owned()), DataFailure::Corrupt("x".to_owned())),
            (DataError::Fenced, DataFailure::SessionLost),
        ] {
            world.borrow_mut().errors.push_back(error);
            assert_eq!(read().await, Err(failure));
        }
        assert_eq!(client.meta.generation(), 1, "being fenced ends the session");
        assert_eq!(read().await, Err(DataFailure::SessionLost), "the old generation sends nothing more");
    });
}

#[test]
fn a_sync_covers_what_was_written() {
    run(async {
        let Setup { client, .. } = &setup().await;
        client.write(&basis(), piece(), Bytes::from_static(b"12345678")).await.expect("written");
        assert_eq!(client.unsynced_groups(), 1);
        client.sync_all(0).await.expect("synced");
        assert_eq!(client.unsynced_groups(), 0);
        let file = ChunkedFile { pool: PoolId(1), inode: InodeId(9), chunk_size: 4096 };
        assert_eq!(client.groups_of(&file, 0).len(), 0);
        assert_eq!(client.groups_of(&file, 4096).len(), 1);
        assert_eq!(client.groups_of(&file, 1 << 40).len(), 4, "all groups, without hashing every chunk");
    });
}

/// The first two of the four groups on the first server, the others on the second.
fn parted_map(addresses: &[SocketAddr], epoch: u64) -> ClusterMap {
    let mut map = map_of(addresses, epoch, 1);
    for (pg, config) in &mut map.pgs {
        config.primary = Some(DataServerId(1 + pg.seed / 2));
    }
    map
}

/// Writes to so many chunks that every group has some.
async fn write_everywhere(client: &Rc<DataClient>) {
    for chunk in 0..32 {
        let object = ObjectId { chunk, ..piece().object };
        let data = Bytes::from_static(b"12345678");
        assert_eq!(client.write(&basis(), Piece { object, ..piece() }, data).await, Ok(4096));
    }
    assert_eq!(client.unsynced_groups(), 4);
}

fn all_groups() -> BTreeSet<PgId> {
    (0..4).map(|seed| PgId { pool: PoolId(1), seed }).collect()
}

#[test]
fn a_sync_waits_for_every_group_on_every_server() {
    run(async {
        let Setup { world, client, map, addresses, .. } = &setup().await;
        map.replace(parted_map(addresses, 2));
        write_everywhere(client).await;
        world.borrow_mut().held_syncs = Some(2);
        let syncing = spawn_local({
            let client = client.clone();
            async move { client.sync_all(0).await }
        });
        while world.borrow().syncs.is_empty() {
            tokio::task::yield_now().await;
        }
        // The answers of one server come in order: this one comes after that of its sync.
        let first_group = (0..32).map(|chunk| ObjectId { chunk, ..piece().object });
        let of_first = first_group.into_iter().find(|object| object.pg(4).seed < 2).expect("one of 32");
        client.read(&basis(), Piece { object: of_first, ..piece() }).await.expect("read");
        tokio::task::yield_now().await;
        assert!(!syncing.is_finished(), "the other server has not answered");
        world.borrow_mut().held_syncs = None;
        world.borrow().released.notify_waiters();
        assert_eq!(syncing.await.expect("no panic"), Ok(()));
        let synced: BTreeSet<PgId> = world.borrow().syncs.iter().flat_map(|(_, pgs)| pgs.clone()).collect();
        assert_eq!(synced, all_groups());
        assert_eq!(client.unsynced_groups(), 0);
    });
}

#[test]
fn a_sync_that_failed_is_still_owed() {
    run(async {
        let Setup { world, client, .. } = &setup().await;
        write_everywhere(client).await;
        world.borrow_mut().errors.push_back(DataError::Refused("x".to_owned()));
        assert_eq!(client.sync_all(0).await, Err(DataFailure::Refused("x".to_owned())));
        assert_eq!(client.unsynced_groups(), 4);
        assert_eq!(client.sync_all(0).await, Ok(()));
        assert_eq!(client.unsynced_groups(), 0);
    });
}

#[test]
fn groups_that_part_during_a_sync_are_synced_one_by_one() {
    run(async {
        let Setup { world, client, map, addresses, .. } = &setup().await;
        write_everywhere(client).await;
        world.borrow_mut().errors.push_back(DataError::NotPrimary { version: 9 });
        let syncing = spawn_local({
            let client = client.clone();
            async move { client.sync_all(0).await }
        });
        while !world.borrow().errors.is_empty() {
            tokio::task::yield_now().await;
        }
        map.replace(parted_map(addresses, 9));
        assert_eq!(syncing.await.expect("no panic"), Ok(()));
        let synced: BTreeSet<PgId> = world.borrow().syncs.iter().flat_map(|(_, pgs)| pgs.clone()).collect();
        assert_eq!(synced, all_groups());
    });
}

/// The same servers with twice as many groups.
fn split_map(addresses: &[SocketAddr], epoch: u64) -> ClusterMap {
    let mut map = map_of(addresses, epoch, 1);
    map.pools.get_mut(&PoolId(1)).expect("the pool").pg_num = 8;
    for seed in 0..8 {
        let config = PgConfig { pg_num: 8, ..map.pgs[&PgId { pool: PoolId(1), seed: seed % 4 }].clone() };
        map.pgs.insert(PgId { pool: PoolId(1), seed }, config);
    }
    map
}

#[test]
fn a_sync_covers_what_was_split_off_meanwhile() {
    run(async {
        let Setup { world, client, map, addresses, .. } = &setup().await;
        let data = || Bytes::from_static(b"12345678");
        client.write(&basis(), piece(), data()).await.expect("written");
        let seed = piece().object.pg(4).seed;
        // Chosen before the split, and also what was noted.
        let file = ChunkedFile { pool: PoolId(1), inode: InodeId(9), chunk_size: 4096 };
        let chosen = client.groups_of(&file, 4096);
        map.replace(split_map(addresses, 2));
        let half = |seed| Extent { pg: PgId { pool: PoolId(1), seed }, pg_num: 8 };
        for round in 0..2 {
            match round {
                0 => client.sync(0, chosen.clone()).await.expect("synced"),
                _ => {
                    client.write(&basis(), piece(), data()).await.expect("written");
                    client.sync_all(0).await.expect("synced");
                }
            }
            let mut synced = std::mem::take(&mut world.borrow_mut().synced);
            synced.sort();
            match round {
                0 => assert_eq!(synced, [half(seed), half(seed + 4)], "both halves"),
                _ => assert_eq!(synced, [half(piece().object.pg(8).seed)], "only where it was written"),
            }
            assert_eq!(client.unsynced_groups(), 0);
        }
        assert_eq!(world.borrow().pg_nums, [4, 8]);
    });
}

#[test]
fn a_write_that_is_sent_again_names_its_group_by_the_new_map() {
    run(async {
        let Setup { world, client, map, addresses, .. } = &setup().await;
        world.borrow_mut().errors = VecDeque::from([DataError::NotPrimary { version: 9 }]);
        let basis = basis();
        let write = client.write(&basis, piece(), Bytes::from_static(b"12345678"));
        let split = async {
            while world.borrow().writes.is_empty() {
                tokio::task::yield_now().await;
            }
            map.replace(split_map(addresses, 2));
        };
        let (written, ()) = tokio::join!(write, split);
        written.expect("written");
        let world = world.borrow();
        assert_eq!((&world.pg_nums[..], world.writes[0].1), (&[4, 8][..], world.writes[1].1));
    });
}
