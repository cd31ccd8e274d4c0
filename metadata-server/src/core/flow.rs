//! How a request goes on: it is answered, or it waits for something and takes another step then.

use super::{ClientId, Core, Output, Turn};
use crate::state::layers::{Disk, StoreError};
use crate::state::prep::mend::Mended;
use protocol::meta::{
    ClientInfo, DataServerRegistration, DataServerReport, MetaError, MetaReply, MetaRequest, MetaResponse,
    ReadOp,
};
use protocol::{EntryName, InodeId, MapEpoch, Revision, SessionId};
use zab::{ReadError, Zxid, mutant};

/// Who waits for the end of it.
#[derive(Debug)]
pub(super) enum Asker<T> {
    /// A connection.
    Client {
        /// Which.
        client: ClientId,
        /// What its driver knows the request by.
        token: T,
    },
    /// The planner: it plans again when its last plan took effect.
    Planner,
    /// The purger: it goes on when an item is off the queue.
    Purger,
}

impl<T> Asker<T> {
    /// The connection; 0, which none has, for the leader's own work.
    pub(super) fn client(&self) -> ClientId {
        match self {
            Self::Client { client, .. } => *client,
            Self::Planner | Self::Purger => 0,
        }
    }
}

/// What comes next.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and boxing the common answers would cost more")]
pub(super) enum Next {
    /// The end.
    Reply(MetaReply),
    /// Once this transaction is applied here.
    Applied(Zxid, Step),
    /// Once there is proof that this server led after now.
    Round(Step),
    /// Once this server has applied the revision.
    At(Revision, ReadOp),
    /// The driver goes on.
    Driver(Chore),
}

/// What the driver does for a client: it needs the disk.
#[derive(Debug)]
pub(super) enum Chore {
    Backup(Revision),
    BackupNext,
}

/// A step's result. An error is answered at once: what has to wait for proposals waits as [`Step::Say`].
pub(super) type Flow = Result<Next, MetaError>;

/// What a request does when what it waited for has come.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the large one is the answer to a write, the common case")]
pub(super) enum Step {
    /// Everything that the answer rests on is applied.
    Say(MetaResponse),
    /// The cluster is formed.
    Dispatch(Box<MetaRequest>),
    Read(ReadOp),
    /// This server led after it was asked: what it has applied is what had been answered before.
    Synced,
    /// Likewise: what a check looks at is as of now.
    Look(InodeId, Vec<(InodeId, EntryName)>),
    /// The repair is applied.
    Mended(InodeId, Vec<(InodeId, EntryName)>, Box<Mended>),
    /// Likewise: that is what the backup has to contain.
    Backup,
    Subscribe(MapEpoch),
    /// Earlier attempts to open the session are decided.
    OpenSession(Box<Opening>),
    /// The session is there already, and this server leads.
    Resume(SessionId),
    /// The session is open.
    Opened(SessionId),
    Attach(Box<Attaching>),
    /// Attached; whatever could pin inodes for the session is decided.
    Attached(SessionId),
    SessionReply(SessionId),
    Heartbeat {
        session: SessionId,
        low_water: u64,
    },
    Closed,
    OpenFile {
        session: SessionId,
        inode: InodeId,
        handle: u64,
    },
    View(InodeId),
    /// Earlier changes of the server's record are decided.
    Register(Box<DataServerRegistration>),
    /// This server leads.
    Registering(Box<DataServerRegistration>),
    Registered(Box<DataServerRegistration>, SessionId),
    DataHeartbeat {
        session: SessionId,
        report: DataServerReport,
    },
}

/// A session to be opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) nonce: u128,
    pub(super) timeout_ms: u32,
    pub(super) info: ClientInfo,
}

/// A connection that says for which session it speaks.
#[derive(Debug)]
pub(super) struct Attaching {
    pub(super) session: SessionId,
    pub(super) nonce: u128,
    pub(super) open: Vec<(InodeId, u64)>,
}

impl<D: Disk, T> Core<D, T> {
    pub(super) fn reply(&mut self, token: T, response: MetaResponse) {
        self.outputs.push_back(Output::Reply { token, response });
    }

    /// Stops the server because its store failed.
    pub(super) fn store_failed(&mut self, error: &StoreError) -> MetaError {
        self.fail(error.to_string());
        MetaError::NotLeader { leader: None }
    }

    /// Takes what a store said, or stops the server.
    pub(super) fn stored<V>(&mut self, result: Result<V, StoreError>) -> Result<V, MetaError> {
        result.map_err(|error| self.store_failed(&error))
    }
}

