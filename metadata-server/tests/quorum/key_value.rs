//! The smallest useful state machine: keys and values in memory, a file per checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use metadata_server::quorum::{CheckpointJob, SnapshotSink, SnapshotSource, StateError, StateMachine};
use serde::{Deserialize, Serialize};
use zab::{Role, Zxid};

/// What a transaction is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Put {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
}

impl Put {
    pub(crate) fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).unwrap().into()
    }
}

/// What a checkpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) applied: Zxid,
    pub(crate) rows: BTreeMap<String, Vec<u8>>,
}

impl Table {
    fn load(path: &Path) -> Result<Table, StateError> {
        match fs::read(path) {
            Ok(bytes) => Ok(postcard::from_bytes(&bytes)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Table::default()),
            Err(error) => Err(error.into()),
        }
    }

    fn save(&self, path: &Path) -> Result<(), StateError> {
        let unfinished = path.with_extension("unfinished");
        let mut file = fs::File::create(&unfinished)?;
        file.write_all(&postcard::to_stdvec(self)?)?;
        file.sync_all()?;
        fs::rename(unfinished, path)?;
        fs::File::open(path.parent().expect("a file lies in a directory"))?.sync_all()?;
        Ok(())
    }
}

/// What tests look at.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) table: Table,
    pub(crate) reads: Vec<(u64, Zxid)>,
    pub(crate) roles: Vec<Role>,
    pub(crate) checkpoints: usize,
    pub(crate) snapshots_sent: usize,
    pub(crate) snapshots_installed: usize,
    pub(crate) losses: usize,
}

pub(crate) type Shared = Arc<Mutex<View>>;

pub(crate) struct KeyValue {
    path: PathBuf,
    view: Shared,
    checkpointed: Zxid,
}

impl KeyValue {
    pub(crate) fn open(path: &Path, view: &Shared) -> KeyValue {
        let table = Table::load(path).unwrap();
        let checkpointed = table.applied;
        *view.lock().unwrap() = View { table, ..View::default() };
        KeyValue { path: path.to_owned(), view: view.clone(), checkpointed }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap()
    }
}

impl StateMachine for KeyValue {
    fn applied(&self) -> Zxid {
        self.view().table.applied
    }

    fn apply(&mut self, zxid: Zxid, txn: &Bytes) {
        let put: Put = postcard::from_bytes(txn).unwrap();
        let mut view = self.view();
        assert!(zxid.follows(view.table.applied), "{zxid} after {}", view.table.applied);
        view.table.applied = zxid;
        view.table.rows.insert(put.key, put.value);
    }

    fn lost_proposals(&mut self) {
        self.view().losses += 1;
    }

    fn role_changed(&mut self, role: Role) {
        self.view().roles.push(role);
    }

    fn read_ready(&mut self, request: u64, zxid: Zxid) {
        let mut view = self.view();
        assert!(view.table.applied >= zxid);
        view.reads.push((request, zxid));
    }

    fn checkpoint(&mut self) -> Option<Box<dyn CheckpointJob>> {
        let table = self.view().table.clone();
        (table.applied > self.checkpointed)
            .then(|| Box::new(Job { table, path: self.path.clone() }) as Box<dyn CheckpointJob>)
    }

    fn checkpointed(&mut self, zxid: Zxid) {
        self.checkpointed = zxid;
        self.view().checkpoints += 1;
    }

    fn snapshot_source(&mut self) -> Result<Box<dyn SnapshotSource>, StateError> {
        let Table { applied, rows } = Table::load(&self.path)?;
        self.view().snapshots_sent += 1;
        Ok(Box::new(Source { zxid: applied, rows: rows.into_iter().collect() }))
    }

    fn snapshot_sink(&mut self, path: &Path) -> Result<Box<dyn SnapshotSink>, StateError> {
        Ok(Box::new(Sink { table: Table::default(), path: path.to_owned() }))
    }

    fn install(&mut self, path: &Path, zxid: Zxid) -> Result<(), StateError> {
        let table = Table::load(path)?;
        if table.applied != zxid {
            return Err(format!("the snapshot is at {}", table.applied).into());
        }
        self.path = path.to_owned();
        self.checkpointed = zxid;
        let mut view = self.view();
        view.table = table;
        view.snapshots_installed += 1;
        Ok(())
    }
}

struct Job {
    table: Table,
    path: PathBuf,
}

impl CheckpointJob for Job {
    fn run(self: Box<Self>) -> Result<Zxid, StateError> {
        self.table.save(&self.path)?;
        Ok(self.table.applied)
    }
}

struct Source {
    zxid: Zxid,
    rows: Vec<(String, Vec<u8>)>,
}

impl SnapshotSource for Source {
    fn zxid(&self) -> Zxid {
        self.zxid
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StateError> {
        let row = self.rows.pop();
        Ok(row.map(|row| postcard::to_stdvec(&row).map(Bytes::from)).transpose()?)
    }
}

struct Sink {
    table: Table,
    path: PathBuf,
}

impl SnapshotSink for Sink {
    fn write(&mut self, chunk: Bytes) -> Result<(), StateError> {
        let (key, value) = postcard::from_bytes(&chunk)?;
        self.table.rows.insert(key, value);
        Ok(())
    }

    fn finish(mut self: Box<Self>, zxid: Zxid) -> Result<(), StateError> {
        self.table.applied = zxid;
        self.table.save(&self.path)
    }
}
