//! Pools: made, changed and removed by administrators, and chosen by directories.

use super::{DEFAULT_POOL, Prep, Result};
use crate::state::key;
use crate::state::layers::{StoreError, View};
use crate::state::record::{Inode, Purge, encode};
use protocol::map::{
    CHUNK_SIZE_DEFAULT, DataServerInfo, FailureDomain, INLINE_LIMIT_DEFAULT, PgConfig, Pool,
};
use protocol::meta::{MetaError, MetaReply, PoolChange, PoolSettings};
use protocol::{DataServerId, Errno, FileKind, InodeId, PgId, PoolId};
use std::collections::BTreeSet;

/// Most replicas.
const SIZE_MAX: u32 = 7;
/// Most placement groups of one pool: their configurations have to fit into one transaction.
pub(super) const PG_NUM_MAX: u32 = 4096;
/// Placement groups of a pool for which nobody says how many: enough for tens of servers, cheap for three.
pub(super) const PG_NUM_DEFAULT: u32 = 32;
/// Bounds of the chunk size in bytes. Objects are no larger than the upper one, see the data servers' stores.
const CHUNK_SIZES: std::ops::RangeInclusive<u32> = 64 << 10..=64 << 20;
/// Largest inline limit in bytes: such a file travels in one transaction and in every reply that shows it.
const INLINE_LIMIT_MAX: u32 = 64 << 10;
/// Placement groups that one server carries with ease, copies counted.
const GROUPS_PER_SERVER: u32 = 300;
/// Longest name of a pool in bytes.
const NAME_MAX: usize = 64;
/// Longest name of a device class in bytes.
const CLASS_NAME_MAX: usize = 16;
/// Changes that a repetition is recognised of.
const NONCES_MAX: usize = 16;
/// Rows of the purge queue that are looked through for a pool that is to go.
const PURGES_MAX: usize = 10_000;

/// The rule for a failure domain and the number of a class.
fn rule(domain: FailureDomain, class: Option<usize>) -> u32 {
    crush::flat_rule(class, domain == FailureDomain::Host)
}

/// The inverse of [`rule`].
pub(crate) fn parse_rule(rule: u32) -> (FailureDomain, Option<usize>) {
    let domain = if rule.is_multiple_of(2) { FailureDomain::Host } else { FailureDomain::Server };
    (domain, (rule as usize / 2).checked_sub(1))
}

/// The names of all classes that ever were, by their numbers.
///
/// # Errors
/// The store failed.
pub(crate) fn class_names(state: &dyn View) -> std::result::Result<Vec<String>, StoreError> {
    Ok(super::load(state, &key::system("device_classes"))?.unwrap_or_default())
}

fn refused<T>(why: String) -> Result<T> {
    Err(MetaError::Refused(why).into())
}