impl<D: Disk, T> Turn<'_, D, T> {
    /// Follows a request until it is answered or waits.
    pub(super) fn go_on(&mut self, asker: Asker<T>, mut next: Flow) {
        loop {
            let step = match next {
                Ok(Next::Reply(reply)) => return self.finish(asker, Ok(reply)),
                Err(error) => return self.finish(asker, Err(error)),
                Ok(Next::At(at_least, op)) => return self.read_when_there(asker, at_least, op),
                Ok(Next::Driver(chore)) => return self.hand_over(asker, chore),
                Ok(Next::Applied(..) | Next::Round(_)) if !self.core.is_leader() => {
                    return self.finish(asker, Err(self.not_leader()));
                }
                Ok(Next::Applied(zxid, step))
                    if zxid > self.core.applied_zxid() && !mutant!("answer-before-commit") =>
                {
                    debug_assert!(self.core.waiters.back().is_none_or(|(last, ..)| *last <= zxid));
                    return self.core.waiters.push_back((zxid, asker, step));
                }
                Ok(Next::Applied(_, step)) => step,
                Ok(Next::Round(step)) => {
                    self.core.next_read += 1;
                    match self.quorum.read_index(self.core.next_read) {
                        Ok(()) => {
                            self.core.reads.insert(self.core.next_read, (asker, step));
                            return;
                        }
                        Err(ReadError::NotLeading) => return self.refuse(asker),
                        Err(ReadError::Overloaded) => {
                            return self.finish(asker, Err(MetaError::Overloaded));
                        }
                    }
                }
            };
            next = self.step(asker.client(), step);
        }
    }

    /// This server does not lead.
    pub(super) fn refuse(&mut self, asker: Asker<T>) {
        let error = self.not_leader();
        self.finish(asker, Err(error));
    }

    /// The revision that is applied here.
    pub(super) fn revision(&self) -> Revision {
        Revision(self.core.machine.progress().revision)
    }

    fn hand_over(&mut self, asker: Asker<T>, chore: Chore) {
        let Asker::Client { client, token } = asker else { return };
        self.core.outputs.push_back(match chore {
            Chore::Backup(at_least) => Output::Backup { client, token, at_least },
            Chore::BackupNext => Output::BackupNext { client, token },
        });
    }

    pub(super) fn finish(&mut self, asker: Asker<T>, response: MetaResponse) {
        match asker {
            Asker::Client { token, .. } => self.core.reply(token, response),
            Asker::Planner => {
                if let Err(error) = response {
                    tracing::debug!("the plan was not carried out: {error}");
                }
                self.core.planner.ended(self.now.ms);
            }
            Asker::Purger => self.purge_next(),
        }
    }

    /// One step of a request of `client`.
    pub(super) fn step(&mut self, client: ClientId, step: Step) -> Flow {
        match step {
            Step::Say(response) => response.map(Next::Reply),
            Step::Dispatch(request) => self.dispatch(client, *request),
            Step::Read(op) => self.read(client, &op),
            Step::Look(inode, names) => self.look(inode, &names),
            Step::Mended(inode, names, mended) => self.mended(inode, &names, *mended),
            Step::Synced => Ok(Next::Reply(MetaReply::Revision(self.revision()))),
            Step::Backup => Ok(Next::Driver(Chore::Backup(self.revision()))),
            Step::Subscribe(known) => self.subscribe(client, known),
            Step::OpenSession(opening) => self.open_session(client, *opening),
            Step::Resume(session) => self.resume(client, session),
            Step::Opened(session) => self.opened(client, session),
            Step::Attach(attaching) => self.attach(client, &attaching),
            Step::Attached(session) => self.drop_needless_pins(session),
            Step::SessionReply(session) => self.session_reply(session).map(Next::Reply),
            Step::Heartbeat { session, low_water } => self.heartbeat(session, low_water),
            Step::Closed => self.closed(client),
            Step::OpenFile { session, inode, handle } => self.open_file(session, inode, handle),
            Step::View(inode) => self.view(inode),
            Step::Register(said) => self.register(said),
            Step::Registering(said) => self.registering(client, said),
            Step::Registered(said, session) => self.registered(client, &said, session),
            Step::DataHeartbeat { session, report } => self.data_heartbeat(client, session, report),
        }
    }

    /// Goes on with everything that waited for what is applied by now.
    pub(super) fn ring(&mut self) {
        let applied = self.core.applied_zxid();
        while self.core.waiters.front().is_some_and(|(zxid, ..)| *zxid <= applied) {
            let Some((_, asker, step)) = self.core.waiters.pop_front() else { return };
            let next = self.step(asker.client(), step);
            self.go_on(asker, next);
        }
    }

    /// Once everything proposed so far is applied.
    pub(super) fn settle(&self, step: Step) -> Flow {
        Ok(Next::Applied(self.core.last_proposed, step))
    }

    /// Once there is proof that this server led after now.
    pub(super) fn confirm(&self, step: Step) -> Flow {
        Ok(Next::Round(step))
    }

    /// Once a read of committed state is linearizable: at once under the leader's lease.
    pub(super) fn confirm_read(&mut self, client: ClientId, step: Step) -> Flow {
        if self.quorum.lease_valid() || mutant!("read-without-a-round") {
            self.step(client, step)
        } else {
            self.confirm(step)
        }
    }
}
