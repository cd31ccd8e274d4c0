//! Open files, directories and special files of one mount.

use super::node::Node;
use super::ranges::Ranges;
use crate::special::SpecialHandle;
use protocol::meta::DirEntry;
use protocol::{Errno, mutant};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Anything that is open.
#[derive(Clone)]
pub(crate) enum Handle {
    File(Rc<FileHandle>),
    Directory(Rc<DirectoryHandle>),
    Special(Rc<SpecialHandle>),
}

/// What the loss of a session did to an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Nothing,
    /// What it wrote and did not sync: changes fail with EIO until it is opened anew.
    Writes,
    /// Locks it relied on: changes fail with ESTALE.
    Locks,
    /// The file itself, whose last name was gone: everything fails with ESTALE.
    File,
}

/// An open regular file.
pub(crate) struct FileHandle {
    /// Its number, which the metadata cluster knows too.
    pub(crate) number: u64,
    pub(crate) node: Rc<Node>,
    /// `O_*` of open(2).
    pub(crate) flags: i32,
    /// It wrote something that was not synced since.
    pub(crate) dirty: Cell<bool>,
    pub(crate) lost: Cell<Lost>,
    /// Byte ranges that were locked through it (the whole file by flock), in this session.
    pub(crate) locked: RefCell<Ranges>,
    pub(crate) flocked: Cell<bool>,
    /// Owners of byte-range locks that were taken through it and that no FLUSH has named since. Those that are left
    /// when it is released own open-file-description locks: of those the kernel says nothing at their end.
    pub(crate) lock_owners: RefCell<BTreeSet<u64>>,
}

impl FileHandle {
    pub(crate) fn new(number: u64, node: Rc<Node>, flags: u32) -> Rc<Self> {
        let handle = Self {
            number,
            node,
            flags: flags as i32,
            dirty: Cell::new(false),
            lost: Cell::new(Lost::Nothing),
            locked: RefCell::default(),
            flocked: Cell::new(false),
            lock_owners: RefCell::default(),
        };
        if handle.may_write() {
            handle.node.writers.set(handle.node.writers.get() + 1);
        }
        Rc::new(handle)
    }

    pub(crate) fn may_write(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    pub(crate) fn appends(&self) -> bool {
        self.flags & libc::O_APPEND != 0
    }

    /// Whether that is asked of the times too.
    pub(crate) fn is_wholly_synchronous(&self) -> bool {
        self.flags & libc::O_SYNC == libc::O_SYNC
    }

    /// Whether each write is to be on stable storage when it returns.
    pub(crate) fn is_synchronous(&self) -> bool {
        self.flags & (libc::O_SYNC | libc::O_DSYNC) != 0
    }

    /// Whether it may still change the file.
    pub(crate) fn check_change(&self) -> Result<(), Errno> {
        match self.lost.get() {
            Lost::Nothing => Ok(()),
            Lost::Writes => Err(Errno::EIO),
            Lost::Locks | Lost::File => Err(Errno::ESTALE),
        }
    }

    /// Whether it may still read the file.
    pub(crate) fn check_read(&self) -> Result<(), Errno> {
        if self.lost.get() == Lost::File { Err(Errno::ESTALE) } else { Ok(()) }
    }

    /// The session is lost.
    pub(crate) fn lose_session(&self) {
        let locked = self.flocked.replace(false) || !self.locked.borrow().is_empty();
        self.locked.borrow_mut().clear();
        self.lock_owners.borrow_mut().clear();
        if self.lost.get() == Lost::Nothing {
            match (locked, self.dirty.get()) {
                (true, _) => self.lost.set(Lost::Locks),
                (false, true) if !mutant!("lost-writes-are-not-reported") => self.lost.set(Lost::Writes),
                (false, _) => {}
            }
        }
    }
}

/// An open directory.
pub(crate) struct DirectoryHandle {
    /// Entries that were fetched and did not fit into the last answer.
    pub(crate) ahead: RefCell<Option<Ahead>>,
}

/// Entries to be answered next.
pub(crate) struct Ahead {
    /// The kernel's offset before the first of them.
    pub(crate) offset: u64,
    pub(crate) entries: std::collections::VecDeque<DirEntry>,
    /// Nothing follows them.
    pub(crate) end: bool,
}

/// The table of what is open. Numbers are never used again while the process lives.
pub(crate) struct Handles {
    table: RefCell<BTreeMap<u64, Handle>>,
    next: Cell<u64>,
}

impl Default for Handles {
    fn default() -> Self {
        Self { table: RefCell::default(), next: Cell::new(1) }
    }
}

impl Handles {
    /// A number for something to be opened.
    pub(crate) fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    pub(crate) fn insert(&self, number: u64, handle: Handle) {
        self.table.borrow_mut().insert(number, handle);
    }

    pub(crate) fn get(&self, number: u64) -> Option<Handle> {
        self.table.borrow().get(&number).cloned()
    }

    pub(crate) fn remove(&self, number: u64) -> Option<Handle> {
        self.table.borrow_mut().remove(&number)
    }

    pub(crate) fn file(&self, number: u64) -> Result<Rc<FileHandle>, Errno> {
        match self.get(number) {
            Some(Handle::File(file)) => Ok(file),
            _ => Err(Errno::EBADF),
        }
    }

    /// Every open regular file.
    pub(crate) fn files(&self) -> Vec<Rc<FileHandle>> {
        let file = |handle: &Handle| match handle {
            Handle::File(file) => Some(file.clone()),
            _ => None,
        };
        self.table.borrow().values().filter_map(file).collect()
    }

    /// Every open special file.
    pub(crate) fn specials(&self) -> Vec<Rc<SpecialHandle>> {
        let special = |handle: &Handle| match handle {
            Handle::Special(special) => Some(special.clone()),
            _ => None,
        };
        self.table.borrow().values().filter_map(special).collect()
    }
}
