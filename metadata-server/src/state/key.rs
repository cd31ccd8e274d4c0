//! Keys of the replicated state: one ordered key space, the first byte is the table.
//!
//! All numbers are big-endian so that byte order is numeric order. `docs/FORMATS.md` draws every key and value.
//!
//! | byte | table | key | value |
//! |---|---|---|---|
//! | 01 | inodes | inode | [`super::record::Inode`] |
//! | 02 | dentries | parent, name | [`super::record::Dentry`] |
//! | 03 | directory order | parent, cookie | name |
//! | 04 | links | inode, parent, name | – |
//! | 05 | xattrs | inode, name | value |
//! | 06 | inline bytes, symlink targets | inode | bytes |
//! | 07 | holds | inode | session |
//! | 08 | pins of unlinked files | inode, session | – |
//! | 09 | sessions | session | [`super::record::Session`] |
//! | 0a | replies | session, sequence | response |
//! | 0b | locks | resource | [`super::record::LockTable`] |
//! | 0c | purge queue | inode | [`super::record::Purge`] |
//! | 0d | system | name | by name |
//! | 0e | cluster map: data servers, pools, blocked sessions | kind, id | by kind |
//! | 0f | placement groups | pool, seed | `PgConfig` |
//! | 10 | what a session owns | session, kind, id | – |
//! | 11 | sessions that ended and own something yet | session | – |

use protocol::meta::LockResource;
use protocol::{DataServerId, EntryName, InodeId, PgId, PoolId, SessionId, StoreUuid};

