//! Backups of a running server, the cluster that comes from them, and reads at a revision.

use super::{Caller, Cluster, PATIENCE, run, start_of};
use bytes::Bytes;
use metadata_server::backup::BackupError;
use metadata_server::backup::format::{BackupWriter, verify};
use metadata_server::backup::restore::{Home, Restore, Restored};
use metadata_server::disk_layer::DiskLayer;
use metadata_server::state::machine::Machine;
use protocol::identity::{ClusterId, Role};
use protocol::meta::{
    BackupHead, LockHolderInfo, LockRequest, LockResource, MetaError, MetaReply, MetaRequest, NewNode,
    ReadAnswer, ReadOp, WriteOp,
};
use protocol::{EntryName, FileKind, InodeId, MapEpoch, MetadataServerId, Revision, SessionId, Timestamp};
use std::path::{Path, PathBuf};
use std::time::Instant;

fn name(text: &str) -> EntryName {
    EntryName::new(text).expect("a name")
}

/// One session's writes.
struct Writer {
    caller: Caller,
    session: SessionId,
    sequence: u64,
}

impl Writer {
    async fn open(cluster: &Cluster, client: &str, nonce: u128) -> Self {
        let caller = cluster.connect(Role::Client, client, 1).await;
        let session = caller.open_session(nonce).await;
        Self { caller, session, sequence: 0 }
    }

    async fn write(&mut self, op: WriteOp) -> MetaReply {
        self.sequence += 1;
        let (sequence, low_water) = (self.sequence, self.sequence);
        let answer = self.caller.ask(MetaRequest::Write { sequence, low_water, op }).await;
        answer.expect("it is done")
    }

    async fn create(&mut self, text: &str, handle: Option<u64>) -> InodeId {
        let node = NewNode { kind: FileKind::File, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: vec![] };
        let op = WriteOp::Create { parent: InodeId::ROOT, name: name(text), node, handle };
        match self.write(op).await {
            MetaReply::Entry(attr) => attr.inode,
            MetaReply::Opened(view) => view.attr.inode,
            other => panic!("not made: {other:?}"),
        }
    }

    async fn write_inline(&mut self, inode: InodeId, data: &[u8]) {
        let op = WriteOp::WriteInline { inode, offset: Some(0), data: data.to_vec(), kill_privileges: false };
        self.write(op).await;
    }

    /// Moves a file to chunks, of which nobody has any here, with this size. The hold stays.
    async fn write_chunks(&mut self, inode: InodeId, size: u64) {
        let MetaReply::View(view) = self.write(WriteOp::Hold(inode)).await else { panic!("no hold") };
        let truncate_seq = view.truncations.last().map_or(0, |t| t.seq);
        let op =
            WriteOp::CommitWrite { inode, truncate_seq, end: size, allocated: 4096, kill_privileges: false };
        self.write(op).await;
    }

    async fn lock(&mut self, text: &str) -> (u64, MapEpoch) {
        let op = WriteOp::Lock {
            resource: LockResource::Named(name(text)),
            request: LockRequest { owner: 1, exclusive: true, start: 0, end: u64::MAX, pid: 1 },
            wait: false,
            holder: LockHolderInfo::default(),
        };
        match self.write(op).await {
            MetaReply::Granted { token, fence } => (token, fence),
            other => panic!("not granted: {other:?}"),
        }
    }

    async fn lookup(&self, text: &str) -> Result<MetaReply, MetaError> {
        let op = ReadOp::Lookup { parent: InodeId::ROOT, name: name(text) };
        self.caller.ask(MetaRequest::Read(op)).await
    }
}

async fn back_up(cluster: &Cluster, file: &Path) -> BackupHead {
    let admin = cluster.connect(Role::Admin, "admin", 1).await;
    let head = match admin.ask_leader(MetaRequest::Backup).await {
        Ok(MetaReply::Backup(head)) => head,
        other => panic!("no backup: {other:?}"),
    };
    let out = std::fs::File::create(file).expect("a file");
    let mut writer = BackupWriter::new(out, head.clone()).expect("begins");
    loop {
        let (answer, rows) =
            admin.rpc.call(&MetaRequest::BackupNext, Bytes::new()).await.expect("it answers");
        assert_eq!(answer, Ok(MetaReply::BackupRows { crc: crc32c::crc32c(&rows) }));
        if rows.is_empty() {
            break;
        }
        writer.push(&rows).expect("rows");
    }
    let (_, summary) = writer.finish().expect("whole");
    assert_eq!(verify(file).expect("whole"), summary);
    head
}

fn restore_of(cluster: &Cluster, of: ClusterId, file: &Path, state: &str) -> Restore {
    let home = Home { dir: cluster.dir.path().join(state), address: cluster.address };
    Restore {
        file: file.to_owned(),
        cluster: of,
        homes: [(MetadataServerId(1), home)].into(),
        lost: Default::default(),
        replace: false,
        now: Timestamp { seconds: 1_800_000_000, nanoseconds: 0 },
    }
}

