//! A client that reads from whatever server it meets, followers and observers included, and never goes back.
//!
//! Judged are: each answer is of the revision that was asked for or a later one; two answers to one question of one
//! revision are equal, whoever gave them; and a sync names a revision that contains everything told to anybody before.

use protocol::meta::{MetaError, MetaReply, MetaRequest, MetaResponse, ReadOp};
use protocol::{InodeId, Revision};

use super::actor::{Link, Stage};

/// What is read: the root, its entries, and who holds locks.
const QUESTIONS: u64 = 3;

fn question(number: u64) -> ReadOp {
    match number {
        0 => ReadOp::Getattr(InodeId::ROOT),
        1 => ReadOp::Readdir { inode: InodeId::ROOT, cookie: 0, limit: 64 },
        _ => ReadOp::NamedLocks,
    }
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Read { at_least: u64, question: u64 },
    Sync { invoked: u64 },
}

/// See the module.
pub(crate) struct Reader {
    pub(crate) link: Link,
    /// The largest revision seen.
    seen: u64,
    asked: Option<(u64, Asked)>,
    ask_at: u64,
}

impl Reader {
    pub(crate) fn new() -> Reader {
        Reader { link: Link::new(2_500), seen: 0, asked: None, ask_at: 0 }
    }

    pub(crate) fn wakes_at(&self) -> u64 {
        if !self.link.is_up {
            return self.link.retry_at;
        }
        let gives_up_at = self.link.gives_up_at().unwrap_or(u64::MAX);
        gives_up_at.min(if self.asked.is_none() { self.ask_at } else { u64::MAX })
    }

    pub(crate) fn lost(&mut self, stage: &mut Stage<'_>) {
        self.asked = None;
        self.link.lost(stage);
    }

    pub(crate) fn tick(&mut self, stage: &mut Stage<'_>) {
        if self.link.gives_up_at().is_some_and(|at| at <= stage.time) {
            self.turn_away(stage);
        }
        if !self.link.is_up {
            if self.link.retry_at <= stage.time {
                self.link.connect(stage);
                self.ask_at = stage.time;
            }
            return;
        }
        if self.asked.is_some() || self.ask_at > stage.time {
            return;
        }
        let (request, asked) = if stage.rng.chance(250) {
            (MetaRequest::Sync, Asked::Sync { invoked: stage.time })
        } else {
            let question = stage.rng.below(QUESTIONS);
            let at_least = Revision(self.seen);
            let request = MetaRequest::ReadAt { at_least, op: self::question(question) };
            (request, Asked::Read { at_least: self.seen, question })
        };
        self.asked = Some((self.link.send(request, stage), asked));
    }

    fn turn_away(&mut self, stage: &mut Stage<'_>) {
        self.asked = None;
        self.link.drop_connection(stage);
    }

    pub(crate) fn answered(
        &mut self,
        call: u64,
        response: MetaResponse,
        stage: &mut Stage<'_>,
    ) -> Result<(), String> {
        let Some((_, asked)) = self.asked.take_if(|(waiting, _)| *waiting == call) else { return Ok(()) };
        self.link.waiting.remove(&call);
        self.ask_at = stage.time + stage.rng.between(1, 400);
        match (asked, response) {
            (Asked::Read { at_least, question }, Ok(MetaReply::ReadAt { revision, answer })) => {
                if revision.0 < at_least {
                    return Err(format!("a read of revision {at_least} was answered from {revision}"));
                }
                stage.oracle.read_at(revision.0, question, format!("{answer:?}"))?;
                stage.oracle.told(revision.0, stage.time);
                self.seen = revision.0;
                if stage.rng.chance(300) {
                    self.turn_away(stage);
                }
            }
            (Asked::Sync { invoked }, Ok(MetaReply::Revision(revision))) => {
                let before = stage.oracle.told_before(invoked);
                if revision.0 < before {
                    return Err(format!(
                        "a sync that began at {invoked} names revision {revision}, and {before} was told before"
                    ));
                }
                stage.oracle.told(revision.0, stage.time);
                self.seen = self.seen.max(revision.0);
            }
            (Asked::Read { at_least, .. }, Err(MetaError::Behind { revision })) => {
                if revision.0 >= at_least {
                    return Err(format!("a server at {revision} says that it is behind {at_least}"));
                }
                self.turn_away(stage);
            }
            (_, Err(MetaError::NotLeader { leader })) => {
                self.asked = None;
                self.link.not_leader(leader.map(|(id, _)| id.0), stage);
            }
            (_, Err(MetaError::Overloaded)) => {}
            (asked, other) => return Err(format!("{asked:?} was answered by {other:?}")),
        }
        Ok(())
    }
}
