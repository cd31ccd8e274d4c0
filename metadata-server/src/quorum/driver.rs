//! The loop that owns this server's member of the quorum.
//!
//! One task, one closed list of everything that can happen ([`Event`]), one closed list of everything to do
//! ([`zab::Output`]). After each event the outputs are carried out in order until there are none.
//!
//! | task or thread | writes | starts, stops |
//! |---|---|---|
//! | the driver (runtime's thread) | the peer, the state machine | [`Driver::run`] |
//! | disk thread, spare thread (`disk`) | log, record, mark | with the driver |
//! | dialers and readers (`transport`) | nothing but queues | with the driver |
//! | checkpoint (blocking) | the current state file | one at a time, detached from the commit path |
//! | snapshot sender, receiver (blocking) | a new state file | one per follower; one |
//!
//! Nothing here holds a lock while it waits, and no lock is shared between snapshots, checkpoints and commits.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};
use zab::{Body, Membership, Output, PeerId, Role, SnapshotDescriptor, Tick, Zxid};

use super::disk::{Disk, DiskOperation};
use super::error::StorageError;
use super::files::Directory;
use super::handle::{Quorum, QuorumConfig, QuorumError, addresses};
use super::snapshot::{self, Reception, SnapshotError};
use super::state_machine::{StateError, StateMachine};
use super::storage::{random_bytes, remove_states, state_path};
use super::transport::NetworkEvent;

/// Messages taken before outputs are carried out, so that they share one group commit.
const MESSAGES_AT_ONCE: usize = 64;
/// What a transaction is reckoned to take beside its bytes.
const TXN_BYTES: u64 = 64;
/// How long a server that stops waits for its last messages to leave.
const FAREWELL: Duration = Duration::from_millis(200);

/// The directory's files that the driver looks after.
pub(super) struct Files {
    pub(super) path: PathBuf,
    pub(super) directory: Arc<dyn Directory>,
    /// The current state file.
    pub(super) state_id: u64,
}

/// Everything that can happen.
enum Event {
    /// [`Quorum::stop`] was called.
    Stop,
    /// Something was called on the handle and left outputs.
    Called,
    /// More of the storage stream is durable.
    Durable,
    /// A deadline of the peer has come.
    Deadline,
    Network(NetworkEvent),
    CheckpointEnded {
        generation: u64,
        result: Result<Zxid, StateError>,
    },
    CheckpointDue,
    SnapshotSent {
        to: PeerId,
        session: u64,
        result: Result<SnapshotDescriptor, SnapshotError>,
    },
    SnapshotProgress {
        from: PeerId,
    },
    SnapshotReceived {
        from: PeerId,
        id: u64,
        result: Result<SnapshotDescriptor, SnapshotError>,
    },
}

/// Drives one member of the quorum. Made by [`Quorum::new`].
pub struct Driver {
    quorum: Quorum,
    disk: Disk,
    files: Files,
    applied: Zxid,
    role: Role,
    network: mpsc::Receiver<NetworkEvent>,
    checkpoints: Checkpoints,
    /// Counts installed snapshots: a checkpoint begun before one is void.
    generation: u64,
    /// Snapshots whose record is on its way to the disk.
    installing: VecDeque<(u64, SnapshotDescriptor)>,
    sending: BTreeMap<PeerId, Sending>,
    receiving: Option<Receiving>,
    /// Ends of background work; bounded by the work that there can be.
    reports: mpsc::UnboundedReceiver<Event>,
    reporter: mpsc::UnboundedSender<Event>,
    background: JoinSet<()>,
}

struct Checkpoints {
    interval_ms: u64,
    bytes: u64,
    is_running: bool,
    last_at: Tick,
    /// Bytes applied since the last one began.
    applied_bytes: u64,
}

struct Sending {
    session: u64,
    task: tokio::task::AbortHandle,
}

struct Receiving {
    id: u64,
    task: tokio::task::AbortHandle,
}

impl Driver {
    pub(super) fn new(
        quorum: Quorum,
        config: &QuorumConfig,
        disk: Disk,
        files: Files,
        applied: Zxid,
        network: mpsc::Receiver<NetworkEvent>,
    ) -> Driver {
        let (reporter, reports) = mpsc::unbounded_channel();
        let checkpoints = Checkpoints {
            interval_ms: config.checkpoint_interval_ms,
            bytes: config.checkpoint_bytes,
            is_running: false,
            last_at: 0,
            applied_bytes: 0,
        };
        Driver {
            quorum,
            disk,
            files,
            applied,
            role: Role::Looking,
            network,
            checkpoints,
            generation: 0,
            installing: VecDeque::new(),
            sending: BTreeMap::new(),
            receiving: None,
            reports,
            reporter,
            background: JoinSet::new(),
        }
    }

