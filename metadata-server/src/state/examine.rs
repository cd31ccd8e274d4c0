//! Everything that is said of one inode, compared: what `zabfs fsck` has the leader look at, live.
//!
//! Nothing here trusts a row, and no row that does not decode stops anything: that is one of the findings. Work is
//! bounded by [`FSCK_ROWS_MAX`] rows of each kind.

use super::key::{self, Key};
use super::layers::{StoreError, View};
use super::record::{Dentry, Inode, Purge};
use protocol::attr::TRUNCATIONS_MAX;
use protocol::map::{CHUNK_SIZE_DEFAULT, Pool};
use protocol::meta::{FSCK_ROWS_MAX, FsckProblem};
use protocol::{EntryName, FileKind, InodeId, SessionId};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};

/// Deepest chain of directories that is followed.
const DEPTH_MAX: usize = 4096;

type Result<T> = std::result::Result<T, StoreError>;

/// A row as it is found.
pub(crate) enum Found<T> {
    Absent,
    Broken,
    Value(T),
}

impl<T> Found<T> {
    pub(crate) fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Broken => None,
        }
    }
}

pub(crate) fn find<T: DeserializeOwned>(view: &dyn View, key: &[u8]) -> Result<Found<T>> {
    Ok(match view.get(key)? {
        None => Found::Absent,
        Some(bytes) => postcard::from_bytes(&bytes).map_or(Found::Broken, Found::Value),
    })
}

/// What is wrong with `inode`, which need not exist. `names` is where it is said to be named besides.
///
/// # Errors
/// The store.
pub fn examine(
    view: &dyn View,
    inode: InodeId,
    names: &[(InodeId, EntryName)],
) -> Result<BTreeSet<FsckProblem>> {
    let mut examination = Examination { view, id: inode, problems: BTreeSet::new() };
    examination.run(names)?;
    Ok(examination.problems)
}

struct Examination<'a> {
    view: &'a dyn View,
    id: InodeId,
    problems: BTreeSet<FsckProblem>,
}