impl Prep<'_> {
    /// Carries out an administrator's wish, once per nonce. Says what may not be expected.
    pub fn change_pool(&mut self, nonce: u128, change: &PoolChange) -> Result<Vec<String>> {
        let mut done: Vec<u128> = self.load(&key::system("pool_changes"))?.unwrap_or_default();
        let (PoolChange::Create { name, .. } | PoolChange::Set { name, .. } | PoolChange::Remove { name }) =
            change;
        if !done.contains(&nonce) {
            match change {
                PoolChange::Create { settings, .. } => self.create_pool(name, settings)?,
                PoolChange::Set { settings, .. } => self.set_pool(name, settings)?,
                PoolChange::Remove { .. } => self.remove_pool(name)?,
            }
            done.push(nonce);
            let forgotten = done.len().saturating_sub(NONCES_MAX);
            done.drain(..forgotten);
            self.draft.put(key::system("pool_changes"), encode(&done));
        }
        match self.pool_named(name)? {
            Some((id, pool)) => self.pool_warnings(id, &pool),
            None => Ok(Vec::new()),
        }
    }

    fn create_pool(&mut self, name: &str, settings: &PoolSettings) -> Result<()> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(legal) {
            return refused(format!(
                "'{name}' is no name for a pool: 1 to {NAME_MAX} letters, digits, '-', '_' and '.' are"
            ));
        }
        if self.pool_named(name)?.is_some() {
            return refused(format!("there is a pool '{name}' already"));
        }
        let default: Option<Pool> = self.load(&key::map_pool(DEFAULT_POOL))?;
        let size = settings.size.or(default.map(|pool| pool.size)).unwrap_or(1);
        let pool = Pool {
            name: name.to_owned(),
            size,
            min_size: settings.min_size.unwrap_or(size.saturating_sub(1).max(1)),
            pg_num: settings.pg_num.unwrap_or(PG_NUM_DEFAULT),
            rule: self.rule_of(settings, 0)?,
            chunk_size: settings.chunk_size.unwrap_or(CHUNK_SIZE_DEFAULT),
            inline_limit: settings.inline_limit.unwrap_or(INLINE_LIMIT_DEFAULT),
        };
        check_pool(&pool)?;
        let last = self.pools()?.into_iter().map(|(id, _)| id.0).max().unwrap_or(0);
        let used: u32 = self.load(&key::system("last_pool"))?.unwrap_or(0);
        let id = PoolId(last.max(used) + 1);
        self.draft.put(key::system("last_pool"), encode(&id.0));
        self.draft.put(key::map_pool(id), encode(&pool));
        Ok(())
    }

    fn set_pool(&mut self, name: &str, settings: &PoolSettings) -> Result<()> {
        let (id, old) = self.known_pool(name)?;
        if settings.chunk_size.is_some_and(|size| size != old.chunk_size) {
            return refused(format!(
                "the chunk size of pool '{name}' is fixed since its creation: make another pool for it"
            ));
        }
        if settings.pg_num.is_some_and(|number| number < old.pg_num) {
            return refused(format!(
                "pool '{name}' has {} placement groups, and groups are split but never merged: make another pool \
                 with fewer of them and copy the files there",
                old.pg_num
            ));
        }
        let pool = Pool {
            size: settings.size.unwrap_or(old.size),
            min_size: settings.min_size.unwrap_or(old.min_size),
            pg_num: settings.pg_num.unwrap_or(old.pg_num),
            rule: self.rule_of(settings, old.rule)?,
            inline_limit: settings.inline_limit.unwrap_or(old.inline_limit),
            ..old
        };
        check_pool(&pool)?;
        self.draft.put(key::map_pool(id), encode(&pool));
        Ok(())
    }

    /// The groups go with the pool; what data servers hold of them goes when they learn of it.
    fn remove_pool(&mut self, name: &str) -> Result<()> {
        let (id, pool) = self.known_pool(name)?;
        if id == DEFAULT_POOL {
            return refused(format!(
                "'{name}' is the default pool, which files get without being told: it cannot be removed"
            ));
        }
        let inodes: u64 = self.load(&key::pool_inodes(id))?.unwrap_or(0);
        if inodes > 0 {
            return refused(format!(
                "{inodes} files and directories name pool '{name}': remove them, or give directories another pool \
                 ('setfattr -n zabfs.pool -v POOL DIR')"
            ));
        }
        let purges = self.draft.scan(&[key::PURGE], &[key::PURGE + 1], PURGES_MAX)?;
        let of_pool =
            |row: &bytes::Bytes| postcard::from_bytes::<Purge>(row).is_ok_and(|purge| purge.pool == id);
        if purges.len() == PURGES_MAX || purges.iter().any(|(_, row)| of_pool(row)) {
            return refused(format!(
                "objects of deleted files in pool '{name}' are still being removed: try again in a moment"
            ));
        }
        self.draft.delete(key::map_pool(id));
        self.draft.delete(key::pool_inodes(id));
        self.draft.put(key::map_pool_removed(id), bytes::Bytes::new());
        for seed in 0..pool.pg_num {
            let pg = PgId { pool: id, seed };
            if self.load::<PgConfig>(&key::pg(pg))?.is_some() {
                self.draft.delete(key::pg(pg));
            }
        }
        Ok(())
    }

    /// Says of which kind a server's device is.
    pub fn set_class(&mut self, server: DataServerId, class: Option<&str>) -> Result<()> {
        if self.load::<DataServerInfo>(&key::map_server(server))?.is_none() {
            return refused(format!("there is no data server {server}"));
        }
        let mut names = class_names(&self.draft)?;
        let old: Option<String> = self.load(&key::map_class(server))?;
        if let Some(old) = old.filter(|old| Some(old.as_str()) != class) {
            self.check_class_is_spare(server, &old, &names)?;
        }
        match class {
            Some(class) => {
                let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
                if class.is_empty() || class.len() > CLASS_NAME_MAX || !class.chars().all(legal) {
                    return refused(format!(
                        "'{class}' is no device class: 1 to {CLASS_NAME_MAX} lower-case letters and digits are"
                    ));
                }
                if !names.iter().any(|name| name == class) {
                    if names.len() >= crush::CLASSES_MAX {
                        return refused(format!("there were {} device classes: no more fit", names.len()));
                    }
                    names.push(class.to_owned());
                    self.draft.put(key::system("device_classes"), encode(&names));
                }
                self.draft.put(key::map_class(server), encode(&class.to_owned()));
            }
            None => self.draft.delete(key::map_class(server)),
        }
        self.rebuild_crush()
    }

    /// A pool that takes devices of one class keeps at least one.
    fn check_class_is_spare(&self, server: DataServerId, class: &str, names: &[String]) -> Result<()> {
        let number = names.iter().position(|name| name == class);
        let user = self.pools()?.into_iter().find(|(_, pool)| {
            let (_, wanted) = parse_rule(pool.rule);
            wanted.is_some() && wanted == number
        });
        let Some((_, pool)) = user else { return Ok(()) };
        for (other, _) in self.servers()? {
            if other != server && self.load::<String>(&key::map_class(other))?.as_deref() == Some(class) {
                return Ok(());
            }
        }
        refused(format!(
            "data server {server} is the last one of class '{class}', which pool '{}' takes",
            pool.name
        ))
    }

    /// `zabfs.pool` of a directory: what is made in it from now on gets this pool. `None` for that of its parent.
    pub(super) fn choose_pool(&mut self, inode: InodeId, name: Option<&[u8]>) -> Result<MetaReply> {
        let mut directory = self.directory(inode)?;
        let pool = match name {
            Some(name) => {
                let name = std::str::from_utf8(name).map_err(|_| Errno::EINVAL)?;
                self.pool_named(name)?.ok_or(Errno::EINVAL)?.0
            }
            None if inode == InodeId::ROOT => DEFAULT_POOL,
            None => self.inode(directory.parent)?.pool,
        };
        self.count_in_pool(&directory, false)?;
        directory.pool = pool;
        self.count_in_pool(&directory, true)?;
        directory.attr.ctime = self.time;
        self.put_inode(&directory);
        Ok(MetaReply::Done)
    }

    /// An inode names its pool from now on, or does not any more. The default pool's are not counted: it stays.
    pub(super) fn count_in_pool(&mut self, inode: &Inode, more: bool) -> Result<()> {
        let names_pool = matches!(inode.attr.kind, FileKind::File | FileKind::Directory);
        if inode.pool == DEFAULT_POOL || !names_pool {
            return Ok(());
        }
        let key = key::pool_inodes(inode.pool);
        let count: u64 = self.load(&key)?.unwrap_or(0);
        let count = if more { count + 1 } else { count.saturating_sub(1) };
        self.draft.put(key, encode(&count));
        Ok(())
    }

    fn rule_of(&self, settings: &PoolSettings, old: u32) -> Result<u32> {
        let (domain, class) = parse_rule(old);
        let domain = settings.failure_domain.unwrap_or(domain);
        let class = match &settings.class {
            None => class,
            Some(None) => None,
            Some(Some(name)) => {
                let number = class_names(&self.draft)?.iter().position(|known| known == name);
                let held = self.servers()?.into_iter().any(|(id, _)| {
                    self.load::<String>(&key::map_class(id)).is_ok_and(|class| class.as_ref() == Some(name))
                });
                match number.filter(|_| held) {
                    Some(number) => Some(number),
                    None => {
                        return refused(format!(
                            "no data server has a device of class '{name}': 'zabfs data class ID {name}' says which do"
                        ));
                    }
                }
            }
        };
        Ok(rule(domain, class))
    }

    fn pool_warnings(&self, id: PoolId, pool: &Pool) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let (domain, class) = parse_rule(pool.rule);
        let class = class.and_then(|class| class_names(&self.draft).ok()?.get(class).cloned());
        let (mut servers, mut hosts) = (0, BTreeSet::new());
        for (server, info) in self.servers()?.into_iter().filter(|(_, info)| info.reweight > 0) {
            if class.is_none() || self.load::<String>(&key::map_class(server))? == class {
                servers += 1;
                hosts.insert(info.host);
            }
        }
        let (domains, what) = match domain {
            FailureDomain::Host => (hosts.len(), "hosts"),
            FailureDomain::Server => (servers, "data servers"),
        };
        let of_class = class.map_or(String::new(), |class| format!(" of class '{class}'"));
        if domains < pool.size as usize {
            warnings.push(format!(
                "{} replicas are wanted on as many {what}, and {domains} {what}{of_class} are in: groups stay degraded \
                 until there are more",
                pool.size
            ));
        }
        if pool.min_size == 1 && pool.size > 1 {
            warnings.push(
                "one replica is enough for writing: what was written while the others were away is lost with that one"
                    .to_owned(),
            );
        }
        if !pool.pg_num.is_power_of_two() {
            warnings.push(format!(
                "{} placement groups are no power of two: some get twice the data",
                pool.pg_num
            ));
        }
        let copies: u64 = self.pools()?.iter().map(|(_, p)| u64::from(p.pg_num) * u64::from(p.size)).sum();
        let per_server = copies / servers.max(1) as u64;
        if per_server > u64::from(GROUPS_PER_SERVER) {
            warnings.push(format!(
                "each data server has about {per_server} placement groups, a few hundred are enough"
            ));
        }
        let few =
            |pg: PgId, config: &PgConfig| pg.pool == id && config.certain().count() < pool.min_size as usize;
        let waiting = self.groups()?.iter().filter(|(pg, config)| few(*pg, config)).count();
        if waiting > 0 {
            warnings.push(format!(
                "{waiting} placement groups have fewer than {} replicas that are up to date, and serve no writes until \
                 more are copied",
                pool.min_size
            ));
        }
        Ok(warnings)
    }

    fn servers(&self) -> Result<Vec<(DataServerId, DataServerInfo)>> {
        let prefix = [key::MAP, key::MAP_SERVER];
        let mut servers = Vec::new();
        for (key, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
            if let (Some(id), Some(info)) = (key::number_at(&key, 2), self.load(&key)?) {
                servers.push((DataServerId(id as u32), info));
            }
        }
        Ok(servers)
    }

    fn pools(&self) -> Result<Vec<(PoolId, Pool)>> {
        let prefix = [key::MAP, key::MAP_POOL];
        let mut pools = Vec::new();
        for (key, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
            if let (Some(id), Some(pool)) = (key::number_at(&key, 2), self.load(&key)?) {
                pools.push((PoolId(id as u32), pool));
            }
        }
        Ok(pools)
    }

    fn pool_named(&self, name: &str) -> Result<Option<(PoolId, Pool)>> {
        Ok(self.pools()?.into_iter().find(|(_, pool)| pool.name == name))
    }

    fn known_pool(&self, name: &str) -> Result<(PoolId, Pool)> {
        match self.pool_named(name)? {
            Some(known) => Ok(known),
            None => refused(format!("there is no pool '{name}': 'zabfs pool list' shows those there are")),
        }
    }
}