fn restore(cluster: &Cluster, file: &Path, state: &str) -> Result<Restored, BackupError> {
    restore_of(cluster, ClusterId(verify(file)?.head.cluster), file, state).run()
}

#[test]
fn a_restored_cluster_has_everything_of_the_backup_and_repeats_nothing() {
    run(async {
        let mut cluster = Cluster::start().await;
        let data = cluster.connect(Role::Data, "data-1", 1).await;
        data.register(&start_of(12, 1, true)).await;
        data.group_when(|config| config.primary.is_some()).await;
        let mut writer = Writer::open(&cluster, "client", 5).await;
        let small = writer.create("small", None).await;
        writer.write_inline(small, b"of the time of the backup").await;
        let large = writer.create("large", None).await;
        writer.write_chunks(large, 100_000).await;
        let unlinked = writer.create("unlinked", Some(7)).await;
        writer.write(WriteOp::Unlink { parent: InodeId::ROOT, name: name("unlinked") }).await;
        let (token, fence) = writer.lock("lock").await;
        let file = cluster.dir.path().join("backup");
        let head = back_up(&cluster, &file).await;

        writer.write_inline(small, b"of later").await;
        let later = writer.create("later", None).await;
        let mut late = Writer::open(&cluster, "other", 6).await;
        let (late_token, _) = late.lock("late").await;
        cluster.end().await;
        let made = restore(&cluster, &file, "restored").expect("restores");
        assert_eq!((made.backup.head.revision, made.generation.number), (head.revision, 1));
        assert!(made.generation.revision >= head.revision.0 + (1 << 40));
        assert_eq!((made.sessions, made.files), (2, 1), "the mount's and the data server's");
        // Once more without the data server: nobody waits for it.
        let mut without = restore_of(&cluster, ClusterId(made.backup.head.cluster), &file, "without");
        without.lost = [protocol::DataServerId(1)].into();
        without.run().expect("restores");
        let map = map_in(&cluster.dir.path().join("without"));
        assert!(map.data_servers.is_empty() && map.pgs.values().all(|config| config.in_sync.is_empty()));
        cluster.run("restored", true).await;

        let old = cluster.connect(Role::Client, "client", 1).await;
        let attach = MetaRequest::Attach { session: writer.session, nonce: 5, open: Vec::new() };
        assert_eq!(old.ask_leader(attach).await, Err(MetaError::SessionExpired));
        let mut writer = Writer::open(&cluster, "client", 5).await;
        assert!(writer.session.0 >= late.session.0 + (1 << 40), "no session's number repeats");
        let Ok(MetaReply::Entry(found)) = writer.lookup("small").await else { panic!("it is gone") };
        assert_eq!((found.inode, found.size), (small, 25));
        assert!(writer.lookup("later").await.is_err() && writer.lookup("unlinked").await.is_err());
        let gone = writer.caller.ask(MetaRequest::Read(ReadOp::Getattr(unlinked))).await;
        assert!(gone.is_err(), "nobody has it open any more");
        let view = writer.caller.ask(MetaRequest::Read(ReadOp::View { inode: large, known: 0 })).await;
        let Ok(MetaReply::View(view)) = view else { panic!("no view: {view:?}") };
        let cut = view.truncations.last().expect("it is cut at its size");
        assert!(cut.size == 100_000 && cut.seq >= made.generation.revision);
        // Neither hold nor lock survived, and what is handed out now is larger than anything before.
        writer.write(WriteOp::Hold(large)).await;
        let (again, new_fence) = writer.lock("lock").await;
        assert!(again > token && again > late_token && new_fence > fence);
        assert!(writer.create("later", None).await.0 >= later.0 + (1 << 40));

        let data = cluster.connect(Role::Data, "data-1", 1).await;
        let (_, epoch) = data.register(&start_of(12, 1, true)).await;
        let map = data.ask(MetaRequest::SubscribeMap { known: MapEpoch(0) }).await;
        let Ok(MetaReply::Map(map)) = map else { panic!("no map: {map:?}") };
        assert!(epoch.0 > 1 << 40 && map.generation == made.generation);
        assert!(map.is_fenced(late.session), "the backup did not know of it");
        assert!(map.blocked.contains_key(&SessionId(writer_of_before(&map))), "and of this one it did");
        assert!(!map.is_fenced(writer.session));
        let back = |config: &protocol::map::PgConfig| {
            config.primary.is_some() && config.version > 1 << 40 && config.certain().count() == 1
        };
        data.group_when(back).await;
    });
}

