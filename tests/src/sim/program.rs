//! What a client does: four programs (`times` is the fourth), each with one call under way at a time.

use std::collections::BTreeMap;

use protocol::meta::{
    LockHolderInfo, LockRequest, LockResource, MetaError, MetaReply, NewNode, Push, ReadOp, RenameMode,
    WriteOp,
};
use protocol::{Attr, EntryName, Errno, FileKind, InodeId, Layout, SessionId};

use super::linear::{LockOp, RegisterOp};
use super::oracle::Oracle;
use crate::simulation::rng::Rng;

/// Something that a program asks for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Read(ReadOp),
    Write(WriteOp),
    /// The last handle of an inode is closed.
    Close(InodeId, u64),
}

/// How it ended.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "the large one is the common one")]
pub(crate) enum Outcome {
    Reply(MetaReply),
    Error(MetaError),
    /// The session ended: it happened, or not.
    Unknown,
}

/// What a program sees of its client.
pub(crate) struct Scene<'a> {
    pub(crate) client: u32,
    pub(crate) session: SessionId,
    pub(crate) time: u64,
    pub(crate) rng: &'a mut Rng,
    pub(crate) oracle: &'a mut Oracle,
    /// New work is wanted.
    pub(crate) is_busy_time: bool,
    /// Until then the session has surely not ended.
    pub(crate) valid_until: u64,
}

/// Registers that all clients share, and locks.
pub(crate) const REGISTERS: u32 = 3;
pub(crate) const LOCKS: u32 = 2;
/// Entries of a private directory.
const NAMES: u64 = 6;
/// Tokens of a private file; below the inline limit.
const TOKENS_MAX: usize = 200;

fn name(text: &str) -> EntryName {
    EntryName::new(text.as_bytes()).expect("a short plain name")
}

pub(super) fn node(kind: FileKind) -> NewNode {
    NewNode { kind, mode: 0o700, uid: 1, gid: 1, rdev: 0, target: Vec::new() }
}

fn bytes_of(reply: &MetaReply) -> Option<(InodeId, Vec<u8>)> {
    match reply {
        MetaReply::View(view) => match &view.layout {
            Layout::Inline(bytes) => {
                let mut bytes = bytes.clone();
                bytes.resize(view.attr.size as usize, 0);
                Some((view.attr.inode, bytes))
            }
            Layout::Chunks => None,
        },
        _ => None,
    }
}

