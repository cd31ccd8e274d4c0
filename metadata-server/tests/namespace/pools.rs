//! Pools: what administrators may do to them, and how files get theirs.

use super::invariants::check;
use super::model::Said;
use super::world::{World, rows};
use metadata_server::state::key;
use metadata_server::state::prep::{Prep, PrepError, Registration};
use protocol::map::{FailureDomain, Member, PgChange, PgConfig, Pool};
use protocol::meta::{
    DataServerRegistration, MetaError, MetaReply, NewNode, POOL_XATTR, PoolChange, PoolSettings, ReadOp,
    SetAttr, WriteOp, XattrMode,
};
use protocol::{DataServerId, EntryName, Errno, FileKind, InodeId, PgId, PoolId, SessionId, StoreUuid};

/// Administrators and data servers beside the clients of a [`World`].
struct Cluster {
    world: World,
    session: SessionId,
    nonce: u128,
}

impl Cluster {
    /// Data servers by host.
    fn new(hosts: &[&str]) -> Self {
        let mut world = World::new();
        let session = world.open_session();
        let mut cluster = Cluster { world, session, nonce: 1 };
        for (id, host) in (1..).zip(hosts) {
            let said = DataServerRegistration {
                store: StoreUuid(u128::from(id)),
                incarnation: 1,
                clean: true,
                address: "127.0.0.1:1".parse().expect("an address"),
                host: (*host).into(),
                capacity: 1 << 40,
                timeout_ms: 1000,
                positions: vec![],
            };
            let server = DataServerId(id);
            let registration = Registration { server, session: SessionId(u64::from(id) + 900), said: &said };
            cluster.decide(|prep| prep.register(&registration)).expect("it registers");
        }
        cluster
    }

    fn decide<T>(
        &mut self,
        decide: impl FnOnce(&mut Prep<'_>) -> Result<T, PrepError>,
    ) -> Result<T, MetaError> {
        let (result, _) = self.world.propose(None, None, decide, |_, _| Ok(Said::Done));
        self.world.settle();
        check(&self.world.leader.machine.committed());
        assert_eq!(self.world.leader.rows(), self.world.follower.rows());
        result
    }

    fn change(&mut self, change: PoolChange) -> Result<Vec<String>, MetaError> {
        self.nonce += 1;
        let nonce = self.nonce;
        self.decide(|prep| prep.change_pool(nonce, &change))
    }

    fn create_with(&mut self, name: &str, settings: PoolSettings) -> Result<Vec<String>, MetaError> {
        self.change(PoolChange::Create { name: name.into(), settings })
    }

    fn set(&mut self, name: &str, settings: PoolSettings) -> Result<Vec<String>, MetaError> {
        self.change(PoolChange::Set { name: name.into(), settings })
    }

    fn remove(&mut self, name: &str) -> Result<Vec<String>, MetaError> {
        self.change(PoolChange::Remove { name: name.into() })
    }

    fn class(&mut self, server: u32, class: Option<&str>) -> Result<(), MetaError> {
        self.decide(|prep| prep.set_class(DataServerId(server), class))
    }

    fn pool(&self, name: &str) -> (PoolId, Pool) {
        let pools = &self.world.leader.machine.map().pools;
        let (id, pool) = pools.iter().find(|(_, pool)| pool.name == name).expect("the pool exists");
        (*id, pool.clone())
    }

    fn write(&mut self, op: WriteOp) -> Result<MetaReply, MetaError> {
        let answer = self.world.unmodelled(self.session, op);
        self.world.settle();
        check(&self.world.leader.machine.committed());
        answer
    }

    fn make(&mut self, parent: InodeId, name: &str, kind: FileKind) -> InodeId {
        let node = NewNode { kind, mode: 0o755, uid: 1, gid: 1, rdev: 0, target: vec![] };
        let op = WriteOp::Create { parent, name: entry(name), node, handle: None };
        match self.write(op) {
            Ok(MetaReply::Entry(attr)) => attr.inode,
            other => panic!("{name} was not made: {other:?}"),
        }
    }

    fn choose(&mut self, inode: InodeId, pool: &str) -> Result<MetaReply, MetaError> {
        let (name, value) = (POOL_XATTR.to_vec(), pool.as_bytes().to_vec());
        self.write(WriteOp::Setxattr { inode, name, value, mode: XattrMode::Either })
    }

    fn pool_of(&self, inode: InodeId) -> String {
        match self.world.read(self.session, &ReadOp::Getxattr { inode, name: POOL_XATTR.to_vec() }) {
            Ok(MetaReply::Bytes(name)) => String::from_utf8(name).expect("a name is text"),
            other => panic!("inode {inode} names no pool: {other:?}"),
        }
    }
}

fn entry(name: &str) -> EntryName {
    EntryName::new(name).expect("a legal name")
}

fn sizes(size: u32, min_size: u32) -> PoolSettings {
    PoolSettings { size: Some(size), min_size: Some(min_size), ..PoolSettings::default() }
}

/// What the refusal says.
fn why<T: std::fmt::Debug>(result: Result<T, MetaError>) -> String {
    match result {
        Err(MetaError::Refused(why)) => why,
        other => panic!("this is no refusal: {other:?}"),
    }
}

#[test]
fn a_pool_is_made_once_and_with_settings_that_make_sense() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    assert_eq!(
        cluster.create_with("fast", sizes(2, 1)).expect("it is made").len(),
        1,
        "one replica may write"
    );
    let (id, pool) = cluster.pool("fast");
    assert_eq!((id, pool.size, pool.min_size, pool.pg_num), (PoolId(2), 2, 1, 32));
    assert!(why(cluster.create_with("fast", sizes(2, 2))).contains("already"));
    assert!(why(cluster.create_with("a/b", sizes(2, 2))).contains("no name"));
    assert!(why(cluster.create_with("x", sizes(2, 3))).contains("min_size"));
    assert!(why(cluster.create_with("x", sizes(8, 3))).contains("1 to 7"));
    for (chunk_size, pg_num, inline_limit) in
        [(4097, 1, 0), (4096, 1, 0), (1 << 20, 0, 0), (1 << 20, 1, 1 << 20)]
    {
        let settings = PoolSettings {
            chunk_size: Some(chunk_size),
            pg_num: Some(pg_num),
            inline_limit: Some(inline_limit),
            ..PoolSettings::default()
        };
        assert!(why(cluster.create_with("x", settings)).contains("possible"));
    }
    // The answer to the first attempt was lost.
    let create = |settings| PoolChange::Create { name: "again".into(), settings };
    for _ in 0..2 {
        let change = create(sizes(3, 2));
        cluster.decide(|prep| prep.change_pool(77, &change)).expect("the second one is the first");
    }
    let change = create(sizes(3, 2));
    assert!(why(cluster.decide(|prep| prep.change_pool(78, &change))).contains("already"));
}

