//! Transactions made and proposed.

use super::flow::{Flow, Next, Step};
use super::{Output, Turn};
use crate::state::layers::Disk;
use crate::state::prep::{Prep, PrepError};
use crate::state::txn::Txn;
use protocol::meta::{MetaError, Push};
use protocol::{Errno, SessionId};
use zab::{ProposeError, Zxid};

impl<D: Disk, T> Turn<'_, D, T> {
    /// Makes and proposes a transaction; `then` comes when it is applied. A refusal is answered when everything that
    /// it rests on is applied.
    pub(super) fn change<V>(
        &mut self,
        decide: impl FnOnce(&mut Prep<'_>) -> Result<V, PrepError>,
        then: impl FnOnce(V) -> Step,
    ) -> Flow {
        let (zxid, result) = self.propose(decide);
        Ok(Next::Applied(zxid, result.map_or_else(|error| Step::Say(Err(error)), then)))
    }

    /// Makes and proposes a transaction. The result may be told once the returned zxid is applied, whether it is
    /// a success or a refusal.
    pub(super) fn propose<V>(
        &mut self,
        decide: impl FnOnce(&mut Prep<'_>) -> Result<V, PrepError>,
    ) -> (Zxid, Result<V, MetaError>) {
        let before = self.core.last_proposed;
        match self.core.machine.prepare(self.now.wall, decide) {
            Ok((txn, value)) => match self.submit(txn) {
                Ok(zxid) => (zxid, Ok(value)),
                Err(error) => (before, Err(error)),
            },
            Err((PrepError::Refused(error), pushes)) => {
                let is_recall = |p: &Push| matches!(p, Push::RecallHold(_) | Push::Settle(_));
                let recalls = pushes.into_iter().filter(|(_, p)| is_recall(p));
                self.send_pushes(recalls);
                (before, Err(error))
            }
            Err((PrepError::Store(error), _)) => (before, Err(self.core.store_failed(&error))),
        }
    }

    fn submit(&mut self, txn: Txn) -> Result<Zxid, MetaError> {
        let wire = txn.encode();
        match self.quorum.propose(wire.clone()) {
            Ok(zxid) => {
                self.core.machine.speculate(txn, wire);
                self.core.last_proposed = zxid;
                Ok(zxid)
            }
            Err(ProposeError::NotLeading) => Err(MetaError::NotLeader { leader: None }),
            Err(ProposeError::Overloaded) => Err(MetaError::Overloaded),
            Err(error @ ProposeError::TooLarge { .. }) => {
                tracing::error!("a change is refused: {error}");
                Err(Errno::E2BIG.into())
            }
        }
    }

    /// A new cluster gets its root directory and first pool before anything else happens. `None` if it has them.
    pub(super) fn form_cluster(&mut self) -> Option<Result<Zxid, MetaError>> {
        if self.core.machine.is_formed() {
            return None;
        }
        if self.core.machine.has_proposals() {
            return Some(Ok(self.core.last_proposed));
        }
        let size = self.core.config.pool_size;
        let (zxid, result) = self.propose(|prep| prep.bootstrap(size));
        Some(result.map(|()| zxid))
    }

    /// Sends pushes to the connections of their sessions. Who is away asks again on return.
    pub(super) fn send_pushes(&mut self, pushes: impl IntoIterator<Item = (SessionId, Push)>) {
        for (session, push) in pushes {
            if let Some(client) = self.core.attached.get(&session) {
                self.core.outputs.push_back(Output::Push { client: *client, push });
            }
        }
    }
}
