//! Requests that take effect in order and exactly once, until each has its final answer. Pure.

use super::error::MetaFailure;
use protocol::meta::{MetaError, MetaRequest, MetaResponse};
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::sync::oneshot;

/// Most requests without a final answer; further ones wait.
pub(super) const ORDERED_MAX: usize = 1024;

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and the large one is the common one")]
pub(super) enum Outcome {
    /// The final answer.
    Answered(MetaResponse),
    /// The session was lost; whether the request took effect is not known.
    LostInFlight,
    /// The session was lost before the request was sent at all.
    LostUnsent,
}

/// What to do about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was final and went to who asked; the request had this sequence number, if any.
    Final(Option<u64>),
    /// It came over a link that the request was sent again from meanwhile; another answer follows.
    Superseded,
    /// The request stays; send it again over this link in a moment.
    AgainSoon,
    /// The request stays; this link is of no use.
    LinkUseless,
    /// The session has expired.
    Expired,
}

struct Entry {
    request: Rc<MetaRequest>,
    reply: oneshot::Sender<Outcome>,
    /// Number of the attachment that it was last sent over.
    sent_over: Option<u64>,
    /// Times it was sent.
    sent: u32,
}

/// The requests by position.
#[derive(Default)]
pub(super) struct Ordered {
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

impl Ordered {
    /// Appends a request.
    pub(super) fn push(&mut self, request: MetaRequest) -> (u64, oneshot::Receiver<Outcome>) {
        let (reply, receiver) = oneshot::channel();
        let position = self.next;
        self.next += 1;
        let entry = Entry { request: Rc::new(request), reply, sent_over: None, sent: 0 };
        self.entries.insert(position, entry);
        (position, receiver)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Positions of everything without a final answer, oldest first.
    pub(super) fn positions(&self) -> Vec<u64> {
        self.entries.keys().copied().collect()
    }

    /// The request at `position` is sent over attachment number `attachment` now.
    pub(super) fn send(&mut self, position: u64, attachment: u64) -> Option<Rc<MetaRequest>> {
        let entry = self.entries.get_mut(&position)?;
        entry.sent_over = Some(attachment);
        entry.sent += 1;
        Some(entry.request.clone())
    }

    /// Times that the request at `position` was sent.
    pub(super) fn times_sent(&self, position: u64) -> u32 {
        self.entries.get(&position).map_or(0, |entry| entry.sent)
    }

    /// An answer came over attachment number `attachment`. One that came over an older attachment than the
    /// request was last sent over decides nothing: its "try again" could be outdated by an execution.
    pub(super) fn answer(&mut self, position: u64, attachment: u64, response: MetaResponse) -> Verdict {
        match self.entries.get(&position) {
            Some(entry) if entry.sent_over == Some(attachment) => {}
            _ => return Verdict::Superseded,
        }
        match response {
            Err(MetaError::Overloaded) => Verdict::AgainSoon,
            Err(MetaError::NotLeader { .. } | MetaError::NotAttached) => Verdict::LinkUseless,
            Err(MetaError::SessionExpired) => Verdict::Expired,
            last => Verdict::Final(self.finish(position, last)),
        }
    }

    fn finish(&mut self, position: u64, last: MetaResponse) -> Option<u64> {
        let entry = self.entries.remove(&position)?;
        let sequence = match *entry.request {
            MetaRequest::Write { sequence, .. } => Some(sequence),
            _ => None,
        };
        // Nobody listens any more if the caller was dropped at shutdown.
        let _ = entry.reply.send(Outcome::Answered(last));
        sequence
    }

    /// The session is lost: nothing of this is ever sent again.
    pub(super) fn lose(&mut self) {
        for entry in std::mem::take(&mut self.entries).into_values() {
            let outcome = if entry.sent == 0 { Outcome::LostUnsent } else { Outcome::LostInFlight };
            let _ = entry.reply.send(outcome);
        }
    }
}

/// What a final answer means to who asked, except [`MetaError::Busy`], which the caller retries.
pub(super) fn failure_of(error: MetaError) -> MetaFailure {
    match error {
        MetaError::Errno(errno) => MetaFailure::Errno(errno),
        MetaError::Respill => MetaFailure::Respill,
        MetaError::SessionExpired => MetaFailure::SessionLost,
        MetaError::Refused(why) => MetaFailure::Refused(why),
        MetaError::NotLeader { .. }
        | MetaError::NotAttached
        | MetaError::Overloaded
        | MetaError::Busy
        | MetaError::Behind { .. }
        | MetaError::PgChanged { .. } => MetaFailure::Unexpected("a request of a mount"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Errno;
    use protocol::meta::MetaReply;

    fn push(ordered: &mut Ordered) -> (u64, oneshot::Receiver<Outcome>) {
        ordered.push(MetaRequest::CloseSession)
    }

    #[test]
    fn requests_without_an_answer_are_sent_again_in_their_order() {
        let mut ordered = Ordered::default();
        let (first, _keep) = push(&mut ordered);
        let (second, _keep_too) = push(&mut ordered);
        let (third, mut answered) = push(&mut ordered);
        for position in [first, second, third] {
            ordered.send(position, 1);
        }
        assert_eq!(ordered.answer(third, 1, Ok(MetaReply::Done)), Verdict::Final(None));
        assert_eq!(answered.try_recv(), Ok(Outcome::Answered(Ok(MetaReply::Done))));
        assert_eq!(ordered.positions(), [first, second]);
    }

    #[test]
    fn an_answer_over_an_older_attachment_decides_nothing() {
        let mut ordered = Ordered::default();
        let (position, mut reply) = push(&mut ordered);
        ordered.send(position, 1);
        ordered.send(position, 2);
        assert_eq!(ordered.answer(position, 1, Err(MetaError::Busy)), Verdict::Superseded);
        assert!(reply.try_recv().is_err());
        assert_eq!(ordered.answer(position, 2, Err(Errno::EEXIST.into())), Verdict::Final(None));
        assert_eq!(reply.try_recv(), Ok(Outcome::Answered(Err(Errno::EEXIST.into()))));
    }

    #[test]
    fn what_asks_for_another_try_is_no_answer() {
        let mut ordered = Ordered::default();
        let (position, mut reply) = push(&mut ordered);
        ordered.send(position, 7);
        assert_eq!(ordered.answer(position, 7, Err(MetaError::Overloaded)), Verdict::AgainSoon);
        let elsewhere = MetaError::NotLeader { leader: None };
        assert_eq!(ordered.answer(position, 7, Err(elsewhere)), Verdict::LinkUseless);
        assert_eq!(ordered.answer(position, 7, Err(MetaError::SessionExpired)), Verdict::Expired);
        assert!(reply.try_recv().is_err());
        assert_eq!(ordered.len(), 1);
    }

    #[test]
    fn a_lost_session_tells_apart_what_was_sent() {
        let mut ordered = Ordered::default();
        let (sent, mut in_flight) = push(&mut ordered);
        let (_, mut unsent) = push(&mut ordered);
        ordered.send(sent, 1);
        ordered.lose();
        assert_eq!(in_flight.try_recv(), Ok(Outcome::LostInFlight));
        assert_eq!(unsent.try_recv(), Ok(Outcome::LostUnsent));
        assert_eq!(ordered.len(), 0);
    }
}