#[test]
fn what_is_fixed_is_refused_and_what_is_unwise_is_said() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    let one = |settings: PoolSettings| settings;
    let groups = |pg_num| one(PoolSettings { pg_num: Some(pg_num), ..PoolSettings::default() });
    assert!(why(cluster.set("data", groups(31))).contains("never merged"));
    assert!(why(cluster.set("data", groups(4097))).contains("1 to 4096"));
    let chunk = one(PoolSettings { chunk_size: Some(1 << 20), ..PoolSettings::default() });
    assert!(why(cluster.set("data", chunk)).contains("fixed"));
    assert!(why(cluster.set("nothing", sizes(2, 1))).contains("no pool"));
    assert!(
        why(cluster.set("data", PoolSettings { size: Some(1), ..PoolSettings::default() }))
            .contains("min_size")
    );
    let warnings = cluster.set("data", sizes(4, 2)).expect("it may");
    assert!(warnings[0].contains("3 hosts are in"), "{warnings:?}");
    assert_eq!(cluster.set("data", sizes(3, 2)), Ok(vec![]));
    let odd = PoolSettings { pg_num: Some(12), ..PoolSettings::default() };
    assert!(cluster.create_with("odd", odd).expect("it may")[0].contains("power of two"));
    // Two servers on one host are two failure domains only if servers are what counts.
    let mut cluster = Cluster::new(&["a", "a", "b"]);
    assert!(cluster.set("data", sizes(3, 2)).expect("it may")[0].contains("2 hosts are in"));
    let server = PoolSettings { failure_domain: Some(FailureDomain::Server), ..PoolSettings::default() };
    assert_eq!(cluster.set("data", server), Ok(vec![]));
    assert_eq!(cluster.pool("data").1.rule, 1);
}

