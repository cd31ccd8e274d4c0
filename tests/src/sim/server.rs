//! One simulated metadata server: what is on its disk, its clocks, and while it runs the real peer, the real core and
//! the real log store.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use metadata_server::core::{Broadcast, Core, CoreConfig, Now};
use metadata_server::quorum::files::Directory;
use metadata_server::quorum::stream::{DiskOperation, DiskStream, Group, OpenedStream};
use metadata_server::quorum::{LogOptions, PeerStatus, StorageError, StorageOptions};
use metadata_server::state::key::{self, Key};
use metadata_server::state::layers::{Disk, StoreError, Writes};
use metadata_server::state::record::Progress;
use protocol::identity::ClusterId;
use protocol::meta::Refusals;
use protocol::{MetadataServerId, Timestamp};
use zab::{
    ChangeError, Config, DataUuid, Membership, MembershipChange, Peer, PeerId, ProposeError, ReadError,
    Record, Recovered, Role, SnapshotDescriptor, Tick, Zxid,
};

use super::disk::SimDisk;
use super::faults::Shape;
use super::world::Happening;
use crate::simulation::rng::Rng;

/// Small, so that segments roll and are purged all the time.
const SEGMENT_BYTES: u64 = 32 << 10;

/// A state file: immutable once written, shared by those who read it.
#[derive(Clone, Default)]
pub(crate) struct Image(pub(crate) Arc<BTreeMap<Key, Bytes>>);

impl Disk for Image {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError> {
        use std::ops::Bound::{Excluded, Included};
        let rows = self.0.range::<[u8], _>((Included(from), Excluded(to))).take(limit);
        Ok(rows.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

impl Image {
    /// What a checkpoint leaves.
    pub(crate) fn with(&self, writes: &Writes) -> Image {
        let mut rows = (*self.0).clone();
        for (key, value) in writes {
            match value {
                Some(value) => drop(rows.insert(key.clone(), value.clone())),
                None => drop(rows.remove(key)),
            }
        }
        Image(Arc::new(rows))
    }

    pub(crate) fn progress(&self) -> Progress {
        self.0.get(&key::system("progress")).and_then(|p| postcard::from_bytes(p).ok()).unwrap_or_default()
    }

    pub(crate) fn zxid(&self) -> Zxid {
        let Progress { zab_epoch, counter, .. } = self.progress();
        Zxid::new(zab_epoch, counter)
    }
}

/// Clocks that start anywhere, run a little fast or slow, and are set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    pub(crate) offset: u64,
    /// Milliseconds that they count in 1,000.
    pub(crate) rate: u64,
    /// Milliseconds that the machine was suspended: the session clock stood still.
    pub(crate) suspended: u64,
    /// What the wall clock is off by, in seconds.
    pub(crate) wall_offset: i64,
}

impl Clocks {
    pub(crate) fn tick(self, time: u64) -> Tick {
        self.offset + time * self.rate / 1000
    }

    /// The first time at which the ticks reach `tick`.
    pub(crate) fn when(self, tick: Tick) -> u64 {
        (tick.saturating_sub(self.offset) * 1000).div_ceil(self.rate)
    }

    fn now(self, time: u64) -> Now {
        let ms = self.tick(time).saturating_sub(self.suspended);
        let wall = 1_700_000_000_000_i64 + self.wall_offset * 1000 + ms as i64;
        let seconds = wall.div_euclid(1000);
        Now { ms, wall: Timestamp { seconds, nanoseconds: wall.rem_euclid(1000) as u32 * 1_000_000 } }
    }
}

/// A moment on one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) tick: Tick,
    pub(crate) now: Now,
}

/// What a request is known by: connection and number of the call on it.
pub(crate) type Token = (u64, u64);

/// A process.
pub(crate) struct Running {
    pub(crate) peer: Peer,
    pub(crate) core: Core<Image, Token>,
    pub(crate) stream: DiskStream,
    /// The storage stream's elements that were not begun.
    pub(crate) pending: VecDeque<DiskOperation>,
    /// Made by the core since the world last looked.
    pub(crate) proposals: Vec<(Zxid, Bytes)>,
    pub(crate) role: Role,
    pub(crate) state_id: u64,
    pub(crate) applied_bytes: u64,
    pub(crate) is_checkpointing: bool,
    pub(crate) checkpoint_at: u64,
    pub(crate) generation: u64,
    pub(crate) installing: VecDeque<(u64, SnapshotDescriptor)>,
    pub(crate) sending: BTreeMap<PeerId, u64>,
    pub(crate) receiving: Option<u64>,
    pub(crate) is_syncing: bool,
    pub(crate) tick_at: Option<u64>,
    /// The storage failed: the process ends.
    pub(crate) failure: Option<String>,
}

/// The peer as the core sees it, with every proposal noted.
pub(crate) struct Watched<'a> {
    peer: &'a mut Peer,
    tick: Tick,
    proposals: &'a mut Vec<(Zxid, Bytes)>,
}