fn numbers(bytes: &[u8]) -> Vec<u64> {
    let number = |chunk: &[u8]| {
        let mut eight = [0; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(eight)
    };
    bytes.chunks(8).map(number).collect()
}

// ---- registers --------------------------------------------------------------------------------------------------

/// Writes and reads numbers in files that everybody shares.
#[derive(Default)]
pub(crate) struct Registers {
    inodes: BTreeMap<u32, InodeId>,
    under_way: Option<(u32, RegisterStep, u64)>,
}

#[derive(Clone, Copy, Debug)]
enum RegisterStep {
    Find,
    Make,
    Write(u64),
    Read,
}

impl Registers {
    pub(crate) fn next(&mut self, scene: &mut Scene<'_>) -> Option<Ask> {
        if !scene.is_busy_time {
            return None;
        }
        let register = scene.rng.below(u64::from(REGISTERS)) as u32;
        let (step, ask) = match self.inodes.get(&register) {
            None => {
                let ask = ReadOp::Lookup { parent: InodeId::ROOT, name: name(&format!("r{register}")) };
                (RegisterStep::Find, Ask::Read(ask))
            }
            Some(inode) if scene.rng.chance(500) => {
                let value = scene.oracle.fresh_value();
                let data = value.to_le_bytes().to_vec();
                let op =
                    WriteOp::WriteInline { inode: *inode, offset: Some(0), data, kill_privileges: false };
                (RegisterStep::Write(value), Ask::Write(op))
            }
            Some(inode) => (RegisterStep::Read, Ask::Read(ReadOp::View { inode: *inode, known: 0 })),
        };
        self.under_way = Some((register, step, scene.time));
        Some(ask)
    }

    /// A write that is under way may happen, or not.
    pub(crate) fn session_ended(&mut self, oracle: &mut Oracle) {
        if let Some((register, RegisterStep::Write(value), invoked)) = self.under_way.take() {
            oracle.register_call(register, RegisterOp::Write(value), invoked, None);
        }
    }

    /// Goes on after an answer; what is to be asked next, if it is not done.
    pub(crate) fn done(&mut self, scene: &mut Scene<'_>, outcome: &Outcome) -> Result<Option<Ask>, String> {
        let Some((register, step, invoked)) = self.under_way.take() else {
            return Err("an answer that nobody waits for".to_owned());
        };
        let now = Some(scene.time);
        match (step, outcome) {
            (RegisterStep::Find | RegisterStep::Make, Outcome::Reply(MetaReply::Entry(attr))) => {
                self.inodes.insert(register, attr.inode);
            }
            (RegisterStep::Find, Outcome::Error(MetaError::Errno(Errno::ENOENT))) => {
                self.under_way = Some((register, RegisterStep::Make, invoked));
                let (parent, name) = (InodeId::ROOT, name(&format!("r{register}")));
                let op = WriteOp::Create { parent, name, node: node(FileKind::File), handle: None };
                return Ok(Some(Ask::Write(op)));
            }
            (RegisterStep::Make, Outcome::Error(MetaError::Errno(Errno::EEXIST))) => {}
            (RegisterStep::Write(value), Outcome::Reply(MetaReply::Written { .. })) => {
                scene.oracle.register_call(register, RegisterOp::Write(value), invoked, now);
            }
            (RegisterStep::Write(value), Outcome::Unknown) => {
                scene.oracle.register_call(register, RegisterOp::Write(value), invoked, None);
            }
            (RegisterStep::Read, Outcome::Reply(reply)) => {
                let (_, bytes) = bytes_of(reply).ok_or_else(|| format!("a view with {reply:?}"))?;
                let value = numbers(&bytes).first().copied().unwrap_or(0);
                scene.oracle.register_call(register, RegisterOp::Read(value), invoked, now);
            }
            (_, Outcome::Unknown) => {}
            (step, outcome) => return Err(format!("register {register}: {step:?} answered by {outcome:?}")),
        }
        Ok(None)
    }
}

// ---- locks ------------------------------------------------------------------------------------------------------

/// Takes, holds and gives back named locks.
#[derive(Default)]
pub(crate) struct Locks {
    state: LockState,
}

#[derive(Clone, Copy, Debug, Default)]
enum LockState {
    #[default]
    Free,
    Asking {
        lock: u32,
        invoked: u64,
    },
    /// Queued; looks at its place at `look_at`.
    Waiting {
        lock: u32,
        invoked: u64,
        waiter: u64,
        look_at: u64,
        is_looking: bool,
    },
    Cancelling {
        lock: u32,
        invoked: u64,
        cancelled: u64,
    },
    Holding {
        lock: u32,
        until: u64,
    },
    Releasing {
        lock: u32,
        invoked: u64,
    },
}

fn resource(lock: u32) -> LockResource {
    LockResource::Named(name(&format!("l{lock}")))
}

impl Locks {
    /// When it wants to be asked for its next step, if that is not now.
    pub(crate) fn wakes_at(&self) -> Option<u64> {
        match self.state {
            LockState::Waiting { look_at, is_looking: false, .. } => Some(look_at),
            LockState::Holding { until, .. } => Some(until),
            _ => None,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, LockState::Free)
    }

    pub(crate) fn next(&mut self, scene: &mut Scene<'_>) -> Option<Ask> {
        let time = scene.time;
        match self.state {
            LockState::Free if scene.is_busy_time => {
                let lock = scene.rng.below(u64::from(LOCKS)) as u32;
                self.state = LockState::Asking { lock, invoked: time };
                let request = LockRequest { owner: 1, exclusive: true, start: 0, end: u64::MAX, pid: 1 };
                let (wait, holder) = (scene.rng.chance(500), LockHolderInfo::default());
                Some(Ask::Write(WriteOp::Lock { resource: resource(lock), request, wait, holder }))
            }
            LockState::Waiting { lock, invoked, waiter, look_at, is_looking: false } if look_at <= time => {
                if scene.rng.chance(200) || !scene.is_busy_time {
                    self.state = LockState::Cancelling { lock, invoked, cancelled: time };
                    return Some(Ask::Write(WriteOp::CancelWait { resource: resource(lock), waiter }));
                }
                self.state = LockState::Waiting { lock, invoked, waiter, look_at, is_looking: true };
                Some(Ask::Read(ReadOp::WaitState { resource: resource(lock), waiter }))
            }
            LockState::Holding { lock, until } if until <= time => {
                self.state = LockState::Releasing { lock, invoked: time };
                scene.oracle.given_up(lock, scene.client);
                let (start, end) = (0, u64::MAX);
                Some(Ask::Write(WriteOp::Unlock { resource: resource(lock), owner: 1, start, end }))
            }
            _ => None,
        }
    }

    pub(crate) fn done(&mut self, scene: &mut Scene<'_>, outcome: &Outcome) -> Result<(), String> {
        let (session, time) = (scene.session.0, scene.time);
        let state = std::mem::take(&mut self.state);
        match (state, outcome) {
            (LockState::Asking { lock, invoked }, Outcome::Reply(MetaReply::Granted { token, .. })) => {
                self.hold(scene, lock, invoked, *token)?;
            }
            (LockState::Asking { lock, invoked }, Outcome::Reply(MetaReply::Queued { waiter })) => {
                let look_at = time + 1_000;
                self.state =
                    LockState::Waiting { lock, invoked, waiter: *waiter, look_at, is_looking: false };
            }
            (LockState::Asking { lock, invoked }, Outcome::Error(MetaError::Errno(Errno::EAGAIN))) => {
                scene.oracle.lock_call(lock, LockOp::Busy(session), invoked, Some(time));
            }
            (LockState::Waiting { lock, invoked, .. }, Outcome::Reply(MetaReply::Granted { token, .. })) => {
                self.hold(scene, lock, invoked, *token)?;
            }
            (LockState::Waiting { lock, invoked, waiter, .. }, Outcome::Reply(MetaReply::Queued { .. })) => {
                let look_at = time + 1_000;
                self.state = LockState::Waiting { lock, invoked, waiter, look_at, is_looking: false };
            }
            (LockState::Cancelling { lock, invoked, cancelled }, Outcome::Reply(MetaReply::Done)) => {
                scene.oracle.lock_call(lock, LockOp::Acquire(session), invoked, None);
                scene.oracle.lock_call(lock, LockOp::Release(session), cancelled, Some(time));
            }
            (LockState::Releasing { lock, invoked }, Outcome::Reply(MetaReply::Done)) => {
                scene.oracle.lock_call(lock, LockOp::Release(session), invoked, Some(time));
            }
            (state, Outcome::Unknown) => {
                self.state = state;
                self.session_ended(scene.client, scene.session, scene.oracle);
            }
            // The grant was told by a push while the question was on its way; or the push comes after it.
            (LockState::Holding { lock, until }, _) => self.state = LockState::Holding { lock, until },
            (state, outcome) => return Err(format!("lock: {state:?} answered by {outcome:?}")),
        }
        Ok(())
    }

    pub(crate) fn pushed(&mut self, scene: &mut Scene<'_>, push: &Push) -> Result<(), String> {
        if let Push::LockGranted { resource: what, waiter, token, .. } = push
            && let LockState::Waiting { lock, invoked, waiter: mine, is_looking, .. } = self.state
            && *waiter == mine
            && *what == resource(lock)
            && !is_looking
        {
            self.hold(scene, lock, invoked, *token)?;
        }
        Ok(())
    }

    fn hold(&mut self, scene: &mut Scene<'_>, lock: u32, invoked: u64, token: u64) -> Result<(), String> {
        let (session, time) = (scene.session, scene.time);
        scene.oracle.lock_call(lock, LockOp::Acquire(session.0), invoked, Some(time));
        scene.oracle.granted(lock, scene.client, session, token, invoked, time)?;
        self.state = LockState::Holding { lock, until: time + scene.rng.between(1, 3_000) };
        Ok(())
    }

    /// Whatever was asked may have happened; whatever was held goes.
    pub(crate) fn session_ended(&mut self, client: u32, session: SessionId, oracle: &mut Oracle) {
        match std::mem::take(&mut self.state) {
            LockState::Asking { lock, invoked }
            | LockState::Waiting { lock, invoked, .. }
            | LockState::Cancelling { lock, invoked, .. } => {
                oracle.lock_call(lock, LockOp::Acquire(session.0), invoked, None);
                oracle.lock_call(lock, LockOp::Release(session.0), invoked, None);
            }
            LockState::Releasing { lock, invoked } => {
                oracle.lock_call(lock, LockOp::Release(session.0), invoked, None);
            }
            LockState::Holding { lock, .. } => oracle.given_up(lock, client),
            LockState::Free => {}
        }
    }
}

// ---- a private directory ----------------------------------------------------------------------------------------

/// Works in a directory that nobody else touches, so that every answer can be foretold: a change that happened twice
/// or not at all shows.
#[derive(Default)]
pub(crate) struct Private {
    generation: u64,
    directory: Option<InodeId>,
    entries: BTreeMap<String, InodeId>,
    files: BTreeMap<InodeId, File>,
    /// A file that is open, and then has no name any more.
    orphan: Option<(InodeId, u64, bool)>,
    last_handle: u64,
    /// Was closed last: it is gone.
    closed: Option<InodeId>,
    /// The exclusive right to its size is this client's.
    held: Option<InodeId>,
    under_way: Option<PrivateOp>,
}

#[derive(Clone, Debug, Default)]
struct File {
    links: u32,
    tokens: Vec<u64>,
}

#[derive(Clone, Debug)]
enum PrivateOp {
    Mkdir,
    Create(String),
    Append(InodeId, u64),
    Rename(String, String),
    Link(String, String),
    Unlink(String),
    Rmdir,
    Lookup(String),
    View(InodeId),
    Readdir,
    Open(u64),
    UnlinkOpen,
    ViewOpen(InodeId),
    Close(InodeId, u64),
    ViewClosed(InodeId),
    Hold(InodeId),
    Abandon(InodeId),
}

/// The name of the file that loses it while it is open.
const ORPHAN: &str = "orphan";

impl Private {
    /// What is open, for those who attach.
    pub(crate) fn open(&self) -> Vec<(InodeId, u64)> {
        self.orphan.iter().map(|(inode, handle, _)| (*inode, *handle)).collect()
    }

    /// What is open and has no name.
    pub(crate) fn nameless(&self) -> Option<InodeId> {
        self.orphan.filter(|(_, _, has_name)| !has_name).map(|(inode, ..)| inode)
    }

    /// What is held.
    pub(crate) fn held(&self) -> Option<InodeId> {
        self.held
    }

    pub(crate) fn next(&mut self, scene: &mut Scene<'_>) -> Option<Ask> {
        if !scene.is_busy_time {
            return None;
        }
        let Some(parent) = self.directory else {
            self.generation += 1;
            let name = name(&format!("c{}-{}-{}", scene.client, self.generation, scene.rng.next()));
            self.under_way = Some(PrivateOp::Mkdir);
            let node = node(FileKind::Directory);
            return Some(Ask::Write(WriteOp::Create { parent: InodeId::ROOT, name, node, handle: None }));
        };
        let op = self.choose(scene);
        let ask = match &op {
            PrivateOp::Mkdir | PrivateOp::Rmdir => {
                Ask::Write(WriteOp::Rmdir { parent, name: name("nothing") })
            }
            PrivateOp::Create(new) => {
                let node = node(FileKind::File);
                Ask::Write(WriteOp::Create { parent, name: name(new), node, handle: None })
            }
            PrivateOp::Append(inode, token) => Ask::Write(WriteOp::WriteInline {
                inode: *inode,
                offset: None,
                data: token.to_le_bytes().to_vec(),
                kill_privileges: false,
            }),
            PrivateOp::Rename(from, to) => Ask::Write(WriteOp::Rename {
                parent,
                name: name(from),
                new_parent: parent,
                new_name: name(to),
                mode: RenameMode::Replace,
            }),
            PrivateOp::Link(from, to) => {
                let inode = self.entries.get(from).copied().unwrap_or(InodeId(u64::MAX));
                Ask::Write(WriteOp::Link { inode, parent, name: name(to) })
            }
            PrivateOp::Unlink(old) => Ask::Write(WriteOp::Unlink { parent, name: name(old) }),
            PrivateOp::Lookup(old) => Ask::Read(ReadOp::Lookup { parent, name: name(old) }),
            PrivateOp::View(inode) | PrivateOp::ViewOpen(inode) | PrivateOp::ViewClosed(inode) => {
                Ask::Read(ReadOp::View { inode: *inode, known: 0 })
            }
            PrivateOp::Open(handle) => Ask::Write(WriteOp::Create {
                parent,
                name: name(ORPHAN),
                node: node(FileKind::File),
                handle: Some(*handle),
            }),
            PrivateOp::UnlinkOpen => Ask::Write(WriteOp::Unlink { parent, name: name(ORPHAN) }),
            PrivateOp::Close(inode, handle) => Ask::Close(*inode, *handle),
            PrivateOp::Hold(inode) => Ask::Write(WriteOp::Hold(*inode)),
            PrivateOp::Abandon(inode) => Ask::Write(WriteOp::ReleaseHold { inode: *inode, dirty: true }),
            PrivateOp::Readdir => Ask::Read(ReadOp::Readdir { inode: parent, cookie: 0, limit: 100 }),
        };
        self.under_way = Some(op);
        Some(ask)
    }

    /// The life of a file that is unlinked while it is open.
    fn choose_for_orphan(&mut self, rng: &mut Rng) -> PrivateOp {
        match self.orphan {
            None => {
                self.last_handle += 1;
                PrivateOp::Open(self.last_handle)
            }
            Some((_, _, true)) => PrivateOp::UnlinkOpen,
            Some((inode, _, false)) if rng.chance(500) => PrivateOp::ViewOpen(inode),
            Some((inode, handle, false)) => PrivateOp::Close(inode, handle),
        }
    }

    fn choose(&mut self, scene: &mut Scene<'_>) -> PrivateOp {
        if let Some(inode) = self.closed.take() {
            return PrivateOp::ViewClosed(inode);
        }
        if let Some(inode) = self.held.take() {
            return PrivateOp::Abandon(inode);
        }
        if scene.rng.chance(100) {
            return self.choose_for_orphan(scene.rng);
        }
        let rng = &mut *scene.rng;
        let mut any = || format!("f{}", rng.below(NAMES));
        let (one, other) = (any(), any());
        let inode = self.entries.get(&one).copied();
        match (rng.below(100), inode) {
            (0..25, _) => PrivateOp::Create(one),
            (25..55, Some(inode)) if self.files[&inode].tokens.len() < TOKENS_MAX => {
                PrivateOp::Append(inode, scene.oracle.fresh_value())
            }
            (55..65, _) => PrivateOp::Rename(one, other),
            (65..75, Some(_)) => PrivateOp::Link(one, other),
            (75..82, _) => PrivateOp::Unlink(one),
            (82..84, _) => PrivateOp::Rmdir,
            (84..88, Some(inode)) => PrivateOp::View(inode),
            (88..90, Some(inode)) => PrivateOp::Hold(inode),
            (90..94, _) => PrivateOp::Readdir,
            _ => PrivateOp::Lookup(one),
        }
    }

    /// Nobody knows what is in there now, and what was open is not any more.
    pub(crate) fn session_ended(&mut self) {
        let (generation, last_handle) = (self.generation, self.last_handle);
        *self = Private { generation, last_handle, ..Private::default() };
    }

    pub(crate) fn done(&mut self, outcome: &Outcome) -> Result<(), String> {
        let Some(op) = self.under_way.take() else {
            return Err("an answer that nobody waits for".to_owned());
        };
        if matches!(outcome, Outcome::Unknown) {
            self.session_ended();
            return Ok(());
        }
        let told = format!("{op:?}");
        self.expect(op, outcome).map_err(|expected| {
            format!("{told} in a private directory was answered by {outcome:?}; expected was {expected}")
        })
    }

    fn expect(&mut self, op: PrivateOp, outcome: &Outcome) -> Result<(), String> {
        let errno = |wanted: Errno| match outcome {
            Outcome::Error(MetaError::Errno(found)) if *found == wanted => Ok(()),
            _ => Err(format!("{wanted:?}")),
        };
        match op {
            PrivateOp::Mkdir => self.directory = Some(entry(outcome)?.inode),
            PrivateOp::Create(new) if self.entries.contains_key(&new) => errno(Errno::EEXIST)?,
            PrivateOp::Create(new) => {
                let inode = entry(outcome)?.inode;
                let is_new = self.files.insert(inode, File { links: 1, tokens: Vec::new() }).is_none();
                self.entries.insert(new, inode);
                is_new.then_some(()).ok_or("an inode number that was never used")?;
            }
            PrivateOp::Append(inode, token) => {
                let file = self.files.get_mut(&inode).expect("chosen from these");
                let end = 8 * file.tokens.len() as u64;
                file.tokens.push(token);
                match outcome {
                    Outcome::Reply(MetaReply::Written { attr, offset, .. })
                        if *offset == end && attr.size == end + 8 => {}
                    _ => return Err(format!("8 bytes written at {end}")),
                }
            }
            PrivateOp::Rename(from, to) => match self.entries.get(&from).copied() {
                None => errno(Errno::ENOENT)?,
                Some(inode) => {
                    is_done(outcome)?;
                    // Two names of one inode: POSIX leaves both.
                    if self.entries.get(&to) != Some(&inode) {
                        self.unlink(&to);
                        self.entries.remove(&from);
                        self.entries.insert(to, inode);
                    }
                }
            },
            PrivateOp::Link(from, to) => match self.entries.get(&from).copied() {
                None => errno(Errno::ENOENT)?,
                Some(_) if self.entries.contains_key(&to) => errno(Errno::EEXIST)?,
                Some(inode) => {
                    let file = self.files.get_mut(&inode).expect("linked");
                    file.links += 1;
                    let found = entry(outcome)?.nlink;
                    (found == file.links).then_some(()).ok_or(format!("{} links", file.links))?;
                    self.entries.insert(to, inode);
                }
            },
            PrivateOp::Unlink(old) if !self.entries.contains_key(&old) => errno(Errno::ENOENT)?,
            PrivateOp::Unlink(old) => {
                is_done(outcome)?;
                self.unlink(&old);
            }
            PrivateOp::Rmdir => errno(Errno::ENOENT)?,
            PrivateOp::Lookup(old) => match self.entries.get(&old) {
                None => errno(Errno::ENOENT)?,
                Some(inode) => {
                    let found = entry(outcome)?.inode;
                    (found == *inode).then_some(()).ok_or(format!("inode {inode}"))?;
                }
            },
            PrivateOp::View(inode) => {
                let tokens = &self.files[&inode].tokens;
                let found = match outcome {
                    Outcome::Reply(reply) => bytes_of(reply).map(|(_, bytes)| numbers(&bytes)),
                    _ => None,
                };
                (found.as_ref() == Some(tokens)).then_some(()).ok_or(format!("{tokens:?}"))?;
            }
            PrivateOp::Open(handle) => {
                let Outcome::Reply(MetaReply::Opened(view)) = outcome else {
                    return Err("an open file".to_owned());
                };
                self.orphan = Some((view.attr.inode, handle, true));
            }
            PrivateOp::UnlinkOpen => {
                is_done(outcome)?;
                self.orphan = self.orphan.map(|(inode, handle, _)| (inode, handle, false));
            }
            PrivateOp::ViewOpen(inode) => {
                let found = match outcome {
                    Outcome::Reply(reply) => bytes_of(reply).map(|(inode, _)| inode),
                    _ => None,
                };
                (found == Some(inode)).then_some(()).ok_or("the file that is open")?;
            }
            PrivateOp::Close(inode, _) => {
                is_done(outcome)?;
                self.orphan = None;
                self.closed = Some(inode);
            }
            // Sessions that a new leader has not heard of yet may still keep it, without a name.
            PrivateOp::ViewClosed(_) => match outcome {
                Outcome::Reply(MetaReply::View(view)) if view.attr.nlink == 0 => {}
                _ => errno(Errno::ENOENT)?,
            },
            PrivateOp::Hold(inode) => {
                let Outcome::Reply(MetaReply::View(_)) = outcome else { return Err("a view".to_owned()) };
                self.held = Some(inode);
            }
            PrivateOp::Abandon(_) => is_done(outcome)?,
            PrivateOp::Readdir => {
                let mut found: Vec<String> = match outcome {
                    Outcome::Reply(MetaReply::Entries { entries, .. }) => entries
                        .iter()
                        .map(|entry| String::from_utf8_lossy(entry.name.as_bytes()).into_owned())
                        .collect(),
                    _ => return Err("entries".to_owned()),
                };
                found.sort();
                let mut mine: Vec<String> = self.entries.keys().cloned().collect();
                if matches!(self.orphan, Some((_, _, true))) {
                    mine.push(ORPHAN.to_owned());
                }
                (found == mine).then_some(()).ok_or(format!("{mine:?}"))?;
            }
        }
        Ok(())
    }

    fn unlink(&mut self, old: &str) {
        if let Some(inode) = self.entries.remove(old)
            && let Some(file) = self.files.get_mut(&inode)
        {
            file.links -= 1;
        }
    }
}

fn entry(outcome: &Outcome) -> Result<Attr, String> {
    match outcome {
        Outcome::Reply(MetaReply::Entry(attr)) => Ok(*attr),
        _ => Err("an entry".to_owned()),
    }
}

fn is_done(outcome: &Outcome) -> Result<(), String> {
    match outcome {
        Outcome::Reply(MetaReply::Done) => Ok(()),
        _ => Err("Done".to_owned()),
    }
}