impl Examination<'_> {
    fn say(&mut self, problem: FsckProblem) {
        self.problems.insert(problem);
    }

    fn run(&mut self, hints: &[(InodeId, EntryName)]) -> Result<()> {
        let inode = match find::<Inode>(self.view, &key::inode(self.id))? {
            Found::Absent => None,
            Found::Value(inode) if inode.attr.inode == self.id => Some(inode),
            Found::Value(_) | Found::Broken => {
                self.say(FsckProblem::Undecodable { what: "inode".into() });
                return Ok(());
            }
        };
        let names = self.names(hints, inode.as_ref())?;
        let (entries, directories) = self.entries(inode.as_ref())?;
        let Some(inode) = inode else { return self.leftovers() };
        self.links(&inode, &names, entries, directories)?;
        self.owners()?;
        if inode.attr.kind == FileKind::File {
            self.data(&inode)?;
        }
        if matches!(inode.attr.kind, FileKind::File | FileKind::Directory)
            && !matches!(find::<Pool>(self.view, &key::map_pool(inode.pool))?, Found::Value(_))
        {
            self.say(FsckProblem::NoPool { pool: inode.pool });
        }
        Ok(())
    }

    /// Rows below a prefix, or a finding that they are too many.
    fn rows(&mut self, table: u8, what: &str) -> Result<Vec<(Key, bytes::Bytes)>> {
        let prefix = key::prefix1(table, self.id.0);
        let rows = self.view.scan(&prefix, &key::prefix_end(&prefix), FSCK_ROWS_MAX + 1)?;
        if rows.len() > FSCK_ROWS_MAX {
            self.say(FsckProblem::TooLarge { what: what.into() });
            return Ok(Vec::new());
        }
        Ok(rows)
    }

    fn is_directory(&self, id: InodeId) -> Result<bool> {
        Ok(find::<Inode>(self.view, &key::inode(id))?.value().is_some_and(|inode| inode.is_directory()))
    }

    /// Entries that name it, each checked.
    fn names(
        &mut self,
        hints: &[(InodeId, EntryName)],
        inode: Option<&Inode>,
    ) -> Result<Vec<(InodeId, EntryName)>> {
        let links = self.rows(key::LINK, "links")?;
        let linked: BTreeSet<_> = links.iter().filter_map(|(k, _)| key::parse_link(k)).collect();
        let mut named = Vec::new();
        for (parent, name) in linked.iter().chain(hints.iter().filter(|hint| !linked.contains(hint))) {
            let (parent, name) = (*parent, name.clone());
            let entry = find::<Dentry>(self.view, &key::dentry(parent, &name))?.value();
            let has_link = linked.contains(&(parent, name.clone()));
            let Some(entry) = entry.filter(|entry| entry.inode == self.id) else {
                if has_link {
                    self.say(FsckProblem::LinkWithoutEntry { parent, name });
                }
                continue;
            };
            let Some(inode) = inode else {
                self.say(FsckProblem::EntryWithoutInode { parent, name });
                continue;
            };
            if !self.is_directory(parent)? {
                self.say(FsckProblem::EntryWithoutDirectory { parent, name });
                continue;
            }
            if !has_link {
                self.say(FsckProblem::EntryWithoutLink { parent, name: name.clone() });
            }
            if entry.kind != inode.attr.kind {
                self.say(FsckProblem::EntryKind { parent, name: name.clone() });
            }
            let place = self.view.get(&key::order(parent, entry.cookie))?;
            if place.is_none_or(|place| place[..] != *name.as_bytes()) {
                self.say(FsckProblem::EntryWithoutPlace { parent, name: name.clone() });
            }
            named.push((parent, name));
        }
        Ok(named)
    }

    /// Its own entries: how many, and how many of them are directories.
    fn entries(&mut self, inode: Option<&Inode>) -> Result<(u64, u32)> {
        let is_directory = inode.is_some_and(Inode::is_directory);
        let mut places: BTreeMap<u64, EntryName> = BTreeMap::new();
        let (mut count, mut directories) = (0, 0);
        for (row, value) in self.rows(key::DENTRY, "entries")? {
            let Ok(name) = EntryName::new(&row[9..]) else {
                self.say(FsckProblem::Undecodable { what: "entry".into() });
                continue;
            };
            if !is_directory {
                self.say(FsckProblem::EntryWithoutDirectory { parent: self.id, name });
                continue;
            }
            let Ok(entry) = postcard::from_bytes::<Dentry>(&value) else {
                self.say(FsckProblem::Undecodable { what: "entry".into() });
                continue;
            };
            count += 1;
            directories += u32::from(entry.kind == FileKind::Directory);
            if places.insert(entry.cookie, name.clone()).is_some() {
                self.say(FsckProblem::EntryWithoutPlace { parent: self.id, name });
            }
        }
        for (row, name) in self.rows(key::ORDER, "entries")? {
            let cookie = key::number_at(&row, 9).unwrap_or_default();
            match places.remove(&cookie) {
                Some(entry) if entry.as_bytes() == &name[..] => {}
                Some(entry) => {
                    self.say(FsckProblem::EntryWithoutPlace { parent: self.id, name: entry });
                }
                None => self.say(FsckProblem::PlaceWithoutEntry { parent: self.id, cookie }),
            }
        }
        for name in places.into_values() {
            self.say(FsckProblem::EntryWithoutPlace { parent: self.id, name });
        }
        Ok((count, directories))
    }

    fn links(
        &mut self,
        inode: &Inode,
        names: &[(InodeId, EntryName)],
        entries: u64,
        directories: u32,
    ) -> Result<()> {
        if self.problems.iter().any(|problem| matches!(problem, FsckProblem::TooLarge { .. })) {
            return Ok(());
        }
        let is_root = self.id == InodeId::ROOT;
        if is_root && !inode.is_directory() {
            self.say(FsckProblem::NoRoot);
            return Ok(());
        }
        if inode.is_directory() && inode.attr.size != entries {
            self.say(FsckProblem::EntryCount { found: inode.attr.size, counted: entries });
        }
        let is_named = is_root || !names.is_empty();
        if !is_named {
            return self.nameless(inode, entries);
        }
        let counted = if inode.is_directory() { 2 + directories } else { names.len() as u32 };
        if inode.attr.nlink != counted {
            self.say(FsckProblem::LinkCount { found: inode.attr.nlink, counted });
        }
        if !inode.is_directory() || is_root {
            return Ok(());
        }
        let kept = names.iter().find(|(parent, _)| *parent == inode.parent).unwrap_or(&names[0]);
        if kept.0 != inode.parent {
            self.say(FsckProblem::Parent { found: inode.parent, counted: kept.0 });
        }
        for (parent, name) in names.iter().filter(|name| *name != kept) {
            self.say(FsckProblem::SecondName { parent: *parent, name: name.clone() });
        }
        let (mut above, mut depth) = (kept.0, 0);
        while above != InodeId::ROOT && depth < DEPTH_MAX {
            if above == self.id {
                self.say(FsckProblem::Unreachable);
                break;
            }
            let Some(next) = find::<Inode>(self.view, &key::inode(above))?.value() else { break };
            (above, depth) = (next.parent, depth + 1);
        }
        Ok(())
    }

    fn nameless(&mut self, inode: &Inode, entries: u64) -> Result<()> {
        let prefix = key::prefix1(key::PIN, self.id.0);
        let is_pinned = !self.view.scan(&prefix, &key::prefix_end(&prefix), 1)?.is_empty();
        match (is_pinned, inode.attr.nlink) {
            (true, 0) => {}
            (true, found) => self.say(FsckProblem::LinkCount { found, counted: 0 }),
            (false, 0) if entries == 0 => self.say(FsckProblem::NotDeleted),
            (false, _) => self.say(FsckProblem::Unreferenced),
        }
        Ok(())
    }

    fn is_session(&self, session: SessionId) -> Result<bool> {
        Ok(self.view.get(&key::session(session))?.is_some()
            || self.view.get(&key::ending(session))?.is_some())
    }

    fn owners(&mut self) -> Result<()> {
        for (row, _) in self.rows(key::PIN, "pins")? {
            let session = SessionId(key::number_at(&row, 9).unwrap_or_default());
            let is_owned = self.view.get(&key::owned_pin(session, self.id))?.is_some();
            if !is_owned || !self.is_session(session)? {
                self.say(FsckProblem::StrayPin { session });
            }
        }
        match find::<SessionId>(self.view, &key::hold(self.id))? {
            Found::Absent => {}
            Found::Broken => self.say(FsckProblem::Undecodable { what: "hold".into() }),
            Found::Value(session) => {
                let is_owned = self.view.get(&key::owned_hold(session, self.id))?.is_some();
                if !is_owned || !self.is_session(session)? {
                    self.say(FsckProblem::StrayHold { session });
                }
            }
        }
        Ok(())
    }

    fn data(&mut self, inode: &Inode) -> Result<()> {
        let truncations = &inode.truncations;
        let rises =
            truncations.windows(2).all(|pair| pair[0].seq < pair[1].seq && pair[0].size < pair[1].size);
        if !rises || truncations.len() > TRUNCATIONS_MAX + 1 {
            self.say(FsckProblem::TruncationOrder);
        }
        match find::<Purge>(self.view, &key::purge(self.id))? {
            Found::Broken => self.say(FsckProblem::Undecodable { what: "purge".into() }),
            Found::Value(purge) if purge.deleted => self.say(FsckProblem::PurgeOfLiving),
            Found::Value(purge) if truncations.len() >= 2 && purge.truncations != *truncations => {
                self.say(FsckProblem::SweepMissing);
            }
            Found::Absent if truncations.len() >= 2 => self.say(FsckProblem::SweepMissing),
            Found::Absent | Found::Value(_) => {}
        }
        let inline = self.view.get(&key::inline(self.id))?.map_or(0, |bytes| bytes.len() as u64);
        if inline > 0 && (inode.chunked || inline > inode.attr.size) {
            self.say(FsckProblem::InlineLength { found: inline, size: inode.attr.size });
        }
        if inode.chunked {
            let pool = find::<Pool>(self.view, &key::map_pool(inode.pool))?.value();
            let counted = chunks(inode.attr.size, pool.map_or(CHUNK_SIZE_DEFAULT, |pool| pool.chunk_size));
            if inode.chunks_high < counted {
                self.say(FsckProblem::ChunkBound { found: inode.chunks_high, counted });
            }
        }
        Ok(())
    }

    /// What is left of an inode that does not exist.
    fn leftovers(&mut self) -> Result<()> {
        if self.id == InodeId::ROOT {
            self.say(FsckProblem::NoRoot);
        }
        let kinds =
            [(key::XATTR, "xattrs"), (key::INLINE, "inline"), (key::HOLD, "holds"), (key::PIN, "pins")];
        for (table, what) in kinds {
            let rows = self.rows(table, what)?.len() as u32;
            if rows > 0 {
                self.say(FsckProblem::RowsWithoutInode { what: what.into(), rows });
            }
        }
        Ok(())
    }
}

/// How many chunks a file of this size may have.
pub(crate) fn chunks(size: u64, chunk_size: u32) -> u32 {
    u32::try_from(size.div_ceil(u64::from(chunk_size.max(1)))).unwrap_or(u32::MAX)
}