impl Broadcast for Watched<'_> {
    fn propose(&mut self, txn: Bytes) -> Result<Zxid, ProposeError> {
        let zxid = self.peer.propose(txn.clone(), self.tick)?;
        self.proposals.push((zxid, txn));
        Ok(zxid)
    }

    fn read_index(&mut self, number: u64) -> Result<(), ReadError> {
        self.peer.read_index(number, self.tick)
    }

    fn lease_valid(&self) -> bool {
        self.peer.lease_valid(self.tick)
    }

    fn peers(&self) -> Vec<PeerStatus> {
        Vec::new()
    }

    fn refusals(&self) -> Refusals {
        Refusals::default()
    }

    fn membership(&self) -> (Membership, bool) {
        (self.peer.membership().clone(), self.peer.is_membership_settled())
    }

    fn change_membership(&mut self, change: &MembershipChange) -> Result<Zxid, ChangeError> {
        let zxid = self.peer.change_membership(change, self.tick)?;
        // The state machine sees an empty transaction.
        self.proposals.push((zxid, Bytes::new()));
        Ok(zxid)
    }
}

impl Running {
    /// The core and the quorum that it calls.
    pub(crate) fn split(&mut self, tick: Tick) -> (&mut Core<Image, Token>, Watched<'_>) {
        let quorum = Watched { peer: &mut self.peer, tick, proposals: &mut self.proposals };
        (&mut self.core, quorum)
    }

    /// Carries out the first `count` elements of the storage stream. Returns the token that is durable.
    pub(crate) fn sync(&mut self, count: usize) -> Result<u64, StorageError> {
        let mut group = Group::default();
        for operation in self.pending.drain(..count.min(self.pending.len())).collect::<Vec<_>>() {
            self.stream.stage(operation, &mut group)?;
        }
        self.stream.commit(&group)?;
        self.stream.purge(&group)?;
        Ok(group.token())
    }
}

/// See the module.
pub(crate) struct Server {
    pub(crate) id: PeerId,
    pub(crate) zab: Config,
    pub(crate) core: CoreConfig,
    pub(crate) clocks: Clocks,
    pub(crate) disk: SimDisk,
    /// Complete state files by their ids.
    pub(crate) images: BTreeMap<u64, Image>,
    /// What the directory begins with when there is none.
    pub(crate) fresh: Record,
    /// Boxed, as it is taken out and put back with every step.
    pub(crate) running: Option<Box<Running>>,
    pub(crate) incarnation: u64,
    pub(crate) is_paused: bool,
    pub(crate) inbox: VecDeque<Happening>,
    pub(crate) stalled_until: u64,
    /// Every membership that may count after the next start, as the process that ended last left it.
    pub(crate) left: Vec<Membership>,
    /// Its machine was given away after it was removed: it never starts again.
    pub(crate) is_gone: bool,
    /// Damage was done to its log that may not be repaired yet.
    pub(crate) is_damaged: bool,
}

