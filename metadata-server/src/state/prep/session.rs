//! Sessions: opening, closing, expiring, and what goes with them.

use super::{Prep, Result};
use crate::state::key;
use crate::state::layers::View;
use crate::state::record::{Session, SessionKind, encode};
use protocol::meta::{ClientInfo, MetaError, MetaReply, Push};
use protocol::{Errno, InodeId, MapEpoch, SessionId};
use zab::mutant;

/// Fenced sessions that the map remembers at most; the oldest go first.
const BLOCKED_MAX: usize = 4096;

/// Changes in bytes after which a transaction that releases things is large enough: the rest follows in others.
/// The last thing may be a full lock table, and a transaction has 4 MiB.
const RELEASE_BYTES_MAX: usize = 1 << 20;

/// A session to open.
pub struct NewSession {
    /// Drawn by the client; the same nonce gives the same session.
    pub nonce: u128,
    /// Milliseconds of silence after which it expires.
    pub timeout_ms: u32,
    /// Name in the certificate.
    pub certificate: String,
    /// Who, for people.
    pub info: ClientInfo,
    /// Mount or data server.
    pub kind: SessionKind,
}

impl Prep<'_> {
    /// Opens a session.
    pub fn open_session(&mut self, new: NewSession) -> Result<SessionId> {
        let mut counters = self.counters()?;
        let id = SessionId(counters.next_session);
        counters.next_session += 1;
        self.put_counters(&counters);
        let session = Session {
            nonce: new.nonce,
            timeout_ms: new.timeout_ms,
            certificate: new.certificate,
            info: new.info,
            kind: new.kind,
            opened: self.time,
        };
        self.draft.put(key::session(id), encode(&session));
        Ok(id)
    }

    /// Ends a session. `fenced`: it did not end in peace, so nothing that it sent may take effect any more. What
    /// it owned and does not fit into this transaction is released by [`Self::go_on_ending`].
    pub fn end_session(&mut self, id: SessionId, fenced: bool) -> Result<()> {
        let session: Session = self.load(&key::session(id))?.ok_or(MetaError::SessionExpired)?;
        // First of all, so that whoever is granted a lock by this carries the map epoch that fences the session.
        match session.kind {
            SessionKind::Data(server) => self.mark_down(server, id)?,
            SessionKind::Client if fenced && !mutant!("expiry-without-a-fence") => self.block(id)?,
            SessionKind::Client => {}
        }
        self.draft.delete(key::session(id));
        let prefix = key::prefix1(key::REPLY, id.0);
        for (reply, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
            self.draft.delete(reply);
        }
        if !self.release_owned(id)? {
            self.draft.put(key::ending(id), bytes::Bytes::new());
        }
        self.pushes.retain(|(to, _)| *to != id);
        // Who leaves in peace knows.
        if fenced {
            self.pushes.push((id, Push::SessionExpired));
        }
        Ok(())
    }

    /// Releases more of what an ended session owned, until nothing is left and [`key::ENDING`] forgets it.
    pub fn go_on_ending(&mut self, id: SessionId) -> Result<()> {
        if self.draft.get(&key::ending(id))?.is_some() && self.release_owned(id)? {
            self.draft.delete(key::ending(id));
        }
        Ok(())
    }

    /// Releases what a session owns, what others may wait for first. `false`: there is more.
    fn release_owned(&mut self, id: SessionId) -> Result<bool> {
        for kind in [key::OWNED_LOCK, key::OWNED_HOLD, key::OWNED_PIN] {
            let is_forgotten = (kind == key::OWNED_LOCK && mutant!("expiry-leaves-locks"))
                || (kind == key::OWNED_HOLD && mutant!("expiry-leaves-holds"))
                || (kind == key::OWNED_PIN && mutant!("expiry-leaves-pins"));
            if is_forgotten {
                continue;
            }
            let mut prefix = key::prefix1(key::OWNED, id.0);
            prefix.push(kind);
            for (owned, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
                if self.draft.bytes() > RELEASE_BYTES_MAX {
                    return Ok(false);
                }
                let (_, what) = key::parse_owned(&owned).ok_or(Errno::EIO)?;
                match kind {
                    key::OWNED_HOLD => self.abandon_hold(id, inode_in(what)?)?,
                    key::OWNED_PIN => self.unpin(id, inode_in(what)?)?,
                    _ => {
                        let resource = key::parse_lock(what).ok_or(Errno::EIO)?;
                        self.release_session(id, &resource)?;
                    }
                }
                self.draft.delete(owned);
            }
        }
        Ok(true)
    }

    /// Whether the session is open. One whose end is under way, committed or not, is not: nothing more can become
    /// its own, as nobody would ever take it away again.
    pub(super) fn is_open(&self, id: SessionId) -> Result<bool> {
        Ok(self.draft.get(&key::session(id))?.is_some())
    }

    /// Releases the pins that a session turned out not to need: as many as fit into one transaction, so ask again.
    /// The rest goes with the session at the latest.
    pub fn release_pins(&mut self, id: SessionId, inodes: impl IntoIterator<Item = InodeId>) -> Result<()> {
        for inode in inodes {
            if self.draft.bytes() > RELEASE_BYTES_MAX {
                break;
            }
            self.unpin(id, inode)?;
        }
        Ok(())
    }

    /// The inodes that a session pins.
    pub fn pins(&self, id: SessionId) -> Result<Vec<InodeId>> {
        let mut prefix = key::prefix1(key::OWNED, id.0);
        prefix.push(key::OWNED_PIN);
        let keys = self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)?;
        Ok(keys.iter().filter_map(|(k, _)| key::number_at(k, 10)).map(InodeId).collect())
    }

    /// The inodes that stored replies opened for a session, by sequence.
    pub fn opened_by_replies(&self, id: SessionId) -> Result<Vec<(u64, InodeId)>> {
        let prefix = key::prefix1(key::REPLY, id.0);
        let mut opened = Vec::new();
        for (reply, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
            if let (Some(sequence), Some(MetaReply::Opened(view))) =
                (key::number_at(&reply, 9), self.load(&reply)?)
            {
                opened.push((sequence, view.attr.inode));
            }
        }
        Ok(opened)
    }

    /// From this transaction on, grants carry the map epoch that fences the session, and every primary that
    /// serves a holder of such a grant refuses what the session sent.
    fn block(&mut self, id: SessionId) -> Result<()> {
        let epoch = MapEpoch(self.map_epoch()?.0 + 1);
        self.draft.put(key::map_blocked(id), encode(&epoch));
        self.draft.put(key::system("fence"), encode(&epoch));
        let prefix = vec![key::MAP, key::MAP_BLOCKED];
        let blocked = self.draft.scan(&prefix, &key::prefix_end(&prefix), BLOCKED_MAX + 1)?;
        if blocked.len() > BLOCKED_MAX {
            self.draft.delete(blocked[0].0.clone());
        }
        Ok(())
    }
}

fn inode_in(what: &[u8]) -> Result<InodeId> {
    Ok(InodeId(key::number_at(what, 0).ok_or(Errno::EIO)?))
}