    /// Runs until [`Quorum::stop`] or a failure of the storage. Dropping the future is like a crash.
    ///
    /// # Errors
    /// The storage failed. The role has ended; the process should end too and may be started again.
    pub async fn run(mut self, mut state: impl StateMachine) -> Result<(), QuorumError> {
        let found = state.applied();
        if found != self.applied {
            return Err(QuorumError::StateMoved { told: self.applied, found });
        }
        let result = self.run_until_stopped(&mut state).await;
        if result.is_err() {
            self.quorum.inner.peer.borrow_mut().handle_storage_failed();
            // What is left to say is said by the peer; the disk gets nothing more.
            while let Some(output) = self.poll_output() {
                self.tell(output, &mut state);
            }
        }
        self.say_farewell().await;
        self.quorum.inner.network.close();
        self.background.shutdown().await;
        if result.is_ok() {
            self.disk.stop();
        }
        Ok(result?)
    }

    async fn run_until_stopped(&mut self, state: &mut impl StateMachine) -> Result<(), StorageError> {
        self.carry_out_outputs(state)?;
        loop {
            let event = self.next_event().await?;
            if matches!(event, Event::Stop) {
                self.quorum.step_down();
                return self.carry_out_outputs(state);
            }
            self.handle(event, state)?;
            self.carry_out_outputs(state)?;
        }
    }

    async fn next_event(&mut self) -> Result<Event, StorageError> {
        let inner = self.quorum.inner.clone();
        if inner.stop.get() {
            return Ok(Event::Stop);
        }
        let deadline = inner.peer.borrow().next_deadline();
        let deadline_at = deadline.map(|tick| self.quorum.instant(tick).into());
        let checkpoint_at = self.checkpoints.due_at().map(|tick| self.quorum.instant(tick).into());
        tokio::select! {
            biased;
            changed = self.disk.changed() => changed.map(|()| Event::Durable),
            Some(report) = self.reports.recv() => Ok(report),
            () = sleep_until_some(deadline_at) => Ok(Event::Deadline),
            () = inner.wake.notified() => Ok(if inner.stop.get() { Event::Stop } else { Event::Called }),
            Some(event) = self.network.recv() => Ok(Event::Network(event)),
            () = sleep_until_some(checkpoint_at) => Ok(Event::CheckpointDue),
        }
    }

    fn handle(&mut self, event: Event, state: &mut impl StateMachine) -> Result<(), StorageError> {
        let now = self.quorum.now();
        match event {
            // The outputs, or the loop's next round, are all that it is about.
            Event::Stop | Event::Called => {}
            Event::Durable => self.handle_durable(state, now)?,
            Event::Deadline => self.quorum.inner.peer.borrow_mut().handle_tick(now),
            Event::Network(event) => {
                self.handle_network(event, state, now)?;
                for _ in 1..MESSAGES_AT_ONCE {
                    let Ok(event) = self.network.try_recv() else { break };
                    self.handle_network(event, state, now)?;
                }
            }
            Event::CheckpointDue => self.start_checkpoint(state, now),
            Event::CheckpointEnded { generation, result } => {
                self.handle_checkpoint_ended(generation, result, state)?;
            }
            Event::SnapshotSent { to, session, result } => {
                self.handle_snapshot_sent(to, session, result, now)
            }
            Event::SnapshotProgress { from } => {
                self.quorum.inner.peer.borrow_mut().snapshot_progress(from, now);
            }
            Event::SnapshotReceived { from, id, result } => {
                self.handle_snapshot_received(from, id, result, now);
            }
        }
        Ok(())
    }

    fn handle_durable(&mut self, state: &mut impl StateMachine, now: Tick) -> Result<(), StorageError> {
        let durable = self.disk.durable();
        while let Some((token, snapshot)) = self.installing.front().copied()
            && token <= durable
        {
            self.installing.pop_front();
            self.install(snapshot, state)?;
        }
        self.quorum.inner.peer.borrow_mut().handle_durable(durable, now);
        Ok(())
    }