impl Server {
    /// A machine that was never started. `fresh` is what its directory begins with.
    pub(crate) fn new(
        id: PeerId,
        shape: &Shape,
        fresh: Record,
        voters: BTreeMap<MetadataServerId, SocketAddr>,
        rng: &mut Rng,
    ) -> Server {
        let clocks = Clocks {
            offset: rng.below(1_000_000),
            rate: if shape.has_drift { rng.between(990, 1010) } else { 1000 },
            suspended: 0,
            wall_offset: rng.between(0, 20) as i64 - 10,
        };
        let core = CoreConfig {
            id: MetadataServerId(id.0),
            cluster: ClusterId(*b"simulatedcluster"),
            voters,
            pool_size: 2,
            down_out_ms: 30_000,
        };
        Server {
            id,
            zab: Config { id, ..shape.zab.clone() },
            core,
            clocks,
            disk: SimDisk::default(),
            images: BTreeMap::new(),
            fresh,
            running: None,
            incarnation: 0,
            is_paused: false,
            inbox: Default::default(),
            stalled_until: 0,
            left: Vec::new(),
            is_gone: false,
            is_damaged: false,
        }
    }

    /// Which directory it has.
    pub(crate) fn uuid(&self) -> DataUuid {
        self.fresh.data_uuid
    }

    /// Every membership that counts here, or may after a restart.
    pub(crate) fn memberships(&self) -> Vec<Membership> {
        self.running.as_ref().map_or_else(|| self.left.clone(), |running| running.memberships())
    }

    pub(crate) fn moment(&self, time: u64) -> Moment {
        Moment { tick: self.clocks.tick(time), now: self.clocks.now(time) }
    }

    pub(crate) fn is_leading(&self) -> bool {
        self.running.as_ref().is_some_and(|running| matches!(running.peer.role(), Role::Leading { .. }))
    }

    /// Whether nothing that it acknowledged is in doubt.
    pub(crate) fn is_whole(&self) -> bool {
        let needs_sync = self.running.as_ref().is_some_and(|running| running.peer.record().needs_sync);
        !self.is_gone && !self.is_damaged && !needs_sync
    }

    /// Starts a process from what is on the disk.
    ///
    /// # Errors
    /// The disk failed, or what is on it contradicts itself.
    pub(crate) fn boot(&mut self, time: u64, seed: u64) -> Result<(), BootError> {
        let directory: Arc<dyn Directory> = Arc::new(self.disk.clone());
        let options = StorageOptions {
            cluster: [7; 16],
            server: self.id,
            log: LogOptions { segment_bytes: SEGMENT_BYTES },
        };
        let fresh = self.fresh.clone();
        let opened = DiskStream::open_or_create(&directory, Path::new("simulated"), &options, || fresh);
        let OpenedStream { stream, entries, .. } = opened.map_err(BootError::Storage)?;
        let record = stream.record().clone();
        let state_id = record.snapshot.map_or(0, |snapshot| snapshot.id);
        self.images.retain(|id, _| *id == state_id);
        let image = self.images.entry(state_id).or_default().clone();
        let applied = image.zxid();
        if record.snapshot.is_some_and(|snapshot| applied < snapshot.zxid) {
            return Err(BootError::Broken(format!("the installed state {state_id} is gone")));
        }
        let core = Core::new(self.core.clone(), image).map_err(|e| BootError::Broken(e.to_string()))?;
        let recovered = Recovered { record, log: entries, applied };
        let peer = Peer::new(self.zab.clone(), recovered, self.clocks.tick(time), seed)
            .map_err(|e| BootError::Broken(e.to_string()))?;
        self.incarnation += 1;
        self.is_paused = false;
        self.running = Some(Box::new(Running {
            peer,
            core,
            stream,
            pending: VecDeque::new(),
            proposals: Vec::new(),
            role: Role::Looking,
            state_id,
            applied_bytes: 0,
            is_checkpointing: false,
            checkpoint_at: time,
            generation: 0,
            installing: VecDeque::new(),
            sending: BTreeMap::new(),
            receiving: None,
            is_syncing: false,
            tick_at: None,
            failure: None,
        }));
        Ok(())
    }
}

/// Why a server does not start.
#[derive(Debug)]
pub(crate) enum BootError {
    /// The disk, which may be another one next time.
    Storage(StorageError),
    /// What must not be.
    Broken(String),
}