#[test]
fn a_class_is_taken_as_long_as_a_server_has_it() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    let ssd = || PoolSettings { class: Some(Some("ssd".into())), ..sizes(2, 1) };
    assert!(why(cluster.create_with("fast", ssd())).contains("no data server has"));
    assert!(why(cluster.class(1, Some("S S"))).contains("no device class"));
    assert!(why(cluster.class(9, Some("ssd"))).contains("no data server 9"));
    cluster.class(2, Some("hdd")).expect("it is one");
    cluster.class(3, Some("ssd")).expect("it is one");
    let warnings = cluster.create_with("fast", ssd()).expect("one is enough to begin");
    assert!(warnings.iter().any(|warning| warning.contains("1 hosts of class 'ssd' are in")), "{warnings:?}");
    assert_eq!(cluster.pool("fast").1.rule, 4, "the second class, hosts");
    let crush = crush::CrushMap::parse_text(&cluster.world.leader.machine.map().crush).expect("it parses");
    let (mut scratch, mut out) = (crush::Scratch::default(), Vec::new());
    crush.do_rule(4, 7, 3, &[0x1_0000; 4], &mut scratch, &mut out);
    assert_eq!(out, [3], "nothing but the class");
    assert!(why(cluster.class(3, None)).contains("last one"));
    cluster.class(1, Some("ssd")).expect("it is one");
    cluster.class(3, None).expect("another one has it");
    let all = PoolSettings { class: Some(None), ..PoolSettings::default() };
    cluster.set("fast", all).expect("it may");
    cluster.class(1, None).expect("nobody needs it");
}

#[test]
fn what_is_made_in_a_directory_gets_its_pool() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    cluster.create_with("fast", sizes(2, 1)).expect("it is made");
    let directory = cluster.make(InodeId::ROOT, "d", FileKind::Directory);
    let old = cluster.make(directory, "old", FileKind::File);
    assert_eq!(cluster.choose(directory, "slow"), Err(Errno::EINVAL.into()));
    assert_eq!(cluster.choose(old, "fast"), Err(Errno::ENOTDIR.into()));
    cluster.choose(directory, "fast").expect("a directory may");
    let new = cluster.make(directory, "new", FileKind::File);
    let below = cluster.make(directory, "below", FileKind::Directory);
    let deep = cluster.make(below, "deep", FileKind::File);
    for (inode, pool) in [(directory, "fast"), (old, "data"), (new, "fast"), (below, "fast"), (deep, "fast")]
    {
        assert_eq!(cluster.pool_of(inode), pool);
    }
    assert_eq!(cluster.world.view(new).pool, PoolId(2));
    // A file keeps its pool wherever it goes, and the attribute is not listed.
    let (name, new_name) = (entry("new"), entry("moved"));
    let mode = protocol::meta::RenameMode::Replace;
    let root = InodeId::ROOT;
    let moved = cluster.write(WriteOp::Rename { parent: directory, name, new_parent: root, new_name, mode });
    moved.expect("it moves");
    assert_eq!(cluster.pool_of(new), "fast");
    let listed = cluster.world.read(cluster.session, &ReadOp::Listxattr(new));
    assert_eq!(listed, Ok(MetaReply::Names(vec![])));
    let removal = || WriteOp::Removexattr { inode: below, name: POOL_XATTR.to_vec() };
    cluster.choose(directory, "data").expect("back");
    cluster.write(removal()).expect("as its parent");
    assert_eq!((cluster.pool_of(below), cluster.pool_of(deep)), ("data".into(), "fast".into()));
}

#[test]
fn a_pool_goes_only_when_nothing_names_it() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    cluster.create_with("fast", sizes(2, 1)).expect("it is made");
    assert!(why(cluster.remove("data")).contains("default pool"));
    let directory = cluster.make(InodeId::ROOT, "d", FileKind::Directory);
    cluster.choose(directory, "fast").expect("a directory may");
    let file = cluster.make(directory, "f", FileKind::File);
    cluster.make(directory, "fifo", FileKind::Fifo);
    assert!(why(cluster.remove("fast")).contains("2 files and directories"));
    cluster.choose(directory, "data").expect("back");
    assert!(why(cluster.remove("fast")).contains("1 files and directories"));
    // Its chunks are there until they were swept.
    cluster.write(WriteOp::Hold(file)).expect("nobody else has it");
    let view = cluster.world.view(file);
    let (inode, truncate_seq) = (file, view.truncate_seq());
    let commit = WriteOp::CommitWrite { inode, truncate_seq, end: 99, allocated: 99, kill_privileges: false };
    cluster.write(commit).expect("under the hold");
    cluster.write(WriteOp::Unlink { parent: directory, name: entry("f") }).expect("it goes");
    assert!(why(cluster.remove("fast")).contains("still being removed"));
    let purge = rows(&cluster.world.leader.machine.committed())[&key::purge(file)].clone();
    let purge = postcard::from_bytes(&purge).expect("it decodes");
    cluster.decide(|prep| prep.finish_purge(file, &purge)).expect("swept");
    let pg = PgId { pool: PoolId(2), seed: 3 };
    let update = metadata_server::state::prep::PgUpdate { pg, based_on: 0, config: PgConfig::default() };
    cluster.decide(|prep| prep.update_groups(&[update])).expect("a group of it");
    assert!(cluster.world.leader.machine.map().pgs.contains_key(&pg));
    cluster.remove("fast").expect("nothing names it");
    let map = cluster.world.leader.machine.map();
    assert!(map.pools.len() == 1 && !map.pgs.contains_key(&pg) && map.removed_pools.contains(&PoolId(2)));
    cluster.create_with("fast", sizes(2, 1)).expect("the name is free");
    assert_eq!(cluster.pool("fast").0, PoolId(3), "the number is not used again");
}