/// What a pool must be like whatever the cluster is.
fn check_pool(pool: &Pool) -> Result<()> {
    let Pool { name, size, min_size, pg_num, chunk_size, inline_limit, .. } = pool;
    if !(1..=SIZE_MAX).contains(size) {
        return refused(format!("a pool of {size} replicas is impossible: 1 to {SIZE_MAX} are possible"));
    }
    if *min_size == 0 || min_size > size {
        return refused(format!(
            "pool '{name}' would have {size} replicas and need {min_size} of them for writing: min_size is 1 to size"
        ));
    }
    if !(1..=PG_NUM_MAX).contains(pg_num) {
        return refused(format!("{pg_num} placement groups are impossible: 1 to {PG_NUM_MAX} are possible"));
    }
    if !chunk_size.is_power_of_two() || !CHUNK_SIZES.contains(chunk_size) {
        return refused(format!(
            "a chunk size of {chunk_size} bytes is impossible: powers of two from {} to {} are possible",
            CHUNK_SIZES.start(),
            CHUNK_SIZES.end()
        ));
    }
    if *inline_limit > INLINE_LIMIT_MAX {
        return refused(format!(
            "files of {inline_limit} bytes are too large for the namespace: at most {INLINE_LIMIT_MAX} are possible"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_says_the_failure_domain_and_the_class() {
        for domain in [FailureDomain::Host, FailureDomain::Server] {
            for class in [None, Some(0), Some(5)] {
                assert_eq!(parse_rule(rule(domain, class)), (domain, class));
            }
        }
        assert_eq!(parse_rule(0), (FailureDomain::Host, None));
    }
}