    fn handle_network(
        &mut self,
        event: NetworkEvent,
        state: &mut impl StateMachine,
        now: Tick,
    ) -> Result<(), StorageError> {
        match event {
            NetworkEvent::Message { from, message } => {
                if let Body::Ack { progress, .. } = &message.body {
                    self.quorum.inner.acknowledged.borrow_mut().insert(from, progress.durable);
                }
                tracing::trace!(from = from.0, kind = message.kind(), "A message arrived.");
                self.quorum.inner.peer.borrow_mut().handle_message(from, message, now);
            }
            NetworkEvent::Disconnected { peer } => {
                self.quorum.inner.peer.borrow_mut().handle_peer_disconnected(peer, now);
            }
            NetworkEvent::SnapshotOffered { from, id, zxid, receiver } => {
                let path = state_path(&self.files.path, id);
                let directory = self.files.directory.clone();
                self.receive_snapshot(from, Reception { id, zxid, receiver, path, directory }, state);
            }
        }
        Ok(())
    }

    // ---- outputs ------------------------------------------------------------------------------------------------

    fn poll_output(&self) -> Option<Output> {
        self.quorum.inner.peer.borrow_mut().poll_output()
    }

    fn carry_out_outputs(&mut self, state: &mut impl StateMachine) -> Result<(), StorageError> {
        while let Some(output) = self.poll_output() {
            self.carry_out(output, state)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, output: Output, state: &mut impl StateMachine) -> Result<(), StorageError> {
        match output {
            Output::Append { entries, token } => self.disk.push(DiskOperation::Append { entries, token }),
            Output::Truncate { after, token } => self.disk.push(DiskOperation::Truncate { after, token }),
            Output::SaveRecord { record, token } => {
                self.disk.push(DiskOperation::SaveRecord { record: Box::new(record), token })
            }
            Output::ProbeDisk { token } => self.disk.push(DiskOperation::Probe { token }),
            Output::InstallSnapshot { snapshot, record, token } => {
                self.installing.push_back((token, snapshot));
                self.disk.push(DiskOperation::SaveRecord { record: Box::new(record), token })
            }
            Output::PurgeLog { upto } => self.disk.push(DiskOperation::Purge { upto }),
            Output::NeedSnapshot { to, session, at_least } => {
                self.send_snapshot(to, session, at_least, state)
            }
            told => {
                self.tell(told, state);
                Ok(())
            }
        }
    }

    /// Carries out what does not touch the disk.
    fn tell(&mut self, output: Output, state: &mut impl StateMachine) {
        match output {
            Output::Send { to, message } => self.quorum.inner.network.send(to, &message),
            Output::Deliver { zxid, txn } => {
                self.checkpoints.applied_bytes += txn.len() as u64 + TXN_BYTES;
                state.apply(zxid, &txn);
            }
            Output::RoleChanged { role } => {
                tracing::info!("This metadata server is now {role:?} ({}).", self.quorum.inner.peer.borrow());
                if matches!(self.role, Role::Leading { .. }) {
                    state.lost_proposals();
                }
                if role == Role::NotMember {
                    self.explain_exclusion();
                }
                self.role = role;
                state.role_changed(role);
            }
            Output::ReadReady { request, zxid } => state.read_ready(request, zxid),
            Output::MembershipChanged { committed, pending } => {
                self.connect_to_members(&committed, pending.as_ref());
            }
            Output::StopSnapshot { to, session } => {
                if self.sending.get(&to).is_some_and(|sending| sending.session == session)
                    && let Some(sending) = self.sending.remove(&to)
                {
                    sending.task.abort();
                }
            }
            // Only after a failure: the disk gets nothing more.
            Output::Append { .. }
            | Output::Truncate { .. }
            | Output::SaveRecord { .. }
            | Output::ProbeDisk { .. }
            | Output::InstallSnapshot { .. }
            | Output::PurgeLog { .. }
            | Output::NeedSnapshot { .. } => {}
        }
    }

    fn connect_to_members(&self, committed: &Membership, pending: Option<&Membership>) {
        if committed.version > 1 || pending.is_some() {
            let next = pending.map_or(String::new(), |next| format!(", and {} is under way", members(next)));
            tracing::info!("The metadata servers of this cluster are {}{next}.", members(committed));
        }
        let inner = &self.quorum.inner;
        inner.network.set_peers(&addresses(&inner.hints, committed, pending));
    }

    /// An operator finds this in the log of a server that takes no part.
    fn explain_exclusion(&self) {
        let peer = self.quorum.inner.peer.borrow();
        let (id, record) = (peer.id(), peer.record());
        if record.membership.removed.contains(&record.data_uuid) || !record.is_fresh() {
            tracing::warn!(
                "Metadata server {id} was removed from its cluster, which now is {}. It takes no part any more: stop \
                 it and delete its directory. It can come back with an empty one, by `zabfs metadata add`.",
                members(&record.membership)
            );
        } else {
            tracing::warn!(
                "Metadata server {id} is no member of its cluster, which is {}. It waits until it is added with \
                 `zabfs metadata add`.",
                members(&record.membership)
            );
        }
    }

    /// Waits shortly for the last messages to leave: those of a leader that resigns let the others elect at once.
    async fn say_farewell(&self) {
        let network = self.quorum.inner.network.clone();
        let sent = async {
            while network.queued_bytes() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
            // What left the queues is in the transport's hands; closing now would discard it there.
            sleep(Duration::from_millis(20)).await;
        };
        // Who is not reached in time finds out by its own timeouts.
        let _ = timeout(FAREWELL, sent).await;
    }

    // ---- checkpoints --------------------------------------------------------------------------------------------

    fn start_checkpoint(&mut self, state: &mut impl StateMachine, now: Tick) {
        self.checkpoints.last_at = now;
        self.checkpoints.applied_bytes = 0;
        let Some(job) = state.checkpoint() else { return };
        self.checkpoints.is_running = true;
        let generation = self.generation;
        let directory = self.files.directory.clone();
        let work = tokio::task::spawn_blocking(move || {
            let zxid = job.run()?;
            // The first checkpoint may have made the file: the log must not be purged before its name is durable.
            directory.sync()?;
            Ok(zxid)
        });
        self.report_when_done(async move {
            let result = ended(work).await;
            Event::CheckpointEnded { generation, result }
        });
    }

    fn handle_checkpoint_ended(
        &mut self,
        generation: u64,
        result: Result<Zxid, StateError>,
        state: &mut impl StateMachine,
    ) -> Result<(), StorageError> {
        self.checkpoints.is_running = false;
        if generation != self.generation {
            // It was of a state that a snapshot replaced.
            return Ok(());
        }
        let zxid = result.map_err(StorageError::State)?;
        state.checkpointed(zxid);
        self.quorum.inner.peer.borrow_mut().compact(zxid);
        Ok(())
    }

    // ---- snapshots ----------------------------------------------------------------------------------------------

    fn send_snapshot(
        &mut self,
        to: PeerId,
        session: u64,
        at_least: Zxid,
        state: &mut impl StateMachine,
    ) -> Result<(), StorageError> {
        let source = state.snapshot_source().map_err(StorageError::State)?;
        let zxid = source.zxid();
        let connection = self.quorum.inner.network.connection(to).filter(|_| zxid >= at_least);
        let Some(connection) = connection else {
            let now = self.quorum.now();
            self.quorum.inner.peer.borrow_mut().snapshot_failed(to, session, now);
            return Ok(());
        };
        // Never 0, which names the state that began empty.
        let id = u64::from_le_bytes(random_bytes()?) | 1;
        tracing::info!(
            "Sending a snapshot at {zxid} to metadata server {to}, which is too far behind for the log."
        );
        self.quorum.inner.peer.borrow_mut().snapshot_started(to, session, zxid);
        let task = self.report_when_done(async move {
            let result = snapshot::send(connection, id, source).await;
            Event::SnapshotSent { to, session, result }
        });
        if let Some(before) = self.sending.insert(to, Sending { session, task }) {
            before.task.abort();
        }
        Ok(())
    }

    fn handle_snapshot_sent(
        &mut self,
        to: PeerId,
        session: u64,
        result: Result<SnapshotDescriptor, SnapshotError>,
        now: Tick,
    ) {
        if self.sending.get(&to).is_none_or(|sending| sending.session != session) {
            return;
        }
        self.sending.remove(&to);
        let mut peer = self.quorum.inner.peer.borrow_mut();
        match result {
            Ok(descriptor) => peer.snapshot_sent(to, session, descriptor, now),
            Err(error) => {
                tracing::warn!(
                    "The snapshot for metadata server {to} was not sent: {error}. It will ask again."
                );
                peer.snapshot_failed(to, session, now);
            }
        }
    }

    fn receive_snapshot(&mut self, from: PeerId, reception: Reception, state: &mut impl StateMachine) {
        let id = reception.id;
        if self.role != Role::Looking {
            tracing::warn!("Refused a snapshot from metadata server {from}: this server needs none.");
            return;
        }
        let is_in_use = id == self.files.state_id || self.installing.iter().any(|(_, other)| other.id == id);
        if is_in_use {
            tracing::warn!(
                "Refused a snapshot from metadata server {from}: its name {id:016x} is in use here."
            );
            return;
        }
        if let Some(before) = self.receiving.take() {
            before.task.abort();
        }
        self.remove_old_states();
        let sink = match state.snapshot_sink(&reception.path) {
            Ok(sink) => sink,
            Err(error) => {
                tracing::error!("Cannot receive a snapshot from metadata server {from}: {error}.");
                return;
            }
        };
        tracing::info!("Receiving a snapshot at {} from metadata server {from}.", reception.zxid);
        let reporter = self.reporter.clone();
        let task = self.report_when_done(async move {
            let progress = || drop(reporter.send(Event::SnapshotProgress { from }));
            let result = reception.run(sink, progress).await;
            Event::SnapshotReceived { from, id, result }
        });
        self.receiving = Some(Receiving { id, task });
    }

    fn handle_snapshot_received(
        &mut self,
        from: PeerId,
        id: u64,
        result: Result<SnapshotDescriptor, SnapshotError>,
        now: Tick,
    ) {
        if self.receiving.as_ref().is_none_or(|receiving| receiving.id != id) {
            return;
        }
        match result {
            // It stays in `receiving`, so that its file is kept until it is installed or another one comes.
            Ok(descriptor) => self.quorum.inner.peer.borrow_mut().snapshot_received(from, descriptor, now),
            Err(error) => {
                tracing::warn!("The snapshot from metadata server {from} did not arrive: {error}.");
                self.receiving = None;
            }
        }
    }

    fn install(
        &mut self,
        snapshot: SnapshotDescriptor,
        state: &mut impl StateMachine,
    ) -> Result<(), StorageError> {
        let path = state_path(&self.files.path, snapshot.id);
        state.install(&path, snapshot.zxid).map_err(StorageError::State)?;
        tracing::info!("Installed the snapshot at {}.", snapshot.zxid);
        self.generation += 1;
        self.checkpoints.applied_bytes = 0;
        self.files.state_id = snapshot.id;
        self.receiving.take_if(|receiving| receiving.id == snapshot.id);
        self.remove_old_states();
        Ok(())
    }

    fn remove_old_states(&self) {
        let is_needed = |id: u64| {
            id == self.files.state_id
                || self.installing.iter().any(|(_, snapshot)| snapshot.id == id)
                || self.receiving.as_ref().is_some_and(|receiving| receiving.id == id)
        };
        remove_states(&self.files.path, is_needed);
    }

    fn report_when_done(
        &mut self,
        work: impl Future<Output = Event> + Send + 'static,
    ) -> tokio::task::AbortHandle {
        // Reap what has ended, or the set would grow with every transfer.
        while self.background.try_join_next().is_some() {}
        let reporter = self.reporter.clone();
        self.background.spawn(async move {
            // Fails only when the driver is gone.
            let _ = reporter.send(work.await);
        })
    }
}

impl Checkpoints {
    fn due_at(&self) -> Option<Tick> {
        if self.is_running || self.applied_bytes == 0 {
            None
        } else if self.applied_bytes >= self.bytes {
            Some(0)
        } else {
            Some(self.last_at + self.interval_ms)
        }
    }
}

/// A membership in words: `1, 2, 3 and observer 4 (version 7)`.
fn members(membership: &Membership) -> String {
    let voters: Vec<String> = membership.voters.keys().map(PeerId::to_string).collect();
    let observers: String = membership.observers.iter().map(|id| format!(" and observer {id}")).collect();
    format!("{}{observers} (version {})", voters.join(", "), membership.version)
}

/// The result of blocking work; a panic in it is an error like any other.
async fn ended<T>(work: JoinHandle<Result<T, StateError>>) -> Result<T, StateError> {
    work.await.unwrap_or_else(|error| Err(error.into()))
}

async fn sleep_until_some(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