#[test]
fn a_lowered_inline_limit_leaves_what_is_there() {
    let mut cluster = Cluster::new(&["a"]);
    let file = cluster.make(InodeId::ROOT, "f", FileKind::File);
    let write = |offset, length| WriteOp::WriteInline {
        inode: file,
        offset: Some(offset),
        data: vec![7; length],
        kill_privileges: false,
    };
    cluster.write(write(0, 9000)).expect("below the limit");
    cluster
        .set("data", PoolSettings { inline_limit: Some(4096), ..PoolSettings::default() })
        .expect("it may");
    cluster.write(write(8000, 1000)).expect("what is there may be overwritten");
    assert_eq!(cluster.write(write(8000, 1001)), Err(MetaError::Respill));
    let change = SetAttr { size: Some(100), ..SetAttr::default() };
    cluster.write(WriteOp::Setattr { inode: file, change }).expect("cut");
    cluster.write(write(100, 3996)).expect("up to the limit");
    assert_eq!(cluster.write(write(4000, 97)), Err(MetaError::Respill));
}

#[test]
fn a_group_is_split_by_its_primary_one_step_at_a_time() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    let settings = |pg_num| PoolSettings { pg_num: Some(pg_num), ..sizes(3, 2) };
    cluster.create_with("few", settings(4)).expect("it is made");
    let pg = |seed| PgId { pool: PoolId(2), seed };
    let member = |id| Member {
        server: DataServerId(id),
        store: StoreUuid(u128::from(id)),
        incarnation: 1,
        uncertain: false,
    };
    for seed in 0..4 {
        let (primary, in_sync) = (Some(DataServerId(1)), (1..4).map(member).collect());
        let config = PgConfig { primary, in_sync, activated: true, pg_num: 4, ..PgConfig::default() };
        let update = metadata_server::state::prep::PgUpdate { pg: pg(seed), based_on: 0, config };
        cluster.decide(|prep| prep.update_groups(&[update])).expect("it begins");
    }
    cluster.set("few", settings(6)).expect("more are possible");
    let config = |cluster: &Cluster, seed| cluster.world.leader.machine.map().pgs.get(&pg(seed)).cloned();
    let split = |cluster: &mut Cluster, server, seed, pg_num, holders: &[u32]| {
        let version = config(cluster, seed).expect("it exists").version;
        let holders = holders.iter().map(|id| DataServerId(*id)).collect();
        let change = PgChange::Split { pg_num, holders };
        cluster.decide(|prep| prep.change_group(DataServerId(server), pg(seed), version, &change))
    };
    assert!(why(split(&mut cluster, 2, 0, 6, &[1, 2, 3])).contains("not the primary"));
    for wrong in [0, 4, 9, u32::MAX] {
        assert!(why(split(&mut cluster, 1, 0, wrong, &[1, 2, 3])).contains("cannot be split"), "{wrong}");
    }
    let known = config(&cluster, 0).expect("it exists");
    assert_eq!((known.pg_num, config(&cluster, 4)), (4, None));

    split(&mut cluster, 1, 0, 6, &[1, 2]).expect("a step");
    let (parent, child) = (config(&cluster, 0).expect("as before"), config(&cluster, 4).expect("it begins"));
    assert_eq!((parent.pg_num, parent.activated, parent.certain().count()), (6, true, 3));
    assert_eq!((child.pg_num, child.activated, child.primary), (6, false, Some(DataServerId(1))));
    let certain: Vec<u32> = child.certain().map(|member| member.server.0).collect();
    assert_eq!((certain, child.in_sync.len()), (vec![1, 2], 3), "the third lacks it");
    split(&mut cluster, 1, 3, 6, &[1, 2, 3]).expect("also where no group is split off");
    assert_eq!(cluster.world.leader.machine.map().pgs.range(pg(0)..).count(), 5);

    // A backup that is older than a split was restored: who has the child is not known.
    split(&mut cluster, 1, 1, 8, &[]).expect("the pool had eight before");
    assert_eq!(cluster.pool("few").1.pg_num, 8);
    let child = config(&cluster, 5).expect("it begins");
    assert_eq!((child.primary, child.certain().count(), child.in_sync.len()), (None, 0, 3));
}