/// The map in the state file of a directory.
fn map_in(dir: &Path) -> protocol::map::ClusterMap {
    let names = std::fs::read_dir(dir).expect("lists").flatten().map(|entry| entry.path());
    let state = names.into_iter().find(|path| path.extension().is_some_and(|end| end == "redb"));
    let disk = DiskLayer::open(&state.expect("a state")).expect("opens");
    Machine::open(disk).expect("opens").map().clone()
}

/// The one client's session that the backup knew.
fn writer_of_before(map: &protocol::map::ClusterMap) -> u64 {
    map.blocked.keys().next().expect("one is blocked").0
}

#[test]
fn what_is_no_backup_of_this_cluster_is_not_restored_and_nothing_is_touched() {
    run(async {
        let mut cluster = Cluster::start().await;
        Writer::open(&cluster, "client", 5).await.create("a", None).await;
        let file = cluster.dir.path().join("backup");
        back_up(&cluster, &file).await;
        cluster.end().await;
        let foreign = restore_of(&cluster, ClusterId([9; 16]), &file, "restored").run();
        assert!(matches!(foreign, Err(BackupError::ForeignCluster { .. })), "{foreign:?}");
        let in_use = restore(&cluster, &file, "state");
        assert!(matches!(in_use, Err(BackupError::NotEmpty { .. })), "{in_use:?}");
        let bytes = std::fs::read(&file).expect("reads");
        let (cut, flipped) = (file.with_extension("cut"), file.with_extension("flipped"));
        std::fs::write(&cut, &bytes[..bytes.len() - 1]).expect("writes");
        let mut other = bytes.clone();
        other[bytes.len() / 2] ^= 4;
        std::fs::write(&flipped, &other).expect("writes");
        let cluster_id = ClusterId(verify(&file).expect("whole").head.cluster);
        for file in [cut, flipped, PathBuf::from("/proc/self/status")] {
            let refused = restore_of(&cluster, cluster_id, &file, "restored").run();
            assert!(refused.is_err(), "{} was restored", file.display());
        }
        assert!(!cluster.dir.path().join("restored").exists(), "nothing was written");
        // Set aside, and twice from the same file: other numbers each time.
        let mut again = restore_of(&cluster, cluster_id, &file, "state");
        again.replace = true;
        let first = again.run().expect("restores");
        assert_eq!(first.set_aside.len(), 1);
        again.now.seconds += 1;
        let second = again.run().expect("restores");
        assert!(second.generation.revision > first.revision);
        cluster.run("state", true).await;
        Writer::open(&cluster, "client", 5).await.create("b", None).await;
    });
}

#[test]
fn a_sync_says_what_was_done_and_reads_at_a_revision_wait_for_it() {
    run(async {
        // Without the leader's lease every read asks the quorum.
        let cluster = Cluster::start_with(false).await;
        let mut writer = Writer::open(&cluster, "client", 5).await;
        let made = writer.create("a", None).await;
        assert!(matches!(writer.lookup("a").await, Ok(MetaReply::Entry(_))));
        let Ok(MetaReply::Revision(revision)) = writer.caller.ask(MetaRequest::Sync).await else {
            panic!("no sync")
        };
        let lookup = |at_least| MetaRequest::ReadAt {
            at_least,
            op: ReadOp::Lookup { parent: InodeId::ROOT, name: name("b") },
        };
        let op = ReadOp::Getattr(made);
        let answer = writer.caller.ask(MetaRequest::ReadAt { at_least: revision, op }).await;
        let Ok(MetaReply::ReadAt { revision: at, answer: ReadAnswer::Attr(attr) }) = answer else {
            panic!("{answer:?}")
        };
        assert!(at >= revision && attr.inode == made);
        let missing = writer.caller.ask(lookup(revision)).await;
        assert!(matches!(missing, Ok(MetaReply::ReadAt { answer: ReadAnswer::Errno(_), .. })), "{missing:?}");
        // One of the future waits: here until it comes, there until the server gives up.
        let reader = cluster.connect(Role::Client, "reader", 3).await;
        let (waited, _) = tokio::join!(reader.ask(lookup(Revision(at.0 + 1))), writer.create("b", None));
        assert!(matches!(waited, Ok(MetaReply::ReadAt { answer: ReadAnswer::Attr(_), .. })), "{waited:?}");
        let begun = Instant::now();
        let never = reader.ask(lookup(Revision(u64::MAX))).await;
        assert!(matches!(never, Err(MetaError::Behind { .. })), "{never:?}");
        assert!(begun.elapsed() < PATIENCE);
        let refused = reader.ask(MetaRequest::Backup).await;
        assert!(matches!(refused, Err(MetaError::Refused(_))), "{refused:?}");
        let Ok(MetaReply::Status(status)) = reader.ask(MetaRequest::Status).await else {
            panic!("everybody may ask for the status");
        };
        assert_eq!(status.refusals.requests, 1);
    });
}
