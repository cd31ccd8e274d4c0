//! A program that overwrites files which everybody shares and looks at their times, and defers the commits of times
//! whenever it may: what was overwritten must show at whoever looks next, wherever, whatever dies.

use std::collections::BTreeMap;

use protocol::meta::{MetaError, MetaReply, ReadOp, WriteOp};
use protocol::{EntryName, Errno, FileKind, FileView, InodeId, Layout};

use super::program::{Ask, Outcome, Scene, node};

/// Files that all clients share.
const FILES: u64 = 2;

/// What a client knows about one of the files.
#[derive(Default)]
struct Shared {
    inode: Option<InodeId>,
    /// The newest truncation, once the file is in chunks.
    truncate_seq: Option<u64>,
    is_held: bool,
    may_defer: bool,
    /// Questions of the leader so far.
    asked: u64,
    /// Overwrites deferred, and how many of them are committed.
    written: u64,
    settled: u64,
    /// A settlement is to be sent, and whether it gives the right back.
    due: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Find,
    Make,
    Hold,
    Spill,
    Release,
    Defer { asked: u64 },
    View,
    Overwrite { seen: u64 },
    Look,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Times {
    files: BTreeMap<u64, Shared>,
    under_way: Option<(u64, Step, u64)>,
    /// A settlement on its way: of which file, up to which overwrite, and whether it gives the right back.
    settling: Option<(u64, u64, bool)>,
}

fn commit(inode: InodeId, truncate_seq: u64) -> Ask {
    Ask::Write(WriteOp::CommitWrite { inode, truncate_seq, end: 8, allocated: 0, kill_privileges: false })
}

impl Times {
    /// The files whose size is this client's.
    pub(crate) fn held(&self) -> impl Iterator<Item = InodeId> {
        self.files.values().filter(|file| file.is_held).filter_map(|file| file.inode)
    }

    pub(crate) fn has_settlement(&self) -> bool {
        self.settling.is_none() && self.files.values().any(|file| file.due.is_some())
    }

    /// The next settlement. It waits for nothing but its turn.
    pub(crate) fn next_settlement(&mut self) -> Option<Ask> {
        if self.settling.is_some() {
            return None;
        }
        let (number, file) = self.files.iter_mut().find(|(_, file)| file.due.is_some())?;
        let (inode, done) = (file.inode?, file.due.take()?);
        let changed = file.settled < file.written;
        file.may_defer &= !done;
        self.settling = Some((*number, file.written, done));
        Some(Ask::Write(WriteOp::Settle { inode, changed, done }))
    }

    pub(crate) fn settlement_done(&mut self, outcome: &Outcome) -> Result<(), String> {
        let Some((number, upto, _)) = self.settling.take() else {
            return Err("a settlement that nobody sent".to_owned());
        };
        match outcome {
            Outcome::Reply(MetaReply::Done) | Outcome::Unknown => {}
            other => return Err(format!("a settlement was answered by {other:?}")),
        }
        let file = self.files.entry(number).or_default();
        file.settled = file.settled.max(upto);
        Ok(())
    }

    /// The leader asks for the times of a file.
    pub(crate) fn asked(&mut self, inode: InodeId) {
        for file in self.files.values_mut().filter(|file| file.inode == Some(inode)) {
            file.asked += 1;
            file.may_defer = false;
            file.due = Some(true);
        }
    }

