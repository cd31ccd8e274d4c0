//! What a check asks of the cluster.

use anyhow::{anyhow, bail};
use bytes::Bytes;
use fs_client::meta::leader::Leader;
use protocol::data::{DataReply, DataRequest, DataResponse, LIST_MAX, ListedObject};
use protocol::identity::Role;
use protocol::map::ClusterMap;
use protocol::meta::{FsckAnswer, FsckRequest, MetaError, MetaReply, MetaRequest};
use protocol::split::Extent;
use protocol::transport::rpc::RpcClient;
use protocol::transport::{Endpoint, Expect};
use protocol::{DataServerId, EntryName, InodeId, MapEpoch, PgId, PoolId, channel_kind};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long the leader, or the primary of a group, is waited for: longer than a failover takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// One question to a data server.
const CALL_PATIENCE: Duration = Duration::from_secs(10);
/// Before a group is asked for again.
const AGAIN: Duration = Duration::from_millis(300);

type DataClient = RpcClient<DataRequest, DataResponse>;

/// Connections to the leader and to primaries, made when needed.
pub(crate) struct Ask {
    endpoint: Endpoint,
    leader: Leader,
    pub(crate) map: ClusterMap,
    clients: BTreeMap<DataServerId, DataClient>,
}

impl Ask {
    pub(crate) async fn new(endpoint: Endpoint, mut leader: Leader) -> anyhow::Result<Self> {
        let map = fetch_map(&mut leader).await?;
        Ok(Self { endpoint, leader, map, clients: BTreeMap::new() })
    }

    /// What the leader says; `None` if the file is not as it was, or in use.
    pub(crate) async fn fsck(&mut self, request: FsckRequest) -> anyhow::Result<Option<Box<FsckAnswer>>> {
        let answered = self.leader.call(&MetaRequest::Fsck(request), PATIENCE).await;
        match answered.map_err(|why| anyhow!(why))? {
            Ok(MetaReply::Fsck(answer)) => Ok(Some(answer)),
            Ok(MetaReply::Done) => Ok(Some(Box::default())),
            Ok(_) => bail!("the leader gave an answer of the wrong kind; compare the versions of both sides"),
            Err(MetaError::Busy) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn look(
        &mut self,
        inode: InodeId,
        names: &[(InodeId, EntryName)],
        repair: bool,
    ) -> anyhow::Result<FsckAnswer> {
        let request = FsckRequest::Look { inode, names: names.to_vec(), repair };
        let answer = self.fsck(request).await?;
        answer.map(|answer| *answer).ok_or_else(|| anyhow!("the leader does not look at inode {inode} now"))
    }

    /// Objects of a group behind `after`, from whoever serves it; and whether that is all.
    pub(crate) async fn list(
        &mut self,
        pg: PgId,
        after: Option<(InodeId, u32)>,
        limit: u32,
    ) -> anyhow::Result<(Vec<ListedObject>, bool)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pg_num = self.map.pools.get(&pg.pool).map(|pool| pool.pg_num);
            if self.map.pgs.get(&pg).map(|config| config.pg_num) != pg_num {
                bail!(
                    "the groups of pool {} are being split, and objects move between them; check again when \
                     'zabfs pool show' has no more groups to come, or without objects (--no-objects)",
                    pg.pool
                );
            }
            let extent = Extent { pg, pg_num: pg_num.unwrap_or_default() };
            let problem = match self.try_list(extent, after, limit).await {
                Ok(listed) => return Ok(listed),
                Err(problem) => problem,
            };
            if Instant::now() >= deadline {
                bail!(
                    "placement group {pg} does not say which objects it has: {problem:#}; look at 'zabfs status', \
                     or check without objects (--no-objects)"
                );
            }
            sleep(AGAIN).await;
            self.map = fetch_map(&mut self.leader).await?;
        }
    }

    async fn try_list(
        &mut self,
        Extent { pg, pg_num }: Extent,
        after: Option<(InodeId, u32)>,
        limit: u32,
    ) -> anyhow::Result<(Vec<ListedObject>, bool)> {
        let (server, address) = self.map.primary_address(pg).ok_or_else(|| anyhow!("it has no primary"))?;
        let asking = async {
            let client = match self.clients.get(&server) {
                Some(client) if !client.connection().is_closed() => client.clone(),
                _ => {
                    let expect = Expect::server(Role::Data, server.0);
                    let connection = self.endpoint.connect(address, expect).await?;
                    let client = DataClient::new(&connection, channel_kind::DATA);
                    self.clients.insert(server, client.clone());
                    client
                }
            };
            let (response, payload) =
                client.call(&DataRequest::List { pg, pg_num, after, limit }, Bytes::new()).await?;
            let DataReply::Objects { crc, end } = response? else {
                bail!("data server {server} gave an answer of the wrong kind")
            };
            if crc32c::crc32c(&payload) != crc {
                bail!("a list of data server {server} came with a wrong checksum");
            }
            anyhow::Ok((postcard::from_bytes(&payload)?, end))
        };
        let listed = timeout(CALL_PATIENCE, asking).await;
        if !matches!(listed, Ok(Ok(_))) {
            self.clients.remove(&server);
        }
        listed.map_err(|_| anyhow!("data server {server} does not answer"))?
    }

    /// All objects of one inode in these pools.
    pub(crate) async fn objects_of(
        &mut self,
        inode: InodeId,
        pools: impl IntoIterator<Item = PoolId>,
    ) -> anyhow::Result<Vec<(PgId, ListedObject)>> {
        let mut found = Vec::new();
        for pool in pools {
            let groups = self.map.pools.get(&pool).map_or(0, |pool| pool.pg_num);
            for seed in 0..groups {
                let pg = PgId { pool, seed };
                let mut after = inode.0.checked_sub(1).map(|before| (InodeId(before), u32::MAX));
                // Most groups have few of one file.
                let mut limit = 16;
                loop {
                    let (objects, end) = self.list(pg, after, limit).await?;
                    let count = objects.len();
                    found.extend(objects.into_iter().take_while(|o| o.inode == inode).map(|o| (pg, o)));
                    let last =
                        found.last().filter(|(group, _)| *group == pg).map(|(_, o)| (o.inode, o.chunk));
                    // A page that ends within the inode is followed by another one.
                    if end || count == 0 || last.is_none() || last == after {
                        break;
                    }
                    (after, limit) = (last, LIST_MAX);
                }
            }
        }
        Ok(found)
    }
}

async fn fetch_map(leader: &mut Leader) -> anyhow::Result<ClusterMap> {
    let request = MetaRequest::SubscribeMap { known: MapEpoch(0) };
    match leader.call(&request, PATIENCE).await.map_err(|why| anyhow!(why))? {
        Ok(MetaReply::Map(map)) => Ok(map),
        Ok(_) => Ok(ClusterMap::default()),
        Err(error) => Err(error.into()),
    }
}