/// An encoded key.
pub type Key = Vec<u8>;

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident = $byte:literal),* $(,)?) => {
        $($(#[$doc])* pub const $name: u8 = $byte;)*
    };
}

tables! {
    /// inode → Inode
    INODE = 0x01,
    /// parent, name → Dentry
    DENTRY = 0x02,
    /// parent, cookie → name
    ORDER = 0x03,
    /// inode, parent, name
    LINK = 0x04,
    /// inode, name → value
    XATTR = 0x05,
    /// inode → bytes
    INLINE = 0x06,
    /// inode → SessionId
    HOLD = 0x07,
    /// inode, session
    PIN = 0x08,
    /// session → Session
    SESSION = 0x09,
    /// session, sequence → MetaResponse
    REPLY = 0x0a,
    /// resource → LockTable
    LOCK = 0x0b,
    /// inode → Purge
    PURGE = 0x0c,
    /// name → by name
    SYSTEM = 0x0d,
    /// kind, id → by kind
    MAP = 0x0e,
    /// pool, seed → PgConfig
    PG = 0x0f,
    /// session, kind, id
    OWNED = 0x10,
    /// session
    ENDING = 0x11,
}

/// Kinds of [`MAP`] keys.
pub const MAP_SERVER: u8 = 1;
/// A pool.
pub const MAP_POOL: u8 = 2;
/// A fenced session.
pub const MAP_BLOCKED: u8 = 3;
/// A server that was taken out because it stayed away, not by a person.
pub const MAP_AUTO_OUT: u8 = 4;
/// The CRUSH map's text.
pub const MAP_CRUSH: u8 = 5;
/// A store whose server was removed.
pub const MAP_REMOVED: u8 = 6;

/// A pool that was removed.
pub const MAP_POOL_REMOVED: u8 = 7;
/// Kind of a data server's device.
pub const MAP_CLASS: u8 = 8;

/// Kinds of [`LOCK`] keys.
pub const LOCK_FLOCK: u8 = 1;
/// POSIX byte ranges.
pub const LOCK_POSIX: u8 = 2;
/// A named lock.
pub const LOCK_NAMED: u8 = 3;

/// Kinds of [`OWNED`] keys.
pub const OWNED_HOLD: u8 = 1;
/// A pin.
pub const OWNED_PIN: u8 = 2;
/// A lock or a wait for one.
pub const OWNED_LOCK: u8 = 3;

fn table1(table: u8, a: u64) -> Key {
    let mut key = Vec::with_capacity(32);
    key.push(table);
    key.extend_from_slice(&a.to_be_bytes());
    key
}

fn table2(table: u8, a: u64, b: u64) -> Key {
    let mut key = table1(table, a);
    key.extend_from_slice(&b.to_be_bytes());
    key
}

/// Key of an inode.
pub fn inode(inode: InodeId) -> Key {
    table1(INODE, inode.0)
}

/// Key of a directory entry.
pub fn dentry(parent: InodeId, name: &EntryName) -> Key {
    let mut key = table1(DENTRY, parent.0);
    key.extend_from_slice(name.as_bytes());
    key
}

/// Key of a directory entry's position.
pub fn order(parent: InodeId, cookie: u64) -> Key {
    table2(ORDER, parent.0, cookie)
}

/// Key of a link from an inode to a name of it.
pub fn link(inode: InodeId, parent: InodeId, name: &EntryName) -> Key {
    let mut key = table2(LINK, inode.0, parent.0);
    key.extend_from_slice(name.as_bytes());
    key
}

/// Parent and name in a [`LINK`] key.
pub fn parse_link(key: &[u8]) -> Option<(InodeId, EntryName)> {
    let parent = u64::from_be_bytes(key.get(9..17)?.try_into().ok()?);
    Some((InodeId(parent), EntryName::new(key.get(17..)?).ok()?))
}

/// Key of an extended attribute.
pub fn xattr(inode: InodeId, name: &[u8]) -> Key {
    let mut key = table1(XATTR, inode.0);
    key.extend_from_slice(name);
    key
}

/// Key of a file's inline bytes or a symlink's target.
pub fn inline(inode: InodeId) -> Key {
    table1(INLINE, inode.0)
}

/// Key of the right to change a file's size.
pub fn hold(inode: InodeId) -> Key {
    table1(HOLD, inode.0)
}

/// Key of a session's pin on an unlinked inode.
pub fn pin(inode: InodeId, session: SessionId) -> Key {
    table2(PIN, inode.0, session.0)
}

/// Key of a session.
pub fn session(session: SessionId) -> Key {
    table1(SESSION, session.0)
}

/// Key of a stored reply.
pub fn reply(session: SessionId, sequence: u64) -> Key {
    table2(REPLY, session.0, sequence)
}

/// Whether a row with this key is put once at most and then deleted: a reply's sequence number never comes again.
pub fn is_written_once(key: &[u8]) -> bool {
    key.len() == 17 && key[0] == REPLY
}

/// Key of a lock table: kind byte, then inode or name.
pub fn lock(resource: &LockResource) -> Key {
    let mut key = vec![LOCK];
    key.extend_from_slice(&lock_suffix(resource));
    key
}

fn lock_suffix(resource: &LockResource) -> Vec<u8> {
    let (kind, id) = match resource {
        LockResource::Flock(inode) => (LOCK_FLOCK, inode.0.to_be_bytes().to_vec()),
        LockResource::Posix(inode) => (LOCK_POSIX, inode.0.to_be_bytes().to_vec()),
        LockResource::Named(name) => (LOCK_NAMED, name.as_bytes().to_vec()),
    };
    let mut suffix = vec![kind];
    suffix.extend_from_slice(&id);
    suffix
}

/// The resource in the part of a key behind its table (and session) bytes.
pub fn parse_lock(suffix: &[u8]) -> Option<LockResource> {
    let (kind, id) = suffix.split_first()?;
    let number = || Some(InodeId(u64::from_be_bytes(id.try_into().ok()?)));
    match *kind {
        LOCK_FLOCK => Some(LockResource::Flock(number()?)),
        LOCK_POSIX => Some(LockResource::Posix(number()?)),
        LOCK_NAMED => Some(LockResource::Named(EntryName::new(id).ok()?)),
        _ => None,
    }
}

/// Key of an inode whose objects must be cut or deleted.
pub fn purge(inode: InodeId) -> Key {
    table1(PURGE, inode.0)
}

/// Key of a single value by name.
pub fn system(name: &str) -> Key {
    let mut key = vec![SYSTEM];
    key.extend_from_slice(name.as_bytes());
    key
}

/// Key of a data server in the map.
pub fn map_server(id: DataServerId) -> Key {
    map_entry(MAP_SERVER, u64::from(id.0))
}

/// Key of a pool in the map.
pub fn map_pool(id: PoolId) -> Key {
    map_entry(MAP_POOL, u64::from(id.0))
}

/// Key that says that a pool was removed.
pub fn map_pool_removed(id: PoolId) -> Key {
    map_entry(MAP_POOL_REMOVED, u64::from(id.0))
}

/// Key of the number of inodes that name a pool.
pub fn pool_inodes(id: PoolId) -> Key {
    system(&format!("pool_inodes_{}", id.0))
}

/// Key of the kind of a data server's device.
pub fn map_class(id: DataServerId) -> Key {
    map_entry(MAP_CLASS, u64::from(id.0))
}

/// Key of a fenced session in the map.
pub fn map_blocked(id: SessionId) -> Key {
    map_entry(MAP_BLOCKED, id.0)
}

/// Key of an automatic decision to take a server out.
pub fn map_auto_out(id: DataServerId) -> Key {
    map_entry(MAP_AUTO_OUT, u64::from(id.0))
}

/// Key of the store of a server that was removed.
pub fn map_removed(id: DataServerId, store: StoreUuid) -> Key {
    let mut key = map_entry(MAP_REMOVED, u64::from(id.0));
    key.extend_from_slice(&store.0.to_be_bytes());
    key
}

/// Key of the CRUSH map.
pub fn map_crush() -> Key {
    vec![MAP, MAP_CRUSH]
}

fn map_entry(kind: u8, id: u64) -> Key {
    let mut key = vec![MAP, kind];
    key.extend_from_slice(&id.to_be_bytes());
    key
}

/// Key of a placement group's configuration.
pub fn pg(pg: PgId) -> Key {
    let mut key = vec![PG];
    key.extend_from_slice(&pg.to_u64().to_be_bytes());
    key
}

/// Key that says that a session holds an inode's size.
pub fn owned_hold(session: SessionId, inode: InodeId) -> Key {
    owned(session, OWNED_HOLD, &inode.0.to_be_bytes())
}

/// Key that says that a session pins an inode.
pub fn owned_pin(session: SessionId, inode: InodeId) -> Key {
    owned(session, OWNED_PIN, &inode.0.to_be_bytes())
}

/// Key that says that a session holds or waits for a lock.
pub fn owned_lock(session: SessionId, resource: &LockResource) -> Key {
    owned(session, OWNED_LOCK, &lock_suffix(resource))
}

fn owned(session: SessionId, kind: u8, id: &[u8]) -> Key {
    let mut key = table1(OWNED, session.0);
    key.push(kind);
    key.extend_from_slice(id);
    key
}

/// Key that says that a session ended and not everything that it owned is released yet.
pub fn ending(session: SessionId) -> Key {
    table1(ENDING, session.0)
}

/// What an [`OWNED`] key says: the kind, and the bytes behind it.
pub fn parse_owned(key: &[u8]) -> Option<(u8, &[u8])> {
    Some((*key.get(9)?, key.get(10..)?))
}

/// All keys that begin with `table` and `a`.
pub fn prefix1(table: u8, a: u64) -> Key {
    table1(table, a)
}

/// The number in bytes 1 to 9 of a key.
pub fn number_at(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

/// The least key that does not begin with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Key {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            return end;
        }
        end.pop();
    }
    vec![0xff; 64]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_is_numeric_order() {
        assert!(inode(InodeId(255)) < inode(InodeId(256)));
        assert!(order(InodeId(1), 2) < order(InodeId(1), 300));
        assert!(order(InodeId(1), u64::MAX) < order(InodeId(2), 0));
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        let prefix = prefix1(DENTRY, 0x00ff);
        assert!(
            dentry(InodeId(0x00ff), &EntryName::new(vec![0xff; 255]).expect("legal")) < prefix_end(&prefix)
        );
        assert!(dentry(InodeId(0x0100), &EntryName::new("a").expect("legal")) >= prefix_end(&prefix));
    }

    /// The examples in `docs/FORMATS.md`.
    #[test]
    fn keys_are_as_drawn() {
        let hex = |key: Key| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let etc = EntryName::new("etc").expect("legal");
        assert_eq!(hex(dentry(InodeId::ROOT, &etc)), "020000000000000001657463");
        assert_eq!(hex(order(InodeId::ROOT, 41 << 3 | 1)), "0300000000000000010000000000000149");
        assert_eq!(hex(link(InodeId(7), InodeId::ROOT, &etc)), "0400000000000000070000000000000001657463");
        assert_eq!(hex(lock(&LockResource::Posix(InodeId(7)))), "0b020000000000000007");
        assert_eq!(hex(owned_hold(SessionId(3), InodeId(7))), "100000000000000003010000000000000007");
    }

    #[test]
    fn lock_keys_say_what_they_lock() {
        for resource in [
            LockResource::Flock(InodeId(7)),
            LockResource::Posix(InodeId(8)),
            LockResource::Named(EntryName::new("n").expect("legal")),
        ] {
            assert_eq!(parse_lock(&lock(&resource)[1..]), Some(resource.clone()));
            let owned = owned_lock(SessionId(3), &resource);
            let (kind, id) = parse_owned(&owned).expect("parses");
            assert_eq!((kind, parse_lock(id)), (OWNED_LOCK, Some(resource)));
        }
    }
}