    pub(crate) fn next(&mut self, scene: &mut Scene<'_>) -> Option<Ask> {
        if !scene.is_busy_time {
            return None;
        }
        let number = scene.rng.below(FILES);
        let gives_back = self.settling.is_some_and(|(other, _, done)| other == number && done);
        let file = self.files.entry(number).or_default();
        let name = EntryName::new(format!("t{number}").into_bytes()).expect("a short plain name");
        let (step, ask) = match (file.inode, file.truncate_seq) {
            (None, _) => (Step::Find, Ask::Read(ReadOp::Lookup { parent: InodeId::ROOT, name })),
            (Some(inode), None) if !file.is_held => (Step::Hold, Ask::Write(WriteOp::Hold(inode))),
            (Some(inode), None) => (Step::View, Ask::Read(ReadOp::View { inode, known: 0 })),
            (Some(inode), Some(seq)) => {
                let is_settled = file.settled == file.written && file.due.is_none() && !gives_back;
                match scene.rng.below(10) {
                    0..5 if file.may_defer && scene.time < scene.valid_until => {
                        let seen = scene.oracle.times_seen(inode);
                        scene.oracle.overwritten(inode, seen, scene.time);
                        scene.oracle.deferred += 1;
                        file.written += 1;
                        return None;
                    }
                    5..7 if file.may_defer => {
                        file.due = Some(scene.rng.chance(300));
                        return None;
                    }
                    0..3 if is_settled && !file.may_defer => {
                        (Step::Defer { asked: file.asked }, Ask::Write(WriteOp::Defer(inode)))
                    }
                    3 if is_settled && !file.may_defer && file.is_held => {
                        (Step::Release, Ask::Write(WriteOp::ReleaseHold { inode, dirty: false }))
                    }
                    4..6 => (Step::Overwrite { seen: scene.oracle.times_seen(inode) }, commit(inode, seq)),
                    _ if is_settled => (Step::Look, Ask::Read(ReadOp::Getattr(inode))),
                    _ => return None,
                }
            }
        };
        self.under_way = Some((number, step, scene.time));
        Some(ask)
    }

    pub(crate) fn done(&mut self, scene: &mut Scene<'_>, outcome: &Outcome) -> Result<Option<Ask>, String> {
        let Some((number, step, invoked)) = self.under_way.take() else {
            return Err("an answer that nobody waits for".to_owned());
        };
        let file = self.files.entry(number).or_default();
        let mut next = |step, ask| {
            self.under_way = Some((number, step, invoked));
            Ok(Some(ask))
        };
        match (step, outcome) {
            (_, Outcome::Unknown) => {}
            (Step::Find | Step::Make, Outcome::Reply(MetaReply::Entry(attr))) => file.inode = Some(attr.inode),
            (Step::Find, Outcome::Error(MetaError::Errno(Errno::ENOENT))) => {
                let name = EntryName::new(format!("t{number}").into_bytes()).expect("a short plain name");
                let (parent, node) = (InodeId::ROOT, node(FileKind::File));
                return next(Step::Make, Ask::Write(WriteOp::Create { parent, name, node, handle: None }));
            }
            (Step::Make, Outcome::Error(MetaError::Errno(Errno::EEXIST))) => {}
            (Step::Hold, Outcome::Reply(MetaReply::View(view))) => {
                file.is_held = true;
                let (inode, seq) = (view.attr.inode, view.truncate_seq());
                if view.layout != Layout::Chunks {
                    return next(Step::Spill, commit(inode, seq));
                }
                file.note(view);
            }
            (Step::Spill | Step::Overwrite { .. }, Outcome::Error(MetaError::Respill)) => {
                file.truncate_seq = None;
                file.may_defer = false;
            }
            (Step::Spill, Outcome::Reply(MetaReply::Written { attr, .. })) => {
                let inode = attr.inode;
                return next(Step::View, Ask::Read(ReadOp::View { inode, known: 0 }));
            }
            (Step::View, Outcome::Reply(MetaReply::View(view))) => file.note(view),
            (Step::Release, Outcome::Reply(MetaReply::Done)) => file.is_held = false,
            (Step::Defer { asked }, Outcome::Reply(MetaReply::View(view))) => {
                file.is_held = true;
                file.note(view);
                file.may_defer = file.asked == asked;
            }
            (Step::Overwrite { .. }, Outcome::Reply(MetaReply::Written { attr, .. })) => {
                if let Step::Overwrite { seen } = step {
                    scene.oracle.overwritten(attr.inode, seen, scene.time);
                }
            }
            (Step::Look, Outcome::Reply(MetaReply::Attr(attr))) => {
                scene.oracle.looked(attr.inode, attr.mtime, invoked)?;
            }
            (step, outcome) => return Err(format!("times of t{number}: {step:?} answered by {outcome:?}")),
        }
        Ok(None)
    }

    /// Whoever looks at what it deferred waits for the end of the session, which sets the times.
    pub(crate) fn session_ended(&mut self) {
        *self = Times::default();
    }
}

impl Shared {
    fn note(&mut self, view: &FileView) {
        self.truncate_seq = (view.layout == Layout::Chunks).then(|| view.truncate_seq());
    }
}
