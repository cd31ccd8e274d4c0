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
    is_inline: bool,
    may_defer: bool,
    /// Questions of the leader so far.
    asked: u64,
    /// Overwrites deferred, and how many of them are committed.
    written: u64,
    settled: u64,
    /// A settlement is to be sent, and whether it gives the right back.
    due: Option<bool>,
    /// The hold is to be given back.
    is_recalled: bool,
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
    /// What is on its way beside that: of which file, and what.
    settling: Option<(u64, Giving)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Giving {
    /// Times up to this overwrite, and the right with them if it is done.
    Times { upto: u64, done: bool },
    /// The hold.
    Hold,
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
        self.settling.is_none() && self.next_giving().is_some()
    }

    /// What is to be sent next, of which file. Only the hold waits for requests that use it.
    fn next_giving(&self) -> Option<(u64, Giving)> {
        let is_used = |number: u64| {
            let uses = |step: &Step| matches!(step, Step::Hold | Step::Spill | Step::Defer { .. });
            self.under_way.as_ref().is_some_and(|(other, step, _)| *other == number && uses(step))
        };
        let giving = |(number, file): (&u64, &Shared)| match file.due {
            Some(done) => Some((*number, Giving::Times { upto: file.written, done })),
            None if file.is_recalled && !is_used(*number) => Some((*number, Giving::Hold)),
            None => None,
        };
        self.files.iter().find_map(giving)
    }

    /// The next settlement. It waits for nothing but its turn.
    pub(crate) fn next_settlement(&mut self) -> Option<Ask> {
        let (number, giving) = self.next_giving().filter(|_| self.settling.is_none())?;
        let file = self.files.get_mut(&number)?;
        let inode = file.inode?;
        self.settling = Some((number, giving));
        Some(Ask::Write(match giving {
            Giving::Times { done, .. } => {
                file.due = None;
                file.may_defer &= !done;
                WriteOp::Settle { inode, changed: file.settled < file.written, done }
            }
            Giving::Hold => WriteOp::ReleaseHold { inode, dirty: false },
        }))
    }

    pub(crate) fn settlement_done(&mut self, outcome: &Outcome) -> Result<(), String> {
        let Some((number, giving)) = self.settling.take() else {
            return Err("a settlement that nobody sent".to_owned());
        };
        match outcome {
            Outcome::Reply(MetaReply::Done) | Outcome::Unknown => {}
            other => return Err(format!("{giving:?} was answered by {other:?}")),
        }
        let file = self.files.entry(number).or_default();
        match giving {
            Giving::Times { upto, .. } => file.settled = file.settled.max(upto),
            Giving::Hold => (file.is_held, file.is_recalled) = (false, false),
        }
        Ok(())
    }

    /// Somebody else wants the hold of a file.
    pub(crate) fn recalled(&mut self, inode: InodeId) {
        self.asked(inode);
        for file in self.files.values_mut().filter(|file| file.inode == Some(inode)) {
            file.is_recalled = true;
        }
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
        let gives_back = self.settling.is_some_and(|(other, _)| other == number);
        let file = self.files.entry(number).or_default();
        let name = EntryName::new(format!("t{number}").into_bytes()).expect("a short plain name");
        let (step, ask) = match (file.inode, file.truncate_seq) {
            (None, _) => (Step::Find, Ask::Read(ReadOp::Lookup { parent: InodeId::ROOT, name })),
            (Some(_), _) if file.is_recalled => return None,
            (Some(inode), None) if file.is_inline && !file.is_held => {
                (Step::Hold, Ask::Write(WriteOp::Hold(inode)))
            }
            (Some(inode), None) => (Step::View, Ask::Read(ReadOp::View { inode, known: 0 })),
            (Some(inode), Some(seq)) => {
                let is_settled = file.settled == file.written && file.due.is_none() && !gives_back;
                match (file.may_defer, scene.rng.below(10)) {
                    (true, 0..5) if scene.time < scene.valid_until => {
                        let seen = scene.oracle.times_seen(inode);
                        scene.oracle.overwritten(inode, seen, scene.time);
                        scene.oracle.deferred += 1;
                        file.written += 1;
                        return None;
                    }
                    (true, 5..7) => {
                        file.due = Some(scene.rng.chance(300));
                        return None;
                    }
                    (true, 7) | (false, 0..2) => {
                        (Step::Overwrite { seen: scene.oracle.times_seen(inode) }, commit(inode, seq))
                    }
                    (false, 2..5) if is_settled => {
                        (Step::Defer { asked: file.asked }, Ask::Write(WriteOp::Defer(inode)))
                    }
                    (false, 5) if is_settled && file.is_held => {
                        (Step::Release, Ask::Write(WriteOp::ReleaseHold { inode, dirty: false }))
                    }
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
            (Step::Find | Step::Make, Outcome::Reply(MetaReply::Entry(attr))) => {
                file.inode = Some(attr.inode)
            }
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
            (Step::Defer { .. }, Outcome::Error(MetaError::Busy | MetaError::Respill)) => {}
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
        self.is_inline = view.layout != Layout::Chunks;
        self.truncate_seq = (view.layout == Layout::Chunks).then(|| view.truncate_seq());
    }
}
