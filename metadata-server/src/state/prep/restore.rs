//! The transactions that begin a new life of the cluster, on top of the rows of a backup.
//!
//! What data servers hold may be newer than the backup: bytes behind the end of files, truncations that nobody remembers
//! any more, groups that have moved. So every file in chunks is cut at the size that it had, as when the writer that held
//! it died; every member of a group is uncertain, so that the one that holds most leads once all are back; and numbers of
//! inodes and sessions that were handed out after the backup are never handed out again.

use super::{Prep, Result};
use crate::state::key;
use crate::state::layers::View;
use crate::state::record::{FORMAT_VERSION, Inode, encode};
use protocol::attr::Truncation;
use protocol::map::{DataServerInfo, Generation, PgConfig};
use protocol::{DataServerId, FileKind, InodeId, MapEpoch, PgId, SessionId};
use std::collections::BTreeSet;

impl Prep<'_> {
    /// Begins the generation: the first transaction of all. `raise` makes of a number one that was never used.
    /// Data servers in `lost` are forgotten.
    pub fn begin_generation(
        &mut self,
        number: u64,
        lost: &BTreeSet<DataServerId>,
        raise: impl Fn(u64) -> u64,
    ) -> Result<Generation> {
        let mut counters = self.counters()?;
        counters.next_inode = raise(counters.next_inode);
        counters.next_session = raise(counters.next_session);
        self.put_counters(&counters);
        let epoch = MapEpoch(raise(self.map_epoch()?.0));
        self.draft.put(key::system("map_epoch"), encode(&epoch));
        let sessions_from = SessionId(counters.next_session);
        let generation = Generation { number, revision: self.revision, sessions_from };
        self.draft.put(key::system("generation"), encode(&generation));
        self.draft.put(key::system("format_version"), encode(&FORMAT_VERSION));
        // The map changes in any case, as its generation does: no session that ended with the old one has this number.
        self.draft.delete(key::map_blocked(SessionId(0)));
        self.draft.put(key::system("fence"), encode(&MapEpoch(epoch.0 + 1)));
        self.doubt_servers(lost)?;
        self.doubt_groups(lost)?;
        Ok(generation)
    }

    /// No data server is up, and the lost ones are unknown.
    fn doubt_servers(&mut self, lost: &BTreeSet<DataServerId>) -> Result<()> {
        let prefix = [key::MAP, key::MAP_SERVER];
        for (row, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
            let Some(mut info) = self.load::<DataServerInfo>(&row)? else { continue };
            let id = DataServerId(key::number_at(&row, 2).unwrap_or_default() as u32);
            if lost.contains(&id) {
                self.draft.delete(row);
                self.draft.delete(key::map_auto_out(id));
                self.draft.put(key::map_removed(id, info.store), bytes::Bytes::new());
            } else {
                info.up = false;
                self.draft.put(row, encode(&info));
            }
        }
        if lost.is_empty() { Ok(()) } else { self.rebuild_crush() }
    }

    /// Nobody knows which member of a group holds most.
    fn doubt_groups(&mut self, lost: &BTreeSet<DataServerId>) -> Result<()> {
        let prefix = [key::PG];
        for (row, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
            let Some(id) = key::number_at(&row, 1) else { continue };
            let Some(mut config) = self.load::<PgConfig>(&row)? else { continue };
            config.in_sync.retain(|member| !lost.contains(&member.server));
            config.in_sync.iter_mut().for_each(|member| member.uncertain = true);
            config.learners.clear();
            (config.primary, config.activated, config.version) = (None, false, self.revision);
            self.draft.put(key::pg(PgId::from_u64(id)), encode(&config));
        }
        Ok(())
    }

    /// Cuts a file in chunks at its size: objects may hold more than the backup knows, under truncations that it does
    /// not know either. Other inodes stay as they are: a file that moves to chunks later begins with a truncation.
    pub fn cut_at_size(&mut self, id: InodeId) -> Result<()> {
        let Some(mut inode) = self.find_inode(id)? else { return Ok(()) };
        if inode.attr.kind != FileKind::File || !inode.chunked {
            return Ok(());
        }
        self.cut_objects(&mut inode);
        self.put_inode(&inode);
        Ok(())
    }

    /// What lies past the committed size, in whatever chunk, is cut before anybody can see it.
    pub(super) fn cut_objects(&mut self, inode: &mut Inode) {
        let size = inode.attr.size;
        inode.strays = true;
        inode.truncations.retain(|t| t.size < size);
        inode.truncations.push(Truncation { seq: self.revision, size });
        inode.data_revision = self.revision;
        self.schedule_sweep(inode);
    }
}
